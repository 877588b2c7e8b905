"""The medical tasks over HTTP: classify, assertions and fill-mask, long texts, versions, and how long a model stays."""

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from tests.support.served import LABELS, registry_of_all_tasks
from tests.support.serving import serving

LONG = "the patient was given aspirin for fever and chest pain"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return registry_of_all_tasks(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry) as client:
        yield client


def test_classify_answers_each_text_or_says_what_is_wrong_with_it(
    client: httpx2.Client, registry: ModelRegistry
) -> None:
    """As the library does; a text that is too long has an error in its place."""
    items = [{"id": "a", "text": LONG}, {"id": "b", "text": "a " * 100}]
    answer = client.post("/v1/classify", json={"model": "cls", "input": items, "top_k": 2}).json()
    first, bad = answer["data"]
    [expected] = ModelRunner("cls", registry=registry).classify([LONG], top_k=2)
    assert first["labels"] == [vars(label) for label in expected] and first["coverage"]["read"] == [[0, len(LONG)]]
    assert (bad["id"], bad["error"]["code"]) == ("b", "input_too_long") and answer["version"] == "1"


@pytest.mark.parametrize("given", [["no fever", LONG], {"id": "p", "text": "no fever", "text_pair": LONG}])
def test_classify_takes_pairs(client: httpx2.Client, registry: ModelRegistry, given: Any) -> None:
    """As lists of two texts, or with an id. The length is that of the second text."""
    [record] = client.post("/v1/classify", json={"model": "cls", "input": [given]}).json()["data"]
    [expected] = ModelRunner("cls", registry=registry).classify([("no fever", LONG)])
    assert record["labels"] == [vars(label) for label in expected] and record["length"] == len(LONG)


def test_assertions_take_the_spans_of_entities(client: httpx2.Client, registry: ModelRegistry) -> None:
    """In the client's unit, with the other keys of an entity; the answer has the same offsets and ids."""
    text = "😀 no fever, pain"
    spans = [{"id": 7, "start": 6, "end": 11, "label": "SIGN", "score": 0.5, "text": "fever"}, {"start": 13, "end": 17}]
    body = {"model": "assert", "input": [{"id": "n", "text": text, "spans": spans}], "offset_unit": "utf16"}
    [record] = client.post("/v1/assertions", json=body).json()["data"]
    [expected] = ModelRunner("assert", registry=registry).assertions([text], [[(5, 10), (12, 16)]])
    fever, pain = record["assertions"]
    assert (fever["id"], fever["start"], fever["end"], fever["text"]) == (7, 6, 11, "fever") and pain["text"] == "pain"
    assert [each["scores"] for each in record["assertions"]] == [each.scores for each in expected]
    assert set(fever["scores"]) == set(LABELS) and record["length"] == 17


@pytest.mark.parametrize("span", [(1, 11), (3, 900), (6, 6), (-1, 4), (True, 4), ("6", 11)])
def test_a_span_that_makes_no_sense_is_refused(client: httpx2.Client, span: tuple[Any, Any]) -> None:
    """Inside a character, behind the text, empty, or no number."""
    item = {"text": "😀 no fever", "spans": [{"start": span[0], "end": span[1]}]}
    answer = client.post("/v1/assertions", json={"model": "assert", "input": [item], "offset_unit": "utf16"})
    assert answer.status_code == 422 and "fever" not in answer.text


def test_a_wrong_span_is_an_error_of_its_text(client: httpx2.Client, registry: ModelRegistry) -> None:
    """In its place, with its id. The other texts are judged."""
    good, bad = {"start": 3, "end": 8}, {"start": 3, "end": 80}
    items = [{"id": f"n{at}", "text": "no fever", "spans": [good, span]} for at, span in enumerate([bad, good, bad])]
    first, second, third = client.post("/v1/assertions", json={"model": "assert", "input": items}).json()["data"]
    [expected] = ModelRunner("assert", registry=registry).assertions(["no fever"], [[(3, 8), (3, 8)]])
    assert [each["scores"] for each in second["assertions"]] == [each.scores for each in expected]
    for record, index in ((first, 0), (third, 2)):
        assert (record["index"], record["id"], record["error"]["code"]) == (index, f"n{index}", "invalid_span")
        assert f"input.{index}.spans.1 " in record["error"]["message"]


def test_fill_mask_fills_each_gap(client: httpx2.Client, registry: ModelRegistry) -> None:
    """A text without a gap has an error in its place."""
    text = "the [MASK] denies [MASK]"
    answer = client.post("/v1/fill-mask", json={"model": "mlm", "input": [text, LONG], "top_k": 2}).json()
    [expected] = ModelRunner("mlm", registry=registry).fill_mask([text], top_k=2)
    assert answer["data"][0]["gaps"] == [[vars(fill) for fill in gap] for gap in expected]
    vocabulary = registry.load_tokenizer("mlm").get_vocab()
    assert all(vocabulary[fill["token"]] == fill["id"] for gap in answer["data"][0]["gaps"] for fill in gap)
    assert "has no gap" in answer["data"][1]["error"]["message"]


