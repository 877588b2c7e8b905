"""`POST /v1/fill-mask`: word pieces for the gaps in texts."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict

from medvllm.engine.model_runner.fill_mask import FilledText
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
from medvllm.server.protocols.medical.request import Count, MedicalRequest
from medvllm.server.texts import GivenTexts, Texts, answer_each

router = APIRouter(route_class=StrictRoute)

_GAPS = [[{"text": "chest", "score": 0.4, "id": 2108}]]
_RECORDS = (
    {"index": 0, "id": "n1", "object": "fill-mask", "length": 15, "gaps": _GAPS, "coverage": COVERAGE},
    {"index": 1, "id": "n2", **BAD_TEXT},
)


class FillMaskRequest(MedicalRequest):
    """The texts whose gaps to fill.

    Attributes:
        input: A text, a list of texts, or a list of texts with ids. A gap is written as [MASK].
        top_k: How many word pieces to return for each gap; 5 by default, or all targets.
        targets: The only word pieces to score.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "my-bert", "input": [{"id": "n1", "text": "She has [MASK]."}]}}
    )

    input: Texts
    top_k: Count | None = None
    targets: list[str] | None = None


@router.post(
    "/v1/fill-mask",
    response_class=JSONResponse,
    responses={200: answer_of(*examples_of("fill", _RECORDS), optional=OPTIONAL)},
)
async def fill_mask(asked: FillMaskRequest, http: Request, server: ServerOf) -> Response:
    """Return the likeliest word pieces for each gap of each text. A text at fault has an error in its place."""
    given = GivenTexts(asked.input, server.config)

    options: dict[str, Any] = {"top_k": asked.top_k, "targets": asked.targets, "with_receipt": asked.receipt}

    def describe(index: int, filled: FilledText) -> dict[str, Any]:
        offsets = Offsets(given.texts[index], asked.offset_unit)
        record = {"object": "fill-mask", "length": offsets.length, "gaps": [list(map(vars, gap)) for gap in filled]}
        return {**record, "coverage": describe_coverage(filled.coverage, given.texts[index], offsets)}

    def call() -> Response:
        run = partial(asked.runner(server).fill_mask, **options)
        result, answers, problems = answer_each(http, given, given.texts, run)
        data = describe_answers(http, given, answers, problems, describe)
        return make_answer(asked, "fill", data, count_tokens(filled.coverage for filled in answers.values()), result)

    return await server.run(http, call, **asked.limits())
