"""What answers the parts of a batch: one model, in memory as long as it works."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic
from typing import Any, Protocol

from medvllm.corpora.rows import Row, split_into_chunks
from medvllm.engine.model_runner.batch import part_file
from medvllm.engine.model_runner.batch.conditions import faker_of
from medvllm.engine.model_runner.batch.part import Part, Unanswered
from medvllm.engine.model_runner.batch.part_file import OutputFormat, Records
from medvllm.engine.model_runner.batch.secrets import secret_of
from medvllm.engine.model_runner.corpus_run import EXTRA_COLUMNS, arguments_for, find_position, naming_places
from medvllm.engine.model_runner.foreign_errors import drop_hidden_errors
from medvllm.engine.model_runner.tasks import check_task, run_task
from medvllm.errors import LoadError, MedVLLMError, RequestError, SettingError
from medvllm.model_registry import Lease
from medvllm.receipt import Receipt
from medvllm.settings import REDACTION_KEY_FILE

_RowError = (RequestError, LoadError)
Numbered = Sequence[tuple[int, Row]]


class Runner(Protocol):
    """A `ModelRunner`, as far as a batch needs one. It can be pickled."""

    def pinned(self) -> "Runner":
        """Return a runner of the version that the name means now."""
        ...

    def lease_for(self, task: str | None) -> AbstractContextManager[Lease]:
        """Return what leases the model for a task."""
        ...


@dataclass(frozen=True)
class Job:
    """What a worker needs to know. It can be pickled.

    Attributes:
        runner: The model. Its name means one version.
        task: The task.
        arguments: The options of the task.
        output: The format of the parts.
        has_ids: Whether the rows of the corpus have ids.
        has_number_ids: Whether the ids are whole numbers.
        is_pair: Whether each row has two texts.
        secret: Tells whether this machine has the keys of the redaction, as `secret_of` says.
        device: The device that was asked for.
        faker: The version of Faker that makes the surrogates; None if there are none.
    """

    runner: Runner
    task: str
    arguments: Mapping[str, Any]
    output: OutputFormat
    has_ids: bool
    has_number_ids: bool
    is_pair: bool
    secret: str | None
    device: str | None = None
    faker: str | None = None


@dataclass(frozen=True)
class AnsweredPart:
    """The answers for a part.

    Attributes:
        number: The number of the part.
        content: What its file holds.
        answered: How many rows have an answer.
        tokens: How many tokens were read for them.
        bad: The rows without an answer, in their order.
        seconds: How long it took.
        failure: Why none of its rows has an answer, if the model was asked for one.
    """

    number: int
    content: bytes
    answered: int
    tokens: int
    bad: tuple[Unanswered, ...]
    seconds: float
    failure: RequestError | LoadError | None = None

    @property
    def digest(self) -> str:
        """The SHA-256 of the file."""
        return sha256(self.content).hexdigest()


class Worker:
    """Answers parts.

    Args:
        job: What to do.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._stack = job, ExitStack()
        self._opened: Lease | None = None
        if secret_of(job.arguments) != job.secret:
            raise SettingError(
                f"The key of the redaction is another one here.\nSet it on each machine: {REDACTION_KEY_FILE.name}",
                setting=REDACTION_KEY_FILE.name,
            )
        if (faker := faker_of(job.arguments)) != job.faker:
            raise LoadError(
                f"A worker has Faker {faker}, and the process that started the batch has {job.faker}, so names "
                f"could get two surrogates.\nInstall one version on each machine: pip install faker=={job.faker}"
            )
        # Before a load. The options of a redaction are read for each part, so that no part depends on another one.
        check_task(job.task, dict(job.arguments) | placeholders(job.task))

    def open(self) -> Receipt:
        """Load the model, and return what answers."""
        self._opened = self._stack.enter_context(self._job.runner.lease_for(self._job.task))
        return self._opened.receipt

    def close(self) -> None:
        """Let go of the model."""
        self._opened = None
        self._stack.close()

    @drop_hidden_errors
    def answer(self, part: Part, receipt: Mapping[str, Any]) -> AnsweredPart:
        """Return the answers for a part.

        Args:
            part: The part.
            receipt: What the metadata of its file says of the model.

        Raises:
            MedVLLMError: The model cannot answer, whatever the rows.
        """
        begun = monotonic()
        good, unread = part.numbered(has_ids=self._job.has_ids)
        records, bad, failure = self._answer_rows(good)
        everything = sorted([*unread, *bad], key=lambda each: each.row)
        tokens = sum(map(_count_tokens, records))
        content = self._write(records, part, receipt)
        return AnsweredPart(part.number, content, len(records), tokens, tuple(everything), monotonic() - begun, failure)

    def _answer_rows(self, rows: Numbered) -> tuple[Records, list[Unanswered], RequestError | LoadError | None]:
        """Return the records, the rows that have none, and why, if no row has one.

        If a row cannot be answered, each is tried alone, and then all others are answered together: their answers are
        the same as if the row were not there.
        """
        try:
            return self._run(rows), [], None
        except _RowError as error:
            if find_position(error) is None:
                raise
        good, bad = [], []
        failure: RequestError | LoadError | None = None
        for position, row in rows:
            try:
                self._run([(position, row)])
            except _RowError as error:
                if find_position(error) is None:
                    raise
                failure = type(error)(str(error), **vars(error))  # without a traceback, whose frames hold the text
                bad.append(Unanswered.of(position, row.place, error))
            else:
                good.append((position, row))
        return self._run(good), bad, None if good else failure

    def _run(self, rows: Numbered) -> Records:
        """Return the records of rows, which are all answered."""
        lease, job = self._lease, self._job
        records: list[dict[str, Any]] = []
        arguments = check_task(job.task, dict(job.arguments) | placeholders(job.task))
        for chunk in split_into_chunks(row for _, row in rows):
            own = arguments | arguments_for(job.task, chunk, has_ids=job.has_ids)
            with naming_places(chunk, 0):
                result = run_task(lease, job.task, [row.text for row in chunk], own)
            records += ({"id": row.id, **record} for row, record in zip(chunk, result.to_dict(), strict=True))
        return records

    def _write(self, records: Records, part: Part, receipt: Mapping[str, Any]) -> bytes:
        job = self._job
        if job.output == "jsonl":
            return part_file.write_json_lines(records)
        facts = {"part": part.number, "first_row": part.first, "task": job.task, "receipt": receipt}
        return part_file.write_parquet(
            records,
            job.task,
            vector_size=self._vector_size(records) if job.task == "embed" else None,
            has_number_ids=job.has_number_ids,
            facts={"medvllm": json.dumps(facts, sort_keys=True)},
        )

    def _vector_size(self, records: Records) -> int:
        if records:
            return len(records[0]["vector"])
        probe: Any = ("a", "a") if self._job.is_pair else "a"  # the columns of an empty part are those of the others
        return len(run_task(self._lease, self._job.task, [probe], dict(self._job.arguments)).to_dict()[0]["vector"])

    @property
    def _lease(self) -> Lease:
        assert self._opened is not None
        return self._opened


@contextmanager
def opened(job: Job) -> Iterator[tuple[Worker, Receipt]]:
    """Load the model for the duration of a `with` block. Yields a worker, and what answers."""
    worker = Worker(job)
    try:
        yield worker, worker.open()
    finally:
        worker.close()


def without_text(error: Exception) -> MedVLLMError:
    """Return an error for the process that started the batch. The message of a foreign one may have a text."""
    if isinstance(error, MedVLLMError):
        return error
    return LoadError(f"A worker could not answer: {type(error).__name__}.")


def placeholders(task: str) -> dict[str, Any]:
    """Return arguments of which each text has its own, for none."""
    return {EXTRA_COLUMNS[task]: []} if task in EXTRA_COLUMNS else {}


def _count_tokens(record: Mapping[str, Any]) -> int:
    if "assertions" in record:
        return sum(each["tokens"] for each in record["assertions"])
    return int(record["tokens"])
