"""The manifest of a batch: one line for the conditions, and one for each run and each finished part."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from medvllm.engine.model_runner.batch.conditions import FORMAT, Conditions
from medvllm.engine.model_runner.batch.part import Unanswered
from medvllm.errors import OutputError
from medvllm.files import sync, write_whole

NAME = "manifest.jsonl"
_BEGINNING = b'{"kind": "batch"'


@dataclass(frozen=True)
class PartRecord:
    """The line of a finished part. A later line of the same part holds in place of an earlier one.

    Attributes:
        part: Its number, from 0.
        file: The name of its file.
        first_row: The position of its first row in the corpus, from 1.
        rows: How many rows it has.
        answered: How many of them have an answer.
        tokens: How many tokens the model read for them.
        input_sha256: The digest of its rows.
        output_sha256: The digest of its file.
        size: The bytes of its file.
        receipt_sha256: The digest of the receipt of the conditions.
        seconds: How long its answers took.
        finished: When it was finished, in seconds since 1970.
    """

    part: int
    file: str
    first_row: int
    rows: int
    answered: int
    tokens: int
    input_sha256: str
    output_sha256: str
    size: int
    receipt_sha256: str
    seconds: float
    finished: float


class Manifest:
    """The manifest in a folder. One process writes it at a time.

    Args:
        folder: The folder.
        is_new: Whether a manifest that is there is not read: `begin` writes over it.

    Attributes:
        conditions: The conditions of the batch; None if the manifest is new.
        parts: The line of each finished part.
        begun: When the last run began, in seconds since 1970; None before the first.
    """

    def __init__(self, folder: Path, *, is_new: bool = False) -> None:
        self._file = folder / NAME
        self.conditions: Conditions | None = None
        self.parts: dict[int, PartRecord] = {}
        self.begun: float | None = None
        self._places: dict[int, int] = {}  # where the line of a part begins: its bad rows stay on the disk
        self._end = 0
        if not is_new:
            self._read()

    def begin(self, conditions: Conditions) -> None:
        """Write the first line, in place of all others."""
        content = _to_line(dict(conditions.content))
        write_whole(self._file, content)
        self.conditions, self._end = conditions, len(content)
        self.parts, self._places, self.begun = {}, {}, None

    def add_run(self, begun: float, workers: str) -> None:
        """Add the line of a run: when it begins, and who computes."""
        self._append(_to_line({"kind": "run", "begun": begun, "workers": workers}))
        self.begun = begun

    def add_part(self, record: PartRecord, bad: list[Unanswered]) -> None:
        """Add the line of a part, whose file is complete."""
        self._places[record.part] = self._end
        line = {"kind": "part", **asdict(record), "bad_rows": [astuple(row) for row in bad]}
        self._append(_to_line(line))
        self.parts[record.part] = record

    def bad_rows(self) -> Iterator[Unanswered]:
        """Yield the rows without an answer, in the order of the corpus."""
        if not self._places:
            return
        with self._file.open("rb") as stream:
            for _, place in sorted(self._places.items()):
                stream.seek(place)
                yield from (Unanswered(*row) for row in json.loads(stream.readline())["bad_rows"])

    def _append(self, line: bytes) -> None:
        """Write a line to the end, and wait until it is on the disk."""
        with self._file.open("r+b") as stream:
            stream.seek(self._end)  # a line that a kill cut off is written over
            stream.truncate()
            stream.write(line)
            stream.flush()
            sync(stream.fileno())
        self._end += len(line)

    def _read(self) -> None:
        try:
            stream = self._file.open("rb")
        except FileNotFoundError:
            return
        with stream:
            for number, line in enumerate(stream, 1):
                if not line.endswith(b"\n"):  # the writer was killed here
                    break
                try:
                    self._take(_from_line(line, number, self._file))
                except (KeyError, TypeError, AttributeError):
                    raise _damaged(self._file, number) from None
                self._end += len(line)
        if self.conditions is None:
            raise _damaged(self._file, 1)

    def _take(self, line: Mapping[str, Any]) -> None:
        if line["kind"] == "batch":
            if line["format"] != FORMAT:
                raise OutputError(
                    f"'{self._file}' has format {line['format']}, and this version of medvllm reads {FORMAT}.\n"
                    "Go on with the version that began it, or begin anew with: --restart",
                    path=str(self._file),
                )
            self.conditions = Conditions(line)
            self.conditions.differences(self.conditions)  # has all that is compared
        elif line["kind"] == "run":
            self.begun = line["begun"]
        else:
            facts = {name: value for name, value in line.items() if name not in ("kind", "bad_rows")}
            record = PartRecord(**facts)
            self.parts[record.part], self._places[record.part] = record, self._end


def is_of_batch(file: Path) -> bool:
    """Return whether a file is a manifest of a batch, also one that was cut off in its first line."""
    with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError), file.open("rb") as stream:
        beginning = stream.read(len(_BEGINNING))
        return bool(beginning) and _BEGINNING.startswith(beginning)
    return False


def _to_line(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _from_line(line: bytes, number: int, file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(line)
    except ValueError:
        content = None
    if not isinstance(content, dict) or content.get("kind") not in ("batch", "run", "part"):
        raise _damaged(file, number)
    return content


def _damaged(file: Path, number: int) -> OutputError:
    return OutputError(
        f"Line {number} of '{file}' is no line of a batch: it is damaged.\nRestore it, or begin anew with: --restart",
        path=str(file),
    )
