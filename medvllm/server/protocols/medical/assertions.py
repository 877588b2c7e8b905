"""`POST /v1/assertions`: whether what a span names is present, absent or possible."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm.engine.model_runner.classification.assertions import Assertion
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.examples import Map, answer_of
from medvllm.server.offsets import Offsets
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.medical.answer import (
    BAD_TEXT,
    COVERAGE,
    OPTIONAL,
    count_tokens,
    describe_answers,
    describe_coverage,
    examples_of,
    make_answer,
)
from medvllm.server.protocols.medical.request import MedicalRequest
from medvllm.server.texts import GivenTexts, StrictModel, TolerantModel, answer_each

router = APIRouter(route_class=StrictRoute)

_ASSERTION = {
    "id": 0,
    "start": 3,
    "end": 8,
    "label": "ABSENT",
    "score": 0.9,
    "scores": Map(ABSENT=0.9, PRESENT=0.1),
    "text": "fever",
    "coverage": COVERAGE,
}
_RECORDS = (
    {"index": 0, "id": "n1", "object": "assertions", "length": 9, "assertions": [_ASSERTION]},
    {"index": 1, **BAD_TEXT},
)
_INPUT: list[Any] = [{"id": "n1", "text": "No fever.", "spans": [{"id": 0, "start": 3, "end": 8}]}]


class SpanItem(TolerantModel):
    """A span of a text. The other keys of an entity of `/v1/entities` are allowed."""

    start: Annotated[int, Field(ge=0)]
    end: Annotated[int, Field(ge=0)]
    id: int | str | None = None


class TextWithSpans(StrictModel):
    """A text, with the spans to judge."""

    id: Annotated[str, Field(max_length=200)] | None = None
    text: str
    spans: list[SpanItem]


class AssertionsRequest(MedicalRequest):
    """The spans to judge.

    Attributes:
        input: The texts, each with its spans. Their offsets count what `offset_unit` says.
        include_text: Whether the answer repeats the text of each span.
    """

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-judge", "input": _INPUT}})

    input: list[TextWithSpans]
    include_text: bool = True


@router.post(
    "/v1/assertions",
    response_class=JSONResponse,
    responses={200: answer_of(*examples_of("ast", _RECORDS), optional=OPTIONAL)},
)
async def find_assertions(asked: AssertionsRequest, http: Request, server: ServerOf) -> Response:
    """Return what the model says of each span. A text at fault has an error in its place."""
    texts = [item.text for item in asked.input]
    given = GivenTexts.of(texts, [item.id for item in asked.input], server.config)
    units: list[Offsets] = []

    def describe(index: int, found: Sequence[Assertion]) -> dict[str, Any]:
        offsets = units[index]
        judged = [
            ({} if span.id is None else {"id": span.id})
            | {"start": span.start, "end": span.end, "label": each.label, "score": each.score, "scores": each.scores}
            | ({"text": each.text} if asked.include_text else {})
            | {"coverage": describe_coverage(each.coverage, texts[index], offsets)}
            for span, each in zip(asked.input[index].spans, found, strict=True)
        ]
        return {"object": "assertions", "length": offsets.length, "assertions": judged}

    def call() -> Response:
        units.extend(Offsets(text, asked.offset_unit) for text in texts)
        runner = asked.runner(server)

        def run(chosen: Sequence[int]) -> Any:
            spans = [
                _places(asked.input[index].spans, units[index], index, position)
                for position, index in enumerate(chosen)
            ]
            return runner.assertions([texts[index] for index in chosen], spans, with_receipt=asked.receipt)

        result, answers, problems = answer_each(http, given, range(len(texts)), run)
        data = describe_answers(http, given, answers, problems, describe)
        tokens = count_tokens(each.coverage for found in answers.values() for each in found)
        return make_answer(asked, "ast", data, tokens, result)

    return await server.run(http, call, **asked.limits())


def _places(spans: Sequence[SpanItem], offsets: Offsets, index: int, position: int) -> list[tuple[int, int]]:
    """Return the places of spans in code points.

    Args:
        spans: The spans.
        offsets: The offsets of their text.
        index: Which text of the request it is.
        position: Which of those that are judged together.

    Raises:
        ProblemError: An offset is inside a character, or behind the text.
    """
    places = []
    for number, span in enumerate(spans):
        start, end = offsets.to_codepoints(span.start), offsets.to_codepoints(span.end)
        if start is None or end is None:
            param = f"input.{index}.spans.{number}"
            message = (
                f"{param} begins or ends inside a character, or behind the text.\nIs offset_unit the client's own?"
            )
            raise ProblemError(Problem(422, "invalid_span", message, param, position=position))
        places.append((start, end))
    return places
