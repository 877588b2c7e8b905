"""A server that is full, waits, or has many clients: who is answered, who is refused, and what comes back."""

import gc
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.engine.model_runner.inference.queue import queue
from medvllm.loading.from_pretrained_lock import exclusive_load
from medvllm.server.config import ServerConfig
from tests.support import decoders, tiny
from tests.support.served import registry_of_all_tasks
from tests.support.serving import connected, serving

CANARY = "secret-canary"
# A request of each route that runs a model, in each protocol.
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/entities", {"model": "deid", "input": CANARY}),
    ("/v1/run", {"model": "deid", "texts": [CANARY]}),
    ("/v1/load", {"model": "deid"}),
    ("/v1/embeddings", {"model": "minilm", "input": CANARY}),
    ("/v1/completions", {"model": "dec", "prompt": CANARY}),
    ("/v1/completions", {"model": "dec", "prompt": CANARY, "stream": True}),
    ("/v1/chat/completions", {"model": "dec", "messages": [{"role": "user", "content": CANARY}]}),
    ("/v1/rerank", {"model": "rank", "query": CANARY, "documents": ["a"]}),
    ("/v2/rerank", {"model": "rank", "query": CANARY, "documents": ["a"]}),
    ("/v2/models/deid/infer", {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [CANARY]}]}),
    ("/v2/repository/models/deid/load", {}),
    ("/api/embed", {"model": "minilm", "input": CANARY}),
    ("/embed", {"model": "minilm", "inputs": CANARY}),
    ("/rerank", {"model": "rank", "query": CANARY, "texts": ["a"]}),
    ("/classify", {"model": "cls", "input": CANARY}),
    ("/models/deid", {"inputs": CANARY}),
    ("/presidio/analyze?model=deid", {"text": CANARY}),
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("models")
    registry = registry_of_all_tasks(folder)
    registry.register("dec", "clinical", model_path=str(decoders.llama(folder / "dec")), task="generate")
    return registry


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    """A server with room for four calls, two of which have a thread."""
    with serving(registry, ServerConfig(max_calls=2, max_waiting=2)) as client:
        yield client


@pytest.fixture
def full_memory(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> AbstractContextManager[object]:
    """A block in which there is a model in memory, minilm, and no room for another one: its load waits."""
    registry.clear_cache()
    gc.collect()
    lease = registry.lease("minilm")
    with lease as found:
        monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={found.size_bytes + 1000}B")
        monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "600")
    return lease


def test_a_full_server_says_so_in_each_protocol(
    client: httpx2.Client, full_memory: AbstractContextManager[object]
) -> None:
    """With the seconds to wait, and no text. Whoever only looks, or unloads a model, is answered meanwhile."""
    with ThreadPoolExecutor(4) as pool, full_memory:
        first = [pool.submit(_ask, client) for _ in range(4)]
        _wait_for(lambda: _figure(client, "medvllm_open_requests") == 5)
        for path, body in REQUESTS:
            answer = client.post(path, json=body)
            assert answer.status_code == 429 and 0 < int(answer.headers["retry-after"]) <= 30, path
            assert "x-should-retry" not in answer.headers and "Try again later" in answer.text
            assert CANARY not in f"{answer.text}{answer.headers}"
        looks = ("/livez", "/readyz", "/v2/health/ready", "/metrics", "/v1/memory", "/api/ps", "/v1/models/deid")
        for path in (*looks, "/v1/models", "/api/tags", "/", "/memory", "/entry?name=deid", "/try?name=deid"):
            assert client.get(path).status_code == 200, path
        assert client.post("/v1/unload", json={"model": "mlm"}).json()["models"] == 0
    assert [each.result().status_code for each in first] == [200] * 4


def test_a_request_that_waits_for_its_turn_ends_in_its_time(
    registry: ModelRegistry, full_memory: AbstractContextManager[object]
) -> None:
    """Also if the call before it takes longer. A stream, too."""
    with serving(registry, ServerConfig(max_calls=1)) as client, ThreadPoolExecutor(1) as pool:
        with full_memory:
            first = pool.submit(_ask, client)
            _wait_for(lambda: registry.statistics().waiting == 1)
            stream = {"model": "dec", "task": "generate", "texts": [CANARY], "stream": True}
            for path, body in (REQUESTS[0], ("/v1/run", {"model": "deid", "texts": [CANARY]}), ("/v1/run", stream)):
                answer = client.post(path, json=body | {"timeout_s": 0.2})
                assert answer.status_code == 504 and "within 0.2 s" in answer.text, path
                assert CANARY not in answer.text and not first.done()
        assert first.result().status_code == 200 and _ask(client).status_code == 200


# A client that asks for several models, and reads no answer.
_CLIENT = """
import json, socket, sys, time
port, requests = int(sys.argv[1]), json.loads(sys.argv[2])
connections = []
for path, body in requests:
    connection = socket.create_connection(("127.0.0.1", port))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\\r\\nHost: localhost\\r\\nContent-Length: {len(content)}\\r\\n\\r\\n"
    connection.sendall(head.encode() + content)
    connections.append(connection)
print("sent", flush=True)
time.sleep(600)
"""


