"""Writers of answers, and the endings of files that choose one."""

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from medvllm import destination
from medvllm.corpora.writing.answers import Answers
from medvllm.corpora.writing.parquet import ParquetWriter
from medvllm.corpora.writing.vectors import VectorWriter
from medvllm.corpora.writing.writer import Writer
from medvllm.errors import RequestError
from medvllm.near_names import did_you_mean, near_names


class JsonLinesWriter(Writer):
    """Writes one record a line."""

    def write(self, answers: Answers) -> None:
        for record in answers.records():
            self.stream.write(to_json(record).encode() + b"\n")


class JsonWriter(Writer):
    """Writes one object with the task, the results and the receipt."""

    _begun = False

    def write(self, answers: Answers) -> None:
        for record in answers.records():
            before = ",\n" if self._begun else f'{{"task": {to_json(answers.task)},\n"results": [\n'
            self._begun = True
            self.stream.write(f"{before}{to_json(record)}".encode())

    def finish(self, receipt: dict[str, Any] | None) -> None:
        self.stream.write(f'\n],\n"receipt": {to_json(receipt)}}}\n'.encode())


class CsvWriter(Writer):
    """Writes a table with headings. Texts are in quotes, so that line ends in them are safe."""

    _begun = False

    def write(self, answers: Answers) -> None:
        lines = io.StringIO(newline="")
        table = csv.writer(lines, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        if not self._begun:
            table.writerow(answers.columns)
            self._begun = True
        table.writerows(tuple(map(_cell, row)) for row in answers.rows())
        self.stream.write(lines.getvalue().encode())


class TextWriter(Writer):
    """Writes each answer and a line feed. Of several answers, none may have a line break."""

    kind = "texts"
    has_ids = False
    _count = 0
    _is_broken = False

    def write(self, answers: Answers) -> None:
        for text in answers.texts():
            self._count += 1
            self._is_broken = self._is_broken or "\n" in text or "\r" in text
            if self._is_broken and self._count > 1:
                raise RequestError(
                    "An answer has line breaks, so in a .txt file nobody could tell where the next one begins.\n"
                    "Write JSON lines instead: -o FILE.jsonl"
                )
            self.stream.write(text.encode() if text.endswith("\n") else f"{text}\n".encode())


WRITERS: dict[str, type[Writer]] = {
    ".jsonl": JsonLinesWriter,
    ".json": JsonWriter,
    ".csv": CsvWriter,
    ".parquet": ParquetWriter,
    ".npy": VectorWriter,
    ".txt": TextWriter,
}


def choose_writer(target: Path) -> type[Writer]:
    """Return the writer for a file by its ending. `-`, standard output, gets JSON lines.

    Raises:
        RequestError: The ending is not known.
        MissingDependencyError: The writer needs a package that is not installed.
    """
    if str(target) == "-":
        return JsonLinesWriter
    ending = target.suffix.lower()
    if (writer := WRITERS.get(ending)) is None:
        raise RequestError(
            f"The ending {target.suffix!r} of the output says no format.{did_you_mean(near_names(ending, WRITERS))}\n"
            f"Use one of: {', '.join(WRITERS)}, or - for JSON lines on standard output",
            option="output",
        )
    writer.check()
    return writer


@contextmanager
def open_writer(target: Path) -> Iterator[Writer]:
    """Yield a writer. A file appears when the block ends; if it raises an exception, an existing file stays.

    Raises:
        RequestError: The ending is not known.
        OutputError: The file cannot be written.
    """
    kind = choose_writer(target)
    with destination.open_output(target) as stream:
        writer = kind(stream)
        try:
            yield writer
        except BaseException:
            writer.abandon()
            raise


def to_json(value: Any) -> str:
    """Return a value as JSON in one line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _cell(value: object) -> object:
    """Return a cell of CSV: vectors as numbers with blanks between them, exact for float32."""
    return " ".join(f"{number:.9g}" for number in value) if isinstance(value, list) else value
