"""Rerank: Cohere's API, which Jina and vLLM have too, and that of Text Embeddings Inference on the same path."""

import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Discriminator, Field, Tag

from medvllm.engine.model_runner.ranking import Ranking
from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.named_model import Choice
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.protocols.tei import TEIRequest
from medvllm.server.protocols.vllm import REFUSED
from medvllm.server.texts import TolerantModel, check_texts
from medvllm.server.unsupported import Refused, refuse_others

router = APIRouter(tags=["Rerank"], route_class=StrictRoute)

_ANSWER = {
    "id": "rerank-4f5d",
    "model": "my-reranker",
    "version": "3",
    "results": [{"index": 1, "relevance_score": 0.9, "document": {"text": "No fever."}}],
    "meta": {"api_version": {"version": "2"}},
    "usage": {"prompt_tokens": 12, "total_tokens": 12},
}
_TEI_ANSWER = [{"index": 1, "score": 0.9, "text": "No fever."}]


_REFUSED: Refused = {
    **REFUSED,
    **dict.fromkeys(("truncate_prompt_tokens", "top_k"), ()),
    "use_activation": (True,),
    "raw_scores": (False,),
}


class Document(TolerantModel):
    """A document as an object."""

    text: str


class CohereRequest(TolerantModel):
    """A query and documents. Unknown keys are ignored, if they do not change an answer.

    Documents are read whole, also those that Cohere would cut.

    Attributes:
        model: A name of the catalogue.
        query: What is asked.
        documents: Texts, or objects with a text.
        top_n: How many documents to return; all by default.
        return_documents: Whether the answer repeats the texts.
        rank_fields: Of a document that is an object, what is read: ["text"] only.
    """

    model: str | None = None
    query: str
    documents: list[str | Document]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    rank_fields: list[str] | None = None

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "example": {"model": "my-reranker", "query": "Is there fever?", "documents": ["No fever.", "Chest pain."]}
        },
    )


class TEIRerankRequest(TEIRequest):
    """A query and texts.

    Attributes:
        query: What is asked.
        texts: The texts to order.
        raw_scores: Whether scores are logits. By default, they are from 0 to 1.
        return_text: Whether the answer repeats the texts.
        top_n: How many texts the answer has. The protocol has no such field, and LiteLLM sends it.
    """

    query: str
    texts: list[str]
    raw_scores: bool = False
    return_text: bool = False
    top_n: Annotated[int, Field(ge=1)] | None = None

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "my-reranker", "query": "Is there fever?", "texts": ["No fever.", "Chest pain."]}
        }
    )


# A tag stands in the place of an error. In brackets, it is told from a field.
_TAGS = {"documents": "[Cohere]", "texts": "[TEI]"}


def _dialect(given: Any) -> str | None:
    """Return the tag of the API whose key a request has, if it has one of the two keys."""
    has = [tag for key, tag in _TAGS.items() if isinstance(given, dict) and given.get(key) is not None]
    return has[0] if len(has) == 1 else None


EitherRequest = Annotated[
    Annotated[CohereRequest, Tag(_TAGS["documents"])] | Annotated[TEIRerankRequest, Tag(_TAGS["texts"])],
    Discriminator(_dialect, custom_error_type="dialect", custom_error_message="dialect"),
]


@router.post("/v1/rerank", responses={200: answer_of(_ANSWER, optional=("document",))})
@router.post("/v2/rerank", responses={200: answer_of(_ANSWER, optional=("document",))})
async def rerank_documents(asked: CohereRequest, http: Request, server: ServerOf, choice: Choice) -> dict[str, Any]:
    """Return documents in the order of their scores for the query, the best first. Scores are from 0 to 1."""
    refuse_others(asked.model_extra, _REFUSED)
    if asked.rank_fields not in (None, ["text"]):
        message = "Of a document that is an object, its text is read.\nLeave out: rank_fields"
        raise ProblemError(Problem(422, "unsupported_option", message, "rank_fields"))
    name = choice.name(asked.model)
    texts = [document if isinstance(document, str) else document.text for document in asked.documents]
    ranking = await _rank(http, server, name, asked.query, texts, "documents", TEIRequest(), "sigmoid")
    results: list[dict[str, Any]] = [
        {"index": each.index, "relevance_score": each.score} for each in ranking[: asked.top_n]
    ]
    if asked.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    tokens = sum(each.coverage.tokens for each in ranking)
    head = {"id": f"rerank-{uuid.uuid4().hex}", "model": name, "version": str(ranking.version), "results": results}
    meta = {"api_version": {"version": "2" if http.url.path.startswith("/v2") else "1"}}
    return {**head, "meta": meta, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


@router.post("/rerank", responses={200: answer_of(_ANSWER, _TEI_ANSWER, optional=("document", "text"))})
async def rerank_either(asked: EitherRequest, http: Request, server: ServerOf, choice: Choice) -> Any:
    """Return texts in the order of their scores for the query, in the API that the request is of.

    With `documents`, it is that of `/v1/rerank`. With `texts`, it is that of Text Embeddings Inference, whose answer is
    a list of `index`, `score` and, with `return_text`, `text`.
    """
    if isinstance(asked, CohereRequest):
        return await rerank_documents(asked, http, server, choice)
    asked.check()
    name = choice.name(asked.model)
    activation: Literal["sigmoid", "none"] = "none" if asked.raw_scores else "sigmoid"
    ranking = await _rank(http, server, name, asked.query, asked.texts, "texts", asked, activation)
    return [
        {"index": each.index, "score": each.score} | ({"text": asked.texts[each.index]} if asked.return_text else {})
        for each in ranking[: asked.top_n]
    ]


async def _rank(
    http: Request,
    server: Server,
    name: str,
    query: str,
    texts: Sequence[str],
    param: str,
    asked: TEIRequest,
    activation: Literal["sigmoid", "none"],
) -> Ranking:
    check_texts(texts, server.config, param, [query])

    def call() -> Ranking:
        entry = server.entry(name)
        runner = server.runner(entry.reference)
        return runner.rerank(query, texts, long_input=asked.long_input(entry), activation=activation)

    return await server.run(http, call)
