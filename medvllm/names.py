"""Parses what a caller writes for a model: the name of an entry, a repository on the Hub, or a folder."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

from medvllm import settings
from medvllm.errors import ModelNameError, RequestError
from medvllm.spelling import find_invisible, find_lookalike, normalize_text

__all__ = [
    "ModelRef",
    "check_revision",
    "is_commit",
    "is_digest",
    "parse_name",
    "source_path",
    "valid_alias",
    "valid_name",
]

MAX_LENGTH = 200  # characters of a name; a folder's path may be longer
# Patterns are texts, not compiled, so that importing this module is fast. `re` compiles and caches them.
_REPO_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?"
_IN_HOME = "home://"  # a folder inside MEDVLLM_HOME, also if that moves
_PATH_STARTS = ("./", "../", "/", "~/", "file://", _IN_HOME)
_VERSION = r"[vV]?\d+([._-]\d+)*"  # a name or an alias that looks like a version
_ALIAS = r"[A-Za-z][A-Za-z0-9._-]{0,63}"
_SHORT_DIGEST = r"[0-9a-f]{40}"


class ModelRef(NamedTuple):
    """What a text refers to. A "name" is an entry or, if there is none, a repository.

    `suffix` is the part after the @: a version, an alias or a revision. Only the catalogue can tell which.
    """

    text: str
    kind: Literal["name", "hub", "folder"]
    name: str  # the entry's name, the repository id, or the folder's absolute path
    suffix: str | None = None

    @property
    def is_repo_id(self) -> bool:
        """Whether the name could be a repository's id on the Hub."""
        return self.kind != "folder" and re.fullmatch(_REPO_ID, self.name) is not None


def parse_name(text: object) -> ModelRef:
    """Return what a text refers to.

    - ``name``, ``name@3``, ``name@production``, ``models:/name/3`` and ``models:/name@production`` are names.
    - ``org/repo`` and ``org/repo@revision`` are names if the catalogue has them, and otherwise repositories.
    - ``hf://org/repo@revision`` is always a repository.
    - ``./folder``, ``/folder``, ``~/folder`` and ``file:///folder`` are folders; ``home://folder`` is one inside
      MEDVLLM_HOME.

    Args:
        text: The text, or a path as an object.

    Raises:
        ModelNameError: The text has none of these forms.
    """
    name = _text(text)
    if name.startswith(_PATH_STARTS) or name in (".", "..", "~"):
        return ModelRef(name, "folder", _folder(name))
    name = normalize_text(name)  # é can be one character or two, depending on the keyboard or file system
    _check_length(name)
    if name.startswith("hf://"):
        repo, suffix = _split(name.removeprefix("hf://"))
        ref = ModelRef(name, "hub", repo, suffix)
        if not ref.is_repo_id:
            raise ModelNameError(f"{name!r} is not a repository.\nUse: hf://org/repo or hf://org/repo@revision")
        return ref
    if name.startswith("models:/"):
        entry, slash, version = name.removeprefix("models:/").strip("/").rpartition("/")
        if slash and version.isdecimal():
            return ModelRef(name, "name", entry, version)
        entry, suffix = _split(name.removeprefix("models:/").strip("/"))
        if not entry or suffix is None:
            raise ModelNameError(f"{name!r} does not name a version.\nUse: models:/name/3 or models:/name@alias")
        return ModelRef(name, "name", entry, suffix)
    if "://" in name:
        raise ModelNameError(f"{name!r} has an unknown scheme.\nUse: hf://org/repo, file:///folder, or models:/name/3")
    return ModelRef(name, "name", *_split(name))


def check_revision(model: str, location: ModelRef, revision: object) -> None:
    """Raise RequestError if an entry has a revision, but its files are in a folder, which has none."""
    if location.kind == "folder" and revision is not None:
        raise RequestError(
            f"Model {model!r} is a folder, so it has no revision {str(revision)[:80]!r}.\n"
            "Leave out the revision. Only a repository on the Hub has one.",
            keyword="revision",
        )


def source_path(text: object) -> str:
    """Return a `model_path` in the form in which an entry keeps it.

    A repository stays as it is written. A folder becomes an absolute path, or a home:// link if it is inside
    MEDVLLM_HOME.

    Raises:
        ModelNameError: The text is neither a folder nor the id of a repository.
    """
    ref = parse_name(text)
    if ref.kind != "folder" and not ref.is_repo_id:
        raise ModelNameError(f"{ref.text!r} is not the id of a repository.\nFor a folder, use: ./{ref.text}")
    if ref.kind == "name" and os.path.isdir(ref.name):
        raise ModelNameError(
            f"{ref.text!r} is a folder here, but looks like the id of a repository.\n"
            f"Use ./{ref.text} for the folder, or hf://{ref.text} for the repository"
        )
    return _lasting(ref.name) if ref.kind == "folder" else ref.text


def is_digest(name: str) -> bool:
    """Return whether a name is a digest of files. The folders in MEDVLLM_HOME/models have such names."""
    return re.fullmatch(_SHORT_DIGEST, name) is not None


def is_commit(revision: object) -> TypeGuard[str]:
    """Return whether a revision is a full commit hash. Unlike a branch or tag, it always means the same files."""
    return isinstance(revision, str) and re.fullmatch(_SHORT_DIGEST, revision) is not None


