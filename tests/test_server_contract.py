"""The OpenAPI document of a server holds: its examples work, and each answer is one that it describes."""

import json
import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import jsonschema
import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from medvllm.engine.model_runner import ModelRegistry
from medvllm.server.app import create_app
from medvllm.server.config import ServerConfig
from medvllm.server.rights import right_of
from tests.support.openapi import examples_in, operations_of
from tests.support.served import registry_of_documentation
from tests.support.serving import serving


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A client of a server with a model for each name in the documentation."""
    folder = tmp_path_factory.mktemp("models")
    key = folder / "study.key"
    key.write_text("0123456789abcdef")
    with serving(registry_of_documentation(folder), ServerConfig(redaction_keys={"study": key})) as client:
        yield client


DOCS = Path(__file__).parents[1] / "docs"


def _commands_of(page: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (DOCS / page).read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if re.match("curl .?http://127.0.0.1:8000", line)]


PAGES = [file.name for file in sorted(DOCS.glob("*.md")) if _commands_of(file.name)]
CHAT = [{"role": "user", "content": "a"}]
ARGUMENTS = {"max_new_tokens": 3}
OPERATIONS = operations_of(create_app(ModelRegistry()).openapi())


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: each.name)
def test_what_is_documented_works(client: httpx2.Client, operation: Any) -> None:
    """Each example of a request is answered with 200, in the shape that is documented, which has an example too."""
    examples = operation.body_examples()
    assert bool(examples) is ("requestBody" in operation.content), "the body has no example"
    for body in examples or [None]:
        query = operation.example_query()
        if body and body.get("model"):  # it is named in one place
            query.pop("model", None)
        answer = client.request(operation.method, operation.example_path(), json=body, params=query)
        assert answer.status_code == 200, answer.text
        kind = answer.headers["content-type"].partition(";")[0]
        if kind == "application/json":
            for content in (answer.json(), *examples_in(operation.answer(200)["content"][kind])):
                jsonschema.validate(content, operation.schema(200))
        runs = right_of(operation.method.upper(), operation.path) == "infer" and "anonymize" not in operation.path
        assert answer.headers.get("x-medvllm-version") == ("1" if runs else None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "my-decoder", "prompt": "a", "max_tokens": 3, "stream": True}),
        ("/v1/chat/completions", {"model": "my-decoder", "messages": CHAT, "max_tokens": 3, "stream": True}),
        (
            "/v1/run",
            {"model": "my-decoder", "task": "generate", "texts": ["a"], "arguments": ARGUMENTS, "stream": True},
        ),
    ],
)
def test_a_stream_says_at_its_start_which_version_answers(
    client: httpx2.Client, path: str, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """In a header, and in the log. It is of the media type that is documented."""
    caplog.set_level(logging.INFO, "medvllm.access")
    with client.stream("POST", path, json=body) as answer:
        assert answer.headers["x-medvllm-version"] == "1", answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.read().endswith(b"data: [DONE]\n\n")
    [described] = [each for each in OPERATIONS if each.path == path]
    assert described.answer(200)["content"]["text/event-stream"]["example"].endswith("data: [DONE]\n\n")
    while not (lines := [each.getMessage() for each in caplog.records if each.name == "medvllm.access"]):
        pass  # a line comes just after its answer
    assert json.loads(lines[0])["version"] == "1"


def test_each_route_documents_its_errors() -> None:
    """In the shape of its protocol, and not in FastAPI's, which would repeat the note."""
    shapes = {"/v1/redact": {"error"}, "/v2/rerank": {"message"}, "/embed": {"error", "error_type"}}
    for operation in OPERATIONS:
        stated = operation.content["responses"].keys()
        assert {"200", "400", "401", "403", "404", "422", "429", "500", "503", "504"} <= stated
        if operation.method == "post":
            assert {"413", "415", "502", "507"} <= stated
        if operation.path in shapes:
            for status in operation.content["responses"].keys() - {"200"}:
                [example] = examples_in(operation.answer(int(status))["content"]["application/json"])
                assert example.keys() == shapes[operation.path]
                jsonschema.validate(example, operation.schema(int(status)))
    assert "HTTPValidationError" not in json.dumps(OPERATIONS[0].document)


@pytest.mark.parametrize("path", sorted({operation.path for operation in OPERATIONS}))
def test_a_method_that_a_route_does_not_have_is_refused(client: httpx2.Client, path: str) -> None:
    """With the methods that it has."""
    own = {operation.method.upper() for operation in OPERATIONS if operation.path == path}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - own:
        answer = client.request(method, path)
        if answer.status_code == 404:
            assert method == "GET" and "is not registered" in answer.text  # a name may have slashes
            continue
        allowed = set(answer.headers["allow"].split(", "))
        assert answer.status_code == 405 and own <= allowed and ("HEAD" in allowed) is ("GET" in allowed), method
        assert "/openapi.json" in answer.text and answer.headers["x-should-retry"] == "false"


