"""Installing a model of a bundle on this machine."""

from pathlib import Path

from medvllm.sources import home_models, hub
from medvllm.sources.bundle.contents import Bundle
from medvllm.sources.imported_commits import import_recorded


def install_model(bundle: Bundle, name: str) -> Path | None:
    """Add a model of an unpacked bundle to this machine.

    Returns:
        The folder in MEDVLLM_HOME, for a model that is a folder. None for a commit of a repository: its files are then
        in the Hub's cache.
    """
    locked = bundle.locked[name]
    files = {path: bundle.blobs / digest.sha256 for path, digest in locked.files.items()}
    if locked.commit is None:
        return home_models.add_folder(files, locked.files, link=True)
    listing = bundle.blobs / bundle.listings[name]
    # The record comes first. An import that is killed starts again, because files are missing.
    with import_recorded(locked.source, locked.commit, bundle.sha256):
        hub.add_to_cache(locked.source, locked.commit, bundle.branches.get(name), files, listing)
    return None
