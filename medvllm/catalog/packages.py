"""The entries that installed packages bring: each names itself in the entry point group `medvllm.catalogs`.

An entry point names a Python package that has a file `catalog.toml`, in the form of `medvllm catalog export`. Only this
file is read: no code of the package runs.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medvllm.catalog.entries import from_toml
from medvllm.catalog.record import to_record
from medvllm.errors import CatalogError, MedVLLMError
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "medvllm.catalogs"
FILE = "catalog.toml"
_TABLE = r"""^\s*\[models\.(?:"([^"\n]+)"|'([^'\n]+)'|([A-Za-z0-9_-]+))"""


class Shipment(NamedTuple):
    """The entries of packages by name, and the names that must not be used, each with the reason."""

    entries: Mapping[str, ModelMetadata]
    broken: Mapping[str, str]


def package_entries() -> Shipment:
    """Return the entries of all installed packages.

    A package whose file cannot be read is named in one warning, and so is each name that two packages claim. The other
    entries can be used.
    """
    if not _is_any_installed():
        return Shipment({}, {})
    from importlib.metadata import entry_points  # takes as long to import as a listing takes

    points = sorted(entry_points(group=GROUP), key=_package)
    return _combine([(_package(point), _read(point)) for point in points])


def _is_any_installed() -> bool:
    """Return whether an installed package may have an entry point of the group. This only reads small files."""
    for place in sys.path:
        try:
            with os.scandir(place or ".") as found:
                folders = [entry.path for entry in found if entry.name.endswith((".dist-info", ".egg-info"))]
        except NotADirectoryError:
            return True  # a zip file: importlib.metadata can look into it
        except OSError:
            continue
        for folder in folders:
            try:
                with open(os.path.join(folder, "entry_points.txt"), "rb") as file:
                    if GROUP.encode() in file.read():
                        return True
            except OSError:
                continue  # most packages have no entry points
    return False


def _package(point: "EntryPoint") -> str:
    """Return name and version of the package that an entry point belongs to."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.name


def _read(point: "EntryPoint") -> Shipment:
    """Return the entries of one package."""
    package, text = _package(point), ""
    try:
        text = _find_file(point).read_text(encoding="utf-8")
        entries = from_toml(text, "package", f"File {FILE}")
        for entry in entries.values():
            to_record(entry)  # raises an error if the entry depends on the working directory or on one process
        return Shipment({name: entry.with_attributes(package=package) for name, entry in entries.items()}, {})
    except (MedVLLMError, OSError, ImportError, ValueError, AttributeError) as error:
        _warn("The entries of package %s cannot be used: %s", package, error)
        why = f"The entries of package {package} cannot be used: {error}\nCorrect or uninstall the package."
        return Shipment({}, dict.fromkeys(_names_in(text), why))


def _find_file(point: "EntryPoint") -> Path:
    """Return the file of an entry point. Of a package a.b, only a is imported; of a package a, nothing."""
    from importlib.util import find_spec

    if point.attr:
        raise CatalogError(f"entry point {point.name!r} must name a package, not {point.value!r}")
    spec = find_spec(point.module)
    folders = [] if spec is None else list(spec.submodule_search_locations or ())
    for folder in folders:
        if (file := Path(folder) / FILE).is_file():
            return file
    raise CatalogError(f"there is no file {FILE} in a Python package {point.module!r}")


def _names_in(text: str) -> list[str]:
    """Return the names that a file with an error in it seems to have."""
    return [next(filter(None, found.groups())).partition("@")[0] for found in re.finditer(_TABLE, text, re.MULTILINE)]


def _combine(shipments: Iterable[tuple[str, Shipment]]) -> Shipment:
    """Return the entries of all packages. A name that two of them claim is not used at all."""
    entries: dict[str, ModelMetadata] = {}
    broken: dict[str, str] = {}
    claims: dict[str, str] = {}  # each name and other name -> the package that has it
    for package, shipment in shipments:
        broken |= shipment.broken
        for entry in shipment.entries.values():
            for name in (entry.name, *entry.source.also_known_as):
                if claims.setdefault(name, package) != package:
                    broken[name] = (
                        f"Model {name!r} is in two packages: {claims[name]} and {package}.\nUninstall one of them."
                    )
                    _warn("%s", broken[name].partition("\n")[0])
            entries[entry.name] = entry
    return Shipment({name: entry for name, entry in entries.items() if name not in broken}, broken)


def _warn(message: str, *values: object) -> None:
    import logging  # here, as most listings have nothing to warn of

    logging.getLogger(__name__).warning(message, *values)
