"""Size and SHA-256 of files: hashed once, remembered for as long as the file does not change."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medvllm import progress
from medvllm.errors import SourceError
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.edge import unusable
from medvllm.sources.fingerprint import Fingerprint, Stamp, stamp

_CHUNK = 1 << 20
_SETTLED_NS = (
    2_000_000_000  # a change within the clock's grain would not show in the stamp: coarse file systems have 2 s
)


@dataclass(frozen=True)
class Digest:
    """What tells a file's content."""

    size: int
    sha256: str


def digests(folder: Path, names: Iterable[str], *, fresh: bool = False) -> dict[str, Digest]:
    """Return the digest of each of a folder's files, by name; `fresh` hashes all of them again.

    Raises:
        IncompleteSnapshotError: A file is not there.
    """
    return hashed(folder, names, fresh=fresh)[0]


def hashed(folder: Path, names: Iterable[str], *, fresh: bool = False) -> tuple[dict[str, Digest], Fingerprint]:
    """Return the digest of each of a folder's files, by name, and the files' fingerprint when they were hashed."""
    stamps = {name: stamp(folder / name) for name in sorted(names)}
    remembered = {} if fresh else digest_cache().digests(stamps.values())
    known = {name: remembered.get(seen) for name, seen in stamps.items()}
    total = sum(stamps[name][2] for name, sha256 in known.items() if sha256 is None)
    found: dict[str, Digest] = {}
    settled: dict[Stamp, str] = {}
    with progress.of_bytes("Checking digests", total) as advance:
        for name, sha256 in known.items():
            if sha256 is None:
                stamps[name], sha256 = _hash(folder / name, advance)
                # By its ctime, which the machine sets: whoever packed a file may have had a clock that was ahead.
                if time.time_ns() - stamps[name][4] > _SETTLED_NS:
                    settled[stamps[name]] = sha256
            found[name] = Digest(stamps[name][2], sha256)
    digest_cache().keep_digests(settled)
    return found, Fingerprint.at(folder, stamps)


def git_oid(file: Path) -> str:
    """Return the SHA-1 under which git keeps a file: what the Hub knows of files that are not LFS."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def differences(expected: Mapping[str, Digest], found: Mapping[str, Digest]) -> dict[str, str]:
    """Return for each file that is not as expected what is wrong with it."""
    wrong = dict.fromkeys(expected.keys() - found.keys(), "is missing")
    wrong |= dict.fromkeys(found.keys() - expected.keys(), "was not there")
    for name in expected.keys() & found.keys():
        if expected[name].size != found[name].size:
            wrong[name] = f"has {found[name].size:,} bytes, not {expected[name].size:,}"
        elif expected[name].sha256 != found[name].sha256:
            wrong[name] = f"has the SHA-256 {found[name].sha256[:12]}…, not {expected[name].sha256[:12]}…"
    return dict(sorted(wrong.items()))


def content_of(files: Mapping[str, Digest]) -> str:
    """Return one SHA-256 for files by their names."""
    rows = sorted((name, digest.sha256) for name, digest in files.items())
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def key_of(files: Mapping[str, Digest]) -> str:
    """Return the name of a folder of MEDVLLM_HOME that holds these files, or what was made of them."""
    return content_of(files)[:40]


def described(flaws: Mapping[str, str]) -> str:
    """Return what is wrong with which files as a message says it, three files at most."""
    more = f" and {len(flaws) - 3} more" if len(flaws) > 3 else ""
    return ", ".join(f"{name} {flaw}" for name, flaw in list(flaws.items())[:3]) + more


def _hash(file: Path, advance: Callable[[int], None]) -> tuple[Stamp, str]:
    """Return a file's stamp and SHA-256; SourceError when somebody writes to it meanwhile."""
    sha256 = hashlib.sha256()
    before = stamp(file)
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                sha256.update(chunk)
                advance(len(chunk))
    except OSError as error:
        raise unusable(error, file) from error
    after = stamp(file)
    if before != after:
        raise SourceError(f"{file} changed while it was read.\nTry again when nothing writes to it.", path=str(file))
    return after, sha256.hexdigest()
