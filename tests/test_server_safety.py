"""Who may use a server, and what it does with requests that are made to harm it or its users."""

import base64
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx2
import pytest

from medvllm.api_keys import digest_of
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import SettingError
from medvllm.server import keyring
from medvllm.server.config import ServerConfig
from medvllm.server.connection import Connection
from medvllm.server.guard import host_of
from medvllm.server.listening import listen
from medvllm.server.receipts import hide_paths
from medvllm.server.tracing import Tracing, tracing_of_environment
from tests.support import tiny
from tests.support.serving import connected, serving
from tests.support.waiting import wait_until

CANARY = "secret-canary"
INFER = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [f"{CANARY} Smith"]}]}


@pytest.fixture
def registry(tmp_path: Any) -> ModelRegistry:
    registry = ModelRegistry()
    folder = tiny.bert_token_classifier(tmp_path / "ner", ["O", "B-NAME", "I-NAME"])
    registry.register("ner", "clinical", model_path=str(folder), task="ner")
    return registry


@pytest.fixture
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry, ServerConfig(max_body_bytes=100_000, body_timeout_s=0.5)) as client:
        yield client


@pytest.fixture
def quick_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the keys at each request."""
    monkeypatch.setattr(keyring, "_KEPT_S", 0.0)


def test_a_key_opens_what_its_rights_say(
    registry: ModelRegistry, quick_keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a bearer token, a header or a browser's password, until it is revoked. Health needs none."""
    monkeypatch.setenv("MEDVLLM_API_KEYS", f"{'r' * 20}:read,{'m' * 20}:manage")
    key = registry.catalog.keys.add("pacs", rights=("read", "infer"), limits={"max_texts": 1, "max_body_bytes": 10**9})
    two = {"inputs": [INFER["inputs"][0] | {"shape": [2], "data": ["a", "b"]}]}
    with serving(registry, ServerConfig(requires_key=True, max_body_bytes=1000)) as client:

        def ask(path: str, key: str | None = None, body: Any = None, **headers: Any) -> int:
            given: Any = headers if key is None else {"Authorization": f"Bearer {key}"}
            answer = client.request("GET" if body is None else "POST", path, json=body, headers=given)
            assert CANARY not in answer.text and (answer.status_code < 400 or list(answer.json()) == ["error"])
            assert (answer.status_code == 401) is ("www-authenticate" in answer.headers)
            return answer.status_code

        assert [ask(path) for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")] == [200] * 4
        assert [ask("/v2"), ask("/v2", key), ask("/v2", "r" * 20), ask("/v2", "m" * 20)] == [401, 200, 200, 403]
        assert [ask("/nothing"), ask("/openapi.json"), ask("/metrics")] == [401] * 3
        basic = base64.b64encode(f"me:{key}".encode()).decode()
        assert [ask("/v2", **{"X-API-Key": key}), ask("/v2", Authorization=f"Basic {basic}")] == [200, 200]
        assert ask("/livez", Authorization=b"Basic \xe9") == 200  # no key is needed
        assert [ask("/v2", Authorization=b"Basic " + text) for text in (b"!", b"\xe9", b"/+==", b"\xff\xfe")] == [
            401
        ] * 4
        assert [ask("/v2", key[:-1]), ask("/v2", digest_of(key))] == [401] * 2
        infer, unload = "/v2/models/ner/infer", "/v2/repository/models/ner/unload"
        assert [ask(infer, key, INFER), ask(infer, "r" * 20, INFER), ask(infer, None, INFER)] == [200, 403, 401]
        assert [ask(unload, key, {}), ask(unload, "m" * 20, {})] == [403, 200]
        assert ask(infer, key, two) == 413  # the key's own limit
        assert ask(infer, key, {"filler": "x" * 2000}) == 413  # the server's, which no key can raise
        short = registry.catalog.keys.add("short", rights=("infer",), limits={"max_tokens": 3})
        assert ask(infer, short, INFER) == 422  # the key's own limit, too
        registry.catalog.keys.revoke("pacs")
        assert ask("/v2", key) == 401


def test_a_key_has_so_many_requests_open_as_its_limit_says(registry: ModelRegistry) -> None:
    """The next one is refused at once, and told when to come again."""
    key = registry.catalog.keys.add("pacs", rights=("infer",), limits={"max_concurrent": 1})
    head = f"POST /v2/models/ner/infer HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n"
    with serving(registry, ServerConfig(requires_key=True)) as client, connected(client) as first:
        first.sendall(f"{head}Content-Length: 5\r\n\r\n{{}}".encode())  # three bytes are missing
        deadline = time.monotonic() + 20
        while True:
            with connected(client) as second:
                second.sendall(f"{head}Connection: close\r\nContent-Length: 2\r\n\r\n{{}}".encode())
                answer = _read(second)
            if b" 429 " in answer:
                break
            assert time.monotonic() < deadline and b" 422 " in answer
        assert b"retry-after: 1" in answer.lower()
        first.sendall(b"   ")
        assert b" 422 " in first.recv(1000)


def test_no_key_is_stored_or_shown(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in the catalogue, and not in the message about a setting that is wrong."""
    key = registry.catalog.keys.add("pacs", rights=("infer",))
    assert key not in registry.catalog.where and key not in repr(registry.catalog.keys.list())
    for text in (f"{key},{CANARY}", f"{key}:read+{CANARY}", f"{key},"):
        monkeypatch.setenv("MEDVLLM_API_KEYS", text)
        with pytest.raises(SettingError, match="MEDVLLM_API_KEYS is '\\*\\*\\*', which is not usable: ") as error:
            keyring.read_keys(registry)
        assert key not in str(error.value) and CANARY not in str(error.value) and error.value.value == "***"


@pytest.mark.parametrize(
    ("text", "is_hidden"),
    [
        ("/usr/share/ner", True),
        ("/nowhere/ner", True),
        ("seen: in /usr/share/ner", True),
        ("seen:/usr/share/ner", True),
        ("the folder (/usr/share/ner)", True),
        ("['/usr/share/a b']", True),
        ("~/models/ner", True),
        ("~root/ner", True),
        ("copied from ../ner", True),
        ("file:///usr/share/ner", True),
        ("org/ner", False),
        ("https://home.example/usr/share", False),
        ("http://usr/share", False),
        ("5 mg /day and/or 3/week", False),
        ("~500/day", False),
        ("MIT", False),
    ],
)
def test_no_path_of_the_machine_is_in_an_answer(text: str, is_hidden: bool) -> None:
    """Wherever it stands in a fact, and nothing else is taken for a path."""
    assert (hide_paths({"facts": [text]})["facts"] != [text]) is is_hidden


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:8000"}, 200),
        ({"Host": "[::1]"}, 200),
        ({"Host": "LOCALHOST:1"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "evil@localhost"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[", "Host": "127.0.0.1:8000"}, 403),
        ({"Origin": "http://127.0.0.1:5", "Host": "127.0.0.1:8000"}, 403),
        ({"Origin": "http://127.0.0.1:8000", "Host": "127.0.0.1:8000"}, 200),
        ({"Origin": "https://127.0.0.1:8443", "Host": "127.0.0.1"}, 200),  # a proxy that leaves out the port
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_pages_of_other_sites_cannot_use_the_server(
    client: httpx2.Client, headers: dict[str, str], status: int
) -> None:
    """Neither under a name of their own for this machine, nor by a request that a browser sends for them."""
    answer = client.post("/v2/repository/index", json={"ready": True}, headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_of_another_site_can_only_link_to_pages(client: httpx2.Client) -> None:
    """A picture or a frame with the address of a route would load a model."""
    for path in ("/v1/models", "/v2/models/ner", "/presidio/supportedentities?model=ner", "/", "/memory"):
        for mode in ("no-cors", "navigate"):
            answer = client.get(path, headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": mode})
            assert answer.status_code == (200 if mode == "navigate" and path in ("/", "/memory") else 403)
    assert client.get("/v1/models", headers={"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_a_host_is_read_as_the_browser_reads_it() -> None:
    assert [host_of(text) for text in ("a.b:1", "[::1]:2", "a:b:c", "x y", "[", "A")] == [
        "a.b",
        "::1",
        "a",
        "",
        "",
        "a",
    ]


def _read(connection: socket.socket) -> bytes:
    """What a server sends until it closes the connection."""
    parts = []
    try:
        while part := connection.recv(65536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


HEAD = b"POST /v2/models/ner/infer HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET, b"400"),
        (HEAD + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd" + GET, b"400"),
        (HEAD + b"Content-Length: +4\r\n\r\nabcd" + GET, b"400"),
        (HEAD + b"Content-Length : 4\r\n\r\nabcd" + GET, b"400"),
        (HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + GET, b"400"),
        (HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + GET, b"400"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + GET, b"400"),
        (HEAD + b"X: a\r\n\tb: c\x00\r\n\r\n" + GET, b"400"),
        (b"GET /livez HTTP/1.1\r\n\r\n" + GET, b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + GET, b"400"),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n" + GET, b"400"),
        (HEAD + b"Content-Length: 99999999\r\n\r\n", b"413"),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"8000\r\n" + b"a" * 0x8000 + b"\r\n" * 1, b"408"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, b"400"),
    ],
)
def test_a_request_that_can_be_read_in_two_ways_ends_its_connection(
    client: httpx2.Client, sent: bytes, status: bytes
) -> None:
    """Nothing behind it is taken for another request."""
    with connected(client) as connection:
        connection.sendall(sent)
        answer = _read(connection)
    assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1 ") == 1, answer


@pytest.mark.parametrize(
    ("path", "headers", "code"),
    [
        ("/v1/models?after=a&after=b", [], "ambiguous_query"),
        ("/v1/models?limit=3&%6Cimit=4", [], "ambiguous_query"),
        ("/v1/models", [("Authorization", "Bearer a"), ("Authorization", "Bearer b")], "ambiguous_header"),
        ("/v1/models", [("X-MedVLLM-Model", "a"), ("X-MedVLLM-Model", "b")], "ambiguous_header"),
    ],
)
def test_a_value_that_is_given_twice_is_refused(
    client: httpx2.Client, path: str, headers: list[tuple[str, str]], code: str
) -> None:
    """A proxy may take the first one, and the server the last one."""
    answer = client.get(path, headers=headers)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == code
    assert client.get("/?q=a&task=&task=ner").status_code == 400  # a page, too


def test_a_body_without_an_end_is_cut_off(client: httpx2.Client) -> None:
    """Once it is longer than a body may be."""
    with connected(client) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        chunk = b"1000\r\n" + b"a" * 0x1000 + b"\r\n"
        with pytest.raises(OSError) as error:
            while True:
                connection.sendall(chunk)
        assert not isinstance(error.value, TimeoutError)


def test_the_bodies_of_all_requests_together_have_a_limit(registry: ModelRegistry) -> None:
    """A request for which there is no room is told to come again, and it has room once another has ended."""
    with serving(registry, ServerConfig(max_open_bytes=150_000)) as client:

        def ask() -> httpx2.Response:
            return client.post("/v1/entities", json={"model": "ner", "input": f"Fever.{' ' * 100_000}"})

        refused = ask()
        assert refused.status_code == 200
        while refused.status_code == 200:  # if it came first, the other one was refused
            with connected(client) as connection:
                connection.sendall(HEAD + b"Content-Length: 100001\r\n\r\n" + b" " * 100_000)
                while "medvllm_open_requests 2.0" not in client.get("/metrics").text:
                    pass
                refused = ask()
        assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
        while ask().status_code == 429:
            pass  # the server has not seen yet that the other one has ended


def test_junk_behind_a_request_ends_the_connection(client: httpx2.Client) -> None:
    """The request itself is answered, and so are those that were sent in one piece."""
    with connected(client) as connection:
        connection.sendall(GET * 3 + b"\x00junk\r\n\r\n" + GET)
        answer = _read(connection)
    assert answer.count(b"HTTP/1.1 200") == 3 and answer.count(b"HTTP/1.1 ") == 4 and b"HTTP/1.1 400" in answer


def _ask_in(connection: socket.socket) -> bool:
    connection.sendall(GET)
    answer = b""
    while not answer.endswith(b"}"):
        answer += connection.recv(10_000)
    return answer.startswith(b"HTTP/1.1 200")


def test_a_connection_between_two_requests_stays_longer_than_a_head_may_take(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that keeps connections open would otherwise send a request into one that ends."""
    monkeypatch.setattr(Connection, "head_timeout_s", 0.2)
    with serving(registry) as client, connected(client) as waiting, connected(client) as begun:
        for connection in (waiting, begun):
            assert _ask_in(connection)
        begun.sendall(b"G")
        assert _read(begun) == b""  # it was ended, although it was idle for no longer than the other one
        assert _ask_in(waiting)


@pytest.mark.parametrize("before", [b"", GET])
def test_a_client_that_does_not_send_its_request_is_disconnected(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, before: bytes
) -> None:
    """Also one that sends a byte from time to time, and one that has sent a request before."""
    monkeypatch.setattr(Connection, "head_timeout_s", 0.3)
    with serving(registry) as client, connected(client) as connection:
        connection.sendall(before)
        stop = threading.Event()

        def drip() -> None:
            while not stop.wait(0.05):
                try:
                    connection.sendall(b"G")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            answer = _read(connection)  # it ends
        finally:
            stop.set()
            dripping.join()
    assert answer.count(b"HTTP/1.1 200") == bool(before)


def _is_in_metrics(client: httpx2.Client, line: str) -> bool:
    return line in client.get("/metrics").text


def test_a_client_that_does_not_read_its_answers_is_disconnected(
    registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once it has read nothing for a while. Until then, its request is open."""
    monkeypatch.setattr(Connection, "stall_timeout_s", 0.5)
    with serving(registry) as client, connected(client) as connection:
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500)
        for number in ("2.0", "1.0"):  # with that of the metrics themselves
            wait_until(partial(_is_in_metrics, client, f"\nmedvllm_open_requests {number}\n"), step_s=0.02)


def test_no_text_is_in_what_a_server_tells_of_its_requests(
    client: httpx2.Client, registry: ModelRegistry, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it is in the body, the path, the query, a header, the name of a model, or the message of an error."""
    caplog.set_level(logging.INFO)

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(CANARY)

    with monkeypatch.context() as patch:
        patch.setattr(registry, "list_models", fail)
        answers = [client.post("/v2/repository/index", json={})]
    assert answers[0].status_code == 500 and answers[0].headers["x-request-id"] in caplog.text
    answers += [
        client.post("/v2/models/ner/infer", json=INFER),
        client.post("/v2/models/ner/infer", json={"inputs": CANARY}),
        client.post("/v2/models/ner/infer", json=INFER | {"parameters": {CANARY: CANARY}}),
        client.post("/v2/models/ner/infer", content=f'{{"{CANARY}'.encode()),
        client.get(f"/v2/models/{CANARY}"),
        client.get(f"/{CANARY}", params={CANARY: CANARY}),
        client.request(CANARY.replace("-", "").upper(), "/v2"),
        client.get("/v2", headers={"Host": CANARY, "User-Agent": CANARY, "Authorization": CANARY}),
    ]
    metrics = client.get("/metrics").text
    records: list[dict[str, Any]] = []
    while len(records) <= len(answers):  # a line comes just after its answer
        records = [json.loads(each.getMessage()) for each in caplog.records if each.name == "medvllm.access"]
    own = "".join(record.getMessage() for record in caplog.records if not record.name.startswith("httpx2"))
    told = own + metrics + "".join(f"{answer.headers}" for answer in answers)
    assert CANARY not in told and "SECRETCANARY" not in told
    answered = [(each.get("model"), each["route"], each["status"]) for each in records]
    assert ("ner", "/v2/models/{model:path}/infer", 200) in answered
    assert 'medvllm_model_requests_total{model="ner",status="200"} 1.0' in metrics
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store" and "server" not in answer.headers
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_traces_have_the_route_and_no_text(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """As children of the client's own. Without the packages that send them, the start is refused."""
    trace = pytest.importorskip("opentelemetry.sdk.trace")
    export = pytest.importorskip("opentelemetry.sdk.trace.export")
    exporter = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    provider = trace.TracerProvider()
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    with serving(registry, tracing=Tracing(provider)) as client:
        parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        client.post(f"/v2/models/ner/infer?{CANARY}", json={"inputs": CANARY}, headers={"traceparent": parent})
        client.get(f"/{CANARY}")
    first, second = exporter.get_finished_spans()
    assert first.name == "POST /v2/models/{model:path}/infer" and first.parent is not None
    assert first.parent.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert dict(first.attributes) == {
        "http.request.method": "POST",
        "http.route": "/v2/models/{model:path}/infer",
        "http.response.status_code": 422,
    }
    assert second.attributes["http.route"] == "none"
    assert CANARY not in first.to_json() + second.to_json()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ImportError, match="OTEL_EXPORTER_OTLP_ENDPOINT is set.*\nInstall them: pip install"):
        tracing_of_environment()


def test_a_port_that_is_taken_has_an_owner() -> None:
    """The message names the process."""
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(SettingError, match=f"Port {port} of '127.0.0.1' is taken by process {os.getpid()} "):
            listen("127.0.0.1", port)
    for host in ("192.0.2.1", "no such host"):
        with pytest.raises(SettingError, match=f"'{host}' is no address(?s:.)*--host 127.0.0.1"):
            listen(host, 0)
