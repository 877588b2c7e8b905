"""The texts of a request, with their ids, and the answers for them in place."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema
from starlette.requests import Request as HTTPRequest

from medvllm.engine.model_runner.results import Result
from medvllm.engine.model_runner.text_numbers import with_number
from medvllm.errors import LoadError, RequestError
from medvllm.server.config import ServerConfig
from medvllm.server.problem import Problem, ProblemError, log_failure, problem_for, problem_of
from medvllm.server.rendering import content_of


def _make_lists_fail_fast(schema: Any) -> None:
    """Change a schema so that 100,000 wrong items do not take a second and 200 MB."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        for part in schema.values():
            _make_lists_fail_fast(part)
    elif isinstance(schema, (list, tuple)):
        for part in schema:
            _make_lists_fail_fast(part)


class _Part(BaseModel):
    """A part of a request. The first wrong item of a list is an error of the list, and the others are not looked at.

    A null of a field that may be left out means that it is.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _make_lists_fail_fast(schema)
        return schema

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler(schema)
        properties = handler.resolve_ref_schema(described).get("properties", {})
        for name in cls._optional() & properties.keys():
            own = properties[name]
            if {"type": "null"} not in own.get("anyOf", ()):
                kept = {key: own.pop(key) for key in ("title", "description", "default") if key in own}
                properties[name] = {"anyOf": [own, {"type": "null"}], **kept}
        return described

    @classmethod
    def _optional(cls) -> set[str]:
        return {name for name, field in cls.model_fields.items() if not field.is_required()}

    @model_validator(mode="before")
    @classmethod
    def _leave_nulls_out(cls, given: Any) -> Any:
        if not isinstance(given, dict) or None not in given.values():
            return given
        optional = cls._optional()
        return {name: value for name, value in given.items() if value is not None or name not in optional}


class StrictModel(_Part):
    """A part of a request, in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True)


class TolerantModel(_Part):
    """A part of a request of another project's protocol, whose clients send keys of their own: they are ignored.

    Values are not converted: "3" is no number, and 1 is not true.
    """

    model_config = ConfigDict(strict=True)


class TextItem(StrictModel):
    """A text with the client's own id."""

    id: Annotated[str, Field(max_length=200)]
    text: str


T = TypeVar("T")
Texts = str | list[str] | list[TextItem]


class GivenTexts:
    """The texts of a request.

    Args:
        given: One text, a list of texts, or a list of texts with ids.
        config: The limits of the server.

    Raises:
        ProblemError: There are too many, or none.
    """

    def __init__(self, given: Texts, config: ServerConfig) -> None:
        items = [given] if isinstance(given, str) else given
        self.texts = [item.text if isinstance(item, TextItem) else item for item in items]
        self._ids = [item.id if isinstance(item, TextItem) else None for item in items]
        check_texts(self.texts, config)

    @classmethod
    def of(
        cls, texts: Sequence[str], ids: Sequence[str | None], config: ServerConfig, others: Sequence[str] = ()
    ) -> "GivenTexts":
        """Return the texts of a request that has them with more.

        Args:
            texts: The texts.
            ids: Their ids.
            config: The limits of the server.
            others: Further texts, whose characters count too.
        """
        check_texts(texts, config, others=others)
        given = cls.__new__(cls)
        given.texts, given._ids = list(texts), list(ids)
        return given

    def named(self, problem: Problem) -> Problem:
        """Return the problem of a text of the request, with the id that the client gave it."""
        return problem if problem.position is None else replace(problem, text_id=self._ids[problem.position])

    def failure(self, http: HTTPRequest, error: Exception) -> ProblemError:
        """Return what to raise, so that an error of one text fails the request. It is logged."""
        problem = problem_for(http, error)
        log_failure(http, error, problem)
        return ProblemError(self.named(problem))

    def name(self, position: int) -> dict[str, Any]:
        """Return the index and, if the client gave one, the id of a text, for its answer."""
        own = self._ids[position]
        return {"index": position} | ({} if own is None else {"id": own})


def check_texts(
    texts: Sequence[str | Sequence[str]], config: ServerConfig, param: str = "input", others: Iterable[str] = ()
) -> None:
    """Raise ProblemError unless a request has so many texts and characters as the server takes.

    Args:
        texts: The texts, or pairs of texts.
        config: The limits of the server.
        param: The field of the request that has them.
        others: Further texts, whose characters count too.
    """
    if not texts:
        raise ProblemError(Problem(422, "no_input", f"{param} has no text.", param))
    if len(texts) > config.max_texts:
        raise ProblemError(too_many(f"{len(texts):,} texts", f"{config.max_texts:,}", param))
    characters = sum(len(text) if isinstance(text, str) else sum(map(len, text)) for text in (*texts, *others))
    if characters > config.max_characters:
        raise ProblemError(too_many(f"{characters:,} characters", f"{config.max_characters:,}", param))


def too_many(found: str, limit: str, param: str) -> Problem:
    """Return the problem of a request that has more than the server takes, such as "3,000 texts"."""
    message = f"{param} has {found}; the server takes {limit} in one request.\nSend them in several requests."
    return Problem(413, f"too_many_{found.rpartition(' ')[2]}", message, param)


def answer_each(
    http: HTTPRequest, given: GivenTexts, texts: Sequence[T], run: Callable[[list[T]], Result]
) -> tuple[Result | None, dict[int, Any], dict[int, Problem]]:
    """Run a task on texts. A text at fault has a problem in its place, and the others have their answers.

    Args:
        http: The request, for the log.
        given: The texts, with their ids.
        texts: What is run for each: the text, a pair, or its number.
        run: Runs the task, always with the same version of a model. Its result has an item for each text.

    Returns:
        The last result, or None if every text is at fault; the answers and the problems, by the index of their text.

    Raises:
        MedVLLMError: An error that is not about one text.
        ProblemError: Such an error, or one of the only text.
    """
    result = None
    answers: dict[int, Any] = {}
    problems: dict[int, Problem] = {}
    waiting: list[Sequence[int]] = [range(len(texts))]
    while waiting:
        indices = waiting.pop()
        try:
            result = run([texts[index] for index in indices])
        except (RequestError, LoadError, ProblemError) as error:
            found = problem_of(error)
            if (place := found.position) is None:
                raise
            if len(texts) == 1:
                raise given.failure(http, error) from None
            problem = _renumber(found, indices[place])
            log_failure(http, error, problem)
            problems[indices[place]] = problem
            # Not both at once: those behind would be read again for each further text at fault.
            waiting += [part for part in (indices[place + 1 :], indices[:place]) if part]
        else:
            answers |= zip(indices, result, strict=True)  # type: ignore[call-overload]
    return result, answers, problems


def _renumber(problem: Problem, index: int) -> Problem:
    """Return the problem of a text with its place among all texts of the request."""
    return replace(problem, message=with_number(problem.message, index + 1), position=index)


def place_problem(named: Mapping[str, Any], problem: Problem, path: str) -> dict[str, Any]:
    """Return the record of a text at fault, for the answer of a path."""
    return {**named, "object": "error", **content_of(problem, path)}
