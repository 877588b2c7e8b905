"""What a version needs before a protected alias may point to it: a lock that its files fit, and acceptance tests."""

from medvllm.catalog import Locked
from medvllm.errors import CatalogError, DigestMismatchError, SourceError
from medvllm.metadata import ModelMetadata
from medvllm.names import parse


def check_baseline(entry: ModelMetadata, alias: str, files: str | None) -> None:
    """Raise an error unless a version that a protected alias points to is accepted, with the files that it has.

    `files` is their digest; None stands for those of another revision. CatalogError: it is not accepted.
    DigestMismatchError: its files are others.
    """
    accepted = entry.lifecycle.baseline_digest
    if accepted is None or not entry.baseline:
        raise CatalogError(
            f"Model {entry.reference!r} is not accepted, and the protected alias {alias!r} points to it: not loaded.\n"
            f"To accept it:\n  medvllm alias protect {entry.name} {alias} --off --reason 'why'\n"
            f"  medvllm lock {entry.reference}\n  medvllm baseline record {entry.reference}\n"
            f"  medvllm alias protect {entry.name} {alias}",
            model=entry.name,
        )
    if files != accepted:
        raise DigestMismatchError(
            f"The files of model {entry.reference!r} are not the ones that were accepted, and the protected alias "
            f"{alias!r} points to it.\nRegister them as the next version: medvllm register {entry.name}",
            model=entry.name,
            files=(),
        )


class LockApproval:
    """Approval by the lock file that is in force, and by the acceptance tests that a version keeps."""

    def missing_requirements(self, entry: ModelMetadata) -> list[str]:
        """Return what a version lacks, each with the command that gives it; its files are hashed."""
        from medvllm.sources import Lock, verify

        lock, name = Lock.current(), entry.reference
        locked = lock.known(entry)
        lacking = []
        if locked is None:
            lacking.append(f"a lock in {lock.file}: medvllm lock {name}")
        elif verify(entry, locked):
            lacking.append(f"files that are the locked ones; see: medvllm verify {name}")
        if not entry.baseline:
            lacking.append(f"acceptance tests: medvllm baseline record {name}")
        elif locked is not None and entry.lifecycle.baseline_digest != locked.digest:
            lacking.append(f"acceptance tests of the locked files: medvllm baseline record {name}")
        return lacking

    def unmet_requirements(self, entry: ModelMetadata) -> list[str]:
        """Return for what a version that a protected alias points to does not load; nothing is fetched.

        Folders are looked at; of a repository, what the lock file has.
        """
        from medvllm.sources import resolve, to_lock

        accepted = entry.lifecycle.baseline_digest
        if not entry.baseline or accepted is None:
            return ["acceptance tests"]
        locked = self.locked(entry)
        found = None if locked is None else locked.digest
        if parse(entry.location).kind == "folder":
            try:
                found = to_lock(resolve(entry)).digest
            except SourceError as error:
                return [f"its files: {str(error).splitlines()[0]}"]
        return ["the files that were accepted"] if found not in (None, accepted) else []

    def locked(self, entry: ModelMetadata) -> Locked | None:
        """Return what the lock file has of a version, or None."""
        from medvllm.sources import Lock

        found = Lock.current().known(entry)
        if found is None:
            return None
        files = {**found.files, **found.converted}
        return Locked(found.digest, {path: digest.sha256 for path, digest in files.items()})
