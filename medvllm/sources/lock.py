"""The lock: which commit and which bytes of each model were approved. It is a TOML file, reviewed like code."""

import os
import shlex
import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from medvllm import settings
from medvllm.author import now, who
from medvllm.destination import write_output
from medvllm.errors import CatalogError, DigestMismatchError, MedVLLMError, SourceError
from medvllm.metadata import ModelMetadata
from medvllm.own_changes import own_changes
from medvllm.sources.lock_path import LOCK_NAME, lock_path
from medvllm.sources.lock_text import parse_lock, to_toml
from medvllm.sources.lock_writer import hold_lock_file
from medvllm.sources.locked_model import Approval, LockedModel


class Lock:
    """The approved models of a lock file. A file that does not exist yet approves none.

    Attributes:
        file: The lock file.
        models: What is approved, by the key of the model in the file.
    """

    def __init__(self, file: Path, models: Mapping[str, LockedModel]) -> None:
        self.file = file
        self.models = dict(models)

    @staticmethod
    def current_path() -> Path:
        """Return the lock file in use, as `lock_path` does."""
        return lock_path()

    @classmethod
    def current(cls) -> "Lock":
        """Return the lock in use.

        Raises:
            SourceError: The file is not a lock, or cannot be read.
        """
        file = cls.current_path()
        if settings.LOCK_FILE() is None:
            try:
                os.lstat(file)
            except OSError:  # also if the working directory may not be searched
                return cls(file, {})
        return cls.read(file)

    @classmethod
    def read(cls, file: Path) -> "Lock":
        """Return the lock in a file.

        Raises:
            SourceError: The file is not a lock, cannot be read, or is in a folder that does not exist.
        """
        try:
            return cls(file, _read_models(file))
        except FileNotFoundError:
            _check_folder(file)
            return cls(file, {})
        except (ValueError, RecursionError, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise SourceError(
                f"Lock file {file} cannot be read: {reason}.\n"
                "Restore it from version control. No model is loaded until then.",
                path=str(file),
            ) from error

    def name_of(self, metadata: ModelMetadata) -> str:
        """Return the name of a model in this lock: that of its version if the version is locked by itself."""
        return metadata.reference if metadata.reference in self.models else metadata.name

    def get(self, metadata: ModelMetadata) -> LockedModel | None:
        """Return what the lock has about a model, or None."""
        return self.models.get(self.key_of(self.name_of(metadata)))

    def get_approved(self, metadata: ModelMetadata) -> LockedModel | None:
        """Return what the lock has about a model, or None if it may be loaded without approval.

        Raises:
            DigestMismatchError: The model is not locked, and MEDVLLM_REQUIRE_LOCK is set.
        """
        found, name = self.get(metadata), metadata.reference
        if found is None and settings.REQUIRE_LOCK():
            own = Path(LOCK_NAME).absolute() if settings.LOCK_FILE() is None and os.path.isfile(LOCK_NAME) else None
            other = "" if own is None else f"\nOr, if the lock in this folder is yours: export MEDVLLM_LOCK_FILE={own}"
            raise DigestMismatchError(
                f"Model {name!r} is not in {self.file}, and only locked models may be loaded "
                f"({settings.REQUIRE_LOCK.name}).\nTo approve it: medvllm lock {name}{other}",
                model=name,
                files=(),
            )
        return found

    def key_of(self, name: str) -> str:
        """Return the key of a model. A folder below the lock file has a relative path, so that both can move."""
        path = Path(name)
        if path.is_absolute() and path.is_relative_to(self.file.parent):
            return f"./{path.relative_to(self.file.parent).as_posix()}"
        return name

    def select(self, names: tuple[str, ...]) -> dict[str, LockedModel]:
        """Return what the lock has about the named models, by name. Without names, return all models.

        Raises:
            CatalogError: A model is not in the lock.
        """
        for name in names:
            if self.key_of(name) not in self.models:
                has = f"It has: {', '.join(sorted(self.models)) or 'no models'}."
                raise CatalogError(
                    f"Model {name!r} is not in lock file '{self.file}'. "
                    f"{has if os.path.exists(self.file) else 'The file does not exist.'}\n"
                    f"To approve it: medvllm lock {name}",
                    model=name,
                )
        return {name: self.models[self.key_of(name)] for name in names or map(self._name, sorted(self.models))}

    def _name(self, key: str) -> str:
        """Return the name of the model with this key."""
        return str(self.file.parent / key) if key.startswith("./") else key

    def approve(self, models: Mapping[str, LockedModel], reason: str | None = None) -> tuple["Lock", set[str]]:
        """Write models into the lock file, with who approves them, when and why.

        A model that has not changed keeps its approval, unless another `reason` is given. Processes that write at the
        same time wait for each other, whatever home, user or container each has.

        Args:
            models: What is approved, by name.
            reason: Why it is approved.

        Returns:
            The lock as it is now, and the names of the models that changed in it.

        Raises:
            SourceError: The file cannot be read, or is not a lock.
            OutputError: The file cannot be written.
        """
        approval, changed = Approval(who(), now(), reason), set()
        try:
            with hold_lock_file(self.file):
                lock = Lock.read(self.file)
                for name, model in models.items():
                    known = lock.models.get(self.key_of(name))
                    if known != model or (reason is not None and _reason(known) != reason):
                        lock.models[self.key_of(name)] = replace(model, approval=approval)
                        changed.add(name)
                if changed:
                    write_output(self.file, to_toml(lock.models).encode())
                    own_changes.note()
        except MedVLLMError:
            raise
        except (OSError, UnicodeError) as error:
            raise SourceError(f"Lock {self.file} cannot be written: {error}.", path=str(self.file)) from error
        return lock, changed


def _reason(model: LockedModel | None) -> str | None:
    return model.approval.reason if model is not None and model.approval is not None else None


def _read_models(file: Path) -> dict[str, LockedModel]:
    """Return the models of a lock file. It is read each time, and parsed again if its bytes have changed."""
    content = _read_plain_file(file)
    known = _parsed.get(file)
    if known is None or known[0] != content:
        _parsed.clear()  # a lock may be large, and only one is in use
        known = _parsed[file] = content, parse_lock(content.decode())
    return known[1]


_parsed: dict[Path, tuple[bytes, dict[str, LockedModel]]] = {}


def _check_folder(file: Path) -> None:
    """Raise SourceError if the folder of a missing lock file does not exist, as on a disk that is not mounted."""
    folder = Path(os.path.realpath(file)).parent
    if not os.path.isdir(folder):
        raise SourceError(
            f"Lock file {file} does not exist, and neither does its folder {folder}.\n"
            "If it is on a disk or share, mount it first. To start a new lock file: "
            f"mkdir -p {shlex.quote(str(folder))}",
            path=str(file),
        )


def _read_plain_file(file: Path) -> bytes:
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):  # reading a pipe would wait for ever
            raise ValueError("it is not a plain file")
        return stream.read()
