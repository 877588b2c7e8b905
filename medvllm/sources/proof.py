"""What the bytes of a snapshot prove about a model that was loaded from them."""

from pathlib import Path

from medvllm.receipt import Proof
from medvllm.sources.snapshot import Snapshot


def prove(snapshot: Snapshot, size_bytes: int, tokenizer_sha256: str | None, labels_sha256: str | None) -> Proof:
    """Return the proof of a loaded model.

    Args:
        snapshot: The files that it was loaded from.
        size_bytes: Its size in memory.
        tokenizer_sha256: A hash of its tokenizer; None without one.
        labels_sha256: A hash of its label map; None without named labels.
    """
    changed = [_name(snapshot, file) for file in snapshot.file_stamps.changed_paths()]
    architecture = snapshot.config.get("model_type")
    return Proof(
        commit=snapshot.commit if snapshot.is_listed else None,
        files={name: vars(digest) for name, digest in snapshot.files.items()},
        converted={name: vars(digest) for name, digest in snapshot.converted.items()},
        locked=snapshot.locked and not changed,
        changed=changed,
        architecture=architecture if isinstance(architecture, str) else None,
        dtype=snapshot.dtype,
        size_bytes=size_bytes,
        tokenizer_sha256=tokenizer_sha256,
        labels_sha256=labels_sha256,
    )


def _name(snapshot: Snapshot, file: Path) -> str:
    """Return a file's path within its snapshot, or the whole path of a converted copy."""
    return file.relative_to(snapshot.path).as_posix() if file.is_relative_to(snapshot.path) else str(file)
