"""`medvllm.client`: the results and the errors of ModelRunner, from a server."""

import asyncio
import json
import os
import re
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from medvllm.client import AsyncClient, Client
from medvllm.client.local_client import LocalClient
from medvllm.client.local_connection import LocalConnection
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import (
    BudgetError,
    CatalogError,
    DeadlineError,
    InputTooLongError,
    LoadError,
    MedVLLMError,
    ModelNotFoundError,
    OverloadedError,
    RequestError,
    ServerError,
    SettingError,
)
from medvllm.server.config import ServerConfig
from tests.support import decoders
from tests.support.scripted import DRIPPING, HUNG_UP, RESET, Reply, scripted
from tests.support.served import NOTE, registry_of_all_tasks
from tests.support.serving import serving
from tests.support.waiting import wait_until

OWN_KEY = "k" * 40
CANARY = "Zyxwvutcanary"
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "embed": lambda client, runner: (client.embed("minilm", [NOTE, ""]), runner("minilm").embed([NOTE, ""])),
    "entities": lambda client, runner: (
        client.entities("deid", [NOTE, ""], threshold=0.5, labels=["NAME"]),
        runner("deid").entities([NOTE, ""], threshold=0.5, labels=["NAME"]),
    ),
    "words": lambda client, runner: (
        client.entities("deid", [["saw", "Jones"]]),
        runner("deid").entities([["saw", "Jones"]]),
    ),
    "redact": lambda client, runner: (
        client.redact("deid", [NOTE], operators={"DEFAULT": {"type": "replace"}}),
        runner("deid").redact([NOTE], operators={"DEFAULT": {"type": "replace"}}),
    ),
    "classify": lambda client, runner: (
        client.classify("cls", [("no", "fever")], top_k=2),
        runner("cls").classify([("no", "fever")], top_k=2),
    ),
    "assertions": lambda client, runner: (
        client.assertions("assert", ["no fever"], [[(3, 8)]]),
        runner("assert").assertions(["no fever"], [[(3, 8)]]),
    ),
    "rerank": lambda client, runner: (
        client.rerank("rank", "fever", ["no fever", "pain"], top_k=1),
        runner("rank").rerank("fever", ["no fever", "pain"], top_k=1),
    ),
    "fill-mask": lambda client, runner: (
        client.fill_mask("mlm", ["a [MASK] and [MASK]"], top_k=2),
        runner("mlm").fill_mask(["a [MASK] and [MASK]"], top_k=2),
    ),
    "generate": lambda client, runner: (
        client.generate("chat", [[{"role": "user", "content": NOTE}], "b"], max_new_tokens=4),
        runner("chat").generate([[{"role": "user", "content": NOTE}], "b"], max_new_tokens=4),
    ),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    folder = tmp_path_factory.mktemp("models")
    registry = registry_of_all_tasks(folder)
    registry.register("chat", "clinical", model_path=str(decoders.llama(folder / "chat")), task="generate")
    return registry


@pytest.fixture(scope="module")
def url(registry: ModelRegistry) -> Iterator[str]:
    with serving(registry, ServerConfig(own_key=OWN_KEY)) as http:
        yield str(http.base_url).rstrip("/")


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


@pytest.mark.parametrize("task", CALLS)
def test_a_result_is_that_of_a_runner(client: Client, registry: ModelRegistry, task: str) -> None:
    """Of the same class, with the same rows, records and version, also from the asynchronous client."""

    async def ask() -> Any:
        async with AsyncClient(client.url) as other:
            asked, _ = CALLS[task](other, lambda name: ModelRunner(name, registry=registry))
            return await asked

    found, expected = CALLS[task](client, lambda name: ModelRunner(name, registry=registry))
    for each in (found, asyncio.run(ask())):
        assert type(each) is type(expected) and each.task == expected.task and each.version == 1
        assert list(each.rows()) == list(expected.rows()) and each.to_dict() == expected.to_dict()
        for attribute in ("classes", "similarity"):
            assert getattr(each, attribute, None) == getattr(expected, attribute, None)
    if task != "embed":
        assert list(found) == list(expected)


def test_receipts_have_no_folders_unless_the_key_is_of_the_servers_user(url: str, registry: ModelRegistry) -> None:
    """Then they are those of a local call."""
    expected = ModelRunner("deid", registry=registry).entities([NOTE], with_receipt=True).receipt
    with Client(url, api_key=OWN_KEY) as client:
        own = client.entities("deid", [NOTE], with_receipt=True).receipt
    with Client(url) as client:
        other = client.entities("deid", [NOTE], with_receipt=True).receipt
    assert own is not None and expected is not None and own == expected and own.digest == expected.digest
    assert other is not None and other.snapshot == "a folder of the server" and other.proof == own.proof


