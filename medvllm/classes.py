"""References to classes, such as "module:Class". A class is imported when it is first needed."""

import functools
import importlib
from typing import Any

from medvllm.errors import CatalogError, MissingDependencyError


def is_reference(text: str) -> bool:
    """Return whether a text has the form "module:Class"."""
    module, colon, name = text.partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), *name.split(".")))


def import_class(reference: "type | str | None") -> "type[Any] | None":
    """Return the class for a reference such as "transformers:AutoModel". A class is returned as it is.

    Raises:
        MissingDependencyError: The module cannot be imported.
        CatalogError: The module has no such class.
    """
    if reference is None or isinstance(reference, type):
        return reference
    module_name, _, class_name = reference.partition(":")
    try:
        found = functools.reduce(getattr, class_name.split("."), importlib.import_module(module_name))
    except ImportError as error:
        raise MissingDependencyError(
            f"Class {reference!r} cannot be imported: {error}.\n"
            "Install the package that contains it, or add its folder to PYTHONPATH.",
            reference=reference,
        ) from error
    except AttributeError as error:
        raise CatalogError(
            f"Class {reference!r} does not exist: module {module_name!r} has no {class_name!r}.", reference=reference
        ) from error
    if not isinstance(found, type):
        raise CatalogError(f"{reference!r} is not a class but {type(found).__name__}.", reference=reference)
    return found


def class_path(reference: "type | str | None") -> str | None:
    """Return a class or reference as "module:Class", without importing anything."""
    return f"{reference.__module__}:{reference.__qualname__}" if isinstance(reference, type) else reference


class LazyClass:
    """A dataclass field for a class or its reference. Reading it returns the class, and imports it if needed."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._key = f"_{name}"

    def __get__(self, instance: object, owner: type | None = None) -> "type[Any] | None":
        if instance is None:  # a dataclass asks the class for the default
            return None
        return import_class(instance.__dict__[self._key])

    def __set__(self, instance: object, value: "type | str | None") -> None:
        instance.__dict__[self._key] = value
