"""Rerank in the APIs of Cohere and of Text Embeddings Inference, and the other routes of the latter and of vLLM."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from tests.support import tiny
from tests.support.cross_encoders import DOCUMENTS, QUERY
from tests.support.served import LABELS, registry_of_all_tasks
from tests.support.serving import serving

PAIR = {"source_sentence": "a", "sentences": ["b"]}

LONG = "a " * 100


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    registry = registry_of_all_tasks(tmp_path_factory.mktemp("models"))
    folder = registry.get_metadata("minilm").location
    registry.register("cut-vectors", "clinical", model_path=folder, task="embed", max_length=8, long_input="truncate")
    return registry


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry, ServerConfig(loaded=("rank",))) as client:
        yield client


@pytest.mark.parametrize("route", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_are_ranked_in_coheres_api(client: httpx2.Client, registry: ModelRegistry, route: str) -> None:
    """Texts or objects, the best first, with the index in the request; texts come back only if the client asks."""
    ranking = ModelRunner("rank", registry=registry).rerank(QUERY, DOCUMENTS, activation="sigmoid")
    expected = ranking[:3]
    documents = [DOCUMENTS[0], *({"text": text, "title": "t"} for text in DOCUMENTS[1:])]
    body = {"model": "rank", "query": QUERY, "documents": documents, "top_n": 3, "max_tokens_per_doc": 4}
    answer = client.post(route, json=body).json()
    assert [(each["index"], each["relevance_score"]) for each in answer["results"]] == [
        (each.index, each.score) for each in expected
    ]
    assert "document" not in answer["results"][0] and answer["model"] == "rank" and answer["version"] == "1"
    assert answer["usage"]["total_tokens"] == sum(each.coverage.tokens for each in ranking)  # all that was read
    [first, *_] = client.post(route, json=body | {"return_documents": True}).json()["results"]
    assert first["document"] == {"text": DOCUMENTS[first["index"]]}


@pytest.mark.parametrize("raw", [True, False])
def test_texts_are_ranked_in_the_api_of_tei(client: httpx2.Client, registry: ModelRegistry, raw: bool) -> None:
    """On the same path, with raw scores or those from 0 to 1; the only loaded model answers."""
    expected = ModelRunner("rank", registry=registry).rerank(QUERY, DOCUMENTS, activation="none" if raw else "sigmoid")
    body = {"query": QUERY, "texts": DOCUMENTS, "raw_scores": raw, "return_text": True}
    assert client.post("/rerank", json=body).json() == [
        {"index": each.index, "score": each.score, "text": DOCUMENTS[each.index]} for each in expected
    ]
    assert any(each.score < 0 for each in expected) == raw
    assert len(client.post("/rerank", json=body | {"top_n": 2}).json()) == 2  # as LiteLLM sends it


@pytest.mark.parametrize(
    ("route", "body", "status", "message"),
    [
        ("/rerank", {"query": "a"}, 422, "either documents"),
        ("/rerank", {"query": "a", "texts": ["b"], "documents": ["secret-canary"]}, 422, "either documents"),
        ("/rerank", ["secret-canary"], 422, "either documents"),
        ("/rerank", {"query": "a", "texts": []}, 422, "texts has no text"),
        ("/rerank", {"query": "a", "texts": ["secret-canary", 3]}, 422, "texts.1: it must be a text"),
        ("/v1/rerank", {"model": "rank", "query": "a", "documents": []}, 422, "documents has no text"),
        ("/v2/rerank", {"model": "rank", "query": "a", "documents": ["b"], "top_n": 0}, 422, "top_n: "),
        ("/v2/rerank", {"model": "nix", "query": "a", "documents": ["secret-canary"]}, 404, "'nix' is not registered"),
        ("/v2/rerank", {"model": "cls", "query": "secret-canary", "documents": ["b"]}, 422, "has 3 labels"),
        ("/v1/rerank", {"model": "rank", "query": "a", "documents": ["b"], "rank_fields": ["x"]}, 422, "rank_fields"),
        ("/rerank?model=cls", {"model": "rank", "query": "a", "documents": ["b"]}, 422, "names several models"),
        (
            "/similarity?model=minilm",
            {"inputs": PAIR, "parameters": {"model": "enc"}},
            422,
            "names several models",
        ),
        ("/models/cls", {"inputs": "a", "model": "rank"}, 422, "names several models"),
        ("/embed?model=minilm", {"inputs": [[1, 2]]}, 422, "inputs.0: it must be a text"),
        ("/embed?model=minilm", {"inputs": "a", "dimensions": 999}, 422, "dimensions"),
        ("/embed?model=minilm", {"inputs": "a", "truncate": True, "truncation_direction": "Left"}, 422, "at its end"),
        ("/embed?model=cut-vectors", {"inputs": [LONG]}, 422, "longer than the 8 tokens"),
        ("/predict?model=cls", {"inputs": ["a", "b", "c"]}, 422, "inputs"),
        ("/predict?model=cls", {"inputs": [["a"], [LONG]]}, 422, "Text 2 is longer"),
        ("/score", {"model": "rank", "text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, 422, "text_1 has 2 texts"),
        ("/score", {"model": "rank", "text_1": "a"}, 422, "text_2 has no text"),
        ("/classify", {"model": "cls", "input": "a", "truncate_prompt_tokens": 5}, 422, "truncate_prompt_tokens"),
        ("/classify", {"model": "cls", "input": "a", "softmax": False}, 400, "'softmax'"),
        ("/classify", {"model": "cls", "input": "a", "add_special_tokens": False}, 400, "'add_special_tokens'"),
        ("/score", {"model": "rank", "text_1": "a", "text_2": "b", "activation": False}, 400, "'activation'"),
        ("/rerank", {"query": "a", "documents": ["b"], "truncate_prompt_tokens": 5}, 400, "'truncate_prompt_tokens'"),
        ("/v2/rerank", {"model": "rank", "query": "a", "documents": ["b"], "use_activation": False}, 400, "use_act"),
        ("/models/cls", {"inputs": "a", "parameters": {"candidate_labels": ["b"]}}, 400, "'candidate_labels'"),
        ("/models/deid", {"inputs": "a", "parameters": {"stride": 5}}, 400, "'stride'"),
        ("/models/cls", {"inputs": "a", "top_k": 1, "parameters": {"top_k": 3}}, 422, "top_k and parameters.top_k"),
        ("/score", {"model": "rank", "text_1": "a", "text_2": "b", "documents": ["c"]}, 422, "text_2 and documents"),
        ("/score", {"model": "rank", "queries": "a", "data_1": "b", "text_2": "c"}, 422, "queries and data_1 are two"),
        ("/v1/rerank", {"model": "rank", "query": "a", "documents": ["b", "c"], "top_k": 1}, 400, "'top_k'"),
        ("/rerank", {"query": "a", "texts": ["b", "c"], "top_k": 1}, 400, "'top_k'"),
        ("/similarity?model=minilm", {"inputs": PAIR, "prompt": "query: "}, 400, "'prompt'"),
        ("/similarity?model=minilm", {"inputs": PAIR, "parameters": {"instruction": "x"}}, 400, "'instruction'"),
        ("/similarity?model=minilm", {"inputs": PAIR, "prompt_name": "nix"}, 422, "'nix'"),
        ("/rerank", {"query": "a", "documents": ["b", "c"], "raw_scores": True}, 400, "'raw_scores'"),
        ("/predict?model=cls", {"inputs": "a", "top_k": 1}, 400, "'top_k'"),
        ("/embed?model=minilm", {"inputs": "a", "prompt": "query: "}, 400, "'prompt'"),
        ("/rerank", {"query": "a", "documents": [{"txt": "b"}]}, 422, "documents.0.text: it is missing"),
        ("/models/minilm", {"inputs": {"source_sentence": "a"}}, 422, "inputs.sentences: it is missing"),
        ("/models/deid/pipeline/summarization", {"inputs": "a"}, 422, "Task 'summarization' has no shape"),
        (
            "/models/minilm/pipeline/token-classification",
            {"inputs": {"source_sentence": "a", "sentences": ["secret-canary"]}},
            422,
            "Task 'token-classification' takes a text",
        ),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(
    client: httpx2.Client, route: str, body: Any, status: int, message: str
) -> None:
    """In the shape of its protocol, without a text of the request."""
    answer = client.post(route, json=body)
    content = answer.json()
    said = content.get("message") or content["error"]
    assert answer.status_code == status and message in (said if isinstance(said, str) else said["message"])
    assert "secret-canary" not in answer.text and answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("name", ["documents", "texts"])
def test_a_missing_field_is_named_as_the_client_writes_it(client: httpx2.Client, name: str) -> None:
    """In either API of the route."""
    answer = client.post("/rerank", json={name: ["a"]})
    assert answer.status_code == 422 and answer.json()["error"].startswith("query: it is missing.")


@pytest.mark.parametrize(
    ("route", "body", "same"),
    [
        ("/score", {"model": "rank", "text_1": "a", "text_2": ["b"]}, {"queries": "a", "data_2": ["b"]}),
        ("/models/cls", {"inputs": "a", "parameters": {"top_k": 1}}, {"top_k": 1, "ignore_labels": None}),
        (
            "/models/minilm",
            {"inputs": "a"},
            {"parameters": {"normalize": None, "encoding_format": None, "truncation_direction": None}},
        ),
        ("/embed?model=minilm", {"inputs": "a"}, {"normalize": None, "truncation_direction": None, "top_k": None}),
        ("/rerank", {"query": "a", "texts": ["b"]}, {"raw_scores": None, "return_text": None}),
        ("/v1/rerank", {"model": "rank", "query": "a", "documents": ["b"]}, {"top_k": None, "truncation": True}),
        ("/similarity", {"inputs": PAIR, "model": "minilm"}, {"parameters": {"truncate": False, "model": "minilm"}}),
    ],
)
def test_what_says_nothing_more_changes_nothing(
    client: httpx2.Client, route: str, body: dict[str, Any], same: dict[str, Any]
) -> None:
    """Such as a null, the name that another server has for a field, or what is in two places and equal."""
    plain, more = (client.post(route, json=given) for given in (body, body | same))
    assert plain.is_success and more.is_success, more.text
    ours = ("id", "created")  # other ones in each answer
    first, second = plain.json(), more.json()
    if isinstance(first, dict):
        first, second = ({key: each[key] for key in each if key not in ours} for each in (first, second))
    assert first == second


@pytest.mark.parametrize("loaded", [(), ("rank", "cls")])
def test_a_request_without_a_model_is_refused_if_it_may_mean_several(
    registry: ModelRegistry, loaded: tuple[str, ...]
) -> None:
    """The message says how to name one, in the address or in a header."""
    body = {"query": QUERY, "texts": DOCUMENTS}
    with serving(registry, ServerConfig(loaded=loaded)) as client:
        answer = client.post("/rerank", json=body)
        assert answer.status_code == 422 and "/rerank?model=NAME" in answer.json()["error"]
        assert all(name in answer.json()["error"] for name in loaded)
        assert client.post("/rerank?model=rank", json=body).status_code == 200
        assert client.post("/rerank", json=body, headers={"x-medvllm-model": "rank"}).status_code == 200


def test_vectors_are_those_of_the_library(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Scaled to length 1 unless the client says otherwise; a long text is cut only if it asks for that."""
    texts = ["no fever", "chest pain"]
    expected = ModelRunner("minilm", registry=registry).embed(texts).vectors
    made = client.post("/embed?model=minilm", json={"inputs": texts}).json()
    np.testing.assert_allclose(made, expected, atol=1e-6)
    [short] = client.post("/embed?model=minilm", json={"inputs": texts[0], "dimensions": 8}).json()
    np.testing.assert_allclose(short, expected[0, :8] / np.linalg.norm(expected[0, :8]), atol=1e-6)
    cut = ModelRunner("cut-vectors", registry=registry).embed([LONG]).vectors
    answer = client.post("/embed?model=cut-vectors", json={"inputs": LONG, "truncate": True})
    np.testing.assert_allclose(answer.json(), cut, atol=1e-6)
    similar = client.post(
        "/similarity?model=minilm", json={"inputs": {"source_sentence": texts[0], "sentences": texts}}
    ).json()
    np.testing.assert_allclose(similar, expected[0] @ expected.T, atol=1e-6)


