"""Entry -> verified local snapshot: a folder of one commit with everything a load needs, each byte accounted for."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from medvllm.errors import RequestError, SourceError, UnsafeWeightsError
from medvllm.metadata import ModelMetadata
from medvllm.names import is_commit, parse
from medvllm.sources import bundle, conversion, folder, hub, prepared
from medvllm.sources.digest import Digest, differences, digests
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.edge import edge
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.lock import FOLDER, Lock, LockedModel
from medvllm.sources.reading import read
from medvllm.sources.snapshot import Snapshot, check_complete

__all__ = [
    "Digest",
    "Fingerprint",
    "Lock",
    "LockedModel",
    "Snapshot",
    "branch",
    "bundle",
    "in_force",
    "is_locked",
    "keep_memory_estimate",
    "memory_estimate",
    "read",
    "refresh",
    "resolve",
    "seen",
    "take",
    "to_lock",
    "verify",
]


@edge
def resolve(metadata: ModelMetadata, revision: str | None = None, *, locked: LockedModel | None = None) -> Snapshot:
    """Return the snapshot of an entry, fetched if it is not here; `revision` overrides the entry's.

    Every file is hashed, and compared with the commit's listing and with what is `locked`, before any is parsed. Only
    the Hub is asked, and only for what its cache lacks. Weights that exist as a pickle alone are converted to
    safetensors once. DigestMismatchError: a file is not what it should be. UnsafeWeightsError: the entry trusts code
    that it does not pin.
    """
    location = parse(metadata.location)
    code = _is_code_pinned(metadata, revision)
    extra = metadata.source.extra_files
    if location.kind == "folder":
        if locked is not None:
            locked.check_source(metadata.reference, FOLDER, None)
            # First what was approved: a file that has changed since decides nothing.
            path = folder.located(Path(location.name))
            there = [name for name in locked.files if (path / name).is_file()]
            if there:
                locked.check(metadata.reference, digests(path, there))
        found = folder.resolve(folder.located(Path(location.name)), revision, extra=extra)
    else:
        commit = _commit(metadata, location.name, revision, location.suffix or metadata.source.revision, locked)
        found = hub.resolve(location.name, commit, code=code, extra=extra, is_locked=locked is not None)
    if locked is not None:
        locked.check(metadata.reference, found.files)
        found = replace(found, locked=True)
    check_complete(found)
    _check_adapter(metadata, found)
    snapshot = conversion.as_safetensors(found)
    if locked is not None:
        locked.check(metadata.reference, snapshot.converted, converted=True)
    snapshot.check()
    return snapshot


def in_force() -> Fingerprint:
    """Return the fingerprint of the lock, to be taken before it is read."""
    return Fingerprint.of([Lock.place()])


def seen(snapshot: Snapshot, lock: Fingerprint) -> Fingerprint:
    """Return what must be as it was for a snapshot to stand without being looked at again.

    Its files; a folder's own folders, to which a file may be added; and the lock.
    """
    return snapshot.taken + snapshot.places + lock


@edge
def is_locked(metadata: ModelMetadata, snapshot: Snapshot) -> bool:
    """Return whether the lock that is in force now approves of a snapshot's files as they were read."""
    try:
        locked = Lock.current().find(metadata)
    except SourceError:
        return False
    return locked is not None and (locked.files, locked.converted) == (snapshot.files, snapshot.converted)


def memory_estimate(what: str) -> tuple[int, float] | None:
    """Return the bytes in memory and the seconds that the last load of `what` took on this machine, or None."""
    return digest_cache().memory_estimate(what)


def keep_memory_estimate(what: str, size_bytes: int, load_s: float) -> None:
    """Remember what a load took."""
    digest_cache().keep_memory_estimate(what, size_bytes, load_s)


@edge
def take(location: str | None, extra: Sequence[str] = ()) -> Path:
    """Copy a folder of the user's own into MEDVLLM_HOME, where nobody writes to it, and return the copy."""
    if location is None or parse(location).kind != "folder":
        raise RequestError(
            "'copy' takes a folder of yours: register(…, model_path='./folder', copy=True)", option="copy"
        )
    found = folder.resolve(folder.located(Path(parse(location).name)), None, extra=extra)
    check_complete(found)
    folder.check_inside(found)
    try:
        return folder.keep({name: found.file(name) for name in found.files}, found.files, link=False)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{found.path} cannot be copied: {error}.", path=str(found.path)) from error


@edge
def refresh(metadata: ModelMetadata, revision: str | None = None) -> None:
    """Ask the Hub anew what a model's branch or tag points to, and keep that."""
    location = parse(metadata.location)
    if location.kind != "folder":
        hub.refreshed(location.name, revision or location.suffix or metadata.source.revision)


