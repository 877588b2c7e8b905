"""What waits in the queue, and what it has run so far."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from medvllm.engine.model_runner.inference.call import Call, WorkItem

_MEMORY = 0.9  # what an earlier batch weighs in the speed, against the next one
_UNKNOWN_S = 1.0  # the estimate before anything has run


@dataclass(frozen=True)
class Load:
    """What waits, and what runs.

    Attributes:
        waiting_calls: Calls that wait for their turn.
        queued_windows: Their windows that nobody runs yet.
        queued_tokens: The tokens of these windows.
        running: Batches that run.
    """

    waiting_calls: int
    queued_windows: int
    queued_tokens: int
    running: int


@dataclass(frozen=True)
class QueueStatistics(Load):
    """What waits and runs now, and what has run since the process began.

    Attributes:
        wait_s: The estimated seconds until what waits now has run.
        forwards: What waits and runs for each part of a model, such as "my-tagger head_tokens".
        batches: Batches that ran.
        shared_batches: Those of them with windows of several calls.
        windows: Windows that ran.
        tokens: The tokens of these windows.
    """

    wait_s: float
    forwards: dict[str, Load]
    batches: int
    shared_batches: int
    windows: int
    tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as JSON values."""
        return vars(self) | {"forwards": {name: vars(load) for name, load in self.forwards.items()}}


class Counts:
    """The counts while they change, under the lock of the queue."""

    def __init__(self) -> None:
        self._batches = self._shared_batches = self._windows = self._tokens = 0
        self._recent_tokens = self._recent_s = 0.0

    def add(self, batch: Sequence[WorkItem], seconds: float) -> None:
        """Count a batch that ran."""
        tokens = sum(len(item.window.input_ids) for item in batch)
        self._batches += 1
        self._shared_batches += any(item.call is not batch[0].call for item in batch)
        self._windows += len(batch)
        self._tokens += tokens
        self._recent_tokens = _MEMORY * self._recent_tokens + tokens
        self._recent_s = _MEMORY * self._recent_s + seconds

    def estimate_s(self, tokens: int, running: int) -> float:
        """Return how long tokens will likely take when so many batches run at once."""
        if not self._recent_tokens:
            return _UNKNOWN_S
        return tokens * self._recent_s / self._recent_tokens / max(running, 1)

    def freeze(self, waiting: Collection[Call], leaders: Collection[Call]) -> QueueStatistics:
        """Return the counts as they are now."""
        names = sorted({_name(call) for call in (*waiting, *leaders)})
        load = _measure(waiting, leaders)
        return QueueStatistics(
            **vars(load),
            wait_s=self.estimate_s(load.queued_tokens, load.running),
            forwards={
                name: _measure(*([call for call in calls if _name(call) == name] for calls in (waiting, leaders)))
                for name in names
            },
            batches=self._batches,
            shared_batches=self._shared_batches,
            windows=self._windows,
            tokens=self._tokens,
        )


def _name(call: Call) -> str:
    return f"{call.forward.model} {call.forward.part}"


def _measure(waiting: Collection[Call], leaders: Collection[Call]) -> Load:
    return Load(
        waiting_calls=len(waiting),
        queued_windows=sum(call.queued_windows for call in waiting),
        queued_tokens=sum(call.tokens for call in waiting),
        running=len(leaders),
    )