def test_an_option_at_fault_is_no_text_at_fault(client: httpx2.Client) -> None:
    """A target that the model does not know is an error of the request, and of none of its texts."""
    body = {"model": "mlm", "input": ["the [MASK]"] * 3, "targets": ["the", "qqqqqq"]}
    answer = client.post("/v1/fill-mask", json=body)
    assert answer.status_code == 422 and answer.json()["error"]["message"].startswith("Target 2 ")
    assert answer.json()["error"]["param"] == "targets"


@pytest.mark.parametrize(
    ("route", "model", "more"),
    [
        ("entities", "cut", {"long_text": "error"}),
        ("classify", "cls", {}),
        ("fill-mask", "mlm", {}),
        ("assertions", "assert", {}),
    ],
)
def test_the_only_text_at_fault_has_its_id(client: httpx2.Client, route: str, model: str, more: dict[str, Any]) -> None:
    """As one of several has."""
    item: dict[str, Any] = {"id": "n1", "text": "a " * 100}
    if route == "assertions":
        item["spans"] = [{"start": 0, "end": 900}]
    answer = client.post(f"/v1/{route}", json={"model": model, "input": [item], **more})
    error = answer.json()["error"]
    assert answer.status_code == 422 and (error["index"], error["id"]) == (0, "n1"), error


@pytest.mark.parametrize(("long_text", "complete"), [(None, False), ("truncate", False), ("window", True)])
def test_the_client_may_say_what_becomes_of_a_long_text(
    client: httpx2.Client, long_text: str | None, complete: bool
) -> None:
    """Read in windows or cut, and the coverage says so; the entry of this model cuts."""
    [record] = client.post("/v1/entities", json={"model": "cut", "input": LONG, "long_text": long_text}).json()["data"]
    coverage = record["coverage"]
    assert coverage["complete"] == complete == (not coverage["truncated"]) == (coverage["windows"] > 1)
    assert (coverage["read"] == [[0, len(LONG)]]) == complete


def test_the_client_may_have_a_long_text_refused(client: httpx2.Client) -> None:
    """Also if the entry cuts it."""
    answer = client.post("/v1/entities", json={"model": "cut", "input": LONG, "long_text": "error"})
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "input_too_long"


def test_an_answer_says_which_version_answered(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Also if the name in the request is an alias, or moves."""
    folder = registry.get_metadata("cls").location
    for number in (1, 2):
        facts: Any = {"model_path": folder, "task": "classify", "description": f"version {number}"}
        registry.register("triage", "clinical", **facts, persist=True, replace=number > 1)
    for name, version in (("triage", "2"), ("triage@1", "1"), ("triage@2", "2")):
        assert client.post("/v1/classify", json={"model": name, "input": "a"}).json()["version"] == version


def test_a_model_stays_as_long_as_the_client_says(client: httpx2.Client, registry: ModelRegistry) -> None:
    """0: until the answer is there."""
    body = {"model": "mlm", "input": "the [MASK]"}
    assert client.post("/v1/fill-mask", json=body | {"keep_alive": "10m"}).status_code == 200
    assert [model.keep_alive for model in registry.loaded_models() if model.name == "mlm"] == [600]
    assert client.post("/v1/fill-mask", json=body | {"keep_alive": 0}).status_code == 200
    assert not [model for model in registry.loaded_models() if model.name == "mlm"]
    answer = client.post("/v1/fill-mask", json=body | {"keep_alive": "soon"})
    assert answer.status_code == 422 and answer.json()["error"]["param"] == "keep_alive"


@pytest.mark.parametrize("route", ["redact", "classify", "assertions", "fill-mask", "entities"])
def test_a_wrong_request_says_what_is_wrong(client: httpx2.Client, route: str) -> None:
    """A wrong key in one of several forms of a text is named by its own place, and the note is not repeated."""
    text = {"id": "a", "txt": "secret-canary"}
    answer = client.post(f"/v1/{route}", json={"model": "mlm", "input": [text]})
    assert answer.status_code == 422 and answer.json()["error"]["param"] == "input.0.txt"
    assert answer.json()["error"]["message"].startswith("input.0.txt: there is no such field.")
    answer = client.post(f"/v1/{route}", json={"model": "nix", "input": [{"id": "a", "text": "b", "spans": []}]})
    assert "secret-canary" not in answer.text and answer.status_code in (404, 422)
