"""Threads that use real models at the same time: their texts share batches, and each gets the answer it gets alone."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertForSequenceClassification

from medvllm.engine.model_runner import ModelRegistry, ModelRunner, Request
from medvllm.engine.model_runner.inference.queue import queue
from medvllm.errors import DeadlineError, RequestCancelledError, RequestError
from tests.support import decoders, kinds, tiny
from tests.support.toy_forward import Callers, held

TEXTS = ["fever", "chest pain on exertion", "aspirin 75 mg daily " * 3, "cough", "no dyspnoea today", "x"]


def _vectors(runner: ModelRunner, text: str) -> Any:
    return runner.embed([text]).vectors


def _labels(runner: ModelRunner, text: str) -> Any:
    return np.array([[label.score for label in sorted(runner.classify([text])[0], key=lambda label: label.label)]])


def _spans(runner: ModelRunner, text: str) -> Any:
    found = runner.entities([text])[0].spans
    return np.array([[span.start, span.end, ord(span.label[0]), span.score] for span in found])


def _fills(runner: ModelRunner, text: str) -> Any:
    gaps = runner.fill_mask([f"{text} [MASK]"], top_k=100)[0]
    return np.array([[fill.score for fill in sorted(gaps[0], key=lambda fill: fill.token)]])


ASKED: dict[str, Callable[[ModelRunner, str], Any]] = {
    "BertModel": _vectors,
    "DebertaV2Model": _vectors,
    "ModernBertModel": _vectors,
    "FNetModel": _vectors,  # padding would change its answers
    "tagger": _spans,
    "classifier": _labels,
    "masked": _fills,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint for each name in ASKED."""
    folder = tmp_path_factory.mktemp("models")
    made = {kind: kinds.write(folder / kind, kind) for kind in ASKED if kind.endswith("Model")}
    made["tagger"] = tiny.bert_token_classifier(folder / "tagger", labels=["O", "B-DRUG"])
    made["classifier"] = tiny.bert(
        folder / "classifier", BertForSequenceClassification, config=tiny.labelled(["YES", "NO"])
    )
    made["masked"] = tiny.bert_masked_lm(folder / "masked")
    return made


@pytest.fixture
def callers() -> Callers:
    """Threads that wait in the queue of the process."""
    return Callers(queue)


def test_eight_threads_and_many_models_give_what_each_gives_alone(
    registry: ModelRegistry, folders: dict[str, Path]
) -> None:
    """Whatever shares a batch, within the rounding of float32."""
    runners = {name: ModelRunner(folder, registry=registry) for name, folder in folders.items()}
    texts = TEXTS[:3]
    alone = {(name, text): ask(runners[name], text) for name, ask in ASKED.items() for text in texts}
    before = queue.statistics()

    def work(start: int) -> list[str]:
        faults = []
        for name in (*list(ASKED)[start:], *list(ASKED)[:start]):
            for text in texts:
                found, expected = ASKED[name](runners[name], text), alone[name, text]
                if found.shape != expected.shape or not np.allclose(found, expected, atol=1e-5):
                    faults.append(f"{name} on {text!r}")
        return faults

    with ThreadPoolExecutor(8) as pool:
        assert [fault for faults in pool.map(work, range(8)) for fault in faults] == []
    after = queue.statistics()
    assert after.windows - before.windows == 8 * len(ASKED) * len(texts)
    assert after.running == after.waiting_calls == 0
    assert sum(loaded.leases for loaded in registry.loaded_models()) == 0


def test_texts_of_several_callers_run_together(
    registry: ModelRegistry, folders: dict[str, Path], callers: Callers
) -> None:
    """In one batch, and each caller gets its own answer."""
    for name in ("BertModel", "DebertaV2Model", "tagger"):
        runner, ask = ModelRunner(folders[name], registry=registry), ASKED[name]
        alone = {text: ask(runner, text) for text in TEXTS}
        before = queue.statistics()
        with held(queue):
            for text in TEXTS:
                callers.start(f"{name} {text}", partial(ask, runner, text))
        results = callers.join()
        assert all(np.allclose(results[f"{name} {text}"], alone[text], atol=1e-5) for text in TEXTS)
        after = queue.statistics()
        assert after.shared_batches > before.shared_batches


