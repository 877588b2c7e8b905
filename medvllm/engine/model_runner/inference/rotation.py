"""Whose turn it is among the calls that wait."""

from collections import OrderedDict
from collections.abc import Callable, Iterator

from medvllm.engine.model_runner.inference.call import Call
from medvllm.engine.model_runner.inference.forward import Forward
from medvllm.engine.model_runner.request import PRIORITIES, Priority

WEIGHT = 4  # interactive turns for each turn in bulk
AGE_S = 10.0  # a call in bulk that has waited for so long counts as an interactive one


class Rotation:
    """The calls that wait for a turn. Within a priority, the one comes first that has waited longest since its last.

    Args:
        clock: Returns the seconds on a clock.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._calls: dict[Priority, OrderedDict[Call, None]] = {name: OrderedDict() for name in PRIORITIES}
        self._since_bulk: dict[str, int] = {}  # by device: turns that it has given way to

    def __iter__(self) -> Iterator[Call]:
        for calls in self._calls.values():
            yield from calls

    def add(self, call: Call) -> None:
        """Let a call wait for a turn, after all others."""
        if call not in self._calls[call.limits.priority]:
            call.since_s = self._clock()
            self._calls[call.limits.priority][call] = None

    def restore(self, call: Call) -> None:
        """Let a call wait before all others, because its turn came to nothing."""
        calls = self._calls[call.limits.priority]
        calls[call] = None
        calls.move_to_end(call, last=False)

    def discard(self, call: Call) -> None:
        """Remove a call, if it is there."""
        self._calls[call.limits.priority].pop(call, None)

    def next(self, device: str) -> Call | None:
        """Return the call whose turn on a device it is; None if there is none."""
        interactive, bulk = (self._first(name, device) for name in PRIORITIES)
        if bulk is None or interactive is None:
            return interactive or bulk
        is_bulks = self._since_bulk.get(device, 0) >= WEIGHT or self._is_older(bulk, interactive)
        return bulk if is_bulks else interactive

    def end_turn(self, call: Call) -> None:
        """Remove a call that has its turn."""
        device, is_interactive = call.forward.device, call.limits.priority == "interactive"
        gives_way = is_interactive and self._first("bulk", device) is not None
        self._since_bulk[device] = self._since_bulk.get(device, 0) + 1 if gives_way else 0
        self.discard(call)

    def sharing(self, forward: Forward, first: Priority) -> Iterator[list[Call]]:
        """Yield the calls of each priority that wait for the same forward, in the order of their turns."""
        for name in sorted(PRIORITIES, key=lambda name: name != first):
            yield [call for call in self._calls[name] if call.forward == forward and not call.is_over]

    def _first(self, name: Priority, device: str) -> Call | None:
        return next((call for call in self._calls[name] if call.forward.device == device and not call.is_over), None)

    def _is_older(self, bulk: Call, interactive: Call) -> bool:
        return self._clock() - bulk.since_s >= AGE_S and bulk.since_s <= interactive.since_s
