"""Runs a task over a corpus: chunk by chunk, with one model throughout."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.repeated_ids import RepeatedIds
from medvllm.corpora.rows import CHUNK_CHARACTERS, Row, split_into_chunks
from medvllm.engine.model_runner.foreign_errors import drop_hidden_errors
from medvllm.engine.model_runner.generation.answers import GenerationResults, Piece
from medvllm.engine.model_runner.results import Result
from medvllm.engine.model_runner.tasks import check_task
from medvllm.engine.model_runner.text_numbers import number_in, with_place
from medvllm.engines.kinds import EngineName, Precision, check_engine, check_precision
from medvllm.errors import LoadError, RequestError
from medvllm.model_registry import ModelRegistry, registry
from medvllm.receipt import Receipt
from medvllm.words import usual_task

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_TASKS_OF = {"texts": ("redact", "generate"), "vectors": ("embed",)}  # the tasks by what they answer with
# Arguments with one value for each text, and where a row of a corpus has it.
EXTRA_COLUMNS = {"assertions": "spans"}
SET_FOR_EACH_TEXT = ("documents",)  # by the ids of the corpus
_PAIR_TASKS = ("embed", "classify")  # in the others, one of two inputs is an option, or they are made from spans
_STREAMED_TASK = "generate"
DOCUMENT_TASKS = ("redact",)  # for which an id may name several rows
_RANKING_TASKS = ("rerank",)  # whose answers are in an order of all texts


class CorpusAnswers:
    """The answers for a chunk of a corpus.

    Attributes:
        result: The result of the task.
        given: The rows of the corpus that the result is for.
        offset: How many rows of the corpus come before them.
    """

    def __init__(self, result: Result, given: Sequence[Row], offset: int, *, has_ids: bool) -> None:
        self.result, self.given, self.offset, self.has_ids = result, given, offset, has_ids
        self.task = result.task

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns of `rows`; the first is "id" if the corpus has ids, and "text" otherwise."""
        return ("id", *self.result.columns[1:]) if self.has_ids else self.result.columns

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a table; the first cell is the id or the number of the text."""
        for number, *cells in self.result.rows():
            assert isinstance(number, int)
            yield self.given[number - 1].id if self.has_ids else self.offset + number, *cells

    def records(self) -> Iterator[dict[str, Any]]:
        """Yield one record for each text, for JSON."""
        for position, record in enumerate(self.result.to_dict()):
            index = record.get("index", position)
            if "index" in record:
                record["index"] += self.offset
            yield {"id": self.given[index].id, **record} if self.has_ids else record

    def names(self) -> list[str]:
        """Return for each text its id, or its number."""
        rows = enumerate(self.given, self.offset + 1)
        return [str(number if row.id is None else row.id) for number, row in rows]

    @property
    def has_texts(self) -> bool:
        """Whether the task answers with texts."""
        return self.task in _TASKS_OF["texts"]

    def texts(self) -> list[str]:
        """Return the text that answers each text. RequestError: the task answers with something else."""
        check_output_kind(self.task, "texts")
        return [answer.text for answer in self.result]  # type: ignore[attr-defined]

    def vectors(self) -> "NDArray[np.float32]":
        """Return the vectors, of shape [texts, size]. RequestError: the task answers with something else."""
        check_output_kind(self.task, "vectors")
        return self.result.vectors  # type: ignore[attr-defined, no-any-return]


Listener = Callable[[CorpusAnswers, Piece], None]


class Answerer(Protocol):
    """What answers the chunks of a corpus: a model in memory, or a server.

    Attributes:
        takes_parts: Whether the answers for a corpus may be asked for in several chunks.
        receipt: What exactly answered, after the last answers; None if it was not asked for.
    """

    takes_parts: bool

    @property
    def receipt(self) -> Receipt | None: ...

    def streams(self, task: str | None, texts: Sequence[Any]) -> bool:
        """Return whether the answers come piece by piece, if somebody listens."""
        ...

    def run(self, task: str | None, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Result:
        """Return the answers. NotAnsweredError: a model in memory is to answer instead."""
        ...

    def stream(self, texts: Sequence[Any], arguments: Mapping[str, Any]) -> Generator[Piece]:
        """Yield the answers of the task generate, piece by piece. NotAnsweredError: as for `run`."""
        ...


class NotAnsweredError(Exception):
    """A server that could have answered did not, and nothing was lost: a model in memory can answer."""


class CorpusRun:
    """Runs a task over a corpus. Iterating over it yields the answers, chunk by chunk.

    The first chunk is read before the model is loaded. All chunks are answered by one model, which stays in memory.

    Args:
        name: A registered name, a repository or a folder.
        rows: The rows of the corpus, read as the answers are asked for.
        task: The task; None for the model's own one.
        arguments: The options of the task.
        with_receipt: Whether `receipt` is made.
        listen: What is told each piece of a text that is generated, before the answers of its chunk are yielded.
        server: What answers in place of a model in memory; None for nothing.
        registry: The registry that loads the model.
        engine: What computes, as for `ModelRunner`.
        precision: In which precision an engine may compute, as for `ModelRunner`.
        options: The options of `registry.load_model`.

    Attributes:
        task: The task, once the first answers are there.
        receipt: What exactly answered, after the last answers.
    """

    def __init__(
        self,
        name: "str | os.PathLike[str]",
        rows: Iterable[Row],
        task: str | None = None,
        *,
        arguments: Mapping[str, Any] | None = None,
        with_receipt: bool = False,
        listen: "Listener | None" = None,
        server: Answerer | None = None,
        registry: ModelRegistry = registry,
        engine: EngineName = "torch",
        precision: Precision = "float32",
        **options: Any,
    ) -> None:
        self._listen, self._server = listen, server
        self._name, self._rows, self._registry, self._options = name, rows, registry, options
        self._engine: EngineName = check_engine(engine)
        self._precision: Precision = check_precision(precision, self._engine)
        self._arguments, self._with_receipt = dict(arguments or {}), with_receipt
        self.task = None if task is None else usual_task(task)
        self.receipt: Receipt | None = None
        self._repeated = RepeatedIds()

    def __iter__(self) -> Generator[CorpusAnswers]:
        size: float = CHUNK_CHARACTERS
        if self.task == "redact":  # all chunks get the same operators, with the same keys
            from medvllm.engine.model_runner.redaction.operators import parse_operators

            operators = parse_operators(self._arguments.get("operators"))
            self._arguments["operators"] = operators
            # The operators of a server draw their keys for each call.
            in_one_call = operators.need_all_texts or (self._server is not None and self._server.takes_parts)
            size = inf if in_one_call else size
        chunks = split_into_chunks(self._rows, size)
        if (first := next(chunks, None)) is None:
            return
        has_ids = any(row.id is not None for row in first)
        offset = 0
        ranking = _Ranking(self._arguments.get("top_k"), has_ids=has_ids)
        if self.task is not None:  # what has a value for each text is checked again with its chunk
            check_task(self.task, self._arguments_for(first, has_ids=has_ids))
        second = None if self._server is None or self._server.takes_parts else next(chunks, None)
        with ExitStack() as stack:
            answerer = self._server if second is None else None
            for chunk in chain([first], () if second is None else [second], chunks):
                answers = None if answerer is None else self._try(answerer, chunk, offset, has_ids=has_ids)
                if answers is None:
                    answerer = stack.enter_context(self._model_in_memory(first))
                    answers = self._answer(answerer, chunk, offset, has_ids=has_ids)
                offset += len(chunk)
                if answers.task in _RANKING_TASKS:
                    ranking.add(answers)
                else:
                    yield answers
            if ranking.is_needed:
                yield ranking.answers()
            self.receipt = None if answerer is None else answerer.receipt

    @contextmanager
    def _model_in_memory(self, first: Sequence[Row]) -> Iterator[Answerer]:
        # Here, because a server may answer in its place: all that runs a model takes as long to import as it answers.
        from medvllm.engine.model_runner.engine_lease import lease_for_task
        from medvllm.engine.model_runner.model_in_memory import ModelInMemory

        texts = [row.text for row in first]
        given = self._name, self._options, self._engine, self._precision, self.task, texts
        with lease_for_task(self._registry, *given) as lease:
            yield ModelInMemory(lease, with_receipt=self._with_receipt)

    def _try(self, answerer: Answerer, chunk: list[Row], offset: int, *, has_ids: bool) -> CorpusAnswers | None:
        try:
            return self._answer(answerer, chunk, offset, has_ids=has_ids)
        except NotAnsweredError:
            return None

    @drop_hidden_errors
    def _answer(self, answerer: Answerer, chunk: list[Row], offset: int, *, has_ids: bool) -> CorpusAnswers:
        if not has_ids and (late := next((row for row in chunk if row.id is not None), None)):
            raise RequestError(f"There is an id in {late.place}, but none before.\nGive each row an id, or none.")
        with naming_places(chunk, offset):
            texts = [row.text for row in chunk]
            arguments = self._arguments_for(chunk, has_ids=has_ids)
            if self._listen is not None and answerer.streams(self.task, texts):
                result: Result = self._stream(answerer, chunk, offset, arguments, has_ids=has_ids)
            else:
                result = answerer.run(self.task, texts, arguments)
        self.task = result.task  # the first chunk decides for all
        if self.task not in DOCUMENT_TASKS:
            self._repeated.add(chunk)
        return CorpusAnswers(result, chunk, offset, has_ids=has_ids)

    def _stream(
        self, answerer: Answerer, chunk: Sequence[Row], offset: int, arguments: Mapping[str, Any], *, has_ids: bool
    ) -> Result:
        """Generate the answers one after another, and tell their pieces."""
        assert self._listen is not None
        if self.task is None:
            check_task(_STREAMED_TASK, arguments)
        made = GenerationResults()
        made.task = _STREAMED_TASK
        answers = CorpusAnswers(made, chunk, offset, has_ids=has_ids)
        with closing(answerer.stream([row.text for row in chunk], arguments)) as pieces:
            for piece in pieces:
                self._listen(answers, piece)
                if piece.answer is not None:
                    made.append(piece.answer)
        return made

    def _arguments_for(self, chunk: Sequence[Row], *, has_ids: bool) -> dict[str, Any]:
        """Return the arguments of the task, with those that have a value for each text."""
        return self._arguments | arguments_for(self.task, chunk, has_ids=has_ids)


def columns_for(task: str | None, columns: Columns, inputs: Sequence[str]) -> Columns:
    """Return the columns that a task reads. Without columns for texts, a model of pairs takes those of its inputs.

    Args:
        task: The task; None if only the model knows it.
        columns: What was asked for.
        inputs: The names of the model's inputs, if they are known.
    """
    extra = (EXTRA_COLUMNS[task],) if task in EXTRA_COLUMNS else ()
    usual = tuple(inputs) if task in _PAIR_TASKS and len(inputs) == 2 else columns.usual
    return replace(columns, extra=extra, usual=usual)


def arguments_for(task: str | None, chunk: Sequence[Row], *, has_ids: bool) -> dict[str, Any]:
    """Return the arguments of a task that have a value for each text."""
    own: dict[str, Any] = {}
    if (column := EXTRA_COLUMNS.get(task or "")) is not None:
        own[column] = [row.extra[column] for row in chunk]
    if task in DOCUMENT_TASKS and has_ids:
        own["documents"] = [str(row.place if row.id is None else row.id) for row in chunk]
    return own


class _Ranking:
    """The documents of all chunks in one order. Their texts are not kept."""

    def __init__(self, top_k: int | None, *, has_ids: bool) -> None:
        self._top_k, self._has_ids = top_k, has_ids
        self._result: Any = None
        self._rows: list[Row] = []

    @property
    def is_needed(self) -> bool:
        """Whether there are documents."""
        return self._result is not None

    def add(self, answers: CorpusAnswers) -> None:
        """Add the documents of a chunk."""
        found: Any = answers.result
        moved = [replace(document, index=document.index + answers.offset) for document in found]
        self._rows += [replace(row, text="") for row in answers.given]
        documents = sorted([*(self._result or ()), *moved], key=lambda document: (-document.score, document.index))
        self._result = type(found)(documents[: self._top_k])
        self._result.task = answers.task

    def answers(self) -> CorpusAnswers:
        """Return the ranking."""
        return CorpusAnswers(self._result, self._rows, 0, has_ids=self._has_ids)


def check_output_kind(task: str, kind: str | None) -> None:
    """Raise RequestError if a task does not answer with what an output needs: "texts", "vectors", or None for any."""
    if kind is not None and task not in _TASKS_OF[kind]:
        raise RequestError(
            f"Task {task!r} gives no {kind}. These tasks do: {', '.join(_TASKS_OF[kind])}.\n"
            "Write another format, for example: -o FILE.jsonl",
            task=task,
        )


@contextmanager
def naming_places(chunk: Sequence[Row], offset: int) -> Iterator[None]:
    """Replace the number of a text in an error by its place in the corpus."""
    try:
        yield
    except (RequestError, LoadError) as error:
        position = find_position(error)
        if position is None or not 0 <= position < len(chunk):
            raise
        message = with_place(str(error), chunk[position].place)
        named = type(error)(message, **vars(error) | {"position": position + offset})
        cause = error.__cause__
    else:
        return
    raise named from cause


def find_position(error: RequestError | LoadError) -> int | None:
    """Return the index of the text that an error is about, from 0; None if it is about all of them."""
    if error.position is not None or (number := number_in(str(error))) is None:
        return error.position
    return number - 1
