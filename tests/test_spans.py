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
from medvllm.engine.model_runner.tagging.spans import LabelledWord, Span, find_spans
from medvllm.errors import InputTooLongError, RequestError
from medvllm.label_schemes import read_scheme
from tests.support import standins, tiny


def _spans(labels: list[str], known: list[str], scheme: str | None = None) -> list[Span]:
    """The spans of words of five letters with these labels."""
    read = read_scheme(known, scheme)
    marks = dict(zip(read.labels, read.marks, strict=True))
    return find_spans(
        (LabelledWord(10 * i, 10 * i + 5, marks[label], 1.0) for i, label in enumerate(labels)), "x" * 100
    )


@pytest.mark.parametrize(
    ("known", "labels", "expected"),
    [
        ("O B-PAT I-PAT L-PAT U-PAT", "B-PAT I-PAT L-PAT", [(0, 25, "PAT")]),
        ("O U-PAT U-DATE", "U-PAT U-PAT O U-DATE", [(0, 5, "PAT"), (10, 15, "PAT"), (30, 35, "DATE")]),
        ("O B-PAT I-PAT L-PAT", "B-PAT L-PAT B-PAT L-PAT", [(0, 15, "PAT"), (20, 35, "PAT")]),
        ("O B-PAT I-PAT L-PAT", "L-PAT I-PAT", [(0, 5, "PAT"), (10, 15, "PAT")]),
        ("O B-X M-X E-X S-X", "B-X M-X E-X S-X O", [(0, 25, "X"), (30, 35, "X")]),
        ("O B-X M-X E-X W-X", "W-X B-X E-X", [(0, 5, "X"), (10, 25, "X")]),
        ("O B-X I-X", "B-X I-X B-X O I-X", [(0, 15, "X"), (20, 25, "X"), (40, 45, "X")]),
        ("O I-X I-Y B-X", "I-X I-X B-X I-X I-Y", [(0, 15, "X"), (20, 35, "X"), (40, 45, "Y")]),
        ("O B-X I-X B-Y I-Y", "B-X I-Y", [(0, 5, "X"), (10, 15, "Y")]),
        ("O B I", "B I O I", [(0, 15, "ENTITY"), (30, 35, "ENTITY")]),
        ("O B-Non-drug I-Non-drug", "B-Non-drug I-Non-drug", [(0, 15, "Non-drug")]),
        ("NONE B_NAME I_NAME", "B_NAME I_NAME NONE I_NAME", [(0, 15, "NAME"), (30, 35, "NAME")]),
        ("o b-name i-name", "b-name i-name b-name", [(0, 15, "name"), (20, 25, "name")]),
        ("O NAME-B NAME-I", "NAME-B NAME-I NAME-B", [(0, 15, "NAME"), (20, 25, "NAME")]),
        ("O AGE_S NAME_B NAME_E NAME_I NAME_S", "NAME_B NAME_E AGE_S NAME_S", None),
        ("O PATIENT DATE", "PATIENT PATIENT O PATIENT", [(0, 15, "PATIENT"), (30, 35, "PATIENT")]),
        ("O E-MAIL B-CELL PHONE", "E-MAIL E-MAIL B-CELL B-CELL", [(0, 15, "E-MAIL"), (20, 35, "B-CELL")]),
        ("O B-CELL T-CELL", "B-CELL B-CELL T-CELL", [(0, 15, "B-CELL"), (20, 25, "T-CELL")]),
        ("O OTHER DATE", "OTHER O DATE", [(0, 5, "OTHER"), (20, 25, "DATE")]),
        ("O B-X I-X [CLS] [SEP]", "[CLS] B-X I-X [SEP]", [(10, 25, "X")]),
    ],
)
def test_labels_become_spans(known: str, labels: str, expected: Any) -> None:
    """A name of three words is one span under BILOU, where others see two; neighbours stay apart where they can."""
    found = [(span.start, span.end, span.label) for span in _spans(labels.split(), known.split())]
    assert found == (expected or [(0, 15, "NAME"), (20, 25, "AGE"), (30, 35, "NAME")])


_MAPS = [
    *("O B-X I-X B-Y I-Y", "O X Y", "O B-X I-X L-X U-X B-Y I-Y L-Y U-Y", "none X_S X_B X_M X_E", "0 b i"),
    *("OUT B_X I_X", "O I-X I-Y B-Y"),
]


@given(st.data(), st.sampled_from(_MAPS))
def test_no_labelled_word_is_lost(data: Any, known: str) -> None:
    """Whatever a model strings together, also against its own scheme; and no other word is covered."""
    labels = data.draw(st.lists(st.sampled_from(known.split()), max_size=12))
    spans = _spans(labels, known.split())
    assert all(a.end <= b.start for a, b in pairwise(spans))
    for i, label in enumerate(labels):
        covering = [span for span in spans if span.start <= 10 * i and 10 * i + 5 <= span.end]
        assert len(covering) == (label != known.split()[0])


@pytest.mark.parametrize(
    ("labels", "scheme"),
    [(standins.BILOU, "BILOU"), (standins.NER, "BIO"), (standins.PHI, "IO"), (["B", "I"], "BIO"), ([], "IO")],
)
def test_a_scheme_is_seen_in_the_label_map(labels: list[str], scheme: str) -> None:
    """For a tagger that no entry describes."""
    assert read_scheme(list(dict.fromkeys(["O", *labels]))).name == scheme


@pytest.mark.parametrize(
    ("labels", "why"),
    [
        ("O B-X I-X MISC", "'B-X' marks a position, and 'MISC' does not"),
        ("O B-X I-Y", "some types have only a B, others only an I"),
        ("O B-X I-X E-MAIL", "their positions B, E, I are of no scheme"),
        ("B-X I-X", "none of them is 'O'"),
        ("NONE OTHER X", "'NONE' and 'OTHER' may both mark"),
    ],
)
def test_labels_that_do_not_tell_are_asked_for(registry: ModelRegistry, tmp_path: Path, labels: str, why: str) -> None:
    """Never guessed; the error says what to state, and stating it leads out."""
    folder = tiny.bert_token_classifier(tmp_path / "m", labels.split())
    with pytest.raises(RequestError, match=f"do not tell how they mark entities: {why}.*\nRegister it with: "):
        ModelRunner(folder, registry=registry).entities(["fever"])
    names = ["O", "B-X", "I-X", "B-Y"][: len(labels.split())]
    registry.register("m", "clinical", model_path=str(folder), id2label=names)
    assert len(ModelRunner("m", registry=registry).entities(["fever"])) == 1


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
        words: dict[int, LabelledWord] = {}
        scheme = read_scheme(standins.BILOU)
        for i, word in enumerate(encoding.word_ids()):
            if word is not None:
                first = words.get(word, LabelledWord(offsets[i][0], 0, scheme.marks[classes[i]], 1.0))
                words[word] = first._replace(end=offsets[i][1])
    by_hand = [(s.start, s.end, s.label) for s in find_spans(words.values(), text)]
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
