"""The client for programs that wait for each answer."""

import os
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

from medvllm.client import call as calls
from medvllm.client.address import choose_url, http_options
from medvllm.client.call import Call
from medvllm.client.connection import Connection, LostError
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
from medvllm.forking import Lock

if TYPE_CHECKING:
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


class Client:
    """Runs tasks on a server of medvllm. Several threads may share one client.

    The methods take the name of a model, and otherwise what those of `ModelRunner` take, and return what they return.
    They raise the library's errors, and ServerError if the server cannot be reached or refuses the client.

    Args:
        base_url: The address of the server; None for that of MEDVLLM_SERVER.
        api_key: The API key; None for that of MEDVLLM_API_KEY, if there is one.
        timeout_s: Seconds for a call. A request that the server asks to send again later is sent again within them.

    Raises:
        SettingError: The address or the key cannot be used.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:
        ...     vectors = client.embed("my-encoder", ["Patient denies chest pain."]).vectors
    """

    def __init__(self, base_url: str | None = None, *, api_key: str | None = None, timeout_s: float = 300.0) -> None:
        self.url = choose_url(base_url)
        self._options = http_options(self.url, api_key)
        self._timeout_s = timeout_s
        self._lock = Lock()  # guards the attributes below
        self._http: Connection | None = None
        self._process = 0  # which opened the connections: a fork must not write to those of its parent

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server. The next call opens others."""
        with self._lock:
            if self._http is not None and self._process == os.getpid():
                self._http.close()
            self._http = None

    def embed(self, model: str, texts: "Iterable[Text]", **options: Unpack[EmbedOptions]) -> "Embeddings":
        """Return a vector for each text, as `ModelRunner.embed` does."""
        return cast("Embeddings", self.run("embed", model, texts, **options))

    def entities(
        self, model: str, texts: Iterable[str | Sequence[str]], **options: Unpack[EntityOptions]
    ) -> "EntityResults":
        """Return the entities of each text, as `ModelRunner.entities` does."""
        return cast("EntityResults", self.run("ner", model, texts, **options))

    def redact(self, model: str, texts: Iterable[str], **options: Unpack[RedactOptions]) -> "RedactionResults":
        """Return each text redacted, as `ModelRunner.redact` does. A `key` of an operator names a key of the server."""
        return cast("RedactionResults", self.run("redact", model, texts, **options))

    def classify(
        self, model: str, texts: "Iterable[Text]", **options: Unpack[ClassifyOptions]
    ) -> "ClassificationResults":
        """Return the labels of each text, as `ModelRunner.classify` does."""
        return cast("ClassificationResults", self.run("classify", model, texts, **options))

    def assertions(
        self,
        model: str,
        texts: Iterable[str],
        spans: "Iterable[Iterable[SpanLike]]",
        **options: Unpack[AssertionOptions],
    ) -> "AssertionResults":
        """Return what the model says of spans of each text, as `ModelRunner.assertions` does."""
        listed = [list(each) for each in spans]
        return cast("AssertionResults", self.run("assertions", model, texts, spans=listed, **options))

    def rerank(self, model: str, query: str, documents: Iterable[str], **options: Unpack[RerankOptions]) -> "Ranking":
        """Return documents in the order in which they answer a query, as `ModelRunner.rerank` does."""
        return cast("Ranking", self.run("rerank", model, documents, query=query, **options))

    def fill_mask(self, model: str, texts: Iterable[str], **options: Unpack[FillMaskOptions]) -> "FillMaskResults":
        """Return word pieces for the gaps of each text, as `ModelRunner.fill_mask` does."""
        return cast("FillMaskResults", self.run("fill-mask", model, texts, **options))

    @overload
    def generate(
        self, model: str, prompts: Iterable[Any], *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> "GenerationResults": ...
    @overload
    def generate(
        self, model: str, prompts: Iterable[Any], *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> "Generator[Piece]": ...
    def generate(
        self, model: str, prompts: Iterable[Any], *, stream: bool = False, **options: Unpack[GenerateOptions]
    ) -> "GenerationResults | Generator[Piece]":
        """Return what the model generates for each prompt, or yield it piece by piece, as `ModelRunner.generate` does.

        A stream ends on the server when the generator is closed.
        """
        if not stream:
            return cast("GenerationResults", self.run("generate", model, prompts, **options))
        return self._stream(calls.task_call("generate", model, prompts, options, stream=True))

    def run(self, task: str | None, model: str, texts: Iterable[Any], **options: Any) -> Any:
        """Run a task by its name, or the model's own task, as `ModelRunner.run` does.

        Args:
            task: The task; None for the model's own one.
            model: The name of the model.
            texts: The texts.
            options: The options of the task and of the request, such as `with_receipt` or `timeout_s`.
        """
        return self._send(calls.task_call(task, model, texts, options))

    def model(self, name: str) -> dict[str, Any]:
        """Return the facts of a model that the server's catalogue has, such as its tasks."""
        return self._send(calls.model_call(name))

    def models(self) -> Iterator[dict[str, Any]]:
        """Yield the models of the server's catalogue by name, each with its main facts."""
        after: str | None = None
        while True:
            page = self._send(calls.page_call(after))
            yield from page["data"]
            if not page["has_more"]:
                return
            after = page["data"][-1]["id"]

    def loaded(self) -> list[dict[str, Any]]:
        """Return the models that the server has in memory."""
        return self._send(calls.loaded_call())

    def load(self, model: str, *, keep_alive: float | str | None = None) -> dict[str, Any]:
        """Load a model into the server's memory, and return its name and version.

        Args:
            model: The name of the model.
            keep_alive: How long it stays after its last use: seconds, a duration such as "10m", or -1 for always.
        """
        return self._send(calls.load_call(model, keep_alive))

    def unload(self, model: str) -> int:
        """Let the models of an entry leave the server's memory, and return how many left."""
        return self._send(calls.unload_call(model))

    def _connect(self) -> Connection:
        from medvllm.client.pooled_connection import PooledConnection

        return PooledConnection(self._options)

    def _connection(self) -> Connection:
        with self._lock:
            if self._http is None or self._process != os.getpid():
                self._http, self._process = self._connect(), os.getpid()
            return self._http

    def _send(self, call: Call[T]) -> T:
        exchange = Exchange(self.url, call, self._timeout_s)
        while True:
            request = exchange.request()
            try:
                with closing(self._connection().send(request)) as answer:
                    body = b"".join(exchange.in_time(answer.parts()))
            except LostError as error:
                failure = exchange.failure(error)
            else:
                exchange.judge(answer.status, answer.headers, body)
                if exchange.wait_s is None:
                    return exchange.read(body)
                time.sleep(exchange.wait_s)
                continue
            if failure is not None:
                raise failure

    def _stream(self, call: Call[Any]) -> "Generator[Piece]":
        exchange = Exchange(self.url, call, self._timeout_s)
        while True:
            yield from self._stream_once(exchange)
            if exchange.wait_s is None:
                return
            time.sleep(exchange.wait_s)

    def _stream_once(self, exchange: Exchange[Any]) -> "Generator[Piece]":
        request = exchange.request()
        try:
            with closing(self._connection().send(request)) as answer:
                parts = exchange.in_time(answer.parts())
                body = b"" if answer.status == 200 else b"".join(parts)
                exchange.judge(answer.status, answer.headers, body)
                if exchange.wait_s is not None:
                    return
                for part in parts:
                    yield from exchange.read_part(part)
        except LostError as error:
            failure = exchange.failure(error)
        else:
            exchange.check_complete()
            return
        if failure is not None:
            raise failure
