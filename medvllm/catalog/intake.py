"""What a bundle brings into the stored catalogue: versions with their numbers, aliases, and what it may not change."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from medvllm.catalog.events import Alias
from medvllm.catalog.stored import from_record, to_record
from medvllm.errors import CatalogError
from medvllm.facts import MUTABLE_FIELDS
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    from medvllm.catalog.sql.transaction import Transaction

Meant = Mapping[str, ModelMetadata | None]  # what a name, or another name of a model, means now
SameFiles = Callable[[ModelMetadata, ModelMetadata], bool]  # whether two entries lead to the same files


@dataclass(frozen=True)
class Wanted:
    """Entries, those of version 0 without a number, and the aliases that point to them."""

    models: Sequence[ModelMetadata]
    aliases: Sequence[Alias]
    meant: Meant
    same_files: SameFiles
    changes: Sequence[str] = ()  # what it would change here beside the catalogue


@dataclass
class Intake:
    """What came of it. `changes` alter what is here, and need leave; `clashes` cannot be; `stays` are left as they are.

    `numbers` are the versions of entries that had none, by name.
    """

    changes: list[str] = field(default_factory=list)
    clashes: list[str] = field(default_factory=list)
    stays: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def check(self, *, replace: bool) -> None:
        """Raise CatalogError when something cannot be, or would change what is here without leave to `replace` it."""
        if self.clashes:
            raise CatalogError(
                "The bundle does not fit what is here:\n  "
                + "\n  ".join(self.clashes)
                + "\nA number always means one version. Register the model there under another name, and export that.",
                conflicts=tuple(self.clashes),
            )
        if self.changes and not replace:
            raise CatalogError(
                "The bundle would change what is here:\n  "
                + "\n  ".join(self.changes)
                + "\nIf that is meant: medvllm import BUNDLE --replace",
                conflicts=tuple(self.changes),
            )


def take(transaction: "Transaction", wanted: Wanted, reason: str | None) -> Intake:
    """Add what is wanted to the catalogue, and return what came of it."""
    intake = Intake(list(wanted.changes))
    aliases = {name: list(known) for name, known in groupby(sorted(wanted.aliases, key=_name), key=_name)}
    for name, entries in groupby(sorted(wanted.models, key=attrgetter("name", "version")), key=_name):
        _take_name(transaction, name, list(entries), aliases.pop(name, []), wanted, intake, reason)
    if aliases:
        raise CatalogError(f"The bundle has aliases of model {min(aliases)!r}, but no version of it.")
    return intake


_name = attrgetter("name")


def _take_name(
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
            _take_version(transaction, entry, wanted, intake, reason)
        elif before is None or set(_differing(entry.facts(), before.facts())) - {"trust_remote_code"}:
            above = before.version if before is not None and before.origin == "built-in" else 0
            intake.numbers[name] = transaction.register(name, to_record(entry), above=above, reason=reason)
        for other in entry.source.also_known_as:
            owner = wanted.meant[other]
            if owner is not None and owner.name != name:
                intake.changes.append(f"{other!r} means {owner.name!r}, and would be another name of {name!r}")
    for alias in aliases:
        _take_alias(transaction, alias, intake, reason)
    if before is not None and transaction.numbers(name):
        meant = transaction.resolve(name, None)
        if meant != number:
            where = f"{name}@{number}" if number else f"the {before.origin} {before.name!r}"
            intake.changes.append(f"{name!r} means {where}, and would mean {name}@{meant}")


def _take_version(
    transaction: "Transaction", entry: ModelMetadata, wanted: Wanted, intake: Intake, reason: str | None
) -> None:
    """Add a version under its number, or see that it is here already."""
    from medvllm.catalog.sql.transaction import content

    name, number, facts = entry.name, entry.version, to_record(entry)
    before = wanted.meant[name]
    if before is not None and before.origin == "built-in" and number <= before.version:
        intake.clashes.append(f"{name}@{number} is the built-in model here")
        return
    is_here = number in transaction.numbers(name)
    known = transaction.facts(name, number) if is_here else transaction.registered(name).get(number)
    if known is not None:
        differing = _differing(content(facts), content(known))
        if not facts.get("trust_remote_code"):  # which no bundle brings, and none takes away
            differing = [fact for fact in differing if fact != "trust_remote_code"]
        if differing == ["model_path"] and wanted.same_files(from_record(name, number, known), entry):
            differing = []
        if differing:
            gone = "" if is_here else ", which was unregistered"
            intake.clashes.append(f"{name}@{number} is another model here{gone}: it differs in {', '.join(differing)}")
            return
    if not is_here:
        transaction.register(name, facts, number=number, may_be_lower=True, reason=reason)
        return
    marks = {mark: facts.get(mark) for mark in MUTABLE_FIELDS}
    if news := _differing(marks, {mark: known.get(mark) for mark in MUTABLE_FIELDS} if known else {}):
        intake.changes.append(f"{name}@{number} would have another {', '.join(news)}")
        protected = any(alias.protected and alias.version == number for alias in transaction.aliases(name))
        if protected:  # what was accepted here counts
            intake.stays.append(f"{name}@{number} keeps its acceptance: a protected alias points to it")
            marks = {mark: value for mark, value in marks.items() if mark not in ("baseline", "baseline_digest")}
        transaction.change(name, number, marks, reason=reason)


def _take_alias(transaction: "Transaction", alias: Alias, intake: Intake, reason: str | None) -> None:
    """Point an alias where it pointed; one that is protected here stays."""
    name, number = alias.name, alias.version
    if number is None or number not in transaction.numbers(name):  # it clashes, and that is said
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


def _differing(wanted: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    from medvllm.catalog.sql.transaction import same

    return sorted(fact for fact in {**wanted, **known} if not same(wanted.get(fact) or None, known.get(fact) or None))
