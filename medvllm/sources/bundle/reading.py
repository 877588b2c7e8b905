"""Reading a bundle: every byte is checked before anything of it is used."""

import hashlib
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from medvllm import progress, settings
from medvllm.errors import DigestMismatchError, MedVLLMError, SourceError
from medvllm.file_lock import file_lock
from medvllm.files import make_own
from medvllm.local_files import hub_cache
from medvllm.sources.bundle.contents import Bundle
from medvllm.sources.bundle.export_record import ExportRecord
from medvllm.sources.bundle.manifest import ENTRIES, EXPORT_RECORD, LOCK, MANIFEST, MAX_TEXT_BYTES, Manifest
from medvllm.sources.bundle.streams import HashingReader, PlainMember, open_member
from medvllm.sources.digest import Digest
from medvllm.sources.lock_text import parse_lock
from medvllm.sources.locked_model import LockedModel

_CHUNK_BYTES = 1 << 20
# What tarfile, json and a walk through content of an unknown shape raise.
_UNSOUND = (
    *(tarfile.TarError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    RecursionError,
)


@contextmanager
def open_bundle(file: Path) -> Iterator[Bundle]:
    """Give an unpacked bundle for the duration of a `with` block. One process imports at a time.

    It is unpacked beside the Hub's cache if that can be written, so that its files need no second copy.

    Raises:
        SourceError: The file is not a valid bundle, or cannot be unpacked.
        DigestMismatchError: A member is not what the manifest says.
    """
    try:
        room = _unpacking_folder()
        with file_lock(room.with_suffix(".lock"), setting="HF_HOME", private=False):
            for leftover in room.iterdir():  # of an import that was killed
                shutil.rmtree(leftover)
            work = room / secrets.token_hex(4)
            work.mkdir(mode=0o700)
            try:
                yield read_bundle(file, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except MedVLLMError:
        raise
    except OSError as error:
        raise SourceError(f"Bundle {file} cannot be imported: {error}.", path=str(file)) from error


def read_bundle(file: Path, target: Path) -> Bundle:
    """Unpack a bundle into an empty folder, check every byte, and return what it holds.

    Raises:
        SourceError: The file is not a bundle, or has members that a bundle does not have.
        DigestMismatchError: A member is not what the manifest says.
    """
    try:
        with file.open("rb") as stream:
            whole = HashingReader(stream)
            with tarfile.open(fileobj=whole, mode="r|", tarinfo=PlainMember) as tar:  # type: ignore[call-overload]
                bundle = _unpack(file, tar, target)
            while whole.read(_CHUNK_BYTES):  # what follows the last member is part of the digest
                pass
            return replace(bundle, sha256=whole.sha256.hexdigest())
    except SourceError:
        raise
    except MedVLLMError as error:
        raise SourceError(f"{file} is not a valid bundle: {error}", path=str(file)) from error
    except _UNSOUND as error:
        raise SourceError(f"{file} is not a valid bundle: {str(error)[:200]}.", path=str(file)) from error
    except OSError as error:
        raise SourceError(f"Bundle {file} cannot be read: {error.strerror or error}.", path=str(file)) from error


def _unpacking_folder() -> Path:
    """Return the folder that bundles are unpacked in. huggingface_hub ignores what is in `.locks`."""
    folder = hub_cache() / ".locks" / "medvllm-import"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            return folder
    except OSError:
        pass
    folder = settings.HOME() / "imports" / "room"
    make_own(folder)
    return folder


def _unpack(file: Path, tar: tarfile.TarFile, target: Path) -> Bundle:
    """Unpack all members in one pass, and return them as a bundle without the digest of its file."""
    members = iter(tar)
    # First the manifest: it says what must follow.
    first = next(members, None)
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > MAX_TEXT_BYTES:
        raise ValueError(f"it does not begin with {MANIFEST}")
    content = open_member(tar, first).read()
    manifest = Manifest.from_json(content)
    free_bytes = shutil.disk_usage(target).free
    if manifest.total_bytes > free_bytes:
        raise OSError(f"it unpacks to {manifest.total_bytes:,} bytes, and {target} has room for {free_bytes:,}")
    # Then exactly the members that the manifest lists.
    (target / "blobs").mkdir()
    with progress.track_bytes("Checking the bundle", manifest.total_bytes) as advance:
        for name, digest in manifest.members.items():
            member = next(members, None)
            if member is None:
                raise ValueError(f"it ends before {name}")
            if member.name != name or not member.isreg() or member.size != digest.size:
                raise ValueError(f"it has {member.name[:80]!r} ({member.size:,} bytes) in place of {name}")
            # The name is one of the manifest's, so it cannot lead out of the folder.
            _save_member(file, tar, member, digest, target / name, advance)
    # Last the export record, and nothing behind it.
    last = next(members, None)
    if last is None or last.name != EXPORT_RECORD or last.size > MAX_TEXT_BYTES:
        raise ValueError(f"it does not end with {EXPORT_RECORD}")
    export_record = ExportRecord.from_json(open_member(tar, last).read())
    if (more := next(members, None)) is not None:
        raise ValueError(f"it has a further member, {more.name[:80]!r}, behind {EXPORT_RECORD}")
    locked = parse_lock((target / LOCK).read_text(encoding="utf-8"))
    _check_blobs(manifest, locked)
    entries, contents = (target / ENTRIES).read_text(encoding="utf-8"), hashlib.sha256(content).hexdigest()
    return Bundle(entries, locked, manifest.listings, manifest.branches, target / "blobs", "", contents, export_record)


def _check_blobs(manifest: Manifest, locked: dict[str, LockedModel]) -> None:
    """Raise ValueError unless the files are exactly those of the lock and of the listings."""
    blobs = manifest.blobs
    used = {digest.sha256 for model in locked.values() for digest in model.files.values()}
    if blobs.keys() != used | set(manifest.listings.values()):
        raise ValueError("its files are not those of its lock")
    for name, model in locked.items():
        if any(blobs.get(digest.sha256) != digest.size for digest in model.files.values()):
            raise ValueError(f"files of {name[:80]!r} are missing")
        if model.commit and manifest.listings.get(name) not in blobs:
            raise ValueError(f"the listing of {name[:80]!r} is missing")


def _save_member(
    file: Path,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    digest: Digest,
    target: Path,
    advance: Callable[[int], None],
) -> None:
    """Write a member to the disk, and raise DigestMismatchError unless it has the digest of the manifest."""
    reader = HashingReader(open_member(tar, member), advance)
    with target.open("xb") as out:
        shutil.copyfileobj(reader, out, _CHUNK_BYTES)
        out.flush()
        os.fsync(out.fileno())
    if reader.sha256.hexdigest() != digest.sha256:
        raise DigestMismatchError(
            f"Bundle {file} is damaged: {member.name} does not have the SHA-256 that the manifest gives.\n"
            "Nothing was imported. Copy the bundle again.",
            path=str(file),
            files=(member.name,),
        )
