"""`medvllm run`: files in, files out, the options of tasks, and what people see on a terminal."""

import csv
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from medvllm.corpora import rows as corpora_rows
from medvllm.corpora.rows import Row
from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner import registry as shared_registry
from medvllm.engine.model_runner.corpus_run import CorpusRun
from medvllm.errors import RequestError
from tests.support import tiny, warm
from tests.support.console import Screen, command
from tests.support.trained import MINILM

NOTES = ["Seen by Dr. Miller on 3 May 2019.", "", "Patient John Smith\nwas called.\r\n"]
SECRET = "Zyxwvutcanary"


@pytest.fixture(autouse=True)
def _unregistered() -> Iterator[None]:
    """No entry of a test stays in the registry that all tests share."""
    yield
    for name in ("deid", "ranker", "pairs"):
        if name in shared_registry:
            shared_registry.unregister(name)


@pytest.fixture
def deid(trained: Path) -> str:
    """The name of an entry: a de-identifier."""
    shared_registry.register("deid", "clinical", model_path=str(trained / "deid"), task="deid", replace=True)
    return "deid"


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A CSV file with ids."""
    with (tmp_path / "notes.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("id", "text"), *((f"00{n}", text) for n, text in enumerate(NOTES))])
    return tmp_path / "notes.csv"


def test_every_output_has_the_same_answers(deid: str, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their ids in order, in one chunk or one for each text; and nothing on standard output."""
    found = ModelRunner(deid).entities(NOTES)
    expected = [
        (f"00{n}", span.start, span.end, span.label, span.text) for n, each in enumerate(found) for span in each.spans
    ]
    assert len(expected) >= 3
    for chunk_rows in (1, 2_000):
        monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", chunk_rows)
        for ending in ("csv", "parquet", "jsonl", "json"):
            done = command(monkeypatch, "run", deid, "--file", str(notes), "-o", f"{notes}.{ending}")
            assert (done.code, done.out, done.err) == (0, "", "")
        with Path(f"{notes}.csv").open(newline="") as stream:
            table = [(r["id"], int(r["start"]), int(r["end"]), r["label"], r["span"]) for r in csv.DictReader(stream)]
        columns = parquet.read_table(f"{notes}.parquet").to_pylist()
        records = [json.loads(line) for line in Path(f"{notes}.jsonl").read_text().splitlines()]
        whole = json.loads(Path(f"{notes}.json").read_text())
        assert table == expected == [(r["id"], r["start"], r["end"], r["label"], r["span"]) for r in columns]
        assert [record["id"] for record in records] == ["000", "001", "002"]
        assert records == whole["results"] and whole["task"] == "deid" and whole["receipt"]["verified"]
        scores = [span["score"] for record in records for span in record["spans"]]
        assert scores == pytest.approx([span.score for each in found for span in each.spans], abs=1e-5)
        printed = command(monkeypatch, "run", deid, "--file", str(notes), "--json").out
        assert json.loads(printed)["results"] == records
        lines = command(monkeypatch, "run", deid, "--file", str(notes)).out.splitlines()
        assert [line.split("\t")[0] for line in lines] == [row[0] for row in expected]


