"""A snapshot: a local folder with one commit's files, and what its files say of themselves."""

import hashlib
import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvllm.errors import DigestMismatchError, IncompleteSnapshotError, SourceError
from medvllm.lazy import lazy
from medvllm.sources.digest import Digest, content_of
from medvllm.sources.edge import unusable
from medvllm.sources.fingerprint import Fingerprint, Stamp, stamp
from medvllm.sources.layout import Layout
from medvllm.sources.view import view

if TYPE_CHECKING:
    from medvllm.sources.sentence import Declaration

__all__ = ["Snapshot", "check_complete", "read_json"]

MAX_HEADER = 100_000_000  # bytes; the safetensors format allows no more
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1}
# Fields of a config by which transformers makes lists before it looks at any weight.
_COUNTED = re.compile(r"(layers?|labels|_types|dense_replace)$")


@dataclass(frozen=True)
class Snapshot:
    """A local folder, the repository and commit it holds (None for a folder of the user's own), and its files.

    `files` is the set that `layout` decided: what is hashed, locked and exported, and all that a loader sees.
    """

    path: Path
    repo: str | None
    commit: str | None
    layout: Layout = field(hash=False)
    files: Mapping[str, Digest] = field(hash=False)
    taken: Fingerprint = field(hash=False, compare=False)  # all files below, as they were when they were hashed
    places: Fingerprint = field(default=Fingerprint(), hash=False, compare=False)  # a folder's, before it was listed
    converted: Mapping[str, Digest] = field(default_factory=dict, hash=False)  # safetensors in place of pickles
    converted_at: Path | None = None  # the folder that holds them
    prepared_at: Path | None = None  # the folder that holds the weights in another dtype
    is_listed: bool = False  # whether the Hub itself gave this machine the list of the commit's files
    bundle: str | None = None  # the SHA-256 of the bundle that says that these are the commit's files
    locked: bool = False  # whether the lock file approves of the files

    @property
    def root(self) -> str:
        """The folder in the snapshot that holds the model's config, with a slash behind it; "" for its top."""
        return self.layout.root

    def file(self, name: str) -> Path:
        """Return where a file of the set, or of `converted`, lies."""
        if name in self.converted and self.converted_at is not None:
            return self.converted_at / name
        return self.path / name

    @lazy
    def content(self) -> str:
        """One SHA-256 for its files: a commit in a cache that nothing lists may hold others tomorrow."""
        return content_of(self.files)

    @lazy
    def identity(self) -> str:
        """What two loads of the same bytes share: repo@commit, or the folder's real path and its files' digests."""
        if self.repo:
            return f"{self.repo}@{self.commit}"
        return f"{self.path.resolve()}@{self.content[:12]}"

    @lazy
    def weights(self) -> tuple[Path, ...]:
        """The safetensors files of the model, in order."""
        if self.prepared_at is not None:
            return (self.prepared_at / "model.safetensors",)
        if self.layout.pickles and self.layout.weights[0] in self.layout.pickles:
            own = (name for name in sorted(self.converted) if name.rpartition("/")[0] == self.root.rstrip("/"))
            return tuple(self.file(name) for name in own if name.endswith(".safetensors"))
        return tuple(self.file(name) for name in self.layout.weights)

    @property
    def on_disk(self) -> str:
        """What tells the files by content, and those that hold the weights as they were when they were hashed, too."""
        stamps = [self.taken.of_path(file) for file in self.weights]
        return hashlib.sha256(repr((self.content, stamps)).encode()).hexdigest()[:16]

    @property
    def folder(self) -> Path:
        """A folder that holds what a loader may read, and nothing else: links to the files of the set."""
        shown = {name: self.file(path) for name, path in self.layout.top.items() if path not in self.layout.pickles}
        shown |= {name.removeprefix(self.root): self.file(name) for name in self.converted}
        if self.prepared_at is not None:
            replaced = {*self.layout.weights, self.layout.index, *self.converted}
            shown = {name: file for name, file in shown.items() if f"{self.root}{name}" not in replaced}
            shown["model.safetensors"] = self.prepared_at / "model.safetensors"
        return view(shown)

    def prepared(self, folder: Path) -> "Snapshot":
        """Return the snapshot with weights of another dtype, which `folder` holds, in place of its own."""
        taken = Fingerprint.of([folder / "model.safetensors"])
        return replace(self, prepared_at=folder, taken=self.taken + taken)

    def check_unchanged(self) -> None:
        """Raise DigestMismatchError when a file is no longer the one that was hashed: what was read may be another."""
        if changed := self.taken.changed():
            raise DigestMismatchError(
                f"{changed[0]} changed after it was verified, before it was used.\n"
                "Load the model again when nothing writes to its files.",
                path=str(changed[0]),
                files=tuple(file.name for file in changed),
            )

    @lazy
    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        config: dict[str, Any] = read_json(self.file(f"{self.root}config.json"))
        return config

    @lazy
    def headers(self) -> tuple[dict[str, Any], ...]:
        """The header of each safetensors file of the model, checked against the file's size."""
        return tuple(_header_of(file, stamp(file)) for file in self.weights)

    def size_bytes(self, dtype: str) -> int:
        """Return the bytes of the weights with floating ones in `dtype`, as their headers tell."""
        wanted = next((_BYTES[kind] for kind, name in _DTYPES.items() if name == dtype), 4)
        return sum(
            (tensor["data_offsets"][1] - tensor["data_offsets"][0])
            if tensor["dtype"] not in _DTYPES
            else math.prod(tensor["shape"]) * wanted
            for header in self.headers
            for tensor in header.values()
        )

    def check(self) -> None:
        """Raise SourceError when the config or a weight file is damaged: no such byte reaches a parser of tensors.

        Nor does a tensor that two files hold, or a number of layers or labels that the weights do not account for.
        """
        names = [name for header in self.headers for name in header]
        if twice := next((name for name, times in Counter(names).items() if times > 1), None):
            raise SourceError(f"{self.path} has two tensors {twice[:200]!r}: one in each of two files.")
        sizes = (size for header in self.headers for tensor in header.values() for size in tensor["shape"])
        most = max(len(names), *sizes, 1)
        for what, count in _counts(self.config):
            if count > most:
                file = self.file(f"{self.root}config.json")
                raise SourceError(
                    f"{file} has {count:,} for {what[:80]!r}, and the weights account for {most:,}.", path=str(file)
                )

    @property
    def dtype(self) -> str | None:
        """The checkpoint's own dtype: the config's word, or that of the first floating tensor."""
        stated = self.config.get("dtype") or self.config.get("torch_dtype")
        if isinstance(stated, str) and stated in _DTYPES.values():
            return stated
        tensors = (tensor for header in self.headers for tensor in header.values())
        return next((_DTYPES[tensor["dtype"]] for tensor in tensors if tensor["dtype"] in _DTYPES), None)

    @lazy
    def declaration(self) -> "Declaration | None":
        """What the folder says of its vectors; None unless sentence-transformers wrote it."""
        from medvllm.sources.sentence import declared  # which reads snapshots

        return declared(self)

    @property
    def sentence_transformer(self) -> dict[str, Any]:
        """The facts that a folder of sentence-transformers completes an entry with; empty for others."""
        return {} if self.declaration is None else self.declaration.facts