def valid_name(text: object) -> str:
    """Return a text if it can be the name of an entry.

    Raises:
        ModelNameError: It cannot.
    """
    name = _text(text)
    _check_length(name)
    if (why := find_lookalike(name)) is not None:
        plain = " ".join(unicodedata.normalize("NFKC", name).split())
        again = f"\nUse: {plain!r}" if find_lookalike(plain) is None else ""
        raise ModelNameError(f"Model name {name[:80]!r} {why}. It could be mistaken for another name.{again}")
    if re.fullmatch(_VERSION, name.rpartition("/")[2]):
        raise ModelNameError(
            f"Model name {name!r} looks like a version: models:/name/3 means version 3 of 'name'.\n"
            "Use a name that contains a word, such as 'ner-v2'."
        )
    if "@" in name or ":/" in name or name.startswith(_PATH_STARTS) or name in (".", "..", "~") or "\\" in name:
        raise ModelNameError(
            f"{name!r} cannot be a model's name: it looks like a folder, a link or a version.\n"
            "Use letters, digits, spaces and . _ - / : only, such as 'my-biobert' or 'org/model'."
        )
    return name


def valid_alias(alias: object) -> str:
    """Return a text if it can be an alias.

    Raises:
        ModelNameError: It cannot.
    """
    if not isinstance(alias, str) or not re.fullmatch(_ALIAS, alias) or is_commit(alias):
        raise ModelNameError(
            f"Alias {str(alias)[:80]!a} cannot be used.\n"
            "Start with a letter, then use letters, digits and . _ - (64 characters at most), such as: production"
        )
    if re.fullmatch(_VERSION, alias):
        raise ModelNameError(
            f"Alias {alias!r} cannot be used: it looks like a version, but could point to another one.\n"
            f"For that version, use its number: name@{alias.lstrip('vV')}"
        )
    if alias.casefold() == "latest":
        raise ModelNameError(
            f"Alias {alias!r} cannot be used: it would not move when a new version is registered.\n"
            "The bare name already means the newest version. For a version that you choose, use: production"
        )
    if alias.casefold() == "default" != alias:
        raise ModelNameError(f"Alias {alias!r} cannot be used: it differs from 'default' only in case.\nUse: default")
    return alias


def _text(text: object) -> str:
    if isinstance(text, os.PathLike):
        path = os.fspath(text)
        text = str(Path(path)) if isinstance(path, str) else path
        text = text if isinstance(text, bytes) or os.path.isabs(text) else f"./{text}"
    if not isinstance(text, str):
        raise ModelNameError(f"A model's name must be text, not {type(text).__name__}.")
    if not text.strip():
        raise ModelNameError("A model's name is empty.\nList the names with: medvllm list")
    if text != text.strip():
        raise ModelNameError(
            f"Model name {text[:80]!r} starts or ends with a space.\nDid you mean: {text.strip()[:80]!r}?"
        )
    if bad := find_invisible(text):  # a name with it would look the same as the name without it
        raise ModelNameError(f"Model name {text[:80]!a} contains the invisible character U+{ord(bad):04X}.")
    return text


def _check_length(name: str) -> None:
    if len(name) > MAX_LENGTH:
        raise ModelNameError(
            f"Model name '{name[:40]}…' has {len(name):,} characters. At most {MAX_LENGTH} are allowed."
        )


def _split(name: str) -> tuple[str, str | None]:
    """Split ``name@suffix``."""
    head, at, suffix = name.partition("@")
    if at and (not head or not suffix or "@" in suffix):
        raise ModelNameError(f"{name!r} is not a name with a version.\nUse: name@3, name@alias or org/repo@revision")
    return head, suffix if at else None


def _folder(text: str) -> str:
    if text.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        url = urlsplit(text)
        if url.netloc not in ("", "localhost") or not url.path:
            raise ModelNameError(f"{text[:80]!r} is not a folder on this machine.\nUse: file:///folder")
        text = unquote(url.path)
    elif text.startswith(_IN_HOME):
        inner = text.removeprefix(_IN_HOME)
        if {"", ".", ".."} & set(inner.split("/")):
            raise ModelNameError(f"{text[:80]!r} is not a folder in MEDVLLM_HOME.\nUse: {_IN_HOME}models/NAME")
        text = str(settings.HOME() / inner)
    if len(text) > 4096:
        raise ModelNameError(f"Folder '{text[:40]}…' has {len(text):,} characters. At most 4,096 are allowed.")
    try:
        return os.path.abspath(os.path.expanduser(text))
    except FileNotFoundError as error:
        raise ModelNameError(f"{text[:80]!r} is relative to a working directory that no longer exists.") from error


def _lasting(folder: str) -> str:
    """Return a folder inside MEDVLLM_HOME as a home:// link, and any other as it is.

    If users with other homes share the catalogue, a folder becomes a link only if it is named after its digest, because
    only such a folder has the same content in every home.
    """
    path, home = Path(folder), settings.HOME()
    for inside, root in ((path, home), (Path(os.path.realpath(path)), Path(os.path.realpath(home)))):
        if inside != root and inside.is_relative_to(root):
            inner = inside.relative_to(root).as_posix()
            is_kept = inner.startswith("models/") and is_digest(inner.removeprefix("models/"))
            return f"{_IN_HOME}{inner}" if is_kept or settings.CATALOG() is None else folder
    return folder
