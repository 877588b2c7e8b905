"""Corpora in parts: what is written, what is kept, what is refused."""

import errno
import itertools
import json
import logging
import multiprocessing
import pickle
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.rows import BadRow, Row
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.batch.first_rows import FirstRows
from medvllm.engine.model_runner.batch.folder import BatchFolder
from medvllm.engine.model_runner.batch.manifest import Manifest
from medvllm.engine.model_runner.batch.part import Part, Unanswered, cut_into_parts
from medvllm.engine.model_runner.batch.plan import make_plan
from medvllm.engine.model_runner.batch.processes import answer_parts
from medvllm.engine.model_runner.batch.same_model import SameModel
from medvllm.engine.model_runner.batch.secrets import secret_of
from medvllm.engine.model_runner.batch.source import Source
from medvllm.engine.model_runner.batch.summary import read_status
from medvllm.engine.model_runner.batch.team import Team, WorkerEndedError
from medvllm.engine.model_runner.batch.warnings import ToldOnce, Warnings
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job, Worker
from medvllm.errors import DeviceMemoryError, LoadError, MedVLLMError, OutputError, RequestError
from medvllm.file_lock import file_lock
from medvllm.model_registry.known_calls import TRUST_S
from medvllm.receipt import Receipt
from tests.support import decoders, tiny
from tests.support.console import command
from tests.support.disks import mounted_disk
from tests.support.scripted import Reply, Sent, scripted
from tests.support.trained import MINILM
from tests.support.users import another_user, reachable

SECRET = "xanthopsiacanary"
NOTES = [f"Patient {number} was given aspirin for fever." for number in range(7)]
LABELS = ["O", "B-PATIENT", "I-PATIENT"]
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def tagger(tmp_path: Path, registry: ModelRegistry) -> ModelRunner:
    """A small de-identifier, registered as "tagger"."""
    folder = tiny.bert_token_classifier(tmp_path / "model", LABELS)
    registry.register(
        "tagger", "clinical", model_path=str(folder), task="deid", do_lower_case=False, long_input="error"
    )
    return ModelRunner("tagger", registry=registry)


def lines(file: Path, rows: Iterable[Any]) -> Path:
    """A file with a row of JSON on each line; a row of bytes is written as it is."""
    made = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    file.write_bytes(b"".join(row + b"\n" for row in made))
    return file


def notes(folder: Path, texts: Iterable[str] = NOTES) -> Path:
    """The notes as a file, with ids."""
    return lines(folder / "notes.jsonl", ({"id": f"n{at}", "text": text} for at, text in enumerate(texts)))


def contents(out: Path) -> dict[str, bytes]:
    """The files of the parts, in order, and the rows without an answer."""
    found = {file.name: file.read_bytes() for file in sorted((out / "parts").iterdir())}
    bad = out / "bad_rows.jsonl"
    return found | ({bad.name: bad.read_bytes()} if bad.exists() else {})


def records(out: Path) -> list[dict[str, Any]]:
    """The records of all parts."""
    return [
        json.loads(line)
        for name, content in contents(out).items()
        if name.startswith("part-")
        for line in content.splitlines()
    ]


def bad_rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "bad_rows.jsonl").read_text().splitlines()]


_MAKERS: dict[str, Callable[[Path], Path]] = {
    "embed": tiny.bert_encoder,
    "ner": lambda folder: tiny.bert_token_classifier(folder, LABELS),
    "redact": lambda folder: tiny.bert_token_classifier(folder, LABELS),
    "classify": lambda folder: tiny.bert_sequence_classifier(folder, config=tiny.labelled(["YES", "NO"])),
    "assertions": lambda folder: tiny.bert_sequence_classifier(folder, config=tiny.labelled(["PRESENT", "ABSENT"])),
    "fill-mask": tiny.bert_masked_lm,
    "generate": decoders.llama,
}
_OPTIONS: dict[str, dict[str, Any]] = {"generate": {"max_new_tokens": 3}, "fill-mask": {"top_k": 2}}
_FACTS: dict[str, dict[str, Any]] = {"redact": {"task": "deid"}, "assertions": {"entity_markers": ("[", "]")}}


@pytest.mark.parametrize("task", list(_MAKERS))
def test_parts_have_what_the_runner_answers(tmp_path: Path, registry: ModelRegistry, task: str) -> None:
    """In the order of the input, with ids and coverage; as JSON lines, and the same values in Parquet."""
    folder = _MAKERS[task](tmp_path / "model")
    casing: dict[str, Any] = {} if task == "generate" else {"do_lower_case": False}
    registry.register("m", "clinical", model_path=str(folder), **casing, **_FACTS.get(task, {"task": task}))
    texts = [f"{text} [MASK]" if task == "fill-mask" else text for text in NOTES]
    spans = {"spans": [[8, 9]]} if task == "assertions" else {}
    file = lines(tmp_path / "in.jsonl", ({"id": 10 + at, "text": text, **spans} for at, text in enumerate(texts)))
    runner, options = ModelRunner("m", registry=registry), _OPTIONS.get(task, {})
    done = runner.batch(file, tmp_path / "out", task=task, rows_per_part=3, output_format="jsonl", **options)
    assert (done.state, done.rows, done.answered, done.bad_rows, done.parts, done.parts_of_run) == (
        *("complete", 7, 7, 0, 3, 3),
    )
    found = records(tmp_path / "out")
    assert [record.pop("id") for record in found] == [*range(10, 17)]
    own: dict[str, Any] = {"spans": [[(8, 9)]] * 7} if task == "assertions" else {}
    expected = runner.run(task, texts, **options, **own).to_dict()
    assert _rounded(found) == _rounded(expected)
    assert done.tokens == sum(_tokens(record) for record in found)

    runner.batch(file, tmp_path / "table", task=task, rows_per_part=3, **options)
    table = parquet.read_table(tmp_path / "table" / "parts")
    rows = table.to_pylist()
    assert [row.pop("id") for row in rows] == [*range(10, 17)] and table.schema.field("id").type == pyarrow.int64()
    if task == "embed":
        assert table.schema.field("vector").type == pyarrow.list_(pyarrow.float32(), 32)
        np.testing.assert_array_equal(
            np.array([row["vector"] for row in rows], np.float32),
            np.array([record["vector"] for record in found], np.float32),
        )
    else:
        assert _plain(rows) == _plain(found)
    facts = json.loads(parquet.read_metadata(tmp_path / "table" / "parts" / "part-00001.parquet").metadata[b"medvllm"])
    assert (facts["part"], facts["first_row"], facts["task"], facts["receipt"]["name"]) == (1, 4, task, "m")