def read_json(file: Path, kind: type = dict) -> Any:
    """Return a JSON file's content, or SourceError when it is not what it should be."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        why = ": it is a link that leads nowhere" if file.is_symlink() else ""
        raise IncompleteSnapshotError(f"{file.parent} has no {file.name}{why}.", path=str(file)) from error
    except OSError as error:
        raise unusable(error, file) from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{file} cannot be read as JSON: {error}.", path=str(file)) from error
    if not isinstance(content, kind):
        raise SourceError(f"{file} holds no JSON {'object' if kind is dict else 'list'}.", path=str(file))
    return content


def check_complete(snapshot: Snapshot) -> None:
    """Raise unless the snapshot has a config and weights that can be used."""
    path, what = snapshot.path, f"Snapshot of {snapshot.repo!r} at {str(snapshot.commit)[:7]}"
    subject = what if snapshot.repo else str(path)
    facts = {"path": str(path), "repo": snapshot.repo, "commit": snapshot.commit}
    has_config, held = f"{snapshot.root}config.json" in snapshot.files, _listing(snapshot.layout.names)
    if not snapshot.layout.weights and "adapter_config.json" in snapshot.layout.names:
        raise SourceError(
            f"{subject} holds an adapter, not a model.\nMerge it into its base model and register the result.", **facts
        )
    if not has_config:
        raise IncompleteSnapshotError(f"{subject} has no config.json, so it is not a model's folder.\n{held}", **facts)
    if not snapshot.layout.weights:
        raise IncompleteSnapshotError(
            f"{subject} has no weights: neither model.safetensors nor pytorch_model.bin is there.\n{held}",
            **facts,
        )


def _listing(files: Iterable[str]) -> str:
    names = sorted({file.partition("/")[0] for file in files})
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"It holds: {', '.join(names[:8])}{more}" if names else "It is empty."


@lru_cache(maxsize=128)
def _header_of(file: Path, stamp: Stamp) -> dict[str, Any]:
    """Return the header of a file as it stands: a reload need not read it again."""
    return _header(file)


def _header(file: Path) -> dict[str, Any]:
    """Return a safetensors header without its metadata; SourceError unless it fits the file to the byte."""
    size = file.stat().st_size
    if size < 1024 and file.read_bytes().startswith(b"version https://git-lfs"):
        raise IncompleteSnapshotError(
            f"{file} is a pointer of Git LFS, not the weights.\nFetch them with: git lfs pull", path=str(file)
        )
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER + 1
            text = stream.read(length).decode() if length <= min(MAX_HEADER, size - 8) else "null"
        header: Any = json.loads(text, object_pairs_hook=_once)
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        notes = header.get("__metadata__") or {}  # null, as some writers have it
        if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
            raise ValueError("the metadata are no texts")
        end = _end(tensors.values())
    except OSError as error:
        raise unusable(error, file) from error
    except (ValueError, RecursionError, AttributeError, TypeError, KeyError) as error:
        raise SourceError(
            f"{file} is not a sound safetensors file: its header cannot be read.", path=str(file)
        ) from error
    if 8 + length + end != size:
        raise IncompleteSnapshotError(
            f"{file} is {'cut short' if size < 8 + length + end else 'too long'}: "
            f"{size:,} bytes, where its header describes {8 + length + end:,}.",
            path=str(file),
        )
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key is there twice")
    return found


def _end(tensors: Iterable[Mapping[str, Any]]) -> int:
    """Return the offset behind the last byte; ValueError when the tensors do not lie one behind the other, each in the
    bytes that its shape and dtype need."""
    reached = 0
    for tensor in sorted(tensors, key=lambda tensor: tensor["data_offsets"]):
        (begin, end), shape = tensor["data_offsets"], tensor["shape"]
        if {type(number) for number in (begin, end, *shape)} != {int} or min(shape, default=0) < 0:
            raise ValueError("offsets or shape are not whole numbers")
        itemsize = _BYTES.get(tensor["dtype"])  # of a dtype that is not known, only the order is checked
        if not reached == begin <= end or (itemsize is not None and end - begin != itemsize * math.prod(shape)):
            raise ValueError("offsets and shape disagree")
        reached = end
    return reached


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Give each number in a config that says how many of something there are, with its field."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        field, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((field, inner) for inner in value)
        elif type(value) in (int, float) and _COUNTED.search(field):
            yield field, value
