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
from tests.support import tiny
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
    tags = runner.tag(["aspirin"])
    for send in (pickle.dumps, cloudpickle.dumps, lambda obj: cloudpickle.dumps(lambda: obj)):
        sent = send(runner)
        back = pickle.loads(sent)
        back = back if isinstance(back, ModelRunner) else back()
        assert len(sent) < 10_000 and back.tag(["aspirin"]) == tags
        assert pickle.loads(pickle.dumps(back)).tag(["aspirin"]) == tags
    assert pickle.loads(pickle.dumps(registry)) is registry and copy.deepcopy(registry) is registry
    assert copy.deepcopy(runner).tag(["aspirin"]) == copy.copy(runner).tag(["aspirin"]) == tags


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


def _tag(runner: ModelRunner, text: str) -> Any:
    return os.getpid(), runner.tag([text])


def test_a_runner_of_a_name_that_this_process_alone_knows_works_in_a_worker(ward: Any) -> None:
    """Of joblib: its entry goes with it, and the worker's answer is this process's."""
    runner = ModelRunner("ward-tagger")
    with parallel_config("loky", n_jobs=2):
        ((pid, tags),) = Parallel()([delayed(_tag)(runner, "aspirin")])
    assert pid != os.getpid() and tags == runner.tag(["aspirin"])


def test_no_other_model_answers_for_one_that_was_sent(tmp_path: Path, ward: Any) -> None:
    """Where the name means something else, the runner that was sent says so; what was sent before gives way."""
    sent = pickle.dumps(ModelRunner("ward-tagger"))
    other = tiny.bert_token_classifier(tmp_path / "other", labels=["O", "B-DRUG"], seed=9)
    registry.register("ward-tagger", "clinical", model_path=str(other), replace=True)
    with pytest.raises(ModelExistsError, match="has registered that name for something else"):
        pickle.loads(sent).tag(["aspirin"])
    later = pickle.dumps(ModelRunner("ward-tagger"))
    registry.unregister("ward-tagger")
    for runner, folder in ((sent, "m"), (later, "other"), (sent, "m")):
        receipt = pickle.loads(runner).run("ner", ["aspirin"])[2]
        assert receipt.snapshot.startswith(str(tmp_path / folder))


def test_a_started_process_names_what_its_parent_alone_knows(ward: Any, tmp_path: Path) -> None:
    """It does not ask the Hub for a repository of that name; another name goes its way."""
    code = (
        "from medvllm.engine.model_runner import ModelRunner, registry\n"
        "for name in ('ward-tagger', 'gpt2'):\n"
        "    try: ModelRunner(name).tag(['x'])\n"
        "    except Exception as error: print(type(error).__name__, str(error).replace(chr(10), ' / '))"
    )
    told, other = out(code, HF_HUB_OFFLINE="1").splitlines()
    assert told.startswith("ModelNotFoundError Model 'ward-tagger' is not registered in this process: the one that")
    assert "registry.register(…, persist=True)" in told
    assert other.startswith("HubUnreachableError") and other.endswith(
        "known only in that process. To share it: register(…, persist=True)"
    )


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
    assert "the one that started it registered it for itself alone" in answers.get(timeout=60)
    worker.join(60)
    registry.unregister("ward-tagger")
    assert "ward-tagger" not in os.environ["_MEDVLLM_REGISTERED"]
    registry.register("ward-tagger", "clinical")
