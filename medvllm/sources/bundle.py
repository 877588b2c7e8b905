"""A bundle: entries, snapshots and their lock in one tar file, for sites without a network.

Its members are `manifest.json`, `entries.toml`, `medvllm.lock`, `blobs/<SHA-256>` and `provenance.json`, in this order,
plain files only. The manifest tells size and SHA-256 of every member but the last, so that a bundle is read in one
pass and trusted in nothing. The same models give the same bytes up to the last member, which says who exported them
and when.
"""

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Literal

from medvllm import progress, settings
from medvllm.destination import written
from medvllm.errors import DigestMismatchError, MedVLLMError, OutputError, SourceError
from medvllm.file_lock import file_lock
from medvllm.files import make_own
from medvllm.metadata import ModelMetadata
from medvllm.names import parse
from medvllm.sources import folder, hub
from medvllm.sources.digest import Digest, differences, digests
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.layout import decide
from medvllm.sources.lock_text import FOLDER, LockedModel, parsed, to_toml
from medvllm.sources.provenance import Provenance, origin_kept
from medvllm.sources.snapshot import Snapshot, read_json

__all__ = ["Bundle", "Packed", "land", "opened", "read", "write"]

_VERSION = 2
_CHUNK = 1 << 20
_SMALL = 64 << 20  # bytes of the manifest, the entries or the lock at most
_MANIFEST, _PROVENANCE = "manifest.json", "provenance.json"
_BLOB = re.compile(r"blobs/[0-9a-f]{64}")
_TEXTS = ("entries.toml", "medvllm.lock")
# What tarfile, json and a walk through content of any shape raise.
_UNSOUND = (
    *(tarfile.TarError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
    RecursionError,
)

State = Literal["new", "damaged", "here"]


@dataclass(frozen=True)
class Packed:
    """A bundle that was written: its size and SHA-256, and that of its manifest, which stands for all of its models."""

    size_bytes: int
    sha256: str
    contents: str


@dataclass(frozen=True)
class Bundle:
    """What an unpacked bundle holds. Models go by their names in its lock: `name@2` for a version that has a number."""

    entries: str
    locked: dict[str, LockedModel]
    listings: dict[str, str]  # model -> SHA-256 of its commit's listing
    branches: dict[str, str]  # model -> the branch or tag that it was asked for by
    blobs: Path  # files by SHA-256
    sha256: str  # of the bundle's file
    contents: str  # SHA-256 of its manifest
    provenance: Provenance

    def check(self, entries: Mapping[str, ModelMetadata]) -> None:
        """Raise SourceError unless each model's entry, or its name when it has none, leads to what is locked of it."""
        if entries.keys() - self.locked.keys():
            raise SourceError(f"The bundle has an entry but no files of {min(entries.keys() - self.locked.keys())!r}.")
        for name, model in self.locked.items():
            entry = entries.get(name)
            location = parse(name if entry is None else entry.location)
            if model.source == FOLDER:
                leads = entry is not None
            else:
                leads = location.kind != "folder" and location.name == model.source
            if not leads:
                raise SourceError(
                    f"The bundle's {name!r} leads to {location.text!r}, and its files are those of {model.source}."
                )
            self._check_files(name, model, () if entry is None else entry.source.extra_files)

    def _check_files(self, name: str, model: LockedModel, extra: Sequence[str]) -> None:
        """Raise SourceError unless the files of a model are what its loaders read, no more and no less."""

        def read(path: str, kind: type) -> Any:
            return read_json(self.blobs / model.files[path].sha256, kind)

        layouts = (decide(Path(name), model.files, read, code=code, extra=extra) for code in (False, True))
        # Modules are but bytes until an entry trusts them.
        if sorted(model.files) not in (sorted(layout.files) for layout in layouts):
            raise SourceError(f"The bundle has files of {name[:80]!r} that no load reads.")

    def state(self, name: str) -> State:
        """Return whether this machine has a model's files as the bundle has them; they are hashed."""
        model = self.locked[name]
        path = hub.folder_of(model.source, model.commit) if model.commit else folder.kept(model.files)
        there = [file for file in model.files if (path / file).is_file()]
        if not there:
            return "new"
        return "damaged" if differences(model.files, digests(path, there, fresh=True)) else "here"

    def moved(self, name: str) -> str | None:
        """Return the commit that this machine knows for a model's branch, where it is not the bundle's."""
        model, branch = self.locked[name], self.branches.get(name)
        known = digest_cache().commit(hub.endpoint(), model.source, branch) if branch is not None else None
        return known if known != model.commit else None


def write(
    target: Path,
    entries: str,
    models: Mapping[str, tuple[Snapshot, LockedModel]],
    branches: Mapping[str, str],
    provenance: Provenance,
) -> Packed:
    """Write a bundle; a file appears whole or not at all. Every file is hashed once more on its way."""
    listings = {
        name: hub.listing_file(snapshot.repo, snapshot.commit)
        for name, (snapshot, _) in models.items()
        if snapshot.repo and snapshot.commit
    }
    sources: dict[str, Path] = {}
    members: dict[str, Digest] = {}
    noted = {}
    for name, path in listings.items():
        digest = digests(path.parent, [path.name], fresh=True)[path.name]
        noted[name] = digest.sha256
        sources[f"blobs/{digest.sha256}"], members[f"blobs/{digest.sha256}"] = path, digest
    for snapshot, locked in models.values():
        if snapshot.repo is None:
            folder.check_inside(snapshot)
        for path_in, digest in locked.files.items():
            member = f"blobs/{digest.sha256}"
            sources[member], members[member] = snapshot.file(path_in), digest
    lock = to_toml({name: locked for name, (_, locked) in models.items()})
    texts = dict(zip(_TEXTS, (entries.encode(), lock.encode()), strict=True))
    listed = {name: _digest(text) for name, text in texts.items()} | dict(sorted(members.items()))
    manifest = {
        "version": _VERSION,
        "members": [{"name": name, "size": digest.size, "sha256": digest.sha256} for name, digest in listed.items()],
        "listings": noted,
        "branches": dict(branches),
    }
    content = json.dumps(manifest, indent=1, sort_keys=True).encode()
    try:
        with written(target) as stream:
            out = _Counted(stream)
            with (
                tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as tar,  # type: ignore[call-overload]
                progress.of_bytes("Exporting", sum(digest.size for digest in listed.values())) as advance,
            ):
                _add(tar, _MANIFEST, io.BytesIO(content), len(content))
                for name, digest in listed.items():
                    with io.BytesIO(texts[name]) if name in texts else sources[name].open("rb") as source:
                        hashed = _Hashed(source, advance)
                        _add(tar, name, hashed, digest.size)
                    if hashed.sha256.hexdigest() != digest.sha256:
                        raise SourceError(f"{sources[name]} changed while it was exported.", path=str(sources[name]))
                last = provenance.to_json()
                _add(tar, _PROVENANCE, io.BytesIO(last), len(last))
    except (SourceError, OutputError):
        raise
    except OSError as error:
        raise SourceError(f"Bundle {target} cannot be written: {error}.", path=str(target)) from error
    return Packed(out.size, out.sha256.hexdigest(), hashlib.sha256(content).hexdigest())


@contextmanager
def opened(file: Path) -> Iterator[Bundle]:
    """Unpack a bundle for as long as the block lasts, one process at a time: beside the Hub's cache, where that can be
    written, so that its files need no second copy."""
    try:
        room = _room()
        with file_lock(room.with_suffix(".lock"), setting="HF_HOME", private=False):
            for left in room.iterdir():  # by an import that died
                shutil.rmtree(left)
            work = room / secrets.token_hex(4)
            work.mkdir(mode=0o700)
            try:
                yield read(file, work)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except MedVLLMError:
        raise
    except OSError as error:
        raise SourceError(f"Bundle {file} cannot be imported: {error}.", path=str(file)) from error


def _room() -> Path:
    """Return the folder that bundles are unpacked in; the Hub's cache looks away from its `.locks`."""
    from huggingface_hub import constants

    room = Path(constants.HF_HUB_CACHE) / ".locks" / "medvllm-import"
    try:
        room.mkdir(parents=True, exist_ok=True)
        if os.access(room, os.W_OK):
            return room
    except OSError:
        pass
    room = settings.HOME() / "imports" / "room"
    make_own(room)
    return room


def land(bundle: Bundle, name: str) -> Path | None:
    """Make a model of an opened bundle this machine's: in the Hub's cache, or as a folder, whose path is returned."""
    locked = bundle.locked[name]
    files = {path: bundle.blobs / digest.sha256 for path, digest in locked.files.items()}
    if locked.commit is not None:
        listing = bundle.blobs / bundle.listings[name]
        # First: an import that is killed is begun again while files are missing.
        with origin_kept(locked.source, locked.commit, bundle.sha256):
            hub.land(locked.source, locked.commit, bundle.branches.get(name), files, listing)
        return None
    return folder.keep(files, locked.files, link=True)


def read(file: Path, into: Path) -> Bundle:
    """Unpack a bundle into an empty folder, and return what it holds once every byte has been checked.

    SourceError: it is no bundle, or it has members that one does not have. DigestMismatchError: a member is not what
    the manifest says.
    """
    try:
        with file.open("rb") as stream:
            whole = _Hashed(stream, lambda size: None)
            with tarfile.open(fileobj=whole, mode="r|", tarinfo=_Plain) as tar:  # type: ignore[call-overload]
                unpacked = _unpacked(file, tar, into)
            while whole.read(_CHUNK):  # what stands behind its last member
                pass
            return replace(unpacked, sha256=whole.sha256.hexdigest())
    except SourceError:
        raise
    except MedVLLMError as error:
        raise SourceError(f"{file} is not a sound bundle: {error}", path=str(file)) from error
    except _UNSOUND as error:
        raise SourceError(f"{file} is not a sound bundle: {str(error)[:200]}.", path=str(file)) from error
    except OSError as error:
        raise SourceError(f"Bundle {file} cannot be read: {error.strerror or error}.", path=str(file)) from error


def _unpacked(file: Path, tar: tarfile.TarFile, into: Path) -> Bundle:
    members = iter(tar)
    first = next(members, None)
    if first is None or first.name != _MANIFEST or not first.isreg() or first.size > _SMALL:
        raise ValueError("it does not begin with manifest.json")
    content = _content(tar, first)
    manifest = json.loads(content)
    if manifest.get("version") != _VERSION:
        raise ValueError(f"its version is {manifest.get('version')!r:.20}, and this program knows {_VERSION}")
    listed = [(str(row["name"]), Digest(int(row["size"]), str(row["sha256"]))) for row in manifest["members"]]
    names = [name for name, _ in listed]
    if names[:2] != list(_TEXTS) or len(set(names)) != len(names) or not all(map(_BLOB.fullmatch, names[2:])):
        raise ValueError("its manifest lists other members than a bundle has")
    if any(digest.size < 0 for _, digest in listed) or any(digest.size > _SMALL for _, digest in listed[:2]):
        raise ValueError("its manifest lists impossible sizes")
    total, room = sum(digest.size for _, digest in listed), shutil.disk_usage(into).free
    if total > room:
        raise OSError(f"it unpacks to {total:,} bytes, and {into} has room for {room:,}")
    (into / "blobs").mkdir()
    with progress.of_bytes("Checking the bundle", total) as advance:
        for name, digest in listed:
            member = next(members, None)
            if member is None:
                raise ValueError(f"it ends before {name}")
            if member.name != name or not member.isreg() or member.size != digest.size:
                raise ValueError(f"it has {member.name[:80]!r} ({member.size:,} bytes) in place of {name}")
            # The name is one of those above, so that it cannot lead out of the folder.
            _save(file, tar, member, digest, into / name, advance)
    last = next(members, None)
    if last is None or last.name != _PROVENANCE or last.size > _SMALL:
        raise ValueError(f"it does not end with {_PROVENANCE}")
    provenance = Provenance.parsed(_content(tar, last))
    if (more := next(members, None)) is not None:
        raise ValueError(f"it has {more.name[:80]!r} in place of nothing more")
    locked = parsed((into / "medvllm.lock").read_text(encoding="utf-8"))
    listings = {str(name): str(sha256) for name, sha256 in manifest["listings"].items()}
    branches = {str(name): str(branch) for name, branch in manifest["branches"].items()}
    held = {digest.sha256: digest.size for _, digest in listed[2:]}
    used = {digest.sha256 for model in locked.values() for digest in model.files.values()} | set(listings.values())
    if held.keys() != used:
        raise ValueError("its files are not those of its lock")
    for name, model in locked.items():
        if any(held.get(digest.sha256) != digest.size for digest in model.files.values()):
            raise ValueError(f"it lacks files of {name[:80]!r}")
        if model.commit and listings.get(name) not in held:
            raise ValueError(f"it lacks the listing of {name[:80]!r}")
    for text in (*listings.values(), *branches, *branches.values()):
        text.encode()  # half a character is none
    entries, contents = (into / "entries.toml").read_text(encoding="utf-8"), hashlib.sha256(content).hexdigest()
    return Bundle(entries, locked, listings, branches, into / "blobs", "", contents, provenance)


class _Plain(tarfile.TarInfo):
    """A member as a bundle has it: anything else, such as a longer name's, is refused before its content is read."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Plain":
        member = super().frombuf(buf, encoding, errors)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ValueError(f"{member.name[:80]!r} is no plain file")
        return member


class _Hashed:
    """A stream that is hashed while it is read."""

    def __init__(self, source: IO[bytes], advance: Callable[[int], None]) -> None:
        self._source, self._advance, self.sha256 = source, advance, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self._source.read(size)
        self.sha256.update(chunk)
        self._advance(len(chunk))
        return chunk


class _Counted:
    """A stream that is hashed and counted while it is written."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out, self.sha256, self.size = out, hashlib.sha256(), 0

    def write(self, content: bytes) -> int:
        self._out.write(content)
        self.sha256.update(content)
        self.size += len(content)
        return len(content)


def _add(tar: tarfile.TarFile, name: str, source: Any, size: int) -> None:
    member = tarfile.TarInfo(name)  # no owner, no time: the same content gives the same bytes
    member.size, member.mode = size, 0o644
    tar.addfile(member, source)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    stream = tar.extractfile(member)
    assert stream is not None  # a plain file has one
    return stream.read()


def _save(
    file: Path,
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    digest: Digest,
    target: Path,
    advance: Callable[[int], None],
) -> None:
    stream = tar.extractfile(member)
    assert stream is not None  # a plain file has one
    source = _Hashed(stream, advance)
    with target.open("xb") as out:
        shutil.copyfileobj(source, out, _CHUNK)
        out.flush()
        os.fsync(out.fileno())
    if source.sha256.hexdigest() != digest.sha256:
        raise DigestMismatchError(
            f"Bundle {file} is damaged: {member.name} does not have the SHA-256 that its manifest says.\n"
            "Nothing of it was imported. Copy it again.",
            path=str(file),
            files=(member.name,),
        )


def _digest(content: bytes) -> Digest:
    return Digest(len(content), hashlib.sha256(content).hexdigest())
