"""A request: the deadline and the priority that calls share, and how to cancel them."""

from math import inf
from threading import TIMEOUT_MAX
from time import monotonic
from types import TracebackType
from typing import Literal, cast, get_args

from medvllm import interruption
from medvllm.engine.model_runner.bell import Bell
from medvllm.engine.model_runner.option_checks import check_choice, check_count
from medvllm.errors import DeadlineError, InputTooLongError, RequestCancelledError, RequestError

Priority = Literal["interactive", "bulk"]
PRIORITIES: tuple[Priority, ...] = get_args(Priority)


class Request:
    """A deadline and a priority for the calls of runners in a `with` block. Another thread can cancel them.

    Without a request, a call is interactive and has no deadline. A request inside another one also ends with the outer
    one. A request applies to the thread, or the asyncio task, that enters it. Several threads can enter the same one.

    Args:
        timeout_s: Seconds from now until the deadline; None for no deadline.
        priority: "interactive", or "bulk" for work that gives way: where both wait for the same device, four
            interactive batches run for each one in bulk.
        max_tokens: The most tokens of texts and prompts that its calls together may have a model read; None for no
            limit. The tokens of the answers of `generate` are not counted.

    Raises:
        RequestError: An argument cannot be used.

    Example:
        >>> with Request(timeout_s=2.0):
        ...     vectors = ModelRunner("my-encoder").embed(["Patient denies chest pain."]).vectors
    """

    def __init__(
        self, *, timeout_s: float | None = None, priority: Priority = "interactive", max_tokens: int | None = None
    ) -> None:
        if timeout_s is not None and not _is_duration(timeout_s):
            raise RequestError(
                f"timeout_s must be a number of seconds above 0, or None, not {repr(timeout_s)[:80]}.",
                option="timeout_s",
            )
        check_choice("priority", priority, PRIORITIES)
        if max_tokens is not None:
            check_count("max_tokens", max_tokens)
        self.timeout_s = timeout_s
        self.priority: Priority = priority
        self.max_tokens = max_tokens
        self._deadline = inf if timeout_s is None else monotonic() + timeout_s
        self._is_cancelled = False
        self._tokens: list[int] = []  # of its calls so far; a list, as threads may add to it at once
        self._bells: set[Bell] = set()  # of the threads that wait

    def __repr__(self) -> str:
        return f"Request(timeout_s={self.timeout_s}, priority={self.priority!r})"

    def __enter__(self) -> "Request":
        interruption.active.set((*interruption.active.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        interruption.active.set(interruption.active.get()[:-1])

    def cancel(self) -> None:
        """End the calls of this request: they raise RequestCancelledError. Any thread or signal handler may call it.

        A batch that runs already is completed, and a call that is complete returns its answer.
        """
        self._is_cancelled = True
        for bell in tuple(self._bells):  # made in one step, while other threads add and remove
            bell.ring()

    def check(self) -> None:
        """Raise if the calls of this request must end. A call of a runner does so by itself.

        Raises:
            DeadlineError: Their time is over.
            RequestCancelledError: Somebody cancelled them.
        """
        if self._is_cancelled:
            raise RequestCancelledError("The request was cancelled before its answer was complete.")
        if self.timeout_s is not None and self._deadline <= monotonic():
            raise DeadlineError(
                f"The answer was not complete within {self.timeout_s:g} s.\n"
                f"Allow more time: with medvllm.Request(timeout_s={10 * self.timeout_s:g}):",
                timeout_s=self.timeout_s,
            )


class Limits:
    """What limits a call: the requests in which it was made, the outermost one first."""

    def __init__(self, requests: tuple[Request, ...]) -> None:
        self._requests = requests
        self.priority: Priority = requests[-1].priority if requests else "interactive"

    @property
    def is_over(self) -> bool:
        """Whether the call must end: its time is over, or somebody cancelled it."""
        return any(request._is_cancelled or request._deadline <= monotonic() for request in self._requests)

    def check(self) -> None:
        """Raise if the call must end.

        Raises:
            DeadlineError: Its time is over.
            RequestCancelledError: Somebody cancelled it.
        """
        for request in self._requests:
            request.check()

    def take_tokens(self, tokens: int) -> None:
        """Count the tokens that a call is about to read. InputTooLongError: a request does not allow so many."""
        for request in self._requests:
            read, limit = sum(request._tokens), request.max_tokens
            if limit is not None and read + tokens > limit:
                raise InputTooLongError(
                    f"The texts have {read + tokens:,} tokens, and the request allows {limit:,}.\n"
                    "Send fewer or shorter texts.",
                    limit=limit,
                )
        for request in self._requests:
            if request.max_tokens is not None:
                request._tokens.append(tokens)

    def wait(self, bell: Bell) -> None:
        """Wait until the bell rings, or the call must end."""
        for request in self._requests:
            request._bells.add(bell)
        try:
            deadline = min((request._deadline for request in self._requests), default=inf)
            if not self.is_over:
                bell.wait(-1 if deadline == inf else max(deadline - monotonic(), 0))
        finally:
            for request in self._requests:
                request._bells.discard(bell)


def current_limits() -> Limits:
    """Return the limits of a call that is made here and now."""
    return Limits(cast("tuple[Request, ...]", interruption.active.get()))


def _is_duration(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= TIMEOUT_MAX
