"""Calls of the library: each runs in a thread, ends when its client goes away, and waits for its turn."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from typing import Any, TypeVar

from starlette.requests import Request as HTTPRequest

from medvllm.engine.model_runner.request import Priority, Request
from medvllm.errors import OverloadedError, RequestCancelledError
from medvllm.server.config import ServerConfig

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_THREADS = 4
_MAX_LOOKS = 64


class Calls:
    """Runs blocking calls of the library for requests.

    Args:
        config: How many calls may run and wait, and for how long.
    """

    def __init__(self, config: ServerConfig) -> None:
        self._config = config
        self._lane = Lane(config.max_calls, config.max_calls + config.max_waiting, "medvllm-call")
        self._looks = Lane(_LOOK_THREADS, _MAX_LOOKS, "medvllm-look")

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
        return await self._run(self._lane, http, call, timeout_s=timeout_s, priority=priority)

    async def look(self, http: HTTPRequest, call: Callable[[], T]) -> T:
        """Do the same with a call that neither runs a model nor loads one: it has an answer while the server is full.

        Args:
            http: The request that the call is for. Its body has been read.
            call: The call.
        """
        return await self._run(self._looks, http, call)

    async def _run(
        self,
        lane: "Lane",
        http: HTTPRequest,
        call: Callable[[], T],
        *,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> T:
        allowed = self._config.timeout_s if timeout_s is None else min(timeout_s, self._config.timeout_s)
        request = Request(timeout_s=allowed, priority=priority, max_tokens=http.state.config.max_tokens)

        def work() -> T:
            with request:
                request.check()  # a call that uses no model does not look whether its time is over
                return call()

        context = copy_context()
        future, done = lane.submit(lambda: context.run(work))
        watch = asyncio.ensure_future(wait_for_disconnect(http))
        try:
            await asyncio.wait((done, watch), timeout=allowed, return_when=asyncio.FIRST_COMPLETED)
            if not (done.done() or watch.done()):  # the time is over
                if future.cancel():  # it has not begun
                    request.check()
                await asyncio.wait((done, watch), return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                request.cancel()
                if future.cancel():  # it has not begun
                    raise RequestCancelledError("The client went away before its request had its turn.")
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            request.cancel()
            future.cancel()
            raise
        finally:
            watch.cancel()

    def stream(
        self,
        http: HTTPRequest,
        call: Callable[[], Generator[T]],
        *,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> AsyncGenerator[T]:
        """Yield what a generator of the library yields, as soon as it comes. When the client goes away, it is closed.

        The generator does not wait for a slow client, so that its model is free as soon as possible.

        Args:
            http: The request that the call is for. Its body has been read.
            call: Returns the generator. It is called, and the generator runs, in a thread of its own.
            timeout_s: Seconds that the client allows; at most the server's own.
            priority: The priority of the call.

        Raises:
            MedVLLMError: As `run` does.
        """
        return self._stream(self._lane, http, call, timeout_s=timeout_s, priority=priority)

    def look_through(self, http: HTTPRequest, call: Callable[[], Generator[T]]) -> AsyncGenerator[T]:
        """Do the same with a generator that neither runs a model nor loads one, as `look` does."""
        return self._stream(self._looks, http, call)

    async def _stream(
        self, lane: "Lane", http: HTTPRequest, call: Callable[[], Generator[T]], **options: Any
    ) -> AsyncGenerator[T]:
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

        running = asyncio.create_task(self._run(lane, http, work, **options))
        running.add_done_callback(end)
        try:
            while (item := await items.get()) is not None:
                yield item
            await running
        finally:
            running.cancel()

    def close(self) -> None:
        """End the threads, once their calls are complete."""
        self._lane.close()
        self._looks.close()


class Lane:
    """Threads for calls, and how many calls may run or wait for one of them.

    Args:
        threads: How many calls may run at once.
        limit: How many may run or wait.
        name: How the names of the threads begin.
    """

    def __init__(self, threads: int, limit: int, name: str) -> None:
        self._threads, self._limit = ThreadPoolExecutor(threads, thread_name_prefix=name), limit
        self._count = 0  # of the calls that run or wait; only the event loop changes it

    def submit(self, call: Callable[[], T]) -> "tuple[Future[T], asyncio.Future[T]]":
        """Have a thread run a call, and return it twice: to cancel it while it waits, and to wait for it.

        Raises:
            OverloadedError: Too many calls wait already.
        """
        if self._count >= self._limit:
            message = f"The server already works on {self._limit} requests.\nTry again later."
            raise OverloadedError(message, limit=self._limit)
        self._count += 1
        future = self._threads.submit(call)
        done = asyncio.wrap_future(future)
        done.add_done_callback(self._end)
        return future, done

    def close(self) -> None:
        """End the threads, once their calls are complete."""
        self._threads.shutdown(wait=True)

    def _end(self, future: "asyncio.Future[T]") -> None:
        self._count -= 1
        if not future.cancelled():
            future.exception()  # asyncio logs, with its message, an error that nobody has looked at


async def wait_for_disconnect(http: HTTPRequest) -> None:
    """Wait until the client of a request has gone. Its body has been read."""
    while (await http.receive())["type"] != "http.disconnect":
        pass
