"""Where the Hub's cache keeps the parts of a repository."""

from pathlib import Path

from medvllm import settings
from medvllm.local_files import repository_folder

LOCK_NAME = "medvllm.lock"


def snapshot_folder(repo: str, commit: str) -> Path:
    """Return the folder of a commit in the Hub's cache, whether it exists or not."""
    return repository_folder(repo) / "snapshots" / commit


def blobs_folder(repo: str) -> Path:
    """Return the folder that holds a repository's files, each named after its digest."""
    return repository_folder(repo) / "blobs"


def locks_folder(repo: str) -> Path:
    """Return the folder of huggingface_hub's lock files for a repository."""
    repository = repository_folder(repo)
    return repository.parent / ".locks" / repository.name


def listing_paths(repo: str, commit: str) -> tuple[Path, Path]:
    """Return the two places of a commit's listing: the Hub's cache, and MEDVLLM_HOME if the cache is read-only."""
    repository = repository_folder(repo)
    return repository / "trees" / f"{commit}.json", settings.HOME() / "listings" / repository.name / f"{commit}.json"
