"""The lock: which commit and which bytes of a model were approved. A TOML file that is kept and reviewed like code."""

import hashlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.destination import write
from medvllm.errors import CatalogError, DigestMismatchError, MedVLLMError, SourceError
from medvllm.files import make_own
from medvllm.metadata import ModelMetadata
from medvllm.names import parse
from medvllm.receipt import digest_of
from medvllm.sources.digest import Digest, described, differences
from medvllm.sources.layout import is_plain_path

__all__ = ["Lock", "LockedModel"]

FOLDER = "folder"  # the source of a model that is no repository's
_HEADER = "Written by `medvllm lock`: the commit and the bytes of each model that was approved."
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class LockedModel:
    """What was approved of one model. `converted` are the safetensors that were made of a pickle."""

    source: str  # a repository's id, or FOLDER
    commit: str | None
    files: Mapping[str, Digest] = field(hash=False)
    converted: Mapping[str, Digest] = field(default_factory=dict, hash=False)

    @property
    def digest(self) -> str:
        """One SHA-256 for all files, as a receipt gives it."""
        rows = (
            (path, digest.sha256, digest.size)
            for files in (self.files, self.converted)
            for path, digest in files.items()
        )
        return digest_of(rows)

    def check(self, model: str, found: Mapping[str, Digest], *, converted: bool = False) -> None:
        """Raise DigestMismatchError unless the files are the locked ones."""
        flaws = differences(self.converted if converted else self.files, found)
        if flaws:
            what = "The converted weights" if converted else "The files"
            raise DigestMismatchError(
                f"{what} of model {model!r} are not the locked ones: {described(flaws)}.\n"
                f"See what differs: medvllm verify {model}",
                model=model,
                files=tuple(flaws),
            )

    def check_source(self, model: str, source: str, commit: str | None) -> None:
        """Raise DigestMismatchError unless the model comes from the locked repository and commit."""
        if (self.source, self.commit) != (source, commit):
            asked, locked = _at(source, commit), _at(self.source, self.commit)
            raise DigestMismatchError(
                f"Model {model!r} is locked to {locked}, and {asked} was asked for.\n"
                f"To approve the other: medvllm lock {model}",
                model=model,
                files=(),
            )


