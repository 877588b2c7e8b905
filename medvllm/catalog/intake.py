"""Adds the entries and aliases of a bundle to the stored catalogue."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from medvllm.catalog.events import Alias
from medvllm.catalog.record import content, find_differing, from_record, to_record
from medvllm.errors import CatalogError
from medvllm.facts import MUTABLE_FIELDS
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    from medvllm.catalog.sql.transaction import Transaction

Meant = Mapping[str, ModelMetadata | None]  # what each name, and other name of a model, means before the import
SameFiles = Callable[[ModelMetadata, ModelMetadata], bool]  # whether two entries lead to the same files


@dataclass(frozen=True)
class Wanted:
    """The entries of a bundle, and the aliases that point to them. An entry without a number has version 0."""

    models: Sequence[ModelMetadata]
    aliases: Sequence[Alias]
    meant: Meant
    same_files: SameFiles
    changes: Sequence[str] = ()  # what the bundle would change outside the catalogue


@dataclass
class Intake:
    """What an import does to the catalogue, in words.

    Attributes:
        changes: What would mean something else afterwards. These need `replace`.
        clashes: What cannot be imported at all.
        stays: What the bundle has otherwise, and the import leaves as it is.
        numbers: The versions that entries without a number got, by name.
    """

    changes: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def check(self, *, replace: bool) -> None:
        """Raise CatalogError if something clashes, or if something would change and `replace` is not set."""
        if self.clashes:
            raise CatalogError(
                "The bundle conflicts with models on this machine:\n  "
                + "\n  ".join(self.clashes)
                + "\nA version number always means one model. Register the model under another name where the bundle "
                "was exported, and export that.",
                conflicts=tuple(self.clashes),
            )
        if self.changes and not replace:
            raise CatalogError(
                "The bundle would change models on this machine:\n  "
                + "\n  ".join(self.changes)
                + "\nTo make these changes: medvllm import BUNDLE --replace",
                conflicts=tuple(self.changes),
            )


_name = attrgetter("name")


def add(transaction: "Transaction", wanted: Wanted, reason: str | None) -> Intake:
    """Add what a bundle has to the catalogue, and return what that does."""
    intake = Intake(list(wanted.changes))
    aliases = {name: list(known) for name, known in groupby(sorted(wanted.aliases, key=_name), key=_name)}
    for name, entries in groupby(sorted(wanted.models, key=attrgetter("name", "version")), key=_name):
        _add_name(transaction, name, list(entries), aliases.pop(name, []), wanted, intake, reason)
    if aliases:
        raise CatalogError(f"The bundle has aliases of model {min(aliases)!r}, but no version of that model.")
    return intake


def _add_name(
    transaction: "Transaction",
    name: str,
    entries: Sequence[ModelMetadata],
    aliases: Sequence[Alias],
    wanted: Wanted,
    intake: Intake,
    reason: str | None,
) -> None:
    before = wanted.meant[name]
    number = before.version if before is not None and before.origin == "stored" and before.name == name else None
    for entry in entries:
        if entry.version:
            _add_version(transaction, entry, wanted, intake, reason)
        elif before is None or set(find_differing(entry.facts(), before.facts())) - {"trust_remote_code"}:
            above = before.version if before is not None and before.is_shipped else 0
            intake.numbers[name] = transaction.register(name, to_record(entry), above=above, reason=reason)
        for other in entry.source.also_known_as:
            owner = wanted.meant[other]
            if owner is not None and owner.name != name:
                intake.changes.append(f"{other!r} means {owner.name!r}, and would become another name of {name!r}")
    for alias in aliases:
        _add_alias(transaction, alias, intake, reason)
    if before is not None and transaction.numbers(name):
        meant = transaction.resolve(name, None)
        if meant != number:
            now = f"{name}@{number}" if number else f"the {before.origin} model {before.name!r}"
            intake.changes.append(f"{name!r} means {now}, and would mean {name}@{meant}")


def _add_version(
    transaction: "Transaction", entry: ModelMetadata, wanted: Wanted, intake: Intake, reason: str | None
) -> None:
    """Add a version under its number, or compare it with the one that has the number."""
    name, number, facts = entry.name, entry.version, to_record(entry)
    before = wanted.meant[name]
    if before is not None and before.is_shipped and number <= before.version:
        intake.clashes.append(f"{name}@{number} is the {before.origin} model on this machine")
        return
    exists = number in transaction.numbers(name)
    known = transaction.facts(name, number) if exists else transaction.read_registered_facts(name).get(number)
    if known is not None:
        others = find_differing(content(facts), content(known))
        if not facts.get("trust_remote_code"):  # a bundle neither gives nor takes this permission
            others = [fact for fact in others if fact != "trust_remote_code"]
        if others == ["model_path"] and wanted.same_files(from_record(name, number, known), entry):
            others = []
        if others:
            gone = "" if exists else ", which was unregistered"
            intake.clashes.append(
                f"{name}@{number} is another model on this machine{gone}: it differs in {', '.join(others)}"
            )
            return
    if not exists:
        transaction.register(name, facts, number=number, may_be_lower=True, reason=reason)
        return
    changed = {fact: facts.get(fact) for fact in MUTABLE_FIELDS}
    if news := find_differing(changed, {fact: known.get(fact) for fact in MUTABLE_FIELDS} if known else {}):
        intake.changes.append(f"{name}@{number} would have another {', '.join(news)}")
        if any(alias.protected and alias.version == number for alias in transaction.aliases(name)):
            intake.stays.append(f"{name}@{number} keeps its baseline, because a protected alias points to it")
            changed = {fact: value for fact, value in changed.items() if fact not in ("baseline", "baseline_digest")}
        transaction.change(name, number, changed, reason=reason)


def _add_alias(transaction: "Transaction", alias: Alias, intake: Intake, reason: str | None) -> None:
    """Point an alias to the version that it has in the bundle, unless the alias is protected on this machine."""
    name, number = alias.name, alias.version
    if number is None or number not in transaction.numbers(name):  # the version clashed, and `intake` says so
        return
    known = next((own for own in transaction.aliases(name) if own.alias == alias.alias), None)
    if known is not None and known.version != number:
        if known.protected:
            intake.stays.append(
                f"alias {alias.alias!r} of {name!r} is protected and stays at {known.version}; to move it: "
                f"medvllm alias set {name} {alias.alias} {number} --reason 'why'"
            )
            return
        intake.changes.append(f"alias {alias.alias!r} of {name!r} points to {known.version}, and would to {number}")
    elif known is not None and alias.protected and not known.protected:
        intake.changes.append(f"alias {alias.alias!r} of {name!r} would be protected")
    transaction.set_alias(name, alias.alias, number, reason=reason)
    if alias.protected:
        transaction.protect(name, alias.alias, True, reason=reason)