def test_models_that_callers_wait_for_stay(registry: ModelRegistry, folders: dict[str, Path], callers: Callers) -> None:
    """Evicting a model while its texts wait takes nothing from them: each call holds a lease until it is done."""
    runner = ModelRunner(folders["BertModel"], registry=registry)
    alone = _vectors(runner, "fever")
    with held(queue):
        for number in range(4):
            callers.start(str(number), partial(_vectors, runner, "fever"))
        [loaded] = registry.loaded_models()
        assert loaded.leases == 4
        registry.evict(folders["BertModel"])
        registry.load_model(folders["tagger"])
    assert all(np.allclose(found, alone, atol=1e-5) for found in callers.join().values())
    assert sum(loaded.leases for loaded in registry.loaded_models()) == 0


def test_a_text_that_cannot_run_fails_only_its_own_call(
    registry: ModelRegistry, tmp_path: Path, callers: Callers
) -> None:
    """With the position that the text has in that call."""
    folder = tiny.gpt2_causal_lm(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})  # and the model has no embedding for it
    tokenizer.save_pretrained(folder)
    registry.register("m", "generic", model_path=str(folder), pooling="mean")
    runner = ModelRunner("m", registry=registry)
    alone = _vectors(runner, "fever")
    with held(queue):
        callers.start("good", partial(_vectors, runner, "fever"))
        callers.start("bad", lambda: runner.embed(["fever", "no [PAD] fever"], allow_special_tokens=True))
        callers.start("good too", partial(_vectors, runner, "fever"))
    results = callers.join()
    assert np.allclose(results["good"], alone, atol=1e-5) and np.allclose(results["good too"], alone, atol=1e-5)
    assert isinstance(results["bad"], RequestError) and results["bad"].position == 1
    assert "Text 2 contains token 261" in str(results["bad"])


def test_what_a_caller_sets_for_its_own_thread_reaches_no_other(
    registry: ModelRegistry, folders: dict[str, Path], callers: Callers
) -> None:
    """Autocast and the default device belong to a thread, also while it computes for others."""
    runner = ModelRunner(folders["BertModel"], registry=registry)
    runner.embed(TEXTS)  # what may run together is known from here on: a caller that waits need not try it
    alone = _vectors(runner, "chest pain")

    def coarse() -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return _vectors(runner, "chest pain")

    def elsewhere() -> Any:
        with torch.device("meta"):
            return _vectors(runner, "chest pain")

    with held(queue):
        callers.start("coarse", coarse)
        callers.start("elsewhere", elsewhere)
        callers.start("plain", partial(_vectors, runner, "chest pain"))
    results = callers.join()
    assert np.allclose(results["plain"], alone, atol=1e-6)
    assert not np.allclose(results["coarse"], alone, atol=1e-5)


def test_the_calls_in_a_request_end_with_it(
    registry: ModelRegistry, folders: dict[str, Path], callers: Callers
) -> None:
    """Whichever task they run, while they wait for their turn; and their places in the queue and leases are free."""
    runners = {name: ModelRunner(folder, registry=registry) for name, folder in folders.items()}
    for name in folders:
        ASKED[name](runners[name], "fever")
    request = Request()

    def within(name: str) -> Any:
        with request:
            return ASKED[name](runners[name], "fever")

    with held(queue):
        for name in folders:
            callers.start(name, partial(within, name))
        with Request(timeout_s=0.01), pytest.raises(DeadlineError):
            _vectors(runners["BertModel"], "fever")
        assert queue.statistics().waiting_calls == len(folders)
        request.cancel()
        assert all(isinstance(error, RequestCancelledError) for error in callers.join().values())
        assert queue.statistics().waiting_calls == 0
    assert sum(loaded.leases for loaded in registry.loaded_models()) == 0


def test_a_request_that_is_over_loads_nothing(registry: ModelRegistry, folders: dict[str, Path]) -> None:
    """Not even the model."""
    with Request() as request:
        request.cancel()
        with pytest.raises(RequestCancelledError):
            _vectors(ModelRunner(folders["BertModel"], registry=registry), "fever")
    assert registry.loaded_models() == []


@pytest.mark.parametrize("prompts", [["chest pain"], ["chest pain", "fever"]], ids=["one", "several"])
def test_a_request_also_ends_the_generation_of_a_text(
    registry: ModelRegistry, tmp_path: Path, prompts: list[str]
) -> None:
    """Between two tokens, also in a stream that is read after the block."""
    runner = ModelRunner(decoders.llama(tmp_path / "m"), registry=registry)
    with Request(timeout_s=0.05), pytest.raises(DeadlineError):
        runner.generate(prompts * 20, max_new_tokens=400)
    with Request() as request:
        stream = runner.generate(prompts, max_new_tokens=50, stream=True)
    request.cancel()
    with pytest.raises(RequestCancelledError):
        next(stream)
    assert sum(loaded.leases for loaded in registry.loaded_models()) == 0
