"""Vectors for the two sides of a search, and how they are compared."""

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import AutoModel, AutoTokenizer

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.embedding.similarity import compare
from medvllm.errors import LoadError, MedVLLMError, RequestError
from tests.support import cross_encoders, sentence, tiny
from tests.support.cross_encoders import DOCUMENTS, MINILM
from tests.support.loopback import LoopbackHub
from tests.support.standins import STANDINS

SIMILARITIES: dict[str, Any] = json.loads(cross_encoders.SIMILARITIES.read_text())
ARTICLES = [["Aspirin", "aspirin 75 mg daily for the heart"], ["Lung", "no history of cancer"], ["", "fever and pain"]]
ENCODERS = {side: f"ncbi/MedCPT-{side}-Encoder" for side in ("Query", "Article")}


def test_similarities_are_those_of_sentence_transformers(registry: ModelRegistry) -> None:
    """On the real MiniLM, whose folder says cosine, and by each of the other functions."""
    runner = ModelRunner(MINILM, registry=registry)
    found = runner.similarity(DOCUMENTS, DOCUMENTS[:4])
    assert found.shape == (6, 4) and found.dtype == np.float32
    assert np.allclose(found, SIMILARITIES["cosine"], atol=1e-5)
    assert np.allclose(runner.similarity(DOCUMENTS)[:, :4], found, atol=1e-5)
    vectors = runner.embed(DOCUMENTS).vectors
    for function, expected in SIMILARITIES.items():
        assert np.allclose(compare(vectors, vectors[:4], cast(Any, function)), expected, atol=1e-5, rtol=1e-5)
    hits = runner.search(DOCUMENTS[0], DOCUMENTS[:4], k=3)
    scores = SIMILARITIES["cosine"][0]
    order = sorted(range(4), key=lambda index: -scores[index])
    assert [hit.index for hit in hits] == order[:3] and hits[0].coverage.tokens > 10
    assert [hit.score for hit in hits] == pytest.approx([scores[index] for index in order[:3]], abs=1e-5)
    assert hits.to_dict()[0]["index"] == 0 and len(hits.to_pandas()) == 3


@settings(max_examples=30, deadline=None)
@given(
    vectors=arrays(np.float32, (3, 5), elements=st.floats(-9, 9, width=32)),
    others=arrays(np.float32, (4, 5), elements=st.floats(-9, 9, width=32)),
)
def test_every_comparison_is_what_its_name_says(vectors: Any, others: Any) -> None:
    """Number by number, also of vectors of zeros."""
    for i, one in enumerate(vectors.astype(np.float64)):
        for j, other in enumerate(others.astype(np.float64)):
            lengths = max(float(np.linalg.norm(one)), 1e-12) * max(float(np.linalg.norm(other)), 1e-12)
            expected = {
                "cosine": one @ other / lengths,
                "dot": one @ other,
                "euclidean": -(((one - other) ** 2).sum() ** 0.5),
                "manhattan": -abs(one - other).sum(),
            }
            for function, value in expected.items():
                assert compare(vectors, others, cast(Any, function))[i, j] == pytest.approx(value, abs=1e-3)
    with pytest.raises(RequestError, match="Vectors of 5 numbers cannot be compared with vectors of 4"):
        compare(vectors, others[:, :4], "dot")


def test_a_folder_says_how_its_vectors_are_compared(registry: ModelRegistry, tmp_path: Path) -> None:
    """A function that is not known is refused; the entry's wins."""
    folder = sentence.assembled("prompts", tmp_path / "m")
    file = folder / "config_sentence_transformers.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"similarity_fn_name": "dot"}))
    runner = ModelRunner(folder, registry=registry)
    vectors = runner.embed(["ALS", "fever"]).vectors
    assert np.allclose(runner.similarity(["ALS", "fever"]), vectors @ vectors.T, atol=1e-6)
    assert registry.register("m", "generic", model_path=folder).behaviour.similarity == "dot"
    file.write_text(json.dumps(content | {"similarity_fn_name": "jaccard"}))
    with pytest.raises(LoadError, match='has similarity_fn_name "jaccard"'):
        ModelRunner(folder, registry=registry).similarity(["ALS"])


def test_a_search_uses_the_prompts_of_both_sides(registry: ModelRegistry, tmp_path: Path) -> None:
    """The query has that for queries, and the texts that for documents; `role` gives the same vectors."""
    folder = sentence.assembled("prompts", tmp_path / "m")
    runner = ModelRunner(folder, registry=registry)
    query, documents = (
        runner.embed(["ALS"], role="query").vectors,
        runner.embed(["fever", "ALS"], role="document").vectors,
    )
    assert np.array_equal(query, runner.embed(["ALS"], prompt_name="query").vectors)
    assert np.array_equal(documents, runner.embed(["fever", "ALS"], prompt_name="document").vectors)
    assert not np.allclose(query, documents[1], atol=1e-3)
    lengths = np.linalg.norm(query[0]) * np.linalg.norm(documents, axis=1)
    found = {hit.index: hit.score for hit in runner.search("ALS", ["fever", "ALS"])}
    assert found == pytest.approx(dict(enumerate((documents @ query[0] / lengths).tolist())), abs=1e-5)