def test_redaction_of_files(deid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts as lines, surrogates that agree from chunk to chunk, dates by document; a text that stays is an error."""
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 1)
    lines = tmp_path / "lines"
    lines.write_text("Seen by Dr. Miller.\nCalled Dr. Miller.\n")
    operators = tmp_path / "operators.json"
    operators.write_text('{"DEFAULT": {"type": "replace"}, "DOCTOR": {"type": "surrogate", "scope": "call"}}')
    out = tmp_path / "out.txt"
    done = command(
        monkeypatch,
        *("run", deid, "--task", "redact", "--file", str(lines), "-o", str(out), "--operators", f"@{operators}"),
    )
    assert done.code == 0, done.err
    first, second = out.read_text().splitlines()
    assert first.removeprefix("Seen by Dr. ") == second.removeprefix("Called Dr. ") and "Miller" not in first
    shown = command(monkeypatch, "run", deid, "Seen by Dr. Miller.", "--task", "redact", stdout=Screen()).out
    assert shown == "Seen by Dr. [DOCTOR].\n"
    for wrong, what in (
        ("{", "it is not JSON"),
        ("@/nowhere", "Operators cannot be read from '/nowhere'"),
        ('{"DEFAULT": {"type": "masks"}}', "'mask'"),
    ):
        done = command(monkeypatch, "run", deid, "x", "--task", "redact", "--operators", wrong)
        assert done.code == 2 and what in done.err


def test_vectors_in_a_file(notes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row for each text, equal to what the runner returns."""
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 2)
    expected = ModelRunner(MINILM).embed(NOTES).vectors
    out = tmp_path / "v.npy"
    assert command(monkeypatch, "run", str(MINILM), "--file", str(notes), "-o", str(out)).code == 0
    np.testing.assert_allclose(np.load(out), expected, atol=1e-6)
    refused = command(monkeypatch, "run", str(MINILM), "--file", str(notes), "--id-column", "id", "-o", str(out))
    assert refused.code == 2 and "no place for ids" in refused.err
    assert command(monkeypatch, "run", str(MINILM), "--file", str(notes), "-o", f"{out}.csv").code == 0
    with Path(f"{out}.csv").open(newline="") as stream:
        rows = [[np.float32(number) for number in row["vector"].split(" ")] for row in csv.DictReader(stream)]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_documents_are_ranked_over_all_chunks(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if they were one list; the index and the id are those of the file."""
    # No two are equal: those of one score may change places when other texts are beside them.
    covered = ("asthma", "insulin", "murmur", "a fracture of the hip", "metformin", "migraine")
    documents = [f"This review covers {what}." for what in covered]
    query = "What is known about diabetes?"
    shared_registry.register(
        "ranker", "clinical", model_path=str(trained / "cross-encoder"), task="rerank", activation="none", replace=True
    )
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps({"id": 10 * n, "text": text}) + "\n" for n, text in enumerate(documents)))
    expected = ModelRunner("ranker").rerank(query, documents, top_k=4)
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 2)
    done = command(monkeypatch, "run", "ranker", "--file", str(file), "--query", query, "--top-k", "4", "--json")
    results = json.loads(done.out)["results"]
    assert [(r["index"], r["id"]) for r in results] == [(each.index, 10 * each.index) for each in expected]
    lines = command(
        monkeypatch, "run", "ranker", "--file", str(file), "--query", query, "--top-k", "4"
    ).out.splitlines()
    assert [line.split("\t")[0] for line in lines] == [str(10 * each.index) for each in expected]
    assert "needs --query" in command(monkeypatch, "run", "ranker", "x").err


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["x", "--query", "y"], "task 'deid' takes no --query. Its options: --threshold"),
        (["x", "--task", "classify", "--threshold", "0.1"], "task 'classify' takes no --threshold"),
        (["x", "--threshold", "2"], "threshold"),
        (["x", "--labels", "PATEINT,DATE"], "Did you mean: 'PATIENT'?"),
        (["x", "--text-column", "a"], "--text-column is for a file"),
        (["x", "--format", "csv"], "--format is for a file"),
        (["--file", "FILE", "--format", "cvs"], "'cvs' is none of lines, jsonl"),
        (["--file", "FILE", *["--text-column", "text"] * 3], "twice for pairs"),
        (["--file", "FILE", "--text-column", "texte"], "Did you mean: 'text'?"),
        (["x", "--json", "-o", "a.json"], "not both"),
        (["x", "-o", "a.json", "--receipt", "./a.json"], "must be two files"),
        (["x", "-o", "a.jsn"], "Did you mean: '.json'?"),
        (["x", "-o", "a.npy"], "Task 'deid' gives no vectors. These tasks do: embed."),
        (["x", "-o", "a.txt"], "Task 'deid' gives no texts. These tasks do: redact, generate."),
        (["x", "--task", "assertions"], "spans"),
    ],
)  # fmt: skip
def test_wrong_options_are_usage_errors(
    deid: str, notes: Path, arguments: list[str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model is loaded where that is possible; nothing is printed or written."""
    given = [str(notes) if word == "FILE" else word for word in arguments]
    done = command(monkeypatch, "run", deid, *given)
    assert (done.code, done.out) == (2, "") and what in done.err, done.err
    assert not [*Path.cwd().glob("a.*")]


def test_a_bad_text_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a later chunk; the output is not there, and no text is on standard error, nor in the debugger's view."""
    mlm = str(tiny.bert_masked_lm(tmp_path / "mlm"))
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 1)
    file, out = tmp_path / "texts", tmp_path / "out.jsonl"
    file.write_text(f"chest [MASK]\n{SECRET}\n")
    for debug in ("0", "1"):
        monkeypatch.setenv("MEDVLLM_DEBUG", debug)
        done = command(monkeypatch, "run", mlm, "--task", "fill-mask", "--file", str(file), "-o", str(out))
        assert done.code == 2 and f"line 2 of {str(file)!r}" in done.err.replace("Line", "line")
        assert SECRET not in done.err and not out.exists()
        assert ("Traceback" in done.err) is (debug == "1")

    def fail(self: CorpusRun) -> None:
        raise ValueError(SECRET) from KeyError(SECRET)

    monkeypatch.setattr(CorpusRun, "__iter__", fail)
    done = command(monkeypatch, "run", mlm, SECRET, "--task", "embed")
    assert done.code == 1 and "Traceback" in done.err and SECRET not in done.err and "KeyError" in done.err


