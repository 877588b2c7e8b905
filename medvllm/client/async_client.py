"""The client for asyncio."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from medvllm.client import call as calls
from medvllm.client.address import choose_url, http_options
from medvllm.client.call import Call
from medvllm.client.connection import Request
from medvllm.client.exchange import Exchange
from medvllm.client.options import (
    AssertionOptions,
    ClassifyOptions,
    EmbedOptions,
    EntityOptions,
    FillMaskOptions,
    GenerateOptions,
    RedactOptions,
    RerankOptions,
)
from medvllm.client.pooled_connection import lost_by, timeout_of

if TYPE_CHECKING:
    import httpx2

    from medvllm.engine.model_runner.classification.assertions import AssertionResults
    from medvllm.engine.model_runner.classification.classify import ClassificationResults
    from medvllm.engine.model_runner.classification.marked_spans import SpanLike
    from medvllm.engine.model_runner.embedding.embed import Embeddings
    from medvllm.engine.model_runner.fill_mask import FillMaskResults
    from medvllm.engine.model_runner.generation.answers import GenerationResults, Piece
    from medvllm.engine.model_runner.inputs import Text
    from medvllm.engine.model_runner.ranking import Ranking
    from medvllm.engine.model_runner.redaction.results import RedactionResults
    from medvllm.engine.model_runner.tagging.entities import EntityResults

T = TypeVar("T")


class AsyncClient:
    """Runs tasks on a server of medvllm, for asyncio. Several tasks may share one client.

    The methods take the name of a model, and otherwise what those of `ModelRunner` take, and return what they return.
    They raise the library's errors, and ServerError if the server cannot be reached or refuses the client.

    Args:
        base_url: The address of the server; None for that of MEDVLLM_SERVER.
        api_key: The API key; None for that of MEDVLLM_API_KEY, if there is one.
        timeout_s: Seconds for a call. A request that the server asks to send again later is sent again within them.

    Raises:
        SettingError: The address or the key cannot be used.

    Example:
        >>> async with AsyncClient("http://127.0.0.1:8000") as client:
        ...     made = await client.embed("my-encoder", ["Patient denies chest pain."])
    """

    def __init__(self, base_url: str | None = None, *, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        self.url = choose_url(base_url)
        self._options = http_options(self.url, api_key)
        self._timeout_s = timeout_s
        self._http: httpx2.AsyncClient | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections to the server. The next call opens others."""
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def embed(self, model: str, texts: "Iterable[Text]", **options: Unpack[EmbedOptions]) -> "Embeddings":
        """Return a vector for each text, as `ModelRunner.embed` does."""
        return cast("Embeddings", await self.run("embed", model, texts, **options))

    async def entities(
        self, model: str, texts: Iterable[str | Sequence[str]], **options: Unpack[EntityOptions]
    ) -> "EntityResults":
        """Return the entities of each text, as `ModelRunner.entities` does."""
        return cast("EntityResults", await self.run("ner", model, texts, **options))

    async def redact(self, model: str, texts: Iterable[str], **options: Unpack[RedactOptions]) -> "RedactionResults":
        """Return each text redacted, as `ModelRunner.redact` does. A `key` of an operator names a key of the server."""
        return cast("RedactionResults", await self.run("redact", model, texts, **options))

    async def classify(
        self, model: str, texts: "Iterable[Text]", **options: Unpack[ClassifyOptions]
    ) -> "ClassificationResults":
        """Return the labels of each text, as `ModelRunner.classify` does."""
        return cast("ClassificationResults", await self.run("classify", model, texts, **options))

    async def assertions(
        self,
        model: str,
        texts: Iterable[str],
        spans: "Iterable[Iterable[SpanLike]]",
        **options: Unpack[AssertionOptions],
    ) -> "AssertionResults":
        """Return what the model says of spans of each text, as `ModelRunner.assertions` does."""
        listed = [list(each) for each in spans]
        return cast("AssertionResults", await self.run("assertions", model, texts, spans=listed, **options))

    async def rerank(
        self, model: str, query: str, documents: Iterable[str], **options: Unpack[RerankOptions]
    ) -> "Ranking":
        """Return documents in the order in which they answer a query, as `ModelRunner.rerank` does."""
        return cast("Ranking", await self.run("rerank", model, documents, query=query, **options))

    async def fill_mask(
        self, model: str, texts: Iterable[str], **options: Unpack[FillMaskOptions]
    ) -> "FillMaskResults":
        """Return word pieces for the gaps of each text, as `ModelRunner.fill_mask` does."""
        return cast("FillMaskResults", await self.run("fill-mask", model, texts, **options))

    async def generate(
        self, model: str, prompts: Iterable[Any], **options: Unpack[GenerateOptions]
    ) -> "GenerationResults":
        """Return what the model generates for each prompt, as `ModelRunner.generate` does."""
        return cast("GenerationResults", await self.run("generate", model, prompts, **options))

    def stream(self, model: str, prompts: Iterable[Any], **options: Unpack[GenerateOptions]) -> "AsyncGenerator[Piece]":
        """Yield what the model generates for each prompt, piece by piece. It ends when the generator is closed."""
        return self._stream(calls.task_call("generate", model, prompts, options, stream=True))

    async def run(self, task: str | None, model: str, texts: Iterable[Any], **options: Any) -> Any:
        """Run a task by its name, or the model's own task, as `ModelRunner.run` does.

        Args:
            task: The task; None for the model's own one.
            model: The name of the model.
            texts: The texts.
            options: The options of the task and of the request, such as `with_receipt` or `timeout_s`.
        """
        return await self._send(calls.task_call(task, model, texts, options))

    async def model(self, name: str) -> dict[str, Any]:
        """Return the facts of a model that the server's catalogue has, such as its tasks."""
        return await self._send(calls.model_call(name))

    async def models(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the models of the server's catalogue by name, each with its main facts."""
        after: str | None = None
        while True:
            page = await self._send(calls.page_call(after))
            for facts in page["data"]:
                yield facts
            if not page["has_more"]:
                return
            after = page["data"][-1]["id"]

    async def loaded(self) -> list[dict[str, Any]]:
        """Return the models that the server has in memory."""
        return await self._send(calls.loaded_call())

    async def load(self, model: str, *, keep_alive: float | str | None = None) -> dict[str, Any]:
        """Load a model into the server's memory, and return its name and version.

        Args:
            model: The name of the model.
            keep_alive: How long it stays after its last use: seconds, a duration such as "10m", or -1 for always.
        """
        return await self._send(calls.load_call(model, keep_alive))

    async def unload(self, model: str) -> int:
        """Let the models of an entry leave the server's memory, and return how many left."""
        return await self._send(calls.unload_call(model))

    def _connection(self) -> "httpx2.AsyncClient":
        if self._http is None:
            import httpx2

            self._http = httpx2.AsyncClient(**self._options)
        return self._http

    async def _send(self, call: Call[T]) -> T:
        import httpx2

        exchange = Exchange(self.url, call, self._timeout_s)
        while True:
            request = _arguments_of(exchange.request())
            try:
                async with self._connection().stream(**request) as response:
                    exchange.begin()
                    parts: list[bytes] = []
                    async for part in response.aiter_bytes():
                        exchange.check_time()
                        parts.append(part)
            except httpx2.HTTPError as error:
                failure = exchange.failure(lost_by(error))
            else:
                body = b"".join(parts)
                exchange.judge(response.status_code, response.headers, body)
                if exchange.wait_s is None:
                    return exchange.read(body)
                await asyncio.sleep(exchange.wait_s)
                continue
            if failure is not None:
                raise failure  # not above, where it would have the request as its context

    async def _stream(self, call: Call[Any]) -> "AsyncGenerator[Piece]":
        exchange = Exchange(self.url, call, self._timeout_s)
        while True:
            async with aclosing(self._stream_once(exchange)) as pieces:
                async for piece in pieces:
                    yield piece
            if exchange.wait_s is None:
                return
            await asyncio.sleep(exchange.wait_s)

    async def _stream_once(self, exchange: Exchange[Any]) -> "AsyncGenerator[Piece]":
        import httpx2

        request = _arguments_of(exchange.request())
        try:
            async with self._connection().stream(**request) as response:
                exchange.begin()
                body = b"" if response.status_code == 200 else await response.aread()
                exchange.judge(response.status_code, response.headers, body)
                if exchange.wait_s is not None:
                    return
                async for part in response.aiter_bytes():
                    exchange.check_time()
                    for piece in exchange.read_part(part):
                        yield piece
        except httpx2.HTTPError as error:
            failure = exchange.failure(lost_by(error))
        else:
            exchange.check_complete()
            return
        if failure is not None:
            raise failure


def _arguments_of(request: Request) -> dict[str, Any]:
    """Return a request as httpx takes it."""
    return {
        "method": request.method,
        "url": request.path,
        "content": request.content,
        "timeout": timeout_of(request.left_s),
    }
