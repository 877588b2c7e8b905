"""POST /v1/redact: whole texts or none, offsets as the client counts, keys that stay on the server."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from tests.support.served import NOTE, registry_of_all_tasks
from tests.support.serving import serving

LONG = "the patient was given aspirin for fever and chest pain"
KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return registry_of_all_tasks(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(registry: ModelRegistry, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    file = tmp_path_factory.mktemp("keys") / "study.key"
    file.write_text(KEY)
    with serving(registry, ServerConfig(redaction_keys={"study": file})) as client:
        yield client


@pytest.mark.parametrize(("unit", "encoding", "width"), [("utf16", "utf-16-le", 2), ("utf8", "utf-8", 1)])
def test_items_have_their_places_in_both_texts(client: httpx2.Client, unit: str, encoding: str, width: int) -> None:
    """In the client's unit; what was written over is repeated only if the client asks for it."""
    body = {"model": "deid", "input": [{"id": "n", "text": NOTE}], "offset_unit": unit}
    [record] = client.post("/v1/redact", json=body | {"include_text": True}).json()["data"]
    source, new = NOTE.encode(encoding), record["text"].encode(encoding)
    assert record["id"] == "n" and record["length"] * width == len(new)
    assert record["source_length"] * width == len(source) and record["coverage"]["complete"]
    for item in record["items"]:
        old = source[item["source_start"] * width : item["source_end"] * width].decode(encoding)
        assert old == item["source_text"]
        assert new[item["start"] * width : item["end"] * width].decode(encoding) == f"[{item['label']}]"
    assert {"Müller", "Jones", "03/14/2019"} <= {item["source_text"] for item in record["items"]}
    assert not any(name in client.post("/v1/redact", json=body).text for name in ("Müller", "Jones", "2019"))


def test_one_text_that_cannot_be_redacted_fails_the_request(client: httpx2.Client) -> None:
    """A 422 names it by index and id, and no text of the batch comes back."""
    items = [{"id": "a", "text": "Jones"}, {"id": "b", "text": LONG}]
    answer = client.post("/v1/redact", json={"model": "cut", "input": items, "labels": ["NAME"]})
    error = answer.json()["error"]
    assert answer.status_code == 422 and "data" not in answer.json() and answer.headers["x-should-retry"] == "false"
    assert (error["code"], error["index"], error["id"]) == ("input_too_long", 1, "b")
    assert "Jones" not in answer.text and "aspirin" not in answer.text


def test_a_key_is_named_and_never_sent(client: httpx2.Client, registry: ModelRegistry) -> None:
    """The hash is the library's with the server's key. Another word is refused, and not repeated."""
    runner = ModelRunner("deid", registry=registry)
    [expected] = runner.redact([NOTE], operators={"NAME": {"type": "hash", "key": KEY}})
    body: dict[str, Any] = {"model": "deid", "input": NOTE, "operators": {"NAME": {"type": "hash", "key": "study"}}}
    assert client.post("/v1/redact", json=body).json()["data"][0]["text"] == expected.text
    body["operators"] = {"NAME": {"type": "hash", "key": "secret-canary-0123456789"}}
    answer = client.post("/v1/redact", json=body)
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "unknown_redaction_key"
    assert "secret-canary" not in answer.text and "study" in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "operators.NAME.key"


@pytest.mark.parametrize(
    ("operator", "code"),
    [
        ({"type": "hash"}, "no_redaction_key"),
        ({"type": "surrogate", "vault": "/tmp/vault"}, "vault_not_accepted"),
        ({"type": "mask", "vault": "/tmp/vault"}, "vault_not_accepted"),
        ({"type": "shift_dates", "key": KEY}, "unknown_redaction_key"),
        ({"type": "shift_dates", "key": 5}, "unknown_redaction_key"),
        ({"type": "encrypt"}, "invalid_request"),
        ({"new_value": "x"}, "invalid_request"),
    ],
)
def test_an_operator_that_cannot_be_used_is_refused(client: httpx2.Client, operator: dict[str, Any], code: str) -> None:
    """Before anything is redacted, and without a file on the server."""
    answer = client.post("/v1/redact", json={"model": "deid", "input": NOTE, "operators": {"DEFAULT": operator}})
    assert answer.status_code == 422 and answer.json()["error"]["code"] == code
    assert not Path("/tmp/vault").exists() and "Müller" not in answer.text


@pytest.mark.parametrize(
    "operator",
    [{"type": "surrogate", "key": None}, {"type": "shift_dates", "key": None}, {"type": "mask", "masking_char": None}],
)
def test_null_stands_for_an_option_that_is_left_out(client: httpx2.Client, operator: dict[str, Any]) -> None:
    """Of an operator, and of a request."""
    operators = {"DEFAULT": operator}
    body = {"model": "deid", "input": NOTE, "operators": operators, "offset_unit": None, "threshold": None}
    assert client.post("/v1/redact", json=body).is_success


def test_an_operator_is_an_object(client: httpx2.Client) -> None:
    """Its label is named, whatever its case."""
    answer = client.post("/v1/redact", json={"model": "deid", "input": NOTE, "operators": {"NAME": "hash"}})
    assert answer.json()["error"]["message"].startswith("operators.NAME: it must be an object.")


def test_dates_of_a_document_keep_their_distance(client: httpx2.Client) -> None:
    """Texts with one name of a document have their dates shifted by the same number of days."""
    body = {"model": "deid", "input": [NOTE, NOTE], "documents": ["p1", "p1"]}
    operators = {"DATE": {"type": "shift_dates", "key": "study"}}
    first, second = client.post("/v1/redact", json=body | {"operators": operators}).json()["data"]
    assert first["text"] == second["text"] != NOTE


def test_a_model_that_is_no_de_identifier_is_refused(client: httpx2.Client) -> None:
    """Unless the labels to redact are named."""
    answer = client.post("/v1/redact", json={"model": "cut", "input": "Jones"})
    assert answer.status_code == 422 and "may leave names in a text" in answer.json()["error"]["message"]
    assert client.post("/v1/redact", json={"model": "nix", "input": "Jones"}).status_code == 404


def test_a_receipt_has_no_path_of_the_server(client: httpx2.Client, registry: ModelRegistry) -> None:
    """It says which bytes answered by their digests."""
    answer = client.post("/v1/redact", json={"model": "deid", "input": NOTE, "receipt": True})
    receipt = answer.json()["receipt"]
    folder = registry.get_metadata("deid").location
    assert folder not in answer.text and str(Path(folder).parent) not in answer.text
    assert receipt["snapshot"] == receipt["declared"]["model_path"]["value"] == "a folder of the server"
    with registry.lease("deid") as lease:
        assert receipt["verified"] == json.loads(json.dumps(lease.receipt.to_dict()["verified"]))
