"""Presidio's two services: what a model finds, and texts in which it is written over."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from tests.support.served import NOTE, registry_of_all_tasks
from tests.support.serving import serving

KEY = "0123456789abcdef"
TEXT = "Dr. Jones saw Müller"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return registry_of_all_tasks(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(registry: ModelRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    file: Path = tmp_path_factory.mktemp("keys") / "study.key"
    file.write_text(KEY)
    other: Path = file.with_name("other.key")
    other.write_text(KEY[::-1])
    config = ServerConfig(loaded=("deid",), redaction_keys={"study": file, "other": other})
    with serving(registry, config) as client:
        yield client


def test_analyze_finds_what_the_library_finds(client: httpx2.Client, registry: ModelRegistry) -> None:
    """In a text, or in a list of texts; of some labels; and what found it."""
    [expected] = ModelRunner("deid", registry=registry).run("deid", [NOTE])
    answer = client.post("/presidio/analyze", json={"text": NOTE, "language": "en"}).json()
    found = [(each["entity_type"], each["start"], each["end"], each["score"]) for each in answer]
    assert found == [(span.label, span.start, span.end, span.score) for span in expected.spans]
    body = {"text": [NOTE, "no"], "language": "en", "entities": ["NAME"], "return_decision_process": True}
    first, second = client.post("/presidio/analyze", json=body).json()
    assert {each["entity_type"] for each in first} == {"NAME"} and second == []
    assert first[0]["analysis_explanation"]["recognizer"] == "deid"
    assert client.get("/presidio/supportedentities", params={"language": "en"}).json() == ["NAME", "DATE"]
    assert "deid" in client.get("/presidio/recognizers").json() and client.get("/presidio/health").is_success


@pytest.mark.parametrize(
    ("query", "more", "status", "message"),
    [
        ("", {"language": "de"}, 422, "is for the languages en, not 'de'"),
        ("", {"entities": ["PERSON"]}, 422, "has no label 'PERSON'"),
        ("", {"ad_hoc_recognizers": [{"name": "zip"}]}, 422, "ad_hoc_recognizers"),
        ("", {"allow_list": ["Müller"]}, 422, "allow_list"),
        ("", {"context": ["doctor"]}, 422, "Leave out: context"),
        ("?model=cut", {}, 422, 'say so: "entities": ["NAME"]'),
        ("", {"score_threshold": 2}, 422, "score_threshold: "),
        ("?model=cut", {}, 422, "may leave names in a text"),
        ("?model=nix", {}, 404, "'nix' is not registered"),
    ],
)
def test_what_the_model_cannot_do_is_refused(
    client: httpx2.Client, query: str, more: dict[str, Any], status: int, message: str
) -> None:
    """Rather than ignored: a missed name looks like a text without names."""
    answer = client.post(f"/presidio/analyze{query}", json={"text": NOTE, **more})
    assert answer.status_code == status and message in answer.json()["error"] and "Jones" not in answer.text


@pytest.mark.parametrize(
    ("anonymizers", "expected"),
    [
        ({}, "Dr. <NAME> saw <DOCTOR>"),
        ({"DEFAULT": {"type": "replace", "new_value": "X"}}, "Dr. X saw X"),
        ({"NAME": {"type": "redact"}}, "Dr.  saw <DOCTOR>"),
        ({"DEFAULT": {"type": "keep"}, "NAME": {"type": "replace"}}, "Dr. <NAME> saw Müller"),
        (
            {"NAME": {"type": "mask", "masking_char": "*", "chars_to_mask": 3, "from_end": True}},
            "Dr. Jo*** saw <DOCTOR>",
        ),
        ({"DEFAULT": {"type": "mask", "masking_char": "#", "chars_to_mask": 99}}, "Dr. ##### saw ######"),
    ],
)
def test_anonymize_writes_over_the_results(client: httpx2.Client, anonymizers: dict[str, Any], expected: str) -> None:
    """With the operators of Presidio; the items have their places in the new text."""
    results = [
        {"start": 14, "end": 20, "score": 0.9, "entity_type": "DOCTOR"},
        {"start": 4, "end": 9, "score": 0.8, "entity_type": "NAME", "recognition_metadata": {}},
    ]
    body = {"text": TEXT, "analyzer_results": results, "anonymizers": anonymizers}
    answer = client.post("/presidio/anonymize", json=body).json()
    assert answer["text"] == expected
    for item in answer["items"]:
        assert expected[item["start"] : item["end"]] == item["text"]


@pytest.mark.parametrize(
    ("anonymizers", "message"),
    [
        (
            {"NAME": {"type": "mask", "masking_char": "*", "chars_to_mask": 4, "fromEnd": True}},
            "Operator 'mask' takes no option 'fromEnd'. Did you mean: 'from_end'?",
        ),
        ({"NAME": {"type": "replace", "newValue": "X"}}, "takes no option 'newValue'. Did you mean: 'new_value'?"),
        ({"NAME": {"type": "encrypt", "key": "study", "kye": 1}}, "takes no option 'kye'"),
        ({"default": {"type": "mask", "masking_char": "*", "chars_to_mask": 4}}, "Did you mean: 'DEFAULT'?"),
        ({"Default": {"type": "replace"}}, "anonymizers has 'Default'."),
        ({"NAME": {"new_value": "X"}}, 'Write them as: "anonymizers": {"DEFAULT": {"type": "replace"}}'),
        ({"NAME": "hash"}, "anonymizers.NAME: it must be an object"),
    ],
)
def test_an_anonymizer_that_is_misspelt_is_refused(
    client: httpx2.Client, anonymizers: dict[str, Any], message: str
) -> None:
    """Rather than taken for another one, which would leave other letters. The advice is in the words of Presidio."""
    found = [{"start": 4, "end": 9, "score": 1, "entity_type": "NAME"}]
    body = {"text": TEXT, "analyzer_results": found, "anonymizers": anonymizers}
    answer = client.post("/presidio/anonymize", json=body)
    assert answer.status_code == 422 and message in answer.json()["error"], answer.text


def test_null_stands_for_what_is_left_out(client: httpx2.Client) -> None:
    """As Presidio's own services take it."""
    for body in ({"text": NOTE}, {"text": [NOTE]}):
        names = ("language", "score_threshold", "entities", "return_decision_process", "ad_hoc_recognizers")
        answer = client.post("/presidio/analyze", json=body | dict.fromkeys((*names, "allow_list", "context")))
        assert answer.is_success and answer.json() == client.post("/presidio/analyze", json=body).json() != []
    found = [{"start": 4, "end": 9, "score": 1, "entity_type": "NAME"}]
    whole: dict[str, Any] = {"text": TEXT, "analyzer_results": found}
    replace = {"NAME": {"type": "replace", "new_value": None}}
    for more in (
        {},
        {"anonymizers": None},
        {"anonymizers": replace},
        {"analyzer_results": [found[0] | {"score": None}]},
    ):
        answer = client.post("/presidio/anonymize", json=whole | more)
        assert answer.json()["text"] == "Dr. <NAME> saw Müller"


