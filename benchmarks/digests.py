"""What it costs that every byte is accounted for, beside hashing the same file with hashlib."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from benchmarks.measure import Table, beside, duration, figure, interleaved, timed
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry
from medvllm.sources.digest_cache import open_digest_cache

_SETTLES_S = 2.1  # a file that has just been written is not remembered: a change would not show in its times
_PEER = "`hashlib.file_digest` of the weights"
_UNSEEN = "`pull`, files never seen: every byte is hashed"
_ASKED = "`verify`: every byte is hashed again"
_KNOWN = "`pull`, digests remembered by the process"
_STORED = "`pull`, digests remembered on disk, by an earlier process"
_OPEN, _LOCKED = "`load_model`, after eviction, not locked", "`load_model`, after eviction, locked"


def tables(quick: bool) -> list[Table]:
    """Measure the check of a BERT-base that is in the page cache: 438 MB of weights."""
    import torch
    from transformers.utils import logging

    from benchmarks import checkpoints

    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        os.environ |= {settings.HOME.name: str(home / "home"), settings.LOCK_FILE.name: str(home / "medvllm.lock")}
        try:
            folder = checkpoints.bert(home / "model", checkpoints.BERT_BASE)
            size_mb = (folder / "model.safetensors").stat().st_size / 1e6
            time.sleep(_SETTLES_S)
            series = interleaved(_steps(folder, home), 3 if quick else 9)
        finally:
            for setting in (settings.HOME, settings.LOCK_FILE):
                del os.environ[setting.name]
    speed = size_mb / series[_PEER].median
    known, more = series[_KNOWN].median, series[_LOCKED].median - series[_OPEN].median
    reading = (
        f"hashlib does {figure(speed)} MB a second here. Once a file is remembered, by device, inode, size, mtime and "
        f"ctime, the check of all files costs {duration(known)}. To read a lock and compare with it made a load "
        f"{duration(abs(more))} {'longer' if more > 0 else 'shorter'}."
    )
    rows = beside(series, {name: _OPEN if name == _LOCKED else _PEER for name in series if name not in (_PEER, _OPEN)})
    return [Table("Accounting for every byte of a BERT-base, 438 MB", rows, reading, duration)]


def _steps(folder: Path, home: Path) -> dict[str, Callable[[], float]]:
    registry = ModelRegistry()
    registry.register("model", "custom", model_path=str(folder))
    pull = partial(registry.pull, "model")

    def unseen() -> float:
        open_digest_cache.cache_clear()  # as in a process of its own
        shutil.rmtree(home / "home", ignore_errors=True)
        return timed(pull)

    def stored() -> float:
        open_digest_cache.cache_clear()  # as in a process of its own
        return timed(pull)

    def load(locked: bool) -> float:
        (home / "medvllm.lock").unlink(missing_ok=True)
        if locked:
            registry.lock("model")
        registry.clear_cache()
        return timed(partial(registry.load_model, "model"))

    def asked() -> float:
        registry.lock("model")
        return timed(partial(registry.verify, "model"))

    return {
        _PEER: partial(timed, partial(_hash, folder / "model.safetensors")),
        _UNSEEN: unseen,
        _ASKED: asked,
        _KNOWN: partial(timed, pull),
        _STORED: stored,
        _OPEN: partial(load, locked=False),
        _LOCKED: partial(load, locked=True),
    }


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