def test_a_text_is_streamed_in_pieces(client: Client, registry: ModelRegistry) -> None:
    """The last piece of a prompt has the answer. Closing a stream ends it on the server, and frees the model."""
    expected = ModelRunner("chat", registry=registry).generate(["a", "b"], max_new_tokens=6)

    async def ask() -> list[Any]:
        async with AsyncClient(client.url) as other:
            return [piece async for piece in other.stream("chat", ["a", "b"], max_new_tokens=6)]

    for pieces in (list(client.generate("chat", ["a", "b"], stream=True, max_new_tokens=6)), asyncio.run(ask())):
        assert [piece.answer for piece in pieces if piece.answer] == expected
        for position in (0, 1):
            assert "".join(piece for piece in pieces if piece.position == position) == expected[position].text
    stream = client.generate("chat", ["a"] * 2000, stream=True, max_new_tokens=400)
    next(stream)
    assert next(model for model in client.loaded() if model["name"] == "chat")["leases"] > 0
    stream.close()
    wait_until(lambda: not next(model for model in client.loaded() if model["name"] == "chat")["leases"], step_s=0.01)


def test_models_are_listed_loaded_and_unloaded(client: Client, registry: ModelRegistry) -> None:
    """By their names in the server's catalogue; all pages of it."""
    assert client.load("cut", keep_alive="10m") == {"model": "cut", "version": 1}
    found = {model["name"]: model for model in client.loaded()}
    assert found["cut"]["keep_alive"] == 600 and "snapshot" not in found["cut"]
    assert client.unload("cut") == 1 and "cut" not in {model["name"] for model in client.loaded()}
    assert [model["id"] for model in client.models()] == sorted(registry.list_models())
    assert client.model("deid")["tasks"] == ["deid"]


@pytest.mark.parametrize(
    ("ask", "kind", "attributes"),
    [
        (lambda client: client.entities("nope", [CANARY]), ModelNotFoundError, {"model": "nope"}),
        (lambda client: client.classify("cls", ["a", f"{CANARY} " * 90]), InputTooLongError, {"position": 1}),
        (lambda client: client.entities("deid", [CANARY], labels=["DRUG"]), RequestError, {}),
        (lambda client: client.entities("deid", [CANARY], nosuch=1), RequestError, {"argument": "nosuch"}),
        (lambda client: client.run("embedd", "minilm", [CANARY]), RequestError, {"task": "embedd"}),
        (lambda client: client.generate("chat", [CANARY], top_k=3), RequestError, {"argument": "top_k"}),
        (lambda client: list(client.generate("chat", [CANARY], stream=True, top_k=3)), RequestError, {}),
        (lambda client: list(client.generate("mlm", [CANARY], stream=True)), RequestError, {"model": "mlm"}),
        (lambda client: client.entities("deid", [CANARY] * 3000), RequestError, {}),
        (lambda client: client.entities("deid", [CANARY], threshold=float("nan")), RequestError, {}),
        (lambda client: client.entities("deid", [CANARY, {CANARY, 1}, {1: object()}]), RequestError, {}),
        (lambda client: client.entities("deid", CANARY), RequestError, {}),
        (lambda client: client.redact("deid", [CANARY], operators={"DEFAULT": {"type": "hash", "key": CANARY}}),
         RequestError, {}),
    ],
)  # fmt: skip
def test_errors_are_those_of_the_library(
    client: Client, ask: Callable[[Any], Any], kind: type[MedVLLMError], attributes: dict[str, Any]
) -> None:
    """With their attributes, and without a text, a cause or a context that could have one."""
    with pytest.raises(kind) as raised:
        ask(client)
    error = raised.value
    assert type(error) is kind and {name: getattr(error, name) for name in attributes} == attributes
    assert error.__cause__ is None and error.__context__ is None
    assert CANARY not in f"{error}{vars(error)}" and CANARY not in repr(client)


def _problem(code: str, **fields: Any) -> bytes:
    return json.dumps({"error": {"message": "It failed.", "code": code, **fields}}).encode()


