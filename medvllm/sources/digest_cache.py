"""What this machine has seen: commits of branches, digests of files, sizes in memory. In `MEDVLLM_HOME/digests.db`."""

import logging
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.files import is_trusted, make_own, make_own_file
from medvllm.forking import Lock
from medvllm.sources.fingerprint import Stamp

logger = logging.getLogger(__name__)

_using = Lock(rest_s=6)  # SQLite has locks of its own, which a child that is forked inside would find taken

_TABLES = """
CREATE TABLE IF NOT EXISTS digests (
    device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT NOT NULL,
    PRIMARY KEY (device, inode)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS weights (what TEXT PRIMARY KEY, size_bytes INTEGER, load_s REAL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (
    endpoint TEXT, repo TEXT, revision TEXT, commit_id TEXT NOT NULL, PRIMARY KEY (endpoint, repo, revision)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listings (
    endpoint TEXT, repo TEXT, commit_id TEXT, sha256 TEXT NOT NULL, PRIMARY KEY (endpoint, repo, commit_id)
) WITHOUT ROWID;
"""


_WAIT_S = 0.5  # for a process that writes to it: each write takes milliseconds
_REST_S = 60.0  # in which nothing more is asked of one that somebody holds: a load is not to wait for it twice
_BROKEN = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)  # the last: tables of other columns


class DigestCache:
    """A memory that only saves work: without it (a read-only home, a damaged file), everything is looked up anew.

    A process remembers for itself what it has asked, so that a branch cannot move between two of its loads.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._commits: dict[tuple[str, str, str], str] = {}
        self._digests: dict[tuple[int, int], tuple[Stamp, str]] = {}
        self._weights: dict[str, tuple[int, float]] = {}
        self._listings: dict[tuple[str, str, str], str] = {}
        self._rests_until = 0.0

    def commit(self, endpoint: str, repo: str, revision: str) -> str | None:
        """Return the commit that a branch or tag had when it was first asked for, or None."""
        key = (endpoint, repo, revision)
        if key not in self._commits:
            query = "SELECT commit_id FROM commits WHERE (endpoint, repo, revision) = (?, ?, ?)"
            for (found,) in self._run(query, key):
                self._commits.setdefault(key, found)
        return self._commits.get(key)

    def keep_commit(self, endpoint: str, repo: str, revision: str, commit: str) -> None:
        """Remember what a branch or tag points to, in place of what was known."""
        self._commits[endpoint, repo, revision] = commit
        self._run("INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?)", (endpoint, repo, revision, commit))

    def listing(self, endpoint: str, repo: str, commit: str) -> str | None:
        """Return the SHA-256 of the list of a commit's files, as the Hub gave it to this machine, or None."""
        key = (endpoint, repo, commit)
        if key not in self._listings:
            for (sha256,) in self._run(
                "SELECT sha256 FROM listings WHERE (endpoint, repo, commit_id) = (?, ?, ?)", key
            ):
                self._listings.setdefault(key, sha256)
        return self._listings.get(key)

    def keep_listing(self, endpoint: str, repo: str, commit: str, sha256: str) -> None:
        """Remember the list of a commit's files that the Hub gave."""
        self._listings[endpoint, repo, commit] = sha256
        self._run("INSERT OR REPLACE INTO listings VALUES (?, ?, ?, ?)", (endpoint, repo, commit, sha256))

    def digests(self, stamps: Iterable[Stamp]) -> dict[Stamp, str]:
        """Return the SHA-256 of those files that have not changed since they were hashed, by stamp."""
        asked = list(stamps)
        query = "SELECT size, mtime_ns, ctime_ns, sha256 FROM digests WHERE (device, inode) = (?, ?)"
        new = [stamp[:2] for stamp in asked if stamp[:2] not in self._digests]
        for file, rows in zip(new, self._run_all(query, new), strict=False):
            for size, modified, changed, sha256 in rows:
                self._digests.setdefault(file, ((*file, size, modified, changed), sha256))
        known = ((stamp, self._digests.get(stamp[:2])) for stamp in asked)
        return {stamp: row[1] for stamp, row in known if row is not None and row[0] == stamp}

    def keep_digests(self, digests: Mapping[Stamp, str]) -> None:
        """Remember the SHA-256 of files as they stand."""
        for stamp, sha256 in digests.items():
            self._digests[stamp[:2]] = stamp, sha256
        rows = [(*stamp, sha256) for stamp, sha256 in digests.items()]
        self._run_all("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", rows)

    def memory_estimate(self, what: str) -> tuple[int, float] | None:
        """Return the bytes and seconds that the last load of `what` took, or None."""
        if what not in self._weights:
            for size_bytes, load_s in self._run("SELECT size_bytes, load_s FROM weights WHERE what = ?", (what,)):
                self._weights.setdefault(what, (size_bytes, load_s))
        return self._weights.get(what)

    def keep_memory_estimate(self, what: str, size_bytes: int, load_s: float) -> None:
        """Remember what a load took; on disk only when its size is news."""
        known = self._weights.get(what)
        self._weights[what] = size_bytes, load_s
        if known is None or known[0] != size_bytes:
            self._run("INSERT OR REPLACE INTO weights VALUES (?, ?, ?)", (what, size_bytes, load_s))

    def _run(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        return next(iter(self._run_all(statement, [values])), [])

    def _run_all(self, statement: str, rows: Sequence[tuple[object, ...]]) -> list[list[Any]]:
        """Run a statement with each row of values in turn; nothing comes of it where the file cannot be used."""
        if not rows or time.monotonic() < self._rests_until:
            return []
        try:
            with _using, self._open() as connection, connection:
                connection.execute("BEGIN")
                return [connection.execute(statement, values).fetchall() for values in rows]
        except (sqlite3.Error, OSError, OverflowError) as error:
            logger.debug("nothing is remembered in %s: %s", self._file, error)
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                self._rests_until = time.monotonic() + _REST_S
            elif code in _BROKEN:
                self._remove()
            return []

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        make_own(self._file.parent)
        make_own_file(self._file)
        if not stat.S_ISREG(self._file.stat().st_mode):
            raise OSError("it is no file")
        if not is_trusted(self._file):  # a digest in it spares hashing: nobody else is to write one there
            raise PermissionError("others may write to it")
        with closing(sqlite3.connect(self._file, timeout=_WAIT_S, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(_TABLES)
            yield connection

    def _remove(self) -> None:
        """Remove a damaged database, and its journal, so that the next call begins a new one."""
        with suppress(OSError):
            for ending in ("-journal", "-wal", "-shm", ""):
                self._file.with_name(f"{self._file.name}{ending}").unlink(missing_ok=True)


@cache
def _digest_cache(file: Path) -> DigestCache:
    return DigestCache(file)


def digest_cache() -> DigestCache:
    """Return the digest cache of the home folder that is set now."""
    return _digest_cache(settings.HOME() / "digests.db")
