"""What a caller may type for a model, and what it means."""

import os
import re
import unicodedata
from pathlib import Path
from typing import Literal, NamedTuple, TypeGuard

from medvllm import settings
from medvllm.errors import ModelNameError
from medvllm.spelling import folded, invisible, lookalike

__all__ = ["ModelRef", "is_commit", "is_digest", "parse", "source_path", "valid_alias", "valid_name"]

MAX_LENGTH = 200  # characters of a name; a folder's path may be longer
# As texts: `re` compiles them when they are first used, and keeps them.
_REPO_ID = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,95})?"
_IN_HOME = "home://"  # a folder below MEDVLLM_HOME, which may be moved
_PATH_STARTS = ("./", "../", "/", "~/", "file://", _IN_HOME)
_VERSION = r"[vV]?\d+([._-]\d+)*"  # a name or an alias that reads as a version
_ALIAS = r"[A-Za-z][A-Za-z0-9._-]{0,63}"
_SHORT_DIGEST = r"[0-9a-f]{40}"


class ModelRef(NamedTuple):
    """What was asked for. A name may turn out to be an entry or, failing that, a repository.

    `suffix` is what followed the ``@``: a version, an alias or a revision, which only the catalogue can tell apart.
    """

    text: str
    kind: Literal["name", "hub", "folder"]
    name: str  # the entry's name, the repository id, or the folder's absolute path
    suffix: str | None = None

    @property
    def is_repo_id(self) -> bool:
        """Whether the name could be a repository's id on the Hub."""
        return self.kind != "folder" and re.fullmatch(_REPO_ID, self.name) is not None


def parse(text: object) -> ModelRef:
    """Return what `text` refers to, or raise ModelNameError.

    ``name``, ``name@3``, ``name@production`` and ``models:/name/3``, ``models:/name@production`` are names;
    ``org/repo`` and ``org/repo@rev`` too, until the catalogue does not know them; ``hf://org/repo@rev`` is always a
    repository;
    ``./dir``, ``/dir``, ``~/dir`` and ``file:///dir`` are folders, and ``home://dir`` is one below MEDVLLM_HOME.
    """
    name = _text(text)
    if name.startswith(_PATH_STARTS) or name in (".", "..", "~"):
        return ModelRef(name, "folder", _folder(name))
    name = folded(name)  # as a keyboard or a file system writes é, it is one
    _check_length(name)
    if name.startswith("hf://"):
        repo, suffix = _split(name.removeprefix("hf://"))
        ref = ModelRef(name, "hub", repo, suffix)
        if not ref.is_repo_id:
            raise ModelNameError(f"{name!r} is not a repository.\nWrite it as: hf://org/repo or hf://org/repo@revision")
        return ref
    if name.startswith("models:/"):
        entry, slash, version = name.removeprefix("models:/").strip("/").rpartition("/")
        if slash and version.isdecimal():
            return ModelRef(name, "name", entry, version)
        entry, suffix = _split(name.removeprefix("models:/").strip("/"))
        if not entry or suffix is None:
            raise ModelNameError(f"{name!r} names no version.\nWrite it as: models:/name/3 or models:/name@alias")
        return ModelRef(name, "name", entry, suffix)
    if "://" in name:
        raise ModelNameError(
            f"{name!r} has a scheme that is not known.\nUse: hf://org/repo, file:///folder, or models:/name/3"
        )
    return ModelRef(name, "name", *_split(name))


def source_path(text: object) -> str:
    """Return a model_path in the form that an entry keeps: a repository as written, a folder by its absolute path, or
    relative to MEDVLLM_HOME where it is a part of it."""
    ref = parse(text)
    if ref.kind != "folder" and not ref.is_repo_id:
        raise ModelNameError(f"{ref.text!r} is no repository's id.\nA folder is written as: ./{ref.text}")
    if ref.kind == "name" and "/" not in ref.name and os.path.isdir(ref.name):
        raise ModelNameError(
            f"{ref.text!r} is a folder here, and reads as a repository's id.\n"
            f"Write the folder as ./{ref.text}, or the repository as hf://{ref.text}"
        )
    return _lasting(ref.name) if ref.kind == "folder" else ref.text


def is_digest(name: str) -> bool:
    """Return whether a folder's name is one that MEDVLLM_HOME/models gives: a digest of the files in it."""
    return re.fullmatch(_SHORT_DIGEST, name) is not None


def is_commit(revision: object) -> TypeGuard[str]:
    """Return whether a revision is a commit in full: one that cannot move."""
    return isinstance(revision, str) and re.fullmatch(_SHORT_DIGEST, revision) is not None


