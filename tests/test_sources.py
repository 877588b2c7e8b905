"""Snapshots from the Hub: fetched once, at one commit, and failures that say what to do."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import (
    GatedModelError,
    HubUnreachableError,
    IncompleteSnapshotError,
    ModelNameError,
    ModelNotFoundError,
    SnapshotNotFoundError,
    SourceError,
)
from tests.support import tiny, warm
from tests.support.clock import HurriedClock
from tests.support.loopback import LoopbackHub


@pytest.fixture
def acme(hub: LoopbackHub, hurried: HurriedClock, tmp_path: Path) -> LoopbackHub:
    """A Hub with one tiny model, acme/bert."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    return hub


def test_an_unregistered_repository_loads_directly_and_says_so(
    registry: ModelRegistry, acme: LoopbackHub, caplog: pytest.LogCaptureFixture
) -> None:
    """The specification's fallback: in the log, in the receipt, in loaded_models(); it registers no name."""
    with registry.lease("acme/bert") as lease:
        assert lease.receipt.origin == "direct"
    assert "'acme/bert' is not registered: loaded directly, from acme/bert@" in caplog.text
    assert [(r.name, r.origin) for r in registry.loaded_models()] == [("acme/bert", "direct")]
    assert "acme/bert" in registry._model_cache and "acme/bert" not in registry.list_models()
    assert registry.load_model("hf://acme/bert") is registry.load_model("acme/bert@main")


def test_a_renamed_repository_answers_to_its_former_id(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path
) -> None:
    """The Hub redirects; the bytes are those of the repository of today, checked as any."""
    acme.rename("acme/old-bert", "acme/bert")
    registry.register("m", "clinical", model_path="acme/old-bert")
    folder = registry.pull("m")
    assert (folder / "model.safetensors").read_bytes() == (tmp_path / "acme" / "model.safetensors").read_bytes()
    assert registry.load_model("m") and registry.load_model("hf://acme/old-bert")


