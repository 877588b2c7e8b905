"""Unpatched clients of others against a real server: Cohere's, and Hugging Face's InferenceClient."""

from collections.abc import Iterator
from typing import Any

import httpx2
import numpy as np
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from tests.support.cross_encoders import DOCUMENTS, QUERY
from tests.support.served import NOTE, registry_of_all_tasks
from tests.support.serving import serving
from tests.support.tool_environment import run_client


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return registry_of_all_tasks(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry) as client:
        yield client


@pytest.fixture(scope="module")
def full(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    """A server that has no room for a call."""
    with serving(registry, ServerConfig(max_calls=1, max_waiting=-1)) as client:
        yield client


def test_coheres_clients(client: httpx2.Client, full: httpx2.Client, registry: ModelRegistry) -> None:
    """Both rank as the library does. A wrong model, a wrong task and a full server raise what they mean."""
    found = run_client("cohere_rerank.py", str(client.base_url), str(full.base_url), QUERY, *DOCUMENTS)
    ranking = ModelRunner("rank", registry=registry).rerank(QUERY, DOCUMENTS)
    assert found["v1"] == found["v2"] == found["async"] == [[each.index, each.score] for each in ranking[:2]]
    assert found["text"] == DOCUMENTS[ranking[0].index]
    assert found["wrong"][:2] == ["NotFoundError", 404] and "'nix' is not registered" in found["wrong"][2]["message"]
    assert found["final"][:2] == ["UnprocessableEntityError", 422] and "3 labels" in found["final"][2]["message"]
    assert found["full"][:2] == ["TooManyRequestsError", 429] and "Try again" in found["full"][2]["message"]


def _at(client: httpx2.Client, name: str) -> InferenceClient:
    return InferenceClient(base_url=f"{str(client.base_url).rstrip('/')}/models/{name}", token="none")


def test_hugging_faces_client(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Each task has the shape that the client reads, with the library's answers."""
    [expected] = ModelRunner("deid", registry=registry).entities([NOTE], aggregation="first")
    for strategy in (None, "first"):
        found = _at(client, "deid").token_classification(NOTE, aggregation_strategy=strategy)
        assert [(each.entity_group, each.word, each.start, each.end, each.score) for each in found] == [
            (span.label, span.text, span.start, span.end, span.score) for span in expected.spans
        ]
    found = _at(client, "deid").token_classification(NOTE, ignore_labels=["DATE"])
    assert {each.entity_group for each in found} == {"NAME"}
    [labels] = ModelRunner("cls", registry=registry).classify(["no fever"], top_k=2)
    classified = _at(client, "cls").text_classification("no fever", top_k=2)
    assert [(each.label, each.score) for each in classified] == [(label.label, label.score) for label in labels]
    [[gap]] = ModelRunner("mlm", registry=registry).fill_mask(["no [MASK] now"], top_k=2)
    filled = _at(client, "mlm").fill_mask("no [MASK] now", top_k=2)
    assert [(each.token, each.token_str, each.score) for each in filled] == [(f.id, f.text, f.score) for f in gap]
    assert [each.sequence for each in filled] == [f"no {fill.text.removeprefix('##')} now" for fill in gap] or any(
        fill.text.startswith("##") for fill in gap
    )
    vectors = ModelRunner("minilm", registry=registry).embed(["no fever", "pain"]).vectors
    np.testing.assert_allclose(_at(client, "minilm").feature_extraction(["no fever", "pain"]), vectors, atol=1e-6)
    similar = _at(client, "minilm").sentence_similarity("no fever", other_sentences=["no fever", "pain"])
    np.testing.assert_allclose(similar, vectors[0] @ vectors.T, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "strategy", "status", "message"),
    [
        ("nix", None, 404, "'nix' is not registered"),
        ("deid", "none", 422, "put together from their word pieces"),
        ("rank", None, 422, "has the task 'rerank'"),
    ],
)
def test_hugging_faces_client_shows_why_a_request_is_refused(
    client: httpx2.Client, name: str, strategy: Any, status: int, message: str
) -> None:
    """The message of the server is in the error that it raises, and the note is not."""
    with pytest.raises(HfHubHTTPError, match=message) as caught:
        _at(client, name).token_classification("secret-canary", aggregation_strategy=strategy)
    assert caught.value.response.status_code == status and "secret-canary" not in str(caught.value)


def test_a_full_server_is_said_to_be_full(full: httpx2.Client) -> None:
    """With the seconds to wait."""
    with pytest.raises(HfHubHTTPError, match="Try again later") as caught:
        _at(full, "deid").token_classification("secret-canary")
    assert caught.value.response.status_code == 429 and int(caught.value.response.headers["Retry-After"]) <= 30


@pytest.mark.parametrize(
    ("route", "body", "key"),
    [
        ("/v1/redact", {"model": "deid", "input": "secret-canary"}, "error"),
        ("/v1/classify", {"model": "cls", "input": "secret-canary"}, "error"),
        ("/v2/rerank", {"model": "rank", "query": "secret-canary", "documents": ["a"]}, "message"),
        ("/rerank?model=rank", {"query": "secret-canary", "texts": ["a"]}, "error_type"),
        ("/embed?model=minilm", {"inputs": "secret-canary"}, "error_type"),
        ("/predict?model=cls", {"inputs": "secret-canary"}, "error_type"),
        ("/classify", {"model": "cls", "input": "secret-canary"}, "error"),
        ("/score", {"model": "rank", "text_1": "secret-canary", "text_2": "a"}, "error"),
        ("/presidio/analyze?model=deid", {"text": "secret-canary"}, "error"),
        ("/presidio/anonymize", {"text": "secret-canary", "analyzer_results": []}, "error"),
    ],
)
def test_each_protocol_says_that_the_server_is_full(
    full: httpx2.Client, route: str, body: dict[str, Any], key: str
) -> None:
    """In its own shape, with the seconds to wait, and before the catalogue is asked."""
    answer = full.post(route, json=body)
    assert answer.status_code == 429 and key in answer.json() and 0 < int(answer.headers["Retry-After"]) <= 30
    assert "Try again later" in answer.text and "secret-canary" not in answer.text
