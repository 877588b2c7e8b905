"""Writing a bundle."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from medvllm import progress
from medvllm.destination import open_output
from medvllm.errors import OutputError, SourceError
from medvllm.sources import folder, hub
from medvllm.sources.bundle.export_record import ExportRecord
from medvllm.sources.bundle.manifest import ENTRIES, EXPORT_RECORD, LOCK, MANIFEST, Manifest
from medvllm.sources.bundle.streams import HashingReader, HashingWriter, add_member
from medvllm.sources.digest import Digest, digest_files
from medvllm.sources.lock_text import to_toml
from medvllm.sources.locked_model import LockedModel
from medvllm.sources.snapshot import Snapshot


@dataclass(frozen=True)
class WrittenBundle:
    """A bundle that was written: its size, its SHA-256, and that of its manifest, which stands for all its models."""

    size_bytes: int
    sha256: str
    contents: str


def write_bundle(
    target: Path,
    entries: str,
    models: Mapping[str, tuple[Snapshot, LockedModel]],
    branches: Mapping[str, str],
    export_record: ExportRecord,
) -> WrittenBundle:
    """Write a bundle, and hash every file once more on its way. The file appears whole or not at all.

    Args:
        target: The file, or "-" for standard output.
        entries: The catalogue entries, as TOML.
        models: The models by name, each with its files and what its lock says.
        branches: The branch or tag of each model that follows one.
        export_record: Who exports, and when.

    Raises:
        SourceError: A file changed since it was hashed, or the bundle cannot be written.
        OutputError: The target cannot be written.
    """
    texts = {
        ENTRIES: entries.encode(),
        LOCK: to_toml({name: locked for name, (_, locked) in models.items()}).encode(),
    }
    files, digests, listings = _collect_blobs(models)
    members = {name: _digest(text) for name, text in texts.items()} | dict(sorted(digests.items()))
    manifest = Manifest(members, listings, branches)
    content = manifest.to_json()
    try:
        with open_output(target) as stream:
            out = HashingWriter(stream)
            with (
                tarfile.open(fileobj=out, mode="w|", format=tarfile.GNU_FORMAT) as tar,  # type: ignore[call-overload]
                progress.track_bytes("Exporting", manifest.total_bytes) as advance,
            ):
                add_member(tar, MANIFEST, io.BytesIO(content), len(content))
                for name, digest in members.items():
                    with io.BytesIO(texts[name]) if name in texts else files[name].open("rb") as source:
                        reader = HashingReader(source, advance)
                        add_member(tar, name, reader, digest.size)
                    if reader.sha256.hexdigest() != digest.sha256:
                        raise SourceError(f"{files[name]} changed during the export.", path=str(files[name]))
                last = export_record.to_json()
                add_member(tar, EXPORT_RECORD, io.BytesIO(last), len(last))
    except (SourceError, OutputError):
        raise
    except OSError as error:
        raise SourceError(f"Bundle {target} cannot be written: {error}.", path=str(target)) from error
    return WrittenBundle(out.size_bytes, out.sha256.hexdigest(), hashlib.sha256(content).hexdigest())


def _collect_blobs(
    models: Mapping[str, tuple[Snapshot, LockedModel]],
) -> tuple[dict[str, Path], dict[str, Digest], dict[str, str]]:
    """Return the files by member name, their digests, and the SHA-256 of each model's listing."""
    files: dict[str, Path] = {}
    digests: dict[str, Digest] = {}
    listings: dict[str, str] = {}

    def add(file: Path, digest: Digest) -> None:
        member = f"blobs/{digest.sha256}"
        files[member], digests[member] = file, digest

    for name, (snapshot, locked) in models.items():
        if snapshot.repo and snapshot.commit:
            path = hub.listing_file(snapshot.repo, snapshot.commit)
            listing = digest_files(path.parent, [path.name], fresh=True)[path.name]
            listings[name] = listing.sha256
            add(path, listing)
        else:
            folder.check_links(snapshot)
        for file, digest in locked.files.items():
            add(snapshot.file(file), digest)
    return files, digests, listings


def _digest(content: bytes) -> Digest:
    return Digest(len(content), hashlib.sha256(content).hexdigest())