def test_the_two_encoders_of_medcpt_search_together(registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path) -> None:
    """By the name of either: queries by one, [title, abstract] by the other, compared by dot product."""
    for seed, name in enumerate(ENCODERS.values()):
        hub.add(
            name,
            STANDINS[name](tmp_path / str(seed), seed=seed, weights="safetensors"),
            commit=registry.get_metadata(name).source.revision,
        )
    query, article = (ModelRunner(name, registry=registry) for name in ENCODERS.values())
    vectors = article.embed(ARTICLES).vectors @ query.embed(["the dose"]).vectors[0]
    for runner in (query, article):
        hits = runner.search("the dose", ARTICLES)
        assert {hit.index: hit.score for hit in hits} == pytest.approx(dict(enumerate(vectors.tolist())), abs=1e-4)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    with pytest.raises(RequestError, match=r"of the role 'document', not 'query'.\n.*ModelRunner\('ncbi/MedCPT-Query"):
        article.embed(ARTICLES, role="query")
    with pytest.raises(RequestError, match="of the role 'query', not 'document'.\n.*ncbi/MedCPT-Article"):
        query.embed(["the dose"], role="document")
    assert np.array_equal(query.embed(["the dose"], role="query").vectors, query.embed(["the dose"]).vectors)
    with pytest.raises(RequestError, match="Text 1 must be a pair: the model takes title and abstract"):
        query.search("the dose", ["one text"])
    with pytest.raises(RequestError, match="Text 1 is a pair, but the model takes single texts"):
        query.embed(ARTICLES)
    coverage = query.embed(["fever " * 100]).coverage[0]
    assert coverage.truncated and coverage.tokens == 62  # of 64, with two special tokens


def test_an_entry_for_one_side_serves_no_search(registry: ModelRegistry, tmp_path: Path) -> None:
    """Without a counterpart, there is no encoder for the other side."""
    registry.register("q", "generic", model_path=tiny.bert_encoder(tmp_path / "m"), role="query")
    with pytest.raises(RequestError, match="'q' makes vectors of the role 'query', not 'document'.\n.*without role="):
        ModelRunner("q", registry=registry).search("a", ["b"])
    other = ModelRunner(tiny.bert_encoder(tmp_path / "o"), registry=registry)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"role": "passage"}, "role must be one of 'query', 'document', not 'passage'"),
        ({"role": "query", "prompt": "x"}, "Both 'prompt' and 'role' are given"),
        ({"allow_special_tokens": None}, "allow_special_tokens must be True or False"),
    ]
    for options, message in wrong:
        with pytest.raises(RequestError, match=message):
            other.embed(["a"], **options)
    for arguments, message in (
        (("a", ["b"], 0), "k must be at least 1"),
        ((["a"], ["b"]), "must be one text, not list"),
    ):
        with pytest.raises(RequestError, match=message):
            other.search(*arguments)
    assert other.search("a", []) == [] and other.similarity([], ["a"]).shape == (0, 1)


def test_special_tokens_of_a_prompt_stay_special(registry: ModelRegistry, tmp_path: Path) -> None:
    """Those of the text are text; the coverage counts characters of the text alone."""
    folder = tiny.bert_encoder(tmp_path / "m")
    registry.register("m", "generic", model_path=folder, prompts={"query": "[SEP] of: "}, default_prompt_name="query")
    runner, text = ModelRunner("m", registry=registry), "fever [SEP] pain"
    result = runner.embed([text])
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer("[SEP] of: ", add_special_tokens=False)["input_ids"]
    plain = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = [tokenizer.cls_token_id, *prompt, *plain, tokenizer.sep_token_id]
    with torch.inference_mode():
        expected = AutoModel.from_pretrained(folder)(torch.tensor([ids])).last_hidden_state[0].mean(0)
    assert np.allclose(result.vectors[0], expected, atol=1e-5)
    assert result.coverage[0].read == ((0, len(text)),)
    with pytest.raises(RequestError, match=r"Text 1 contains U\+FDD0"):
        runner.embed(["secret \ufdd01\ufdd1"])


@pytest.fixture(scope="module")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    """A runner with a prompt that has a special token."""
    registry = ModelRegistry()
    folder = tiny.bert_encoder(tmp_path_factory.mktemp("prompted") / "m")
    registry.register("m", "generic", model_path=folder, prompts={"query": "[CLS]the: ", "document": ""})
    return ModelRunner("m", registry=registry)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5), query=st.text(max_size=20))
def test_any_text_is_searched_or_an_error_of_ours(prompted: ModelRunner, texts: list[str], query: str) -> None:
    """A cosine is between -1 and 1, and that of a text does not depend on the others."""
    try:
        hits = prompted.search(query, texts, k=100)
    except MedVLLMError:
        return
    assert sorted(hit.index for hit in hits) == list(range(len(texts)))
    assert all(-1.0001 <= hit.score <= 1.0001 for hit in hits)
    [alone] = prompted.search(query, [texts[hits[0].index]])
    assert alone.score == pytest.approx(hits[0].score, abs=1e-5)
