"""A repository on the Hub, through huggingface_hub and its cache; files are checked against the commit's listing."""

import errno
import functools
import glob
import hashlib
import json
import logging
import os
import re
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from medvllm import settings
from medvllm.errors import (
    DigestMismatchError,
    GatedModelError,
    HubUnreachableError,
    IncompleteSnapshotError,
    MedVLLMError,
    ModelNameError,
    ModelNotFoundError,
    SnapshotNotFoundError,
    SourceError,
)
from medvllm.file_lock import file_lock
from medvllm.files import chmod, common_mode, make_own, place, point, write_whole
from medvllm.names import is_commit
from medvllm.progress import is_terminal
from medvllm.sources.digest import Digest, described, digests, git_oid, hashed
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.edge import unusable
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.layout import Layout, decide, present
from medvllm.sources.provenance import origin
from medvllm.sources.snapshot import Snapshot, read_json

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # git's SHA-1, or SHA-256
_WAITS_S = (0.5, 1.0, 2.0)  # between our tries; huggingface_hub retries some faults by itself, and others not at all
_PATIENCE_S = 30.0  # no further try after this long
_LONGEST_WAIT_S = 60.0  # that a Hub may ask for with Retry-After
_OFFLINE = "The Hub is not asked: HF_HUB_OFFLINE is set."
_ROUNDS = 2  # a file that came damaged is fetched once more


def resolve(
    repo: str, commit: str, *, code: bool = False, extra: Sequence[str] = (), is_locked: bool = False
) -> Snapshot:
    """Return the snapshot of `repo` at a commit, from the cache when it is there.

    Only for what the cache lacks is it written to. Without the list of the commit's files, which other tools do not
    keep, the Hub is asked for it; where it does not answer, what is there is taken as it is, and a warning says so.

    Args:
        repo: The repository's id.
        commit: The commit, in full.
        code: Whether its Python modules belong to the snapshot: code is never run without the list.
        extra: Globs for further files that belong to it.
        is_locked: Whether the caller compares every file with a lock, so that no warning is due.

    Raises:
        DigestMismatchError: A file is not what the commit's listing says, and the Hub gave nothing better.
    """
    wanted = _Wanted(repo, commit, code, tuple(extra))
    cached = _inspect(wanted)
    if cached.is_whole and not cached.is_listed:
        reason = _learnt(repo, commit)
        if reason is not None and code:
            raise cached.error(reason)
        if reason is not None:
            if not is_locked:
                logger.warning("%s", cached.doubt(reason))
            return cached.snapshot()
        cached = _inspect(wanted)
    if not (cached.is_whole and cached.is_listed):
        return _fetch(repo, commit, wanted)
    return cached.snapshot()


def local(repo: str, commit: str, *, code: bool = False, extra: Sequence[str] = ()) -> Snapshot:
    """Return what the cache holds of a snapshot now, every file hashed again; the Hub is not asked."""
    return _inspect(_Wanted(repo, commit, code, tuple(extra)), fresh=True).snapshot()


def commit_of(repo: str, revision: str | None) -> str:
    """Return the commit that is meant; a branch or tag is asked for once, and what it was is kept."""
    if is_commit(revision):
        return revision
    return digest_cache().commit(endpoint(), repo, revision or "main") or refreshed(repo, revision)


def refreshed(repo: str, revision: str | None) -> str:
    """Ask the Hub what a branch or tag points to now, keep it and return it; a commit stands for itself."""
    if is_commit(revision):
        return revision
    commit = _commit(repo, revision or "main")
    digest_cache().keep_commit(endpoint(), repo, revision or "main", commit)
    return commit


def listing_file(repo: str, commit: str) -> Path:
    """Return the file in which the cache keeps a commit's listing, or raise IncompleteSnapshotError."""
    if _listing(repo, commit) is None:
        raise IncompleteSnapshotError(
            f"The listing of {repo!r} at {commit[:7]} is not in the Hub's cache.\n"
            f"Where the Hub answers: medvllm pull {repo}",
            repo=repo,
            commit=commit,
        )
    return next(file for file in _listing_paths(repo, commit) if _read_quietly(file) is not None)