def test_the_fallback_can_be_switched_off(
    registry: ModelRegistry, acme: LoopbackHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """For repositories and folders alike; entries still load."""
    monkeypatch.setenv("MEDVLLM_ALLOW_UNREGISTERED", "0")
    for name in ("acme/bert", "hf://acme/bert", str(tmp_path / "acme")):
        with pytest.raises(ModelNotFoundError, match=r"switched off \(MEDVLLM_ALLOW_UNREGISTERED\)"):
            registry.load_model(name)
    assert acme.log == []
    registry.register("acme/bert", "generic")
    assert registry.load_model("acme/bert")


def test_a_near_miss_is_an_error_and_no_trip_to_the_hub(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """A name without a slash that is nearly a registered one."""
    with pytest.raises(ModelNotFoundError, match="Did you mean: 'biobert-base-cased-v1.2'.*\n.*\n.*hf://biobert-base"):
        registry.load_model("biobert-base")
    assert acme.log == []


def test_names_that_no_repository_can_have(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """Nor do they reach the Hub."""
    for name in ("a/b/c", "what is this", "Modèle"):
        with pytest.raises(ModelNotFoundError, match="it is not a repository's id"):
            registry.load_model(name)
    with pytest.raises(ModelNameError):
        registry.load_model("")
    assert acme.log == []


def test_a_warm_snapshot_asks_the_hub_nothing(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """After the first load by branch, a reload, a tokenizer or another option sends no request."""
    registry.load_model("acme/bert")
    acme.log.clear()
    registry.clear_cache()
    registry.load_model("acme/bert", dtype="bf16")
    registry.load_tokenizer("acme/bert")
    assert acme.log == []


def test_only_what_a_load_needs_is_fetched(registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path) -> None:
    """One format of weights; no documentation, no other runtime's files."""
    folder = tmp_path / "acme"
    (folder / "README.md").write_text("x")
    (folder / "pytorch_model.bin").write_bytes(b"x" * 1000)
    (folder / "model.onnx").write_bytes(b"x")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    acme.add("acme/full", folder)
    registry.load_model("acme/full")
    fetched = {request.path.rpartition("/")[2] for request in acme.requests("/resolve/") if request.method == "GET"}
    assert fetched == {"config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"}


def test_files_in_deeper_folders_are_left_out(registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path) -> None:
    """No load reads them, so none waits for them."""
    (tmp_path / "acme" / "runs" / "first").mkdir(parents=True)
    (tmp_path / "acme" / "runs" / "first" / "trainer_state.json").write_text("{}")
    acme.add("acme/deep", tmp_path / "acme")
    assert registry.load_model("acme/deep") and not acme.requests("trainer_state")
    assert registry.load_model(tmp_path / "acme")


def test_a_commit_is_kept_while_the_branch_moves(registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path) -> None:
    """A branch is resolved once in a process; another revision is another model."""
    first: Any = registry.load_model("acme/bert")
    old = registry.loaded_models()[0].snapshot.partition("@")[2]
    moved = acme.add("acme/bert", tiny.bert_masked_lm(tmp_path / "new", seed=1), tags=["v2"])
    registry.clear_cache()
    assert registry.load_model("acme/bert") is first
    second: Any = registry.load_model("acme/bert", revision="v2")
    assert second is registry.load_model("acme/bert@v2") is registry.load_model("acme/bert", revision=moved)
    assert registry.load_model("acme/bert", revision=old) is first
    pair: list[Any] = [first, second]
    weights = [m.bert.embeddings.word_embeddings.weight for m in pair]
    assert not torch.equal(*weights)


def test_an_entry_keeps_its_facts_at_another_revision(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path
) -> None:
    """name@rev of a registered repository is the entry at that revision, with its casing."""
    acme.add("acme/cased", tiny.bert_masked_lm(tmp_path / "cased", tokenizer_files="vocab_only"), tags=["v1"])
    registry.register("acme/cased", "clinical", do_lower_case=False)
    with registry.lease("acme/cased@v1") as lease:
        assert lease.metadata.origin == "process"
        assert lease.tokenizer.tokenize("Aspirin") == ["Aspirin"]
    with pytest.raises(ModelNotFoundError, match="no version or alias '7'"):
        registry.load_model("acme/cased@7")


def test_ten_threads_fetch_and_load_one_model_once(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """One object, one download of each file."""
    with ThreadPoolExecutor(10) as pool:
        models = list(pool.map(lambda _: registry.load_model("acme/bert"), range(10)))
    assert len({id(model) for model in models}) == 1
    gets = [r.path for r in acme.requests("model.safetensors") if r.method == "GET"]
    assert len(gets) == 1


def test_listing_never_waits_for_a_load(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """While a download is held open, everything that only looks answers."""
    release = threading.Event()
    acme.fault("*/model.safetensors", "hold", release)
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(registry.load_model, "acme/bert")
        deadline = time.monotonic() + 30
        while not [r for r in acme.requests("model.safetensors") if r.method == "GET"]:
            assert time.monotonic() < deadline and not loading.done()
            time.sleep(0.01)
        assert "biobert-base-cased-v1.2" in registry.list_models()
        assert registry.get_metadata("biobert-base-cased-v1.2").name
        assert registry.loaded_models() == [] and "acme/bert" not in registry._model_cache
        registry.register("other", "generic")
        registry.unregister("other")
        registry.clear_cache()
        assert not loading.done()
        release.set()
        assert loading.result(60) is registry.load_model("acme/bert")


def test_gated_missing_and_unknown(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """Each with the repository's name and the way out."""
    with pytest.raises(
        ModelNotFoundError,
        match="'acme/none' is not registered.\nThere is no repository 'acme/none' on the Hub.*\n.*medvllm list",
    ):
        registry.load_model("acme/none")
    with pytest.raises(SnapshotNotFoundError, match="'acme/bert' has no revision 'v9'"):
        registry.load_model("acme/bert@v9")
    with pytest.raises(SnapshotNotFoundError, match="has no revision"):
        registry.load_model("acme/bert", revision="0" * 40)
    acme.gate("acme/bert")
    with pytest.raises(GatedModelError, match="'acme/bert' is gated.*\n.*HF_TOKEN"):
        registry.load_model("acme/bert")


def test_a_folder_of_the_same_name_is_asked_about(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is meant for certain: Transformers would take the folder."""
    tiny.bert_encoder(tmp_path / "work" / "acme" / "bert")
    monkeypatch.chdir(tmp_path / "work")

    def run(name: str) -> object:
        return ModelRunner(name, registry=registry).embed(["a"])

    for ask in (registry.load_model, run, registry.pull):
        with pytest.raises(
            ModelNotFoundError, match=r"mean the folder of that name: \./acme/bert\n.*repository.*: hf://acme/bert$"
        ):
            ask("acme/bert")
    repository, folder = registry.load_model("hf://acme/bert"), registry.load_model("./acme/bert")
    assert type(repository) is not type(folder)
    assert registry.load_model("acme/bert@main") is registry.load_model("acme/bert", revision="main") is repository


def test_a_repository_without_weights(registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path) -> None:
    """Names what is there."""
    folder = tiny.bert_encoder(tmp_path / "empty")
    (folder / "model.safetensors").unlink()
    acme.add("acme/empty", folder)
    with pytest.raises(IncompleteSnapshotError, match="Snapshot of 'acme/empty' at [0-9a-f]{7} has no weights"):
        registry.load_model("acme/empty")


@pytest.mark.parametrize(
    ("kind", "argument"),
    [("status", 503), ("truncate", 1000), ("drop", None)],
    ids=["503", "cut short", "dropped"],
)
def test_a_failed_download_is_an_error_of_ours_and_the_next_call_succeeds(
    registry: ModelRegistry, acme: LoopbackHub, kind: Any, argument: Any
) -> None:
    """Nothing half-fetched is ever loaded."""
    acme.fault("*/model.safetensors", kind, argument)
    with pytest.raises(SourceError, match="acme/bert"):
        registry.load_model("acme/bert")
    acme.heal()
    assert registry.load_model("acme/bert")


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _load(name: str, **environment: str) -> tuple[int, str]:
    """Load a name in a process of its own; return the connections that it tried, and the error's text."""
    code = f"""
import sys
import transformers
from medvllm.engine.model_runner import registry
tried = []
sys.addaudithook(lambda event, arguments: tried.append(event) if event == "socket.connect" else None)
try:
    registry.load_model({name!r})
except Exception as error:
    print(len(tried), type(error).__name__, error)
"""

    run = warm.run("-c", code, **environment)
    assert run.returncode == 0, run.stderr
    tried, _, text = run.stdout.partition(" ")
    return int(tried), text


def test_an_unreachable_hub_fails_in_seconds_with_the_way_out(tmp_path: Path) -> None:
    """One connection is tried: not the library's retries, which take 23 s for each file."""
    tried, text = _load(
        "biobert-base-cased-v1.2", HF_ENDPOINT=f"http://127.0.0.1:{_closed_port()}", HF_HUB_CACHE=str(tmp_path)
    )
    assert text.startswith("HubUnreachableError Model 'dmis-lab/biobert-base-cased-v1.2' at '67c9c25")
    assert "medvllm pull dmis-lab/biobert-base-cased-v1.2" in text
    assert "medvllm export and medvllm import, or give a folder instead" in text
    assert tried == 1


def test_offline_is_honoured_and_named(tmp_path: Path) -> None:
    """HF_HUB_OFFLINE: no connection is tried."""
    tried, text = _load("acme/absent", HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path))
    assert tried == 0 and text.startswith("HubUnreachableError Model 'acme/absent'") and "HF_HUB_OFFLINE" in text


def test_a_cached_model_loads_without_a_hub(registry: ModelRegistry, acme: LoopbackHub, home: Path) -> None:
    """By branch too: the cache remembers where it pointed."""
    registry.load_model("acme/bert")
    gone = {"HF_ENDPOINT": f"http://127.0.0.1:{_closed_port()}", "HF_HUB_CACHE": str(home / "hub")}
    assert _load_ok("acme/bert", **gone)
    assert _load_ok("acme/bert", HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(home / "hub"))


def _load_ok(name: str, **environment: str) -> bool:

    code = f"from medvllm.engine.model_runner import registry; registry.load_model({name!r}); print('loaded')"
    run = warm.run("-c", code, **environment)
    assert run.stdout == "loaded\n", run.stderr
    return True


def test_a_shard_whose_name_no_system_takes_is_missing(registry: ModelRegistry, tmp_path: Path) -> None:
    """An error of ours, and not the system's."""
    folder = tiny.bert_encoder(tmp_path / "m", weights="sharded")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x" * 300}}))
    with pytest.raises(IncompleteSnapshotError, match="xxx is missing"):
        registry.load_model(folder)


def test_no_token_is_sent_for_a_local_folder(registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path) -> None:
    """Loading a pickle checkpoint from a folder makes no request at all: no conversion service is asked."""
    registry.load_model(tiny.bert_masked_lm(tmp_path / "bin", weights="bin"))
    registry.load_tokenizer(tmp_path / "bin")
    assert acme.log == []


def test_hub_errors_are_ours(registry: ModelRegistry, acme: LoopbackHub) -> None:
    """A Hub that is busy for the listing, too."""
    acme.fault("/api/*", "status", 503)
    with pytest.raises(HubUnreachableError):
        registry.load_model("acme/bert")
