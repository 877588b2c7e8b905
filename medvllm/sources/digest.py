"""Sizes and SHA-256 of files. A file is hashed once, and the digest is remembered until the file changes."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from medvllm import progress
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.fingerprint import Fingerprint, Stamp, read_stamp
from medvllm.sources.hashing import hash_each


@dataclass(frozen=True)
class Digest:
    """The size of a file in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def digest_files(folder: Path, names: Iterable[str], *, fresh: bool = False) -> dict[str, Digest]:
    """Return the digests of a folder's files, by name.

    Args:
        folder: The folder.
        names: The paths of the files in it.
        fresh: Whether to hash files again that have not changed since they were hashed.

    Raises:
        IncompleteSnapshotError: A file does not exist.
        SourceError: A file cannot be read, or changed while it was read.
    """
    return hash_files(folder, names, fresh=fresh)[0]


def hash_files(folder: Path, names: Iterable[str], *, fresh: bool = False) -> tuple[dict[str, Digest], Fingerprint]:
    """Return what `digest_files` does, and the fingerprint that the files had when they were hashed."""
    stamps = {name: read_stamp(folder / name) for name in sorted(names)}
    remembered = {} if fresh else digest_cache().digests(stamps.values())
    known = {name: remembered.get(stamp) for name, stamp in stamps.items()}
    total = sum(stamps[name][2] for name, sha256 in known.items() if sha256 is None)
    found: dict[str, Digest] = {}
    settled: dict[Stamp, str] = {}
    with progress.track_bytes("Checking digests", total) as advance:
        unknown = {folder / name: stamps[name][2] for name, sha256 in known.items() if sha256 is None}
        hashed = hash_each(unknown, advance)
        for name, sha256 in known.items():
            if sha256 is None:
                stamps[name], sha256, is_settled = hashed[folder / name]
                if is_settled:
                    settled[stamps[name]] = sha256
            found[name] = Digest(stamps[name][2], sha256)
    digest_cache().keep_digests(settled)
    return found, Fingerprint.from_stamps(folder, stamps)


def prefetch_digests(folder: Path, names: Iterable[str]) -> None:
    """Read what is remembered about a folder's files at once. Later calls then find it in memory."""
    digest_cache().digests([read_stamp(folder / name) for name in names if (folder / name).is_file()])


def git_oid(file: Path) -> str:
    """Return the SHA-1 by which git names a file's content. The Hub lists it for files that are not in LFS."""
    content = file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def find_differences(expected: Mapping[str, Digest], found: Mapping[str, Digest]) -> dict[str, str]:
    """Return what is wrong with each file that is not as expected, by name."""
    wrong = dict.fromkeys(expected.keys() - found.keys(), "is missing")
    wrong |= dict.fromkeys(found.keys() - expected.keys(), "was not there")
    for name in expected.keys() & found.keys():
        if expected[name].size != found[name].size:
            wrong[name] = f"has {found[name].size:,} bytes, not {expected[name].size:,}"
        elif expected[name].sha256 != found[name].sha256:
            wrong[name] = f"has the SHA-256 {found[name].sha256[:12]}…, not {expected[name].sha256[:12]}…"
    return dict(sorted(wrong.items()))


def digest_content(files: Mapping[str, Digest]) -> str:
    """Return one SHA-256 for files and their names."""
    rows = sorted((name, digest.sha256) for name, digest in files.items())
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def folder_key(files: Mapping[str, Digest]) -> str:
    """Return the name of the folder in MEDVLLM_HOME for these files, or for what is made of them."""
    return digest_content(files)[:40]


def describe_flaws(flaws: Mapping[str, str]) -> str:
    """Return what is wrong with which files, for a message. At most three files are named."""
    more = f" and {len(flaws) - 3} more" if len(flaws) > 3 else ""
    return ", ".join(f"{name} {flaw}" for name, flaw in list(flaws.items())[:3]) + more