def land(repo: str, commit: str, branch: str | None, files: Mapping[str, Path], listing: Path) -> None:
    """Put a commit's files into the Hub's cache, as a download would have left them, and remember its branch.

    DigestMismatchError: they are not the files of the commit's listing; the cache is then as it was.
    """
    path = folder_of(repo, commit)
    repository = path.parents[1]
    locks = repository.parent / ".locks" / repository.name
    listed = _listing(repo, commit) or _read_listing(listing)
    flaws = {name: _flaw(file, *listed.get(name, (0, ""))) for name, file in files.items()}

    def read(name: str, kind: type) -> Any:
        if name not in files:
            raise _NotHere(name)
        return read_json(files[name], kind)

    try:
        due: Sequence[str] = decide(path, listed, read).files
    except _NotHere as error:
        due = error.args
    flaws |= {name: "is missing" for name in due if name not in files}
    if wrong := {name: flaw for name, flaw in flaws.items() if flaw}:
        raise DigestMismatchError(
            f"The files are not those of {repo!r} at {commit[:7]}: {described(wrong)}.",
            repo=repo,
            commit=commit,
            files=tuple(wrong),
        )
    for folder in (path, repository / "blobs", repository / "trees"):
        folder.mkdir(parents=True, exist_ok=True)
    with file_lock(locks / "medvllm.lock", setting="HF_HOME", private=False):
        # First: by the listing, a snapshot that an import has left half-made is known for one.
        if _listing(repo, commit) is None:
            place(listing, _listing_paths(repo, commit)[0])
        for name, file in files.items():
            blob, target = repository / "blobs" / listed[name][1], path / name
            place(file, blob)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not point(target, os.path.relpath(blob, target.parent)):
                blob.replace(target)  # as huggingface_hub has it where there are no links
    if branch is not None:
        digest_cache().keep_commit(endpoint(), repo, branch, commit)


def endpoint() -> str:
    """Return the Hub's address as it may be shown and kept: without a password."""
    return settings.without_password(_address())


def _address() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def check_reachable() -> float:
    """Return the seconds that a connection to the Hub took, or raise HubUnreachableError.

    huggingface_hub itself tries for 23 s, for each file, before it gives up.
    """
    url = urlsplit(_address())
    host = url.hostname or ""
    proxy = getproxies().get(url.scheme)
    if proxy and not proxy_bypass(host):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    start = time.perf_counter()
    try:
        socket.create_connection((url.hostname or host, port), settings.HUB_TIMEOUT()).close()
    except OSError as error:
        raise HubUnreachableError(f"The Hub at {endpoint()} does not answer: {error}.", endpoint=endpoint()) from error
    return time.perf_counter() - start


def _translated(call: Callable[P, R]) -> Callable[P, R]:
    """Give errors of huggingface_hub and its HTTP client as ours; the first argument is the repository."""

    @functools.wraps(call)
    def translating(*args: P.args, **kwargs: P.kwargs) -> R:
        import httpx2
        from huggingface_hub import constants
        from huggingface_hub import errors as hub

        repo, revision = args[0], args[1]
        facts = {"repo": repo, "revision": revision}
        try:
            return call(*args, **kwargs)
        except MedVLLMError:
            raise
        except hub.GatedRepoError as error:
            raise GatedModelError(
                f"Model {repo!r} is gated: its owners ask for an agreement first.\n"
                f"Accept it at {endpoint()}/{repo}, then: export HF_TOKEN=…",
                **facts,
            ) from error
        except hub.RepositoryNotFoundError as error:
            raise ModelNotFoundError(
                f"There is no repository {repo!r} on the Hub at {endpoint()}.\n"
                "List the registered models with: medvllm list",
                **facts,
            ) from error
        except hub.RevisionNotFoundError as error:
            raise SnapshotNotFoundError(f"Model {repo!r} has no revision {revision!r} on the Hub.", **facts) from error
        except hub.HFValidationError as error:
            raise ModelNameError(f"{repo!r} is not a repository's id: {error}", **facts) from error
        except (
            hub.HfHubHTTPError,
            hub.OfflineModeIsEnabled,
            hub.LocalEntryNotFoundError,
            hub.RevisionResolutionError,
            httpx2.HTTPError,
        ) as error:
            status = getattr(_response(error), "status_code", None)
            if status in (401, 403):
                raise GatedModelError(
                    f"The Hub refuses access to {repo!r} ({status}).\nSet a token that may read it: export HF_TOKEN=…",
                    **facts,
                ) from error
            reason = _OFFLINE if _is_offline() else f"The Hub did not give it. {_failure(error)}"
            raise _absent(repo, revision, reason) from error
        except (OSError, EOFError) as error:
            file = getattr(error, "filename", None)
            if isinstance(error, PermissionError) and file and not Path(file).is_relative_to(constants.HF_HUB_CACHE):
                raise unusable(error) from error  # such as the file of a token
            raise SourceError(
                f"Model {repo!r} could not be stored in the Hub's cache: {error}.{_elsewhere(error)}", **facts
            ) from error

    return translating


