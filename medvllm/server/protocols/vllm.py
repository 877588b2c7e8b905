"""vLLM's routes for classifiers and cross-encoders: `/classify` and `/score`."""

import time
import uuid
from collections.abc import Sequence
from typing import Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.classification.classify import ClassificationResults
from medvllm.engine.model_runner.embedding.similarity import compare
from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.named_model import Choice
from medvllm.server.other_names import one_of
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.tei import TEIRequest
from medvllm.server.texts import TolerantModel, check_texts
from medvllm.server.unsupported import Refused, refuse_others

router = APIRouter(tags=["vLLM"], route_class=StrictRoute)

Texts = str | list[str]

_USAGE = {"prompt_tokens": 6, "total_tokens": 6}
_LIST = {"object": "list", "created": 1790000000, "version": "3", "usage": _USAGE}
_CLASSES = {
    "id": "classify-4f5d",
    "model": "my-classifier",
    **_LIST,
    "data": [{"index": 0, "label": "ABSENT", "probs": [0.9, 0.1], "num_classes": 2}],
}
_SCORES = {
    "id": "score-4f5d",
    "model": "my-reranker",
    **_LIST,
    "data": [{"index": 0, "object": "score", "score": 0.9}],
}


# What vLLM can do with the texts of a classifier or a cross-encoder, or what `use_activation` was called before.
REFUSED: Refused = {
    **dict.fromkeys(("activation", "softmax", "normalize", "add_special_tokens"), (True,)),
    **dict.fromkeys(("instruction", "chat_template", "chat_template_kwargs", "messages"), ("", {})),
}


class PoolingRequest(TolerantModel):
    """What both requests have in common. Unknown keys are ignored, if they do not change an answer.

    Attributes:
        model: A name of the catalogue.
        use_activation: Whether scores are what the entry says; if not, they are logits.
        truncate_prompt_tokens: Not supported: texts are not cut.
    """

    model_config = ConfigDict(extra="allow")

    model: str | None = None
    use_activation: bool | None = None
    truncate_prompt_tokens: int | None = None

    def check(self) -> None:
        """Raise ProblemError if the client asks for what the server cannot do, such as to cut texts."""
        refuse_others(self.model_extra, REFUSED)
        if self.truncate_prompt_tokens is not None:
            message = "Texts are not cut at a number of tokens.\nLeave out: truncate_prompt_tokens"
            raise ProblemError(Problem(422, "unsupported_option", message, "truncate_prompt_tokens"))


class ClassifyRequest(PoolingRequest):
    """The texts to classify."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-classifier", "input": ["No fever."]}})

    input: Texts


class ScoreRequest(PoolingRequest):
    """The texts to score: one query and its documents, or as many queries as documents.

    Attributes:
        text_1: The queries; also `queries`, `data_1`.
        text_2: The documents; also `documents`, `data_2`.
    """

    model_config = ConfigDict(
        json_schema_extra={"example": {"model": "my-reranker", "text_1": "Is there fever?", "text_2": ["No fever."]}}
    )

    text_1: Texts | None = None
    text_2: Texts | None = None
    queries: Texts | None = Field(None, description="As text_1.")
    documents: Texts | None = Field(None, description="As text_2.")
    data_1: Texts | None = Field(None, description="As text_1.")
    data_2: Texts | None = Field(None, description="As text_2.")

    def pairs(self) -> list[tuple[str, str]]:
        """Return the pairs to score. ProblemError: a side is missing or stated twice, or they do not fit."""
        firsts, seconds = (
            [given] if isinstance(given, str) else given
            for given in (
                one_of({name: getattr(self, name) for name in names}) or []
                for names in (("text_1", "queries", "data_1"), ("text_2", "documents", "data_2"))
            )
        )
        if not firsts or not seconds:
            param = "text_2" if firsts else "text_1"
            raise ProblemError(Problem(422, "no_input", f"{param} has no text.", param))
        if len(firsts) == 1:
            firsts *= len(seconds)
        if len(firsts) != len(seconds):
            message = f"text_1 has {len(firsts):,} texts and text_2 has {len(seconds):,}.\nSend one query, or as many."
            raise ProblemError(Problem(422, "invalid_request", message, "text_1"))
        return list(zip(firsts, seconds, strict=True))


@router.post("/classify", responses={200: answer_of(_CLASSES)})
async def classify(asked: ClassifyRequest, http: Request, server: ServerOf, choice: Choice) -> dict[str, Any]:
    """Return the likeliest label of each text, and the scores of all labels in the order of the model's classes."""
    asked.check()
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    check_texts(texts, server.config)
    name = choice.name(asked.model)
    activation: Literal["none"] | None = "none" if asked.use_activation is False else None

    def call() -> ClassificationResults:
        entry = server.entry(name)
        long_input = TEIRequest().long_input(entry)
        return server.runner(entry.reference).classify(texts, activation=activation, long_input=long_input)

    results = await server.run(http, call)
    data = []
    for index, found in enumerate(results):
        scores = {label.label: label.score for label in found}
        probs = [scores[label] for label in results.classes]
        data.append({"index": index, "label": found.label, "probs": probs, "num_classes": len(probs)})
    return _answer("classify", name, data, sum(found.coverage.tokens for found in results), results.version)


