"""What this machine remembers in `MEDVLLM_HOME/digests.db`.

These are digests of files, commits of branches, memory estimates, and verdicts on engines.
"""

import logging
import sqlite3
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from medvllm import settings
from medvllm.files import is_trusted, make_own, make_own_file
from medvllm.forking import Lock
from medvllm.sources.fingerprint import Stamp

logger = logging.getLogger(__name__)

K = TypeVar("K", bound=tuple[str, ...])

_TABLES = """
CREATE TABLE IF NOT EXISTS digests (
    device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, sha256 TEXT NOT NULL,
    PRIMARY KEY (device, inode)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS memory_estimates (
    load TEXT PRIMARY KEY, size_bytes INTEGER, load_s REAL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS commits (
    endpoint TEXT, repo TEXT, revision TEXT, commit_id TEXT NOT NULL, PRIMARY KEY (endpoint, repo, revision)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS listings (
    endpoint TEXT, repo TEXT, commit_id TEXT, sha256 TEXT NOT NULL, PRIMARY KEY (endpoint, repo, commit_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (export TEXT PRIMARY KEY, verdict TEXT NOT NULL) WITHOUT ROWID;
"""
_BUSY_TIMEOUT_S = 0.5  # to wait for another process; each of its writes takes milliseconds
_PAUSE_S = 60.0  # without the file after that, so that a load does not wait twice
_DAMAGED = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_ERROR)  # the last: tables of another shape

_lock = Lock(rest_s=6)  # SQLite has locks of its own, and a child that is forked meanwhile would find them taken