@_translated
def _commit(repo: str, revision: str) -> str:
    """Return the commit that a branch or tag names; without a Hub, the one that the cache remembers."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError

    cause: Exception
    ask = functools.partial(HfApi().resolve_revision, repo, revision=revision)
    if _is_offline():
        return str(ask(local_files_only=True).resolved)
    try:
        known: str | None = str(ask(local_files_only=True).resolved)
    except RevisionResolutionError:
        known = None
    try:
        check_reachable()
        # huggingface_hub tries for 23 s: with a commit at hand that is long enough.
        return str((_retried(ask) if known is None else ask()).resolved)
    except HubUnreachableError as error:
        cause, reason = error, str(error)
    except (HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError, httpx2.HTTPError) as error:
        if _asked_wait(error) is None:  # it did answer
            raise
        cause, reason = error, f"The Hub did not give it. {_failure(error)}"
    except PermissionError as error:  # of a token that is another user's, or a cache
        cause, reason = error, str(unusable(error))
    if known is None:
        raise _absent(repo, revision, reason) from cause
    logger.warning("the Hub does not answer: using %r at %s, as the cache remembers it", repo, known[:7])
    return known


@dataclass(frozen=True)
class _Wanted:
    """What is asked for of a repository."""

    repo: str
    commit: str
    code: bool
    extra: tuple[str, ...]


class _NotHere(Exception):
    """A file that decides which others are needed is not in the cache, or damaged there; its argument is the file."""


def _learnt(repo: str, commit: str) -> str | None:
    """Have the Hub list a commit's files, and return None; or why it did not, or why the list cannot be kept."""
    if _is_offline():
        return _OFFLINE
    try:
        check_reachable()
    except HubUnreachableError as error:
        return str(error)
    try:
        _list(repo, commit, tries=1)
    except (SourceError, ModelNotFoundError) as error:
        return f"The Hub did not give it. {_failure(error)}"
    return None


@_translated
def _fetch(repo: str, commit: str, wanted: _Wanted) -> Snapshot:
    """Return the snapshot with what the cache lacked, or held damaged, fetched."""
    cached = _inspect(wanted)
    if _is_offline():
        raise cached.error(_OFFLINE)
    try:
        check_reachable()
    except HubUnreachableError as error:
        raise cached.error(error) from error
    repository = cached.path.parents[1]
    locks = repository.parent / ".locks" / repository.name
    # One process of ours at a time: the next finds the files there, and none removes what another has just fetched.
    with file_lock(locks / "medvllm.lock", setting="HF_HOME", private=False):
        cached = _inspect(wanted)
        if cached.is_whole and cached.is_listed:
            return cached.snapshot()
        _sweep(repository, locks)
        _list(repo, commit)  # what is wrong may be the listing
        tries: Counter[str] = Counter()
        while not ((cached := _inspect(wanted)).is_whole and cached.is_listed):
            due = [*cached.flaws, *cached.missing]
            tries.update(due)
            if not due or max(tries.values()) > _ROUNDS:
                raise cached.error("The Hub did not give all of it.")
            for name, flaw in cached.flaws.items():
                logger.warning("%s of %r at %s %s: fetching it again", name, repo, commit[:7], flaw)
                _remove(cached.path / name)
            _download(repo, commit, due)
        return cached.snapshot()


