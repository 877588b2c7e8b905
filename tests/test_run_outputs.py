"""`medvllm run`: generate and assertions in every output, and texts that appear on a terminal while they are made."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from medvllm.cli.running.highlight import visible
from medvllm.corpora import rows as corpora_rows
from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner import registry as shared_registry
from tests.support import decoders, tiny
from tests.support.console import Screen, command

PROMPTS = ["chest pain", "fever", "The patient denies"]
NOTES = ["The patient denies fever and chest pain.", "No cough.", "Well."]
SPANS = [[[19, 24], [29, 39]], [[3, 8]], []]
LABELS = ["PRESENT", "ABSENT", "POSSIBLE"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A decoder whose answers are long, and a classifier of marked spans."""
    folder = tmp_path_factory.mktemp("models")
    judge = tiny.bert_sequence_classifier(folder / "judge", config=tiny.labelled(LABELS))
    return decoders.llama(folder / "writer", seed=5), judge


@pytest.fixture
def writer(folders: tuple[Path, Path]) -> Iterator[str]:
    shared_registry.register("writer", "generic", model_path=str(folders[0]), task="generate")
    yield "writer"
    shared_registry.unregister("writer")


@pytest.fixture
def judge(folders: tuple[Path, Path]) -> Iterator[str]:
    facts: Any = {"entity_markers": ["[entity] ", " [entity]"], "task": "assertions"}
    shared_registry.register("judge", "clinical", model_path=str(folders[1]), **facts)
    yield "judge"
    shared_registry.unregister("judge")


class Typed(Screen):
    """A terminal that keeps each thing that was written, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        """Keep a text."""
        self.written.append(text)
        return super().write(text)

    def fileno(self) -> int:
        """Return the file that a test captures."""
        return 1


def outputs(patch: pytest.MonkeyPatch, corpus: Path, *words: str) -> dict[str, Any]:
    """What each format holds, after a check that they agree: records of JSON, rows of tables."""
    found: dict[str, Any] = {}
    for ending in ("jsonl", "json", "csv", "parquet"):
        done = command(patch, "run", *words, "--file", str(corpus), "-o", f"{corpus}.{ending}")
        assert (done.code, done.out, done.err) == (0, "", "")
    found["records"] = [json.loads(line) for line in Path(f"{corpus}.jsonl").read_text().splitlines()]
    assert json.loads(Path(f"{corpus}.json").read_text())["results"] == found["records"]
    whole = json.loads(command(patch, "run", *words, "--file", str(corpus), "--json").out)
    assert whole["results"] == found["records"] and whole["receipt"]["verified"]
    with Path(f"{corpus}.csv").open(newline="") as stream:
        found["rows"] = [*csv.DictReader(stream)]
    columns = parquet.read_table(f"{corpus}.parquet").to_pylist()
    assert [{name: str(value) for name, value in row.items()} for row in columns] == found["rows"]
    found["lines"] = command(patch, "run", *words, "--file", str(corpus)).out.splitlines()
    refused = command(patch, "run", *words, "--file", str(corpus), "-o", f"{corpus}.npy")
    assert refused.code == 2 and "gives no vectors" in refused.err and not Path(f"{corpus}.npy").exists()
    return found


def write_corpus(file: Path, texts: list[str], **columns: list[Any]) -> Path:
    names = {"id": [f"00{n}" for n in range(len(texts))], "text": texts} | columns
    rows = [dict(zip(names, row, strict=True)) for row in zip(*names.values(), strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_generated_texts_in_every_output(writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With their ids, chunk by chunk: what the runner returns; an array of them is refused."""
    expected = [ModelRunner(writer).generate([prompt], max_new_tokens=6)[0] for prompt in PROMPTS]
    corpus = write_corpus(tmp_path / "prompts.jsonl", PROMPTS)
    words = (writer, "--task", "Text-Generation", "--max-new-tokens", "6")
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 1)
    found = outputs(monkeypatch, corpus, *words)
    assert found["records"] == [
        {"id": f"00{n}", **json.loads(json.dumps(each.to_dict()))} for n, each in enumerate(expected)
    ]
    assert [(row["id"], row["answer"], row["completion_tokens"]) for row in found["rows"]] == [
        (f"00{n}", answer.text, str(answer.completion_tokens)) for n, answer in enumerate(expected)
    ]
    assert [line.split("\t")[0] for line in found["lines"]] == ["000", "001", "002"]
    done = command(monkeypatch, "run", *words, PROMPTS[0], "-o", str(tmp_path / "a.txt"))
    assert done.code == 0 and (tmp_path / "a.txt").read_text().rstrip("\n") == expected[0].text.rstrip("\n")


