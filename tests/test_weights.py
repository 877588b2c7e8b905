"""Weights: every one of a checkpoint is in the model, or is known to make no difference, or the load is refused."""

import io
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertForTokenClassification,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
)

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import LoadError, MedVLLMError, WeightsMismatchError
from tests.support import tiny
from tests.support.spread import spread

State = dict[str, torch.Tensor]
LABELS = ["O", "B-X", "I-X"]


def change(folder: Path, edit: Callable[[State], State]) -> Path:
    """The checkpoint with other weights."""
    file = folder / "model.safetensors"
    save_file({name: t.contiguous() for name, t in edit(load_file(file)).items()}, file, {"format": "pt"})
    return folder


def with_(*names: str, like: torch.Tensor | None = None) -> Callable[[State], State]:
    """Weights more."""
    return lambda state: state | {name: torch.ones(2, 2) if like is None else like.clone() for name in names}


def advised(error: Exception) -> dict[str, Any]:
    """The keywords in the line of an error that says what to register."""
    keywords = re.search(r"register\(…, (.*)\)", str(error))
    assert keywords, error
    return dict(eval(f"dict({keywords[1]})"))


@pytest.mark.parametrize(
    ("names", "what"),
    spread([
        (["crf.transitions", "crf.start_transitions", "crf.end_transitions"], "a CRF"),
        (["transitions"], "a CRF"),
        (["tagger_crf.trans_matrix"], "a CRF"),
        (["bert.pooler.dense.lora_A", "bert.pooler.dense.lora_B", "classifier.lora_A"], "LoRA"),
        (["bert.encoder.layer.1.attention.self.value.lora_A.default.weight"], "LoRA"),
        (["bert.encoder.layer.1.output.adapters.ner.adapter_down.0.weight"], "adapter"),
        (["bert.encoder.layer.0.attention.self.distance_embedding.weight"], "relative positions"),
        (["bert.encoder.relative_attention_bias.weight"], "relative positions"),
        (["bert.encoder.layer.0.attention.self.query.weight_scale"], "scales of quantized"),
        (["bert.encoder.layer.0.attention.self.query.weight_scale_inv"], "scales of quantized"),
        (["bert.encoder.layer.0.attention.self.query.scale_weight"], "scales of quantized"),
        (["bert.encoder.layer.0.attention.self.query.input_scale"], "scales of quantized"),
        (["bert.encoder.layer.0.attention.self.query.weight_zero_point"], "scales of quantized"),
        (["bert.encoder.layer.0.attention.self.query.SCB"], "scales of quantized"),
        (["bert.encoder.layer.0.attention.self.query_norm.weight"], r"query_norm.weight \[2, 2\]"),
        (["projection.weight"], r"projection.weight \[2, 2\]"),
        (["lstm.weight_ih_l0"], "lstm.weight_ih_l0"),
        (["bert.embeddings.entity_embeddings.weight"], "entity_embeddings"),
        (["something_else"], "something_else"),
    ], 2),
)  # fmt: skip
def test_weights_that_the_model_does_not_take_are_refused_and_allowed_by_name(
    registry: ModelRegistry, tmp_path: Path, names: list[str], what: str
) -> None:
    """With what they are, and a line that leads out when it is followed."""
    folder = change(tiny.bert_token_classifier(tmp_path / "m", LABELS), with_(*names))
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(WeightsMismatchError, match=what) as caught:
            registry.load_model(folder, dtype=dtype)
        assert caught.value.unused == tuple(sorted(names))
    registry.register("allowed", "generic", model_path=str(folder), **advised(caught.value))
    assert isinstance(registry.load_model("allowed"), BertForTokenClassification)
    assert registry.load_model("allowed", dtype="bfloat16")
    with pytest.raises(WeightsMismatchError, match=what):  # a copy that the entry above has left is not used
        registry.load_model(folder, dtype="bfloat16")


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("kind", ["BertModel", "BertForTokenClassification"])
@pytest.mark.parametrize(
    "name", spread(["encoder.layer.1.attention.self.key.lora_A", "embeddings.more.weight", "top.weight"], 2)
)
def test_what_is_advised_for_one_weight_allows_no_others_of_the_encoder(
    registry: ModelRegistry, tmp_path: Path, name: str, kind: str, prefix: str
) -> None:
    """Whether or not the encoder's prefix stands before its name."""
    folder = change(tiny.bert_token_classifier(tmp_path / "m", LABELS), with_(f"{prefix}{name}"))
    with pytest.raises(WeightsMismatchError) as caught:
        registry.load_model(folder, model_class=f"transformers:{kind}")
    registry.register(
        "m", "generic", model_path=str(folder), model_class=f"transformers:{kind}", **advised(caught.value)
    )
    assert registry.load_model("m")
    change(folder, with_(f"{prefix}encoder.layer.0.intermediate.further.weight"))
    with pytest.raises(WeightsMismatchError, match="further"):
        registry.load_model("m")