def test_all_methods_of_a_path_are_allowed(client: httpx2.Client) -> None:
    """Also if each has a route of its own."""
    assert client.options("/try").headers["allow"] == "GET, HEAD, POST"
    assert client.head("/v1/entities").headers["allow"] == "POST"


PATHS = [operation.example_path() for operation in OPERATIONS if operation.method == "get"]


@pytest.mark.parametrize("path", [*PATHS, "/", "/memory", "/openapi.json", "/nix"])
def test_head_is_answered_as_get_is(client: httpx2.Client, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """With the same headers, and without the body."""
    caplog.set_level(logging.INFO, "medvllm.access")
    query = {"model": "my-deid"} if path in ("/info", "/presidio/supportedentities") else {}
    expected, found = client.get(path, params=query), client.head(path, params=query)
    changing = {"date", "x-request-id", *(("content-length",) if path == "/metrics" else ())}
    assert found.status_code == expected.status_code and found.content == b""
    assert {*found.headers.items()} ^ {*expected.headers.items()} <= {
        (name, each.headers[name]) for each in (found, expected) for name in changing if name in each.headers
    }
    ids = [each.headers["x-request-id"] for each in (expected, found)]
    while len(lines := [line for line in caplog.messages if any(id in line for id in ids)]) < 2:
        pass  # a line comes just after its answer
    first, last = map(json.loads, lines)
    assert (first["method"], last["method"], last["bytes"]) == ("GET", "HEAD", 0) and first["route"] == last["route"]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_are_answered(client: httpx2.Client, page: str) -> None:
    """As a reader pastes them, but for the port."""
    for command in _commands_of(page):
        line = command.replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"), 1)
        done = subprocess.run(["bash", "-c", f"{line} -sS --fail-with-body"], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout, (command, done.stdout, done.stderr)


CHECKS = (
    *("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "negative_data_rejection", "missing_required_header"),
)


# One of each protocol in every run; the others are tried in the slow one.
FUZZED_IN_EVERY_RUN = {
    operation.content["tags"][0]: operation.name for operation in OPERATIONS if operation.method == "post"
}


@pytest.mark.parametrize("count", [1, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "operation",
    [
        pytest.param(each, marks=() if each.name in FUZZED_IN_EVERY_RUN.values() else pytest.mark.slow, id=each.name)
        for each in OPERATIONS
    ],
)
def test_each_answer_is_one_that_is_documented(fuzzed: Any, operation: Any, count: int) -> None:
    """For requests that fit the document, and those that do not: its status, media type, headers and content."""
    schemathesis = pytest.importorskip("schemathesis")
    checked = fuzzed.schema[operation.path][operation.method.upper()]
    has_input = "requestBody" in operation.content or "parameters" in operation.content
    for mode in schemathesis.GenerationMode if has_input else [schemathesis.GenerationMode.POSITIVE]:
        how = settings(
            max_examples=count if has_input else 1,
            phases=[Phase.generate],
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )

        def ask(case: Any) -> None:
            answer = case.call(session=fuzzed.session, timeout=300)
            # A request may allow less time than any answer takes.
            is_late = answer.status_code == 504 and answer.json()["error"]["code"] == "deadline_exceeded"
            case.validate_response(answer, checks=fuzzed.checks[1:] if is_late else fuzzed.checks)

        try:
            how(given(case=checked.as_strategy(generation_mode=mode))(ask))()
        except Unsatisfiable:
            assert mode is schemathesis.GenerationMode.NEGATIVE  # a path can be nothing else than a text


@pytest.fixture(scope="module")
def fuzzed(client: httpx2.Client) -> Iterator[SimpleNamespace]:
    """The document as schemathesis reads it, what it checks, and its connection to the server."""
    schemathesis = pytest.importorskip("schemathesis")
    from schemathesis.checks import CHECKS as known
    from schemathesis.checks import load_all_checks

    load_all_checks()
    schema = schemathesis.openapi.from_dict(_with_known_models(client.get("/openapi.json").json()))
    schema.config.update(base_url=str(client.base_url))
    with requests.Session() as session:
        yield SimpleNamespace(schema=schema, session=session, checks=[known.get_one(name) for name in CHECKS])


def _with_known_models(document: dict[str, Any]) -> dict[str, Any]:
    """The document, so that models of the server are asked as often as others."""
    names = sorted(set(re.findall(r'"(my-[a-z]+)"', json.dumps(document))))
    known = {"anyOf": [{"enum": names}, {"type": "string"}]}
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = known
    for operation in operations_of(document):
        for parameter in operation.content.get("parameters", ()):
            if parameter["name"].endswith("model"):
                parameter["schema"] = known
    return document
