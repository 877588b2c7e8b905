"""The converted copy of pickled weights: safetensors in `MEDVLLM_HOME/converted`, made once by a confined process."""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medvllm import settings
from medvllm.atomic_folder import atomic_folder
from medvllm.errors import IncompleteSnapshotError, SourceError, UnsafeWeightsError
from medvllm.files import is_trusted
from medvllm.sources.conversion.confinement import cpu_seconds
from medvllm.sources.digest import Digest, digest_files, find_differences, folder_key, hash_files
from medvllm.sources.snapshot import Snapshot

logger = logging.getLogger(__name__)

RECORD = "conversion.json"
_REPORTED = {kind.__name__: kind for kind in (SourceError, IncompleteSnapshotError, UnsafeWeightsError)}


def as_safetensors(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with safetensors in place of its pickles. Each pickle is converted once.

    Raises:
        UnsafeWeightsError: A pickle holds more than tensors, or asks for too much memory.
        IncompleteSnapshotError: A pickle is damaged.
        SourceError: A pickle could not be converted.
    """
    if not snapshot.layout.pickles:
        return snapshot
    target = converted_folder(snapshot)
    originals = _originals(snapshot)
    # Without a lock, only the record says what was converted, so that no other user may have written it.
    if not (_is_whole(target, originals) and (snapshot.locked or _is_own(target))):
        _convert(snapshot, target, originals)
    try:
        converted, taken = hash_files(target, _read_recorded(target))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _failed(snapshot, "the converted files were removed meanwhile") from error
    return replace(snapshot, converted=converted, converted_at=target, file_stamps=snapshot.file_stamps + taken)


def converted_folder(snapshot: Snapshot) -> Path:
    """Return the folder for the converted weights of a snapshot. It is named after the digests of the pickles."""
    return settings.HOME() / "converted" / folder_key(_originals(snapshot))


def find_flaws(snapshot: Snapshot, expected: Mapping[str, Digest]) -> dict[str, str]:
    """Return what is wrong with each converted file that exists and is not as expected. All are hashed again.

    The next load converts a missing file again, and compares it then.
    """
    target = converted_folder(snapshot)
    there = [name for name in expected if (target / name).is_file()]
    return find_differences({name: expected[name] for name in there}, digest_files(target, there, fresh=True))


def _originals(snapshot: Snapshot) -> dict[str, Digest]:
    return {name: snapshot.files[name] for name in snapshot.layout.pickles}


def _is_own(target: Path) -> bool:
    """Return whether no other user can have written or changed a converted copy."""
    return is_trusted(target / RECORD) and is_trusted(target)


def _read_recorded(target: Path) -> list[str]:
    return [file["name"] for file in json.loads((target / RECORD).read_text())["converted"]]


def _is_whole(target: Path, originals: Mapping[str, Digest]) -> bool:
    """Return whether a converted copy of these pickles exists, with every byte as it was recorded."""
    try:
        record = json.loads((target / RECORD).read_text())
        of, made = (
            {file["name"]: Digest(file["size"], file["sha256"]) for file in record[group]}
            for group in ("originals", "converted")
        )
        return of == originals and not find_differences(made, digest_files(target, made))
    except (OSError, ValueError, KeyError, TypeError):  # SourceError, for a missing file, is an OSError
        return False


def _convert(snapshot: Snapshot, target: Path, originals: Mapping[str, Digest]) -> None:
    try:
        atomic_folder(
            target,
            is_complete=lambda folder: _is_whole(folder, originals) and _is_own(folder),
            fill=lambda work: _run_converter(snapshot, work),
        )
    except SourceError:
        raise
    except OSError as error:
        raise _failed(snapshot, str(error)) from error


def _run_converter(snapshot: Snapshot, work: Path) -> None:
    pickles = snapshot.layout.pickles
    total = sum(snapshot.files[name].size for name in pickles)
    logger.info("converting %s to safetensors, once", ", ".join(pickles))
    own = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    try:
        run = subprocess.run(
            [
                sys.executable,
                "-P",
                "-m",
                "medvllm.sources.conversion.converter",
                str(snapshot.path),
                str(work),
                *pickles,
            ],
            # No token, no proxy, and another home. One thread only, as each needs memory, which is limited.
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
        if not snapshot.file_stamps.is_current():
            raise _failed(snapshot, "its files changed meanwhile")
        return
    if run.returncode < 0:
        name = signal.Signals(-run.returncode).name
        why = {"SIGKILL": ", probably because memory ran out", "SIGXCPU": " for taking too long"}.get(name, "")
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
