"""`POST /v1/entities`: the spans that a tagger finds in texts."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict

from medvllm.engine.model_runner.tagging.entities import Entities
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.offsets import Offsets
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
from medvllm.server.protocols.medical.request import LongText, MedicalRequest, Score
from medvllm.server.texts import GivenTexts, Texts, answer_each

router = APIRouter(route_class=StrictRoute)

_ENTITY = {"id": 0, "start": 0, "end": 7, "label": "DRUG", "score": 0.98}
_RECORDS = (
    {"index": 0, "id": "n1", "object": "entities", "length": 18, "entities": [_ENTITY], "coverage": COVERAGE},
    {"index": 1, "id": "n2", **BAD_TEXT},
)


class EntitiesRequest(MedicalRequest):
    """The texts in which to find entities.

    Attributes:
        input: A text, a list of texts, or a list of texts with ids.
        threshold: Entities with a lower score are left out.
        labels: The labels to find; all by default.
        include_text: Whether the answer repeats the text of each entity.
        long_text: What becomes of a text that is longer than the model; what the entry says, by default.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "my-tagger", "input": [{"id": "n1", "text": "Insulin was given."}]}}
    )

    input: Texts
    threshold: Score = 0.0
    labels: list[str] | None = None
    include_text: bool = True
    long_text: LongText | None = None


@router.post(
    "/v1/entities",
    response_class=JSONResponse,
    responses={200: answer_of(*examples_of("ent", _RECORDS), optional=OPTIONAL)},
)
async def find_entities(asked: EntitiesRequest, http: Request, server: ServerOf) -> Response:
    """Return the entities of each text. A text at fault has an error in its place."""
    given = GivenTexts(asked.input, server.config)
    options: dict[str, Any] = {"threshold": asked.threshold, "labels": asked.labels, "long_input": asked.long_text}

    def describe(index: int, found: Entities) -> dict[str, Any]:
        text = given.texts[index]
        offsets = Offsets(text, asked.offset_unit)
        spans = [
            {"id": number, "start": offsets(span.start), "end": offsets(span.end), "label": span.label}
            | {"score": span.score}
            | ({"text": span.text} if asked.include_text else {})
            for number, span in enumerate(found.spans)
        ]
        record = {"object": "entities", "length": offsets.length, "entities": spans}
        return {**record, "coverage": describe_coverage(found.coverage, text, offsets)}

    def call() -> Response:
        run = partial(asked.runner(server).entities, with_receipt=asked.receipt, **options)
        result, answers, problems = answer_each(http, given, given.texts, run)
        data = describe_answers(http, given, answers, problems, describe)
        return make_answer(asked, "ent", data, count_tokens(found.coverage for found in answers.values()), result)

    return await server.run(http, call, **asked.limits())
