"""What a version needs before a protected alias may point to it: locked files, and a baseline of these files."""

from typing import TYPE_CHECKING

from medvllm.errors import CatalogError, DigestMismatchError, SourceError
from medvllm.metadata import ModelMetadata
from medvllm.names import parse_name

if TYPE_CHECKING:
    from medvllm.catalog.log import Locked


def check_baseline(entry: ModelMetadata, alias: str, files: str | None) -> None:
    """Raise an error unless the version that a protected alias points to has a baseline for its files.

    Args:
        entry: The version.
        alias: The protected alias that points to it.
        files: The digest of its files; None for those of another revision.

    Raises:
        CatalogError: It has no baseline.
        DigestMismatchError: The baseline was recorded with other files.
    """
    recorded = entry.lifecycle.baseline_digest
    if recorded is None or not entry.baseline:
        raise CatalogError(
            f"Model {entry.reference!r} was not loaded: the protected alias {alias!r} points to it, and it has no "
            f"baseline.\nTo approve it, run:\n  medvllm alias unprotect {entry.name} {alias} --reason 'why'\n"
            f"  medvllm lock {entry.reference}\n  medvllm baseline record {entry.reference}\n"
            f"  medvllm alias protect {entry.name} {alias}",
            model=entry.name,
        )
    if files != recorded:
        raise DigestMismatchError(
            f"Model {entry.reference!r} was not loaded: the protected alias {alias!r} points to it, and its files are "
            "not those that its baseline was recorded with.\n"
            f"Register the new files as the next version: medvllm register {entry.name} --type {entry.model_type}",
            model=entry.name,
            files=(),
        )


class AliasProtection:
    """Decides by the lock file in force and by the baselines of versions. The stored catalogue asks it."""

    def missing_requirements(self, entry: ModelMetadata) -> list[str]:
        """Return what a version lacks before a protected alias may point to it, each with the command that adds it.

        Its files are hashed.
        """
        from medvllm.sources import Lock, verify_files

        lock, name = Lock.current(), entry.reference
        locked = lock.get(entry)
        lacking = []
        if locked is None:
            lacking.append(f"a lock in {lock.file}: medvllm lock {name}")
        elif verify_files(entry, locked):
            lacking.append(f"the files that are locked; see: medvllm verify {name}")
        if not entry.baseline:
            lacking.append(f"a baseline: medvllm baseline record {name}")
        elif locked is not None and entry.lifecycle.baseline_digest != locked.digest:
            lacking.append(f"a baseline of the locked files: medvllm baseline record {name}")
        return lacking

    def unmet_requirements(self, entry: ModelMetadata) -> list[str]:
        """Return why a version that a protected alias points to would not load. Nothing is fetched.

        The files of a folder are hashed. A repository's files are taken from the lock file.
        """
        from medvllm.sources import LockedModel, resolve_snapshot

        recorded = entry.lifecycle.baseline_digest
        if not entry.baseline or recorded is None:
            return ["a baseline"]
        locked = self.get_locked(entry)
        found = None if locked is None else locked.digest
        if parse_name(entry.location).kind == "folder":
            try:
                found = LockedModel.from_snapshot(resolve_snapshot(entry)).digest
            except SourceError as error:
                return [f"its files: {str(error).splitlines()[0]}"]
        return ["the files of its baseline"] if found not in (None, recorded) else []

    def get_locked(self, entry: ModelMetadata) -> "Locked | None":
        """Return the lock file's content for a version, or None."""
        from medvllm.catalog.log import Locked
        from medvllm.sources import Lock

        found = Lock.current().get(entry)
        if found is None:
            return None
        files = {**found.files, **found.converted}
        return Locked(found.digest, {path: digest.sha256 for path, digest in files.items()})
