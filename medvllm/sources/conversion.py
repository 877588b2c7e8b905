"""Pickled weights -> safetensors: once, in a process of its own that can reach nothing.

``python -m medvllm.sources.conversion SOURCE TARGET`` is that process.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.errors import IncompleteSnapshotError, SourceError, UnsafeWeightsError
from medvllm.sources.digest import Digest, differences, digests
from medvllm.sources.snapshot import Snapshot, needed, present, weight_files

logger = logging.getLogger(__name__)

_SPARE_BYTES = 8 << 30  # address space for Python and torch, beside the weights
_RECORD = "conversion.json"


def as_safetensors(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot with safetensors weights, converting them when the checkpoint has a pickle alone."""
    if weight_files(snapshot.path):
        return snapshot
    target = made(snapshot)
    if not _is_whole(target):
        _convert(snapshot, weight_files(snapshot.path, pickled=True), target)
    files = [name for name in needed(present(target)) if name != _RECORD]
    return replace(snapshot, weights=target, converted=digests(target, files))


def made(snapshot: Snapshot) -> Path:
    """Return the folder for the converted weights of a snapshot."""
    return settings.HOME() / "converted" / _key(snapshot)


def _is_whole(target: Path) -> bool:
    """Return whether a converted copy is there with every byte that was recorded when it was made."""
    try:
        made = [file["converted"] for file in json.loads((target / _RECORD).read_text())["files"]]
        recorded = {file["name"]: Digest(file["size"], file["sha256"]) for file in made}
        return not differences(recorded, digests(target, list(recorded)))
    except (OSError, ValueError, KeyError, TypeError):  # also what `digests` says of a file that is missing
        return False


def _key(snapshot: Snapshot) -> str:
    """Name the converted copy by commit or, for a folder of the user's own, by the files as they stand."""
    if snapshot.repo:
        return f"{snapshot.repo.replace('/', '--')}--{snapshot.commit}"
    return f"folder--{hashlib.sha256(snapshot.identity.encode()).hexdigest()[:40]}"


def _convert(snapshot: Snapshot, pickles: list[Path], target: Path) -> None:
    from filelock import FileLock

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if _is_whole(target):  # another process was first
                return
            logger.info("converting %s to safetensors, once", ", ".join(file.name for file in pickles))
            work = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=target.parent))
            try:
                _run_worker(snapshot, pickles, work)
                shutil.rmtree(target, ignore_errors=True)
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(
            f"{snapshot.path} could not be converted to safetensors: {error}.", path=str(snapshot.path)
        ) from error


def _run_worker(snapshot: Snapshot, pickles: list[Path], work: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "medvllm.sources.conversion", str(snapshot.path), str(work)],
        env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if run.returncode == 0:
        return
    reason = (run.stderr.strip().splitlines() or [f"it ended with status {run.returncode}"])[-1][:300]
    if reason.startswith("UnpicklingError"):
        raise UnsafeWeightsError(
            f"{pickles[0]} is not opened: a pickle that is damaged or holds more than tensors, and so could run code.\n"
            "Ask its authors for model.safetensors.",
            path=str(pickles[0]),
        )
    raise IncompleteSnapshotError(f"{pickles[0]} could not be converted to safetensors: {reason}", path=str(pickles[0]))


def _work(source: Path, target: Path) -> None:
    """Write every pickled weight file of `source` as safetensors into `target`, and compare tensor by tensor."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    pickles = weight_files(source, pickled=True)
    _confine(sum(file.stat().st_size for file in pickles))
    record: dict[str, Any] = {"files": []}
    names: dict[str, str] = {}
    for file in pickles:
        state = torch.load(file, map_location="cpu", weights_only=True)
        if not isinstance(state, dict) or not all(isinstance(t, torch.Tensor) for t in state.values()):
            raise ValueError(f"{file.name} is not a state dict: a dict from name to tensor")
        # Tied tensors share memory, which safetensors refuses: each name gets its bytes, and loading ties them again.
        tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        written = target / f"{file.stem.replace('pytorch_model', 'model', 1)}.safetensors"
        save_file(tensors, written, metadata={"format": "pt"})
        with safe_open(written, framework="pt") as stored:
            for name, tensor in state.items():
                same = stored.get_tensor(name)
                if same.dtype != tensor.dtype or not torch.equal(same.nan_to_num(), tensor.nan_to_num()):
                    raise ValueError(f"tensor {name} of {file.name} changed in the conversion")
                names[name] = written.name
        record["files"].append({"original": _digest(file), "converted": _digest(written)})
    if len(pickles) > 1:
        (target / "model.safetensors.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": names}, sort_keys=True)
        )
    if (source / "generation_config.json").is_file():
        shutil.copyfile(source / "generation_config.json", target / "generation_config.json")
    (target / _RECORD).write_text(json.dumps(record, indent=1))
    for file in target.iterdir():
        with file.open("rb") as stream:
            os.fsync(stream.fileno())


def _confine(weight_bytes: int) -> None:
    """Take the network, other programs and unbounded memory away from this process, for good."""
    import resource

    limit = _SPARE_BYTES + 4 * weight_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    def refuse(event: str, _: object) -> None:
        if event.startswith(
            ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen")
        ):
            raise PermissionError(f"conversion may not use {event}")

    sys.addaudithook(refuse)


def _digest(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {
            "name": file.name,
            "size": file.stat().st_size,
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
        }


if __name__ == "__main__":
    try:
        _work(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
