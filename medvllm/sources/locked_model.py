"""What a lock approves of one model: its repository and commit, and the bytes of its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from medvllm.errors import DigestMismatchError
from medvllm.receipt import digest_of
from medvllm.sources.digest import Digest, describe_flaws, find_differences
from medvllm.sources.snapshot import Snapshot

FOLDER = "folder"  # the source of a model that comes from no repository


@dataclass(frozen=True)
class Approval:
    """Who approved a model, when (UTC, ISO 8601) and why."""

    by: str
    at: str
    reason: str | None = None


@dataclass(frozen=True)
class LockedModel:
    """What a lock approves of one model.

    Attributes:
        source: The repository's id, or FOLDER.
        commit: The commit, or None for a folder.
        files: The digests of the files, by path.
        converted: The digests of safetensors that were made of pickles.
        approval: Who approved it.
    """

    source: str
    commit: str | None
    files: Mapping[str, Digest] = field(hash=False)
    converted: Mapping[str, Digest] = field(default_factory=dict, hash=False)
    approval: Approval | None = field(default=None, compare=False)

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot) -> "LockedModel":
        """Return what a lock stores about a snapshot."""
        return cls(snapshot.repo or FOLDER, snapshot.commit, snapshot.files, snapshot.converted)

    @property
    def digest(self) -> str:
        """One SHA-256 for all files, as a receipt gives it."""
        rows = (
            (path, digest.sha256, digest.size)
            for files in (self.files, self.converted)
            for path, digest in files.items()
        )
        return digest_of(rows)

    @property
    def facts(self) -> dict[str, str]:
        """What the history stores about it."""
        return {"source": self.source, "digest": self.digest} | ({"commit": self.commit} if self.commit else {})

    def check(self, model: str, found: Mapping[str, Digest], *, converted: bool = False) -> None:
        """Check that a model's files are the locked ones.

        Args:
            model: The model's name, for the message.
            found: The digests of its files.
            converted: Whether these are the converted weights.

        Raises:
            DigestMismatchError: A file differs, is missing, or was added.
        """
        flaws = find_differences(self.converted if converted else self.files, found)
        if flaws:
            what = "The converted weights" if converted else "The files"
            raise DigestMismatchError(
                f"{what} of model {model!r} are not the locked ones: {describe_flaws(flaws)}.\n"
                f"See what differs: medvllm verify {model}",
                model=model,
                files=tuple(flaws),
            )

    def check_source(self, model: str, source: str, commit: str | None) -> None:
        """Check that a model comes from the locked repository and commit.

        Raises:
            DigestMismatchError: It comes from elsewhere.
        """
        if (self.source, self.commit) != (source, commit):
            asked, locked = _describe_source(source, commit), _describe_source(self.source, self.commit)
            raise DigestMismatchError(
                f"Model {model!r} is locked to {locked}, but {asked} was asked for.\n"
                f"To approve that instead: medvllm lock {model}",
                model=model,
                files=(),
            )


def _describe_source(source: str, commit: str | None) -> str:
    return f"{source} at {commit[:7]}" if commit else f"the {source}"
