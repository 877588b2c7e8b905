"""The server's own protocol: entities and redaction, with offsets, coverage and receipts."""

import time
import uuid
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import Field

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.request import Priority
from medvllm.engine.model_runner.tagging.entities import Entities
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.offsets import Offsets, OffsetUnit
from medvllm.server.texts import GivenTexts, StrictModel, Texts, answer_each, place_problem

router = APIRouter(tags=["Medical"], route_class=StrictRoute)

Engine = Literal["torch", "onnx", "openvino", "auto"]


class MedicalRequest(StrictModel):
    """What the requests of the medical tasks have in common."""

    model: str
    input: Texts
    offset_unit: OffsetUnit = "codepoint"
    engine: Engine | None = None
    receipt: bool = False
    priority: Priority = "interactive"
    timeout_s: Annotated[float, Field(gt=0, strict=False)] | None = None


class EntitiesRequest(MedicalRequest):
    """The texts in which to find entities."""

    threshold: Annotated[float, Field(ge=0, le=1, strict=False)] = 0.0
    labels: list[str] | None = None
    include_text: bool = True


@router.post("/v1/entities")
async def find_entities(asked: EntitiesRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return the entities of each text."""
    given = GivenTexts(asked.input, server.config)
    options: dict[str, Any] = {"threshold": asked.threshold, "labels": asked.labels, "with_receipt": asked.receipt}

    def call() -> Any:
        run = partial(server.runner(asked.model, asked.engine).entities, **options)
        return answer_each(given.texts, run)

    result, answers, problems = await server.run(http, call, timeout_s=asked.timeout_s, priority=asked.priority)
    data = []
    for position, text in enumerate(given.texts):
        named = given.name(position)
        if position in problems:
            data.append(place_problem(named, problems[position]))
            continue
        offsets = Offsets(text, asked.offset_unit)
        found: Entities = answers[position]
        spans = [
            {"id": number, "start": offsets(span.start), "end": offsets(span.end), "label": span.label}
            | {"score": span.score}
            | ({"text": span.text} if asked.include_text else {})
            for number, span in enumerate(found.spans)
        ]
        record = {"object": "entities", "length": offsets.length, "entities": spans}
        data.append({**named, **record, "coverage": describe_coverage(found.coverage, text, offsets)})
    tokens = sum(found.coverage.tokens for found in answers.values())
    head = {"object": "list", "id": f"ent-{uuid.uuid4().hex}", "created": int(time.time()), "model": asked.model}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    answer = {**head, "offset_unit": asked.offset_unit, "data": data, "usage": usage}
    if asked.receipt and result is not None:
        answer["receipt"] = result.receipt.to_dict()
    return answer


def describe_coverage(coverage: Coverage, text: str, offsets: Offsets) -> dict[str, Any]:
    """Return what was read of a text, in the client's unit, and whether that is all of it but blanks."""
    read = [[offsets(start), offsets(end)] for start, end in coverage.read]
    ends = [0, *(place for part in coverage.read for place in part), len(text)]
    gaps = zip(ends[::2], ends[1::2], strict=True)
    is_complete = not coverage.truncated and not any(text[start:end].strip() for start, end in gaps)
    counts = {"windows": coverage.windows, "tokens": coverage.tokens, "truncated": coverage.truncated}
    return {"complete": is_complete, "read": read, **counts}
