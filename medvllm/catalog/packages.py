"""The entries that installed packages bring: each names itself in the entry point group `medvllm.catalogs`.

An entry point names a Python package that has a file `catalog.toml`, in the form of `medvllm catalog export`. Only this
file is read: no code of the package runs.
"""

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from medvllm.catalog.entries import from_toml
from medvllm.catalog.record import to_record
from medvllm.errors import CatalogError
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "medvllm.catalogs"
FILE = "catalog.toml"
_TABLE = r"""^[ \t]*\[[ \t]*models[ \t]*\.[ \t]*(?:"([^"\n]+)"|'([^'\n]+)'|([A-Za-z0-9_-]+))"""


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
    points = sorted(_entry_points(), key=_package)
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


def _entry_points() -> "Iterator[EntryPoint]":
    """Iterate over the entry points of the group.

    `importlib.metadata.entry_points` would fail for all packages if one of them has a damaged file.
    """
    from importlib.metadata import distributions  # takes as long to import as a listing takes

    seen = set()
    for distribution in distributions():
        try:
            if GROUP not in (distribution.read_text("entry_points.txt") or ""):
                continue
            if distribution.name not in seen:  # of two versions, Python finds the first one
                seen.add(distribution.name)
                yield from distribution.entry_points.select(group=GROUP)
        except Exception as error:  # whatever the text of a damaged file leads to
            _warn("The entry points of a package in %s cannot be read: %s", distribution.locate_file(""), error)


def _package(point: "EntryPoint") -> str:
    """Return name and version of the package that an entry point belongs to."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.name


def _read(point: "EntryPoint") -> Shipment:
    """Return the entries of one package."""
    package, text = _package(point), ""
    try:
        content = _find_file(point).read_bytes()
        text = content.decode("utf-8", errors="replace")  # at least for the names
        entries = from_toml(content.decode("utf-8-sig"), "package", f"File {FILE}")
        for entry in entries.values():
            to_record(entry)  # raises an error if the entry depends on the working directory or on one process
        return Shipment({name: entry.with_attributes(package=package) for name, entry in entries.items()}, {})
    except Exception as error:  # an installed package may be wrong in any way
        _warn("The entries of package %s cannot be used: %s", package, error)
        why = f"The entries of package {package} cannot be used: {error}\nCorrect or uninstall the package."
        return Shipment({}, dict.fromkeys(_names_in(text), why))


def _find_file(point: "EntryPoint") -> Path:
    """Return the file of an entry point."""
    if not re.fullmatch(r"\w+(\.\w+)*", point.value.strip()):
        raise CatalogError(f"entry point {point.name!r} must name a package, not {point.value!r}")
    for folder in _folders(point.value.strip()):
        if (file := Path(folder) / FILE).is_file():
            return file
    raise CatalogError(f"there is no file {FILE} in a Python package {point.value.strip()!r}")


def _folders(package: str) -> list[str]:
    """Return the folders of a Python package.

    Of a package a.b, `importlib.util.find_spec` would import a. This runs no code of either.
    """
    name = ""
    folders: list[str] | None = None
    for part in package.split("."):
        name = f"{name}.{part}" if name else part
        try:
            specs = (finder.find_spec(name, folders) for finder in sys.meta_path)
            spec = next((spec for spec in specs if spec is not None), None)
        except KeyError:  # a package without __init__.py asks sys.modules for the one around it
            folders = [os.path.join(folder, part) for folder in folders or ()]
            continue
        if spec is None or spec.submodule_search_locations is None:
            return []
        folders = list(spec.submodule_search_locations)
    return folders or []


def _names_in(text: str) -> list[str]:
    """Return the names and other names that a file with an error in it seems to have."""
    import tomllib

    others: list[str] = []
    try:
        models = tomllib.loads(text.removeprefix("\ufeff"))["models"]
        keys = [*models]
        for facts in models.values():
            claimed = facts.get("also_known_as") if isinstance(facts, dict) else None
            others += [other for other in claimed if isinstance(other, str)] if isinstance(claimed, list) else []
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        keys = [next(filter(None, found.groups())) for found in re.finditer(_TABLE, text, re.MULTILINE)]
    return [*(key.partition("@")[0] for key in keys), *others]


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
