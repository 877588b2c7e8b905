"""Models that were trained in this session, on notes that they have not seen."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from tests.support.notes import CLINICAL, PHI, Note, Offsets, join_notes, make_notes

NOTES = make_notes(100, "test")


def f1(found: Sequence[set[Offsets]], expected: Sequence[set[Offsets]]) -> float:
    """The F1 of exact entities."""
    right = sum(len(ours & theirs) for ours, theirs in zip(found, expected, strict=True))
    return 2 * right / (sum(map(len, found)) + sum(map(len, expected)))


def found_by(runner: ModelRunner, notes: Sequence[Note]) -> list[set[Offsets]]:
    """What a model finds in notes."""
    results = runner.entities([note.text for note in notes])
    return [{(span.start, span.end, span.label) for span in found.spans} for found in results]


@pytest.mark.parametrize(("name", "kinds", "least"), [("tagger-bio", CLINICAL, 0.9), ("deid", PHI, 0.8)])
def test_a_trained_model_finds_what_it_was_trained_to_find(
    registry: ModelRegistry, trained: Path, name: str, kinds: tuple[str, ...], least: float
) -> None:
    """In notes with other names, drugs and problems."""
    expected = [{entity for entity in note.entities if entity[2] in kinds} for note in NOTES]
    assert f1(found_by(ModelRunner(trained / name, registry=registry), NOTES), expected) > least


def test_texts_are_classified_and_documents_ranked(registry: ModelRegistry, trained: Path) -> None:
    """Texts and pairs that were drawn anew: at least nine of ten are right."""
    from tests.support.trained import SECTIONS, make_pairs, make_sections  # it imports huggingface_hub

    texts, sections = make_sections(60, seed=1)
    results = ModelRunner(trained / "classifier", registry=registry).classify(texts)
    right = [result.label == SECTIONS[number] for result, number in zip(results, sections.tolist(), strict=True)]
    assert sum(right) >= 54
    queries, documents, relevant = make_pairs(60, seed=1)
    registry.register("ranker", "clinical", model_path=trained / "cross-encoder", task="rerank")
    ranker = ModelRunner("ranker", registry=registry)
    scores = [ranker.rerank(query, [document])[0].score for query, document in zip(queries, documents, strict=True)]
    assert sum((score > 0.5) == bool(answers) for score, answers in zip(scores, relevant, strict=True)) >= 54
    best = ranker.rerank("What is known about asthma?", ["On diabetes in adults.", "On asthma and cough in adults."])
    assert [document.index for document in best] == [1, 0]


def test_label_schemes_find_the_same(registry: ModelRegistry, trained: Path) -> None:
    """Three heads on one encoder, in BIO, BILOU and bare labels. Where they differ, it is by a word or two."""
    by_scheme = [
        found_by(ModelRunner(trained / f"tagger-{scheme}", registry=registry), NOTES)
        for scheme in ("bio", "bilou", "io")
    ]
    assert f1(by_scheme[0], by_scheme[1]) > 0.9 and f1(by_scheme[0], by_scheme[2]) > 0.9


@pytest.mark.parametrize("separator", [" ", " ___ ", "\n"])
def test_a_long_note_is_read_to_its_end(registry: ModelRegistry, trained: Path, separator: str) -> None:
    """1,200 tokens: with sentences or without an end, and with the marks that another de-identifier left."""
    notes = make_notes(55, "test", seed=1)
    whole = join_notes([Note(note.text.replace(". ", ", "), note.entities) for note in notes], separator)
    (result,) = ModelRunner(trained / "tagger-bio", registry=registry).entities([whole.text])
    assert result.coverage.tokens > 1200 and result.coverage.read == ((0, len(whole.text)),)
    expected = {entity for entity in whole.entities if entity[2] in CLINICAL}
    found = {(span.start, span.end, span.label) for span in result.spans}
    assert f1([found], [expected]) > 0.8
    quarter = 3 * len(whole.text) // 4
    assert f1([{e for e in found if e[0] > quarter}], [{e for e in expected if e[0] > quarter}]) > 0.7
