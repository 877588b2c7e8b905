"""The preparation of an engine for a model: an export and verdicts, made once by a process of their own."""

import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from medvllm.engines import Export, Job, Outcome, Verdict, find_export, keep_verdict, known_verdict
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.sources import Snapshot

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
        rejection: Why there is no export or no verdict.
    """

    export: Export | None
    verdicts: tuple[Verdict, ...] = ()
    rejection: str | None = None

    @property
    def refusal(self) -> str:
        """Why no engine may serve."""
        if self.export is None or self.rejection is not None:
            return self.rejection or "it was not exported"
        return "; ".join(f"{each.engine} was refused: {each.refusal}" for each in self.verdicts if each.refusal)


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
        outcome = _run_preparer(Job(metadata, snapshot, options, part, folder, source, missing))
        export = find_export(folder)
        if outcome.rejection is not None or export is None:
            return Preparation(None, (), outcome.rejection or "its export was removed meanwhile")
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
            return Outcome(f"its preparation took more than {_TIMEOUT_S:,} seconds")
    if run.returncode < 0:
        return Outcome(f"the process that prepares it was ended by {signal.Signals(-run.returncode).name}")
    if run.returncode > 0:
        last = (run.stderr.decode("utf-8", "replace").strip().splitlines() or [""])[-1]
        return Outcome(f"it could not be prepared: {last[:300]}")
    found = json.loads(run.stdout)
    return Outcome(found["rejection"], tuple(Verdict(**verdict) for verdict in found["verdicts"]))