def test_predict_takes_a_text_a_pair_or_a_batch(client: httpx2.Client, registry: ModelRegistry) -> None:
    """A list of two texts is a pair; a batch is a list of lists."""
    runner = ModelRunner("cls", registry=registry)

    def predict(inputs: Any, **options: Any) -> Any:
        return client.post("/predict?model=cls", json={"inputs": inputs, **options}).json()

    def expect(*texts: Any, **options: Any) -> Any:
        return [[vars(label) for label in labels] for labels in runner.classify(list(texts), **options)]

    assert [predict("no fever")] == expect("no fever") == [predict(["no fever"])]
    assert [predict(["no fever", "pain"])] == expect(("no fever", "pain"))
    assert predict([["no fever"], ["pain"]], raw_scores=True) == expect("no fever", "pain", activation="none")
    assert predict([["a", "b"], ["c", "d"]]) == expect(("a", "b"), ("c", "d"))
    info = client.get("/info?model=cls").json()
    assert info["model_id"] == "cls" and not info["auto_truncate"] and "classifier" in info["model_type"]
    assert client.get("/info?model=deid").json()["model_type"] == {}  # the protocol has no word for it


def test_vllms_classify_has_scores_in_the_order_of_the_classes(client: httpx2.Client, registry: ModelRegistry) -> None:
    """So that the place of a number tells its label."""
    texts = ["no fever", "the patient was given aspirin"]
    answer = client.post("/classify", json={"model": "cls", "input": texts}).json()
    for record, labels in zip(answer["data"], ModelRunner("cls", registry=registry).classify(texts), strict=True):
        scores = {label.label: label.score for label in labels}
        assert record["probs"] == [scores[label] for label in LABELS] and record["label"] == labels.label


