"""The text of a lock file: sorted TOML, so that each change is a small difference in version control."""

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from medvllm.names import is_commit, parse_name
from medvllm.sources.digest import Digest
from medvllm.sources.layout import is_plain_path
from medvllm.sources.locked_model import FOLDER, Approval, LockedModel

_HEADER = "# Written by `medvllm lock`: the commit and the bytes of each model that was approved."
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(models: Mapping[str, LockedModel]) -> str:
    """Return the text of a lock. It is written by hand, as a TOML library takes seconds for thousands of models."""
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
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # TOML has the escapes of JSON, and this one


def parse_lock(text: str) -> dict[str, LockedModel]:
    """Return the models in the text of a lock.

    Raises:
        ValueError: The text is not a lock. The message says why.
    """
    content = tomllib.loads(text)
    if content.get("version") != 1:
        raise ValueError(f"its version is {content.get('version')!r:.20}, and this program reads 1")
    models = content.get("models", {})
    if not isinstance(models, dict):
        raise ValueError("'models' is not a table")
    return {name: _model(name, facts) for name, facts in models.items()}


def _model(name: str, facts: Any) -> LockedModel:
    if not isinstance(facts, dict) or facts.keys() - {"source", "commit", "approved", "files", "converted"}:
        raise ValueError(f"model {name[:80]!r} has unknown keys")
    source, commit = facts.get("source"), facts.get("commit")
    if not isinstance(source, str) or not (commit is None or is_commit(commit)):
        raise ValueError(f"model {name[:80]!r} has no source, or its commit is not valid")
    if source != FOLDER and parse_name(f"hf://{source}").name != source:  # an id that includes a revision is refused
        raise ValueError(f"model {name[:80]!r} has the source {source[:80]!r}, which is not a repository")
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
            raise ValueError(f"file {file[:80]!r} of model {name[:80]!r} is not a path inside a snapshot")
        if type(size) is not int or size < 0 or not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ValueError(f"file {file[:80]!r} of model {name[:80]!r} has no size and SHA-256")
        found[file] = Digest(size, sha256)
    return found