@pytest.mark.parametrize(
    ("reply", "kind", "requests"),
    [
        (Reply(429, _problem("overloaded"), {"Retry-After": "0"}), OverloadedError, 3),
        (Reply(503, _problem("memory_full"), {"Retry-After": "0"}), BudgetError, 3),
        (Reply(503, _problem("memory_full"), {"Retry-After": "900"}), BudgetError, 1),
        (Reply(429, _problem("overloaded"), {"Retry-After": "soon"}), OverloadedError, 1),
        (Reply(503, _problem("server_ending")), ServerError, 1),
        (Reply(503, _problem("memory_full"), {"Retry-After": "0", "x-should-retry": "false"}), BudgetError, 1),
        (Reply(507, _problem("model_too_large"), {"Retry-After": "0"}), BudgetError, 1),
        (Reply(500, _problem("model_unusable", kind="LoadError")), LoadError, 1),
        (Reply(503, _problem("catalog_unusable", kind="os.system")), CatalogError, 1),
        (Reply(401, _problem("invalid_api_key")), ServerError, 1),
        (Reply(302, b"", {"Location": "/v1/memory"}), ServerError, 1),
        (Reply(200, b"<html>"), ServerError, 1),
        (Reply(200, b"[1]"), ServerError, 1),
        (Reply(200, b'{"task": "ner"}'), ServerError, 1),
        (Reply(200, b'{"task": "ner"', length=1000), ServerError, 1),
        (Reply(200, b'{"task": "ner"', {"Content-Encoding": "gzip"}), ServerError, 1),
    ],
)
def test_a_request_is_sent_again_only_where_the_server_says_so(
    reply: Reply, kind: type[MedVLLMError], requests: int
) -> None:
    """At most three times, and in time. What is no answer of a server of medvllm is an error, in a stream, too."""
    with scripted(lambda sent: reply) as server, Client(server.url, timeout_s=20) as client:
        with pytest.raises(kind) as raised:
            client.entities("m", [CANARY])
        assert len(server.sent) == requests and CANARY not in str(raised.value)
        with pytest.raises(kind) as streamed:
            list(client.generate("m", [CANARY], stream=True))
        assert len(server.sent) == 2 * requests
        for error in (raised.value, streamed.value):
            assert error.__cause__ is None and error.__context__ is None


def test_a_retry_succeeds() -> None:
    """Both clients wait as long as the server says."""
    replies = [Reply(429, _problem("overloaded"), {"Retry-After": "0"}), Reply(200, b'{"models": []}')] * 2

    async def ask(url: str) -> Any:
        async with AsyncClient(url) as client:
            return await client.loaded()

    with scripted(lambda sent: replies.pop(0)) as server, Client(server.url) as client:
        assert client.loaded() == [] == asyncio.run(ask(server.url)) and not replies


@pytest.mark.parametrize("ending", [HUNG_UP, RESET], ids=["closed", "reset"])
@pytest.mark.parametrize("kind", [Client, LocalClient])
def test_a_connection_that_the_server_has_ended_is_opened_again(kind: type[Client], ending: Reply) -> None:
    """Once: the client noticed it too late. A stream, too."""
    done = Reply(200, b'{"models": []}')
    stream = Reply(200, b"data: [DONE]\n\n")
    replies = [done, ending, done, ending, stream, ending, ending]
    with scripted(lambda sent: replies.pop(0)) as server, kind(server.url) as client:
        assert client.loaded() == client.loaded() == [] == list(client.generate("m", ["a"], stream=True))
        with pytest.raises(ServerError, match="closed the connection"):
            client.loaded()
        assert not replies


