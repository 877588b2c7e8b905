"""What a version needs before a protected alias may point to it: a lock that its files fit, and acceptance tests."""

from medvllm.catalog import Locked
from medvllm.metadata import ModelMetadata


class LockApproval:
    """Approval by the lock file that is in force, and by the acceptance tests that a version keeps."""

    def lacking(self, entry: ModelMetadata) -> list[str]:
        """Return what a version lacks, each with the command that gives it; its files are hashed."""
        from medvllm.sources import Lock, verify

        lock, name = Lock.current(), entry.reference
        locked = lock.models.get(lock.key(lock.name_of(entry)))
        lacking = []
        if locked is None:
            lacking.append(f"a lock in {lock.file}: medvllm lock {name}")
        elif verify(entry, locked):
            lacking.append(f"files that are the locked ones; see: medvllm verify {name}")
        if not entry.acceptance:
            lacking.append(f"acceptance tests: medvllm accept {name}")
        elif locked is not None and entry.standing.accepted != locked.digest:
            lacking.append(f"acceptance tests of the locked files: medvllm accept {name}")
        return lacking

    def locked(self, entry: ModelMetadata) -> Locked | None:
        """Return what the lock file has of a version, or None."""
        from medvllm.sources import Lock

        lock = Lock.current()
        found = lock.models.get(lock.key(lock.name_of(entry)))
        if found is None:
            return None
        files = {**found.files, **found.converted}
        return Locked(found.digest, {path: digest.sha256 for path, digest in files.items()})
