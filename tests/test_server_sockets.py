"""Clients that speak HTTP badly: slowly, without an end, in part, too much at once, or on too many connections."""

import base64
import gzip
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from http.client import HTTPResponse
from typing import Any

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.server import journal, strict_json
from medvllm.server.config import ServerConfig
from medvllm.server.connection import Connection
from medvllm.server.strict_json import MAX_DEPTH, MAX_VALUES, JSONError, parse_json
from tests.support.serving import connected, serving

HOST = b"Host: localhost\r\n"
GET = b"GET /livez HTTP/1.1\r\n" + HOST + b"\r\n"
ENTITIES = b"POST /v1/entities HTTP/1.1\r\n" + HOST


@pytest.fixture(scope="module")
def client() -> Iterator[httpx2.Client]:
    """A server without models."""
    with serving(ModelRegistry(), ServerConfig(max_body_bytes=200_000, body_timeout_s=0.3)) as client:
        yield client


def read(connection: socket.socket) -> bytes:
    """What a server sends until it ends the connection. A reset is an error."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /nothing HTTP/1.1\r\n" + HOST, b"404"),
        (b"POST /v1/entities HTTP/1.1\r\nHost: evil.example\r\n", b"421"),
        (ENTITIES + b"Origin: https://evil.example\r\n", b"403"),
        (b"PUT /v1/entities HTTP/1.1\r\n" + HOST, b"405"),
        (ENTITIES, b"413"),
        (b"POST /v2/models/ner/infer HTTP/1.1\r\n" + HOST, b"413"),
        (b"POST /api/embed HTTP/1.1\r\n" + HOST, b"413"),
        (b"GET /livez HTTP/1.1\r\n" + HOST, b"200"),
        (ENTITIES + b"Expect: 100-continue\r\n", b"413"),
    ],
)
@pytest.mark.parametrize("length", [b"Content-Length: 6000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_an_answer_before_the_body_is_read_ends_the_connection_and_says_so(
    client: httpx2.Client, head: bytes, status: bytes, length: bytes
) -> None:
    """A client that goes on to send its body reads the answer all the same: the connection is not reset under it."""
    sent = b"5b8d80\r\n" + b"a" * 6_000_000 if b"chunked" in length else b"a" * 6_000_000
    with connected(client) as connection:
        connection.sendall(head + length + sent)
        answer = read(connection).removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 " + status) and answer.count(b"HTTP/1.1 ") == 1
    assert b"\r\nconnection: close\r\n" in answer.lower()
    assert answer.endswith(b"}")  # it is whole


def test_a_body_that_was_read_leaves_the_connection_open(client: httpx2.Client) -> None:
    """Also when the request is refused, so that a client need not connect again for each mistake."""
    with connected(client) as connection:
        for _ in range(3):
            connection.sendall(ENTITIES + b"Content-Length: 2\r\n\r\n{}")
            answer = HTTPResponse(connection)
            answer.begin()
            assert answer.status == 422 and answer.read() and not answer.will_close


def test_a_body_that_stops_is_told_so_in_each_protocol(client: httpx2.Client) -> None:
    """After the time for it, with a status that a client may try again after."""
    for path, key in ((b"/v1/entities", "error"), (b"/v2/rerank", "message"), (b"/embed", "error_type")):
        with connected(client) as connection:
            connection.sendall(b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 50\r\n\r\n{")
            head, _, body = read(connection).partition(b"\r\n\r\n")
        assert b" 408 " in head and b"retry-after: 1" in head.lower() and key in json.loads(body)


def test_a_client_that_only_reads_may_end_its_side(client: httpx2.Client) -> None:
    """As netcat does: all that it has asked for is answered, and then the connection ends."""
    with connected(client) as connection:
        connection.sendall(GET * 3)
        connection.shutdown(socket.SHUT_WR)
        assert read(connection).count(b"HTTP/1.1 200") == 3
    for part in (b"", GET[:10], ENTITIES + b"Content-Length: 50\r\n\r\n{"):  # nothing that could be answered
        with connected(client) as connection:
            connection.sendall(part)
            connection.shutdown(socket.SHUT_WR)
            assert read(connection) == b""


def test_silent_connections_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that has waited longest for a request gives way, and none with a request does."""
    monkeypatch.setattr(Connection, "max_connections", 6)
    with ExitStack() as stack:
        client = stack.enter_context(serving(ModelRegistry()))  # which waits longer for a body
        client.get("/livez")
        busy = stack.enter_context(connected(client))
        busy.sendall(ENTITIES + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert b" 100 " in busy.recv(100)  # the request is there
        silent = [stack.enter_context(connected(client)) for _ in range(20)]
        for number, each in enumerate(silent):
            each.sendall(b"GET /livez HT" if number % 2 else b"")
        with httpx2.Client(base_url=client.base_url) as other:
            assert other.get("/livez").status_code == 200
        for each in silent[:10]:
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""  # it was closed
        busy.sendall(b"{}")
        assert busy.recv(12) == b"HTTP/1.1 422"


@pytest.mark.parametrize(("path", "key"), [("/v1/entities", "error"), ("/v2/rerank", "message"), ("/embed", "error")])
def test_too_many_open_requests_are_told_to_come_again(
    client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, key: str
) -> None:
    """Each protocol in its shape. Whoever asks whether the server lives has an answer."""
    monkeypatch.setattr(journal, "_MAX_OPEN", 0)
    answer = client.post(path, json={})
    assert answer.status_code == 503 and key in answer.json() and answer.headers["retry-after"] == "1"
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


MIB = 2**20


@pytest.mark.parametrize(
    "body",
    [
        b'{"a": "' + b'\\"' * 2 * MIB,
        b'"' + b"\\" * 4 * MIB,
        b'"' * 4 * MIB,
        b"[" * 4 * MIB,
        b"[]" * 2 * MIB,
        b'{"":' * MIB,
        b"[" + b"1," * 2 * MIB,
        b"1" * 4 * MIB,
        b"1." + b"1" * 4 * MIB + b"e9999999999",
        b'"' + b"\\ud800" * MIB + b'"',
    ],
    ids=["quotes", "backslashes", "texts", "open", "pairs", "objects", "numbers", "digits", "float", "surrogates"],
)
def test_no_body_takes_more_time_than_its_length(body: bytes) -> None:
    """A text that does not end took time that grows with its square: hours for this one."""
    with pytest.raises(JSONError):
        parse_json(body)


def test_json_has_a_largest_depth_and_number_of_values() -> None:
    """Brackets and commas in texts are none."""
    text = '"[[{,' + "," * MAX_VALUES + '\\"[{"'
    deep = "[" * MAX_DEPTH + text + "]" * MAX_DEPTH
    assert json.dumps(parse_json(deep.encode())).replace(" ", "") == deep
    for wrong in (f"[{deep}]", "[" + "1," * MAX_VALUES + "1]", f'{{"a":{deep}}}'):
        with pytest.raises(JSONError, match=r"more than (32 deep|500,000 values)"):
            parse_json(wrong.encode())


def test_a_large_body_is_read_beside_other_requests(client: httpx2.Client) -> None:
    """Compressed or not: the thread that answers all requests does not parse it."""
    threads: set[str] = set()
    original = strict_json._to_object

    def note(pairs: Any) -> Any:
        threads.add(threading.current_thread().name)
        return original(pairs)

    content = json.dumps({"model": "nix", "input": "a" * 150_000}).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strict_json, "_to_object", note)
        for body, headers in ((content, {}), (gzip.compress(content), {"Content-Encoding": "gzip"})):
            assert client.post("/v1/entities", content=body, headers=headers).status_code == 404
        assert client.post("/v2/models/nix/infer", content=content).status_code == 422
    assert threads and all("asyncio" in name for name in threads)


def test_a_password_in_the_wrong_shape_is_refused(client: httpx2.Client) -> None:
    """Whatever bytes it has: a header is no reason to fail."""
    for value in (b"Basic " + base64.b64encode(b"\xff\xfe"), b"Bearer \xff", b"Basic =", b"Bearer"):
        with connected(client) as connection:
            connection.sendall(GET[:-2] + b"Authorization: " + value + b"\r\nConnection: close\r\n\r\n")
            assert read(connection).startswith(b"HTTP/1.1 200")
