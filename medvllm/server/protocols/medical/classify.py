"""`POST /v1/classify`: the labels of whole texts, or of pairs of texts."""

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm.engine.model_runner.classification.classify import Classification, Combination
from medvllm.engine.model_runner.classification.head import Activation
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
from medvllm.server.protocols.medical.request import Count, LongText, MedicalRequest
from medvllm.server.texts import GivenTexts, TextItem, answer_each

router = APIRouter(route_class=StrictRoute)

_LABELS = [{"label": "ABSENT", "score": 0.9}, {"label": "PRESENT", "score": 0.1}]
_RECORDS = (
    {"index": 0, "id": "n1", "object": "classification", "length": 9, "labels": _LABELS, "coverage": COVERAGE},
    {"index": 1, "id": "n2", **BAD_TEXT},
)

Pair = Annotated[list[str], Field(min_length=2, max_length=2)]


class TextOrPairItem(TextItem):
    """A text or a pair of texts, with the client's own id."""

    text_pair: str | None = None


class ClassifyRequest(MedicalRequest):
    """The texts to classify.

    Attributes:
        input: A text, a list of texts, a list of pairs, or a list of texts or pairs with ids.
        top_k: How many labels to return for each text; all by default.
        activation: How logits become scores; what the entry says, by default.
        windows: How the scores of a long text are made of those of its windows. By default, a long text is at fault.
        long_text: What becomes of a text that is longer than the model; what the entry says, by default.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "my-classifier", "input": [{"id": "n1", "text": "No fever."}]}}
    )

    input: str | list[str] | list[Pair] | list[TextOrPairItem]
    top_k: Count | None = None
    activation: Activation | None = None
    windows: Combination | None = None
    long_text: LongText | None = None


@router.post(
    "/v1/classify",
    response_class=JSONResponse,
    responses={200: answer_of(*examples_of("cls", _RECORDS), optional=OPTIONAL)},
)
async def classify(asked: ClassifyRequest, http: Request, server: ServerOf) -> Response:
    """Return the labels of each text with their scores, the likeliest first. A text at fault has an error in its place.

    The coverage of a pair is that of its second text.
    """
    items = [asked.input] if isinstance(asked.input, str) else asked.input
    texts = [_text_of(item) for item in items]
    # Offsets and coverage are of the text that may be split: of a pair, the second one.
    split = [text if isinstance(text, str) else text[1] for text in texts]
    ids = [item.id if isinstance(item, TextOrPairItem) else None for item in items]
    given = GivenTexts.of(split, ids, server.config, others=[text[0] for text in texts if not isinstance(text, str)])
    options: dict[str, Any] = {"top_k": asked.top_k, "activation": asked.activation, "windows": asked.windows}
    options |= {"long_input": asked.long_text, "with_receipt": asked.receipt}

    def describe(index: int, found: Classification) -> dict[str, Any]:
        offsets = Offsets(split[index], asked.offset_unit)
        record = {"object": "classification", "length": offsets.length, "labels": [vars(label) for label in found]}
        return {**record, "coverage": describe_coverage(found.coverage, split[index], offsets)}

    def call() -> Response:
        result, answers, problems = answer_each(http, given, texts, partial(asked.runner(server).classify, **options))
        data = describe_answers(http, given, answers, problems, describe)
        return make_answer(asked, "cls", data, count_tokens(found.coverage for found in answers.values()), result)

    return await server.run(http, call, **asked.limits())


def _text_of(item: str | list[str] | TextOrPairItem) -> str | list[str]:
    if isinstance(item, TextOrPairItem):
        return item.text if item.text_pair is None else [item.text, item.text_pair]
    return item