@router.post("/score", responses={200: answer_of(_SCORES)})
@router.post("/v1/score", responses={200: answer_of(_SCORES)})
async def score(asked: ScoreRequest, http: Request, server: ServerOf, choice: Choice) -> dict[str, Any]:
    """Return the score of each pair: by a cross-encoder, or how similar the vectors of an embedding model are."""
    asked.check()
    pairs = asked.pairs()
    queries = {first for first, _ in pairs}  # one query may be that of all
    check_texts([second for _, second in pairs], server.config, "text_2", queries)
    name = choice.name(asked.model)

    def call() -> tuple[list[float], int, int | None]:
        entry = server.entry(name)  # an alias may move between two of the queries
        options: dict[str, Any] = {"long_input": TEIRequest().long_input(entry)}
        runner = server.runner(entry.reference)
        if runner.task == "embed":
            return _compare(runner, pairs, options)
        return _score(runner, pairs, options | {"activation": "none" if asked.use_activation is False else None})

    scores, tokens, version = await server.run(http, call)
    data = [{"index": index, "object": "score", "score": number} for index, number in enumerate(scores)]
    return _answer("score", name, data, tokens, version)


def _score(
    runner: ModelRunner, pairs: Sequence[tuple[str, str]], options: dict[str, Any]
) -> tuple[list[float], int, int | None]:
    """Return the scores of pairs by a cross-encoder, the tokens that it read, and its version."""
    scores, tokens, version = [0.0] * len(pairs), 0, None
    of_query: dict[str, list[int]] = {}
    for index, (query, _) in enumerate(pairs):
        of_query.setdefault(query, []).append(index)
    for query, indices in of_query.items():
        ranking = runner.rerank(query, [pairs[index][1] for index in indices], **options)
        version = ranking.version
        for ranked in ranking:
            scores[indices[ranked.index]] = ranked.score
            tokens += ranked.coverage.tokens
    return scores, tokens, version


def _compare(
    runner: ModelRunner, pairs: Sequence[tuple[str, str]], options: dict[str, Any]
) -> tuple[list[float], int, int | None]:
    """Return how similar the texts of each pair are, the tokens that the model read, and its version."""
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    made = runner.embed(texts, **options)
    row = {text: made.vectors[[place]] for place, text in enumerate(texts)}
    scores = [float(compare(row[first], row[second], made.similarity)[0, 0]) for first, second in pairs]
    return scores, sum(coverage.tokens for coverage in made.coverage), made.version


def _answer(kind: str, name: str, data: list[dict[str, Any]], tokens: int, version: int | None) -> dict[str, Any]:
    head = {"id": f"{kind}-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": name}
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {**head, "version": str(version), "data": data, "usage": usage}
