"""A repository's own code: it runs where an entry pins its commit and an operator allows it, and nowhere else."""

import importlib.util
import os
import py_compile
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, BertModel
from transformers.utils.hub import HF_MODULES_CACHE

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import (
    DigestMismatchError,
    HubUnreachableError,
    LoadError,
    MedVLLMError,
    MissingDependencyError,
    UnsafeWeightsError,
)
from tests.support import tiny, warm
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.spread import spread

CODE = {"configuration_own.py", "modeling_own.py", "words_own.py"}


@pytest.fixture
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who allows code."""
    monkeypatch.setenv("MEDVLLM_TRUST_REMOTE_CODE", "on")


@pytest.fixture
def own(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path) -> str:
    """The commit of a repository with code of its own, registered as "own"."""
    return _register(registry, hub, tiny.own_code(tmp_path / "own", says=str(tmp_path), tokenizer=True))


def _register(registry: ModelRegistry, hub: LoopbackHub, folder: Path, name: str = "own", **facts: Any) -> str:
    """Serve a folder and register it with its code; what the code says tells this test's modules from others'."""
    commit = hub.add(f"acme/{folder.name}", folder)
    source: dict[str, Any] = {"model_path": f"acme/{folder.name}", "revision": commit, "trust_remote_code": True}
    registry.register(name, "custom", **source | facts)
    return commit


def _fetched(hub: LoopbackHub) -> set[str]:
    return {request.path.rpartition("/")[2] for request in hub.requests("/resolve/")}


def test_code_runs_where_entry_and_operator_agree(
    registry: ModelRegistry, hub: LoopbackHub, own: str, allowed: None, tmp_path: Path
) -> None:
    """Config, model and tokenizer are the repository's, from its verified files, which may import each other."""
    with registry.lease("own") as lease:
        model, tokenizer = lease.model, lease.tokenizer
        assert lease.receipt.options["model_class"].endswith(".modeling_own:OwnModel")
        assert lease.receipt.snapshot == f"acme/own@{own}"
    assert (type(model).__name__, type(model.config).__name__) == ("OwnModel", "OwnConfig")
    assert model.says == str(tmp_path) and not model.training
    assert tokenizer.own and tokenizer.tokenize("Aspirin") == ["Aspirin"]
    assert torch.isfinite(model(**tokenizer("chest pain", return_tensors="pt")).last_hidden_state).all()
    assert registry.load_model("own", device="cpu") is model
    assert registry.load_model("own", revision=own) is model
    assert registry.load_model("own", model_class=AutoModel) is model
    assert registry.load_model("own", hidden_dropout_prob=0.3) is not model
    assert registry.load_tokenizer("own") is tokenizer
    assert _fetched(hub) >= CODE
    hub.log.clear()
    other = ModelRegistry()
    other.register("own", "custom", model_path="acme/own", revision=own, trust_remote_code=True)
    assert type(other.load_model("own")) is type(model) and hub.log == []
    assert not list(Path(HF_MODULES_CACHE).rglob("*own*.py"))


def test_other_models_fetch_no_code(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path) -> None:
    """Neither without the fact nor directly; the same cache then serves an entry that has it. Code lies at the top."""
    own_folder = tiny.own_code(tmp_path / "own")
    for path in ("custom_generate/generate.py", "a/b/deep.py"):
        (own_folder / path).parent.mkdir(parents=True)
        (own_folder / path).write_text("raise ZeroDivisionError\n")
    own = _register(registry, hub, own_folder)
    registry.register("plain", "custom", model_path="acme/own", revision=own)
    for name in ("plain", "acme/own"):
        folder = registry.pull(name)
    assert not _fetched(hub) & CODE and not list(folder.rglob("*.py"))
    assert registry.pull("own") == folder and {file.name for file in folder.rglob("*.py")} == CODE
    assert registry.pull("plain") == folder


