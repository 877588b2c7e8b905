"""The text of a lock file: TOML, sorted, so that a change is a small difference."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from medvllm.errors import DigestMismatchError
from medvllm.names import is_commit, parse
from medvllm.receipt import digest_of
from medvllm.sources.digest import Digest, described, differences
from medvllm.sources.layout import is_plain_path

__all__ = ["FOLDER", "Approval", "LockedModel", "parsed", "to_toml"]

FOLDER = "folder"  # the source of a model that is no repository's
_HEADER = "# Written by `medvllm lock`: the commit and the bytes of each model that was approved."
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Approval:
    """Who approved a model, when (UTC, ISO 8601) and why."""

    by: str
    at: str
    reason: str | None = None


@dataclass(frozen=True)
class LockedModel:
    """What was approved of one model. `converted` are the safetensors that were made of a pickle."""

    source: str  # a repository's id, or FOLDER
    commit: str | None
    files: Mapping[str, Digest] = field(hash=False)
    converted: Mapping[str, Digest] = field(default_factory=dict, hash=False)
    approval: Approval | None = field(default=None, compare=False)

    @property
    def digest(self) -> str:
        """One SHA-256 for all files, as a receipt gives it."""
        rows = (
            (path, digest.sha256, digest.size)
            for files in (self.files, self.converted)
            for path, digest in files.items()
        )
        return digest_of(rows)

    @property
    def facts(self) -> dict[str, str]:
        """What the history keeps of it."""
        return {"source": self.source, "digest": self.digest} | ({"commit": self.commit} if self.commit else {})

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


def _at(source: str, commit: str | None) -> str:
    return f"{source} at {commit[:7]}" if commit else f"the {source}"


def to_toml(models: Mapping[str, LockedModel]) -> str:
    """Return the text of a lock. Written by hand: a library takes seconds for thousands of models."""
    return "\n".join((_HEADER, "version = 1", *(line for item in sorted(models.items()) for line in _lines(*item)), ""))


def _lines(name: str, model: LockedModel) -> Iterator[str]:
    table = f"models.{_key(name)}"
    yield from ("", f"[{table}]", f"source = {_text(model.source)}")
    if model.commit:
        yield f"commit = {_text(model.commit)}"
    if model.approval is not None:
        stated = (f"{fact} = {_text(text)}" for fact, text in vars(model.approval).items() if text is not None)
        yield f"approved = {{{', '.join(stated)}}}"
    for group, files in (("files", model.files), ("converted", model.converted)):
        if files:
            yield from ("", f"[{table}.{group}]")
        for path, digest in sorted(files.items()):
            yield f'{_key(path)} = {{size = {digest.size}, sha256 = "{digest.sha256}"}}'


def _key(text: str) -> str:
    return text if _BARE.fullmatch(text) else _text(text)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's, but for this


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
    if not isinstance(facts, dict) or facts.keys() - {"source", "commit", "approved", "files", "converted"}:
        raise ValueError(f"model {name[:80]!r} has keys that are not known")
    source, commit = facts.get("source"), facts.get("commit")
    if not isinstance(source, str) or not (commit is None or is_commit(commit)):
        raise ValueError(f"model {name[:80]!r} has no source, or a commit that is none")
    if source != FOLDER and parse(f"hf://{source}").name != source:  # not one with a revision behind it
        raise ValueError(f"model {name[:80]!r} has the source {source[:80]!r}, which is no repository")
    if (commit is None) != (source == FOLDER):
        raise ValueError(f"model {name[:80]!r} is a folder with a commit, or a repository without one")
    files, converted = _digests(name, facts.get("files")), _digests(name, facts.get("converted", {}))
    if not files:
        raise ValueError(f"model {name[:80]!r} has no files")
    return LockedModel(source, commit, files, converted, _approval(name, facts.get("approved")))


def _approval(name: str, facts: Any) -> Approval | None:
    if facts is None:
        return None
    try:
        if not all(isinstance(text, str) for text in facts.values()):
            raise TypeError
        datetime.fromisoformat(facts["at"])
        return Approval(**facts)
    except (AttributeError, TypeError, KeyError, ValueError):
        raise ValueError(f"model {name[:80]!r} does not say who approved it, and when") from None


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