class OfOnesOwn(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A class that no architecture of transformers is behind."""

    config_class = BertConfig
    base_model_prefix = "own"

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.top = torch.nn.Linear(2, 2)
        self.post_init()  # type: ignore[no-untyped-call]


def test_weights_that_a_class_of_ones_own_does_not_take_are_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """By name, with a line that leads out."""
    folder = tiny.bert(tmp_path / "m", BertModel)
    save_file(
        {"top.weight": torch.ones(2, 2), "top.bias": torch.ones(2), "side.weight": torch.ones(2)},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    options: dict[str, Any] = {"model_class": f"{__name__}:OfOnesOwn", "parameters": {"attn_implementation": "eager"}}
    registry.register("m", "custom", model_path=str(folder), **options)
    with pytest.raises(WeightsMismatchError, match=r"side.weight \[2\]") as caught:
        registry.load_model("m")
    registry.register("allowed", "custom", model_path=str(folder), **options, **advised(caught.value))
    assert registry.load_model("allowed")


@pytest.mark.parametrize(
    "names",
    [
        ["bert.embeddings.position_ids"],
        ["embeddings.token_type_ids"],
        ["bert.pooler.dense.weight", "bert.pooler.dense.bias"],
        ["pooler.dense.weight"],
        ["cls.predictions.bias", "cls.predictions.decoder.weight", "cls.seq_relationship.weight"],
        ["qa_outputs.weight"],
        ["loss_fct.weight"],
        ["criterion.pos_weight"],
    ],
)
def test_harmless_weights_pass(registry: ModelRegistry, tmp_path: Path, names: list[str]) -> None:
    """Buffers of older versions, weights of the loss, and heads of the same architecture that the class lacks."""
    folder = change(tiny.bert_token_classifier(tmp_path / "m", LABELS), with_(*names))
    assert registry.load_model(folder)


def test_the_head_of_another_class_passes(registry: ModelRegistry, tmp_path: Path) -> None:
    """For the caller who chose a class without it, whatever the head's size."""
    tagger = tiny.bert_token_classifier(tmp_path / "tagger", [*LABELS, "B-Y", "I-Y"])
    assert type(registry.load_model(tagger, model_class=BertModel)) is BertModel
    pretrained = tiny.bert(tmp_path / "pretrained", BertForPreTraining)
    for auto in ("AutoModel", "AutoModelForMaskedLM", "AutoModelForNextSentencePrediction"):
        assert registry.load_model(pretrained, model_class=f"transformers:{auto}")
    for make in (tiny.gpt2_causal_lm, tiny.llama_causal_lm, tiny.roberta_masked_lm):
        assert registry.load_model(make(tmp_path / make.__name__), model_class="transformers:AutoModel")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "_fsdp_wrapped_module.", "base_model.model.", "x."]
)
def test_a_prefix_is_named(registry: ModelRegistry, tmp_path: Path, prefix: str) -> None:
    """Never with the advice to allow a random model."""
    for make in (tiny.bert_encoder, tiny.bert_masked_lm):
        folder = change(
            make(tmp_path / make.__name__), lambda state: {f"{prefix}{name}": t for name, t in state.items()}
        )
        with pytest.raises(WeightsMismatchError, match=f"begin with '{re.escape(prefix)}(bert.)?'") as caught:
            registry.load_model(folder)
        assert "expected_missing_keys" not in str(caught.value)
        change(folder, lambda state: {name.removeprefix(prefix): t for name, t in state.items()})
        assert registry.load_model(folder)


