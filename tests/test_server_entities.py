"""POST /v1/entities: the library's answers, with offsets as the client counts, and what was read of each text."""

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from starlette.requests import Request

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from medvllm.server.texts import GivenTexts, answer_each
from tests.support import tiny
from tests.support.serving import serving

TEXT = "Dr. Smith 😀 saw Jones\r\nand Müller"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    registry = ModelRegistry()
    folder = tiny.bert_token_classifier(tmp_path_factory.mktemp("m") / "ner", ["O", "B-NAME", "I-NAME"])
    registry.register("ner", "clinical", model_path=str(folder), task="ner")
    registry.register("deberta/ner", "clinical", model_path=str(folder), task="ner", max_length=8, long_input="error")
    return registry


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry) as client:
        yield client


@pytest.mark.parametrize(("unit", "encoding", "width"), [("utf16", "utf-16-le", 2), ("utf8", "utf-8", 1)])
def test_offsets_are_counted_as_the_client_counts(
    client: httpx2.Client, registry: ModelRegistry, unit: str, encoding: str, width: int
) -> None:
    """By UTF-16 code units or by bytes: the client's own slice is the text of the span."""
    [expected] = ModelRunner("ner", registry=registry).entities([TEXT])
    answer = client.post("/v1/entities", json={"model": "ner", "input": TEXT, "offset_unit": unit}).json()
    [record] = answer["data"]
    encoded = TEXT.encode(encoding)
    assert record["length"] * width == len(encoded) and answer["offset_unit"] == unit
    assert [(span["label"], span["text"]) for span in record["entities"]] == [
        (span.label, span.text) for span in expected.spans
    ]
    for span in record["entities"]:
        assert encoded[span["start"] * width : span["end"] * width].decode(encoding) == span["text"]
    assert record["coverage"]["complete"] and record["coverage"]["read"] == [[0, record["length"]]]


def test_a_text_at_fault_has_an_error_in_its_place(client: httpx2.Client) -> None:
    """The others have their answers, and ids are echoed."""
    texts = ["ab", "a long text of more than eight tokens, which the entry forbids to split", "cd"]
    items = [{"id": f"n{number}", "text": text} for number, text in enumerate(texts)]
    answer = client.post("/v1/entities", json={"model": "deberta/ner", "input": items})
    first, bad, last = answer.json()["data"]
    assert answer.status_code == 200 and (first["id"], bad["id"], last["id"]) == ("n0", "n1", "n2")
    assert first["object"] == last["object"] == "entities" and bad["object"] == "error"
    assert bad["error"]["code"] == "input_too_long" and bad["error"]["message"].startswith("Text 2 ")


def test_many_texts_at_fault_are_found_without_reading_the_others_again_and_again(registry: ModelRegistry) -> None:
    """Each has the problem that it has by itself, and each of the others is read twice at most."""
    http = Request({"type": "http", "state": {"about": {"request_id": "1"}}})
    texts = ["ab" if number % 3 else f"{number} of more than eight tokens, which is forbidden" for number in range(60)]
    runner, read = ModelRunner("deberta/ner", registry=registry), 0

    def run(chosen: list[str]) -> Any:
        nonlocal read
        read += next((number for number, text in enumerate(chosen) if text != "ab"), len(chosen))
        return runner.entities(chosen)

    _, answers, problems = answer_each(http, GivenTexts(texts, ServerConfig()), texts, run)
    assert sorted(problems) == list(range(0, 60, 3)) and sorted({*answers, *problems}) == list(range(60))
    assert all(problem.message.startswith(f"Text {index + 1} is longer") for index, problem in problems.items())
    assert all(problem.position == index for index, problem in problems.items())
    assert read <= 2 * len(answers)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "nr", "input": "a"}, 404, "Model 'nr' is not registered. Did you mean: 'ner'"),
        ({"model": "/etc", "input": "a"}, 404, "Model '/etc' is not registered."),
        ({"model": "ner"}, 422, "input: it is missing"),
        ({"model": "ner", "inputs": ["secret-canary"]}, 422, "inputs: there is no such field"),
        ({"model": "ner", "input": ["secret-canary", 3]}, 422, "it must be a text"),
        ({"model": "ner", "input": "secret-canary", "threshold": 2}, 422, "threshold: "),
        ({"model": "ner", "input": "secret-canary", "thresold": 0.5}, 422, "thresold: there is no such field"),
        ({"model": "ner", "input": []}, 422, "input has no text"),
        (
            {"model": "ner", "input": "secret-canary", "labels": ["NAM"]},
            422,
            "has no label 'NAM'. Did you mean: 'NAME'?",
        ),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_a_wrong_request_is_told_what_is_wrong(
    client: httpx2.Client, body: dict[str, Any], status: int, message: str
) -> None:
    """In the shape of OpenAI's errors, without the note, and for good."""
    answer = client.post("/v1/entities", json=body)
    assert answer.status_code == status and message in answer.json()["error"]["message"]
    assert "secret-canary" not in answer.text and answer.headers["x-should-retry"] == "false"
