"""This process's notes, and the reading of all."""

import atexit
import contextlib
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from weakref import ReferenceType, ref

from medvllm.errors import MedVLLMError
from medvllm.forking import Forked, register
from medvllm.processes.board import ALIVE_S, GONE_S, HEARTBEAT_S, Board
from medvllm.processes.note import Note, essence
from medvllm.processes.process import Process

_DELAY_S = 0.2  # changes within this time are one note
_AGAIN_S = 2.0  # between two looks at what nothing tells the end of: leases, and models that only callers hold


class Holder(Protocol):
    """What has models in memory."""

    def noted(self, *, for_others: bool = True) -> list[dict[str, Any]]:
        """Return the models in memory, and remember which of them others see as leased, if it is for them."""
        ...

    def boards(self) -> list[Board]:
        """Return where its note belongs: the first that can be written."""
        ...


@dataclass(eq=False)
class _Own:
    """One holder's note as it stands."""

    holder: ReferenceType[Holder]
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    board: Board | None = None  # where it lies; None: nowhere
    essence: list[tuple[object, ...]] = field(default_factory=list)
    at: float = 0.0  # when the last sign of life was given


class Notes(Forked):
    """Keeps this process's notes, one a holder: soon after a change, in the background, so that no load waits."""

    def __init__(self) -> None:
        self._owns: list[_Own] = []
        self._begin()
        register(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()  # guards the attributes
        self._writing = threading.Lock()  # one note at a time, the later one last
        self._pending: threading.Timer | None = None
        self._due = 0.0

    def after_fork(self, *, is_child: bool) -> None:
        """Begin anew in a child: what its parent has noted is the parent's."""
        if is_child:
            self._owns = [_Own(own.holder) for own in self._owns]
            self._begin()

    def change(self, holder: Holder) -> None:
        """Note soon what the holder has in memory then."""
        with self._lock:
            if not any(own.holder() is holder for own in self._owns):
                self._owns.append(_Own(ref(holder)))
            self._look_in(_DELAY_S)

    def ids(self) -> set[str]:
        """Return the ids of this process's own notes."""
        return {own.id for own in list(self._owns)}

    def holders(self) -> Iterator[Holder]:
        """Give who has, or had, models in this process."""
        for own in list(self._owns):
            if (holder := own.holder()) is not None:
                yield holder

    def _look_in(self, seconds: float) -> None:
        due = time.monotonic() + seconds
        if self._pending is not None and self._pending.is_alive():
            if self._due <= due:
                return
            self._pending.cancel()
        self._pending, self._due = threading.Timer(seconds, self._look), due
        self._pending.daemon = True
        with contextlib.suppress(RuntimeError):  # no thread can be had: the next change is noted
            self._pending.start()

    def _look(self) -> None:
        with self._lock:
            self._pending = None
            owns = list(self._owns)
        with self._writing:
            again_s = [seconds for own in owns if (seconds := _written(own)) is not None]
        with self._lock:
            self._owns = [own for own in self._owns if own.holder() is not None]
            if again_s:
                self._look_in(min(again_s))

    def forget(self) -> None:
        """Take the notes away: the process ends."""
        for own in self._owns:
            _removed(own)


def _written(own: _Own) -> float | None:
    """Bring a note up to date; return in how many seconds to look again, None when nothing is in memory."""
    holder = own.holder()
    models = holder.noted() if holder is not None else []
    if holder is None or not models:
        _removed(own)
        return None
    found, is_due = essence(models), time.monotonic() - own.at >= HEARTBEAT_S
    if own.board is None or is_due or found != own.essence:
        # A note that cannot be written costs nobody a model.
        with contextlib.suppress(Exception):
            _put(own, holder.boards(), Note(Process.current(), _program(), tuple(models)).text())
            own.essence, own.at = found, time.monotonic()
    is_open = any(model["leases"] or model["evicted"] for model in models)
    return _AGAIN_S if is_open and own.board is not None else HEARTBEAT_S


def _put(own: _Own, boards: list[Board], text: str) -> None:
    """Write a note where it belongs, or else where it can be."""
    for board in boards:
        with contextlib.suppress(OSError, MedVLLMError):
            board.put(own.id, text)
            if own.board is not None and own.board != board:
                _removed(own)
            own.board = board
            atexit.unregister(notes.forget)
            atexit.register(notes.forget)
            return


def _removed(own: _Own) -> None:
    if own.board is not None:
        with contextlib.suppress(Exception):
            own.board.remove(own.id)
        own.board, own.essence = None, []


def _program() -> str:
    name = Path(sys.argv[0]).name[:100] if sys.argv else ""
    return name if name.isprintable() else ""


notes = Notes()


def processes(boards: Iterable[Board]) -> list[Note]:
    """Return the notes of the processes that are alive, of this one as things are now.

    A note of another is taken away only where its process is surely gone.
    """
    boards, own = list(boards), notes.ids()
    found: dict[str, Note] = {}
    for holder in notes.holders():
        if any(board in boards for board in holder.boards()) and (models := holder.noted(for_others=False)):
            found[f"{id(holder)}"] = Note(Process.current(), _program(), tuple(models))
    for board in boards:
        for kept in board.kept():
            note = None if kept.id in own else Note.parsed(kept.text)
            if note is None:
                continue
            state = note.process.state(kept.owner)
            if state == "alive" or (state == "unknown" and kept.age_s < ALIVE_S):
                found[kept.id] = note
            elif state == "gone" or kept.age_s > GONE_S:
                with contextlib.suppress(OSError, MedVLLMError):
                    board.remove(kept.id)
    return list(found.values())
