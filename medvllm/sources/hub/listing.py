"""The listing of a commit: the size and digest of each of its files, as the Hub gives it."""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from medvllm.errors import IncompleteSnapshotError, SourceError
from medvllm.files import make_own, write_whole
from medvllm.sources.digest import Digest, digest_files, git_oid
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.hub.errors import map_hub_errors
from medvllm.sources.hub.network import MAX_TRIES, call_with_retries, endpoint
from medvllm.sources.hub.paths import listing_paths
from medvllm.sources.json_files import read_json

logger = logging.getLogger(__name__)

_OID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class ListedFile(NamedTuple):
    """A file of a commit, as the Hub lists it."""

    size: int  # bytes
    oid: str  # the SHA-256 of a file in LFS, else git's SHA-1; the cache names the blob after it


Listing = Mapping[str, ListedFile]


def read_listing(repo: str, commit: str) -> Listing | None:
    """Return a commit's listing from this disk, or None if there is none that can be read.

    huggingface_hub's own `get_cached_repo_tree` drops the SHA-256 that its file holds.
    """
    return next(filter(None, map(_read_or_none, listing_paths(repo, commit))), None)


def listing_file(repo: str, commit: str) -> Path:
    """Return the file that holds a commit's listing.

    Raises:
        IncompleteSnapshotError: This machine has no listing of the commit.
    """
    for file in listing_paths(repo, commit):
        if _read_or_none(file) is not None:
            return file
    raise IncompleteSnapshotError(
        f"The listing of {repo!r} at {commit[:7]} is not in the Hub's cache.\n"
        f"Where the Hub answers, run: medvllm pull {repo}",
        repo=repo,
        commit=commit,
    )


def parse_listing(file: Path) -> Listing:
    """Return the content of a listing's file.

    Raises:
        SourceError: The file is not a listing.
    """
    found: dict[str, ListedFile] = {}
    try:
        for name, row in read_json(file)["files"].items():
            size, oid = row.get("lfs_size", row["size"]), row.get("lfs_sha256", row["blob_id"])
            if type(size) is not int or not isinstance(oid, str) or not is_oid(oid):
                raise ValueError(f"{name[:80]!r} has no size and digest")
            found[name] = ListedFile(size, oid)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(
            f"{file} is not a listing of a commit's files: {str(error)[:200]}.", path=str(file)
        ) from error
    return found


def fetch_listing(repo: str, commit: str, max_tries: int = MAX_TRIES) -> None:
    """Ask the Hub for a commit's files, and write the listing as huggingface_hub does.

    A cache that cannot be written gets none: the listing then goes to MEDVLLM_HOME.
    """
    from huggingface_hub import HfApi, RepoFile

    with map_hub_errors(repo, commit):
        rows = call_with_retries(lambda: list(HfApi().list_repo_tree(repo, recursive=True, revision=commit)), max_tries)
        files: dict[str, dict[str, Any]] = {}
        for row in sorted((row for row in rows if isinstance(row, RepoFile)), key=lambda row: row.path):
            files[row.path] = {"size": row.size, "blob_id": row.blob_id}
            if row.lfs is not None:
                files[row.path] |= {"lfs_sha256": row.lfs.sha256, "lfs_size": row.lfs.size}
            if row.xet_hash is not None:
                files[row.path]["xet_hash"] = row.xet_hash
        content = json.dumps({"format_version": 1, "files": files}, indent=1).encode()
        in_cache, in_home = listing_paths(repo, commit)
        try:
            in_cache.parent.mkdir(parents=True, exist_ok=True)
            write_whole(in_cache, content)
            written = in_cache
        except OSError:
            make_own(in_home.parent)
            write_whole(in_home, content, private=True)
            written = in_home
        digest_cache().keep_listing(endpoint(), repo, commit, digest_listing(parse_listing(written)))


def digest_listing(listing: Listing) -> str:
    """Return one SHA-256 for a listing, independent of how it is written down."""
    rows = sorted((name, tuple(listed)) for name, listed in listing.items())
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def find_flaw(file: Path, listed: ListedFile, digest: Digest | None = None) -> str | None:
    """Return how a file differs from the listing, or None. `digest` is the file's, if it is known already."""
    if digest is None:
        digest = digest_files(file.parent, [file.name])[file.name]
    actual = digest.sha256 if len(listed.oid) == 64 else git_oid(file)
    if digest.size != listed.size:
        return f"has {digest.size:,} bytes, not {listed.size:,}"
    return None if actual == listed.oid else f"has the digest {actual[:12]}…, not {listed.oid[:12]}…"


def is_oid(name: str) -> bool:
    """Return whether a name is a git SHA-1 or a SHA-256, as blobs are named."""
    return _OID.fullmatch(name) is not None


def _read_or_none(file: Path) -> Listing | None:
    try:
        return parse_listing(file)
    except IncompleteSnapshotError:  # there is no such file
        return None
    except SourceError as error:
        may_read = not isinstance(error.__cause__, PermissionError)
        logger.log(logging.WARNING if may_read else logging.INFO, "ignoring a list of files: %s", error)
        return None
