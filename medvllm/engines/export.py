"""An exported model: a graph with its weights, the tokenizer, and what a task must know of both, in one folder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from medvllm.engines.cpu import saturates_int8
from medvllm.engines.kinds import Precision
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.receipt import library_versions
from medvllm.sources.digest import Digest, digest_content
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.prepared_folder import (
    RECORD,
    prepared_folder,
    read_prepared,
    recorded_files,
    write_prepared,
)
from medvllm.sources.snapshot import Snapshot

GRAPH, GRAPH_DATA, TOKENIZER = "model.onnx", "model.onnx.data", "tokenizer.json"
# The first has an operator for attention, which runs faster. It also has one for rotary positions, which torch exports
# wrongly: models with these get the second.
OPSETS = (23, 20)
_FORMAT = 3  # increase it when the content of a folder changes: older folders are then not used
_EXPORTERS = ("onnx", "onnxscript")  # besides torch and transformers


@dataclass(frozen=True)
class Export:
    """A folder with an exported model whose files are all as they were recorded.

    Attributes:
        folder: The folder.
        facts: What the exporter recorded of the model and its tokenizer.
        files: The digest of each file.
        fingerprint: The stamps of the files when they were compared with their digests.
        rejection: Why there is no graph, if the model cannot be exported.
    """

    folder: Path
    facts: Mapping[str, Any]
    files: Mapping[str, Digest]
    fingerprint: Fingerprint
    rejection: str | None = None

    @property
    def digest(self) -> str:
        """One SHA-256 for all files and facts: an answer depends on both."""
        return digest_content({**self.files, RECORD: Digest(0, repr(sorted(self.facts.items())))})

    @property
    def precision(self) -> Precision:
        """The precision of the weights that products of matrices read."""
        precision: Precision = self.facts["precision"]
        return precision

    @property
    def size_bytes(self) -> int:
        """The size of the graph with its weights."""
        return sum(self.files[name].size for name in (GRAPH, GRAPH_DATA) if name in self.files)


def export_folder(
    metadata: ModelMetadata, snapshot: Snapshot, options: LoadOptions, part: str, precision: Precision = "float32"
) -> Path:
    """Return the folder for the export of a model, whether it exists yet or not.

    It is named after everything that an export depends on: the files, the facts of the entry that say how they are
    read, the options of the load, and the versions of the libraries that export.

    Args:
        metadata: The entry, completed with what the files say.
        snapshot: The model's files.
        options: The options of the load, completed with those of the entry.
        part: What the graph computes: "tokens", "head_tokens" or "head_texts".
        precision: The precision of the weights.
    """
    versions = {**library_versions(), **{name: _version(name) for name in _EXPORTERS}}
    how = metadata.behaviour._asdict(), metadata.class_paths, metadata.source.trust_remote_code
    key = _FORMAT, OPSETS, made_of(snapshot), how, options.to_dict(), part, versions
    if precision == "float32":
        return prepared_folder("engine", *key)
    return prepared_folder("engine", *key, precision, _version("onnxruntime"), saturates_int8())


def find_export(folder: Path) -> Export | None:
    """Return the export in a folder, each byte checked; None if there is none, or a file is not as it was recorded."""
    taken = Fingerprint.of([folder / name for name in (GRAPH, GRAPH_DATA, TOKENIZER, RECORD)])
    record = read_prepared(folder)
    if record is None or not isinstance(record.get("engine"), dict):
        return None
    return Export(folder, record["engine"], recorded_files(record), taken, record["rejection"])


def record_export(
    folder: Path,
    snapshot: Snapshot,
    size_bytes: int,
    fill: Callable[[Path], tuple[str | None, dict[str, Any]]],
) -> None:
    """Make an export unless it exists.

    Args:
        folder: Its folder.
        snapshot: The model's files.
        size_bytes: About how large it will be.
        fill: Writes the files of an export into a folder. Returns why there cannot be one, and the facts of the model.

    Raises:
        OSError: There is no space, or no permission.
    """

    def fill_with_facts(work: Path) -> tuple[str | None, dict[str, Any]]:
        rejection, facts = fill(work)
        return rejection, {"engine": facts}

    write_prepared(folder, made_of(snapshot), size_bytes, fill_with_facts)


def made_of(snapshot: Snapshot) -> dict[str, str]:
    """Return the SHA-256 of each file of a model, by name."""
    files = {**snapshot.files, **snapshot.converted}
    return {name: digest.sha256 for name, digest in sorted(files.items())}


def _version(package: str) -> str | None:
    try:
        return packages.version(package)
    except packages.PackageNotFoundError:
        return None
