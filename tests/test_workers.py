"""What crosses the border of a process: runners and the registry by name, and what a started process is told."""

import copy
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
from joblib import Parallel, delayed, parallel_config

from medvllm.engine.model_runner import ModelRegistry, ModelRunner, registry
from medvllm.errors import ModelExistsError, ModelNotFoundError, RequestError
from tests.support import adapters, tiny
from tests.support.children import out


@pytest.fixture
def ward(tmp_path: Path) -> Any:
    """A tagger that this process alone knows as 'ward-tagger'."""
    folder = tiny.bert_token_classifier(tmp_path / "m", labels=["O", "B-DRUG"])
    yield registry.register("ward-tagger", "clinical", model_path=str(folder))
    registry.unregister("ward-tagger")
    registry.clear_cache()


def test_runner_and_registry_go_by_name(ward: Any) -> None:
    """Pickled, copied and sent by cloudpickle, as a notebook's functions are; small, whatever is in memory."""
    runner = ModelRunner("ward-tagger", device="cpu")
    tags = runner.entities(["aspirin"])
    for send in (pickle.dumps, cloudpickle.dumps, lambda obj: cloudpickle.dumps(lambda: obj)):
        sent = send(runner)
        back = pickle.loads(sent)
        back = back if isinstance(back, ModelRunner) else back()
        assert len(sent) < 10_000 and back.entities(["aspirin"]) == tags
        assert pickle.loads(pickle.dumps(back)).entities(["aspirin"]) == tags
    assert pickle.loads(pickle.dumps(registry)) is registry and copy.deepcopy(registry) is registry
    assert copy.deepcopy(runner).entities(["aspirin"]) == copy.copy(runner).entities(["aspirin"]) == tags


def test_what_belongs_to_one_process_says_so(ward: Any) -> None:
    """A lease, and a registry of one's own; each names the way out."""
    with registry.lease("ward-tagger") as lease:
        for send in (pickle.dumps, cloudpickle.dumps, copy.deepcopy):
            with pytest.raises(RequestError, match=r"lease it there: with registry.lease\('ward-tagger'\) as lease:"):
                send(lease)
    for own in (ModelRegistry(), ModelRunner("ward-tagger", registry=ModelRegistry())):
        with pytest.raises(RequestError, match="from medvllm.engine.model_runner import registry"):
            pickle.dumps(own)


def test_a_lease_without_a_block_says_how_it_is_used() -> None:
    """Rather than that it has no such attribute; nothing is loaded by then."""
    leasing: Any = registry.lease("ward-tagger")
    for attribute in ("model", "tokenizer", "receipt"):
        with pytest.raises(RequestError, match=r"Use: with registry.lease\('ward-tagger'\) as lease:"):
            getattr(leasing, attribute)
    assert not hasattr(leasing, "__array__")


def test_a_runner_of_a_name_that_this_process_alone_knows_works_in_a_worker(ward: Any) -> None:
    """Of joblib: its entry goes with it, and the worker's answer is this process's."""
    runner = ModelRunner("ward-tagger")
    with parallel_config("loky", n_jobs=2):
        # Sent by value, as from a notebook: the worker imports nothing of the tests.
        ((pid, tags),) = Parallel()([delayed(lambda: (os.getpid(), runner.entities(["aspirin"])))()])
    assert pid != os.getpid() and tags == runner.entities(["aspirin"])


def test_no_other_model_answers_for_one_that_was_sent(tmp_path: Path, ward: Any) -> None:
    """Where the name means something else, the runner that was sent says so; what was sent before gives way."""
    sent = pickle.dumps(ModelRunner("ward-tagger"))
    other = tiny.bert_token_classifier(tmp_path / "other", labels=["O", "B-DRUG"], seed=9)
    registry.register("ward-tagger", "clinical", model_path=str(other), replace=True)
    with pytest.raises(ModelExistsError, match="has registered that name for another model"):
        pickle.loads(sent).entities(["aspirin"])
    later = pickle.dumps(ModelRunner("ward-tagger"))
    registry.unregister("ward-tagger")
    for runner, folder in ((sent, "m"), (later, "other"), (sent, "m")):
        receipt = pickle.loads(runner).run("ner", ["aspirin"], with_receipt=True).receipt
        assert receipt.snapshot.startswith(str(tmp_path / folder))


