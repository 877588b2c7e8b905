"""The Open Inference Protocol: what tritonclient gets, and what raw requests are told."""

import gzip
import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from tests.support import cross_encoders, tiny
from tests.support.serving import serving
from tests.support.tool_environment import run_client

TEXTS = ["Dr. Smith 😀 saw Jones", "", "fever " * 400]
LENGTH = "Inference-Header-Content-Length"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    registry, folder = ModelRegistry(), tmp_path_factory.mktemp("m")
    tagger = tiny.bert_token_classifier(folder / "ner", ["O", "B-NAME", "I-NAME"])
    registry.register("ner", "clinical", model_path=str(tagger), task="ner")
    registry.register("short", "clinical", model_path=str(tagger), task="ner", max_length=8, long_input="error")
    encoder = tiny.bert_encoder(folder / "embedder")
    registry.register("org/embedder", "generic", model_path=str(encoder), task="embed", pooling="mean")
    classifier = tiny.bert_sequence_classifier(folder / "classifier", config=tiny.labelled(["NO", "MAYBE", "YES"]))
    registry.register("classifier", "generic", model_path=str(classifier), task="classify")
    registry.register("absent", "generic", model_path="nobody/has-this", task="embed")
    return registry


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry) as client:
        yield client


def test_tritonclient_gets_what_the_library_answers(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Binary, JSON and compressed alike; errors are texts with a status, and none has a note in it."""
    with serving(registry, ServerConfig(max_calls=1, max_waiting=-1)) as full:
        found = run_client("triton.py", *(f"127.0.0.1:{each.base_url.port}" for each in (client, full)))
    assert found["live"] and found["ready"] and found["model_ready"] and found["version_ready"]
    assert not found["wrong_model_ready"] and found["server"]["name"] == "medvllm"
    assert found["metadata"]["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    assert [[each["state"] for each in found[when]] for when in ("loaded", "unloaded")] == [["READY"], ["UNAVAILABLE"]]
    expected = ModelRunner("org/embedder", registry=registry).embed(TEXTS).vectors
    for vectors in found["vectors"]:
        assert np.array_equal(np.array(vectors, np.float32), expected)
    spans = [each["spans"] for each in ModelRunner("ner", registry=registry).entities(TEXTS).to_dict()]
    assert found["entities"] == json.loads(json.dumps(spans)) and found["outputs"] == ["entities"]
    assert found["ids"] == ["r1"] * 7
    expected_errors = {
        "wrong model": ("404", "Model 'nr' is not registered."),
        "full queue": ("429", "Try again later"),
        "final refusal": ("422", "Text 1 "),
        "wrong type": ("400", "Input 'text' must be BYTES, texts in UTF-8, not 'INT32'."),
        "wrong output": ("400", "The model has the outputs 'entities', 'coverage'"),
        "wrong option": ("422", "takes no argument 'thresold'. Did you mean: 'threshold'?"),
        "config": ("404", "The server has the extensions"),
        "statistics": ("404", "The server has the extensions"),
        "load": ("404", "Model 'nr' is not registered."),
    }
    assert found["errors"].keys() == expected_errors.keys()
    for what, (status, message) in expected_errors.items():
        assert found["errors"][what][0] == status and message in found["errors"][what][1], what
    assert "secret-canary" not in json.dumps(found["errors"])


def _infer(client: httpx2.Client, model: str, *inputs: dict[str, Any], **rest: Any) -> httpx2.Response:
    return client.post(f"/v2/models/{model}/infer", json={"inputs": inputs, **rest})


def _text(*texts: str, **changes: Any) -> dict[str, Any]:
    return {"name": "text", "shape": [len(texts)], "datatype": "BYTES", "data": list(texts), **changes}


def test_labels_and_ranks_are_tensors(
    client: httpx2.Client, registry: ModelRegistry, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A row for each text: the likeliest label first, and ranks in the order of the request."""
    answer = _infer(client, "classifier", _text("fever", "no fever")).json()
    label, score, coverage = answer["outputs"]
    expected = ModelRunner("classifier", registry=registry).classify(["fever", "no fever"])
    assert label["shape"] == score["shape"] == [2, len(expected[0])] and coverage["shape"] == [2]
    assert label["data"] == [each.label for found in expected for each in found]
    assert score["data"] == pytest.approx([each.score for found in expected for each in found])
    folder = cross_encoders.write(tmp_path_factory.mktemp("c") / "m")
    registry.register("ranker", "generic", model_path=str(folder), task="rerank", replace=True)
    query = {"name": "query", "shape": [1], "datatype": "BYTES", "data": ["aspirin"]}
    documents = ["75 mg daily", "chest pain", "aspirin dose"]
    [scores, _] = _infer(client, "ranker", _text(*documents), query).json()["outputs"]
    ranked = ModelRunner("ranker", registry=registry).rerank("aspirin", documents)
    assert scores["data"] == pytest.approx([each.score for each in sorted(ranked, key=lambda each: each.index)])
    best = _infer(client, "ranker", _text(*documents), query, parameters={"top_k": 1})  # of which text it would be
    assert best.status_code == 400 and "top_k" in best.json()["error"]


def test_a_ranker_that_names_its_inputs_takes_texts_and_a_query(registry: ModelRegistry, tmp_path: Path) -> None:
    """Its pairs are those of the query with each text. As many texts as the server takes count without the query."""
    folder = cross_encoders.write(tmp_path / "m")
    registry.register(
        "pairs", "generic", model_path=str(folder), task="rerank", inputs=["query", "document"], replace=True
    )
    query = {"name": "query", "shape": [1], "datatype": "BYTES", "data": ["aspirin"]}
    with serving(registry, ServerConfig(max_texts=2)) as client:
        assert [each["shape"] for each in client.get("/v2/models/pairs").json()["inputs"]] == [[-1], [1]]
        [scores, _] = _infer(client, "pairs", _text("75 mg daily", "chest pain"), query).json()["outputs"]
        assert scores["shape"] == [2]
        assert _infer(client, "pairs", _text("a", "b", "c"), query).status_code == 413


def test_no_text_is_cut_if_the_answer_cannot_say_so(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Whoever does not ask for the coverage gets an error, unless the request asks to cut texts."""
    folder = registry.get_metadata("org/embedder").location
    registry.register(
        "cut", "generic", model_path=folder, task="embed", pooling="mean", max_length=8, long_input="truncate"
    )
    long, only = _text("fever " * 50), {"outputs": [{"name": "embedding"}]}
    whole = _infer(client, "cut", long).json()["outputs"]
    assert [each["name"] for each in whole] == ["embedding", "coverage"] and '"truncated": true' in str(
        whole[1]["data"]
    )
    refused = _infer(client, "cut", long, **only)
    assert refused.status_code == 422 and "longer than the 8 tokens" in refused.json()["error"]
    assert _infer(client, "cut", _text("fever"), **only).status_code == 200
    asked = _infer(client, "cut", long, parameters={"long_input": "truncate"}, **only)
    assert asked.json()["outputs"][0]["data"] == whole[0]["data"]


def test_the_answer_of_a_version_names_the_model_and_the_version(client: httpx2.Client) -> None:
    """Each in its own field."""
    body = {"inputs": [_text("fever")]}
    for path in ("ner", "ner/versions/1", "ner@1"):
        answer = client.post(f"/v2/models/{path}/infer", json=body).json()
        assert (answer["model_name"], answer["model_version"]) == ("ner", "1")


def _raw(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


BINARY = {"name": "text", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}}


@pytest.mark.parametrize(
    ("tensor", "raw", "message"),
    [
        ({}, _raw(b"ab"), None),
        ({"parameters": {"binary_data_size": 7}}, _raw(b"ab"), "binary_data_size that the body does not have"),
        ({"parameters": {"binary_data_size": 5}}, _raw(b"ab"), "end within element 0"),
        ({}, _raw(b"ab") + b"x", "1 bytes more"),
        ({"shape": [2]}, _raw(b"ab"), "has shape [2] and 1 elements"),
        ({"parameters": {"binary_data_size": 5}}, _raw(b"\xff"), "Element 0 of input 'text' is not UTF-8"),
        ({"parameters": {"binary_data_size": True}}, _raw(b"ab"), "binary_data_size that the body does not have"),
        ({"parameters": {"binary_data_size": -1}}, _raw(b"ab"), "binary_data_size that the body does not have"),
        ({"data": ["ab"]}, _raw(b"ab"), "either data or the parameter binary_data_size"),
        ({"parameters": {}}, b"", "either data or the parameter binary_data_size"),
        ({"parameters": {"binary_data_size": 6, "shared_memory_region": "r"}}, _raw(b"ab"), "shared_memory_region"),
        ({"shape": [-1]}, _raw(b"ab"), "inputs.0.shape.0: "),
        ({"name": "texts"}, _raw(b"ab"), "The model has the inputs 'text'"),
    ],
)
@pytest.mark.parametrize("zipped", [False, True])
def test_the_parts_of_a_binary_request_must_fit_together(
    client: httpx2.Client, tensor: dict[str, Any], raw: bytes, message: str | None, zipped: bool
) -> None:
    """The header counts bytes after decompression."""
    head = json.dumps({"inputs": [BINARY | tensor]}).encode()
    body = gzip.compress(head + raw) if zipped else head + raw
    headers = {LENGTH: str(len(head))} | ({"Content-Encoding": "gzip"} if zipped else {})
    answer = client.post("/v2/models/ner/infer", content=body, headers=headers)
    if message is None:
        assert answer.status_code == 200, answer.text
        return
    error = answer.json()
    assert answer.status_code in (400, 422) and list(error) == ["error"] and message in error["error"]


@pytest.mark.parametrize(("encoding", "format_"), [("gzip", 31), ("deflate", 15)])
def test_a_compressed_body_is_one_stream_of_bounded_size(client: httpx2.Client, encoding: str, format_: int) -> None:
    """It is never decompressed further than a body may be long."""

    def compress(data: bytes) -> bytes:
        stream = zlib.compressobj(9, zlib.DEFLATED, format_)
        return stream.compress(data) + stream.flush()

    good = compress(json.dumps({"inputs": [_text("ab")]}).encode())
    for body, status, message in (
        (good, 200, None),
        (good + b"x", 400, f"one complete {encoding} stream"),
        (good[:-1], 400, f"one complete {encoding} stream"),
        (b"{}", 400, f"is not {encoding}"),
        (compress(b" " * (ServerConfig().max_body_bytes + 1)), 413, "also after decompression"),
    ):
        answer = client.post("/v2/models/ner/infer", content=body, headers={"Content-Encoding": encoding})
        assert answer.status_code == status and (message or "outputs") in answer.text
    other = client.post("/v2/models/ner/infer", content=good, headers={"Content-Encoding": "br"})
    assert other.status_code == 415 and "gzip or deflate" in other.json()["error"]


@pytest.mark.parametrize("length", ["99999", "-1", "1_0", "٣", "", "1e1"])
def test_a_wrong_length_of_the_header_is_refused(client: httpx2.Client, length: str) -> None:
    headers = [(b"Inference-Header-Content-Length", length.encode())]
    answer = client.post("/v2/models/ner/infer", content=b'{"inputs": []}', headers=headers)
    assert answer.status_code == 400 and LENGTH in answer.json()["error"]


@pytest.mark.parametrize(
    ("inputs", "rest", "status", "message"),
    [
        ([_text("a", "b", shape=[2, 1])], {}, 200, ""),
        ([_text("a", "b", shape=[2, 1], data=[["a"], ["b"]])], {}, 200, ""),
        ([_text("a", "b", shape=[2, 1], data=[["a", "b"]])], {}, 400, "do not have its shape"),
        ([_text("a", "b", shape=[1, 2])], {}, 400, "needs the shape [-1] or [-1, 1]"),
        ([_text("a"), _text("b")], {}, 400, "same name"),
        ([_text("secret-canary", data=["secret-canary", 3], shape=[2])], {}, 400, "not a text"),
        ([], {}, 422, "inputs: "),
        ([_text()], {}, 422, "no text"),
        ([_text("a")], {"parameters": {"sequence_id": 4}}, 400, "sequence_id"),
        ([_text("a")], {"parameters": {"task": "embed"}}, 400, "task"),
        ([_text("a")], {"parameters": {"timeout": 0.5}}, 400, "microseconds"),
        ([_text("a")], {"parameters": {"threshold": 0.5, "priority": 1}}, 200, ""),
        ([_text("a")], {"outputs": [{"name": "entities", "parameters": {"classification": 3}}]}, 400, "classification"),
    ],
)
def test_a_request_in_json_is_answered_or_told_what_is_wrong(
    client: httpx2.Client, inputs: list[dict[str, Any]], rest: dict[str, Any], status: int, message: str
) -> None:
    answer = _infer(client, "ner", *inputs, **rest)
    assert answer.status_code == status and message in answer.json().get("error", ""), answer.text
    assert "secret-canary" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/models/ner@1", 200),
        ("GET", "/v2/models/ner/versions/1", 200),
        ("GET", "/v2/models/ner/versions/7", 404),
        ("GET", "/v2/models/absent/ready", 404),
        ("GET", "/v2/models/absent", 200),
        ("GET", "/v2/nothing", 404),
        ("POST", "/v2/models/nr/infer", 422),
        ("PUT", "/v2/models/ner/infer", 405),
        ("POST", "/v2/repository/models/ner/load", 200),
        ("POST", "/v2/repository/models/ner/unload", 200),
        ("POST", "/v2/repository/models/nr/unload", 404),
    ],
)
def test_each_route_answers_in_the_protocols_shape(client: httpx2.Client, method: str, path: str, status: int) -> None:
    """Every error is a text under "error"."""
    answer = client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == status, answer.text
    assert status == 200 or list(answer.json()) == ["error"]
    assert status == 200 or isinstance(answer.json()["error"], str)
