"""Trials of a model on a short text of medvllm's own. Their outcome is kept for every caller."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from medvllm.engine.model_runner.inference.part import Part
from medvllm.model_registry import Lease

_MAX_REMEMBERED = 10_000  # models
T = TypeVar("T")


class Outcomes(Generic[T]):
    """What trials of models found, for each part.

    A model that was evicted and is loaded again from the same files is not tried again, unless somebody gave one of the
    two other modules.
    """

    def __init__(self) -> None:
        self._of_modules: WeakKeyDictionary[Any, dict[Part, T]] = WeakKeyDictionary()
        self._of_models: dict[tuple[object, Part], tuple[tuple[type, ...], T]] = {}  # the oldest first

    def find(self, lease: Lease, module: Any, part: Part, attempt: Callable[[], T]) -> T:
        """Return what is known of a part, or what an attempt finds.

        Args:
            lease: The model.
            module: The module that computes the part.
            part: The part.
            attempt: Tries the module, as in a new thread: without the caller's autocast and default device.
        """
        known = self._of_modules.setdefault(module, {})
        if part not in known:
            kinds, found = self._of_models.get((lease.identity, part), ((), None))
            if found is not None and kinds == _kinds(module):
                known[part] = found
            else:
                with _without_callers_settings(lease):
                    found = known[part] = attempt()
                self._of_models[lease.identity, part] = _kinds(module), found
                while len(self._of_models) > _MAX_REMEMBERED:
                    self._of_models.pop(next(iter(self._of_models)), None)
            return found
        return known[part]

    def forget(self, lease: Lease, module: Any, part: Part) -> None:
        """Forget what was found of a part: it does not hold."""
        self._of_modules.get(module, {}).pop(part, None)
        self._of_models.pop((lease.identity, part), None)


def _kinds(module: Any) -> tuple[type, ...]:
    """Return the classes of a module and of those in it."""
    return tuple(map(type, module.modules()))


@contextmanager
def _without_callers_settings(lease: Lease) -> "Iterator[None]":
    import torch

    device = lease.model.device
    with torch.autocast(device.type, enabled=False), torch.device(device):
        yield