class Lock:
    """The models of a lock file, by the name they are asked for. A file that is not there locks nothing."""

    def __init__(self, file: Path, models: Mapping[str, LockedModel]) -> None:
        self.file = file
        self.models = dict(models)

    @classmethod
    def current(cls) -> "Lock":
        """Return the lock that MEDVLLM_LOCK names, or that of the working directory."""
        return cls.read(settings.LOCK())

    @classmethod
    def read(cls, file: Path) -> "Lock":
        """Return a file's lock; SourceError when it is not one."""
        try:
            return cls(file, parsed(file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return cls(file, {})
        except (ValueError, RecursionError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(
                f"Lock {file} cannot be read: {reason}.\n"
                "Restore it from your version control; nothing is loaded until then.",
                path=str(file),
            ) from error

    def name_of(self, metadata: ModelMetadata) -> str:
        """Return the name under which a model is asked for here: its version's own, when that is locked by itself."""
        return metadata.reference if metadata.reference in self.models else metadata.name

    def find(self, metadata: ModelMetadata) -> LockedModel | None:
        """Return what was approved of a model, or None when it is not locked.

        DigestMismatchError: it is not, and MEDVLLM_REQUIRE_LOCK is set.
        """
        found, name = self.models.get(self.key(self.name_of(metadata))), metadata.reference
        if found is None and settings.REQUIRE_LOCK():
            raise DigestMismatchError(
                f"Model {name!r} is not in {self.file}, and only locked models may be loaded "
                f"({settings.REQUIRE_LOCK.name}).\nTo approve it: medvllm lock {name}",
                model=name,
                files=(),
            )
        return found

    def key(self, name: str) -> str:
        """Return the name that the file has for a model: a folder below it is told by its path from there."""
        path = Path(name)
        if path.is_absolute() and path.is_relative_to(self.file.parent):
            return f"./{path.relative_to(self.file.parent).as_posix()}"
        return name

    def selected(self, names: tuple[str, ...]) -> dict[str, LockedModel]:
        """Return the named models, or all; CatalogError when one is not locked."""
        for name in names:
            if self.key(name) not in self.models:
                raise CatalogError(
                    f"Model {name!r} is not in {self.file}. It has: {', '.join(sorted(self.models)) or 'nothing'}.\n"
                    f"To approve it: medvllm lock {name}",
                    model=name,
                )
        return {name: self.models[self.key(name)] for name in names or map(self._name, sorted(self.models))}

    def _name(self, key: str) -> str:
        """Return the name of a model that the file has under `key`."""
        return str(self.file.parent / key) if key.startswith("./") else key

    def update(self, models: Mapping[str, LockedModel]) -> "Lock":
        """Write the file with `models` added or replaced, and return it; processes that do so at once take turns."""
        from filelock import FileLock

        turns = settings.HOME() / "locks"
        try:
            make_own(turns)
            with FileLock(turns / f"{hashlib.sha256(str(self.file).encode()).hexdigest()[:16]}.lock"):
                before = Lock.read(self.file)
                after = Lock(self.file, before.models | {self.key(name): model for name, model in models.items()})
                if after.models != before.models or not self.file.exists():
                    write(self.file, after.to_toml().encode())
                return after
        except OSError as error:
            if isinstance(error, MedVLLMError):
                raise
            raise SourceError(f"Lock {self.file} cannot be written: {error}.", path=str(self.file)) from error

    def to_toml(self) -> str:
        """Return the file's content: sorted, so that a change is a small difference."""
        import tomlkit

        document = tomlkit.document()
        document.add(tomlkit.comment(_HEADER))
        document.add("version", tomlkit.item(1))
        models = tomlkit.table(is_super_table=True)
        for name, model in sorted(self.models.items()):
            table = tomlkit.table()
            table.add("source", model.source)
            if model.commit:
                table.add("commit", model.commit)
            for group, digests in (("files", model.files), ("converted", model.converted)):
                rows = tomlkit.table()
                for file, digest in sorted(digests.items()):
                    row = tomlkit.inline_table()
                    row.update({"size": digest.size, "sha256": digest.sha256})
                    rows.add(tomlkit.key(file), row)
                if digests:
                    table.add(group, rows)
            models.add(tomlkit.key(name), table)
        document.add("models", models)
        return tomlkit.dumps(document)


def parsed(text: str) -> dict[str, LockedModel]:
    """Return the models of a lock's text; ValueError says what it should be and is not."""
    content = tomllib.loads(text)
    if content.get("version") != 1:
        raise ValueError(f"its version is {content.get('version')!r:.20}, and this program knows 1")
    models = content.get("models", {})
    if not isinstance(models, dict):
        raise ValueError("'models' is not a table")
    return {name: _model(name, facts) for name, facts in models.items()}


def _model(name: str, facts: Any) -> LockedModel:
    if not isinstance(facts, dict) or facts.keys() - {"source", "commit", "files", "converted"}:
        raise ValueError(f"model {name[:80]!r} has keys that are not known")
    source, commit = facts.get("source"), facts.get("commit")
    if not isinstance(source, str) or not (commit is None or (isinstance(commit, str) and _COMMIT.fullmatch(commit))):
        raise ValueError(f"model {name[:80]!r} has no source, or a commit that is none")
    if source != FOLDER and parse(f"hf://{source}").name != source:  # not one with a revision behind it
        raise ValueError(f"model {name[:80]!r} has the source {source[:80]!r}, which is no repository")
    if (commit is None) != (source == FOLDER):
        raise ValueError(f"model {name[:80]!r} is a folder with a commit, or a repository without one")
    files, converted = _digests(name, facts.get("files")), _digests(name, facts.get("converted", {}))
    if not files:
        raise ValueError(f"model {name[:80]!r} has no files")
    return LockedModel(source, commit, files, converted)


def _digests(name: str, rows: Any) -> dict[str, Digest]:
    if not isinstance(rows, dict):
        raise ValueError(f"model {name[:80]!r} has no table of files")
    found = {}
    for file, row in rows.items():
        size, sha256 = (row.get("size"), row.get("sha256")) if isinstance(row, dict) else (None, None)
        if not is_plain_path(file):
            raise ValueError(f"file {file[:80]!r} of model {name[:80]!r} is no path inside a snapshot")
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(f"file {file[:80]!r} of model {name[:80]!r} has no size and SHA-256")
        found[file] = Digest(size, sha256)
    return found


def _at(source: str, commit: str | None) -> str:
    return f"{source} at {commit[:7]}" if commit else f"the {source}"
