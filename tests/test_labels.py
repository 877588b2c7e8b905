"""Labels: one for each class, a text, and written in the scheme that the entry says."""

from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import LoadError, WeightsMismatchError
from tests.support import tiny

BIO, BILOU = ["O", "B-X", "I-X"], ["O", "B-X", "I-X", "L-X", "U-X"]


@pytest.mark.parametrize(
    "labels",
    [
        {1: "O", 2: "B-X", 3: "I-X"},
        {0: "O", 1: "B-X", 3: "I-X"},
        {-1: "O", 0: "B-X", 1: "I-X"},
        {0: "O", 1: "B-X", 2: None},
        {0: "O", 1: 5, 2: "I-X"},
        {0: "O", 1: "", 2: "I-X"},
        {0: "O", 1: "  ", 2: "I-X"},
        {0: "O", 1: ["B-X"], 2: "I-X"},
        {0: "O", 1: True, 2: "I-X"},
    ],
    ids=str,
)
@pytest.mark.parametrize("make", [tiny.bert_token_classifier, tiny.bert_sequence_classifier])
def test_a_label_map_with_gaps_or_without_texts_is_refused(
    registry: ModelRegistry, tmp_path: Path, make: Any, labels: dict[int, Any]
) -> None:
    """When it is loaded, not when that class is predicted; the entry's own labels lead out."""
    folder = make(
        tmp_path / "m", **({"labels": BIO} if make is tiny.bert_token_classifier else {"config": tiny.labelled(BIO)})
    )
    tiny.edit_config(folder, id2label=labels, label2id=None)
    with pytest.raises(WeightsMismatchError, match=r"label map \(id2label\).*\n.*id2label=\["):
        registry.load_model(folder)
    registry.register("m", "clinical", model_path=str(folder), id2label=BIO)
    assert registry.load_model("m").config.id2label == dict(enumerate(BIO))


@pytest.mark.parametrize("labels", [["O", "X", "X"], ["0", "1", "2"], ["O", "B-é", "I-é"]], ids=str)
def test_unusual_labels_are_kept(registry: ModelRegistry, tmp_path: Path, labels: list[str]) -> None:
    """Twice the same, numbers as texts, any letters."""
    assert registry.load_model(tiny.bert_token_classifier(tmp_path / "m", labels)).config.id2label == dict(
        enumerate(labels)
    )


@pytest.mark.parametrize(
    ("scheme", "labels"),
    [
        ("BIO", BIO),
        ("BIO", ["O", "B", "I"]),
        ("BIO", ["O", "B-X", "I-X", "[CLS]"]),
        ("BILOU", BILOU),
        ("BILOU", ["O", "U-DATE"]),
        ("BILOU", ["O", "B-X", "I-X", "E-X", "S-X"]),
        ("BMEWO", ["NONE", "b_x", "m_x", "e_x", "w_x"]),
        ("IOB1", ["o", "X-I", "Y-I", "Y-B"]),
        ("IO", ["O", "I-131", "PATIENT"]),
        ("IO", ["O", "PATIENT", "DATE"]),
        ("IO", ["O", "B-CELL", "T-CELL"]),
        ("IO", ["O", "E-MAIL"]),
    ],
)  # fmt: skip
def test_a_scheme_that_fits_is_taken(registry: ModelRegistry, tmp_path: Path, scheme: Any, labels: list[str]) -> None:
    """Also where a name has a letter and a dash in it."""
    folder = tiny.bert_token_classifier(tmp_path / "m", labels)
    registry.register("m", "clinical", model_path=str(folder), label_scheme=scheme)
    assert registry.load_model("m")


@pytest.mark.parametrize(
    ("scheme", "labels", "why"),
    [
        ("BIO", BILOU, "'L-X' belongs to BILOU"),
        ("BIO", ["O", "B-X", "I-X", "MISC"], "'MISC' has no position"),
        ("BIO", ["O", "B_X", "I_X", "E_X"], "'E_X' belongs to BILOU"),
        ("BIO", ["O", "B-X", "I-X", "E-X", "S-X"], "'E-X' belongs to BILOU"),
        ("BIO", ["O", "PATIENT"], "'PATIENT' has no position"),
        ("BILOU", ["O", "PATIENT"], "'PATIENT' has no position"),
        ("BILOU", BIO, "none of them begins with L, U, E or S"),
        ("IO", BIO, "'B-X' marks a position"),
        ("IO", ["O", "I-X", "I-Y"], "'I-X' marks a position"),
        ("BIO", ["B-X", "I-X"], "none of them is 'O'"),
        ("IO", ["A", "B"], "none of them is 'O'"),
    ],
)
def test_a_scheme_that_the_labels_are_not_written_in_is_refused(
    registry: ModelRegistry, tmp_path: Path, scheme: Any, labels: list[str], why: str
) -> None:
    """With the label that says so; left out, the model loads."""
    folder = tiny.bert_token_classifier(tmp_path / "m", labels)
    registry.register("m", "clinical", model_path=str(folder), label_scheme=scheme)
    with pytest.raises(LoadError, match=f"label_scheme '{scheme}': {why}"):
        registry.load_model("m")
    registry.register("m", "clinical", model_path=str(folder), replace=True)
    assert registry.load_model("m")


def test_a_stated_outside_label_must_be_one(registry: ModelRegistry, tmp_path: Path) -> None:
    """And is the one that counts."""
    folder = tiny.bert_token_classifier(tmp_path / "m", ["KEEP", "NAME", "NONE", "OTHER"])
    registry.register("m", "clinical", model_path=str(folder), outside_label="O")
    with pytest.raises(LoadError, match="do not follow the entry's outside_label 'O': none of them is"):
        registry.load_model("m")
    registry.register("m", "clinical", model_path=str(folder), outside_label="KEEP", replace=True)
    found = ModelRunner("m", registry=registry).entities(["the patient was given aspirin for fever"])[0]
    assert {span.label for span in found.spans} <= {"NAME", "NONE", "OTHER"}