def _download(repo: str, commit: str, names: Sequence[str]) -> None:
    """Fetch files of a commit into the cache."""
    from huggingface_hub import snapshot_download

    exactly = [glob.escape(name) for name in names]
    fetch = functools.partial(
        snapshot_download, repo, revision=commit, allow_patterns=exactly, tqdm_class=_progress_bar()
    )
    _retried(fetch)
    with suppress(OSError):  # huggingface_hub gives its own list to nobody else: another user of the cache needs it
        if (listing := _listing_paths(repo, commit)[0]).stat().st_uid == os.geteuid():
            chmod(listing, common_mode())


@dataclass(frozen=True)
class _Cached:
    """What the Hub's cache holds of a commit. Without a layout, a file that decides on it is flawed or missing."""

    wanted: _Wanted
    path: Path
    layout: Layout | None
    found: dict[str, Digest]  # the files of the layout that are there
    taken: Fingerprint
    places: Fingerprint
    flaws: dict[str, str]  # file -> what is wrong with it
    missing: tuple[str, ...]
    is_listed: bool  # whether the commit's listing is there: only it tells that nothing is missing
    is_from_hub: bool  # whether this machine had it from the Hub itself

    @property
    def is_whole(self) -> bool:
        """Whether nothing is known to be missing or damaged. Without a listing, it can at least be loaded."""
        is_enough = self.is_listed or (self.layout is not None and bool(self.layout.weights))
        return self.layout is not None and not self.flaws and not self.missing and is_enough

    def doubt(self, reason: str) -> str:
        """Return what is not certain of files that no listing tells of."""
        unnamed = [name for name in self.found if not _blob_name(self.path, name)]
        more = f" and {len(unnamed) - 3} more" if len(unnamed) > 3 else ""
        return (
            f"{self.wanted.repo!r} at {self.wanted.commit[:7]} is not checked against its commit: the list of the "
            f"commit's files is not on this machine. {reason} Whether a file is missing or from another commit cannot "
            "be told" + (f", and {', '.join(unnamed[:3])}{more} cannot be checked for damage." if unnamed else ".")
        )

    def snapshot(self) -> Snapshot:
        """Return it as a snapshot; SourceError when no layout could be decided."""
        if self.layout is None:
            raise self.error("The Hub was not asked.")
        return Snapshot(
            *(self.path, self.wanted.repo, self.wanted.commit, self.layout, self.found, self.taken),
            places=self.places,
            is_listed=self.is_from_hub,
            bundle=None if self.is_from_hub else origin(self.wanted.repo, self.wanted.commit),
        )

    def error(self, reason: object) -> SourceError:
        """Return why it cannot be used."""
        repo, commit = self.wanted.repo, self.wanted.commit
        if not self.flaws:
            return _absent(repo, commit, reason)
        return DigestMismatchError(
            f"Snapshot of {repo!r} at {commit[:7]} is damaged: {described(self.flaws)}. {reason}\n"
            f"Where the Hub answers: medvllm pull {repo}",
            repo=repo,
            commit=commit,
            files=tuple(self.flaws),
        )


def _inspect(wanted: _Wanted, *, fresh: bool = False) -> _Cached:
    """Return what the cache holds of a commit, each file compared with the commit's listing before it is read."""
    repo, commit = wanted.repo, wanted.commit
    path, listing = folder_of(repo, commit), _listing(repo, commit)
    places = Fingerprint() if listing is not None else Fingerprint.of([path])
    names = present(path) if listing is None else list(listing)
    given = digest_cache().listing(endpoint(), repo, commit)

    def flaw_of(name: str, digest: Digest) -> str | None:
        size, identifier = (listing or {}).get(name) or (digest.size, _blob_name(path, name))
        return _flaw((path / name).resolve(), size, identifier, digest) if identifier else None

    def read(name: str, kind: type) -> Any:
        file = path / name
        if not file.is_file():
            raise _NotHere(name)
        if listing is not None and flaw_of(name, digests(path, [name])[name]):
            raise _NotHere(name)
        return read_json(file, kind)

    try:
        layout = decide(path, names, read, code=wanted.code, extra=wanted.extra)
        due: Sequence[str] = layout.files
    except _NotHere as error:
        layout, due = None, error.args
    there = [name for name in due if (path / name).is_file()]
    found, taken = hashed(path, there, fresh=fresh)
    flaws = {name: flaw for name, digest in found.items() if (flaw := flaw_of(name, digest))}
    if listing is not None and given is not None and given != _digest_of(listing):
        flaws[_listing_paths(repo, commit)[0].name] = "is not the list of files that the Hub gave"
    missing = tuple(name for name in due if name not in found)
    is_from_hub = listing is not None and given is not None
    return _Cached(wanted, path, layout, found, taken, places, flaws, missing, listing is not None, is_from_hub)