class DigestCache:
    """A memory that saves work and is never needed: without it, everything is looked up again.

    That is so for a home folder that cannot be written, and for a damaged file. A process remembers what it has looked
    up, so that a branch does not move between two of its loads.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._digests: dict[tuple[int, int], tuple[Stamp, str]] = {}  # by device and inode
        self._commits: dict[tuple[str, str, str], str] = {}
        self._listings: dict[tuple[str, str, str], str] = {}
        self._memory_estimates: dict[str, tuple[int, float]] = {}
        self._verdicts: dict[tuple[str], str] = {}
        self._paused_until = 0.0

    @property
    def is_paused(self) -> bool:
        """Whether the file is left alone for a while, because another process has kept it locked."""
        return time.monotonic() < self._paused_until

    def digests(self, stamps: Iterable[Stamp]) -> dict[Stamp, str]:
        """Return the SHA-256 of those files that have not changed since they were hashed, by stamp."""
        asked = list(stamps)
        query = "SELECT size, mtime_ns, ctime_ns, sha256 FROM digests WHERE (device, inode) = (?, ?)"
        new = [stamp[:2] for stamp in asked if stamp[:2] not in self._digests]
        for file, rows in zip(new, self._execute(query, new), strict=False):
            for size, modified, changed, sha256 in rows:
                self._digests.setdefault(file, ((*file, size, modified, changed), sha256))
        known = ((stamp, self._digests.get(stamp[:2])) for stamp in asked)
        return {stamp: row[1] for stamp, row in known if row is not None and row[0] == stamp}

    def keep_digests(self, digests: Mapping[Stamp, str]) -> None:
        """Remember the SHA-256 of files, by stamp."""
        for stamp, sha256 in digests.items():
            self._digests[stamp[:2]] = stamp, sha256
        rows = [(*stamp, sha256) for stamp, sha256 in digests.items()]
        self._execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?, ?, ?, ?)", rows)

    def commit(self, endpoint: str, repo: str, revision: str) -> str | None:
        """Return the commit of a branch or tag when it was last asked of the Hub, or None."""
        query = "SELECT commit_id FROM commits WHERE (endpoint, repo, revision) = (?, ?, ?)"
        return self._recall(self._commits, (endpoint, repo, revision), query)

    def keep_commit(self, endpoint: str, repo: str, revision: str, commit: str) -> None:
        """Remember the commit of a branch or tag. It replaces an earlier one."""
        self._commits[endpoint, repo, revision] = commit
        self._execute_once("INSERT OR REPLACE INTO commits VALUES (?, ?, ?, ?)", (endpoint, repo, revision, commit))

    def listing(self, endpoint: str, repo: str, commit: str) -> str | None:
        """Return the SHA-256 of a commit's listing as the Hub gave it to this machine, or None."""
        query = "SELECT sha256 FROM listings WHERE (endpoint, repo, commit_id) = (?, ?, ?)"
        return self._recall(self._listings, (endpoint, repo, commit), query)

    def keep_listing(self, endpoint: str, repo: str, commit: str, sha256: str) -> None:
        """Remember the SHA-256 of a commit's listing that the Hub gave."""
        self._listings[endpoint, repo, commit] = sha256
        self._execute_once("INSERT OR REPLACE INTO listings VALUES (?, ?, ?, ?)", (endpoint, repo, commit, sha256))

    def memory_estimate(self, load: str) -> tuple[int, float] | None:
        """Return the bytes in memory and the seconds that the last such load took, or None."""
        query = "SELECT size_bytes, load_s FROM memory_estimates WHERE load = ?"
        for size_bytes, load_s in () if load in self._memory_estimates else self._execute_once(query, (load,)):
            self._memory_estimates.setdefault(load, (size_bytes, load_s))
        return self._memory_estimates.get(load)

    def keep_memory_estimate(self, load: str, size_bytes: int, load_s: float) -> None:
        """Remember what a load took. It is written to the disk only if the size is new."""
        known = self._memory_estimates.get(load)
        self._memory_estimates[load] = size_bytes, load_s
        if known is None or known[0] != size_bytes:
            self._execute_once("INSERT OR REPLACE INTO memory_estimates VALUES (?, ?, ?)", (load, size_bytes, load_s))

    def verdict(self, export: str) -> str | None:
        """Return what a comparison of an engine with torch found for an export, as JSON, or None."""
        return self._recall(self._verdicts, (export,), "SELECT verdict FROM verdicts WHERE export = ?")

    def keep_verdict(self, export: str, verdict: str) -> None:
        """Remember what a comparison of an engine with torch found, as JSON. It replaces an earlier one."""
        self._verdicts[export,] = verdict
        self._execute_once("INSERT OR REPLACE INTO verdicts VALUES (?, ?)", (export, verdict))

    def _recall(self, remembered: dict[K, str], key: K, query: str) -> str | None:
        """Return what a key stands for: from this process's memory or, the first time, from the file."""
        for (value,) in () if key in remembered else self._execute_once(query, key):
            remembered.setdefault(key, value)
        return remembered.get(key)

    def _execute_once(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        return next(iter(self._execute(statement, [values])), [])

    def _execute(self, statement: str, rows: Sequence[tuple[object, ...]]) -> list[list[Any]]:
        """Run a statement for each row of values, in one transaction. Return nothing if the file cannot be used."""
        if not rows or self.is_paused:
            return []
        try:
            with _lock, self._connect() as connection, connection:
                connection.execute("BEGIN")
                return [connection.execute(statement, values).fetchall() for values in rows]
        except (sqlite3.Error, OSError, OverflowError) as error:
            logger.debug("%s is not used: %s", self._file, error)
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                self._paused_until = time.monotonic() + _PAUSE_S
            elif code in _DAMAGED:
                self._remove_file()
            return []

    @contextmanager
    def _connect(self) -> Iterator[sqlite3.Connection]:
        make_own(self._file.parent)
        make_own_file(self._file)
        if not stat.S_ISREG(self._file.stat().st_mode):
            raise OSError("it is not a plain file")
        if not is_trusted(self._file):  # a digest in it makes hashing unnecessary, so nobody else may write one
            raise PermissionError("other users may write to it")
        with closing(sqlite3.connect(self._file, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = NORMAL")
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
            if tables < _TABLES.count("CREATE"):
                connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} COMMIT;")
            yield connection

    def _remove_file(self) -> None:
        """Remove a damaged file and its journals, which would damage the next one too."""
        with suppress(OSError):
            for ending in ("-journal", "-wal", "-shm", ""):
                self._file.with_name(f"{self._file.name}{ending}").unlink(missing_ok=True)


@cache
def open_digest_cache(file: Path) -> DigestCache:
    """Return this process's digest cache for a file."""
    return DigestCache(file)


def digest_cache() -> DigestCache:
    """Return the digest cache of the home folder that is set now."""
    return open_digest_cache(settings.HOME() / "digests.db")