def test_a_runner_takes_along_what_its_model_leans_on(tmp_path: Path) -> None:
    """The base of an adapter, and the encoder for the other side of a search, that this process alone knows."""
    base = tiny.bert_token_classifier(tmp_path / "base", labels=["O", "B-DRUG", "I-DRUG"])
    queries, articles = (tiny.bert_encoder(tmp_path / name) for name in ("queries", "articles"))
    entries: dict[str, dict[str, Any]] = {
        "ward-base": {"model_path": base},
        "ward-adapter": {"model_path": adapters.lora(tmp_path / "adapter", base), "base": "ward-base"},
        "ward-articles": {"model_path": articles, "role": "document"},
        "ward-queries": {"model_path": queries, "role": "query", "counterpart": "ward-articles"},
    }
    stored = {"ward-queries"}  # all processes know it, but not what it leans on
    for name, facts in entries.items():
        registry.register(name, "clinical", **facts, persist=name in stored)
    runners = [ModelRunner("ward-adapter"), ModelRunner("ward-queries")]
    asks: list[Any] = [lambda runner: runner.entities(["aspirin"]), lambda runner: runner.search("fever", ["aspirin"])]
    expected = [ask(runner) for ask, runner in zip(asks, runners, strict=True)]
    sent = pickle.dumps(runners)
    for name in entries.keys() - stored:
        registry.unregister(name)
    registry.clear_cache()
    assert [ask(runner) for ask, runner in zip(asks, pickle.loads(sent), strict=True)] == expected
    for name in entries:
        registry.unregister(name, persist=True)
    registry.clear_cache()


def test_a_started_process_names_what_its_parent_alone_knows(ward: Any, tmp_path: Path) -> None:
    """It does not ask the Hub for a repository of that name; another name goes its way."""
    code = (
        "from medvllm.engine.model_runner import ModelRunner, registry\n"
        "for name in ('ward-tagger', 'gpt2'):\n"
        "    try: ModelRunner(name).entities(['x'])\n"
        "    except Exception as error: print(type(error).__name__, str(error).replace(chr(10), ' / '))"
    )
    told, other = out(code, HF_HUB_OFFLINE="1").splitlines()
    assert told.startswith("ModelNotFoundError Model 'ward-tagger' is not registered in this process")
    assert "registry.register(…, persist=True)" in told
    assert other.startswith("HubUnreachableError") and other.endswith(
        "known only in that process. To share it: register(…, persist=True)"
    )


