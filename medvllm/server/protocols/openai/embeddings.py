"""`POST /v1/embeddings`."""

import base64
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import ConfigDict, Field

from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.texts import TolerantModel, check_texts
from medvllm.server.unsupported import Refused, refuse_others
from medvllm.server.vectors import shorten

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

router = APIRouter(route_class=StrictRoute)


# What other servers can do with texts or vectors, and this one cannot, with the values that ask for nothing.
_REFUSED: Refused = {
    **dict.fromkeys(("input_type", "task", "prompt_name", "instruction", "normalize", "late_chunking"), ()),
    **dict.fromkeys(("truncate_prompt_tokens", "messages", "output_dimension", "prompt", "prompt_template"), ()),
    **dict.fromkeys(("role", "normalized", "embd_normalize"), ()),
    **dict.fromkeys(("add_special_tokens", "use_activation", "activation"), (True,)),
    **dict.fromkeys(("chat_template", "chat_template_kwargs"), ("", {})),
    **dict.fromkeys(("embedding_type", "encoding_type", "output_dtype"), ("float",)),
    "modality": ("text",),
    "return_multivector": (False,),
    "embed_dtype": ("float32",),
    "endianness": ("native", "little"),
    "truncate": ("NONE", False),
}


class EmbeddingRequest(TolerantModel):
    """The texts to embed. Unknown keys are ignored, as clients send keys of their own."""

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"example": {"model": "my-encoder", "input": ["Patient denies chest pain."]}},
    )

    model: str
    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1)] | None = None


@router.post(
    "/v1/embeddings",
    response_class=JSONResponse,
    responses={
        200: answer_of(
            {
                "object": "list",
                "data": [{"object": "embedding", "index": 0, "embedding": [0.12, -0.5]}],
                "model": "my-encoder",
                "usage": {"prompt_tokens": 7, "total_tokens": 7},
            }
        )
    },
)
async def create_embeddings(asked: EmbeddingRequest, http: Request, server: ServerOf) -> Response:
    """Return a vector for each text. Long texts are read in windows; nothing is cut, unless the model's entry says so.

    A record of a text that was cut has `"truncated": true`. With `dimensions`, the first numbers of each vector are
    kept, and scaled to length 1. Ids of tokens are refused, because they are of another model's vocabulary.
    """
    refuse_others(asked.model_extra, _REFUSED)
    texts = refuse_token_ids(asked.input, "input")
    check_texts(texts, server.config)
    return await server.run(http, lambda: JSONResponse(_embed(server, asked, texts)))  # in the thread: it may be large


def _embed(server: Server, asked: EmbeddingRequest, texts: list[str]) -> dict[str, Any]:
    made = server.runner(asked.model).embed(texts)
    vectors = shorten(made.vectors, asked.dimensions, asked.model)
    data: list[dict[str, Any]] = [
        {"object": "embedding", "index": index, "embedding": _encode(row, asked.encoding_format)}
        | ({"truncated": True} if coverage.truncated else {})
        for index, (row, coverage) in enumerate(zip(vectors, made.coverage, strict=True))
    ]
    tokens = sum(coverage.tokens for coverage in made.coverage)
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}


def refuse_token_ids(given: str | list[str] | list[int] | list[list[int]], param: str) -> list[str]:
    """Return the texts of a request. ProblemError: they are ids of tokens, which are of another model's vocabulary."""
    parts = [given] if isinstance(given, str) else given
    texts = [text for text in parts if isinstance(text, str)]
    if len(texts) < len(parts):
        raise ProblemError(
            Problem(
                400,
                "token_ids_not_accepted",
                f"{param} has ids of tokens, which mean other words in this model's vocabulary. Send texts.\n"
                "LangChain's OpenAIEmbeddings does so with: check_embedding_ctx_length=False",
                param,
            )
        )
    return texts


def _encode(vector: "NDArray[np.float32]", encoding: str | None) -> str | list[float]:
    if encoding == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers
