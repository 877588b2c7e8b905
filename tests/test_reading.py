"""A folder of one's own is understood when it is registered: what it says is listed, what cannot load is refused."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import (
    LoadError,
    MedVLLMError,
    ModelNotFoundError,
    RequestError,
    SourceError,
    WeightsMismatchError,
)
from medvllm.metadata import READ
from medvllm.model_registry.known_calls import TRUST_S
from tests.support import sentence, tiny
from tests.support.console import command
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub

LABELS = ["O", "B-X", "I-X"]


def _edited(file: Path, **fields: Any) -> None:
    content = json.loads(file.read_text())
    content.update(fields)
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize(
    ("make", "facts"),
    [
        (lambda f: tiny.bert_token_classifier(f, LABELS), {"task": "ner", "id2label": tuple(LABELS)}),
        (lambda f: tiny.bert_masked_lm(f), {"task": "fill-mask", "architecture": "bert"}),
        (lambda f: convert(tiny.bert_masked_lm(f, weights="bin")), {"task": "fill-mask"}),
        (lambda f: tiny.gpt2_causal_lm(f), {"task": "generate"}),
        (lambda f: tiny.roberta_masked_lm(f), {"task": "fill-mask", "architecture": "roberta"}),
        (lambda f: sentence.assembled("bert-cls", f), {"task": "embed", "pooling": "cls"}),
        (lambda f: sentence.assembled("bert-cls-2020", f), {"task": "embed", "pooling": "cls"}),
        (lambda f: sentence.assembled("joined", f), {"task": "embed"}),
        (lambda f: sentence.assembled("prompts-default", f), {"default_prompt_name": "query"}),
    ],
    ids=["tagger", "masked", "pickle", "gpt2", "roberta", "sentences", "sentences-2020", "joined", "prompts"],
)
def test_what_a_folder_says_is_listed(
    registry: ModelRegistry, tmp_path: Path, make: Callable[[Path], Path], facts: dict[str, Any]
) -> None:
    """With how it is known; the length is the one that its tokenizer then has."""
    entry = registry.register("own", "generic", model_path=make(tmp_path / "own"))
    for fact, value in facts.items():
        assert entry.fact(fact) == value and entry.provenance[fact] == READ
    assert "own" in registry.list_models(task=entry.tasks[0], origin="process")
    if entry.behaviour.max_length is not None:
        assert registry.load_tokenizer("own").model_max_length == entry.behaviour.max_length
    assert registry.load_model("own")


def test_what_is_stated_stays(registry: ModelRegistry, tmp_path: Path) -> None:
    """A fact that the folder says differently, too, and it has no provenance of the folder's."""
    folder = tiny.bert_token_classifier(tmp_path / "own", LABELS)
    entry = registry.register(
        "own", "clinical", model_path=folder, task="deid", max_length=9, provenance={"task": "seen: ours"}
    )
    assert entry.behaviour.task == "deid" and entry.behaviour.max_length == 9
    assert entry.provenance == {"task": "seen: ours", "id2label": READ, "architecture": READ}


def test_a_load_reads_the_folder_anew(registry: ModelRegistry, tmp_path: Path) -> None:
    """A folder that was trained further is never loaded by what it said when it was registered."""
    folder = sentence.assembled("bert-cls", tmp_path / "own")
    registry.register("own", "generic", model_path=folder)
    before = ModelRunner("own", registry=registry).embed(["chest pain"]).vectors
    shutil.rmtree(folder)
    sentence.assembled("bert-max", folder)
    time.sleep(TRUST_S)
    direct = ModelRunner(folder, registry=registry).embed(["chest pain"]).vectors
    after = ModelRunner("own", registry=registry).embed(["chest pain"]).vectors
    assert (after == direct).all() and not (after == before).all()
    with registry.lease("own") as lease:
        assert lease.metadata.behaviour.pooling == "max" and "pooling" not in lease.metadata.provenance
    shutil.rmtree(folder)
    tiny.bert_token_classifier(folder, ["O", "B-NEW", "I-NEW"])
    time.sleep(TRUST_S)
    assert ModelRunner("own", registry=registry).entities(["chest pain"])