def test_the_places_of_clients_that_are_killed_come_back(
    client: httpx2.Client,
    registry: ModelRegistry,
    full_memory: AbstractContextManager[object],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While they wait for a load, for a thread, or for the first piece of a stream; no load is left behind."""
    four = [REQUESTS[0], *(request for request in REQUESTS if request[1].get("stream")), REQUESTS[0], REQUESTS[0]]
    command = [sys.executable, "-c", _CLIENT, str(client.base_url.port), json.dumps(four)]
    with ThreadPoolExecutor(1) as pool, full_memory:
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            _wait_for(lambda: _figure(client, "medvllm_open_requests") == 5)
            assert _ask(client).status_code == 429
            process.send_signal(signal.SIGKILL)
        _wait_for(lambda: _figure(client, "medvllm_open_requests") == 1)
        before = registry.statistics().misses
        last = pool.submit(_ask, client)  # it has a thread, though the load has not ended
        _wait_for(lambda: registry.statistics().misses > before)
    assert last.result().status_code == 200
    assert registry.statistics().waiting == 0 and not any(model.leases for model in registry.loaded_models())
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]  # no error that nobody looked at


def test_a_load_goes_on_for_those_who_still_want_it(
    client: httpx2.Client, registry: ModelRegistry, full_memory: AbstractContextManager[object]
) -> None:
    """The client that began it goes away: another one that waits for it is answered."""
    with ThreadPoolExecutor(1) as pool, full_memory:
        before = registry.statistics()
        with _asking(client, *REQUESTS[0]):
            _wait_for(lambda: registry.statistics().misses > before.misses)
            second = pool.submit(_ask, client)
            _wait_for(lambda: registry.statistics().shared_waits > before.shared_waits)
        _wait_for(lambda: _figure(client, "medvllm_open_requests") == 2)
    assert second.result().status_code == 200


def test_a_load_that_waits_for_another_one_ends_with_its_client(
    client: httpx2.Client, registry: ModelRegistry, tmp_path: Path
) -> None:
    """Models are constructed one at a time."""
    registry.register(
        "fresh", "clinical", model_path=str(tiny.bert_token_classifier(tmp_path / "fresh", ["O", "B-NAME"])), task="ner"
    )
    with exclusive_load():
        before = registry.statistics()
        with _asking(client, "/v1/entities", {"model": "fresh", "input": CANARY}):
            _wait_for(lambda: registry.statistics().misses > before.misses)
        _wait_for(lambda: registry.statistics().failed_loads > before.failed_loads)


def test_a_load_that_waits_for_memory_ends_with_its_client(
    client: httpx2.Client,
    registry: ModelRegistry,
    full_memory: AbstractContextManager[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever waits too long is told to come again, and what never fits is said at once, in each protocol."""
    with full_memory:
        with _asking(client, *REQUESTS[0]):
            _wait_for(lambda: registry.statistics().waiting == 1)
        _wait_for(lambda: registry.statistics().waiting == 0)
        monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "0.01")
        for path, body in REQUESTS:
            if "minilm" not in str(body):
                answer = client.post(path, json=body)
                assert answer.status_code == 503 and 0 < int(answer.headers["retry-after"]) <= 30, path
                assert CANARY not in answer.text
    monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "600")
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", "cpu=1000B")
    registry.clear_cache()
    for path, body in REQUESTS:
        answer = client.post(path, json=body)
        assert answer.status_code == 507 and answer.headers["x-should-retry"] == "false", path
        assert "retry-after" not in answer.headers and CANARY not in answer.text


def test_a_long_note_does_not_hold_up_short_ones(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Ten short requests are answered before it, though it was there first."""
    done: list[str] = []

    def ask(name: str, text: str) -> None:
        assert client.post("/v1/entities", json={"model": "deid", "input": text}).status_code == 200
        done.append(name)

    with ThreadPoolExecutor(1) as pool:
        batches = queue.statistics().batches
        note = pool.submit(ask, "long", "aspirin was given " * 5_600)
        _wait_for(lambda: queue.statistics().batches > batches)
        for _ in range(10):
            ask("short", "aspirin was given")
        note.result()
    assert done == ["short"] * 10 + ["long"]


def _ask(client: httpx2.Client) -> httpx2.Response:
    path, body = REQUESTS[0]
    return client.post(path, json=body)


def _figure(client: httpx2.Client, name: str) -> float:
    """A figure of the server's metrics that has no labels."""
    [line] = [line for line in client.get("/metrics").text.splitlines() if line.startswith(f"{name} ")]
    return float(line.split()[1])


def _wait_for(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@contextmanager
def _asking(client: httpx2.Client, path: str, body: dict[str, Any]) -> Iterator[None]:
    """A client that has sent a request, and goes away without an answer."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    with connected(client) as connection:
        connection.sendall(head.encode() + content)
        yield
