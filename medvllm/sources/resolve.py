"""From a catalogue entry to a verified snapshot."""

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from medvllm.errors import RequestError, SourceError, UnsafeWeightsError
from medvllm.metadata import ModelMetadata
from medvllm.names import is_commit, parse_name
from medvllm.sources import conversion, folder, home_models, hub
from medvllm.sources.digest import digest_files
from medvllm.sources.locked_model import FOLDER, LockedModel
from medvllm.sources.os_errors import convert_os_errors
from medvllm.sources.snapshot import Snapshot, check_complete


@convert_os_errors
def resolve_snapshot(
    metadata: ModelMetadata, revision: str | None = None, *, locked: LockedModel | None = None
) -> Snapshot:
    """Return the verified files of an entry, fetched from the Hub if this machine lacks them.

    Every file is hashed, and compared with the commit's listing and with the lock, before it is parsed. Pickled weights
    are converted to safetensors once.

    Args:
        metadata: The entry.
        revision: A branch, tag or commit to use in place of the entry's.
        locked: What the lock approves of the model.

    Raises:
        DigestMismatchError: A file differs from the commit's listing or from the lock.
        UnsafeWeightsError: The entry trusts code that it does not pin, or a pickle holds more than tensors.
        IncompleteSnapshotError: Files are missing.
        HubUnreachableError: The files are not on this machine, and the Hub does not answer.
        SourceError: Files are damaged or cannot be read.
    """
    # 1. Find the files, fetch what is missing, and hash them.
    snapshot = _find_files(metadata, revision, locked)
    # 2. Compare them with the lock, before anything is parsed.
    if locked is not None:
        locked.check(metadata.reference, snapshot.files)
        snapshot = replace(snapshot, locked=True)
    check_complete(snapshot)
    _check_adapter(metadata, snapshot)
    # 3. Convert pickles, and compare the result with the lock too.
    snapshot = conversion.as_safetensors(snapshot)
    if locked is not None:
        locked.check(metadata.reference, snapshot.converted, converted=True)
    # 4. Check config and headers.
    snapshot.check_config_and_headers()
    return snapshot


@convert_os_errors
def copy_to_home(location: str | None, extra: Sequence[str] = (), *, adapter: bool = False) -> Path:
    """Return a copy of the user's folder in MEDVLLM_HOME, where no other program writes to it.

    Args:
        location: The folder, as an entry's `model_path` has it.
        extra: Globs for further files of the model.
        adapter: Whether the model is an adapter.

    Raises:
        RequestError: The location is not a folder.
        SourceError: The folder holds no complete model, or cannot be copied.
    """
    if location is None or parse_name(location).kind != "folder":
        raise RequestError(
            "copy=True needs a folder on this machine: register(…, model_path='./folder', copy=True)", option="copy"
        )
    snapshot = folder.resolve_snapshot(
        home_models.locate(Path(parse_name(location).name)), None, extra=extra, adapter=adapter
    )
    check_complete(snapshot)
    folder.check_links(snapshot)
    try:
        files = {name: snapshot.file(name) for name in snapshot.files}
        return home_models.add_folder(files, snapshot.files, link=False)
    except SourceError:
        raise
    except OSError as error:
        raise SourceError(f"{snapshot.path} cannot be copied: {error}.", path=str(snapshot.path)) from error


@convert_os_errors
def refresh_revision(metadata: ModelMetadata, revision: str | None = None) -> None:
    """Ask the Hub again which commit a model's branch or tag points to, and remember the answer."""
    location = parse_name(metadata.location)
    if location.kind != "folder":
        hub.refresh_commit(location.name, revision or location.suffix or metadata.source.revision)


def followed_branch(metadata: ModelMetadata) -> str | None:
    """Return the branch or tag that an entry follows, or None for a pinned commit and for a folder."""
    location = parse_name(metadata.location)
    revision = location.suffix or metadata.source.revision or "main"
    return None if location.kind == "folder" or is_commit(revision) else revision


def _find_files(metadata: ModelMetadata, revision: str | None, locked: LockedModel | None) -> Snapshot:
    """Return the files of an entry, from its folder or from the Hub."""
    location, extra, adapter = parse_name(metadata.location), metadata.source.extra_files, metadata.is_adapter
    code = _may_run_code(metadata, revision)
    if location.kind == "folder":
        path = home_models.locate(Path(location.name))
        if locked is not None:
            locked.check_source(metadata.reference, FOLDER, None)
            # The approved files come first: one that has changed must not decide which files are the model's.
            present = [name for name in locked.files if (path / name).is_file()]
            if present:
                locked.check(metadata.reference, digest_files(path, present))
        return folder.resolve_snapshot(path, revision, extra=extra, adapter=adapter)
    commit = _choose_commit(metadata, location.name, revision, location.suffix or metadata.source.revision, locked)
    request = hub.Request(location.name, commit, code=code, extra=tuple(extra), adapter=adapter)
    return hub.resolve_snapshot(request, is_locked=locked is not None)


def _choose_commit(
    metadata: ModelMetadata, repo: str, asked: str | None, entry: str | None, locked: LockedModel | None
) -> str:
    """Return the commit to load: the locked one, unless the caller or the entry pins another, which is refused."""
    if locked is None:
        return hub.commit_of(repo, asked or entry)
    if asked is not None or is_commit(entry):
        locked.check_source(metadata.reference, repo, hub.commit_of(repo, asked or entry))
    else:
        locked.check_source(metadata.reference, repo, locked.commit)
    assert locked.commit is not None  # the lock of a repository has one
    return locked.commit


def _may_run_code(metadata: ModelMetadata, asked: str | None) -> bool:
    """Return whether the repository's own code belongs to the snapshot. It does only at the commit that is pinned."""
    if not metadata.source.trust_remote_code:
        return False
    location, model = parse_name(metadata.location), f"Model {metadata.name!r}"
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
            f"{model} trusts the code of {location.name!r} at {pinned}, but {asked!r} was asked for.\n"
            f"Register the other commit as an entry of its own: register(…, model_path={location.name!r}, "
            "revision='…', trust_remote_code=True)",
            model=metadata.name,
        )
    return True


def _check_adapter(metadata: ModelMetadata, snapshot: Snapshot) -> None:
    """Raise SourceError for an adapter beside a whole model. No file says whether the weights include it already."""
    adapter = snapshot.layout.adapter
    if adapter and not any(fnmatchcase(adapter, pattern) for pattern in metadata.behaviour.unused_weights):
        raise SourceError(
            f"Model {metadata.name!r} has whole weights and an adapter beside them, {adapter}. "
            "transformers applies the adapter if the package peft is installed, and ignores it otherwise.\n"
            "Merge the adapter into the weights and remove it from the folder. Or, to load without it: "
            f"register(…, unused_weights=[{adapter!r}])",
            path=str(snapshot.path),
        )
