"""OpenAI's API: `POST /v1/embeddings`."""

import base64
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from medvllm.server.body import StrictRoute
from medvllm.server.context import ServerOf
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.texts import check_texts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

router = APIRouter(tags=["OpenAI"], route_class=StrictRoute)


class EmbeddingRequest(BaseModel):
    """The texts to embed. Unknown keys are ignored, as clients send keys of their own."""

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


@router.post("/v1/embeddings")
async def create_embeddings(asked: EmbeddingRequest, http: Request, server: ServerOf) -> dict[str, Any]:
    """Return a vector for each text."""
    texts = _texts_of(asked)
    check_texts(texts, server.config)
    made = await server.run(http, lambda: server.runner(asked.model).embed(texts))
    vectors = made.vectors if asked.dimensions is None else _shorten(made.vectors, asked.dimensions, asked.model)
    tokens = sum(coverage.tokens for coverage in made.coverage)
    encode = _to_base64 if asked.encoding_format == "base64" else _to_list
    data = [{"object": "embedding", "index": index, "embedding": encode(row)} for index, row in enumerate(vectors)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}


def _texts_of(asked: EmbeddingRequest) -> list[str]:
    """Return the texts. ProblemError: they are ids of tokens, which are of another model's vocabulary."""
    given = [asked.input] if isinstance(asked.input, str) else asked.input
    texts = [text for text in given if isinstance(text, str)]
    if len(texts) < len(given):
        raise ProblemError(
            Problem(
                400,
                "token_ids_not_accepted",
                "input has ids of tokens, which mean other words in this model's vocabulary. Send texts.\n"
                "LangChain's OpenAIEmbeddings does with: check_embedding_ctx_length=False",
                "input",
            )
        )
    return texts


def _shorten(vectors: "NDArray[np.float32]", size: int, model: str) -> "NDArray[np.float32]":
    """Return the first numbers of each vector, scaled to length 1 as OpenAI does."""
    import numpy as np

    if size > vectors.shape[1]:
        message = f"Model {model!r} makes vectors of {vectors.shape[1]} numbers, so dimensions cannot be {size}."
        raise ProblemError(Problem(422, "too_many_dimensions", message, "dimensions"))
    cut = vectors[:, :size]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    shortened: NDArray[np.float32] = np.divide(cut, lengths, out=np.zeros_like(cut), where=lengths > 0)
    return shortened


def _to_base64(vector: "NDArray[np.float32]") -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _to_list(vector: "NDArray[np.float32]") -> list[float]:
    return [float(number) for number in vector]
