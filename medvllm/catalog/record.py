"""The facts of a stored version, as the database and the history keep them."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from medvllm import settings
from medvllm.errors import CatalogError, MedVLLMError, MigrationError, RequestError
from medvllm.facts import IDENTIFYING, MUTABLE_FIELDS
from medvllm.lazy import lazy
from medvllm.metadata import ModelMetadata
from medvllm.names import check_revision, parse_name, valid_name

Facts = Mapping[str, Any]
# Before the first release some facts had other names. The history keeps events with these names.
FORMER_NAMES = {
    "aliases": "also_known_as",
    "acceptance": "baseline",
    "accepted": "baseline_digest",
    "evidence": "provenance",
}


class StoredRow:
    """What a stored name means. It becomes metadata only on request, because a listing may look at 100,000 rows."""

    def __init__(self, name: str, model_type: str, read: Callable[[], tuple[int, dict[str, Any]]]) -> None:
        self.name, self.model_type, self._read = name, model_type, read

    @lazy
    def _content(self) -> tuple[int, dict[str, Any]]:
        return self._read()

    def fact(self, keyword: str) -> object:
        """Return a fact by its keyword, or None if it is not known."""
        if keyword == "name":
            return self.name
        if keyword in IDENTIFYING:
            return {"origin": "stored", "version": self._content[0]}.get(keyword)
        return self._content[1].get(keyword)

    def metadata(self) -> ModelMetadata:
        """Return the entry."""
        return from_record(self.name, *self._content)


def to_record(entry: ModelMetadata) -> dict[str, Any]:
    """Return the facts of an entry in the form that is stored.

    Raises:
        ModelNameError: The name of the entry, or another name of it, is not valid.
        RequestError: Another process could not import its class or find its folder, or the folder has a revision.
    """
    for name in (entry.name, *entry.source.also_known_as):
        valid_name(name)
    location = parse_name(entry.location)
    if location.kind == "folder" and not location.text.startswith(("/", "file://", "home://")):
        raise RequestError(
            f"Model {entry.name!r} uses the relative path {location.text[:80]!r}, which depends on the working "
            f"directory.\nUse an absolute path: {location.name}",
            model=entry.name,
        )
    check_revision(entry.name, location, entry.source.revision)
    for path in entry.class_paths:
        module, _, name = (path or "").partition(":")
        if module == "__main__" or "<locals>" in name:
            raise RequestError(
                f"Class {path!r} of model {entry.name!r} cannot be stored, because another process could not import "
                "it.\nDefine the class at the top level of a module, and pass it as 'module:Class'.",
                model=entry.name,
            )
    return entry.facts()


def from_record(name: str, number: int, facts: Facts) -> ModelMetadata:
    """Return a stored version as metadata.

    Raises:
        MigrationError: An earlier development version stored them, under names that the facts no longer have.
        CatalogError: The facts are not valid, for example because a newer program wrote them.
    """
    others = {fact: value for fact, value in facts.items() if fact != "model_type"}
    try:
        return ModelMetadata.build(name, facts["model_type"], others, version=number, origin="stored")
    except (MedVLLMError, KeyError) as error:
        import shlex  # here, as only this message needs it

        if former := sorted(facts.keys() & FORMER_NAMES.keys()):
            raise MigrationError(
                f"Version {number} of model {name!r} was stored by an earlier development version: the fact "
                f"{former[0]!r} is now called {FORMER_NAMES[former[0]]!r}.\n"
                "Take the entries over into a new catalogue; the old one, with its history, stays as it is:\n"
                "  medvllm catalog export > entries.toml\n"
                f"  export {settings.CATALOG.name}={shlex.quote(str(settings.HOME() / 'catalog-new.db'))}\n"
                "  medvllm catalog init\n"
                "  medvllm catalog apply entries.toml"
            ) from error
        raise CatalogError(f"Version {number} of model {name!r} in the catalogue cannot be used: {error}") from error


def with_present_names(facts: Facts) -> Facts:
    """Return the facts of a stored version with the names that the facts have now."""
    if facts.keys().isdisjoint(FORMER_NAMES):
        return facts
    renamed = {FORMER_NAMES.get(fact, fact): value for fact, value in facts.items()}
    if "provenance" in renamed:
        renamed["provenance"] = {FORMER_NAMES.get(fact, fact): how for fact, how in renamed["provenance"].items()}
    return renamed


def package_detail(entry: ModelMetadata) -> dict[str, str]:
    """Return what the history says of the package that an entry comes from; nothing for another entry."""
    return {} if entry.package is None else {"package": entry.package}


def content(facts: Facts) -> dict[str, Any]:
    """Return the facts that make a version: those that never change in it."""
    return {fact: value for fact, value in facts.items() if fact not in MUTABLE_FIELDS}


def mutable(facts: Facts) -> dict[str, Any]:
    """Return the facts that may change in a version."""
    return {fact: value for fact, value in facts.items() if fact in MUTABLE_FIELDS}


def is_same(fact: Any, stored: Any) -> bool:
    """Return whether a fact equals the stored one. Python alone would take True, 1 and 1.0 for equal."""
    return fact == stored and json.dumps(fact, sort_keys=True, default=repr) == json.dumps(stored, sort_keys=True)


def find_differing(facts: Facts, stored: Facts) -> list[str]:
    """Return the names of the facts that differ, sorted. An empty fact equals a missing one."""
    return sorted(
        fact for fact in {**facts, **stored} if not is_same(facts.get(fact) or None, stored.get(fact) or None)
    )