@pytest.mark.parametrize(
    ("facts", "options", "message"),
    [
        ({"revision": "main"}, {}, r"'own' trusts the code of 'acme/own' at the branch or tag 'main', .*\nPin"),
        ({"revision": None}, {}, r"at the main branch, which can move\.\nPin .* revision='…', trust_remote_code=True"),
        ({"revision": "3f2a91c"}, {}, "'3f2a91c', which can move"),
        ({}, {"revision": "main"}, r"at [0-9a-f]{40}, but 'main' was asked for\.\nRegister .*model_path='acme/own'"),
        ({}, {"revision": "0" * 40}, "but '0{40}' was asked for"),
        ({"model_path": "hf://acme/own@v1"}, {}, "the branch or tag 'v1'"),
        ({"model_path": "./own", "revision": None}, {}, r"the code of a folder, which no commit pins\.\nGive a class"),
        ({"trust_remote_code": None}, {}, r"'own' needs its own code .*AutoModel.*\n.*revision='[0-9a-f]{40}', trust"),
        ({"trust_remote_code": False}, {}, "which no entry trusts"),
        ({}, {"trust_remote_code": True}, r"single load\.\n.*register\(…, .*\n.*MEDVLLM_TRUST_REMOTE_CODE=on"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_says_what_is_missing(
    registry: ModelRegistry,
    hub: LoopbackHub,
    tmp_path: Path,
    allowed: None,
    facts: dict[str, Any],
    options: dict[str, Any],
    message: str,
) -> None:
    """Also where the operator allows code: only a pinned commit may run."""
    facts = facts | ({"model_path": str(tmp_path / "own")} if facts.get("model_path") == "./own" else {})
    _register(registry, hub, tiny.own_code(tmp_path / "own"), **facts)
    with pytest.raises(UnsafeWeightsError, match=message):
        registry.load_model("own", **options)
    if "trust_remote_code" not in options:
        with pytest.raises(UnsafeWeightsError, match=message):
            registry.load_tokenizer("own", **options)
    assert registry.loaded_models() == []


def test_names_without_an_entry_run_no_code(
    registry: ModelRegistry, hub: LoopbackHub, own: str, allowed: None, tmp_path: Path
) -> None:
    """A repository and a folder loaded directly."""
    with pytest.raises(
        UnsafeWeightsError, match=rf"model_path='acme/own', revision='{own}', trust_remote_code=True\)$"
    ):
        registry.load_model(f"acme/own@{own}")
    with pytest.raises(UnsafeWeightsError, match=r"No commit pins the code of a folder"):
        registry.load_model(tmp_path / "own")


def test_the_operator_is_asked_for_when_only_the_entry_agrees(
    registry: ModelRegistry, hub: LoopbackHub, own: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is fetched; and an entry without the fact names both where both are missing."""
    with pytest.raises(UnsafeWeightsError, match=r"runs its own code.*\n.*export MEDVLLM_TRUST_REMOTE_CODE=on$"):
        registry.load_model("own")
    assert hub.log == []
    registry.register("plain", "custom", model_path="acme/own", revision=own)
    with pytest.raises(
        UnsafeWeightsError, match=r"trust_remote_code=True\)\nThen allow it: export MEDVLLM_TRUST_REMOTE_CODE=on$"
    ):
        registry.load_model("plain")
    monkeypatch.setenv("MEDVLLM_TRUST_REMOTE_CODE", "on")
    model: Any = registry.load_model("own")
    tokenizer = registry.load_tokenizer("own")
    monkeypatch.setenv("MEDVLLM_TRUST_REMOTE_CODE", "off")
    for call in (registry.load_model, registry.load_tokenizer, lambda name: registry.lease(name).__enter__()):
        with pytest.raises(UnsafeWeightsError, match="does not allow"):
            call("own")
    monkeypatch.setenv("MEDVLLM_TRUST_REMOTE_CODE", "on")
    assert registry.load_model("own") is model and registry.load_tokenizer("own") is tokenizer


@pytest.mark.parametrize(
    ("auto_map", "error", "message"),
    spread([
        ({"AutoConfig": "acme/code--configuration_own.OwnConfig"}, UnsafeWeightsError, "another .*'acme/code'"),
        ({"AutoModel": "acme/code--modeling_own.OwnModel"}, UnsafeWeightsError, "commit is not pinned"),
        ({"AutoModel": "modeling_own.NoSuch"}, LoadError, "has no attribute 'NoSuch'"),
        ({"AutoModel": "modeling_own.words_own"}, LoadError, "cannot be used: AttributeError"),
        ({"AutoModel": "absent.OwnModel"}, LoadError, "'absent.OwnModel' is not at the top of acme/own@"),
        ({"AutoModel": "../own.OwnModel"}, LoadError, "is not at the top"),
        ({"AutoModel": "os.path.join"}, LoadError, "is not at the top"),
        ({"AutoModel": "os.PathLike"}, LoadError, "is not at the top"),
        ({"AutoModel": 7}, LoadError, "'7' is not at the top"),
        ("modeling_own.OwnModel", LoadError, "'OwnModel', which transformers .* does not have"),
        ({"AutoConfig": "modeling_own.OwnModel"}, LoadError, "OwnModel is not a config"),
    ], 2),
)  # fmt: skip
def test_code_that_is_not_there_is_an_error(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, allowed: None, auto_map: Any, error: Any, message: str
) -> None:
    """Another repository's code is never fetched; names that lead elsewhere are not followed."""
    folder = tiny.own_code(tmp_path / "own")
    whole = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    tiny.edit_config(folder, auto_map=whole | auto_map if isinstance(auto_map, dict) else auto_map)
    hub.add("acme/code", tiny.own_code(tmp_path / "code"))
    _register(registry, hub, folder)
    with pytest.raises(error, match=message):
        registry.load_model("own")
    assert not hub.requests("acme/code") and registry.loaded_models() == []


def test_code_that_fails_is_an_error_of_ours(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, allowed: None
) -> None:
    """A library that is missing, a syntax error, an exception, and a class that is not asked for anything else."""
    for number, (text, error, message) in enumerate(
        [
            ("import no_such_library_here", MissingDependencyError, "No module named 'no_such_library_here'"),
            ("from .absent import x", MissingDependencyError, "absent"),
            ("class", LoadError, "SyntaxError"),
            ("raise ZeroDivisionError('oh')", LoadError, "ZeroDivisionError: oh"),
        ]
    ):
        folder = tiny.own_code(tmp_path / f"own{number}")
        (folder / "words_own.py").write_text(text)
        _register(registry, hub, folder, f"own{number}")
        for _ in range(2):
            with pytest.raises(error, match=message):
                registry.load_model(f"own{number}")


def test_classes_are_chosen_as_the_checkpoint_says(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, allowed: None
) -> None:
    """The one that its architecture names; an Auto class of the caller's; one of the entry's, which needs no code."""
    folder = tiny.own_code(tmp_path / "own")
    text = (folder / "modeling_own.py").read_text()
    old = "def prepare_inputs_for_generation(self, *arguments): ..."  # by which older code said that it generates
    (folder / "modeling_own.py").write_text(f"{text}\nclass OwnOther(OwnModel):\n    {old}\n")
    autos = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    tiny.edit_config(
        folder, architectures=["OwnOther"], auto_map=autos | {"AutoModelForMaskedLM": "modeling_own.OwnOther"}
    )
    commit = _register(registry, hub, folder)
    other = registry.load_model("own")
    assert type(other).__name__ == "OwnOther" and hasattr(other, "generate")
    assert type(registry.load_model("own", model_class=AutoModel)).__name__ == "OwnModel"
    assert registry.load_model("own", model_class=AutoModelForMaskedLM) is other
    with pytest.raises(LoadError, match="AutoModelForTokenClassification has no class for it"):
        registry.load_model("own", model_class="transformers:AutoModelForTokenClassification")
    registry.register(
        "plain", "custom", model_path="acme/own", revision=commit, model_class=BertModel, architecture="bert"
    )
    assert type(registry.load_model("plain")) is BertModel
    tiny.bert_encoder(tmp_path / "bert")
    (tmp_path / "bert" / "handler.py").write_text("raise ZeroDivisionError\n")
    _register(registry, hub, tmp_path / "bert", "bert")  # code is trusted, and there is none to run
    assert type(registry.load_model("bert")) is BertModel and registry.load_tokenizer("bert")


@pytest.mark.parametrize("weights", ["sharded", "bin"])
def test_code_works_with_weights_that_lie_elsewhere(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, allowed: None, weights: str
) -> None:
    """A pickle's converted copy is in another folder than the code."""
    _register(registry, hub, convert(tiny.own_code(tmp_path / "own", weights=weights)))
    _register(registry, hub, tiny.own_code(tmp_path / "plain"), "plain")
    model, plain = registry.load_model("own"), registry.load_model("plain")
    assert type(model).__name__ == "OwnModel"
    same = zip(model.state_dict().items(), plain.state_dict().items(), strict=True)
    assert all(name == other and torch.equal(a, b) for (name, a), (other, b) in same)


def test_a_saved_model_takes_its_code_along(
    registry: ModelRegistry, hub: LoopbackHub, own: str, allowed: None, tmp_path: Path
) -> None:
    """As transformers saves it, so that it can be published again."""
    registry.load_model("own").save_pretrained(tmp_path / "saved")
    assert {file.name for file in (tmp_path / "saved").glob("*.py")} >= {"modeling_own.py", "configuration_own.py"}


def test_two_commits_keep_their_own_code(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, allowed: None
) -> None:
    """In one process, also where only an imported file differs, and where both come back from eviction."""
    first = _register(registry, hub, tiny.own_code(tmp_path / "own", says="one"), "one")
    second = _register(registry, hub, tiny.own_code(tmp_path / "own", says="two"), "two")
    assert first != second
    for _ in range(2):
        said = {name: (registry.load_model(name), registry.load_model(name).says) for name in ("one", "two")}
        assert said["one"][1] == "one" and said["two"][1] == "two"
        assert type(said["one"][0]) is not type(said["two"][0])
        del said
        registry.clear_cache()


def test_lock_and_verify_hold_the_code(
    registry: ModelRegistry, hub: LoopbackHub, own: str, allowed: None, tmp_path: Path
) -> None:
    """A lock without the code does not approve it; a changed file is told, and fetched again."""
    registry.register("plain", "custom", model_path="acme/own", revision=own)
    assert not registry.lock("plain")["plain"].files.keys() & CODE
    assert registry.lock("own")["own"].files.keys() >= CODE
    assert registry.verify() == {"own": {}, "plain": {}}
    registry.register("plain", "custom", model_path="acme/own", revision=own, trust_remote_code=True, replace=True)
    with pytest.raises(DigestMismatchError, match="configuration_own.py was not there"):
        registry.load_model("plain")
    assert registry.verify("plain")["plain"].keys() >= CODE
    file = registry.pull("own") / "words_own.py"
    content = file.read_bytes()
    file.resolve().write_bytes(b"SAYS = 'evil'\n")
    assert registry.verify("own")["own"].keys() == {"words_own.py"}
    assert registry.load_model("own").says == str(tmp_path) and file.read_bytes() == content


def test_a_bundle_carries_the_code(
    registry: ModelRegistry,
    hub: LoopbackHub,
    own: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is exported and imported as bytes where nobody allows code; to run, both sides' rules hold."""
    from huggingface_hub import constants

    registry.export(tmp_path / "b.tar", "own", unlocked=True)
    monkeypatch.setenv("MEDVLLM_HOME", str(tmp_path / "site"))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(tmp_path / "site.lock"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "site-hub"))
    hub.log.clear()
    site = ModelRegistry()
    for state in ("new", "here"):
        imported = site.import_bundle(tmp_path / "b.tar")
        assert imported.models == {"own@1": state} and "a bundle does not bring that permission" in imported.notes[0]
    monkeypatch.setenv("MEDVLLM_TRUST_REMOTE_CODE", "on")
    entry = site.get_metadata("own")
    assert entry.source.trust_remote_code is None
    with pytest.raises(MedVLLMError):
        site.load_model("own")
    facts = {**entry.facts(), "trust_remote_code": True}
    site.register("own", facts.pop("model_type"), replace=True, **facts)
    assert site.load_model("own").says == str(tmp_path) and hub.log == []


def test_a_file_that_changes_after_it_was_verified_is_not_run(
    registry: ModelRegistry, hub: LoopbackHub, own: str, tmp_path: Path
) -> None:
    """What is run is hashed once more, on its way."""
    from medvllm import sources
    from medvllm.loading import remote_code

    metadata = registry.get_metadata("own")
    snapshot = sources.resolve_snapshot(metadata)
    (snapshot.path / "words_own.py").resolve().write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nSAYS = 1\n")
    with pytest.raises(UnsafeWeightsError, match="does not allow"):
        remote_code.import_model_class(metadata, snapshot)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(DigestMismatchError, match="words_own.py has changed"):
        patch.setenv("MEDVLLM_TRUST_REMOTE_CODE", "on")
        remote_code.import_model_class(metadata, snapshot)
    assert not (tmp_path / "ran").exists()


def _strange_module(folder: Path, marker: Path) -> None:
    (folder / "torch.py").write_text(f"open({str(marker)!r}, 'w')\n")
    (folder / "__init__.py").write_text(f"open({str(marker)!r}, 'w')\n")


def _bytecode(folder: Path, marker: Path) -> None:
    """Bytecode beside each module, of the kind that Python takes without looking at the source."""
    for name in CODE:
        evil = folder / "evil.py"
        evil.write_text(f"open({str(marker)!r}, 'w')\n")
        target = importlib.util.cache_from_source(str(folder / name))
        py_compile.compile(str(evil), target, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
        evil.unlink()


def _transformers_cache(folder: Path, marker: Path) -> None:
    """The copies that transformers would make and run, with packages that run something else."""
    code = (
        "import sys; from transformers.dynamic_module_utils import get_class_from_dynamic_module as get;"
        "get('modeling_own.OwnModel', sys.argv[1])"
    )
    flat = marker.parent / folder.name
    flat.mkdir()
    for name in CODE:
        text = (folder / name).read_text().replace("from . import words_own", "from .words_own import SAYS")
        (flat / name).write_text(text.replace("words_own.SAYS", "SAYS"))
    assert warm.run("-c", code, str(flat)).returncode == 0
    copies = list((Path(os.environ["HF_HOME"]) / "modules").rglob("*.py"))
    assert any(copy.name == "modeling_own.py" for copy in copies)
    for copy in copies:
        copy.write_text(f"open({str(marker)!r}, 'w')\n")


@pytest.mark.parametrize("plant", [_strange_module, _bytecode, _transformers_cache])
def test_nothing_beside_the_verified_files_is_run(
    registry: ModelRegistry,
    hub: LoopbackHub,
    own: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[[Path, Path], None],
) -> None:
    """In a new process: strange files in the snapshot, bytecode, the module cache of transformers."""
    folder, marker = registry.pull("own"), tmp_path / "ran"
    plant(folder, marker)
    run = _run("print(registry.load_model('own').says, registry.load_tokenizer('own').own)", own, allow=True)
    assert run.stdout.split() == [str(tmp_path), "True"], run.stderr
    assert not marker.exists()


def test_offline_code_needs_the_listing_that_it_was_compared_with(
    registry: ModelRegistry, hub: LoopbackHub, own: str, allowed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other files are taken as the cache has them."""
    from huggingface_hub import constants

    from medvllm.sources.hub import listing_file

    registry.pull("own")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    registry.pull("own")
    listing_file("acme/own", own).unlink()
    registry.register("plain", "custom", model_path="acme/own", revision=own)
    registry.pull("plain")
    with pytest.raises(HubUnreachableError):
        registry.load_model("own")


ASKING = """
import os, sys
from transformers import AutoModel, BertConfig, BertModel
from medvllm.errors import MedVLLMError

class Custom:
    config_class = BertConfig
    @classmethod
    def from_pretrained(cls, path, **arguments):
        return AutoModel.from_pretrained(path)

for name, repo, commit, facts in ENTRIES:
    registry.register(name, 'custom', model_path=repo, revision=commit, **facts)
for call, name, options in [
    (registry.load_model, 'plain', {}),
    (registry.load_model, 'plain', {'model_class': AutoModel}),
    (registry.load_model, 'plain', {'model_class': BertModel}),
    (registry.load_model, 'bert', {'model_class': AutoModel, 'hidden_act': 'nonsense'}),
    (registry.load_model, 'bert', {'model_class': Custom}),
    (registry.load_tokenizer, 'plain', {}),
    (registry.load_tokenizer, 'tokenizer', {}),
    (registry.load_model, 'own', {}),
    (os.environ.update, {'MEDVLLM_TRUST_REMOTE_CODE': 'on'}, {}),
    (registry.load_model, 'plain', {'model_class': Custom}),
    (registry.load_model, 'bert', {'model_class': Custom}),
    (registry.load_model, 'own', {'model_class': Custom}),
]:
    try:
        call(name, **options)
    except MedVLLMError as error:
        sys.stderr.write(type(error).__name__ + ' ')
print(sys.stdin.read().count('y'))
"""


def test_a_class_of_transformers_in_place_of_the_own_one_is_said(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The own one may attend to both sides, or pool otherwise; an entry that chooses the class has decided."""
    folder = tiny.llama_causal_lm(tmp_path / "m")
    tiny.edit_config(folder, auto_map={"AutoModel": "modeling_own.Own", "AutoModelForCausalLM": "modeling_own.OwnLM"})
    registry.load_model(folder)
    assert "its own model code" in caplog.text and "model_class='transformers:LlamaForCausalLM'" in caplog.text
    caplog.clear()
    registry.register("m", "custom", model_path=str(folder), model_class="transformers:LlamaForCausalLM")
    registry.load_model("m")
    assert "its own model code" not in caplog.text


def test_nothing_is_ever_asked_on_standard_input(
    registry: ModelRegistry, hub: LoopbackHub, own: str, tmp_path: Path
) -> None:
    """Of a process whose standard input says yes: Auto classes, a class of the caller's, the tokenizer."""
    folder = tiny.bert_encoder(tmp_path / "tokenizer")
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}}')
    tiny.edit_config(folder, model_type="vit")  # an architecture for which transformers has no tokenizer
    entries = [
        ("plain", "acme/own", own, {}),
        ("bert", "acme/own", own, {"architecture": "bert"}),
        ("tokenizer", "acme/tokenizer", hub.add("acme/tokenizer", folder), {}),
    ]
    run = _run(f"ENTRIES = {entries!r}\n{ASKING}", own, allow=False)
    assert run.stdout == "20\n", run.stdout + run.stderr
    unsafe, other = "UnsafeWeightsError", "LoadError"
    assert re.findall(r"\w+Error", run.stderr) == [*[unsafe] * 3, other, *[unsafe] * 6, other], run.stderr


def _run(code: str, commit: str, *, allow: bool) -> "subprocess.CompletedProcess[str]":
    from huggingface_hub import constants

    setting = {"MEDVLLM_TRUST_REMOTE_CODE": "on"} if allow else {}
    entry = f"registry.register('own', 'custom', model_path='acme/own', revision={commit!r}, trust_remote_code=True)"
    code = f"from medvllm.engine.model_runner import registry\n{entry}\n{code}"
    return warm.run("-c", code, stdin="y\n" * 20, HF_HUB_CACHE=constants.HF_HUB_CACHE, **setting)