def _without(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tiny.bert_masked_lm(folder)
        (folder / name).unlink()
        return folder

    return make


def _config(**fields: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        tiny.bert_token_classifier(folder, LABELS)
        _edited(folder / "config.json", **fields)
        return folder

    return make


def _empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _file(folder: Path) -> Path:
    folder.write_text("no folder")
    return folder


def _damaged(folder: Path) -> Path:
    tiny.bert_masked_lm(folder)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.truncate(1000)
    return folder


def _pointer(folder: Path) -> Path:
    tiny.bert_masked_lm(folder)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    return folder


def _adapter(folder: Path) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("make", "facts", "kind", "words"),
    [
        (lambda folder: folder, {}, SourceError, "does not exist"),
        (_file, {}, SourceError, "is a file, not a folder"),
        (_empty, {}, SourceError, "It is empty"),
        (_without("config.json"), {}, SourceError, "has no config.json"),
        (_without("model.safetensors"), {}, SourceError, "has no weights"),
        (_damaged, {}, SourceError, "header|cut short"),
        (_pointer, {}, SourceError, "Git LFS"),
        (_adapter, {}, SourceError, "an adapter, not a model"),
        (_config(model_type=None), {}, LoadError, "has no model_type.*\n.*architecture='bert'"),
        (_config(model_type="nonesuch"), {}, LoadError, "'nonesuch', which transformers [0-9.]+ does not have"),
        (_config(), {"architecture": "nonesuch"}, LoadError, "'nonesuch', which transformers"),
        (_config(), {"id2label": ["O", "B-X"]}, WeightsMismatchError, r"2 names for 3 labels \(id2label\)"),
        (_config(id2label={"0": "LABEL_0", "1": "LABEL_1"}), {}, WeightsMismatchError, "LABEL_0 to LABEL_2"),
        (_config(id2label=None), {}, WeightsMismatchError, "LABEL_0 to LABEL_2"),
    ],
)
def test_what_cannot_load_is_refused_when_it_is_registered(
    registry: ModelRegistry,
    tmp_path: Path,
    make: Callable[[Path], Path],
    facts: dict[str, Any],
    kind: type[MedVLLMError],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the words of a load, by the library and by the command; nothing is registered then."""
    folder = make(tmp_path / "own")
    with pytest.raises(kind, match=words):
        registry.register("own", "generic", model_path=folder, **facts)
    assert "own" not in registry
    stated = [f"--fact={fact}={','.join(v) if isinstance(v, list) else v}" for fact, v in facts.items()]
    done = command(monkeypatch, "register", "own", "--type", "generic", "--path", str(folder), *stated)
    assert done.code in (1, 2) and "own" not in registry


def test_the_same_folders_load_once_they_are_described(registry: ModelRegistry, tmp_path: Path) -> None:
    """The way out that each message names."""
    nameless = _config(id2label={str(i): f"LABEL_{i}" for i in range(3)})(tmp_path / "nameless")
    registry.register("nameless", "generic", model_path=nameless, id2label=LABELS)
    typeless = _config(model_type=None)(tmp_path / "typeless")
    registry.register("typeless", "generic", model_path=typeless, architecture="bert")
    for name in ("nameless", "typeless"):
        assert ModelRunner(name, registry=registry).entities(["chest pain"])


def test_what_a_registration_refuses_a_load_refuses(registry: ModelRegistry, tmp_path: Path) -> None:
    """No folder that loads is turned away: each of these is refused by a direct load, too."""
    makers = (_empty, _without("model.safetensors"), _damaged, _pointer, _adapter, _config(model_type="nonesuch"))
    for number, make in enumerate(makers):
        folder = make(tmp_path / str(number))
        with pytest.raises((SourceError, LoadError)):
            registry.load_model(folder)


def test_a_checkpoint_of_another_number_of_labels_is_told_by_its_weights(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    """Also where the config agrees with the entry."""
    folder = tiny.bert_token_classifier(tmp_path / "own", LABELS)
    _edited(folder / "config.json", id2label={"0": "O", "1": "B-X"}, label2id={"O": 0, "B-X": 1})
    with pytest.raises(WeightsMismatchError, match="2 names for 3 labels"):
        registry.register("own", "generic", model_path=folder, id2label=["O", "B-X"])
    weights = load_file(folder / "model.safetensors")
    weights["classifier.weight"], weights["classifier.bias"] = (
        weights["classifier.weight"][:2],
        weights["classifier.bias"][:2],
    )
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
    assert registry.register("own", "generic", model_path=folder, id2label=["O", "B-X"]).tasks == ("ner",)


def test_a_repository_is_not_asked_for(registry: ModelRegistry) -> None:
    """A registration fetches nothing."""
    assert registry.register("m", "generic", model_path="acme/not-there").tasks == ()


def test_own_folders_are_shown_as_built_in_models_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By `list --task`, and by `show` with where it was read; JSON stays JSON."""
    folder = tiny.bert_token_classifier(tmp_path / "own", LABELS)
    assert command(monkeypatch, "register", "own", "--type", "clinical", "--path", str(folder)).code == 0
    assert "own\tCLINICAL\tner\tyes" in command(monkeypatch, "list", "--task", "ner", "--mine").out
    assert f"id2label\tO; B-X; I-X\t{READ}" in command(monkeypatch, "show", "own").out
    assert json.loads(command(monkeypatch, "show", "own", "--json").out)["task"] == "ner"
    again = command(monkeypatch, "register", "own", "--type", "clinical", "--path", str(folder))
    assert again.out == "Nothing changed: the latest version of 'own' is 1.\n"
    exported = command(monkeypatch, "catalog", "export").out
    assert command(monkeypatch, "catalog", "apply", "-", stdin=exported.encode()).err == "0 changes.\n"


def test_facts_are_taken_in_the_forms_that_people_write(registry: ModelRegistry) -> None:
    """Labels as a config has them, a scheme under its other name, one tag; the kept form is one."""
    mixed: Any = {0: "O", "1": "B-X"}
    entry = registry.register(
        "forms", "generic", id2label=mixed, label_scheme="BIOES", tags="bert", model_path="acme/m"
    )
    assert entry.behaviour.id2label == ("O", "B-X") and entry.behaviour.label_scheme == "BILOU"
    assert entry.tags == ["bert"]
    gap: Any
    for gap in ({0: "O", 2: "B-X"}, {"a": "O"}, {0: 1}):
        with pytest.raises(RequestError, match="id2label"):
            registry.register("gap", "generic", id2label=gap, model_path="acme/m")


def test_a_lease_without_its_block_says_how_to_use_it(registry: ModelRegistry, tmp_path: Path) -> None:
    """And loads nothing."""
    lease: Any = registry.lease(tiny.bert_masked_lm(tmp_path / "m"))
    with pytest.raises(RequestError, match=r"with registry\.lease\("):
        _ = lease.model
    assert registry.loaded_models() == []
    with lease as held:
        assert held.model


def test_a_near_miss_of_a_repository_is_named(registry: ModelRegistry, hub: LoopbackHub) -> None:
    """Where the Hub has no such repository, and where it is not asked."""
    with pytest.raises(ModelNotFoundError, match="Did you mean: 'emilyalsentzer/Bio_ClinicalBERT'") as refused:
        registry.pull("emilyalsentzer/Bio_ClinicalBERTT")
    assert "There is no repository" in str(refused.value) and "./emily" not in str(refused.value)
    assert refused.value.candidates[0] == "emilyalsentzer/Bio_ClinicalBERT"