def _rounded(value: Any) -> Any:
    """The value with numbers that rounding moves cut off."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return round(value, 4) if isinstance(value, float) else value


def _plain(value: Any) -> Any:
    """A value as JSON has it: what is null is left out, and a map is an object."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, list) and value and isinstance(value[0], tuple):
        return dict(value)
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _tokens(record: dict[str, Any]) -> int:
    return sum(each["tokens"] for each in record["assertions"]) if "assertions" in record else record["tokens"]


def test_a_row_that_cannot_be_answered_stops_no_other(
    tmp_path: Path, tagger: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """Its position, place and reason are written, never its text; the others are answered as if it were not there."""
    caplog.set_level(logging.DEBUG)
    good = {"id": "g", "text": "Patient was seen."}
    file = lines(
        tmp_path / "notes.jsonl",
        [
            *(good, f'{{"id": "a", "text": "{SECRET}'.encode(), {"id": "b", "text": None, "t": SECRET}),
            *(good, {"id": "c", "note": SECRET}, b'{"id": "d", "text": "' + SECRET.encode() + b' \xe9"}'),
            *({"id": "e", "text": f"{SECRET} aspirin " * 60}, {"text": SECRET}, good),
            *(
                {"id": "f", "text": f"{SECRET} \ud800"},
                {"id": "h", "text": [SECRET, "a b"]},
                {"id": {}, "text": SECRET},
            ),
        ],
    )
    done = tagger.batch(file, tmp_path / "out", task="ner", rows_per_part=4, output_format="jsonl")
    assert (done.rows, done.answered, done.bad_rows, done.state) == (12, 3, 9, "complete")
    assert [record["id"] for record in records(tmp_path / "out")] == ["g"] * 3
    found = bad_rows(tmp_path / "out")
    assert [row["row"] for row in found] == [2, 3, 5, 6, 7, 8, 10, 11, 12]
    assert all(row["place"] == f"line {row['row']} of {str(file)!r}" for row in found)
    for row, what in zip(
        found,
        [
            "no valid JSON",
            "is null",
            "no column 'text'",
            "not UTF-8",
            "tokens",
            "no id",
            "Unicode",
            "white space",
            "id",
        ],
        strict=True,
    ):
        assert what in row["reason"]
    written = b"".join(each.read_bytes() for each in (tmp_path / "out").rglob("*") if each.is_file())
    assert SECRET.encode() not in written.replace(str(file).encode(), b"") and SECRET not in caplog.text
    (tmp_path / "out" / "bad_rows.jsonl").unlink()  # as a kill behind the last part leaves it
    assert read_status(tmp_path / "out").state == "stopped"
    again = tagger.batch(file, tmp_path / "out", task="ner", rows_per_part=4, output_format="jsonl")
    assert (again.state, again.parts_of_run, bad_rows(tmp_path / "out")) == ("complete", 0, found)
    lines(tmp_path / "good.jsonl", [good] * 3)
    tagger.batch(tmp_path / "good.jsonl", tmp_path / "alone", task="ner", rows_per_part=1, output_format="jsonl")
    assert _rounded(records(tmp_path / "out")) == _rounded(records(tmp_path / "alone"))


def test_rows_of_tables_that_cannot_be_read(tmp_path: Path, tagger: ModelRunner) -> None:
    """Fields that are too many, bytes of another encoding, notes that are PDF; a quote that stays open is refused."""
    (tmp_path / "a.csv").write_bytes(b'id,text\n1,fever\n2,a,b\n3,"caf\xe9, hot"\n4,cough\n')
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_bytes(b"%PDF")
    (tmp_path / "notes" / "b.txt").write_text("aspirin")
    pyarrow.parquet.write_table(pyarrow.table({"id": [5, 6], "text": ["fever", None]}), tmp_path / "a.parquet")
    done = tagger.batch([tmp_path / "*.csv", tmp_path / "notes", tmp_path / "a.parquet"], tmp_path / "out")
    assert (done.rows, done.answered) == (8, 4)
    assert [row["row"] for row in bad_rows(tmp_path / "out")] == [2, 3, 5, 8]
    table = parquet.read_table(tmp_path / "out" / "parts")
    assert table["id"].to_pylist() == ["1", "4", "b.txt", "5"]  # numbers and texts together are texts
    (tmp_path / "b.csv").write_text('id,text\n1,"fever\n2,cough\n')
    with pytest.raises(RequestError, match="a quote that is not closed in line 2"):
        tagger.batch(tmp_path / "b.csv", tmp_path / "open")
    assert not list((tmp_path / "open" / "parts").iterdir())


def test_a_file_is_read_once_however_it_is_named(
    tmp_path: Path, tagger: ModelRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another spelling, a link, a pattern, or the folder of a note."""
    monkeypatch.chdir(tmp_path)
    notes(tmp_path)
    (tmp_path / "link.jsonl").symlink_to("notes.jsonl")
    (tmp_path / "ward" / "a").mkdir(parents=True)
    (tmp_path / "ward" / "a" / "1.txt").write_text("fever")
    for second in ("./notes.jsonl", str(tmp_path / "notes.jsonl"), "link.jsonl", "n*.jsonl"):
        with pytest.raises(RequestError, match="is to be read twice"):
            tagger.batch(["notes.jsonl", second], "out")
    for second in ("ward/*/*.txt", "ward/a", "./ward"):
        with pytest.raises(RequestError, match=r"'.*/ward/a/1\.txt', which .* means, is to be read twice"):
            tagger.batch(["ward", second], "out")
    assert tagger.batch(["notes.jsonl", "ward"], "out").rows == 8


SURROGATES = {"DEFAULT": {"type": "surrogate", "key": KEY}}
SHIFTED_DATES = {"DEFAULT": {"type": "shift_dates", "key": KEY}}


def test_what_two_files_call_alike_is_never_one_document(
    tmp_path: Path, tagger: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither notes nor rows of tables. Where answers do not depend on it, a warning says so, as in other tasks."""
    for name in ("a", "b"):
        (tmp_path / "wards" / name).mkdir(parents=True)
        (tmp_path / "wards" / name / "1.txt").write_text("fever")
    folders = [tmp_path / "wards" / "a", tmp_path / "wards" / "b"]
    one, other = tmp_path / "one.csv", lines(tmp_path / "other.jsonl", [{"id": 1, "text": "x"}, {"id": 7, "text": "y"}])
    one.write_text("id,text\n5,a\n5,b\n7,c\n")
    table = tmp_path / "t.parquet"
    parquet.write_table(pyarrow.table({"id": ["9", "1"], "text": ["x", "y"]}), table)
    for at, (operators, sources, place, first) in enumerate(
        [
            (SURROGATES, folders, f"file {str(folders[1] / '1.txt')!r}", folders[0]),
            (SHIFTED_DATES, folders, f"file {str(folders[1] / '1.txt')!r}", folders[0]),
            (SURROGATES, [one, other], f"line 2 of {str(other)!r}", one),
            (SHIFTED_DATES, [folders[0], other, table], f"row 2 of {str(table)!r}", other),
        ]
    ):
        with pytest.raises(RequestError) as refused:
            tagger.batch(sources, tmp_path / "refused", task="redact", operators=operators, rows_per_part=1 + at)
        assert f"The id in {place} is that of a row of {str(first)!r} too" in str(refused.value)
        assert "put the folders into one" in str(refused.value)
    warned: list[tuple[str, dict[str, Any]]] = [("ner", {}), ("redact", {"operators": {"PATIENT": {"type": "mask"}}})]
    for task, options in warned:
        caplog.clear()
        out = tmp_path / task
        assert tagger.batch([*folders, one, other], out, task=task, **options).answered == 7
        assert f"The id in file {str(folders[1] / '1.txt')!r} is that of an earlier row" in caplog.text
    caplog.clear()
    apart = [tmp_path / "wards", one]
    assert tagger.batch(apart, tmp_path / "out", task="redact", operators=SURROGATES).answered == 5
    assert "earlier row" not in caplog.text


def test_files_of_a_folder_that_are_left_out_are_counted_once(
    tmp_path: Path, tagger: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """Although a batch looks for the notes several times."""
    for name in ("a/1.txt", "a/x.pdf", "b/2.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("fever")
    options: dict[str, Any] = {"task": "redact", "operators": SURROGATES}
    assert tagger.batch([tmp_path / "a", tmp_path / "b"], tmp_path / "out", **options).answered == 2
    assert caplog.text.count("are left out: 1.") == 1


def test_ids_are_numbers_of_rows_if_there_are_none(tmp_path: Path, tagger: ModelRunner) -> None:
    """Counted from 1, with the rows that cannot be read."""
    file = lines(tmp_path / "n.jsonl", ["fever", b"{", "cough"])
    tagger.batch(file, tmp_path / "out")
    assert parquet.read_table(tmp_path / "out" / "parts")["id"].to_pylist() == [1, 3]


def test_a_finished_part_is_kept_and_a_changed_one_is_made_again(
    tmp_path: Path, tagger: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """By its digest; a line of the manifest that was cut off costs its part."""
    file, out = notes(tmp_path), tmp_path / "out"
    tagger.batch(file, out, task="ner", rows_per_part=2)
    whole = contents(out)
    parts = [out / "parts" / name for name in whole]
    stamps = [each.stat().st_mtime_ns for each in parts]
    again = tagger.batch(file, out, task="ner", rows_per_part=2)
    assert (again.parts_done, again.parts_of_run) == (4, 0) and [e.stat().st_mtime_ns for e in parts] == stamps
    parts[0].unlink()
    parts[2].write_bytes(parts[2].read_bytes()[::-1])
    caplog.clear()
    repaired = tagger.batch(file, out, task="ner", rows_per_part=2)
    assert repaired.parts_of_run == 2 and contents(out) == whole
    assert caplog.text.count("is missing or was changed") == 2
    assert [each.stat().st_mtime_ns for each in (parts[1], parts[3])] == [stamps[1], stamps[3]]
    manifest = out / "manifest.jsonl"
    lines_of_first_run = manifest.read_bytes().splitlines(keepends=True)[:6]
    manifest.write_bytes(b"".join(lines_of_first_run)[:-20])
    assert tagger.batch(file, out, task="ner", rows_per_part=2).parts_of_run == 1 and contents(out) == whole
    assert all(json.loads(line) for line in manifest.read_text().splitlines())
    usual = manifest.read_bytes()
    for old, new, what in (
        (b'"format"', b'"form', r"Line 1 of .* is damaged"),
        (b'"input"', b'"inputs"', r"Line 1 of .* is damaged"),
        (b'"first_row"', b'"row"', r"Line 3 of .* is damaged"),
        (b'"format": 1', b'"format": 2', r"has format 2, .* reads 1\."),
    ):
        manifest.write_bytes(usual.replace(old, new, 1))
        with pytest.raises(OutputError, match=what):
            tagger.batch(file, out, task="ner", rows_per_part=2)


def test_other_conditions_are_refused(tmp_path: Path, registry: ModelRegistry, tagger: ModelRunner) -> None:
    """Another input, model, version, option or library, which the message names; --restart begins anew."""
    file, out = notes(tmp_path), tmp_path / "out"

    def run(runner: ModelRunner = tagger, **changed: Any) -> Any:
        usual: dict[str, Any] = {"sources": file, "out": out, "task": "ner", "rows_per_part": 2}
        return runner.batch(**usual | changed)

    run(threshold=0.1)
    whole = contents(out)
    other = notes(tmp_path / "model", [*NOTES[:-1], "Another note."])
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"threshold": 0.2}, "option threshold: 0.1, now 0.2"),
        ({}, "option threshold: 0.1, now null"),
        ({"threshold": 0.1, "rows_per_part": 3}, "conditions:\n  rows per part: 2, now 3\nGive"),
        ({"threshold": 0.1, "task": "deid"}, 'task: "ner", now "deid"'),
        ({"threshold": 0.1, "output_format": "jsonl"}, 'output format: "parquet", now "jsonl"'),
        ({"threshold": 0.1, "sources": other}, "SHA-256 of the input: "),
    ]
    for changed, what in refusals:
        with pytest.raises(RequestError, match="under other conditions") as refused:
            run(**changed)
        assert what in str(refused.value) and "--restart" in str(refused.value)
    shutil.move(file, moved := tmp_path / "moved.jsonl")
    assert run(threshold=0.1, sources=moved).parts_of_run == 0  # the same rows in another place
    tiny.edit_weights(tmp_path / "model", lambda name, weight: weight + 0.01)
    time.sleep(TRUST_S)
    with pytest.raises(RequestError, match="SHA-256 of the model: "):
        run(threshold=0.1, sources=moved)
    assert contents(out) == whole
    assert run(threshold=0.1, sources=moved, restart=True).parts_of_run == 4 and contents(out) != whole
    manifest = out / "manifest.jsonl"
    first, rest = manifest.read_text().split("\n", 1)
    conditions = json.loads(first)
    conditions["model"]["libraries"]["medvllm"] = "0.0.1"
    manifest.write_text(f"{json.dumps(conditions)}\n{rest}")
    with pytest.raises(RequestError, match=r'version of medvllm: "0\.0\.1", now "'):
        run(threshold=0.1, sources=moved)


def test_parts_that_were_changed_or_cannot_be_read_are_not_removed_for_other_conditions(
    tmp_path: Path, tagger: ModelRunner
) -> None:
    """They may be all that somebody has: only --restart removes them. What cannot be read is not made again unasked."""
    file, out = notes(tmp_path), tmp_path / "out"
    tagger.batch(file, out, task="ner", rows_per_part=4)
    for part in (out / "parts").iterdir():
        part.write_bytes(b"corrected by hand")
    with pytest.raises(RequestError, match="option threshold: null, now 0.2(.|\n)*--restart"):
        tagger.batch(file, out, task="ner", rows_per_part=4, threshold=0.2)
    assert set(contents(out).values()) == {b"corrected by hand"} and read_status(out).parts_done == 2
    assert tagger.batch(file, out, task="ner", rows_per_part=4).parts_of_run == 2  # as its conditions are the same
    whole = contents(out)
    reachable(tmp_path)
    for part in (out / "parts").iterdir():
        part.chmod(0o600)
    [record, _] = Manifest(out).parts.values()
    with another_user(), pytest.raises(OutputError, match="cannot be read: Permission denied.\nMake it readable"):
        BatchFolder(out).is_whole(record)
    assert contents(out) == whole


def test_a_generation_goes_on_with_its_seed(tmp_path: Path, registry: ModelRegistry) -> None:
    """With another one, it is refused; so is sampling without one."""
    registry.register("m", "clinical", model_path=str(decoders.llama(tmp_path / "model")), task="generate")
    runner, file, out = ModelRunner("m", registry=registry), notes(tmp_path, NOTES[:2]), tmp_path / "out"
    options: dict[str, Any] = {"max_new_tokens": 2, "temperature": 1.0}
    with pytest.raises(RequestError, match=r"Without a seed.*\nGive one: --seed 1"):
        runner.batch(file, out, **options)
    runner.batch(file, out, seed=1, **options)
    with pytest.raises(RequestError, match="option seed: 1, now 2"):
        runner.batch(file, out, seed=2, **options)
    assert runner.batch(file, out, seed=1, **options).parts_of_run == 0


def test_restart_removes_nothing_before_a_new_batch_can_begin(
    tmp_path: Path, registry: ModelRegistry, tagger: ModelRunner
) -> None:
    """Neither for an input nor for a model that is wrong. A damaged manifest does not hold it up."""
    file, out = notes(tmp_path), tmp_path / "out"
    tagger.batch(file, out, task="ner", rows_per_part=2)
    before = contents(out), (out / "manifest.jsonl").read_bytes()
    with pytest.raises(RequestError, match="There is no column"):
        tagger.batch(file, out, task="ner", text_column="note", restart=True)
    shutil.move(tmp_path / "model", tmp_path / "elsewhere")
    with pytest.raises(MedVLLMError):
        ModelRunner("tagger", registry=registry).batch(file, out, task="ner", dtype="bfloat16", restart=True)
    shutil.move(tmp_path / "elsewhere", tmp_path / "model")
    assert (contents(out), (out / "manifest.jsonl").read_bytes()) == before
    (out / "manifest.jsonl").write_bytes(b"{")
    assert tagger.batch(file, out, task="ner", rows_per_part=3, restart=True).parts_of_run == 3
    assert len(contents(out)) == 3 and read_status(out).state == "complete"


def test_a_batch_without_parts_begins_anew(tmp_path: Path, tagger: ModelRunner) -> None:
    """Its conditions bind nobody. What a kill has left of a first line or of --restart is no other program's."""
    file, out = notes(tmp_path), tmp_path / "out"
    long = lines(tmp_path / "long.jsonl", ["aspirin " * 600])
    with pytest.raises(RequestError, match="tokens"):
        tagger.batch(long, out, task="ner")
    assert tagger.batch(file, out, task="ner", rows_per_part=2).parts_done == 4
    folder = BatchFolder(out)
    first = next((out / "parts").iterdir())
    first.unlink()  # as a --restart that is killed leaves it
    (out / "parts" / f".{first.name}.0123456789abcdef.partial").touch()
    assert tagger.batch(file, out, task="ner", rows_per_part=2).parts_of_run == 1
    folder.clear()
    assert not folder.is_ours and not [*(out / "parts").iterdir()]
    (out / ".manifest.jsonl.0123456789abcdef.partial").touch()
    assert tagger.batch(file, out, task="ner").parts_done == 1
    assert {each.name for each in out.iterdir()} - {".lock"} == {"manifest.jsonl", "parts"}


def test_a_name_means_one_version_throughout(
    tmp_path: Path, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If an alias has moved when the batch goes on, that is refused; the version itself goes on."""
    for seed, name in enumerate(("one", "two")):
        folder = tiny.bert_token_classifier(tmp_path / name, LABELS, seed=seed)
        registry.register("m", "clinical", model_path=str(folder), task="ner", persist=True, replace=True)
    registry.catalog.set_alias("m", "production", 1)
    runner = ModelRunner("m@production", registry=registry)
    assert runner.pinned().name == "m@1"
    file, out = notes(tmp_path), tmp_path / "out"
    assert runner.batch(file, out).model == "m@1"
    registry.catalog.set_alias("m", "production", 2)
    with pytest.raises(RequestError, match="version of the model: 1, now 2"):
        runner.batch(file, out)
    assert ModelRunner("m@1", registry=registry).batch(file, out).parts_of_run == 0
    monkeypatch.chdir(tmp_path)
    assert ModelRunner("./one", registry=registry).pinned().name == str(tmp_path / "one")


def test_folders_of_others_are_refused(tmp_path: Path, tagger: ModelRunner) -> None:
    """One that is not empty, and one that another run writes to; nothing in them changes, also with restart."""
    file = notes(tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("x")
    for restart in (False, True):
        with pytest.raises(RequestError, match="is not empty, and holds no batch"):
            tagger.batch(file, foreign, restart=restart)
    assert [each.name for each in foreign.iterdir()] == ["thesis.txt"]
    recordings = lines(foreign / "manifest.jsonl", [{"audio_filepath": "a.wav", "duration": 3.2}])  # of another program
    (foreign / "thesis.txt").unlink()
    (foreign / "parts").mkdir()
    (foreign / "parts" / "part-1.wav").write_bytes(b"x")
    before = recordings.read_bytes()
    for restart in (False, True):
        with pytest.raises(RequestError, match="is not empty, and holds no batch"):
            tagger.batch(file, foreign, restart=restart)
    with pytest.raises(RequestError, match="There is no batch in"):
        read_status(foreign)
    assert recordings.read_bytes() == before and (foreign / "parts" / "part-1.wav").exists()
    tagger.batch(file, tmp_path / "out")
    with file_lock(tmp_path / "out" / ".lock", private=False):
        with pytest.raises(RequestError, match="Another run writes to .*\nSee how far it is: medvllm batch status"):
            tagger.batch(file, tmp_path / "out", restart=True)
        assert read_status(tmp_path / "out").state == "running"
        reachable(tmp_path)
        with another_user():  # a colleague, who may not write there
            assert read_status(tmp_path / "out").state == "running"
    assert read_status(tmp_path / "out").state == "complete"


def test_what_no_row_could_be_answered_for_is_refused(tmp_path: Path, registry: ModelRegistry) -> None:
    """A wrong column, a model of pairs, an empty file, an option: an error, not a batch of bad rows."""
    folder = tiny.bert_encoder(tmp_path / "model")
    registry.register("m", "clinical", model_path=str(folder), task="embed", inputs=["title", "abstract"])
    runner = ModelRunner("m", registry=registry)
    file = notes(tmp_path)
    with pytest.raises(RequestError, match="None of the rows can be read. The first:\nThere is no column 'title'"):
        runner.batch(file, tmp_path / "out")
    with pytest.raises(RequestError, match="must be a pair"):
        runner.batch(file, tmp_path / "out", text_column="text")
    assert read_status(tmp_path / "out").done == 0
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(RequestError, match="There is no text in"):
        runner.batch(tmp_path / "empty.jsonl", tmp_path / "none")
    usual: dict[str, Any] = {"sources": file, "out": tmp_path / "none"}
    refused: list[tuple[dict[str, Any], str]] = [
        ({"task": "rerank"}, "puts all texts into one order"),
        ({"rows_per_part": 0}, "rows_per_part"),
        ({"workers": 0}, "workers"),
        ({"output_format": "parkuet"}, "'parquet'"),
        ({"role": "doctor"}, "role"),
        ({"sources": "-"}, "standard input"),
        ({"sources": [file, file]}, "twice"),
        ({"sources": str(tmp_path / "*.tsv")}, "There is no file"),
    ]
    for wrong, what in refused:
        with pytest.raises(RequestError, match=what):
            runner.batch(**usual | wrong)


def test_a_bad_row_at_the_beginning_refuses_nothing(tmp_path: Path, tagger: ModelRunner) -> None:
    """Whatever the size of the parts."""
    file = lines(tmp_path / "n.jsonl", ["aspirin " * 600, "fever", b"{", "cough"])
    for size in (1, 2):
        done = tagger.batch(file, out := tmp_path / str(size), task="ner", rows_per_part=size)
        assert (done.state, done.answered, done.parts) == ("complete", 2, 4 // size)
        assert [row["row"] for row in bad_rows(out)] == [1, 3]


def test_only_the_order_of_the_corpus_says_whether_a_batch_is_refused() -> None:
    """And not that in which its parts are finished: a part with answers far behind the first rows saves none."""

    def part(number: int, *, answered: int = 0) -> AnsweredPart:
        bad = () if answered else tuple(Unanswered(number * 500 + at, "", "") for at in range(500))
        return AnsweredPart(number, b"", answered, 0, bad, 0.0, None if answered else RequestError(f"row of {number}"))

    for order in itertools.permutations((0, 1, 2)):
        refused = [part(0), part(1), part(2, answered=500)]
        with pytest.raises(RequestError, match="None of the first 1,000 rows can be answered. The first:\nrow of 0"):
            _decide(refused[at] for at in order)
        accepted = [part(0), part(1, answered=1), part(2)]
        _decide(accepted[at] for at in order)
    FirstRows({0: 5}).add(part(1))
    with pytest.raises(RequestError, match="None of the rows can be answered. The first:\nrow of 0"):
        _decide([part(0)])


def _decide(parts: Iterable[AnsweredPart]) -> None:
    first_rows = FirstRows({})
    for part in parts:
        first_rows.add(part)
    first_rows.check()


def test_an_input_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    """A part is answered only if its rows are those that were planned."""
    for rows, what in (
        (["a", "b", "c", "x"], "rows from 3 on"),
        (["a", "b"], "rows from 3 on"),
        ([*"abcde"], "from 5"),
    ):
        plan = make_plan(
            Source((str(lines(tmp_path / "n.jsonl", [*"abcd"])),), Columns()),
            2,
            has_documents=False,
            keeps_documents=False,
        )
        assert len(list(plan.parts())) == 2
        lines(tmp_path / "n.jsonl", rows)
        with pytest.raises(RequestError, match=what):
            list(plan.parts())


def test_documents_are_redacted_as_one(tmp_path: Path, tagger: ModelRunner) -> None:
    """Their rows stay in one part, and a key gives each run the same surrogates; a drawn key is refused."""
    rows = [{"id": f"p{at // 3}", "text": f"Patient Smith{at // 3} on 3 May 2019, aspirin."} for at in range(9)]
    file, out = lines(tmp_path / "n.jsonl", rows), tmp_path / "out"

    def run(**changed: Any) -> Any:
        operators = {"DEFAULT": {"type": "surrogate", "key": KEY, **changed.pop("options", {})}}
        usual: dict[str, Any] = {"sources": file, "out": out, "task": "redact", "rows_per_part": 2}
        return tagger.batch(**usual | {"operators": operators, "threshold": 0.05} | changed)

    assert run().parts == 3
    for at in range(3):
        texts = parquet.read_table(out / "parts" / f"part-0000{at}.parquet")["text"].to_pylist()
        assert len(texts) == 3 and len(set(texts)) == 1
    whole = contents(out)
    (out / "parts" / "part-00001.parquet").unlink()
    run()
    assert contents(out) == whole
    written = (out / "manifest.jsonl").read_text()
    assert KEY not in written and "surrogate" in written
    with pytest.raises(RequestError, match="keys or seeds of the operators"):
        run(options={"key": KEY[::-1]})
    first, rest = written.split("\n", 1)
    (out / "manifest.jsonl").write_text(f"{json.dumps(json.loads(first) | {'faker': '0.1'})}\n{rest}")
    with pytest.raises(RequestError, match=r'version of Faker: "0\.1", now "'):  # its lists of names are others
        run()
    lines(file, rows[::2] + rows[1::2])
    with pytest.raises(RequestError, match="The rows of a document are in several parts"):
        run(out=tmp_path / "mixed")
    for options, what in (({"key": None}, "need a key"), ({"scope": "call"}, "need all texts at once")):
        with pytest.raises(RequestError, match=what):
            run(out=tmp_path / "none", options=options)
    with pytest.raises(RequestError, match="vault"):
        run(out=tmp_path / "none", options={"vault": str(tmp_path / "v")}, workers=2)
    assert run(out=tmp_path / "dates", operators=SHIFTED_DATES).parts == 5  # each date is moved by its document alone


def test_a_bad_row_between_documents_joins_no_parts() -> None:
    """A part ends where another document begins, also behind rows that cannot be read."""

    def sizes(rows: str) -> list[int]:
        made = [BadRow("", RequestError("")) if each == "-" else Row("", "", each) for each in rows]
        return [len(part.rows) for part in cut_into_parts(made, 2, keeps_documents=True)]

    assert sizes("a-b-c-d-") == [2, 2, 2, 2]
    assert sizes("aa-a--b") == [6, 1]
    assert sizes("---ab") == [2, 2, 1]
    assert sizes("aabbb") == [2, 3]


def test_a_key_of_the_settings_counts_where_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for operators without a key, or with one of their own."""
    used: list[tuple[dict[str, Any], bool]] = [
        ({"type": "mask"}, False),
        ({"type": "surrogate", "key": KEY}, False),
        ({"type": "shift_dates", "days": 3}, False),
        ({"type": "shift_dates"}, True),
        ({"type": "surrogate", "seed": 7}, True),
        ({"type": "hash"}, True),
    ]
    file = tmp_path / "key"
    monkeypatch.setenv("MEDVLLM_REDACTION_KEY_FILE", str(file))
    for operator, is_used in used:
        found = set()
        for key in (KEY, KEY[::-1]):
            file.write_text(key)
            found.add(secret_of({"operators": {"DEFAULT": operator}}))
        assert (len(found) == 2) == is_used, operator


def test_a_worker_with_another_model_is_told_in_what_it_differs(registry: ModelRegistry, tagger: ModelRunner) -> None:
    with registry.lease("tagger") as lease:
        receipt = lease.receipt
    same = SameModel()
    same.check(receipt)
    same.check(receipt)
    with pytest.raises(LoadError, match=r'version of torch: "[^"]+", on another worker "0\.1"\nGive each machine'):
        same.check(replace(receipt, libraries=receipt.libraries | {"torch": "0.1"}))


def test_a_worker_with_another_faker_makes_no_surrogates() -> None:
    """Its lists of names may be others, so a name could get two surrogates."""
    arguments = {"operators": SURROGATES}
    job = Job(FullDisk(), "redact", arguments, "jsonl", False, False, False, secret_of(arguments), faker="0.1")
    with pytest.raises(LoadError, match=rf"Faker {version('faker')}.* has 0\.1, .*\n.*: pip install faker==0\.1"):
        Worker(job)
    Worker(replace(job, faker=version("faker")))


class FullDisk:
    """A runner whose model cannot be loaded, with an error of another library."""

    def pinned(self) -> "FullDisk":
        return self

    def lease_for(self, task: str | None) -> AbstractContextManager[Any]:
        raise OSError(errno.ENOSPC, SECRET)


class _Seat:
    """A worker that begins if there is room for it."""

    def __init__(self, room: Iterator[Exception | Receipt]) -> None:
        self.part: Part | None = None
        self.is_ready = False
        self._room, self.is_stopped = room, False

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        assert self.is_ready and not self.is_stopped

    def receive(self) -> Any:
        if self.part is not None:
            return AnsweredPart(self.part.number, b"", 1, 0, (), 0.0)
        said = next(self._room)
        if isinstance(said, Exception):
            raise said
        return said

    def stop(self) -> None:
        self.is_stopped = True


class _Seats(Team[_Seat]):
    """Workers whose beginnings are given."""

    def __init__(self, count: int, beginnings: Iterable[Exception | Receipt]) -> None:
        super().__init__(count)
        self._room, self.made = iter(beginnings), list[_Seat]()

    def _new(self) -> _Seat:
        self.made.append(_Seat(self._room))
        return self.made[-1]

    def _wait(self) -> list[_Seat]:
        return sorted(self._members, key=lambda each: (each.is_ready, each.part is None))[:1]  # beginnings first

    def _explain(self, ended: WorkerEndedError) -> tuple[str, str]:
        return f"Seats are taken: {ended}.", "Look for others."


def test_workers_for_which_there_is_no_room_end_no_batch(
    registry: ModelRegistry, tagger: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """Others go on without them, and a warning says so. If none can begin, the error says what helps."""
    with registry.lease("tagger") as lease:
        receipt = lease.receipt
    job, parts = Job(tagger, "ner", {}, "jsonl", False, False, False, None), [Part(at, at + 1, ()) for at in range(9)]
    killed, crashed = (WorkerEndedError(how, was_killed=how == "signal 9") for how in ("signal 9", "exit code 1"))
    memory = DeviceMemoryError("The GPU is full.\nUse another one.")
    cases: list[tuple[list[Exception | Receipt], int]] = [
        ([receipt, receipt, *[killed] * 6], 2),
        ([*[killed] * 6, receipt, receipt], 2),  # while others begin, nobody knows
        ([*[killed] * 3, *[killed] * 2, receipt, *[killed] * 2, receipt, receipt], 3),  # each has three tries
        ([receipt, memory, memory, killed, receipt], 2),
    ]
    for beginnings, left in cases:
        caplog.clear()
        team = _Seats(4, beginnings)
        assert team.start(job) is receipt
        assert {part.number for part, _ in team.answer(iter(parts), {})} == {*range(9)}
        assert len([each for each in team.made if each.is_ready and not each.is_stopped]) == left
        assert f"The batch goes on with {left} of 4 workers." in caplog.text
    refused: list[tuple[Exception, type[LoadError], str]] = [
        (killed, LoadError, "Seats are taken: signal 9. The memory may be full.\nUse fewer workers: --workers 1"),
        (crashed, LoadError, "Seats are taken: exit code 1.\nLook for others."),
        (memory, DeviceMemoryError, str(memory)),
    ]
    for error, kind, message in refused:
        with pytest.raises(kind) as raised:
            _Seats(4, [error] * 12).start(job)
        assert str(raised.value) == message


def test_a_warning_of_several_workers_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Under the name of its logger, as if it came from this process. Messages of other libraries are not told."""
    warnings, told = Warnings(), ToldOnce()
    try:
        for text in ("first", "second"):
            logging.getLogger("medvllm.loading").warning("the %s", text)
            logging.getLogger("medvllm.loading").info(SECRET)
            logging.getLogger("another").warning(SECRET)
        taken = warnings.take()
    finally:
        logging.getLogger("medvllm").removeHandler(warnings)
    caplog.clear()
    for found in (taken, pickle.loads(pickle.dumps(taken))):
        told.log(found)
    assert caplog.record_tuples == [("medvllm.loading", logging.WARNING, f"the {text}") for text in ("first", "second")]
    assert warnings.take() == []


def test_an_error_in_a_worker_is_told_without_a_text() -> None:
    """Also one that looks like a connection that was closed."""
    here, there = multiprocessing.Pipe()
    answer_parts(Job(FullDisk(), "ner", {}, "jsonl", False, False, False, None), there)
    with here:
        error = here.recv()
    assert isinstance(error, LoadError) and str(error) == "A worker could not answer: OSError."


def test_a_folder_that_is_read_only_has_a_status(tmp_path: Path, tagger: ModelRunner) -> None:
    with mounted_disk(tmp_path / "disk", "1m") as disk:
        tagger.batch(notes(tmp_path), disk / "out")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert read_status(disk / "out").state == "complete"


def test_files_behind_urls_are_read(tmp_path: Path, tagger: ModelRunner) -> None:
    """Lines and Parquet, by patterns as well; what the library cannot do is said."""
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/a.jsonl", notes(tmp_path).read_bytes())
    parquet.write_table(pyarrow.table({"id": ["x"], "text": ["fever"]}), tmp_path / "b.parquet")
    memory.pipe("/bucket/b.parquet", (tmp_path / "b.parquet").read_bytes())
    try:
        done = tagger.batch("memory://bucket/*", tmp_path / "out")
        assert done.answered == 8
        assert parquet.read_table(tmp_path / "out" / "parts")["id"].to_pylist()[-2:] == ["n6", "x"]
        with pytest.raises(RequestError, match="cannot be read from 'memory://bucket/c#1.jsonl'"):
            tagger.batch("memory://bucket/c#1.jsonl?version=*", tmp_path / "none")
        with pytest.raises(RequestError, match="cannot be read from 'nowhere://x/a.csv'"):
            tagger.batch("nowhere://x/a.csv", tmp_path / "none")
        with pytest.raises(RequestError, match="no file 'memory://bucket/note\\?.csv'.\nCheck the URL"):
            tagger.batch("memory://bucket/note?.csv", tmp_path / "none")
        with pytest.raises(RequestError, match="format must be one of 'lines', .*'jsonl'"):
            tagger.batch("memory://bucket/a.jsonl", tmp_path / "none", format="jsnol")
    finally:
        memory.rm("/bucket", recursive=True)


def test_passwords_and_signatures_of_urls_are_written_nowhere(
    tmp_path: Path, tagger: ModelRunner, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither to a record, nor as the place of a row without an answer, nor in an error."""
    content = notes(tmp_path).read_bytes() + b"{\n"

    def answer(sent: Sent) -> Reply:
        is_ours = f"{SECRET}=*" in sent.path and sent.headers["authorization"] and sent.path[:3] == "/a."
        return Reply(200, content, {"Accept-Ranges": "none"}) if is_ours else Reply(403)

    with scripted(answer) as server:
        host = server.url.removeprefix("http://")
        url = f"http://me:{SECRET}@{host}/a.jsonl?{SECRET}=*"
        done = tagger.batch(url, out := tmp_path / "out")
        assert (done.answered, done.bad_rows) == (7, 1)
        wrong = [
            [url, url],
            url.replace("a.jsonl", "b.jsonl"),
            url.replace("a.jsonl", "*.jsonl"),
            f"{url}".replace(".jsonl", ""),
        ]
        for sources in wrong:
            with pytest.raises(RequestError, match=host) as refused:
                tagger.batch(sources, tmp_path / "none")
            assert SECRET not in str(refused.value)
    assert bad_rows(out)[0]["place"] == f"line 8 of 'http://{host}/a.jsonl'"
    assert read_status(out).state == "complete"
    written = [each.read_bytes() for each in out.rglob("*") if each.is_file()]
    assert written and not [each for each in written if SECRET.encode() in each] and SECRET not in caplog.text


def test_a_saved_dataset_goes_on_as_a_file_does(tmp_path: Path, tagger: ModelRunner) -> None:
    """Its answers are those of a file of the same rows; a row without a text is bad; a changed row is noticed."""
    rows = {"id": [f"n{at}" for at in range(len(NOTES))], "text": [*NOTES[:-1], None]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows)}).save_to_disk(tmp_path / "a")
    file = lines(tmp_path / "a.jsonl", [{"id": id, "text": text} for id, text in zip(*rows.values(), strict=True)])
    tagger.batch(file, tmp_path / "from_file", rows_per_part=3, output_format="jsonl")
    done = tagger.batch(tmp_path / "a", out := tmp_path / "out", rows_per_part=3, output_format="jsonl")
    assert (done.answered, done.bad_rows) == (6, 1) and "row 7 of" in bad_rows(out)[0]["place"]
    assert records(out) == records(tmp_path / "from_file")
    (out / "parts" / "part-00001.jsonl").unlink()
    tagger.batch(tmp_path / "a", out, rows_per_part=3, output_format="jsonl")
    assert records(out) == records(tmp_path / "from_file")
    changed = datasets.Dataset.from_dict(rows | {"text": ["Fever.", *NOTES[1:]]})
    datasets.DatasetDict({"train": changed}).save_to_disk(tmp_path / "a")
    with pytest.raises(RequestError, match="input"):
        tagger.batch(tmp_path / "a", out, rows_per_part=3, output_format="jsonl")


def test_a_full_disk_costs_what_is_missing(tmp_path: Path, tagger: ModelRunner) -> None:
    """The error says how to go on, and the next run does."""
    file = notes(tmp_path, NOTES * 30)
    with mounted_disk(tmp_path / "disk", "96k") as disk:
        out = disk / "out"
        blocker = disk / "blocker"
        with pytest.raises(OutputError, match="No space left on device.\nWhen it can, give the same command again"):
            blocker.write_bytes(b"x" * 32_000)
            tagger.batch(file, out, task="ner", rows_per_part=10)
        before = read_status(out)
        assert before.state == "stopped" and 0 < before.parts_done < 21
        blocker.unlink()
        for left in (disk / "out" / "parts").glob(".*"):
            pytest.fail(f"{left} was left")
        shutil.copytree(out, tmp_path / "larger")
    done = tagger.batch(file, tmp_path / "larger", task="ner", rows_per_part=10)
    assert done.parts_done == 21 and done.parts_of_run == 21 - before.parts_done


def test_the_number_of_threads_changes_no_byte(tmp_path: Path) -> None:
    """Of a model of usual size, with one thread and with two."""
    texts = [" ".join(NOTES[: 1 + at % 7]) for at in range(30)]
    file, runner = notes(tmp_path, texts), ModelRunner(MINILM)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            runner.batch(file, tmp_path / str(threads), rows_per_part=15)
    finally:
        torch.set_num_threads(before)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_the_command_runs_and_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of files as a shell writes them, with the options of tasks; the summary is on stderr, and --json on stdout."""
    model = str(tiny.bert_token_classifier(tmp_path / "model", LABELS))
    first, out = notes(tmp_path), str(tmp_path / "out")
    second = lines(tmp_path / "more.jsonl", [{"id": "x", "text": "fever"}, b"{"])
    arguments = ("batch", model, "--in", str(first), str(second), "--task", "entities", "-o", out)
    done = command(monkeypatch, *arguments, "--rows-per-part", "4", "--threshold", "0.1", "--json")
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert {name: summary[name] for name in ("state", "rows", "answered", "bad_rows", "parts", "task")} == {
        "state": "complete",
        "rows": 9,
        "answered": 8,
        "bad_rows": 1,
        "parts": 3,
        "task": "ner",
    }
    assert "Complete: 9 of 9 rows, 3 of 3 parts" in done.err and f"see '{out}/bad_rows.jsonl'" in done.err
    shown = command(monkeypatch, "batch", "status", out)
    assert shown.code == 0 and "Complete: 9 of 9 rows" in shown.out
    state = json.loads(command(monkeypatch, "batch", "status", out, "--json").out)
    assert state["parts_done"] == 3 and state["eta_s"] is None
    (tmp_path / "parts").mkdir()
    for wrong, what in (
        (("batch", model, "--task", "entities", "-o", out), "--in FILE"),
        (("batch", model, "--in", str(first), "--task", "entities"), "--out FOLDER"),
        (
            ("batch", "run", model, "--in", str(first), "-o", out, "--task", "embed", "--threshold", "0.1"),
            "--threshold",
        ),
        ((*arguments, "--threshold", "0.3"), "under other conditions"),
        (("batch", "status", str(tmp_path)), "There is no batch in"),
    ):
        refused = command(monkeypatch, *wrong)
        assert refused.code == 2 and what in refused.err, wrong


def test_a_model_that_cannot_answer_at_all_stops_the_batch(tmp_path: Path, registry: ModelRegistry) -> None:
    """Its error is not one of each row."""
    folder = tiny.bert_encoder(tmp_path / "model")
    tiny.edit_weights(folder, lambda name, weight: weight * float("nan") if "embeddings" in name else weight)
    registry.register("m", "clinical", model_path=str(folder), task="embed", do_lower_case=False)
    with pytest.raises(LoadError):
        ModelRunner("m", registry=registry).batch(notes(tmp_path), tmp_path / "out")
    assert read_status(tmp_path / "out").done == 0


def test_a_changed_option_of_an_operator_is_no_other_key() -> None:
    """Only the keys and seeds tell whether they are the same."""

    def secret(**options: Any) -> str | None:
        return secret_of({"operators": {"NAME": {"type": "hash"} | options, "DATE": {"type": "replace"}}})

    assert secret(key=KEY) == secret(key=KEY, length=8) != secret(key=KEY[::-1])
    assert secret_of({"operators": {"NAME": {"type": "mask"}}}) is None
