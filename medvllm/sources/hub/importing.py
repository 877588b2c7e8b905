"""Files of a commit that come in a bundle: they are added to the Hub's cache as a download would leave them."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from medvllm.errors import DigestMismatchError
from medvllm.file_lock import file_lock
from medvllm.files import link_or_copy, replace_with_symlink
from medvllm.sources.digest import describe_flaws
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.hub.inspection import MissingFile
from medvllm.sources.hub.listing import ListedFile, Listing, find_flaw, parse_listing, read_listing
from medvllm.sources.hub.network import endpoint
from medvllm.sources.hub.paths import LOCK_NAME, blobs_folder, listing_paths, locks_folder, snapshot_folder
from medvllm.sources.json_files import read_json
from medvllm.sources.layout import ADAPTER_CONFIG, decide_layout


def add_to_cache(repo: str, commit: str, branch: str | None, files: Mapping[str, Path], listing_file: Path) -> None:
    """Add a commit's files to the Hub's cache, and remember the commit as that of its branch.

    Args:
        repo: The repository's id.
        commit: The commit, with all 40 digits.
        branch: The branch or tag that stands for the commit from now on.
        files: The files by their path in the repository.
        listing_file: The commit's listing. One that the cache already has takes precedence.

    Raises:
        DigestMismatchError: The files are not those of the commit's listing. The cache is then unchanged.
    """
    path, blobs = snapshot_folder(repo, commit), blobs_folder(repo)
    listing = read_listing(repo, commit) or parse_listing(listing_file)
    _check_files(repo, commit, files, listing)
    for folder in (path, blobs, listing_paths(repo, commit)[0].parent):
        folder.mkdir(parents=True, exist_ok=True)
    with file_lock(locks_folder(repo) / LOCK_NAME, setting="HF_HOME", private=False):
        # The listing comes first: it shows that files are missing if the import is interrupted.
        if read_listing(repo, commit) is None:
            link_or_copy(listing_file, listing_paths(repo, commit)[0])
        for name, file in files.items():
            blob, target = blobs / listing[name].oid, path / name
            link_or_copy(file, blob)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not replace_with_symlink(target, os.path.relpath(blob, target.parent)):
                blob.replace(target)  # huggingface_hub does the same on a disk without links
    if branch is not None:
        digest_cache().keep_commit(endpoint(), repo, branch, commit)


def _check_files(repo: str, commit: str, files: Mapping[str, Path], listing: Listing) -> None:
    """Raise DigestMismatchError unless the files are those of the listing, and none that a load needs is missing."""

    def read(name: str, kind: type) -> Any:
        if name not in files:
            raise MissingFile(name)
        return read_json(files[name], kind)

    flaws = {name: find_flaw(file, listing.get(name, ListedFile(0, ""))) for name, file in files.items()}
    try:
        adapter = ADAPTER_CONFIG in files
        needed: Sequence[str] = decide_layout(snapshot_folder(repo, commit), listing, read, adapter=adapter).files
    except MissingFile as error:
        needed = error.args
    flaws |= {name: "is missing" for name in needed if name not in files}
    if found := {name: flaw for name, flaw in flaws.items() if flaw}:
        raise DigestMismatchError(
            f"The files are not those of {repo!r} at {commit[:7]}: {describe_flaws(found)}.",
            repo=repo,
            commit=commit,
            files=tuple(found),
        )