def test_a_registry_that_is_sent_tells_what_it_alone_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was started before hears of it, and when the name is gone; a copy here hears nothing."""
    name = "biobert-base-cased-v1.2"
    folder = tiny.bert_token_classifier(tmp_path / "m", labels=["O", "B-DRUG"])
    registry.register(name, "clinical", model_path=str(folder), replace=True)
    during = pickle.dumps(registry)
    assert pickle.loads(during) is registry and registry.get_metadata(name).origin == "process"
    registry.unregister(name)
    after = pickle.dumps(registry)
    monkeypatch.setattr(os, "getpid", lambda: 1)
    assert pickle.loads(during) is registry
    with pytest.raises(ModelNotFoundError, match="is another model in this process \\(built-in, version 1\\)"):
        registry.get_metadata(name)
    assert pickle.loads(after).get_metadata(name).origin == "built-in"


def test_another_model_of_the_name_does_not_answer_in_a_started_process(tmp_path: Path) -> None:
    """Built in or stored: an error that leads out, until it is registered there; an equal one is the one meant."""
    folders = [tiny.bert_token_classifier(tmp_path / f"m{seed}", labels=["O", "B-DRUG"], seed=seed) for seed in (1, 2)]
    built_in, stored, equal = "biobert-base-cased-v1.2", "ward-stored", "ward-equal"
    for name, folder in ((stored, folders[0]), (equal, folders[1])):
        registry.register(name, "clinical", model_path=str(folder), persist=True)
    registry.register(equal, "clinical", model_path=str(folders[1]), replace=True)
    for name in (built_in, stored):
        registry.register(name, "clinical", model_path=str(folders[1]), also_known_as=[f"{name}-too"], replace=True)
    code = (
        "import logging, pickle, sys\n"
        "from medvllm.engine.model_runner import ModelRunner, registry\n"
        "def tried(name, *calls):\n"
        "    usual = registry.get_metadata, registry.pull, registry.load_model, ModelRunner(name).check_baseline\n"
        "    for call in calls or usual:\n"
        "        try: print(name, call() if call.__name__ == 'check_baseline' else call(name))\n"
        "        except Exception as error: print(name, type(error).__name__, str(error).replace(chr(10), ' / '))\n"
        f"for name in ({built_in!r}, {stored!r}): tried(name); print(name, name in registry)\n"
        f"tried('{stored}-too', registry.get_metadata)\n"
        f"print(registry.get_metadata('{built_in}@1').origin, registry.get_metadata('{stored}@1').origin)\n"
        f"print(registry.get_metadata({equal!r}).origin)\n"
        f"registry.register({stored!r}, 'clinical', model_path={str(folders[0])!r}, replace=True, persist=True)\n"
        f"print(registry.get_metadata({stored!r}).origin)\n"
    )
    try:
        lines = out(code, HF_HUB_OFFLINE="1").splitlines()
    finally:
        for name in (built_in, stored, equal):
            registry.unregister(name)
    for name, told in ((built_in, lines[:5]), (stored, lines[5:10])):
        for line in told[:4]:
            assert line.startswith(f"{name} ModelNotFoundError Model {name!r} is another model in this process ("), line
            assert "persist=True" in line and line.endswith(f"use the one of this process: {name}@1"), line
        assert told[4] == f"{name} False"
    assert "is not registered in this process" in lines[10]
    assert lines[11:] == ["built-in stored", "stored", "stored"]


def test_a_model_that_a_worker_has_used_before_does_not_answer_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It hears of another model of the name: what it looked up before does not stand."""
    folders = [tiny.bert_token_classifier(tmp_path / "ab"[seed], ["O", "B-DRUG"], seed=seed) for seed in (0, 1)]
    registry.register("ward-shared", "clinical", model_path=str(folders[0]), persist=True)
    registry.register("ward-shared", "clinical", model_path=str(folders[1]), replace=True)
    during = pickle.dumps(registry)
    registry.unregister("ward-shared")
    after = pickle.dumps(registry)
    stored = registry.load_model("ward-shared")

    def received(sent: bytes) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            assert pickle.loads(sent) is registry

    received(during)
    with pytest.raises(ModelNotFoundError, match="is another model in this process \\(stored, version 1\\)"):
        registry.load_model("ward-shared")
    assert registry.load_model("ward-shared@1") is stored
    received(after)
    assert registry.load_model("ward-shared") is stored


def _ask(name: str, answers: Any) -> None:
    try:
        answers.put(registry.get_metadata(name).name)
    except ModelNotFoundError as error:
        answers.put(str(error))
    try:
        registry.pull(name)
    except ModelNotFoundError as error:
        answers.put(str(error))


@pytest.mark.slow
def test_a_spawned_worker_names_it_too(ward: Any) -> None:
    """One of multiprocessing; and it goes on after the name is unregistered here."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    worker = context.Process(target=_ask, args=("ward-tagger", answers))
    worker.start()
    assert "is not registered" in answers.get(timeout=60)
    assert "the process that started it registered the name for itself alone" in answers.get(timeout=60)
    worker.join(60)
    registry.unregister("ward-tagger")
    assert "ward-tagger" not in os.environ["_MEDVLLM_REGISTERED"]
    registry.register("ward-tagger", "clinical")