def test_vllms_score_takes_one_query_or_as_many_as_documents(client: httpx2.Client, registry: ModelRegistry) -> None:
    """By a cross-encoder, or by the vectors of an embedding model; the answers are in the order of the request."""
    documents = DOCUMENTS[:2]
    ranked = {each.index: each.score for each in ModelRunner("rank", registry=registry).rerank(QUERY, documents)}
    body: dict[str, Any] = {"model": "rank", "text_1": QUERY, "text_2": documents}
    scores = [each["score"] for each in client.post("/score", json=body).json()["data"]]
    np.testing.assert_allclose(scores, [ranked[0], ranked[1]], atol=1e-6)
    body = {"model": "rank", "queries": [QUERY, QUERY, documents[0]], "documents": [*documents, "x"]}
    many = [each["score"] for each in client.post("/v1/score", json=body).json()["data"]]
    np.testing.assert_allclose(many[:2], scores, atol=1e-6)
    body = {"model": "minilm", "data_1": documents[0], "data_2": documents}
    compared = [each["score"] for each in client.post("/score", json=body).json()["data"]]
    expected = ModelRunner("minilm", registry=registry).similarity(documents[:1], documents)[0]
    np.testing.assert_allclose(compared, expected, atol=1e-6)


def test_a_query_of_many_documents_counts_once(registry: ModelRegistry) -> None:
    """As the request holds it once, whatever the route."""
    query, documents = "fever " * 20, ["a"] * 20
    asked = {"/score": {"text_1": query, "text_2": documents}, "/rerank": {"query": query, "documents": documents}}
    with serving(registry, ServerConfig(max_characters=len(query) + len(documents), loaded=("rank",))) as client:
        for route, body in asked.items():
            assert client.post(route, json={"model": "rank", **body}).status_code == 200