def test_results_that_overlap_leave_nothing_readable(client: httpx2.Client) -> None:
    """They are written over as one, with the label of the likeliest."""
    results = [
        {"start": 4, "end": 7, "score": 0.5, "entity_type": "A"},
        {"start": 6, "end": 13, "score": 0.9, "entity_type": "B"},
        {"start": 5, "end": 9, "score": 0.1, "entity_type": "C"},
    ]
    answer = client.post("/presidio/anonymize", json={"text": TEXT, "analyzer_results": results}).json()
    assert answer["text"] == "Dr. <B> Müller"


def test_a_hash_has_a_key_of_the_server(client: httpx2.Client, registry: ModelRegistry) -> None:
    """A hash without one could be reversed with a list of names. Keys and salts are never sent."""
    body: dict[str, Any] = {
        "text": TEXT,
        "analyzer_results": [{"start": 4, "end": 9, "score": 1, "entity_type": "NAME"}],
    }
    by_name = client.post(
        "/presidio/anonymize", json=body | {"anonymizers": {"NAME": {"type": "hash", "key": "study"}}}
    )
    [item] = by_name.json()["items"]
    operators = {"NAME": {"type": "hash", "key": KEY, "length": 64}}
    [expected] = ModelRunner("deid", registry=registry).redact(["Jones"], operators=operators)
    assert item["text"] == expected.text and len(item["text"]) == 64
    for bad in (
        {"type": "hash"},
        {"type": "hash", "hash_type": "md5", "key": "study"},
        {"type": "encrypt", "key": "secret-canary-key"},
        {"type": "encrypt"},
        {"type": "encrypt", "key": "study", "salt": "secret-canary"},
    ):
        answer = client.post("/presidio/anonymize", json=body | {"anonymizers": {"NAME": bad}})
        assert answer.status_code == 422 and "secret-canary" not in answer.text
    answer = client.post(
        "/presidio/anonymize", json=body | {"anonymizers": {"NAME": {"type": "hash", "salt": "s" * 16}}}
    )
    assert answer.status_code == 422


@pytest.mark.parametrize("place", [(4, 900), (9, 4), (4, 4), (-1, 4)])
def test_a_result_that_is_not_in_the_text_is_refused(client: httpx2.Client, place: tuple[int, int]) -> None:
    """Rather than ignored."""
    results = [{"start": place[0], "end": place[1], "score": 1, "entity_type": "NAME"}]
    answer = client.post("/presidio/anonymize", json={"text": TEXT, "analyzer_results": results})
    assert answer.status_code == 422 and "analyzer_results.0" in answer.json()["error"]


