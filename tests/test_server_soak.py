"""Many clients and more models than there is memory for: what a server answers, holds and leaves behind."""

import json
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.server.config import ServerConfig
from tests.support import cross_encoders, decoders, tiny
from tests.support.serving import serving

CLIENTS, ROOM = 32, 4
OF_THE_PROCESS = ("medvllm-publisher", "tqdm_monitor")  # threads: one of each, which stays
LABELS = ["O", "B-NAME", "I-NAME"]


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    """Ten models of several tasks, each of about the same size."""
    registry = ModelRegistry()
    made = {
        "ner": [tiny.bert_token_classifier(tmp_path / f"ner{seed}", LABELS, seed=seed) for seed in range(3)],
        "classify": [
            tiny.bert_sequence_classifier(tmp_path / f"cls{seed}", config=tiny.labelled(["NO", "YES"]), seed=seed)
            for seed in range(2)
        ],
        "embed": [tiny.bert_encoder(tmp_path / f"enc{seed}", seed=seed) for seed in range(2)],
        "fill-mask": [tiny.bert_masked_lm(tmp_path / "mlm")],
        "generate": [decoders.llama(tmp_path / "dec")],
        "rerank": [cross_encoders.write(tmp_path / "rank")],
    }
    for task, folders in made.items():
        for folder in folders:
            facts: dict[str, Any] = {"pooling": "mean"} if task == "embed" else {}
            registry.register(folder.name, "clinical", model_path=str(folder), task=task, **facts)
    return registry


def _requests() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """For each model and protocol, the route as the documentation writes it, the path, and a body."""
    note = "Patient denies fever and pain. " * 5
    for name in ("ner0", "ner1", "ner2"):
        yield "/v1/entities", "/v1/entities", {"model": name, "input": [note, note]}
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [note]}
        yield "/v2/models/{model}/infer", f"/v2/models/{name}/infer", {"inputs": [tensor]}
        yield "/models/{model}", f"/models/{name}", {"inputs": note}
        yield "/v1/run", "/v1/run", {"model": name, "texts": [note], "keep_alive": 0.01}
    for name in ("cls0", "cls1"):
        yield "/v1/classify", "/v1/classify", {"model": name, "input": note}
        yield "/predict", "/predict", {"model": name, "inputs": note}
    for name in ("enc0", "enc1"):
        yield "/v1/embeddings", "/v1/embeddings", {"model": name, "input": [note]}
        yield "/api/embed", "/api/embed", {"model": name, "input": note}
        yield "/embed", "/embed", {"model": name, "inputs": [note]}
    yield "/v1/fill-mask", "/v1/fill-mask", {"model": "mlm", "input": "the [MASK] was given"}
    chat = {"model": "dec", "messages": [{"role": "user", "content": "pain"}], "max_tokens": 8}
    yield "/v1/chat/completions", "/v1/chat/completions", chat
    yield "/v1/chat/completions", "/v1/chat/completions", chat | {"stream": True}
    yield "/v2/rerank", "/v2/rerank", {"model": "rank", "query": "fever", "documents": ["no fever", "pain"]}
    yield "/v1/unload", "/v1/unload", {"model": "ner0"}
    yield "/v1/load", "/v1/load", {"model": "ner1"}


class Load:
    """Clients that ask, one after another and at random moments of each other, until it is time to end.

    Args:
        client: Asks the server.
    """

    def __init__(self, client: httpx2.Client) -> None:
        self._url = client.base_url
        self._documented = {path: set(each["post"]["responses"]) for path, each in _paths(client) if "post" in each}
        self._numbers, self._end = count(), threading.Event()
        self.seconds: list[float] = []
        self.statuses: Counter[tuple[str, int]] = Counter()

    def run(self, seconds: float) -> None:
        """Let all clients ask for so many seconds, and each request at least once."""
        requests = list(_requests())
        with ThreadPoolExecutor(CLIENTS) as pool:
            working = [pool.submit(self._work, requests) for _ in range(CLIENTS)]
            time.sleep(seconds)
            while sum(self.statuses.values()) < len(requests) and not any(each.done() for each in working):
                time.sleep(0.1)
            self._end.set()
            for each in working:
                each.result()

    def percentile(self, part: float) -> float:
        """The seconds within which a part of the requests was answered."""
        return sorted(self.seconds)[round(part * (len(self.seconds) - 1))]

    def _work(self, requests: list[tuple[str, str, dict[str, Any]]]) -> None:
        with httpx2.Client(base_url=self._url, timeout=300) as client:
            while not self._end.is_set():
                route, path, body = requests[next(self._numbers) % len(requests)]
                begun = time.perf_counter()
                answer = client.post(path, json=body)
                self.seconds.append(time.perf_counter() - begun)
                self.statuses[route, answer.status_code] += 1
                told = route, answer.status_code, answer.text
                assert str(answer.status_code) in self._documented[route], told
                is_full = answer.status_code == 503 and 0 < int(answer.headers["retry-after"]) <= 30
                assert answer.status_code == 200 or is_full, told
                if answer.status_code == 200 and body.get("stream"):
                    assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text


def _paths(client: httpx2.Client) -> Iterator[tuple[str, Any]]:
    yield from client.get("/openapi.json").json()["paths"].items()


def _figures(text: str, name: str) -> dict[str, float]:
    """The figures of a metric, by their labels."""
    return {labels: float(figure) for labels, figure in re.findall(rf"^{name}(\{{[^}}]*\}})? (\S+)$", text, re.M)}


@pytest.mark.parametrize(
    "seconds", [1.0, pytest.param(600.0, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])], ids=["short", "long"]
)
def test_more_clients_and_models_than_memory(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float
) -> None:
    """Each answer is one that the documentation lists, the memory is within its budget, and nothing is left behind."""
    names = registry.list_models(origin="process")
    budget = sum(sorted(registry.plan(name).size_bytes for name in names)[-ROOM:])
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={budget}B")
    threads = set(threading.enumerate())
    with serving(registry, ServerConfig(max_calls=CLIENTS)) as client, ThreadPoolExecutor(1) as pool:
        load, looks = Load(client), 0
        over: list[float] = []
        working = pool.submit(load.run, seconds)
        while not working.done():
            text = client.get("/metrics").text
            used = sum(_figures(text, "medvllm_memory_bytes").values())
            looks += 1
            over += [used] if used > budget else []
            time.sleep(0.05)
        working.result()
        text = client.get("/metrics").text
        assert _figures(text, "medvllm_open_requests") == {"": 1.0} and _figures(text, "medvllm_waiting_loads") == {
            "": 0
        }
        assert not any(_figures(text, "medvllm_model_leases").values())
        assert not any(model["leases"] for model in client.get("/v1/memory").json()["models"])
    assert not over and looks
    deadline = time.monotonic() + 60  # a timer ends a moment after the model that it was for
    while left := {each for each in threading.enumerate() if each.name not in OF_THE_PROCESS} - threads:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert {route for route, status in load.statuses if status == 200} == {route for route, _, _ in _requests()}
    statistics = registry.statistics()
    assert statistics.evictions["room"] > 0
    with capsys.disabled():
        told = {f"{route} {status}": number for (route, status), number in sorted(load.statuses.items())}
        sys.stdout.write(
            f"\n{len(load.seconds)} requests by {CLIENTS} clients, {statistics.loads} loads: "
            f"p50 {load.percentile(0.5):.3f} s, p99 {load.percentile(0.99):.3f} s; {json.dumps(told)}\n"
        )
