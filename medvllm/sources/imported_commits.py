"""Commits that this machine has from a bundle, and not from the Hub: which bundle each came in."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medvllm import settings
from medvllm.files import make_own, write_whole

_SHA256 = re.compile(r"[0-9a-f]{64}")


@contextmanager
def import_recorded(repo: str, commit: str, bundle: str) -> Iterator[None]:
    """Record that a commit comes from a bundle, given by its SHA-256. The record goes if the block raises."""
    file = _record(repo, commit)
    make_own(file.parent)
    write_whole(file, f"{bundle}\n".encode(), private=True)
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def bundle_of(repo: str, commit: str) -> str | None:
    """Return the SHA-256 of the bundle that a commit came in, or None."""
    try:
        text = _record(repo, commit).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return None
    return text if _SHA256.fullmatch(text) else None


def _record(repo: str, commit: str) -> Path:
    return settings.HOME() / "imports" / repo.replace("/", "--") / commit
