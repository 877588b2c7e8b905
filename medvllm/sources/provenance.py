"""Where a bundle comes from: what its exporter says, and which repositories' commits are known by a bundle alone."""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.files import make_own, write_whole

_MOST = 200  # characters of a text
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Provenance:
    """Who exported a bundle, on which machine, when (UTC, ISO 8601), by which program; and where its history stood.

    It is what the exporter says: nothing proves it but a digest of the bundle that came another way.
    """

    by: str
    machine: str
    at: str
    program: str
    events: int  # of the catalogue's history
    last_hash: str  # of its last event; "" without a catalogue

    def to_json(self) -> bytes:
        """Return it as a member of a bundle has it, with a digest that tells damage."""
        facts = asdict(self)
        return json.dumps(facts | {"sha256": _digest(facts)}, indent=1, sort_keys=True).encode()

    @classmethod
    def parsed(cls, content: bytes) -> "Provenance":
        """Return what a member says; ValueError when it is none."""
        facts: Any = json.loads(content)
        if facts.pop("sha256") != _digest(facts):
            raise ValueError("what it says of its export is damaged")
        found = cls(**facts)
        texts = [found.by, found.machine, found.at, found.program, found.last_hash]
        if not all(isinstance(text, str) and len(text) <= _MOST and text.isprintable() for text in texts):
            raise ValueError("it does not say who exported it, and when")
        if type(found.events) is not int or found.events < 0:
            raise ValueError("it does not say where its history stood")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@contextmanager
def origin_kept(repo: str, commit: str, bundle: str) -> Iterator[None]:
    """Remember that a repository's commit came in a bundle, by the bundle's SHA-256, unless the block raises."""
    file = _origin(repo, commit)
    make_own(file.parent)
    write_whole(file, f"{bundle}\n".encode(), private=True)
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def origin(repo: str, commit: str) -> str | None:
    """Return the SHA-256 of the bundle that a repository's commit came in, or None."""
    try:
        text = _origin(repo, commit).read_text(encoding="ascii").strip()
    except (OSError, UnicodeError):
        return None
    return text if _SHA256.fullmatch(text) else None


def _origin(repo: str, commit: str) -> Path:
    return settings.HOME() / "imports" / repo.replace("/", "--") / commit
