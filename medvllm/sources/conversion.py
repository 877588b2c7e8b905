"""Pickled weights -> safetensors: once, in a process of its own that can reach nothing."""

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from medvllm import settings
from medvllm.errors import IncompleteSnapshotError, SourceError, UnsafeWeightsError
from medvllm.sources import making
from medvllm.sources.confinement import cpu_seconds
from medvllm.sources.digest import Digest, differences, digests
from medvllm.sources.snapshot import Snapshot, needed, present, weight_files

logger = logging.getLogger(__name__)

RECORD = "conversion.json"
_REPORTED = {kind.__name__: kind for kind in (SourceError, IncompleteSnapshotError, UnsafeWeightsError)}


def as_safetensors(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with safetensors weights, converting them when the checkpoint has a pickle alone."""
    if weight_files(snapshot.path):
        return snapshot
    target = made(snapshot)
    if not _is_whole(target):
        _convert(snapshot, target)
    files = [name for name in needed(present(target)) if name != RECORD]
    return replace(snapshot, weights=target, converted=digests(target, files))


def made(snapshot: Snapshot) -> Path:
    """Return the folder for the converted weights of a snapshot."""
    return settings.HOME() / "converted" / _key(snapshot)


def _key(snapshot: Snapshot) -> str:
    """Name the converted copy by commit or, for a folder of the user's own, by the files as they stand."""
    if snapshot.repo:
        return f"{snapshot.repo.replace('/', '--')}--{snapshot.commit}"
    return f"folder--{hashlib.sha256(snapshot.identity.encode()).hexdigest()[:40]}"


def _is_whole(target: Path) -> bool:
    """Return whether a converted copy is there with every byte that was recorded when it was made."""
    try:
        made = [file["converted"] for file in json.loads((target / RECORD).read_text())["files"]]
        recorded = {file["name"]: Digest(file["size"], file["sha256"]) for file in made}
        return not differences(recorded, digests(target, list(recorded)))
    except (OSError, ValueError, KeyError, TypeError):  # also what `digests` says of a file that is missing
        return False


def _convert(snapshot: Snapshot, target: Path) -> None:
    try:
        making.make(target, RECORD, is_whole=_is_whole, fill=lambda work: _run_converter(snapshot, work))
    except SourceError:
        raise
    except OSError as error:
        raise _failed(snapshot, str(error)) from error


def _run_converter(snapshot: Snapshot, work: Path) -> None:
    pickles = weight_files(snapshot.path, pickled=True)
    total = sum(file.stat().st_size for file in pickles)
    logger.info("converting %s to safetensors, once", ", ".join(file.name for file in pickles))
    own = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        run = subprocess.run(
            [sys.executable, "-P", "-m", "medvllm.sources.converter", str(snapshot.path), str(work)],
            # No token, no proxy, not the user's home; one thread, whose memory is bounded.
            env=own
            | {"HOME": str(work), "TMPDIR": str(work), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
            | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=10 * cpu_seconds(total),
        )
    except subprocess.TimeoutExpired as error:
        raise _failed(snapshot, f"it took more than {error.timeout:.0f} seconds") from error
    if run.returncode == 0:
        if not snapshot.is_current():
            raise _failed(snapshot, "its files changed meanwhile")
        return
    if run.returncode < 0:
        name = signal.Signals(-run.returncode).name
        why = {"SIGKILL": ", likely for want of memory", "SIGXCPU": " for taking too long"}.get(name, "")
        raise _failed(snapshot, f"its process was ended by {name}{why}")
    last = (run.stderr.strip().splitlines() or [f"it ended with status {run.returncode}"])[-1]
    try:
        kind, message = json.loads(last)
        report = _REPORTED[kind](str(message), path=str(snapshot.path))
    except (ValueError, KeyError, TypeError):
        report = _failed(snapshot, last[:300])
    raise report


def _failed(snapshot: Snapshot, reason: str) -> SourceError:
    return SourceError(f"{snapshot.path} could not be converted to safetensors: {reason}.", path=str(snapshot.path))
