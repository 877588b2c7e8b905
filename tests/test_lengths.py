"""Lengths: how many tokens a model reads at once is what its own positions, its tokenizer and its entry say."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    MODEL_MAPPING,
    BertConfig,
    CLIPConfig,
    Data2VecTextConfig,
    Data2VecTextModel,
    EncoderDecoderConfig,
    T5Config,
    T5EncoderModel,
    XLNetConfig,
    XLNetForTokenClassification,
    XLNetModel,
)

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import LoadError
from tests.support import tiny
from tests.support.spread import spread

# What the configs of many architectures call their sizes.
SIZES: dict[str, Any] = {
    field: size
    for size, fields in {
        48: "hidden_size d_model n_embd dim emb_dim embedding_size bottleneck_size word_embed_proj_dim",
        1: "num_hidden_layers n_layer n_layers encoder_layers decoder_layers pad_token_id channel_shrink_ratio",
        2: "num_attention_heads n_head n_heads encoder_attention_heads decoder_attention_heads eos_token_id",
        64: "intermediate_size hidden_dim encoder_ffn_dim decoder_ffn_dim ffn_dim",
        40: "max_position_embeddings max_encoder_position_embeddings max_decoder_position_embeddings",
        100: "vocab_size",
        10: "entity_vocab_size",
        8: "attention_window shape_size coordinate_size",
        0: "bos_token_id",
        "en_XX": "default_language",
    }.items()
    for field in fields.split()
}
BEHIND_THE_PADDING, FROM_THE_FIRST = (
    names.split()
    for names in (
        """camembert data2vec-text esm ibert layoutlmv3 lilt longformer luke markuplm mpnet roberta
        roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod""",
        """albert bart bert bert-generation big_bird biogpt convbert deberta deberta-v2 distilbert dpr electra ernie
        flaubert fnet gpt2 layoutlm led marian mbart megatron-bert mobilebert mra nystromformer opt rembert roc_bert
        roformer splinter squeezebert xlm yoso""",
    )
)


def small(model_type: str) -> Any:
    """A config of an architecture with 40 positions."""
    config = CONFIG_MAPPING[model_type]()
    for field, size in SIZES.items():
        if hasattr(config, field):
            setattr(config, field, size)
    return config


@pytest.mark.parametrize("model_type", spread([*BEHIND_THE_PADDING, *FROM_THE_FIRST], 2))
def test_a_text_of_the_models_length_runs_and_no_longer_one(model_type: str) -> None:
    """Whatever an architecture calls its positions, and wherever they begin."""
    from medvllm.loading.positions import Positions, find_positions

    config = small(model_type)
    expected = 38 if model_type in BEHIND_THE_PADDING else 40
    assert find_positions(config) == Positions(expected, is_firm=True)
    cls: Any = MODEL_MAPPING[type(config)]
    model = cls(config).eval()

    def run(length: int) -> None:
        ids = torch.arange(length).remainder(90).unsqueeze(0) + 5
        with torch.inference_mode():
            model(input_ids=ids, **({"decoder_input_ids": ids[:, :2]} if config.is_encoder_decoder else {}))

    run(expected)
    with pytest.raises((IndexError, RuntimeError)):
        run(expected + 1)


@pytest.mark.parametrize("stated", [-1, None, 0, 1e30, 10**12])
def test_no_limit_is_none(stated: Any) -> None:
    """However a config says so."""
    from medvllm.loading.positions import find_positions

    config = T5Config()
    config.max_position_embeddings = stated
    assert find_positions(config).count is None
    assert find_positions(XLNetConfig()).count is None


def test_a_composite_config_has_the_positions_of_its_text() -> None:
    """Not those of its images."""
    from medvllm.loading.positions import find_positions

    assert find_positions(CLIPConfig(text_config={"max_position_embeddings": 77})).count == 77
    parts: dict[str, Any] = {
        "encoder": BertConfig(max_position_embeddings=60).to_dict(),
        "decoder": BertConfig().to_dict(),
    }
    assert find_positions(EncoderDecoderConfig(**parts)).count == 60


def _without_length(folder: Path, **config: Any) -> Path:
    """A checkpoint whose tokenizer states no length."""
    file = folder / "tokenizer_config.json"
    stated = json.loads(file.read_text())
    stated.pop("model_max_length", None)
    file.write_text(json.dumps(stated | config))
    return folder


def _xlnet(folder: Path, cls: Any, **config: Any) -> Path:
    full = XLNetConfig(d_model=32, n_layer=1, n_head=2, d_inner=64, vocab_size=tiny.BYTES, **config)
    return tiny.write(folder, cls, full, tiny.byte_tokenizer())


def test_an_xlnet_embeds_and_tags(registry: ModelRegistry, tmp_path: Path) -> None:
    """It has no limit of its own; the tokenizer's, or the entry's, is taken."""
    text = "the patient has a fever " * 12
    folder = _xlnet(tmp_path / "m", XLNetModel)
    assert registry.load_tokenizer(folder).model_max_length == 64
    assert ModelRunner(folder, registry=registry).embed([text]).coverage[0].windows > 1
    registry.register("long", "clinical", model_path=str(folder), max_length=400)
    assert ModelRunner("long", registry=registry).embed([text]).coverage[0].windows == 1
    tagger = _xlnet(tmp_path / "t", XLNetForTokenClassification, **tiny.labelled(["O", "B-X", "I-X"]))
    assert ModelRunner(tagger, registry=registry).entities([text])[0].coverage.windows > 1


def test_a_long_text_of_a_model_whose_tokenizer_states_no_length(registry: ModelRegistry, tmp_path: Path) -> None:
    """Is read in windows of the model's positions."""
    config = Data2VecTextConfig(**tiny.SMALL | {"max_position_embeddings": 66}, vocab_size=tiny.BYTES, pad_token_id=1)
    folder = _without_length(tiny.write(tmp_path / "m", Data2VecTextModel, config, tiny.byte_tokenizer()))
    assert registry.load_tokenizer(folder).model_max_length == 64
    assert ModelRunner(folder, registry=registry).embed(["fever " * 40]).coverage[0].windows > 1


