"""Spans: decoded under each label scheme, at the right place in the text, over as many windows as it takes."""

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.tagging.spans import Span, Word, decode_labels, infer_scheme
from medvllm.errors import InputTooLongError, RequestError
from tests.support import standins, tiny


def _words(*labels: str) -> list[Word]:
    return [Word(10 * i, 10 * i + 5, label, 1.0) for i, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("scheme", "labels", "expected"),
    [
        ("BILOU", "B-PAT I-PAT L-PAT", [(0, 25, "PAT")]),
        ("BILOU", "U-PAT U-PAT O U-DATE", [(0, 5, "PAT"), (10, 15, "PAT"), (30, 35, "DATE")]),
        ("BILOU", "B-PAT L-PAT B-PAT L-PAT", [(0, 15, "PAT"), (20, 35, "PAT")]),
        ("BILOU", "L-PAT I-PAT", [(0, 5, "PAT"), (10, 15, "PAT")]),
        ("BIO", "B-X I-X B-X O I-X", [(0, 15, "X"), (20, 25, "X"), (40, 45, "X")]),
        ("BIO", "B-X I-Y", [(0, 5, "X"), (10, 15, "Y")]),
        ("BIO", "B I O I", [(0, 15, "ENTITY"), (30, 35, "ENTITY")]),
        ("BIO", "B-Non-drug I-Non-drug", [(0, 15, "Non-drug")]),
        ("IO", "PATIENT PATIENT O PATIENT", [(0, 15, "PATIENT"), (30, 35, "PATIENT")]),
        ("IO", "B-CELL O", [(0, 5, "B-CELL")]),
    ],
)
def test_labels_become_spans(scheme: str, labels: str, expected: list[Any]) -> None:
    """A name of three words is one span under BILOU, where others see two; neighbours stay apart where they can."""
    spans = decode_labels(_words(*labels.split()), scheme, "x" * 100)
    assert [(span.start, span.end, span.label) for span in spans] == expected


@given(
    st.lists(
        st.sampled_from(["O", "B-X", "I-X", "L-X", "U-X", "E-X", "S-X", "B-Y", "I-Y", "X", "B", "I"]), max_size=12
    ),
    st.sampled_from(["IO", "BIO", "BILOU"]),
)
def test_no_labelled_word_is_lost(labels: list[str], scheme: str) -> None:
    """Whatever a model strings together, also against its own scheme; and no other word is covered."""
    words = _words(*labels)
    spans = decode_labels(words, scheme, "x" * 100)
    assert all(a.end <= b.start for a, b in pairwise(spans))
    for word in words:
        covering = [span for span in spans if span.start <= word.start and word.end <= span.end]
        assert len(covering) == (word.label != "O")


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [(standins.BILOU, "BILOU"), (standins.NER, "BIO"), (standins.PHI, "IO"), (["O", "B", "I"], "BIO"), (["O"], "IO")],
)
def test_a_scheme_is_seen_in_the_label_map(labels: list[str], scheme: str) -> None:
    """For a tagger that no entry describes."""
    assert infer_scheme(labels) == scheme


def _decided(folder: Path, label: int, labels: list[str], **trouble: Any) -> Path:
    """A tagger that gives every token one label."""
    tiny.bert_token_classifier(folder, labels, **trouble)
    state = load_file(folder / "model.safetensors")
    state["classifier.weight"].zero_()
    state["classifier.bias"] = torch.nn.functional.one_hot(torch.tensor(label), len(labels)).float() * 20
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_spans_stand_where_the_words_stand(registry: ModelRegistry, tmp_path: Path) -> None:
    """Offsets are code points of the text as given: accents, ligatures of pieces, and characters beyond 16 bits."""
    folder = _decided(tmp_path / "m", 1, ["O", "U-DATE"])
    registry.register("m", "clinical", model_path=str(folder), task="deid", do_lower_case=False, label_scheme="BILOU")
    text = "Café fièvre 😀 unheardof pain"
    tags = ModelRunner("m", registry=registry).entities([text])[0]
    assert [text[span.start : span.end] for span in tags.spans] == text.split()
    assert all(span.label == "DATE" and span.score > 0.99 for span in tags.spans) and not tags.coverage.truncated


def test_long_texts_are_tagged_to_their_end(registry: ModelRegistry, tmp_path: Path) -> None:
    """Every word once, over many windows, also where a word of many pieces lies across two of them."""
    folder = _decided(tmp_path / "m", 1, ["O", "U-DATE"])
    runner = ModelRunner(folder, registry=registry)
    texts = ["fever " * 200, "unheardof-of " * 60, "pain", ""]
    for text, tags in zip(texts, runner.entities(texts), strict=True):
        expected = [(m.start(), m.end()) for m in re.finditer(r"\w+|-", text)]
        assert [(span.start, span.end) for span in tags.spans] == expected
    assert runner.run(None, ["pain"]).task == "ner"


def test_windows_agree_with_one_pass(registry: ModelRegistry, tmp_path: Path) -> None:
    """A real tagger's labels, by hand: a word has the label of its first piece."""
    folder = tiny.bert_token_classifier(tmp_path / "m", standins.BILOU)
    text = "The patient was unheardof in March"
    with registry.lease(folder) as lease:
        encoding = lease.tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoding.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            classes = lease.model(**encoding).logits[0].argmax(-1).tolist()
        words: dict[int, Word] = {}
        for i, word in enumerate(encoding.word_ids()):
            if word is not None:
                start, label = (
                    words[word][::2] if word in words else (offsets[i][0], lease.model.config.id2label[classes[i]])
                )
                words[word] = Word(start, offsets[i][1], label, 1.0)
    by_hand = [(s.start, s.end, s.label) for s in decode_labels(words.values(), "BILOU", text)]
    found = ModelRunner(folder, registry=registry).entities([text])[0].spans
    assert [(span.start, span.end, span.label) for span in found] == by_hand


def test_what_is_no_tagger_says_so(registry: ModelRegistry, tmp_path: Path) -> None:
    """And a text that the entry forbids to cut is refused, not cut."""
    with pytest.raises(RequestError, match="is loaded as BertModel, which finds no entities"):
        ModelRunner(tiny.bert_encoder(tmp_path / "e"), registry=registry).entities(["x"])
    folder = str(tiny.bert_token_classifier(tmp_path / "m", ["O", "B-X"]))
    registry.register("m", "clinical", model_path=folder, long_input="error", do_lower_case=False)
    with pytest.raises(InputTooLongError):
        ModelRunner("m", registry=registry).entities(["fever " * 100])


def test_a_span_is_plain_data() -> None:
    """As JSON has it."""
    span = Span(0, 4, "DATE", 0.5, "2024")
    assert vars(span) == {"start": 0, "end": 4, "label": "DATE", "score": 0.5, "text": "2024"}
