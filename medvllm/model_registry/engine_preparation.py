"""The preparation of an engine for a model: an export and verdicts, made once by a process of their own."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from medvllm.engines import Export, Job, Outcome, Verdict, find_export, keep_verdict, known_verdict
from medvllm.metadata import ModelMetadata
from medvllm.model_cache import ValueCache
from medvllm.options import LoadOptions
from medvllm.sources import Snapshot
from medvllm.sources.prepared_folder import check_room

logger = logging.getLogger(__name__)

_TIMEOUT_S = 3600  # an export of a large model takes minutes


class Unsuited(Exception):
    """No engine may compute a model; the message says why."""


@dataclass(frozen=True)
class Preparation:
    """What is known of a model and some engines.

    Attributes:
        export: The export; None if there is none.
        verdicts: The verdict on each engine that was asked about.
        rejection: Why there cannot be an export.
        failure: What kept it from being made, such as a full disk. Another try may succeed.
    """

    export: Export | None
    verdicts: tuple[Verdict, ...] = ()
    rejection: str | None = None
    failure: str | None = None

    @property
    def refusal(self) -> str:
        """Why no engine may serve."""
        if (reason := self.rejection or self.failure) is not None:
            return reason
        return "; ".join(f"{each.engine} was refused: {each.refusal}" for each in self.verdicts if each.refusal)


class Preparations:
    """What is known of models and engines, each found once by the first caller.

    A failure is no verdict: the next call tries again. After a second failure in a row, the calls of some time get its
    reason at once: nobody should wait each time for what fails each time. That time grows with what the tries took.

    Args:
        clock: Returns monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: ValueCache[_Key, Preparation] = ValueCache()
        self._failures: dict[_Key, _Failure] = {}

    def get(self, folder: Path, engines: tuple[str, ...], make: Callable[[], Preparation]) -> Preparation:
        """Return what is known of an export and engines.

        Args:
            folder: The folder of the export.
            engines: The engines.
            make: Finds it out.
        """
        key = folder, engines
        failure = self._failures.get(key)
        if failure is not None and self._clock() < failure.until:
            return failure.preparation
        found = self._made.get(key, partial(self._make, key, make))
        if found.export is not None and not found.export.fingerprint.is_current():
            self._made.discard(lambda other: other == key)
            found = self._made.get(key, partial(self._make, key, make))
        if found.failure is not None:
            self._made.discard(lambda other: other == key)
        return found

    def _make(self, key: "_Key", make: Callable[[], Preparation]) -> Preparation:
        start = self._clock()
        found = make()
        if found.failure is None:
            self._failures.pop(key, None)
            return found
        before, now = self._failures.get(key), self._clock()
        count = 1 if before is None else before.count + 1
        pause_s = min((2 ** min(count - 1, 20) - 1) * (now - start), _TIMEOUT_S)
        self._failures[key] = _Failure(found, count, now + pause_s)
        return found


_Key = tuple[Path, tuple[str, ...]]


@dataclass(frozen=True)
class _Failure:
    """The last of some tries that failed one after the other."""

    preparation: Preparation
    count: int
    until: float


def prepare(
    metadata: ModelMetadata,
    snapshot: Snapshot,
    options: LoadOptions,
    part: str,
    folder: Path,
    engines: tuple[str, ...],
    source: Path | None = None,
) -> Preparation:
    """Return the export of a model with the verdicts on engines. What is not known yet is made now.

    Args:
        metadata: The entry, completed with what the files say.
        snapshot: The model's files.
        options: The options of the load.
        part: What the engines compute.
        folder: The folder of the export.
        engines: The engines.
        source: For an export in int8, the folder of the export in float32.
    """
    export = find_export(folder)
    if export is None and folder.exists():
        logger.warning("%s, an export of %r, is not as it was recorded, and is made again", folder, metadata.name)
    verdicts = {} if export is None else {engine: known_verdict(export, engine) for engine in engines}
    missing = tuple(engine for engine in engines if verdicts.get(engine) is None)
    if missing and (export is None or export.rejection is None):
        logger.info("preparing %r for %s, once", metadata.name, ", ".join(missing))
        if export is None:
            # Before a process is started: the answer is the same, and costs nothing.
            try:
                check_room(folder, 0 if source is not None else snapshot.size_bytes("float32"))
            except OSError as error:
                return Preparation(None, failure=f"it could not be prepared: {error}")
        outcome = _run_preparer(Job(metadata, snapshot, options, part, folder, source, missing))
        if outcome.rejection is not None:
            return Preparation(None, rejection=outcome.rejection)
        export = find_export(folder)
        if outcome.failure is not None or export is None:
            return Preparation(None, failure=outcome.failure or "its export was removed meanwhile")
        for verdict in outcome.verdicts:
            keep_verdict(export, verdict)
            verdicts[verdict.engine] = verdict
    assert export is not None
    return Preparation(export, tuple(filter(None, map(verdicts.get, engines))), export.rejection)


def _run_preparer(job: Job) -> Outcome:
    """Run the process that prepares, and return what it found."""
    own = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "MEDVLLM_HOME") if name in os.environ}
    with tempfile.TemporaryDirectory() as scratch:
        # No token, no proxy, and another home.
        own |= {"HOME": scratch, "TMPDIR": scratch, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        own |= {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
        program = [sys.executable, "-P", "-m", "medvllm.loading.export.preparer"]
        try:
            run = subprocess.run(
                program, env=own, input=pickle.dumps(job), capture_output=True, check=False, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return Outcome(failure=f"its preparation took more than {_TIMEOUT_S:,} seconds")
    if run.returncode < 0:
        return Outcome(failure=f"the process that prepares it was ended by {signal.Signals(-run.returncode).name}")
    if run.returncode > 0:
        last = (run.stderr.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
        return Outcome(failure=f"it could not be prepared: {last[:300]}")
    found = json.loads(run.stdout)
    return Outcome(found["rejection"], tuple(Verdict(**verdict) for verdict in found["verdicts"]), found["failure"])
