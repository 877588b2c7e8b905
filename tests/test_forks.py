"""Processes that are forked while other threads of theirs use the registry: gunicorn, Celery, multiprocessing."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import LoadError
from medvllm.forking import Lock
from medvllm.loading.from_pretrained_lock import exclusive_load
from medvllm.loading.replay import templates
from tests.support import tiny
from tests.support.children import out

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python's own, of a fork beside threads
_TEXT = "aspirin was given " * 100


def _child(does: Callable[[], object]) -> int:
    """Return how a child ends that does something: 0, or -14 when it waits for ever."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 1
        try:
            does()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@contextmanager
def _beside(*loops: Callable[[], object]) -> Iterator[None]:
    """Threads that each do something again and again."""
    end, begun = threading.Event(), threading.Barrier(len(loops) + 1)

    def again(what: Callable[[], object]) -> None:
        begun.wait()
        while not end.is_set():
            what()

    threads = [threading.Thread(target=again, args=(loop,)) for loop in loops]
    for thread in threads:
        thread.start()
    begun.wait()
    try:
        yield
    finally:
        end.set()
        for thread in threads:
            thread.join()


def test_a_child_that_is_forked_beside_busy_threads_waits_for_nobody(registry: ModelRegistry, tmp_path: Path) -> None:
    """Whatever the threads do and whatever the child does, and its answers are the parent's."""
    tagger = str(tiny.bert_token_classifier(tmp_path / "a", labels=["O", "B-DRUG"]))
    reloaded, cold, other = (str(tiny.bert_encoder(tmp_path / name, seed=i)) for i, name in enumerate("bcd"))
    runner = ModelRunner(tagger, registry=registry)
    tags, weights = runner.entities([_TEXT]), registry.load_model(other, use_cache=False).state_dict()
    tokenizer = registry.load_tokenizer(tagger)

    def load_cold() -> None:
        templates.clear()
        registry.evict(cold)
        registry.load_model(cold)

    def reload() -> None:
        registry.evict(reloaded)
        registry.load_model(reloaded)

    def read_tokenizer() -> None:
        registry.evict(reloaded)  # its tokenizer goes with it
        registry.load_tokenizer(reloaded)

    def same() -> None:
        loaded = registry.load_model(other).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())

    def answer() -> None:
        assert runner.entities([_TEXT]) == tags

    def encode() -> None:
        assert len(tokenizer(_TEXT, truncation=True, max_length=20)["input_ids"]) == 20

    loops = load_cold, reload, read_tokenizer, encode, registry.statistics, registry.list_models, answer
    with _beside(*loops):
        for does in (same, answer, load_cold, reload, read_tokenizer, encode, registry.list_models, answer):
            assert _child(does) == 0
    assert registry._model_cache._flights == {}


def _forked_beside(
    work: Callable[[], None], inside: threading.Event, end: threading.Event, check: Callable[[], None]
) -> None:
    """Fork while another thread is in the middle of its work; the check in the child must succeed."""
    thread = threading.Thread(target=work)
    thread.start()
    try:
        inside.wait()
        assert _child(check) == 0
    finally:
        end.set()
        thread.join()


def test_a_child_undoes_what_a_load_of_its_parent_had_changed(tmp_path: Path) -> None:
    """torch's default dtype, and the tying of weights."""
    inside, end = threading.Event(), threading.Event()
    tie_weights = PreTrainedModel.tie_weights

    def load() -> None:
        with exclusive_load():
            torch.set_default_dtype(torch.bfloat16)
            PreTrainedModel.tie_weights = lambda self: None  # type: ignore[method-assign,assignment,misc]
            inside.set()
            end.wait()
            torch.set_default_dtype(torch.float32)
            PreTrainedModel.tie_weights = tie_weights  # type: ignore[method-assign]

    def check() -> None:
        assert torch.get_default_dtype() is torch.float32 and PreTrainedModel.tie_weights is tie_weights
        with exclusive_load():
            pass

    _forked_beside(load, inside, end, check)


def test_a_tokenizer_that_was_in_use_for_too_long_is_refused_in_the_child(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    """Rather than waited for for ever; loaded anew, it answers."""
    folder = str(tiny.bert_encoder(tmp_path / "m"))
    tokenizer = registry.load_tokenizer(folder)
    lock: Lock = tokenizer.__dict__["_medvllm_lock"]
    lock._rest_s = 0.05
    inside, end = threading.Event(), threading.Event()

    def use() -> None:
        with lock:
            inside.set()
            end.wait()

    def check() -> None:
        with pytest.raises(LoadError, match=r"registry\.clear_cache\(\)"):
            tokenizer("aspirin")
        registry.clear_cache()
        assert registry.load_tokenizer(folder)("aspirin")["input_ids"]

    _forked_beside(use, inside, end, check)
    assert tokenizer("aspirin")["input_ids"]


@pytest.mark.slow
def test_a_child_of_a_process_that_computes_with_several_threads_computes_too(tmp_path: Path) -> None:
    """Torch's threads are not in it, and it does not wait for them."""
    folder = tiny.bert_encoder(tmp_path / "m")
    code = (
        "import os, signal, torch\n"
        "from medvllm.engine.model_runner import ModelRunner\n"
        f"runner, texts = ModelRunner({str(folder)!r}), [{_TEXT!r}] * 4\n"
        "torch.set_num_threads(2)\n"
        "vectors = runner.embed(texts).vectors\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    signal.alarm(60)\n"
        "    os._exit(0 if (runner.embed(texts).vectors == vectors).all() else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))"
    )
    assert out(code) == "0"