def _blob_name(path: Path, name: str) -> str:
    """Return the digest that the cache names a snapshot's file by; "" for one that is no link to such a blob."""
    blob = (path / name).resolve()
    return blob.name if blob.parent == (path.parents[1] / "blobs").resolve() and _DIGEST.fullmatch(blob.name) else ""


def folder_of(repo: str, commit: str) -> Path:
    """Return where the Hub's cache has, or would have, a snapshot."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    return repository / "snapshots" / commit


def _listing(repo: str, commit: str) -> dict[str, tuple[int, str]] | None:
    """Return the size and the SHA-256 or git's SHA-1 of a commit's files, as the Hub listed them, or None.

    huggingface_hub's own `get_cached_repo_tree` leaves out the SHA-256 that the file holds.
    """
    return next(filter(None, map(_read_quietly, _listing_paths(repo, commit))), None)


def _read_quietly(file: Path) -> dict[str, tuple[int, str]] | None:
    """Return the content of a listing, or None when there is none or it cannot be used."""
    try:
        return _read_listing(file)
    except IncompleteSnapshotError:  # there is none
        return None
    except SourceError as error:
        may_read = not isinstance(error.__cause__, PermissionError)
        logger.log(logging.WARNING if may_read else logging.INFO, "a list of files is left aside: %s", error)
        return None


def _listing_paths(repo: str, commit: str) -> tuple[Path, Path]:
    """Return where a commit's listing may be: in the Hub's cache, or in MEDVLLM_HOME where that cannot be written."""
    repository = folder_of(repo, commit).parents[1]
    return repository / "trees" / f"{commit}.json", settings.HOME() / "listings" / repository.name / f"{commit}.json"


def _read_listing(file: Path) -> dict[str, tuple[int, str]]:
    """Return the content of a listing: sizes, and digests that name blobs; SourceError when it is none."""
    found: dict[str, tuple[int, str]] = {}
    try:
        for name, row in read_json(file)["files"].items():
            size, identifier = row.get("lfs_size", row["size"]), row.get("lfs_sha256", row["blob_id"])
            if type(size) is not int or not isinstance(identifier, str) or not _DIGEST.fullmatch(identifier):
                raise ValueError(f"{name[:80]!r} is listed without size and digest")
            found[name] = size, identifier
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{file} is no listing of a commit's files: {str(error)[:200]}.", path=str(file)) from error
    return found


@_translated
def _list(repo: str, commit: str, tries: int = len(_WAITS_S) + 1) -> None:
    """Ask the Hub for a commit's files anew, and keep that as huggingface_hub does, or in MEDVLLM_HOME."""
    from huggingface_hub import HfApi, RepoFile

    rows = _retried(lambda: list(HfApi().list_repo_tree(repo, recursive=True, revision=commit)), tries)
    files: dict[str, dict[str, Any]] = {}
    for row in sorted((row for row in rows if isinstance(row, RepoFile)), key=lambda row: row.path):
        files[row.path] = {"size": row.size, "blob_id": row.blob_id}
        if row.lfs is not None:
            files[row.path] |= {"lfs_sha256": row.lfs.sha256, "lfs_size": row.lfs.size}
        if row.xet_hash is not None:
            files[row.path]["xet_hash"] = row.xet_hash
    content = json.dumps({"format_version": 1, "files": files}, indent=1)
    in_cache, own = _listing_paths(repo, commit)
    try:
        in_cache.parent.mkdir(parents=True, exist_ok=True)
        write_whole(in_cache, content.encode())
        kept = in_cache
    except OSError:
        make_own(own.parent)
        write_whole(own, content.encode(), private=True)
        kept = own
    digest_cache().keep_listing(endpoint(), repo, commit, _digest_of(_read_listing(kept)))


def _digest_of(listing: Mapping[str, tuple[int, str]]) -> str:
    """Return one SHA-256 for the list of a commit's files, however it is written down."""
    return hashlib.sha256(repr(sorted(listing.items())).encode()).hexdigest()


