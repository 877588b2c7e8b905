"""`POST /v1/chat/completions` and `POST /v1/completions`: the texts that a decoder generates."""

from collections.abc import Generator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from medvllm.engine.model_runner.generation.answers import Piece
from medvllm.server.body import StrictRoute
from medvllm.server.context import Server, ServerOf
from medvllm.server.examples import answer_of
from medvllm.server.protocols.openai.answers import ChatForm, CompletionForm, Form
from medvllm.server.protocols.openai.embeddings import refuse_token_ids
from medvllm.server.protocols.openai.messages import to_conversation
from medvllm.server.protocols.openai.requests import ChatRequest, CompletionRequest, GenerationRequest
from medvllm.server.streaming import stream_events
from medvllm.server.texts import check_texts

router = APIRouter(route_class=StrictRoute)

_EVENTS = 'data: {{"id": "1", {}, "choices": [{{"index": 0, {}, "finish_reason": null}}]}}\n\ndata: [DONE]\n\n'
_USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


@router.post(
    "/v1/chat/completions",
    response_class=JSONResponse,
    responses={
        200: answer_of(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1790000000,
                "model": "my-decoder",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": "An analgesic.", "refusal": None},
                        "logprobs": None,
                        "finish_reason": "stop",
                    }
                ],
                "usage": _USAGE,
            },
            events=_EVENTS.format('"object": "chat.completion.chunk"', '"delta": {"content": "An"}'),
        )
    },
)
async def create_chat_completion(asked: ChatRequest, http: Request, server: ServerOf) -> Response:
    """Return the answer of a model to a conversation, written in the model's own chat template.

    With `stream`, the answer comes piece by piece, as server-sent events. An error after the first piece is an event
    `{"error": …}`, and the last one. When the client goes away, the generation ends.

    The likeliest token is chosen at each step, unless `temperature`, `top_p` or `top_k` ask for sampling. What the
    server cannot do, such as `tools`, `logprobs`, `response_format` or more than one answer, is refused.

    Some templates leave a message out, such as that of the system. Then the choice has `coverage`, with the ranges that
    were read of all contents, put one after another.
    """
    conversation = to_conversation(asked.messages)
    contents = [message["content"] for message in conversation]
    check_texts(contents, server.config, "messages")
    form = ChatForm(asked.model, [sum(map(len, contents))])
    return await _answer(asked, http, server, [conversation], form)


@router.post(
    "/v1/completions",
    response_class=JSONResponse,
    responses={
        200: answer_of(
            {
                "id": "cmpl-1",
                "object": "text_completion",
                "created": 1790000000,
                "model": "my-decoder",
                "choices": [{"index": 0, "text": " an analgesic.", "logprobs": None, "finish_reason": "stop"}],
                "usage": _USAGE,
            },
            events=_EVENTS.format('"object": "text_completion"', '"text": " an"'),
        )
    },
)
async def create_completion(asked: CompletionRequest, http: Request, server: ServerOf) -> Response:
    """Return the text with which a model continues each prompt. The options are those of `/v1/chat/completions`."""
    prompts = refuse_token_ids(asked.prompt, "prompt")
    check_texts(prompts, server.config, "prompt")
    return await _answer(asked, http, server, prompts, CompletionForm(asked.model, [*map(len, prompts)]))


async def _answer(asked: GenerationRequest, http: Request, server: Server, prompts: list[Any], form: Form) -> Response:
    options = asked.options()

    def answer() -> Response:
        return JSONResponse(form.whole(server.runner(asked.model).generate(prompts, **options)))

    def stream() -> Generator[Piece]:
        yield from server.runner(asked.model).stream(prompts, **options)

    if not asked.stream:
        return await server.run(http, answer)
    has_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return await stream_events(http, server.stream(http, stream), form.events(has_usage=has_usage))