def valid_name(text: object) -> str:
    """Return `text` if an entry may be registered under it, or raise ModelNameError."""
    name = _text(text)
    _check_length(name)
    if (why := lookalike(name)) is not None:
        plain = " ".join(unicodedata.normalize("NFKC", name).split())
        again = f"\nUse: {plain!r}" if lookalike(plain) is None else ""
        raise ModelNameError(f"Model name {name[:80]!r} {why}; it could be taken for another name.{again}")
    if re.fullmatch(_VERSION, name.rpartition("/")[2]):
        raise ModelNameError(
            f"Model name {name!r} reads as a version: models:/name/3 is version 3 of 'name'.\n"
            "Use a name with a word in it, such as 'ner-v2'."
        )
    if "@" in name or ":/" in name or name.startswith(_PATH_STARTS) or name in (".", "..", "~") or "\\" in name:
        raise ModelNameError(
            f"{name!r} cannot be registered: it reads as a folder, a link or a version.\n"
            "Use letters, digits and any of . _ - / : and space, such as 'my-biobert' or 'org/model'."
        )
    return name


def valid_alias(alias: object) -> str:
    """Return `alias` if it may point to a version, or raise ModelNameError."""
    if not isinstance(alias, str) or not re.fullmatch(_ALIAS, alias) or is_commit(alias):
        raise ModelNameError(
            f"Alias {str(alias)[:80]!a} cannot be used.\n"
            "Use a letter, then letters, digits and any of . _ - (64 at most), such as: production"
        )
    if re.fullmatch(_VERSION, alias):
        raise ModelNameError(
            f"Alias {alias!r} cannot be used: it reads as a version, and could point to another one.\n"
            f"A version is asked for by its number: name@{alias.lstrip('vV')}"
        )
    if alias.casefold() == "latest":
        raise ModelNameError(
            f"Alias {alias!r} cannot be used: it would stay where it is when there is a later version.\n"
            "The bare name means the newest version. For one that was chosen, use: production"
        )
    if alias.casefold() == "default" != alias:
        raise ModelNameError(f"Alias {alias!r} cannot be used beside what the bare name means.\nUse: default")
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
            f"Model name {text[:80]!r} begins or ends with a space.\nDid you mean: {text.strip()[:80]!r}?"
        )
    if bad := invisible(text):  # two names would look like one
        raise ModelNameError(f"Model name {text[:80]!a} holds the invisible character U+{ord(bad):04X}.")
    return text


def _check_length(name: str) -> None:
    if len(name) > MAX_LENGTH:
        raise ModelNameError(f"Model name '{name[:40]}…' has {len(name):,} characters; {MAX_LENGTH} are allowed.")


def _split(name: str) -> tuple[str, str | None]:
    """Split ``name@suffix``."""
    head, at, suffix = name.partition("@")
    if at and (not head or not suffix or "@" in suffix):
        raise ModelNameError(
            f"{name!r} is not a name with a version.\nWrite it as: name@3, name@alias or org/repo@revision"
        )
    return head, suffix if at else None


def _folder(text: str) -> str:
    if text.startswith("file://"):
        from urllib.parse import unquote, urlsplit

        url = urlsplit(text)
        if url.netloc not in ("", "localhost") or not url.path:
            raise ModelNameError(f"{text[:80]!r} is not a folder of this machine.\nWrite it as: file:///folder")
        text = unquote(url.path)
    elif text.startswith(_IN_HOME):
        inner = text.removeprefix(_IN_HOME)
        if {"", ".", ".."} & set(inner.split("/")):
            raise ModelNameError(f"{text[:80]!r} is not a folder in MEDVLLM_HOME.\nWrite it as: {_IN_HOME}models/NAME")
        text = str(settings.HOME() / inner)
    if len(text) > 4096:
        raise ModelNameError(f"Folder '{text[:40]}…' has {len(text):,} characters; 4096 are allowed.")
    try:
        return os.path.abspath(os.path.expanduser(text))
    except FileNotFoundError as error:
        raise ModelNameError(f"{text[:80]!r} is relative to a working directory that is gone.") from error


def _lasting(folder: str) -> str:
    """Return a folder below MEDVLLM_HOME relative to it, and another as it is.

    In a catalogue that other homes share, only a folder that is named after its digest means the same to all.
    """
    path, home = Path(folder), settings.HOME()
    for inside, root in ((path, home), (Path(os.path.realpath(path)), Path(os.path.realpath(home)))):
        if inside != root and inside.is_relative_to(root):
            inner = inside.relative_to(root).as_posix()
            is_kept = inner.startswith("models/") and is_digest(inner.removeprefix("models/"))
            return f"{_IN_HOME}{inner}" if is_kept or settings.CATALOG() is None else folder
    return folder
