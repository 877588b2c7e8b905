"""The messages that clients of HTTP read lead out for them: no command line, no Python, no path of the server."""

import json
import re
from dataclasses import replace
from functools import cache

import pytest

from medvllm import errors
from medvllm.engine.model_runner import ModelRegistry
from medvllm.server.advice import ASK, for_client
from medvllm.server.app import create_app
from medvllm.server.problem import problem_of
from medvllm.server.rendering import content_of, in_words, protocol_of
from tests.support.messages import messages
from tests.support.openapi import operations_of

# Of the errors whose own message a client reads.
SHOWN = tuple(name for name in errors.__all__ if problem_of(getattr(errors, name)("…what")).message == "…what")
# What no request can reach: files of the command line, registrations, and programs that hold a model themselves.
ELSEWHERE = re.compile(
    r"(?:corpora|sources/bundle|engine/model_runner/batch)/|.*(?:corpus_run|registration|resolve|lease|bundle_export|runner)\.py"
)
# What a reader would have to type into Python or a shell.
FOREIGN = re.compile(
    r"medvllm \w|runner\.|registry\.|\w\(\[|(?:Register|register) (?:it|the)|register\(|pip install|export |openssl"
    r"|python -c|(?<!\w)--?[a-z]+\b"
    r"|(?<![\w'\[.])[a-z_]+=[\['(\w]|\bTrue\b|\bNone\b|://|\./"
)
PATHS = (
    *("/v1/entities", "/v1/completions", "/v1/rerank", "/v2/models/x/infer", "/models/x", "/api/embed", "/embed"),
    *("/presidio/analyze", "/classify"),
)


@pytest.mark.parametrize("path", PATHS)
def test_no_message_of_the_library_asks_a_client_for_python_or_a_shell(path: str) -> None:
    """Unless it says that whoever runs the server can do it."""
    names = _names_of(path)
    found = [(place, line) for place, text in _reachable() for line in for_client(text, names).split("\n")]
    assert len(found) > 200
    assert not [each for each in found if FOREIGN.search(each[1]) and not each[1].startswith(ASK)]


def test_a_program_of_the_library_reads_the_names_of_the_library() -> None:
    """But not commands for another machine."""
    for place, text in _reachable():
        given = for_client(text, None)
        assert "medvllm list" not in given and ("pip install" not in given or ASK in given), place
    assert for_client("Labels overlap.\nUse: activation='sigmoid'", None).endswith("activation='sigmoid'")


@pytest.mark.parametrize(
    ("path", "message", "expected"),
    [
        (
            "/v1/entities",
            "Long (long_input='error').\nShorten the text, or register the model with: long_input='window'",
            'Long ("long_text": "error").\nShorten the text, or let it be read in windows: "long_text": "window"',
        ),
        (
            "/embed",
            "Long (long_input='error').\nRegister the model with: long_input='window'",
            f"Long.\n{ASK}, who can do this: register the model with: long_input='window'",
        ),
        (
            "/v1/completions",
            "A prompt.\nAsk for less with: max_new_tokens=…",
            'A prompt.\nAsk for less with: "max_tokens"',
        ),
        ("/v1/rerank", "top_k must be 1 or more, or None.", "top_n must be 1 or more, or null."),
        ("/presidio/analyze", "No.\nSay so: labels=['A']", 'No.\nSay so: "entities": ["A"]'),
        ("/predict", "One label.\nUse: activation='sigmoid'", f"One label.\n{ASK}."),
        ("/classify", "One label.\nUse: activation='sigmoid'", f"One label.\n{ASK}."),
        (
            "/v2/models/x/infer",
            "Twice.\nUse: activation='none', top_k=3",
            'Twice.\nUse: "activation": "none", "top_k": 3',
        ),
        ("/v1/classify", "No.\nMark with: runner.assertions(texts, spans)", "No.\nMark with: POST /v1/assertions"),
        ("/v1/classify", "No 'x'.\nList them with: medvllm list", "No 'x'.\nThe models of the server: GET /v1/models"),
        ("/embed", "No 'n@7'.\nShow its versions: medvllm show n", "No 'n@7'.\nIts versions: GET /v2/models/n"),
        ("/v1/run", "No 'x'.\nList them with: medvllm list", "No 'x'.\nThe models of the server: GET /v1/models"),
    ],
)
def test_advice_is_in_the_words_of_the_protocol(path: str, message: str, expected: str) -> None:
    """Also those that are the same in two protocols by name."""
    answer = content_of(problem_of(errors.RequestError(message)), path)
    error = answer.get("error", answer)
    assert (error if isinstance(error, str) else error["message"]) == expected


def test_each_error_has_a_status_that_each_route_documents() -> None:
    """And more than its name to go by."""
    statuses = {problem_of(getattr(errors, name)("…")).status for name in errors.__all__}
    for operation in operations_of(create_app(ModelRegistry()).openapi()):
        if operation.method == "post":
            assert statuses <= {int(status) for status in operation.content["responses"]}, operation.name
    for name in errors.__all__:
        problem = problem_of(getattr(errors, name)("What happened.\nmedvllm list"))
        assert len(problem.message.split("\n")) == 2 and "/" not in problem.message.replace("medvllm list", ""), name


def test_a_command_of_the_servers_user_reads_what_it_would_without_a_server() -> None:
    """It runs on the same machine, with the same catalogue."""
    problem = replace(problem_of(errors.RequestError("Twice.\nRegister it with: task='ner'")), is_local=True)
    assert in_words(problem, None) == problem and json.dumps(content_of(problem, "/v1/run")).count("Ask whoever") == 0


@cache
def _reachable() -> list[tuple[str, str]]:
    return [(place, text) for place, text in messages(*SHOWN) if not ELSEWHERE.match(place)]


def _names_of(path: str) -> dict[str, str]:
    names = protocol_of(path).names
    assert names is not None
    return dict(names)