def test_a_missing_body_is_never_allowed_by_advice(registry: ModelRegistry, tmp_path: Path) -> None:
    """Only a head or a pooler is."""
    folder = tiny.bert_masked_lm(tmp_path / "m", drop=("bert.encoder.layer.1.",))
    with pytest.raises(WeightsMismatchError, match="lacks bert.encoder.layer.1.*partly random") as caught:
        registry.load_model(folder)
    assert "expected_missing_keys" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 50}, r"word_embeddings.weight is \[\d+, 32\], but .* \[50, 32\]"),
        ({"max_position_embeddings": 32}, r"position_embeddings.weight is \[64, 32\].*\[32, 32\]"),
        ({"num_labels": 5, "id2label": None, "label2id": None}, r"classifier.bias is \[3\].*\[5\]"),
        ({"intermediate_size": 65}, r"intermediate.dense.bias is \[64\].*\[65\].* and 3 more"),
    ],
)
def test_sizes_that_do_not_fit_are_named(
    registry: ModelRegistry, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """Which tensor, its size, and the size that the config asks for."""
    folder = tiny.bert_token_classifier(tmp_path / "m", LABELS)
    tiny.edit_config(folder, **changes)
    with pytest.raises(WeightsMismatchError, match=message) as caught:
        registry.load_model(folder)
    assert "ignore_mismatched" not in str(caught.value) and "report" not in str(caught.value)


def test_an_empty_tensor_is_named(registry: ModelRegistry, tmp_path: Path) -> None:
    """As a run under ZeRO-3 leaves them behind."""
    key = "encoder.layer.0.output.dense.weight"
    folder = change(tiny.bert_encoder(tmp_path / "m"), lambda state: state | {key: torch.zeros(0)})
    with pytest.raises(WeightsMismatchError, match=rf"{key} is \[0\], but .* \[32, 64\]"):
        registry.load_model(folder)


def test_the_number_of_an_entrys_labels_is_said(registry: ModelRegistry, tmp_path: Path) -> None:
    """Both numbers, at registration and when a folder that has changed is loaded; with as many names, it loads."""
    labels = [*LABELS, "B-Y", "I-Y"]
    folder = tiny.bert_token_classifier(tmp_path / "m", labels)
    with pytest.raises(WeightsMismatchError, match="has 2 names .* 5 labels"):
        registry.register("m", "clinical", model_path=str(folder), id2label=["O", "B-X"])
    registry.register("m", "clinical", model_path=str(folder), id2label=labels)
    assert registry.load_model("m")
    tiny.bert_token_classifier(folder, LABELS)
    with pytest.raises(WeightsMismatchError, match="has 5 names .* 3 labels"):
        registry.load_model("m")


def test_weights_that_cannot_be_put_together_are_named(registry: ModelRegistry, tmp_path: Path) -> None:
    """Experts of several sizes, which transformers stacks."""
    config = MixtralConfig(**tiny.SMALL | {"num_key_value_heads": 2, "num_local_experts": 2}, vocab_size=tiny.BYTES)
    MixtralForCausalLM(config).save_pretrained(tmp_path / "m")
    assert registry.load_model(tmp_path / "m")
    expert = "model.layers.0.block_sparse_moe.experts.0.w1.weight"
    change(tmp_path / "m", lambda state: state | {expert: torch.zeros(3, 3)})
    with pytest.raises(WeightsMismatchError, match=r"layers.0.*experts.* cannot be built") as caught:
        registry.load_model(tmp_path / "m")
    assert "report" not in str(caught.value)


def test_a_weight_under_two_names_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """One of them would win in silence."""
    key = "encoder.layer.0.output.dense.weight"
    folder = change(tiny.bert_encoder(tmp_path / "m"), lambda state: state | {f"bert.{key}": state[key] + 1})
    with pytest.raises(WeightsMismatchError, match=f"'{key}' twice"):
        registry.load_model(folder)


@pytest.mark.parametrize(
    "declared",
    [
        {"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}},
        {"quantization_config": {"quant_method": "made-up"}},
        {"quantization_config": {"bits": 8}},
        {"compression_config": {"quant_method": "compressed-tensors"}},
        {"text_config": {"quantization_config": {"quant_method": "made-up"}}},
    ],
    ids=json.dumps,
)
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_a_quantisation_that_nobody_reads_is_refused(
    registry: ModelRegistry, tmp_path: Path, declared: dict[str, Any], dtype: torch.dtype
) -> None:
    """By its name, before noise is taken for weights."""
    folder = change(
        tiny.bert_encoder(tmp_path / "m"),
        lambda state: {name: t.to(dtype) if name.endswith("dense.weight") else t for name, t in state.items()},
    )
    tiny.edit_config(folder, **declared)
    with pytest.raises(LoadError, match="is quantized") as caught:
        registry.load_model(folder)
    method = re.search(r'"quant_method": "(.*?)"', json.dumps(declared))
    assert (method[1] if method else "quantization_config") in str(caught.value)


def test_weights_in_fp8_without_scales_load(registry: ModelRegistry, tmp_path: Path) -> None:
    """They are what they say."""
    folder = change(
        tiny.bert_encoder(tmp_path / "m"), lambda state: {name: t.to(torch.float8_e4m3fn) for name, t in state.items()}
    )
    assert registry.load_model(folder, dtype="float32").dtype is torch.float32


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query", "rotary"])
def test_positions_that_are_no_longer_computed_are_refused(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """By the config, whether or not the weights tell; absolute ones are what is computed."""
    folder = tiny.bert_encoder(tmp_path / "m")
    tiny.edit_config(folder, position_embedding_type="absolute")
    assert registry.load_model(folder)
    tiny.edit_config(folder, position_embedding_type=kind)
    with pytest.raises(LoadError, match=f"position_embedding_type '{kind}'"):
        registry.load_model(folder)


@pytest.mark.filterwarnings("ignore:Casting complex values")
def test_complex_numbers_are_not_taken_for_weights(registry: ModelRegistry, tmp_path: Path) -> None:
    """transformers would drop the imaginary part."""

    def turned(state: State) -> State:
        return {name: tensor.to(torch.complex64) if "query" in name else tensor for name, tensor in state.items()}

    folder = change(tiny.bert_encoder(tmp_path / "m"), turned)
    with pytest.raises(WeightsMismatchError, match=r"has complex numbers for \S+query\.weight"):
        registry.load_model(folder)


def test_no_advice_is_printed_for_classes_that_are_only_looked_at(registry: ModelRegistry, tmp_path: Path) -> None:
    """transformers has some for a BertLMHeadModel, among whose weights those of the checkpoint are looked for."""
    folder = change(tiny.bert_encoder(tmp_path / "m"), with_("projection.weight"))
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger("transformers").addHandler(handler)
    try:
        with pytest.raises(WeightsMismatchError, match="projection.weight"):
            registry.load_model(folder)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert stream.getvalue() == ""


def test_every_refusal_is_an_error_of_ours(registry: ModelRegistry, tmp_path: Path) -> None:
    """Whatever a single name is changed to."""
    state = load_file(tiny.bert_token_classifier(tmp_path / "base", LABELS) / "model.safetensors")
    for number, key in enumerate(list(state)[::7]):
        for kind, new in enumerate(
            (f"x.{key}", key.replace(".1.", ".7."), f"{key}_scale", key.upper(), f"{key}.lora_A")
        ):
            if new == key:
                continue
            folder = tiny.copy(tmp_path / "base", tmp_path / f"{number}-{kind}")
            renamed = {new if name == key else name: tensor for name, tensor in state.items()}
            save_file(renamed, folder / "model.safetensors", {"format": "pt"})
            with pytest.raises(MedVLLMError):
                registry.load_model(folder)
