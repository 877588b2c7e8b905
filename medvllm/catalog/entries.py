"""Entries as TOML: a table for each entry with the keywords of `registry.register`, and the aliases of each name."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

from medvllm.errors import CatalogError, MedVLLMError
from medvllm.metadata import ModelMetadata, Origin
from medvllm.names import valid_name
from medvllm.word_patterns import check_word_pattern

if TYPE_CHECKING:
    from medvllm.catalog.events import Alias


class Entries(NamedTuple):
    """What a file says. A table ``[models.name]`` has version 0, and ``[models."name@2"]`` has version 2."""

    models: tuple[ModelMetadata, ...]
    aliases: "tuple[Alias, ...] | None"  # None: the file has no table of aliases


def parse_entries(
    text: str, origin: Origin, file: str = "The entries", loads: Callable[[str], dict[str, Any]] | None = None
) -> Entries:
    """Return what a file says, in its order.

    Args:
        text: The file as TOML.
        origin: The origin that the entries get.
        file: What to call the file in messages.
        loads: Parses the text; by default `tomllib.loads`.

    Raises:
        CatalogError: The text is not TOML, or an entry is not valid; the message says which one.
    """
    try:
        content = loads(text) if loads else _parse_toml(text)
        if unknown := content.keys() - {"models", "aliases"}:
            raise CatalogError(f"it has an unknown table {min(unknown)[:80]!r}; use 'models' and 'aliases'")
        if "models" not in content:
            raise CatalogError("the table 'models' is missing")
        models = tuple(_entry(key, dict(facts), origin) for key, facts in content["models"].items())
        aliases = content.get("aliases")
        if aliases is None:
            return Entries(models, None)
        states = ((name, alias, state) for name, known in aliases.items() for alias, state in known.items())
        return Entries(models, tuple(_alias(name, alias, state) for name, alias, state in states))
    except MedVLLMError as error:
        raise CatalogError(f"{file} cannot be read: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CatalogError(f"{file} cannot be read: {type(error).__name__}: {str(error)[:200]}") from error


def _parse_toml(text: str) -> dict[str, Any]:
    import tomllib  # here, as a listing does without it

    return tomllib.loads(text)


def from_toml(
    text: str, origin: Origin, file: str = "The entries", loads: Callable[[str], dict[str, Any]] | None = None
) -> dict[str, ModelMetadata]:
    """Return the entries of a file by name. Each name may occur once; an entry without a version gets version 1.

    Raises:
        CatalogError: An entry is not valid, or a name occurs twice.
    """
    found: dict[str, ModelMetadata] = {}
    content = parse_entries(text, origin, file, loads)
    if content.aliases:
        raise CatalogError(f"{file} cannot be read: it has aliases, which only stored models have.")
    for entry in content.models:
        if entry.name in found:
            raise CatalogError(f"{file} cannot be read: model {entry.name!r} occurs twice.")
        found[entry.name] = entry if entry.version else entry.with_attributes(version=1)
    return found


def to_toml(entries: Iterable[ModelMetadata], aliases: "Iterable[Alias] | None" = None) -> str:
    """Return entries as TOML with every fact that is known, sorted by name and version.

    Args:
        entries: The entries. Stored ones keep their version numbers.
        aliases: The aliases. None leaves out the table of aliases, so that applying the text keeps the existing ones.
    """
    import tomlkit

    models = {
        entry.reference: entry.facts() for entry in sorted(entries, key=lambda entry: (entry.name, entry.version))
    }
    pointing: dict[str, dict[str, Any]] = {}
    for alias in sorted(aliases or (), key=lambda alias: (alias.name, alias.alias)):
        state = {} if alias.version is None else {"version": alias.version}
        if alias.protected:
            table = tomlkit.inline_table()
            table.update({**state, "protected": True})
            pointing.setdefault(alias.name, {})[alias.alias] = table
        else:
            pointing.setdefault(alias.name, {})[alias.alias] = alias.version
    return tomlkit.dumps({"models": models, **({} if aliases is None else {"aliases": pointing})})


def _entry(key: str, facts: dict[str, Any], origin: Origin) -> ModelMetadata:
    name, at, number = key.partition("@")
    version = _number(key, int(number) if number.isdecimal() else number) if at else 0
    if "model_type" not in facts:
        raise CatalogError(f'model {key[:200]!r} has no model_type; quote a name that has a dot: [models."a.b"]')
    entry = ModelMetadata.build(valid_name(name), facts.pop("model_type"), facts, version=version, origin=origin)
    if origin == "stored":  # a person wrote it, and waits; what is installed was checked before
        check_word_pattern(entry.name, entry.behaviour.word_pattern)
    return entry


def _alias(name: str, alias: str, state: Any) -> "Alias":
    from medvllm.catalog.events import Alias  # here, as a listing does without it

    facts = state if isinstance(state, dict) else {"version": state}
    version, protected = facts.get("version"), facts.get("protected", False)
    if facts.keys() - {"version", "protected"} or type(protected) is not bool or not (protected or version is not None):
        raise CatalogError(
            f"Alias {alias[:80]!r} of model {name[:80]!r} must be a version, or {{version = 2, protected = true}}."
        )
    return Alias(valid_name(name), alias, None if version is None else _number(f"{name}@{alias}", version), protected)


def _number(of: str, version: object) -> int:
    if type(version) is not int or not 0 < version < 2**31:
        raise CatalogError(f"The version of {of[:200]!r} must be a whole number of at least 1, not {version!r:.20}.")
    return version
