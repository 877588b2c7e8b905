"""`POST /v1/redact`: texts in which whatever is likely to identify someone is written over."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm.engine.model_runner.redaction.redact import THRESHOLD
from medvllm.engine.model_runner.redaction.results import Redaction
from medvllm.errors import LoadError, RequestError
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.offsets import Offsets
from medvllm.server.protocols.medical.answer import (
    COVERAGE,
    OPTIONAL,
    count_tokens,
    describe_answers,
    describe_coverage,
    examples_of,
    make_answer,
)
from medvllm.server.protocols.medical.request import MedicalRequest
from medvllm.server.redaction_keys import use_server_keys
from medvllm.server.texts import GivenTexts, Texts

router = APIRouter(route_class=StrictRoute)

_EXAMPLE: dict[str, Any] = {
    "model": "my-deid",
    "input": [{"id": "n1", "text": "Seen by Dr. Peña."}],
    "operators": {"DEFAULT": {"type": "replace"}, "DATE": {"type": "shift_dates", "days": 30}},
}
_ITEMS = [
    {
        "start": 12,
        "end": 18,
        "source_start": 12,
        "source_end": 16,
        "label": "NAME",
        "operator": "replace",
        "score": 0.98,
    },
]
_RECORDS = (
    {
        "index": 0,
        "id": "n1",
        "object": "redaction",
        "text": "Seen by Dr. [NAME].",
        "length": 19,
        "source_length": 17,
        "items": _ITEMS,
        "coverage": COVERAGE,
    },
    {
        "index": 1,
        "object": "redaction",
        "text": "No fever.",
        "length": 9,
        "source_length": 9,
        "items": [],
        "coverage": COVERAGE,
    },
)


class RedactRequest(MedicalRequest):
    """The texts to redact.

    Attributes:
        input: A text, a list of texts, or a list of texts with ids.
        operators: For a label, or for "DEFAULT", what is written instead, and its options. Secrets are never sent:
            "key" is the name of a key of the server.
        threshold: How likely, from 0 to 1, a piece of a word must be not to be outside of the labels.
        labels: The labels to redact; all by default. Required if the model is no de-identifier.
        documents: The document that each text belongs to. Dates of one document are shifted by the same number of days.
        include_text: Whether the items repeat what was written over.
    """

    model_config = ConfigDict(json_schema_extra={"example": _EXAMPLE})

    input: Texts
    operators: dict[str, dict[str, Any]] | None = None
    threshold: Annotated[float, Field(gt=0, le=1)] = THRESHOLD
    labels: list[str] | None = None
    documents: list[str] | None = None
    include_text: bool = False


@router.post(
    "/v1/redact",
    response_class=JSONResponse,
    responses={200: answer_of(examples_of("red", _RECORDS)[0], optional=OPTIONAL)},
)
async def redact(asked: RedactRequest, http: Request, server: ServerOf) -> Response:
    """Return each text, redacted whole. If one text cannot be, none is returned.

    A text that the model cannot read whole would look redacted and be as it was. So the request fails with a 422 that
    has its `index`, and the texts beside it have no answer either: a program that stores what it receives must not
    store a batch with a gap in it, and a surrogate may depend on all texts. Leave it out, and send the others again.
    """
    given = GivenTexts(asked.input, server.config)

    def describe(index: int, done: Redaction) -> dict[str, Any]:
        text = given.texts[index]
        source, new = Offsets(text, asked.offset_unit), Offsets(done.text, asked.offset_unit)
        items = [
            {
                "start": new(item.start),
                "end": new(item.end),
                "source_start": source(item.source_start),
                "source_end": source(item.source_end),
                "label": item.label,
                "operator": item.operator,
                "score": item.score,
            }
            | ({} if item.reason is None else {"reason": item.reason})
            | ({"source_text": text[item.source_start : item.source_end]} if asked.include_text else {})
            for item in done.items
        ]
        record = {"object": "redaction", "text": done.text, "length": new.length, "source_length": source.length}
        return {**record, "items": items, "coverage": describe_coverage(done.coverage, text, source)}

    def call() -> Response:
        result = asked.runner(server).redact(
            given.texts,
            operators=use_server_keys(asked.operators, server.config.redaction_keys),
            threshold=asked.threshold,
            labels=asked.labels,
            documents=asked.documents,
            with_receipt=asked.receipt,
        )
        data = describe_answers(http, given, dict(enumerate(result)), {}, describe)
        return make_answer(asked, "red", data, count_tokens(done.coverage for done in result), result)

    try:
        return await server.run(http, call, **asked.limits())
    except (RequestError, LoadError) as error:
        raise given.failure(http, error) from None
