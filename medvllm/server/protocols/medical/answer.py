"""The answers of the medical tasks: a record for each text, and what answered."""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.results import Result
from medvllm.server.offsets import Offsets
from medvllm.server.problem import Problem
from medvllm.server.protocols.medical.request import MedicalRequest
from medvllm.server.receipts import describe_receipt
from medvllm.server.texts import GivenTexts, place_problem

# For the documentation of the routes.
COVERAGE = {"complete": True, "read": [[0, 18]], "windows": 1, "tokens": 6, "truncated": False}
_ERROR = {"message": "…", "type": "invalid_request_error", "param": None, "code": "input_too_long", "index": 1}
BAD_TEXT = {"object": "error", "error": _ERROR}
OPTIONAL = ("id", "text", "index")  # depend on the request


def examples_of(kind: str, records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two answers: one with these records, and that of texts which are all at fault."""
    good = {
        "object": "list",
        "id": f"{kind}-4f5d",
        "created": 1790000000,
        "model": "my-model",
        "version": "3",
        "offset_unit": "codepoint",
        "data": list(records),
        "usage": {"prompt_tokens": 6, "total_tokens": 6},
    }
    bad = [{"index": index, "object": "error", "error": _ERROR | {"param": "top_k"}} for index in range(2)]
    return good, good | {"version": None, "data": bad, "usage": {"prompt_tokens": 0, "total_tokens": 0}}


def describe_answers(
    http: Request,
    given: GivenTexts,
    answers: Mapping[int, Any],
    problems: Mapping[int, Problem],
    describe: Callable[[int, Any], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return a record for each text of a request: its answer, or what is wrong with it.

    Args:
        http: The request.
        given: The texts.
        answers: The answers, by the index of their text.
        problems: What is wrong with the other texts.
        describe: Returns the record of an answer, from the index of its text and itself.
    """
    return [
        place_problem(given.name(index), problems[index], http.url.path)
        if index in problems
        else given.name(index) | describe(index, answers[index])
        for index in range(len(given.texts))
    ]


def make_answer(
    asked: MedicalRequest, kind: str, data: Sequence[Mapping[str, Any]], tokens: int, result: Result | None
) -> Response:
    """Return the whole answer to a request. As it may be large, the thread of the call makes it.

    Args:
        asked: The request.
        kind: How its id begins, such as "ent".
        data: The records.
        tokens: How many tokens the model read.
        result: What answered; None if every text is at fault.
    """
    version = None if result is None else str(result.version)
    answer = {
        "object": "list",
        "id": f"{kind}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": asked.model,
        "version": version,
        "offset_unit": asked.offset_unit,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    if result is not None and result.receipt is not None:
        answer["receipt"] = describe_receipt(result.receipt)
    return JSONResponse(answer)


def count_tokens(coverages: Iterable[Coverage]) -> int:
    """Return how many tokens a model read."""
    return sum(coverage.tokens for coverage in coverages)


def describe_coverage(coverage: Coverage, text: str, offsets: Offsets) -> dict[str, Any]:
    """Return what was read of a text, in the client's unit, and whether that is all of it but blanks."""
    read = [[offsets(start), offsets(end)] for start, end in coverage.read]
    ends = [0, *(place for part in coverage.read for place in part), len(text)]
    gaps = zip(ends[::2], ends[1::2], strict=True)
    is_complete = not coverage.truncated and not any(text[start:end].strip() for start, end in gaps)
    counts = {"windows": coverage.windows, "tokens": coverage.tokens, "truncated": coverage.truncated}
    return {"complete": is_complete, "read": read, **counts}