def test_what_was_encrypted_can_be_read_back(client: httpx2.Client) -> None:
    """With the key of the server that wrote it. The items have their places in each text; what was kept stays."""
    results = [
        {"start": 14, "end": 20, "score": 0.9, "entity_type": "DOCTOR"},
        {"start": 4, "end": 9, "score": 0.8, "entity_type": "NAME"},
    ]
    encrypt = {"NAME": {"type": "encrypt", "key": "study"}, "DEFAULT": {"type": "replace"}}
    body = {"text": TEXT, "analyzer_results": results, "anonymizers": encrypt}
    hidden, again = (client.post("/presidio/anonymize", json=body).json() for _ in range(2))
    assert "Jones" not in hidden["text"] and hidden["items"][0]["operator"] == "encrypt" and hidden != again
    decrypt = {"NAME": {"type": "decrypt", "key": "study"}, "DEFAULT": {"type": "deanonymize_keep"}}
    asked = {"text": hidden["text"], "anonymizer_results": hidden["items"], "deanonymizers": decrypt}
    shown = client.post("/presidio/deanonymize", json=asked).json()
    assert shown["text"] == "Dr. Jones saw <DOCTOR>"
    assert [(each["operator"], each["text"]) for each in shown["items"]] == [
        ("decrypt", "Jones"),
        ("deanonymize_keep", "<DOCTOR>"),
    ]
    for item in shown["items"]:
        assert shown["text"][item["start"] : item["end"]] == item["text"]
    other = client.post(
        "/presidio/deanonymize", json=asked | {"deanonymizers": {"DEFAULT": {"type": "decrypt", "key": "other"}}}
    )
    assert other.json()["error"].startswith("The text from 4 to ") and hidden["items"][0]["text"] not in other.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"deanonymizers": {"DEFAULT": {"type": "hash"}}}, "Only what encrypt wrote can be read back"),
        ({"deanonymizers": {"DEFAULT": {"type": "decrypt", "key": "secret-canary"}}}, "no key of that name"),
        ({"deanonymizers": {"DEFAULT": {"type": "decrypt"}}}, "'decrypt' needs a key"),
        ({"deanonymizers": {"DEFAULT": {"type": "deanonymize_keep", "key": "study"}}}, "takes no option 'key'"),
        ({"deanonymizers": {"DATE": {"type": "deanonymize_keep"}}}, "says nothing of 'NAME'"),
        ({"anonymizer_results": [{"start": 4, "end": 99, "entity_type": "NAME"}]}, "anonymizer_results.0 is not in"),
        ({"anonymizer_results": [{"start": 4, "end": 9, "entity_type": "NAME"}] * 2}, "overlap"),
        ({}, "was not written by encrypt"),
    ],
)
def test_what_cannot_be_read_back_is_refused(client: httpx2.Client, change: dict[str, Any], message: str) -> None:
    """Rather than left as it is: the caller would take it for the text of the note."""
    body = {
        "text": TEXT,
        "anonymizer_results": [{"start": 4, "end": 9, "entity_type": "NAME"}],
        "deanonymizers": {"DEFAULT": {"type": "decrypt", "key": "study"}},
    }
    answer = client.post("/presidio/deanonymize", json=body | change)
    assert answer.status_code == 422 and message in answer.json()["error"]
    assert "Jones" not in answer.text and "secret-canary" not in answer.text


@pytest.mark.parametrize(
    "operator",
    [{"type": "keep"}, {"type": "mask", "masking_char": "*", "chars_to_mask": 4, "from_end": True}],
    ids=["keep", "mask"],
)
def test_results_that_overlap_leave_no_letter_of_either(client: httpx2.Client, operator: dict[str, Any]) -> None:
    """What one of them would leave may be what the other one is to write over."""
    places = {"NAME": (8, 20, 0.8), "ID": (14, 27, 0.9)}
    results = [
        {"entity_type": label, "start": start, "end": end, "score": score}
        for label, (start, end, score) in places.items()
    ]
    body = {"text": "Seen by Peter Miller MRN-77.", "analyzer_results": results}
    for anonymizers in ({"NAME": {"type": "replace"}, "ID": operator}, {"NAME": operator, "ID": {"type": "replace"}}):
        answer = client.post("/presidio/anonymize", json=body | {"anonymizers": anonymizers}).json()
        assert answer["text"] == "Seen by <ID>."
    alone = client.post("/presidio/anonymize", json=body | {"anonymizers": {"DEFAULT": operator}}).json()["text"]
    assert alone == (body["text"] if operator["type"] == "keep" else "Seen by <ID>.")
