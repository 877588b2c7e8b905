"""Publishes the models of this process: keeps its records up to date, in the background."""

import atexit
import contextlib
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import inf
from typing import Any, Protocol
from weakref import ReferenceType, ref

from medvllm.errors import MedVLLMError
from medvllm.forking import Forked, register
from medvllm.processes.record import ProcessRecord, main_facts
from medvllm.processes.record_store import HEARTBEAT_S, RecordStore

_DELAY_S = 0.2  # changes within this time share one write
_IDLE_S = 5.0  # without anything to write, until the thread ends
_RECHECK_S = 2.0  # between two looks at what ends without notice: leases, and models that only callers hold


class ModelHolder(Protocol):
    """Something that holds models, such as a registry."""

    def describe_models(self, *, will_publish: bool = True) -> list[dict[str, Any]]:
        """Return the models in memory, with the keys of `LoadedModel.to_dict`.

        Args:
            will_publish: Whether other processes will see the answer. The holder then remembers which models it
                showed as leased.
        """
        ...

    def record_stores(self) -> list[RecordStore]:
        """Return where its record belongs; the first store that can be written is used."""
        ...


@dataclass(eq=False)
class _Published:
    """The record of one holder as it was written last."""

    holder: ReferenceType[ModelHolder]
    id: str = field(default_factory=lambda: os.urandom(16).hex())
    store: RecordStore | None = None  # where it was written; None: nowhere
    facts: list[tuple[object, ...]] = field(default_factory=list)
    written_at: float = 0.0  # on the monotonic clock


class Publisher(Forked):
    """Writes one record for each holder, soon after its models change. A thread does so, and no load waits for it."""

    def __init__(self) -> None:
        self._records: list[_Published] = []
        self._reset()
        register(self)

    def _reset(self) -> None:
        self._changed = threading.Condition(threading.Lock())  # guards the attributes
        self._thread: threading.Thread | None = None
        self._due = inf  # when it writes next, on the monotonic clock

    def after_fork(self, *, is_child: bool) -> None:
        """Begin anew in a child: the records so far are its parent's."""
        if is_child:
            self._records = [_Published(own.holder) for own in self._records]
            self._reset()

    def schedule_write(self, holder: ModelHolder) -> None:
        """Write the holder's record soon, with the models that it has then."""
        with self._changed:
            if not any(own.holder() is holder for own in self._records):
                self._records.append(_Published(ref(holder)))
            self._schedule(_DELAY_S)

    def record_ids(self) -> set[str]:
        """Return the ids of this process's own records."""
        return {own.id for own in list(self._records)}

    def holders(self) -> Iterator[ModelHolder]:
        """Yield the holders that have, or had, models in this process."""
        for own in list(self._records):
            if (holder := own.holder()) is not None:
                yield holder

    def remove_all(self) -> None:
        """Remove this process's records, because it ends."""
        for own in self._records:
            _remove(own)

    def _schedule(self, seconds: float) -> None:
        """Have the thread write in so many seconds, or earlier. The caller holds the lock."""
        due = time.monotonic() + seconds
        if self._thread is None or not self._thread.is_alive():
            self._due = due
            self._thread = threading.Thread(target=self._run, name="medvllm-publisher", daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no thread is available: the next change is written
                self._thread = None
        elif due < self._due:
            self._due = due
            self._changed.notify()

    def _run(self) -> None:
        """Write the records whenever they are due, until there has been nothing to write for a while.

        To start a thread for each write would cost a load up to a millisecond.
        """
        while True:
            with self._changed:
                if self._due == inf:
                    self._changed.wait(_IDLE_S)
                if self._due == inf:
                    self._thread = None
                    return
                while (left_s := self._due - time.monotonic()) > 0:
                    self._changed.wait(left_s)
                self._due = inf
                records = list(self._records)
            delays = [seconds for own in records if (seconds := _update(own)) is not None]
            with self._changed:
                self._records = [own for own in self._records if own.holder() is not None]
                if delays:
                    self._due = min(self._due, time.monotonic() + min(delays))


def _update(own: _Published) -> float | None:
    """Bring a record up to date. Return the seconds until the next check; None when no model is in memory."""
    holder = own.holder()
    models = holder.describe_models() if holder is not None else []
    if holder is None or not models:
        _remove(own)
        return None
    facts, is_due = main_facts(models), time.monotonic() - own.written_at >= HEARTBEAT_S
    if own.store is None or is_due or facts != own.facts:
        # A record that cannot be written must not make a load fail.
        with contextlib.suppress(Exception):
            _write(own, holder.record_stores(), ProcessRecord.of_this_process(models).to_json())
            own.facts, own.written_at = facts, time.monotonic()
    ends_unnoticed = any(model["leases"] or model["evicted"] for model in models)
    return _RECHECK_S if ends_unnoticed and own.store is not None else HEARTBEAT_S


def _write(own: _Published, stores: list[RecordStore], text: str) -> None:
    """Write a record to the first store that takes it."""
    for store in stores:
        with contextlib.suppress(OSError, MedVLLMError):
            store.write(own.id, text)
            if own.store is not None and own.store != store:
                _remove(own)
            own.store = store
            atexit.unregister(publisher.remove_all)
            atexit.register(publisher.remove_all)
            return


def _remove(own: _Published) -> None:
    if own.store is not None:
        with contextlib.suppress(Exception):
            own.store.remove(own.id)
        own.store, own.facts = None, []


publisher = Publisher()