def _flaw(file: Path, size: int, identifier: str, digest: Digest | None = None) -> str | None:
    """Return what of a file is not as listed, or None; `digest` spares hashing it again."""
    if digest is None:
        digest = digests(file.parent, [file.name])[file.name]
    actual = digest.sha256 if len(identifier) == 64 else git_oid(file)
    if digest.size != size:
        return f"has {digest.size:,} bytes, not {size:,}"
    return None if actual == identifier else f"has the digest {actual[:12]}…, not {identifier[:12]}…"


def _remove(file: Path) -> None:
    """Take a file out of the cache, with the blob that it links to."""
    blob = file.resolve()
    file.unlink(missing_ok=True)
    if blob.parent.name == "blobs":
        blob.unlink(missing_ok=True)


def _sweep(repository: Path, locks: Path) -> None:
    """Remove what downloads that died have left: partial files whose lock nobody holds, and parts of listings."""
    from filelock import FileLock, Timeout

    for part in repository.glob("trees/*.tmp"):
        part.unlink(missing_ok=True)
    for partial in repository.glob("blobs/*.incomplete"):
        try:
            with FileLock(locks / f"{partial.name.partition('.')[0]}.lock", timeout=0):
                partial.unlink(missing_ok=True)
        except Timeout:
            continue


def _retried(call: Callable[[], R], tries: int = len(_WAITS_S) + 1) -> R:
    """Call until it succeeds, a few times: busy answers, resets and short bodies are often over in a moment."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError

    start = time.monotonic()
    for attempt, wait_s in enumerate(_WAITS_S[: tries - 1], 1):
        try:
            return call()
        except (HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError, httpx2.HTTPError) as error:
            asked = _asked_wait(error)
            if asked is None or time.monotonic() - start > _PATIENCE_S:
                raise
            pause = max(wait_s, min(asked, _LONGEST_WAIT_S))
            logger.info("the Hub failed (%s): try %d in %.1f s", type(error).__name__, attempt + 1, pause)
            time.sleep(pause)
        check_reachable()
    return call()


def _asked_wait(error: BaseException) -> float | None:
    """Return the seconds that the Hub asks to wait (0 when it says nothing), or None when another try is useless."""
    import httpx2

    response = _response(error)
    if response is None:
        return 0.0 if any(isinstance(cause, httpx2.TransportError) for cause in _causes(error)) else None
    if response.status_code not in (408, 429) and response.status_code < 500:
        return None
    asked = response.headers.get("Retry-After", "")
    return float(asked) if asked.isdecimal() else 0.0


def _response(error: BaseException) -> Any:
    """Return the answer of the Hub that an error comes from, or None."""
    return next((cause.response for cause in _causes(error) if getattr(cause, "response", None) is not None), None)


def _failure(error: BaseException) -> str:
    """Return what went wrong with a request, as a sentence without an address."""
    if (response := _response(error)) is not None:
        return f"It answered {response.status_code}."
    cause = list(_causes(error))[-1]
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}."
    return f"The connection failed ({type(cause).__name__})."


def _causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__


def _progress_bar() -> type[Any]:
    """Return huggingface_hub's progress bar, shown on a terminal only."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]  # public, but not listed in __all__

    class TerminalBar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": kwargs.get("disable") or not is_terminal(sys.stderr)})

    return TerminalBar


def _absent(repo: object, revision: object, reason: object) -> HubUnreachableError:
    return HubUnreachableError(
        f"Model {repo!r} at {str(revision)[:40]!r} is not on this machine. {reason}\n"
        f"Where the Hub answers: medvllm pull {repo}\n"
        "Then carry it here: medvllm export and medvllm import; or give a folder instead of the name.",
        repo=repo,
        revision=revision,
    )


def _elsewhere(error: BaseException) -> str:
    """Return the way out for a cache that cannot be written, or nothing for another fault."""
    from huggingface_hub import constants

    if getattr(error, "errno", None) not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT):
        return ""
    return (
        f"\nSee who may write there: ls -ld {constants.HF_HUB_CACHE}\n"
        "Or use a cache of your own, in a folder with room: export HF_HOME=/a/folder"
    )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