def test_entities_are_highlighted_on_a_terminal(deid: str, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a legend; a table where colours are not wanted; a note cannot move the cursor."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = command(monkeypatch, "run", deid, "Seen by Dr. Miller\x1b[2J.", stdout=Screen()).out
    assert "\x1b[30;43mMiller\x1b[0m\\u001b[2J." in shown and " DOCTOR \x1b[0m 1\n" in shown
    several = command(monkeypatch, "run", deid, "--file", str(notes), stdout=Screen()).out
    assert several.startswith("000:\n") and "\n002:\nPatient " in several
    monkeypatch.setenv("NO_COLOR", "1")
    table = command(monkeypatch, "run", deid, "Seen by Dr. Miller.", stdout=Screen()).out
    assert table.startswith("TEXT") and "\x1b" not in table


def test_a_terminal_sees_progress_only_beside_a_file(deid: str, notes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no text, and is gone in the end."""
    monkeypatch.setenv("TERM", "xterm")
    bar = Screen()
    done = command(monkeypatch, "run", deid, "--file", str(notes), "-o", f"{notes}.jsonl", stderr=bar)
    assert done.code == 0 and "Miller" not in bar.getvalue() and "Traceback" not in bar.getvalue()


def test_pairs_come_from_two_columns_or_a_tab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of the entry's inputs, by named columns, and in lines."""
    folder = tiny.bert_encoder(tmp_path / "m")
    shared_registry.register("pairs", "clinical", model_path=str(folder), inputs=["title", "abstract"], replace=True)
    expected = ModelRunner("pairs").embed([["chest pain", "fever"]]).to_dict()
    (tmp_path / "a.csv").write_text("title,abstract,t,a\nchest pain,fever,chest pain,fever\n")
    (tmp_path / "lines").write_text("chest pain\tfever\n")
    for arguments in (
        ["--file", str(tmp_path / "a.csv")],
        ["--file", str(tmp_path / "a.csv"), "--text-column", "t", "--text-column", "a"],
        ["--file", str(tmp_path / "lines")],
        ["chest pain\tfever"],
    ):
        done = command(monkeypatch, "run", "pairs", "--task", "embed", *arguments, "--json")
        assert json.loads(done.out)["results"] == json.loads(json.dumps(expected)), done.err
    done = command(monkeypatch, "run", "pairs", "--task", "embed", f"{SECRET} {SECRET} {SECRET}")
    assert done.code == 2 and "tabs in text 1" in done.err and SECRET not in done.err


def test_a_real_process_reads_and_writes_streams(trained: Path, tmp_path: Path) -> None:
    """JSON lines in, JSON lines out; nothing else on standard output."""
    stdin = '{"id": 7, "text": "Seen by Dr. Miller."}\n{"id": 8, "text": ""}\n'
    words = ("run", str(trained / "deid"), "--format", "jsonl", "-o", "-")
    done = subprocess.run(
        [str(warm.program(tmp_path)), *words], input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [7, 8], done.stderr


def test_a_corpus_has_ids_or_none(deid: str) -> None:
    """Ids that begin late would be lost in a table whose headings are written."""
    rows = [Row("x" * 200_000, "line 1"), Row("y", "line 2", id=3)]
    with pytest.raises(RequestError, match="There is an id in line 2, but none before"):
        list(CorpusRun(deid, rows))
