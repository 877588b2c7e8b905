"""What a version needs before a protected alias may point to it."""

from typing import TYPE_CHECKING, Protocol

from medvllm.errors import CatalogError
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    from medvllm.catalog.log import Locked


class Protection(Protocol):
    """Decides which versions a protected alias may point to. A registry provides it."""

    def missing_requirements(self, entry: ModelMetadata) -> list[str]:
        """Return what a version still needs before a protected alias may point to it."""
        ...

    def unmet_requirements(self, entry: ModelMetadata) -> list[str]:
        """Return why a version that a protected alias points to would not load."""
        ...

    def get_locked(self, entry: ModelMetadata) -> "Locked | None":
        """Return what the lock file has of a version, or None."""
        ...


def missing_requirements(protection: Protection | None, entry: ModelMetadata) -> list[str]:
    """Return what a version needs, besides a reason, before a protected alias may point to it."""
    if protection is None:
        return ["the check of a registry: use registry.catalog"]
    return protection.missing_requirements(entry)


def check_move(protection: Protection | None, name: str, alias: str, entry: ModelMetadata, reason: str | None) -> None:
    """Raise CatalogError unless a protected alias may be moved to a version, for a reason."""
    missing = [*missing_requirements(protection, entry), *([] if reason else ["a reason: --reason 'why'"])]
    if missing:
        raise _not_ready(f"Alias {alias!r} of model {name!r} is protected, and version {entry.version}", name, missing)


def check_protect(protection: Protection | None, name: str, alias: str, entry: ModelMetadata) -> None:
    """Raise CatalogError unless an alias that points to a version may become protected."""
    missing = [] if protection is None else protection.missing_requirements(entry)
    if missing:
        raise _not_ready(
            f"Alias {alias!r} of model {name!r} cannot be protected: it points to version {entry.version}, which",
            name,
            missing,
        )


def _not_ready(start: str, name: str, missing: list[str]) -> CatalogError:
    return CatalogError(f"{start} lacks:\n  " + "\n  ".join(missing), model=name, missing=tuple(missing))
