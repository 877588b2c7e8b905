"""The lock: which commit and which bytes of a model were approved. A TOML file that is kept and reviewed like code."""

import os
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from medvllm import settings
from medvllm.author import now, who
from medvllm.destination import write
from medvllm.errors import CatalogError, DigestMismatchError, MedVLLMError, SourceError
from medvllm.file_lock import file_lock
from medvllm.metadata import ModelMetadata
from medvllm.sources.lock_text import FOLDER, Approval, LockedModel, parsed, to_toml

if sys.platform != "win32":
    import fcntl

__all__ = ["FOLDER", "Approval", "Lock", "LockedModel"]

_NAME = "medvllm.lock"


class Lock:
    """The models of a lock file, by the name they are asked for. A file that is not there yet locks nothing."""

    def __init__(self, file: Path, models: Mapping[str, LockedModel]) -> None:
        self.file = file
        self.models = dict(models)

    @staticmethod
    def place() -> Path:
        """Return the file that is in force: what MEDVLLM_LOCK_FILE names, else `medvllm.lock` in the working directory.

        Where MEDVLLM_REQUIRE_LOCK is set, a file that merely lies in the working directory approves nothing: it may
        have come with the models. It is then the one in MEDVLLM_HOME.
        """
        stated = settings.LOCK_FILE()
        if stated is not None:
            return stated
        if settings.REQUIRE_LOCK():
            return settings.HOME() / _NAME
        try:
            return Path.cwd() / _NAME
        except OSError:  # the working directory is gone: there is none
            return Path(_NAME)

    @classmethod
    def current(cls) -> "Lock":
        """Return the lock that is in force."""
        file = cls.place()
        if settings.LOCK_FILE() is None:
            try:
                os.lstat(file)
            except OSError:  # also where the working directory may not be searched
                return cls(file, {})
        return cls.read(file)

    @classmethod
    def read(cls, file: Path) -> "Lock":
        """Return a file's lock; SourceError when it is not one."""
        try:
            return cls(file, _models(file))
        except FileNotFoundError:
            _check_place(file)
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

    def known(self, metadata: ModelMetadata) -> LockedModel | None:
        """Return what the file has of a model, or None."""
        return self.models.get(self.key(self.name_of(metadata)))

    def find(self, metadata: ModelMetadata) -> LockedModel | None:
        """Return what was approved of a model, or None when it is not locked.

        DigestMismatchError: it is not, and MEDVLLM_REQUIRE_LOCK is set.
        """
        found, name = self.known(metadata), metadata.reference
        if found is None and settings.REQUIRE_LOCK():
            own = Path(_NAME).absolute() if settings.LOCK_FILE() is None and os.path.isfile(_NAME) else None
            other = "" if own is None else f"\nOr, if the lock in this folder is yours: export MEDVLLM_LOCK_FILE={own}"
            raise DigestMismatchError(
                f"Model {name!r} is not in {self.file}, and only locked models may be loaded "
                f"({settings.REQUIRE_LOCK.name}).\nTo approve it: medvllm lock {name}{other}",
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

    def approve(self, models: Mapping[str, LockedModel], reason: str | None = None) -> tuple["Lock", set[str]]:
        """Write models into the file with who approves them, when and why; return it, and the names that are news.

        A model that is there as it is stays as it was approved, unless another `reason` is given. Processes that write
        at once take turns, whatever home, user or container each has.

        Raises:
            SourceError: The file cannot be read, or is no lock.
            OutputError: It cannot be written.
        """
        approval, news = Approval(who(), now(), reason), set()
        try:
            with _turn(self.file):
                lock = Lock.read(self.file)
                for name, model in models.items():
                    known = lock.models.get(self.key(name))
                    if known != model or (reason is not None and _reason(known) != reason):
                        lock.models[self.key(name)] = replace(model, approval=approval)
                        news.add(name)
                if news:
                    write(self.file, to_toml(lock.models).encode())
        except MedVLLMError:
            raise
        except (OSError, UnicodeError) as error:
            raise SourceError(f"Lock {self.file} cannot be written: {error}.", path=str(self.file)) from error
        return lock, news


def _reason(model: LockedModel | None) -> str | None:
    return model.approval.reason if model is not None and model.approval is not None else None


def _models(file: Path) -> dict[str, LockedModel]:
    """Return what a file locks. It is parsed again when its bytes have changed: no stamp could be trusted as far."""
    content = _content(file)
    known = _parsed.get(file)
    if known is None or known[0] != content:
        _parsed.clear()  # it may be large, and one is in force
        known = _parsed[file] = content, parsed(content.decode())
    return known[1]


_parsed: dict[Path, tuple[bytes, dict[str, LockedModel]]] = {}


def _check_place(file: Path) -> None:
    """Raise SourceError where a file that is not there has no place: its disk is not mounted, or its path is wrong."""
    folder = Path(os.path.realpath(file)).parent
    if not os.path.isdir(folder):
        raise SourceError(
            f"Lock {file} is not there: there is no folder {folder}.\n"
            f"If it is on a disk or share, mount that first. To begin a lock: mkdir -p {shlex.quote(str(folder))}",
            path=str(file),
        )


def _content(file: Path) -> bytes:
    handle = os.open(file, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):  # a pipe would be waited for
            raise ValueError("it is not a file")
        return stream.read()


@contextmanager
def _turn(file: Path) -> Iterator[None]:
    """Wait until nobody else writes a lock file, and have it for oneself.

    By a file beside it, which also serves while there is no lock yet; and by the lock file itself, for one that is
    mounted by itself into a container: the folder around it is another one there.
    """
    place = Path(os.path.realpath(file))
    beside = place.with_name(f".{place.name}.turn")
    with ExitStack() as stack:
        if os.access(place.parent, os.W_OK):
            stack.enter_context(file_lock(beside, setting="MEDVLLM_LOCK_FILE", private=False))
            stack.callback(_unlinked, beside)  # who waits for it notices
        stack.enter_context(_held(place))
        yield


def _unlinked(file: Path) -> None:
    with suppress(OSError):
        file.unlink()


@contextmanager
def _held(file: Path) -> Iterator[None]:
    """Hold a file that is there against other writers, where the system can."""
    handle = _locked(file)
    try:
        yield
    finally:
        if handle is not None:
            _unlocked(handle)


def _locked(file: Path) -> int | None:
    """Return a handle that holds a file's lock; None where there is no file, or the system has no such locks."""
    while sys.platform != "win32":
        try:
            handle = os.open(file, os.O_RDWR | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        except OSError:
            _unlocked(handle)
            return None
        _unlocked(handle)  # it was replaced while this process waited
    return None


def _unlocked(handle: int) -> None:
    with suppress(OSError):  # closing alone would leave the lock to a child that was forked meanwhile
        fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)
