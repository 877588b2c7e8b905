"""A snapshot: a local folder with the files of one commit, each hashed, and what the files say about the model."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medvllm.dtypes import FLOATING, SIZE_BYTES
from medvllm.errors import DigestMismatchError, IncompleteSnapshotError, SourceError
from medvllm.lazy import lazy
from medvllm.sources.digest import Digest, digest_content
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.json_files import read_json
from medvllm.sources.layout import Layout
from medvllm.sources.link_folder import make_link_folder
from medvllm.sources.safetensors import Header, cached_header
from medvllm.sources.sentence import Declaration, Scoring, read_declaration, read_scoring
from medvllm.sources.tokenizer_files import has_vocabulary

__all__ = ["Snapshot", "check_complete"]

# Fields of a config for which transformers makes lists before it looks at any weight.
_COUNTS = re.compile(r"(layers?|labels|_types|dense_replace)$")


@dataclass(frozen=True)
class Snapshot:
    """A local folder with the verified files of one model.

    Attributes:
        path: The folder.
        repo: The repository's id, or None for a folder of the user's own.
        commit: The commit, or None for a folder.
        layout: Which files of the folder are the model's.
        files: Their digests. These files are hashed, locked and exported, and a loader sees no others.
        file_stamps: The fingerprint of all files at the moment they were hashed.
        folder_stamps: The fingerprint of the folders of a user's folder, taken before their files were listed.
        converted: The digests of safetensors that were made of pickles.
        converted_at: The folder of these.
        prepared_at: The folder of the weights in another dtype.
        is_listed: Whether the Hub itself gave this machine the listing of the commit.
        bundle: The SHA-256 of the bundle that the commit came in.
        locked: Whether the lock file approves the files.
    """

    path: Path
    repo: str | None
    commit: str | None
    layout: Layout = field(hash=False)
    files: Mapping[str, Digest] = field(hash=False)
    file_stamps: Fingerprint = field(hash=False, compare=False)
    folder_stamps: Fingerprint = field(default=Fingerprint(), hash=False, compare=False)
    converted: Mapping[str, Digest] = field(default_factory=dict, hash=False)
    converted_at: Path | None = None
    prepared_at: Path | None = None
    is_listed: bool = False
    bundle: str | None = None
    locked: bool = False

    @property
    def root(self) -> str:
        """The folder of the config in the snapshot, with a trailing slash, or "" for the top."""
        return self.layout.root

    @property
    def fingerprint(self) -> Fingerprint:
        """What must stay unchanged for the snapshot to be used again: its files, and the folders of a user's folder."""
        return self.file_stamps + self.folder_stamps

    @lazy
    def content_digest(self) -> str:
        """One SHA-256 for all files. A commit without a listing may have other files tomorrow."""
        return digest_content(self.files)

    @lazy
    def identity(self) -> str:
        """The text that loads of the same bytes share: repo@commit, or the folder's real path and a digest."""
        if self.repo:
            return f"{self.repo}@{self.commit}"
        return f"{self.path.resolve()}@{self.content_digest[:12]}"

    @property
    def disk_identity(self) -> str:
        """A digest of the content of all files and of the stamps of the weight files.

        A model is mapped from its weight files. A file that was replaced is another one, even with equal bytes.
        """
        stamps = [self.file_stamps.stamp_of(file) for file in self.weights]
        return hashlib.sha256(repr((self.content_digest, stamps)).encode()).hexdigest()[:16]

    def file(self, name: str) -> Path:
        """Return the path of a file of `files` or `converted`."""
        if name in self.converted and self.converted_at is not None:
            return self.converted_at / name
        return self.path / name

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
    def loader_folder(self) -> Path:
        """A folder for loaders: it has links to the model's files, and nothing else."""
        shown = {name: self.file(path) for name, path in self.layout.top.items() if path not in self.layout.pickles}
        shown |= {name.removeprefix(self.root): self.file(name) for name in self.converted}
        if self.prepared_at is not None:
            replaced = {*self.layout.weights, self.layout.index, *self.converted}
            shown = {name: file for name, file in shown.items() if f"{self.root}{name}" not in replaced}
            shown["model.safetensors"] = self.prepared_at / "model.safetensors"
        return make_link_folder(shown)

    def with_weights(self, folder: Path) -> "Snapshot":
        """Return the snapshot with the weights of another dtype, from `folder`, in place of its own."""
        stamps = Fingerprint.of([folder / "model.safetensors"])
        return replace(self, prepared_at=folder, file_stamps=self.file_stamps + stamps)

    def check_unchanged(self) -> None:
        """Check that the files are still those that were hashed.

        Raises:
            DigestMismatchError: A file has changed since, so that what was read may be something else.
        """
        if changed := self.file_stamps.changed_paths():
            raise DigestMismatchError(
                f"{changed[0]} changed after it was verified and before it was used.\n"
                "Load the model again when no program writes to its files.",
                path=str(changed[0]),
                files=tuple(file.name for file in changed),
            )

    @lazy
    def config(self) -> dict[str, Any]:
        """The content of config.json, or of adapter_config.json for an adapter."""
        config: dict[str, Any] = read_json(self.file(self.layout.config))
        return config

    @property
    def has_tokenizer(self) -> bool:
        """Whether the files hold a tokenizer. An adapter may use that of its base."""
        return has_vocabulary(self.layout.top)

    @lazy
    def headers(self) -> tuple[Header, ...]:
        """The checked header of each safetensors file of the model."""
        return tuple(cached_header(file) for file in self.weights)

    @property
    def dtype(self) -> str | None:
        """The dtype of the checkpoint, as the config says, or else that of its first floating tensor."""
        stated = self.config.get("dtype") or self.config.get("torch_dtype")
        if isinstance(stated, str) and stated in FLOATING.values():
            return stated
        tensors = (tensor for header in self.headers for tensor in header.values())
        return next((FLOATING[tensor["dtype"]] for tensor in tensors if tensor["dtype"] in FLOATING), None)

    def size_bytes(self, dtype: str) -> int:
        """Return the size of the weights in bytes, with floating tensors in `dtype` (an unknown one: 4 bytes each)."""
        item_bytes = SIZE_BYTES.get(dtype, 4)
        return sum(
            (tensor["data_offsets"][1] - tensor["data_offsets"][0])
            if tensor["dtype"] not in FLOATING
            else math.prod(tensor["shape"]) * item_bytes
            for header in self.headers
            for tensor in header.values()
        )

    def check_config_and_headers(self) -> None:
        """Check the config and the safetensors headers before a library parses the files.

        Raises:
            SourceError: A header is damaged, a tensor is in two files, or the config has a number of layers or labels
                that is larger than the weights account for.
        """
        names = [name for header in self.headers for name in header]
        if twice := next((name for name, times in Counter(names).items() if times > 1), None):
            raise SourceError(f"{self.path} has the tensor {twice[:200]!r} in two files.")
        sizes = (size for header in self.headers for tensor in header.values() for size in tensor["shape"])
        most = max(len(names), *sizes, 1)
        for name, count in _find_counts(self.config):
            if count > most:
                file = self.file(self.layout.config)
                raise SourceError(
                    f"{file} has {count:,} for {name[:80]!r}, but the weights account for {most:,} at most.",
                    path=str(file),
                )

    @lazy
    def declaration(self) -> Declaration | None:
        """What the folder declares about its vectors, or None if sentence-transformers did not write it."""
        return read_declaration(self)

    @lazy
    def scoring(self) -> Scoring | None:
        """What the folder declares about the scores of a cross-encoder, or None if it does not say that it is one."""
        return read_scoring(self)

    @property
    def declared_facts(self) -> dict[str, Any]:
        """The facts with which the declaration completes an entry."""
        return {} if self.declaration is None else self.declaration.facts