def test_a_connection_that_ended_while_nobody_used_it_is_opened_again() -> None:
    """The client notices it when it sends the body behind the head. One that did not end is used again."""
    body = b'{"models": []}'
    replies = [Reply(200, body), Reply(200, body, length=len(body)), Reply(200, b'{"models": 3}')]
    with scripted(lambda sent: replies.pop(0)) as server, LocalClient(server.url) as client:
        assert client.loaded() == []
        connection = client._connection()
        assert isinstance(connection, LocalConnection)
        used = connection._http.sock
        assert used is not None and client.loaded() == [] and connection._http.sock is used
        wait_until(lambda: bool(select.select([used], [], [], 0)[0]))  # the server has closed it
        assert client.unload("m") == 3 and connection._http.sock is not used


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(301, b"", {"Location": "https://u:p@med.example.org/x"}), r"MEDVLLM_SERVER=https://med\.example\.org$"),
        (Reply(302, b"", {"Location": "/login"}), r"status 302, and not as .*\nIs this its address\?"),
        (Reply(302, b"", {"Location": "https://[::1"}), r"Is this its address\?"),
        (Reply(200, b"<html>"), r"status 200, and not as .*\nIs this its address\?"),
        (Reply(502, b"<html>"), r"status 502, and not as .*\nIs this its address\?"),
        (Reply(404, _problem("not_found")), r"another version(?s:.)*curl http://127\.0\.0\.1:\d+/api/version$"),
        (Reply(405, _problem("method_not_allowed")), "another version"),
        (Reply(200, b'{"task": "later", "version": 1, "records": []}'), "another version"),
        (Reply(200, b'{"task": "ner", "version": 1, "records": [{}]}'), "another version"),
        (HUNG_UP, r"closed the connection without an answer\.\nDoes it use TLS\? Then it is: https://127"),
        (Reply(200, b'{"task": "ner"', length=1000), "broke off"),
    ],
)
def test_what_is_no_server_of_this_version_is_told_apart(reply: Reply, message: str) -> None:
    """Another address, another version, and a server that is none need different steps."""

    async def ask(url: str) -> None:
        async with AsyncClient(url) as client:
            await client.entities("m", ["a"])

    with scripted(lambda sent: reply) as server, Client(server.url) as client:
        for call in (lambda: client.entities("m", ["a"]), lambda: asyncio.run(ask(server.url))):
            with pytest.raises(ServerError, match=message):
                call()


def test_what_a_later_server_adds_is_left_out() -> None:
    """Of records that the client knows, in whole answers and in streams."""
    span = {"start": 0, "end": 5, "label": "NAME", "score": 0.5, "text": "Jones", "later": [1]}
    coverage = {"read": [[0, 5]], "tokens": 3, "unknown": 0, "windows": 1, "truncated": False, "later": 1}
    content = {"task": "ner", "version": 1, "records": [coverage | {"spans": [span]}], "classes": [], "later": 1}
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "later": 3}
    answer = coverage | {"text": "a", "finish_reason": "stop", "usage": usage}
    event = {"text": "a", "position": 0, "answer": answer, "version": 1, "later": 1}
    replies = [
        Reply(200, json.dumps(content).encode()),
        Reply(200, f"event: later\ndata: {json.dumps(event)}\r\n\ndata: [DONE]\n\n".encode()),
    ]
    with scripted(lambda sent: replies.pop(0)) as server, Client(server.url) as client:
        [[found]] = [entities.spans for entities in client.entities("m", ["Jones"])]
        [piece] = client.generate("m", ["x"], stream=True)
    assert (found.start, found.end, found.label, found.text) == (0, 5, "NAME", "Jones")
    assert piece.answer is not None and piece.answer.completion_tokens == 2


def test_an_answer_without_an_end_is_given_up() -> None:
    """Although a byte of it comes from time to time, in each kind of call."""

    async def ask(url: str, *, stream: bool) -> None:
        async with AsyncClient(url, timeout_s=0.1) as client:
            if stream:
                _ = [piece async for piece in client.stream("m", ["a"])]
            await client.loaded()

    with scripted(lambda sent: DRIPPING) as server, Client(server.url, timeout_s=0.1) as client:
        for call in (
            client.loaded,
            lambda: list(client.generate("m", ["a"], stream=True)),
            lambda: asyncio.run(ask(server.url, stream=False)),
            lambda: asyncio.run(ask(server.url, stream=True)),
        ):
            with pytest.raises(DeadlineError, match=r"within 0\.1 s"):
                call()


def test_a_server_that_never_answers_is_given_up() -> None:
    """After the seconds of the call or of the client, which the server is told."""
    with scripted(lambda sent: None) as server, Client(server.url, timeout_s=0.1) as client:
        with pytest.raises(DeadlineError):
            client.loaded()
        with pytest.raises(DeadlineError, match="within 0.2 s"):
            client.entities("m", ["a"], timeout_s=0.2)
        assert 0 < json.loads(server.sent[-1].body)["timeout_s"] <= 0.2