def test_the_tokens_of_all_queries_together_have_a_limit(registry: ModelRegistry) -> None:
    """Each query of `/v1/score` is a call of its own, and the limit of a key is for the request."""
    body: dict[str, Any] = {"model": "rank", "queries": ["a", "b", "c", "d"], "documents": ["fever"] * 4}
    one = registry.runner("rank").rerank("a", ["fever"])[0].coverage.tokens
    for allowed, status in ((4 * one - 1, 422), (100 * one, 200)):
        with serving(registry, ServerConfig(max_tokens=allowed)) as client:
            assert client.post("/v1/score", json=body).status_code == status
            assert client.post("/v1/score", json=body | {"queries": "a", "documents": ["fever"]}).status_code == 200


def test_a_comparison_puts_the_prompt_before_the_texts(client: httpx2.Client, registry: ModelRegistry) -> None:
    """In TEI's route and in Hugging Face's. A name that the model has not is refused."""
    folder = registry.get_metadata("minilm").location
    registry.register("prompted", "clinical", model_path=folder, task="embed", prompts={"query": "Find this: "})
    inputs = {"source_sentence": "No fever.", "sentences": ["Afebrile.", "Chest pain."]}
    plain, prompted = (
        [
            client.post("/similarity", json={"model": "prompted", "inputs": inputs, "parameters": given}).json(),
            client.post("/models/prompted", json={"inputs": inputs, "parameters": given}).json(),
        ]
        for given in ({}, {"prompt_name": "query"})
    )
    assert plain[0] == plain[1] != prompted[0] == prompted[1]
    made = ModelRunner("prompted", registry=registry).embed(["No fever.", "Afebrile."], prompt_name="query").vectors
    np.testing.assert_allclose(prompted[0][0], float(made[0] @ made[1]), atol=1e-5)
    body = {"model": "prompted", "inputs": inputs, "parameters": {"prompt_name": "nix"}}
    assert client.post("/similarity", json=body).status_code == 422