def test_a_terminal_shows_a_text_while_it_is_generated(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Piece by piece, and in the end as it is printed when it is complete; no bar and no escape sequence among it."""
    monkeypatch.setenv("TERM", "xterm")
    texts = [ModelRunner(writer).generate([prompt], max_new_tokens=24)[0].text for prompt in PROMPTS]
    words = ("run", writer, "--max-new-tokens", "24")
    screen, bar = Typed(), Screen()
    done = command(monkeypatch, *words, PROMPTS[0], stdout=screen, stderr=bar)
    assert (done.code, done.err) == (0, "") and done.out == visible(texts[0]).rstrip("\n") + "\n"
    assert len([piece for piece in screen.written if piece.strip()]) > 5
    several = command(monkeypatch, *words, *PROMPTS, stdout=Typed(), stderr=bar)
    assert several.out == "".join(f"{n}:\n" + visible(text).rstrip("\n") + "\n" for n, text in enumerate(texts, 1))
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 1)
    corpus = write_corpus(tmp_path / "prompts.jsonl", PROMPTS)
    named = command(monkeypatch, *words, "--file", str(corpus), stdout=Typed(), stderr=bar)
    assert named.out == "".join(f"00{n}:\n" + visible(text).rstrip("\n") + "\n" for n, text in enumerate(texts))
    assert (several.code, named.code, bar.getvalue()) == (0, 0, "")
    capfd.readouterr()
    lines = command(monkeypatch, *words, "--file", str(corpus), "-o", "-", stdout=Typed(), stderr=bar)
    assert (lines.code, bar.getvalue()) == (0, "")
    assert [json.loads(line)["text"] for line in capfd.readouterr().out.splitlines()] == texts


def test_an_error_does_not_stand_on_the_line_of_a_text(writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a text lost that was printed before: a later prompt that cannot be used ends the line."""
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 1)
    long = "x" * 600
    done = command(monkeypatch, "run", writer, "pain", long, "--max-new-tokens", "24", stdout=Typed())
    assert done.code == 2 and len(done.out) > 8 and done.out.endswith("\n") and "Text 2 " in done.err
    assert long not in done.err + done.out


def test_assertions_in_every_output(judge: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the spans of a column: what the runner returns; a table on a terminal; texts and arrays are refused."""
    expected = ModelRunner(judge).assertions(NOTES, SPANS)
    corpus = write_corpus(tmp_path / "notes.jsonl", NOTES, spans=SPANS)
    monkeypatch.setattr(corpora_rows, "_CHUNK_ROWS", 2)
    found = outputs(monkeypatch, corpus, judge)
    rows = [(f"00{n}", str(each.start), each.label, each.text) for n, text in enumerate(expected) for each in text]
    assert [(row["id"], row["start"], row["label"], row["span"]) for row in found["rows"]] == rows
    assert [(record["id"], len(record["assertions"])) for record in found["records"]] == [
        (f"00{n}", len(spans)) for n, spans in enumerate(SPANS)
    ]
    assert [line.split("\t")[0] for line in found["lines"]] == [row[0] for row in rows]
    monkeypatch.setenv("NO_COLOR", "1")
    shown = command(monkeypatch, "run", judge, "--file", str(corpus), stdout=Screen())
    assert shown.code == 0 and shown.out.split()[:2] == ["ID", "START"] and "chest pain" in shown.out
    refused = command(monkeypatch, "run", judge, "--file", str(corpus), "-o", str(tmp_path / "a.txt"))
    assert refused.code == 2 and "gives no texts" in refused.err
    typed = command(monkeypatch, "run", judge, NOTES[0], "--task", "negation")
    assert typed.code == 2 and "has no column 'spans'" in typed.err and NOTES[0] not in typed.err