def check_complete(snapshot: Snapshot) -> None:
    """Check that a snapshot has a config and weights.

    Raises:
        IncompleteSnapshotError: The config or the weights are missing.
        SourceError: The folder holds an adapter and no model.
    """
    path, layout = snapshot.path, snapshot.layout
    name, weights = layout.config.removeprefix(layout.root), ("model.safetensors", "pytorch_model.bin")
    if layout.is_adapter:
        weights = ("adapter_model.safetensors", "adapter_model.bin")
    subject = f"Snapshot of {snapshot.repo!r} at {str(snapshot.commit)[:7]}" if snapshot.repo else str(path)
    facts = {"path": str(path), "repo": snapshot.repo, "commit": snapshot.commit}
    if not layout.weights and not layout.is_adapter and "adapter_config.json" in layout.names:
        location = f"--path {snapshot.repo or path}"
        raise SourceError(
            f"{subject} holds an adapter, not a model.\n"
            f"Register it with the entry of its base: medvllm register NAME --type TYPE {location} --base BASE",
            **facts,
        )
    content = _describe_content(layout.names)
    if layout.config not in snapshot.files:
        what = "an adapter, but its entry has a base" if layout.is_adapter else "a model"
        raise IncompleteSnapshotError(
            f"{subject} has no {name}, so it is not the folder of {what}.\n{content}", **facts
        )
    if not layout.weights:
        raise IncompleteSnapshotError(
            f"{subject} has no weights: neither {weights[0]} nor {weights[1]} exists.\n{content}", **facts
        )


def _describe_content(files: Iterable[str]) -> str:
    names = sorted({file.partition("/")[0] for file in files})
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"It holds: {', '.join(names[:8])}{more}" if names else "It is empty."


def _find_counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int | float]]:
    """Give each number in a config that says how many of something there are, with its name."""
    waiting: list[tuple[str, Any]] = [("", config)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += ((name, inner) for inner in value)
        elif type(value) in (int, float) and _COUNTS.search(name):
            yield name, value
