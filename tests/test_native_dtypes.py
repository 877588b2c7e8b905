"""A CPU without instructions for 16 bits computes a checkpoint in float32, and warns when it is told otherwise."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import BertForMaskedLM

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.loading.native_dtypes import is_native
from tests.support import tiny
from tests.support.adapters import lora

# Processors, by what `torch.cpu.get_capabilities` says of them, and the dtypes that they compute themselves.
_PROCESSORS: dict[str, tuple[Mapping[str, object], set[str]]] = {
    "Zen 3": ({"avx2": True, "fma3": True, "f16c": True, "avx512_f": False, "avx512_bf16": False}, set()),
    "Skylake-X": ({"avx2": True, "avx512_f": True, "avx512_bw": True, "avx512_vl": True, "avx512_bf16": False}, set()),
    "Ice Lake": ({"avx512_f": True, "avx512_vnni": True, "avx512_bf16": False, "avx512_fp16": False}, set()),
    "Zen 4": ({"avx512_f": True, "avx512_bf16": True, "avx512_fp16": False, "amx_tile": False}, {"bfloat16"}),
    "Sapphire Rapids": (
        {"avx512_bf16": True, "avx512_fp16": True, "amx_tile": True, "amx_bf16": True, "amx_fp16": False},
        {"bfloat16", "float16"},
    ),
    "Lunar Lake": ({"avx2": True, "avx512_f": False, "avx_ne_convert": True}, {"bfloat16", "float16"}),
    "Graviton 2": ({"architecture": "aarch64", "neon": True, "fp16_arith": True, "bf16": False}, {"float16"}),
    "Graviton 3": ({"neon": True, "sve": True, "fp16_arith": True, "bf16": True}, {"bfloat16", "float16"}),
    "Raspberry Pi 4": ({"architecture": "aarch64", "neon": True, "fp16_arith": False, "bf16": False}, set()),
    "unknown": ({}, set()),
}
_HALVES = ("bfloat16", "float16")


@pytest.mark.parametrize("name", _PROCESSORS)
def test_what_a_processor_computes_itself(name: str) -> None:
    """float32 and float64 in any case; 16 bits where it has instructions that multiply or convert them."""
    capabilities, halves = _PROCESSORS[name]
    assert {dtype for dtype in _HALVES if is_native(dtype, capabilities)} == halves
    assert is_native("float32", capabilities) and is_native("float64", capabilities)


def _chosen(dtype: str) -> str:
    """Return the dtype that this machine computes a checkpoint in."""
    return dtype if is_native(dtype) else "float32"


@pytest.mark.parametrize("dtype", _HALVES)
def test_a_checkpoint_of_16_bits_is_computed_in_what_the_cpu_has(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    """In one model, however it is asked for: the same numbers, and plan, receipt and listing say in what."""
    folder, chosen = tiny.bert_masked_lm(tmp_path / "m", dtype=dtype), _chosen(dtype)
    registry.register("m", "generic", model_path=str(folder))
    plan = registry.plan("m")
    assert (plan.dtype, plan.stored_dtype) == (chosen, dtype)
    assert plan.size_bytes == registry.plan("m", dtype=chosen).size_bytes
    model = registry.load_model("m")
    assert model is registry.load_model("m", dtype="auto") is registry.load_model("m", dtype=chosen)
    plain = BertForMaskedLM.from_pretrained(folder, dtype=getattr(torch, chosen))
    for name, weight in plain.state_dict().items():
        assert weight.dtype == getattr(torch, chosen) and torch.equal(weight, model.state_dict()[name]), name
    with registry.lease("m") as lease:
        assert (lease.receipt.options["dtype"], lease.receipt.proof.dtype) == (chosen, dtype)
    assert [loaded.dtype for loaded in registry.loaded_models()] == [chosen]
    assert "instructions" not in caplog.text


@pytest.mark.parametrize("dtype", _HALVES)
def test_a_dtype_that_the_cpu_lacks_is_warned_about_once(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture, dtype: str
) -> None:
    """For each model, with the way out. It is what the caller asked for, so it is done."""
    folder = tiny.bert_masked_lm(tmp_path / "m", dtype=dtype)
    for _ in range(2):
        assert registry.load_model(folder, dtype=dtype).dtype is getattr(torch, dtype)
        registry.clear_cache()
    warnings = [record.getMessage() for record in caplog.records if "instructions" in record.getMessage()]
    assert len(warnings) == (not is_native(dtype))
    assert all(f"in {dtype} on the CPU" in text and text.endswith("dtype='float32'") for text in warnings)


@pytest.mark.parametrize("source", ["setting", "entry"])
def test_a_dtype_of_the_setting_or_the_entry_is_asked_for(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    """Only what nobody has stated is chosen for the machine. The word auto states nothing."""
    folder = tiny.bert_masked_lm(tmp_path / "m", dtype="bfloat16")
    if source == "setting":
        monkeypatch.setenv("MEDVLLM_DTYPE", "bfloat16")
    registry.register("m", "generic", model_path=str(folder), parameters={"dtype": "bf16"} if source == "entry" else {})
    assert registry.plan("m").dtype == "bfloat16"
    assert registry.plan("m", dtype="auto").dtype == _chosen("bfloat16")


def test_a_quantized_checkpoint_computes_as_its_method_wants(registry: ModelRegistry, tmp_path: Path) -> None:
    """Its kernels need the dtype that its authors stored."""
    folder = tiny.bert_masked_lm(tmp_path / "m", dtype="bfloat16")
    tiny.edit_config(folder, quantization_config={"quant_method": "fp8"})
    assert registry.plan(folder).dtype == "bfloat16"


def test_an_adapter_and_its_base_are_one_dtype(registry: ModelRegistry, tmp_path: Path) -> None:
    """Its plan says that of the base, which both have in memory once."""
    base = tiny.bert_masked_lm(tmp_path / "base", dtype="bfloat16")
    registry.register("base", "clinical", model_path=str(base))
    registry.register(
        "ward",
        "clinical",
        model_path=str(lora(tmp_path / "ward", base)),
        base="base",
        id2label=["O", "B-DRUG", "I-DRUG"],
    )
    plan = registry.plan("ward")
    assert (plan.dtype, plan.stored_dtype) == (_chosen("bfloat16"), "bfloat16")
    with registry.lease("ward") as lease:
        assert str(lease.model.dtype) == f"torch.{_chosen('bfloat16')}"
        assert lease.receipt.base is not None
        assert lease.receipt.base.options["dtype"] == lease.receipt.options["dtype"] == _chosen("bfloat16")
    assert registry.load_model("ward", dtype=_chosen("bfloat16")) is registry.load_model("ward")


@pytest.mark.parametrize(("recorded", "checked"), [("bfloat16", "float32"), ("float32", "bfloat16")])
def test_a_baseline_holds_on_machines_that_compute_in_another_dtype(
    registry: ModelRegistry, tmp_path: Path, recorded: str, checked: str
) -> None:
    """The weights are the same. Others, or those of another checkpoint in another dtype, still deviate."""
    folder = tiny.bert_encoder(tmp_path / "m", dtype="bfloat16")
    registry.register("m", "clinical", model_path=str(folder))
    cases = ModelRunner("m", registry=registry, dtype=recorded).record_baseline().baseline
    assert {case["dtype"] for case in cases} == {recorded}
    assert ModelRunner("m", registry=registry, dtype=checked).check_baseline() == {}
    found = ModelRunner("m", registry=registry, dtype="float16").check_baseline()
    assert set(found.values()) == {f"dtype is float16, was {recorded}"}
    tiny.edit_weights(folder, lambda name, weight: weight.flip(0) if "word_embeddings" in name else weight)
    deviations = ModelRunner("m", registry=registry, dtype=checked).check_baseline().values()
    assert deviations and all("output changed" in text for text in deviations)