def test_a_long_text_is_not_cut_where_the_answer_could_not_say_so(client: httpx2.Client) -> None:
    """Though the entry cuts long texts."""
    answer = client.post("/api/embed", json={"model": "cut-vectors", "input": LONG})
    assert (
        answer.status_code == 422 and client.post("/api/embed", json={"model": "cut-vectors", "input": "a"}).is_success
    )


def test_the_number_of_records_has_a_limit(client: httpx2.Client) -> None:
    """A small request must not fill the memory with its answer."""
    body = {"model": "mlm", "input": "[MASK] " * 50, "top_k": 5000}
    for path, given in (
        ("/v1/fill-mask", body),
        ("/models/mlm", {"inputs": body["input"], "top_k": 5000}),
        ("/v1/run", {"model": "mlm", "texts": [body["input"]], "arguments": {"top_k": 5000}}),
    ):
        answer = client.post(path, json=given)
        assert answer.status_code == 413 and "250,000 records" in answer.text, (path, answer.text)
    named = {"model": "mlm", "task": "masked-lm", "texts": [body["input"]], "arguments": {"top_k": 5000}}
    assert client.post("/v1/run", json=named).status_code == 413
    assert client.post("/v1/fill-mask", json=body | {"input": "[MASK]", "top_k": 7}).is_success
    no_text = client.post("/v1/run", json={"model": "mlm", "task": "fill-mask", "texts": ["[MASK]", 5]})
    assert no_text.status_code == 422, no_text.text
    for model, task, wrong in (("mlm", "fill-mask", {"top_k": "5"}), ("assert", "assertions", {"spans": [5]})):
        asked = {"model": model, "task": task, "texts": ["[MASK]"], "arguments": wrong}
        assert client.post("/v1/run", json=asked).status_code == 422, wrong


def test_the_number_of_labels_has_a_limit(client: httpx2.Client, registry: ModelRegistry, tmp_path: Path) -> None:
    """Of all texts together. Those that the entry does not tell are counted in the model."""
    folder, texts = tmp_path / "many", ["no fever"] * 600
    tiny.bert_encoder(folder)
    registry.register("later", "clinical", model_path=str(folder), task="classify")  # it has no labels yet
    labels = [f"CODE-{number}" for number in range(1000)]
    tiny.bert_sequence_classifier(folder, config=tiny.labelled(labels))
    registry.register("many", "clinical", model_path=str(folder), task="classify")
    assert registry.get_metadata("later").behaviour.id2label is None
    for name in ("later", "many"):
        for path, body in (
            ("/v1/classify", {"model": name, "input": texts}),
            ("/predict", {"model": name, "inputs": [[text] for text in texts]}),
            (f"/models/{name}", {"inputs": texts, "parameters": {"top_k": 9000}}),
            ("/v1/run", {"model": name, "texts": texts}),
            ("/v1/run", {"model": name, "task": "text-classification", "texts": texts}),
        ):
            answer = client.post(path, json=body)
            assert answer.status_code == 413 and "600,000 records" in answer.text, (path, answer.text)
        for top_k, some in ((9000, texts[:2]), (3, texts)):
            answer = client.post("/v1/classify", json={"model": name, "top_k": top_k, "input": some})
            assert answer.is_success and len(answer.json()["data"][0]["labels"]) == min(top_k, 1000)


def test_the_gaps_of_a_text_must_be_clear(client: httpx2.Client) -> None:
    """The sentence that is answered has the word in the place of its gap, or the text is refused."""
    text = "A literal <mask> and [MASK] pain."
    [first, *_] = client.post("/models/mlm", json={"inputs": text}).json()
    assert first["sequence"].startswith("A literal <mask> and ")
    unclear = client.post("/models/minilm/pipeline/sentence-similarity", json={"inputs": ["a", "b"]})
    assert unclear.status_code == 422 and "source_sentence" in unclear.text
