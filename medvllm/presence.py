"""Which processes hold which models: each notes what it holds in `MEDVLLM_HOME/run`; `medvllm ps` reads the notes."""

import atexit
import contextlib
import json
import os
import sys
import threading
import weakref
from pathlib import Path
from typing import Any, Protocol

from medvllm import settings
from medvllm.errors import MedVLLMError
from medvllm.files import make_own

_DELAY_S = 0.2  # changes within this time are one note
_AGAIN_S = 2.0  # between two looks at models that only callers hold: nothing tells when those go


class Holder(Protocol):
    """What has models in memory."""

    def noted(self) -> list[dict[str, Any]]: ...


class Notes:
    """Keeps this process's note: soon after a change, in the background, so that no load waits for a disk."""

    def __init__(self) -> None:
        self._holders: weakref.WeakSet[Holder] = weakref.WeakSet()
        self._lock = threading.Lock()  # guards _pending
        self._writing = threading.Lock()  # one note at a time, the later one last
        self._pending: threading.Timer | None = None

    def change(self, holder: Holder) -> None:
        """Note soon what is in memory then, of this holder and of the others in this process."""
        with self._lock:
            self._holders.add(holder)
            if self._pending is None or not self._pending.is_alive():
                self._look_in(_DELAY_S)

    def _look_in(self, seconds: float) -> None:
        with contextlib.suppress(RuntimeError):  # no thread can be had: the next change is noted
            self._pending = threading.Timer(seconds, self._write)
            self._pending.daemon = True
            self._pending.start()

    def _write(self) -> None:
        with self._lock:
            self._pending = None
            holders = list(self._holders)
        # A note that cannot be written costs nobody a model.
        with self._writing, contextlib.suppress(OSError, MedVLLMError):
            file, models = _file(os.getpid()), [model for holder in holders for model in holder.noted()]
            if not models:
                file.unlink(missing_ok=True)
                return
            make_own(file.parent)
            note = {"started": _started(os.getpid()), "command": " ".join(sys.argv[:3])[:200], "models": models}
            partial = file.with_suffix(".partial")
            partial.write_text(json.dumps(note))
            partial.replace(file)
            atexit.unregister(_forget)
            atexit.register(_forget)
            if any(model["evicted"] for model in models):
                with self._lock:
                    if self._pending is None:
                        self._look_in(_AGAIN_S)


notes = Notes()


def processes() -> dict[int, dict[str, Any]]:
    """Return the notes of the processes that are alive, by process id; those of others are swept."""
    found: dict[int, dict[str, Any]] = {}
    for file in sorted((settings.HOME() / "run").glob("*.json")):
        try:
            process, note = int(file.stem), json.loads(file.read_text())
            if _started(process) == note["started"]:
                found[process] = note
            else:
                file.unlink(missing_ok=True)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def _forget() -> None:
    with contextlib.suppress(OSError, MedVLLMError):
        _file(os.getpid()).unlink(missing_ok=True)


def _file(process: int) -> Path:
    return settings.HOME() / "run" / f"{process}.json"


def _started(process: int) -> str | None:
    """Return what tells a process from a later one of the same id, or None when it is not alive."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        pass
    try:
        os.kill(process, 0)
    except OSError:
        return None
    return "alive"
