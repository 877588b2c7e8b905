"""Calls of the library: each runs in a thread, ends when its client goes away, and waits for its turn."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from typing import TypeVar

from starlette.requests import Request as HTTPRequest

from medvllm.engine.model_runner.request import Priority, Request
from medvllm.errors import OverloadedError
from medvllm.server.config import ServerConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Calls:
    """Runs blocking calls of the library for requests.

    Args:
        config: How many calls may run and wait, and for how long.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._threads = ThreadPoolExecutor(config.max_calls, thread_name_prefix="medvllm-call")
        self.count = 0  # of the calls that run or wait; only the event loop changes it

    async def run(
        self,
        http: HTTPRequest,
        call: Callable[[], T],
        *,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> T:
        """Return what a call returns. When the client goes away, the call is cancelled.

        Args:
            http: The request that the call is for. Its body has been read.
            call: The call. It runs in a thread of its own, within a `medvllm.Request`.
            timeout_s: Seconds that the client allows; at most the server's own.
            priority: The priority of the call.

        Raises:
            OverloadedError: Too many calls wait.
            MedVLLMError: As the call raises it; DeadlineError and RequestCancelledError too.
        """
        limit = self._config.max_calls + self._config.max_waiting
        if self.count >= limit:
            raise OverloadedError(f"The server already works on {limit} requests.\nTry again later.", limit=limit)
        allowed = self._config.timeout_s if timeout_s is None else min(timeout_s, self._config.timeout_s)
        request = Request(timeout_s=allowed, priority=priority)

        def work() -> T:
            with request:
                return call()

        self.count += 1
        future = asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work)
        future.add_done_callback(self._end)
        watch = asyncio.ensure_future(_wait_for_disconnect(http))
        try:
            await asyncio.wait((future, watch), return_when=asyncio.FIRST_COMPLETED)
            if not future.done():
                request.cancel()
            return await future
        except asyncio.CancelledError:
            request.cancel()
            raise
        finally:
            watch.cancel()

    async def stream(
        self, http: HTTPRequest, call: Callable[[], Generator[T]], *, timeout_s: float | None = None
    ) -> AsyncGenerator[T]:
        """Yield what a generator of the library yields, as soon as it comes. When the client goes away, it is closed.

        The generator does not wait for a slow client, so that its model is free as soon as possible.

        Args:
            http: The request that the call is for. Its body has been read.
            call: Returns the generator. It is called, and the generator runs, in a thread of its own.
            timeout_s: Seconds that the client allows; at most the server's own.

        Raises:
            MedVLLMError: As `run` does.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[T | None] = asyncio.Queue()

        def work() -> None:
            with closing(call()) as generated:
                for item in generated:
                    loop.call_soon_threadsafe(items.put_nowait, item)

        def end(running: "asyncio.Task[None]") -> None:
            if not running.cancelled():
                running.exception()  # asyncio logs, with its message, an error that nobody has looked at
            items.put_nowait(None)

        running = asyncio.create_task(self.run(http, work, timeout_s=timeout_s))
        running.add_done_callback(end)
        try:
            while (item := await items.get()) is not None:
                yield item
            await running
        finally:
            running.cancel()

    def close(self) -> None:
        """End the threads, once their calls are complete."""
        self._threads.shutdown(wait=True)

    def _end(self, future: "asyncio.Future[T]") -> None:
        self.count -= 1


async def _wait_for_disconnect(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