def test_nobody_listens_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to start a server. The address comes from the setting, and a wrong one is named."""
    monkeypatch.setenv("MEDVLLM_SERVER", "http://127.0.0.1:9")
    with pytest.raises(ServerError, match=r"127\.0\.0\.1:9 cannot be reached.*\n.*medvllm serve") as raised:
        Client().loaded()
    assert raised.value.__context__ is None
    for wrong in ("localhost:8000", "ftp://a", "http://", "http://a:0", "http://a:99999", "http://[::1"):
        with pytest.raises(SettingError, match="not an address"):
            Client(wrong)
        monkeypatch.setenv("MEDVLLM_SERVER", wrong)
        with pytest.raises(SettingError, match="MEDVLLM_SERVER"):
            Client()
    for key in ("a\nb", "schlüssel" * 3, " "):
        with pytest.raises(SettingError) as refused:
            Client("http://127.0.0.1:9", api_key=key)
        assert key.strip() == "" or key not in str(refused.value)


def test_the_key_is_sent_and_no_proxy_sees_what_stays_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither are redirections followed, so the key goes to the server only."""
    monkeypatch.setenv("MEDVLLM_API_KEY", "a" * 30)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    with scripted(lambda sent: Reply(200, b'{"models": []}')) as server:
        for client in (Client(server.url), Client(server.url, api_key="b" * 30)):
            with client:
                assert client.loaded() == []
        assert [sent.headers["authorization"][:9] for sent in server.sent] == ["Bearer aa", "Bearer bb"]


def test_a_key_that_may_not_is_refused(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the server's words, and its status."""
    monkeypatch.setenv("MEDVLLM_API_KEYS", f"{'r' * 20}:read")
    with serving(registry, ServerConfig(requires_key=True, own_key=OWN_KEY)) as http:
        url = str(http.base_url)
        with Client(url) as nobody, pytest.raises(ServerError, match="needs an API key") as raised:
            nobody.loaded()
        assert (raised.value.status, raised.value.code) == (401, "invalid_api_key")
        with Client(url, api_key="r" * 20) as reader:
            assert reader.loaded() is not None
            for ask in (lambda: reader.load("deid"), lambda: reader.entities("deid", ["a"])):
                with pytest.raises(ServerError, match="needs the right to") as refused:
                    ask()
                assert refused.value.status == 403
        with Client(url, api_key=OWN_KEY) as own:
            assert own.load("deid")["version"] == 1


def test_threads_share_a_client(client: Client, registry: ModelRegistry) -> None:
    """Each gets the answers for its own texts."""
    texts = [f"{NOTE} {'pain ' * number}" for number in range(8)]
    expected = ModelRunner("deid", registry=registry).entities(texts)
    found: dict[int, Any] = {}

    def ask(number: int) -> None:
        found[number] = client.entities("deid", [texts[number]])[0]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = [[(span.start, span.label) for span in found[number].spans] for number in range(8)]
    assert spans == [[(span.start, span.label) for span in each.spans] for each in expected]


def test_a_fork_has_connections_of_its_own(client: Client) -> None:
    """Parent and child would read each other's answers otherwise."""
    client.loaded()
    before = client._connection()
    child = os.fork()
    if not child:
        os._exit(0 if client._connection() is not before and client.loaded() is not None else 1)
    assert os.waitpid(child, 0)[1] == 0 and client._connection() is before and client.loaded() is not None


def test_the_page_on_the_client_runs(
    url: str, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its blocks in order, as a reader would paste them."""
    names = {"my-tagger": "deid", "my-encoder": "minilm", "my-decoder": "chat", "my-classifier": "cls"}
    for name, other in names.items():
        entry = registry.get_metadata(other)
        registry.register(name, "clinical", model_path=entry.location, task=entry.tasks[0], replace=True)
    monkeypatch.setenv("MEDVLLM_SERVER", url)
    page = (Path(__file__).parents[1] / "docs" / "client.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "client.md", "exec"), namespace)
    assert len(blocks) == 2 and "Jones" in capsys.readouterr().out


def test_reserved_words_are_no_options(url: str) -> None:
    """What is an argument of `run` itself cannot be smuggled in."""
    for name in ("task", "texts", "with_receipt", "self"):
        body = {"model": "deid", "task": "ner", "texts": [CANARY], "arguments": {name: 1}}
        answer = httpx2.post(f"{url}/v1/run", json=body)
        assert answer.status_code == 422 and CANARY not in answer.text


def test_the_import_is_light() -> None:
    """It takes milliseconds: neither torch nor the library of HTTP is needed yet."""
    code = (
        "import sys; from medvllm.client import AsyncClient, Client; Client('http://127.0.0.1:9')\n"
        "assert not {'torch', 'transformers', 'numpy', 'httpx2', 'fastapi', 'sqlalchemy', 'medvllm.model_registry.api'}"
        " & {*sys.modules}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