def test_without_any_limit_a_safe_one_is_taken_and_said(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once a model, with how to say another."""
    config = T5Config(d_model=32, d_ff=64, d_kv=16, num_layers=1, num_heads=2, vocab_size=tiny.BYTES)
    config.max_position_embeddings = 64  # for the support's tokenizer alone
    folder = _without_length(tiny.write(tmp_path / "m", T5EncoderModel, config, tiny.byte_tokenizer()))
    tiny.edit_config(folder, max_position_embeddings=None)
    caplog.set_level(logging.WARNING)
    runner = ModelRunner(folder, registry=registry)
    assert runner.embed(["fever " * 200]).coverage[0].windows > 1 and runner.embed(["fever"])
    assert registry.load_tokenizer(folder).model_max_length == 512
    said = [record.getMessage() for record in caplog.records if "512 tokens are assumed" in record.getMessage()]
    assert len(said) == 1 and "max_length=…" in said[0]
    caplog.clear()
    registry.register("m", "clinical", model_path=str(folder), max_length=2048)
    assert registry.load_tokenizer("m").model_max_length == 2048
    assert not caplog.records


@pytest.mark.parametrize("stated", ["64", 64.0, "64.0", 64])
def test_a_tokenizers_length_is_a_number_however_it_is_written(
    registry: ModelRegistry, tmp_path: Path, stated: Any
) -> None:
    """As text or with a point."""
    config = {"max_position_embeddings": 128}
    folder = _without_length(tiny.bert_encoder(tmp_path / "m", config=config), model_max_length=stated)
    length = registry.load_tokenizer(folder).model_max_length
    assert length == 64 and type(length) is int


@pytest.mark.parametrize("stated", [-1, 0, "-1", 1e30, "1e30", None, float("inf"), 10**400])
def test_a_tokenizer_without_a_length_has_the_models(registry: ModelRegistry, tmp_path: Path, stated: Any) -> None:
    """And texts are read in windows of it."""
    folder = _without_length(tiny.bert_encoder(tmp_path / "m"), model_max_length=stated)
    assert registry.load_tokenizer(folder).model_max_length == 64
    assert ModelRunner(folder, registry=registry).embed(["fever " * 100]).coverage[0].windows > 1


@pytest.mark.parametrize("stated", [-2, 64.5, "many", "", [64], {"a": 1}, True, float("nan"), 2, 1])
def test_a_length_that_is_none_is_refused_by_name(registry: ModelRegistry, tmp_path: Path, stated: Any) -> None:
    """Following the advice leads out."""
    folder = _without_length(tiny.bert_encoder(tmp_path / "m"), model_max_length=stated)
    with pytest.raises(LoadError, match="max_length"):
        registry.load_tokenizer(folder)
    registry.register("m", "clinical", model_path=str(folder), max_length=32)
    assert registry.load_tokenizer("m").model_max_length == 32


def test_an_entry_cannot_have_more_than_the_model(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its length is the most that it wants; a smaller one of the model's is taken, and said."""
    registry.register("m", "clinical", model_path=str(tiny.bert_encoder(tmp_path / "m")), max_length=65)
    assert registry.load_tokenizer("m").model_max_length == 64
    assert "at most 64 tokens at once, fewer than its max_length of 65" in caplog.text
