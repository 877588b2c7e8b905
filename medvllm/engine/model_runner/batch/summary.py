"""How far a batch is."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from medvllm.engine.model_runner.batch.folder import BAD_ROWS, BatchFolder
from medvllm.engine.model_runner.batch.manifest import Manifest
from medvllm.errors import RequestError

State = Literal["complete", "running", "stopped"]


@dataclass(frozen=True)
class BatchSummary:
    """How far a batch is.

    Attributes:
        folder: Where it is written to.
        state: "complete", "running", or "stopped", which means that the same call goes on with it.
        task: The task.
        model: The name of the model, with its version if it is stored.
        rows: How many rows the input has.
        done: How many of them are in finished parts.
        answered: How many of them have an answer.
        bad_rows: How many of them have none; the file bad_rows.jsonl says why.
        tokens: How many tokens the model read.
        parts: How many parts there are.
        parts_done: How many of them are finished.
        parts_of_run: How many of them the last run has finished.
        seconds: How long the last run took, from its beginning to its last part.
        rows_per_second: How many rows the last run finished in a second.
        eta_s: How many seconds the rest would take at this rate; None if nobody knows.
    """

    folder: Path
    state: State
    task: str
    model: str
    rows: int
    done: int
    answered: int
    bad_rows: int
    tokens: int
    parts: int
    parts_done: int
    parts_of_run: int
    seconds: float
    rows_per_second: float
    eta_s: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON values."""
        return asdict(self) | {"folder": str(self.folder)}

    def __str__(self) -> str:
        rate = f" in {self.seconds:,.0f} s ({self.rows_per_second:,.1f} rows/s)" if self.parts_of_run else ""
        kept = self.parts_done - self.parts_of_run
        lines = [
            f"{self.state.capitalize()}: {self.done:,} of {self.rows:,} rows, {self.parts_done:,} of {self.parts:,} "
            f"parts in '{self.folder}'.",
            f"Task {self.task!r} of {self.model!r} answered {self.answered:,} rows. The last run finished "
            f"{self.parts_of_run:,} {'part' if self.parts_of_run == 1 else 'parts'}{rate}, and kept {kept:,}.",
        ]
        if self.bad_rows:
            where = f"; see '{self.folder / BAD_ROWS}'" if self.state == "complete" else ""
            lines.append(f"Without an answer: {self.bad_rows:,} rows{where}.")
        if self.eta_s is not None and self.eta_s > 0:
            lines.append(f"At this rate, the rest takes {self.eta_s:,.0f} s.")
        return "\n".join(lines)


def read_status(folder: Path) -> BatchSummary:
    """Return how far the batch in a folder is. The files of its parts are not read.

    Raises:
        RequestError: There is no batch in the folder.
        OutputError: Its manifest is damaged.
    """
    if not (found := BatchFolder(folder)).is_ours:
        raise RequestError(
            f"There is no batch in '{folder}'.\nBegin one with: medvllm batch NAME --in FILE --out {folder}"
        )
    return summarize(folder, Manifest(folder), is_running=found.is_locked())


def summarize(folder: Path, manifest: Manifest, *, is_running: bool) -> BatchSummary:
    """Return the summary of a batch whose manifest has its first line."""
    assert manifest.conditions is not None
    content = manifest.conditions.content
    parts = list(manifest.parts.values())
    begun = manifest.begun
    own = [part for part in parts if begun is not None and part.finished >= begun]
    seconds = max((part.finished for part in own), default=0.0) - (begun or 0.0) if own else 0.0
    rate = sum(part.rows for part in own) / seconds if seconds > 0 else 0.0
    rows, done = content["input"]["rows"], sum(part.rows for part in parts)
    answered = sum(part.answered for part in parts)
    is_listed = answered == done or (folder / BAD_ROWS).exists()  # it is written last
    is_complete = len(parts) == content["parts"] and is_listed
    return BatchSummary(
        folder=folder,
        state="running" if is_running else "complete" if is_complete else "stopped",
        task=content["task"],
        model=manifest.conditions.model,
        rows=rows,
        done=done,
        answered=answered,
        bad_rows=done - answered,
        tokens=sum(part.tokens for part in parts),
        parts=content["parts"],
        parts_done=len(parts),
        parts_of_run=len(own),
        seconds=seconds,
        rows_per_second=rate,
        eta_s=None if is_complete or not rate else (rows - done) / rate,
    )
