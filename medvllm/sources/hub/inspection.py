"""What the Hub's cache holds of a commit: which files a load needs, which are missing, which are damaged."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvllm.errors import DigestMismatchError, SourceError
from medvllm.sources.digest import Digest, describe_flaws, digest_files, hash_files, prefetch_digests
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.hub.errors import not_on_this_machine
from medvllm.sources.hub.listing import ListedFile, digest_listing, find_flaw, is_oid, read_listing
from medvllm.sources.hub.network import endpoint
from medvllm.sources.hub.paths import blobs_folder, listing_paths, snapshot_folder
from medvllm.sources.imported_commits import bundle_of
from medvllm.sources.json_files import read_json
from medvllm.sources.layout import Layout, decide_layout, list_files
from medvllm.sources.snapshot import Snapshot


@dataclass(frozen=True)
class Request:
    """Which files of a repository are asked for.

    Attributes:
        repo: The repository's id.
        commit: The commit, with all 40 digits.
        code: Whether the repository's Python modules are part of the model.
        extra: Globs for further files of the model.
        adapter: Whether the model is an adapter.
    """

    repo: str
    commit: str
    code: bool = False
    extra: tuple[str, ...] = ()
    adapter: bool = False


class MissingFile(Exception):
    """A file that decides which others are needed is missing or damaged. The argument is its name."""


@dataclass(frozen=True)
class CachedCommit:
    """What the Hub's cache holds of a commit. `layout` is None if a file that decides it is missing or damaged."""

    request: Request
    path: Path
    layout: Layout | None
    found: dict[str, Digest]  # the files of the layout that are there
    file_stamps: Fingerprint
    folder_stamps: Fingerprint
    flaws: dict[str, str]  # file -> what is wrong with it
    missing: tuple[str, ...]
    is_listed: bool  # whether the commit's listing is there; nothing else shows that no file is missing
    is_from_hub: bool  # whether this machine got the listing from the Hub itself

    @property
    def is_whole(self) -> bool:
        """Whether no file is known to be missing or damaged. Without a listing, it has at least weights to load."""
        is_enough = self.is_listed or (self.layout is not None and bool(self.layout.weights))
        return self.layout is not None and not self.flaws and not self.missing and is_enough

    def warning(self, reason: str) -> str:
        """Return what cannot be checked without the listing, for the log."""
        unnamed = [name for name in self.found if not _blob_name(self.request.repo, self.path / name)]
        more = f" and {len(unnamed) - 3} more" if len(unnamed) > 3 else ""
        return (
            f"{self.request.repo!r} at {self.request.commit[:7]} is not checked against its commit: the list of the "
            f"commit's files is not on this machine. {reason} A file may be missing or come from another commit"
            + (f", and {', '.join(unnamed[:3])}{more} cannot be checked for damage." if unnamed else ".")
        )

    def to_snapshot(self) -> Snapshot:
        """Return the commit as a snapshot.

        Raises:
            SourceError: A file that decides the layout is missing or damaged.
        """
        if self.layout is None:
            raise self.to_error("The Hub was not asked.")
        return Snapshot(
            *(self.path, self.request.repo, self.request.commit, self.layout, self.found, self.file_stamps),
            folder_stamps=self.folder_stamps,
            is_listed=self.is_from_hub,
            bundle=None if self.is_from_hub else bundle_of(self.request.repo, self.request.commit),
        )

    def to_error(self, reason: object) -> SourceError:
        """Return the error that says why the commit cannot be used."""
        repo, commit = self.request.repo, self.request.commit
        if not self.flaws:
            return not_on_this_machine(repo, commit, reason)
        return DigestMismatchError(
            f"Snapshot of {repo!r} at {commit[:7]} is damaged: {describe_flaws(self.flaws)}. {reason}\n"
            f"Where the Hub answers, run: medvllm pull {repo}",
            repo=repo,
            commit=commit,
            files=tuple(self.flaws),
        )


def inspect_cache(request: Request, *, fresh: bool = False) -> CachedCommit:
    """Return what the cache holds of a commit. Each file is compared with the listing before it is parsed.

    Args:
        request: The files that are asked for.
        fresh: Whether to hash files again that have not changed since they were hashed.
    """
    repo, commit = request.repo, request.commit
    path, listing = snapshot_folder(repo, commit), read_listing(repo, commit)
    folder_stamps = Fingerprint() if listing is not None else Fingerprint.of([path])
    names = list_files(path) if listing is None else list(listing)
    if not fresh:
        prefetch_digests(path, names)

    def flaw_of(name: str, digest: Digest) -> str | None:
        listed = (listing or {}).get(name) or ListedFile(digest.size, _blob_name(repo, path / name))
        return find_flaw((path / name).resolve(), listed, digest) if listed.oid else None

    def read(name: str, kind: type) -> Any:
        file = path / name
        if not file.is_file():
            raise MissingFile(name)
        if listing is not None and flaw_of(name, digest_files(path, [name])[name]):
            raise MissingFile(name)
        return read_json(file, kind)

    try:
        layout = decide_layout(path, names, read, code=request.code, extra=request.extra, adapter=request.adapter)
        needed: Sequence[str] = layout.files
    except MissingFile as error:
        layout, needed = None, error.args
    present = [name for name in needed if (path / name).is_file()]
    found, file_stamps = hash_files(path, present, fresh=fresh)
    flaws = {name: flaw for name, digest in found.items() if (flaw := flaw_of(name, digest))}
    # The listing itself may have been replaced. Its digest was stored when the Hub gave it.
    known = digest_cache().listing(endpoint(), repo, commit)
    is_from_hub = listing is not None and known is not None
    if listing is not None and known is not None and known != digest_listing(listing):
        flaws[listing_paths(repo, commit)[0].name] = "is not the list of files that the Hub gave"
    return CachedCommit(
        *(request, path, layout, found, file_stamps, folder_stamps, flaws),
        missing=tuple(name for name in needed if name not in found),
        is_listed=listing is not None,
        is_from_hub=is_from_hub,
    )


def _blob_name(repo: str, file: Path) -> str:
    """Return the digest that the cache names a snapshot's file by, or "" if the file is not a link to a blob."""
    blob = file.resolve()
    return blob.name if blob.parent == blobs_folder(repo).resolve() and is_oid(blob.name) else ""
