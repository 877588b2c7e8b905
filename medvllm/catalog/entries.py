"""Entries as TOML: one table an entry, in the keywords of `registry.register`."""

import tomllib
from collections.abc import Mapping
from typing import Any

from medvllm.errors import CatalogError, MedVLLMError
from medvllm.metadata import ModelMetadata, Origin
from medvllm.names import valid_name


def from_toml(text: str, origin: Origin) -> dict[str, ModelMetadata]:
    """Return the entries by name, in their order in `text`; CatalogError says which one cannot be used."""
    try:
        models = tomllib.loads(text)["models"]
        return {valid_name(name): _entry(name, dict(facts), origin) for name, facts in models.items()}
    except MedVLLMError as error:
        raise CatalogError(f"The entries cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CatalogError(f"The entries cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


def versions_of(text: str) -> dict[str, int]:
    """Return the newest version that `to_toml` noted for each name, also for one that has no entry any more."""
    versions = tomllib.loads(text).get("versions", {})
    if not isinstance(versions, dict) or not all(type(version) is int for version in versions.values()):
        raise CatalogError("The entries cannot be read: 'versions' is not a table of numbers.")
    return versions


def to_toml(entries: Mapping[str, ModelMetadata], versions: Mapping[str, int] | None = None) -> str:
    """Return the entries as text, sorted by name, with every fact that is known."""
    import tomlkit

    noted = {"versions": dict(sorted(versions.items()))} if versions else {}
    models = {name: {"version": entry.version, **entry.facts()} for name, entry in sorted(entries.items())}
    return tomlkit.dumps({**noted, "models": models})


def _entry(name: str, facts: dict[str, Any], origin: Origin) -> ModelMetadata:
    version = facts.pop("version", 1)
    if type(version) is not int or version < 1:
        raise CatalogError(f"Model {name!r} has the version {version!r:.20}, which is no whole number above 0.")
    return ModelMetadata.build(name, facts.pop("model_type"), facts, version=version, origin=origin)
