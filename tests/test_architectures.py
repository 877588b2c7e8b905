"""Architectures: the class that a config means, under whatever name it says so."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    BertForMaskedLM,
    BertForTokenClassification,
    BertLMHeadModel,
    BertModel,
    CamembertConfig,
    CamembertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaForMaskedLM,
)

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import LoadError, MedVLLMError, WeightsMismatchError
from tests.support import tiny
from tests.support.spread import spread

IDS = torch.tensor([[2, 6, 7, 8, 3]])
SISTERS: list[tuple[Any, Any]] = [
    (RobertaConfig, RobertaForMaskedLM),
    (XLMRobertaConfig, XLMRobertaForMaskedLM),
    (CamembertConfig, CamembertForMaskedLM),
]


@pytest.mark.parametrize(
    ("named", "loaded"),
    spread(
        [
            (["TFBertForTokenClassification"], "BertForTokenClassification"),
            (["FlaxBertForTokenClassification"], "BertForTokenClassification"),
            (["AutoModelForTokenClassification"], "BertForTokenClassification"),
            ("BertForTokenClassification", "BertForTokenClassification"),
            (["TFBertModel"], "BertModel"),
            (["BertAdapterModel"], "BertModel"),
            (["HF_ColBERT"], "BertModel"),
            (["SentenceTransformer"], "BertModel"),
            (["AutoModel"], "BertModel"),
            (["MultiTaskBert"], "BertModel"),
            (["PreTrainedModel"], "BertModel"),
            (["BertPreTrainedModel"], "BertModel"),
            ([], "BertModel"),
            ([None], "BertModel"),
            ([""], "BertModel"),
            ({"a": 1}, "BertModel"),
        ],
        2,
    ),
    ids=str,
)
def test_other_names_of_an_architecture(registry: ModelRegistry, tmp_path: Path, named: Any, loaded: str) -> None:
    """Of other frameworks and libraries, abstract ones, and none: the same class as transformers' own name gives."""
    folder = tiny.bert_token_classifier(tmp_path / "m", ["O", "B-X", "I-X"])
    tiny.edit_config(folder, architectures=named)
    model = registry.load_model(folder)
    assert type(model).__name__ == loaded
    expected: Any = AutoModel.from_pretrained(folder).eval()
    assert torch.equal(model.base_model(IDS).last_hidden_state, expected(IDS).last_hidden_state)


@pytest.mark.parametrize(
    "named",
    ["BertCrfForNer", "MyBertForTokenClassification", "BertLSTMTagger", "BertReranker", "NoSuchModel", "x" * 300],
)
def test_a_name_that_promises_more_is_refused_with_a_class_that_loads(
    registry: ModelRegistry, tmp_path: Path, named: str
) -> None:
    """What it computes on top is not known here."""
    folder = tiny.bert_token_classifier(tmp_path / "m", ["O", "B-X", "I-X"])
    tiny.edit_config(folder, architectures=[named])
    with pytest.raises(LoadError, match="which transformers .* does not have") as caught:
        registry.load_model(folder)
    advice = re.search("model_class='(transformers:.*?)'", str(caught.value))
    assert advice
    assert isinstance(registry.load_model(folder, model_class=advice[1]), (BertModel, BertForTokenClassification))


def test_what_another_library_adds_is_found(registry: ModelRegistry, tmp_path: Path) -> None:
    """A name of an encoder hides no weights on top of it."""
    from tests.test_weights import change, with_

    folder = change(tiny.bert_encoder(tmp_path / "m"), with_("linear.weight"))
    tiny.edit_config(folder, architectures=["HF_ColBERT"])
    with pytest.raises(WeightsMismatchError, match="linear.weight"):
        registry.load_model(folder)


@pytest.mark.parametrize("config", spread(range(3), 2))
@pytest.mark.parametrize("named", range(3))
def test_sister_architectures(registry: ModelRegistry, tmp_path: Path, config: int, named: int) -> None:
    """The config of one and the architecture of another: what plain transformers makes of it."""
    size = tiny.SMALL | {"max_position_embeddings": 66, "vocab_size": tiny.BYTES, "pad_token_id": 1}
    folder = tiny.write(tmp_path / "m", SISTERS[config][1], SISTERS[config][0](**size), tiny.byte_tokenizer())
    tiny.edit_config(folder, architectures=[SISTERS[named][1].__name__])
    expected: Any = AutoModelForMaskedLM.from_pretrained(folder).eval()
    model: Any = registry.load_model(folder)
    assert type(model) is type(expected) and torch.equal(model(IDS).logits, expected(IDS).logits)
    assert registry.load_tokenizer(folder).model_max_length == 64


@pytest.mark.parametrize(
    "wrong", [RobertaForMaskedLM, RobertaModel, "transformers:GPT2LMHeadModel", "transformers:T5Model"]
)
def test_the_advice_for_a_class_of_another_architecture_leads_out(
    registry: ModelRegistry, tmp_path: Path, wrong: Any
) -> None:
    """Followed once, it loads."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    with pytest.raises(LoadError, match="is a 'bert', but") as caught:
        registry.load_model(folder, model_class=wrong)
    advice = re.search("model_class='(transformers:.*?)'", str(caught.value))
    assert advice
    model = registry.load_model(folder, model_class=advice[1])
    assert isinstance(model, (BertForMaskedLM, BertLMHeadModel, BertModel))


@pytest.mark.parametrize(
    ("make", "task", "loaded"),
    [
        (tiny.bert_token_classifier, "ner", "BertForTokenClassification"),
        (tiny.bert_token_classifier, "deid", "BertForTokenClassification"),
        (tiny.bert_sequence_classifier, "classify", "BertForSequenceClassification"),
        (tiny.bert_masked_lm, "fill-mask", "BertForMaskedLM"),
        (tiny.bert_masked_lm, "embed", "BertModel"),
        (tiny.bert_masked_lm, None, "BertModel"),
    ],
)
def test_without_an_architecture_the_entrys_task_decides(
    registry: ModelRegistry, tmp_path: Path, make: Any, task: str | None, loaded: str
) -> None:
    """A tagger whose config names no class is loaded with its head."""
    labels = {"labels": ["O", "B-X", "I-X"]} if make is tiny.bert_token_classifier else {}
    folder = make(tmp_path / "m", architectures=False, **labels)
    registry.register("m", "clinical", model_path=str(folder), task=task)
    assert type(registry.load_model("m")).__name__ == loaded


@pytest.mark.parametrize(
    "named", ["logging", "pipeline", "__path__", "models", "BertTokenizer", "BertConfig", "a.b", "\n", 7]
)
def test_names_that_are_no_models_class(registry: ModelRegistry, tmp_path: Path, named: Any) -> None:
    """Are refused, or not looked at, without a foreign error."""
    folder = tiny.bert_encoder(tmp_path / "m")
    tiny.edit_config(folder, architectures=[named])
    try:
        assert type(registry.load_model(folder)) is BertModel
    except MedVLLMError as error:
        assert "does not have" in str(error)