def branch(metadata: ModelMetadata) -> str | None:
    """Return the branch or tag that an entry follows, or None for one that pins a commit or is a folder."""
    location = parse(metadata.location)
    wanted = location.suffix or metadata.source.revision or "main"
    return None if location.kind == "folder" or is_commit(wanted) else wanted


def to_lock(snapshot: Snapshot) -> LockedModel:
    """Return what a lock keeps of a snapshot."""
    return LockedModel(snapshot.repo or FOLDER, snapshot.commit, snapshot.files, snapshot.converted)


@edge
def verify(
    metadata: ModelMetadata, locked: LockedModel, prove: Callable[[Snapshot], dict[str, str]] | None = None
) -> dict[str, str]:
    """Return for each file that is not as `locked` what is wrong with it. All are hashed again; no network is used.

    `prove` does the same for copies of the weights in another dtype; it is called where there are any.
    """
    location = parse(metadata.location)
    source = FOLDER if location.kind == "folder" else location.name
    if source != locked.source:
        return {"source": f"is {source}, not {locked.source}"}
    extra = metadata.source.extra_files
    try:
        if locked.commit is None:
            found = folder.resolve(folder.located(Path(location.name)), None, extra=extra, fresh=True)
        else:
            code = bool(metadata.source.trust_remote_code)
            found = hub.local(locked.source, locked.commit, code=code, extra=extra)
    except SourceError as error:
        # Which files are the model's cannot be told any more: those that were locked can.
        path = hub.folder_of(locked.source, locked.commit) if locked.commit else folder.located(Path(location.name))
        there = [name for name in locked.files if (path / name).is_file()]
        return differences(locked.files, digests(path, there, fresh=True)) or {"files": f"cannot be used: {error}"}
    wrong = differences(locked.files, found.files)
    if locked.converted and not wrong:
        wrong = conversion.flaws(found, locked.converted)
        found = replace(found, converted=locked.converted, converted_at=conversion.made(found))
    is_whole = all(found.file(name).is_file() for name in found.converted)
    if prove is not None and not wrong and is_whole and prepared.copies_of(found):
        wrong = prove(found)
    return wrong


def _check_adapter(metadata: ModelMetadata, snapshot: Snapshot) -> None:
    """Refuse an adapter beside a whole model: whether it belongs to the weights or is in them already, no file says."""
    adapter = snapshot.layout.adapter
    if adapter and not any(fnmatchcase(adapter, pattern) for pattern in metadata.behaviour.unused_weights):
        raise SourceError(
            f"Model {metadata.name!r} has whole weights and an adapter beside them, {adapter}. "
            "With the package peft transformers would apply it, and without it not.\n"
            "Merge it into the weights and remove it from the folder; or, if it is not to be used: "
            f"register(…, unused_weights=[{adapter!r}])",
            path=str(snapshot.path),
        )


def _is_code_pinned(metadata: ModelMetadata, asked: str | None) -> bool:
    """Return whether the repository's own code belongs to the entry's snapshot: only at the commit that it pins."""
    if not metadata.source.trust_remote_code:
        return False
    location, model = parse(metadata.location), f"Model {metadata.name!r}"
    pinned = location.suffix or metadata.source.revision
    if location.kind == "folder":
        raise UnsafeWeightsError(
            f"{model} trusts the code of a folder, which no commit pins.\n"
            "Give a class of yours: register(…, model_class='module:Class')",
            model=metadata.name,
        )
    if not is_commit(pinned):
        follows = f"the branch or tag {pinned!r}" if pinned else "the main branch"
        raise UnsafeWeightsError(
            f"{model} trusts the code of {location.name!r} at {follows}, which can move.\n"
            "Pin the commit whose code you have read, with all 40 digits: "
            "register(…, revision='…', trust_remote_code=True)",
            model=metadata.name,
        )
    if asked not in (None, pinned):
        raise UnsafeWeightsError(
            f"{model} trusts the code of {location.name!r} at {pinned}, and {asked!r} was asked for.\n"
            f"Give the other an entry of its own: register(…, model_path={location.name!r}, revision='…', "
            "trust_remote_code=True)",
            model=metadata.name,
        )
    return True


def _commit(
    metadata: ModelMetadata, repo: str, asked: str | None, entry: str | None, locked: LockedModel | None
) -> str:
    """Return the commit to load: a locked model's, unless the caller or the entry pins another, which is refused."""
    if locked is None:
        return hub.commit_of(repo, asked or entry)
    if asked is not None or is_commit(entry):
        locked.check_source(metadata.reference, repo, hub.commit_of(repo, asked or entry))
    else:
        locked.check_source(metadata.reference, repo, locked.commit)
    assert locked.commit is not None  # a lock of a repository has one
    return locked.commit
