"""A commit of a repository as a verified snapshot, fetched if the Hub's cache lacks it."""

import functools
import glob
import logging
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medvllm.errors import HubUnreachableError, ModelNotFoundError, SourceError
from medvllm.file_lock import file_lock
from medvllm.files import chmod, common_mode
from medvllm.progress import is_terminal
from medvllm.sources.hub.errors import map_hub_errors
from medvllm.sources.hub.inspection import CachedCommit, Request, inspect_cache
from medvllm.sources.hub.listing import fetch_listing
from medvllm.sources.hub.network import OFFLINE, call_with_retries, check_reachable, is_offline
from medvllm.sources.hub.paths import LOCK_NAME, blobs_folder, listing_paths, locks_folder
from medvllm.sources.hub.responses import describe_failure
from medvllm.sources.snapshot import Snapshot

logger = logging.getLogger(__name__)

_MAX_ROUNDS = 2  # a file that arrives damaged is fetched once more


def resolve_snapshot(request: Request, *, is_locked: bool = False) -> Snapshot:
    """Return a commit's snapshot, from the cache if it is there.

    The cache is written only for what it lacks. Other tools keep no listing of the commit's files; it is then asked of
    the Hub. If the Hub does not answer, the files are used as they are, and a warning is logged.

    Args:
        request: The repository, the commit and the files.
        is_locked: Whether the caller compares every file with a lock, so that no warning is needed.

    Raises:
        DigestMismatchError: A file differs from the commit's listing, and the Hub gave nothing better.
        HubUnreachableError: The files are not on this machine, and the Hub does not answer.
    """
    cached = inspect_cache(request)
    if cached.is_whole and not cached.is_listed:
        reason = _try_to_list(request)
        if reason is not None and request.code:  # code never runs without the listing
            raise cached.to_error(reason)
        if reason is not None:
            if not is_locked:
                logger.warning("%s", cached.warning(reason))
            return cached.to_snapshot()
        cached = inspect_cache(request)
    if not _is_complete(cached):
        return _fetch_snapshot(request)
    return cached.to_snapshot()


def inspect_snapshot(request: Request) -> Snapshot:
    """Return what the cache holds of a commit now. Every file is hashed again, and the Hub is not asked."""
    return inspect_cache(request, fresh=True).to_snapshot()


def _is_complete(cached: CachedCommit) -> bool:
    return cached.is_whole and cached.is_listed


def _try_to_list(request: Request) -> str | None:
    """Fetch the commit's listing. Return None, or the reason why there is none."""
    if is_offline():
        return OFFLINE
    try:
        check_reachable()
    except HubUnreachableError as error:
        return str(error)
    try:
        fetch_listing(request.repo, request.commit, max_tries=1)
    except (SourceError, ModelNotFoundError) as error:
        return f"The request failed. {describe_failure(error)}"
    return None


def _fetch_snapshot(request: Request) -> Snapshot:
    """Return the snapshot after fetching what the cache lacks or holds damaged."""
    repo, commit = request.repo, request.commit
    with map_hub_errors(repo, commit):
        cached = inspect_cache(request)
        if is_offline():
            raise cached.to_error(OFFLINE)
        try:
            check_reachable()
        except HubUnreachableError as error:
            raise cached.to_error(error) from error
        # One process at a time: the next one finds the files, and none removes what another has just fetched.
        with file_lock(locks_folder(repo) / LOCK_NAME, setting="HF_HOME", private=False):
            cached = inspect_cache(request)
            if _is_complete(cached):
                return cached.to_snapshot()
            _remove_leftovers(repo)
            fetch_listing(repo, commit)  # the listing itself may be the damaged file
            return _fetch_files(request)


def _fetch_files(request: Request) -> Snapshot:
    """Fetch files until the snapshot is complete. Which files are needed may show only after the first ones."""
    repo, commit = request.repo, request.commit
    tries: Counter[str] = Counter()
    while not _is_complete(cached := inspect_cache(request)):
        needed = [*cached.flaws, *cached.missing]
        tries.update(needed)
        if not needed or max(tries.values()) > _MAX_ROUNDS:
            raise cached.to_error("The Hub did not give all of its files.")
        for name, flaw in cached.flaws.items():
            logger.warning("%s of %r at %s %s: fetching it again", name, repo, commit[:7], flaw)
            _remove_file(cached.path / name)
        _download(repo, commit, needed)
    return cached.to_snapshot()


def _download(repo: str, commit: str, names: Sequence[str]) -> None:
    """Fetch files of a commit into the cache."""
    from huggingface_hub import snapshot_download

    patterns = [glob.escape(name) for name in names]
    call_with_retries(
        functools.partial(snapshot_download, repo, revision=commit, allow_patterns=patterns, tqdm_class=_progress_bar())
    )
    with suppress(OSError):  # huggingface_hub makes its listing private, but other users of the cache need it
        if (listing := listing_paths(repo, commit)[0]).stat().st_uid == os.geteuid():
            chmod(listing, common_mode())


def _remove_file(file: Path) -> None:
    """Remove a file from the cache, together with the blob that it links to."""
    blob = file.resolve()
    file.unlink(missing_ok=True)
    if blob.parent.name == "blobs":
        blob.unlink(missing_ok=True)


def _remove_leftovers(repo: str) -> None:
    """Remove what interrupted downloads left: partial files whose lock nobody holds, and parts of listings."""
    from filelock import FileLock, Timeout

    blobs = blobs_folder(repo)
    for part in blobs.parent.glob("trees/*.tmp"):
        part.unlink(missing_ok=True)
    for partial in blobs.glob("*.incomplete"):
        try:
            with FileLock(locks_folder(repo) / f"{partial.name.partition('.')[0]}.lock", timeout=0):
                partial.unlink(missing_ok=True)
        except Timeout:
            continue


def _progress_bar() -> type[Any]:
    """Return huggingface_hub's progress bar, shown on a terminal only."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]  # public, but not listed in __all__

    class TerminalBar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": kwargs.get("disable") or not is_terminal(sys.stderr)})

    return TerminalBar
