"""Makes the stored catalogue equal to a file of entries."""

from collections.abc import Iterable, Mapping
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING

from medvllm.catalog.entries import Entries, parse_entries
from medvllm.catalog.events import Alias, Event
from medvllm.catalog.record import Facts, content, from_record, is_same, to_record
from medvllm.errors import CatalogError
from medvllm.facts import MUTABLE_FIELDS
from medvllm.metadata import ModelMetadata
from medvllm.names import valid_alias

if TYPE_CHECKING:
    from medvllm.catalog.sql.transaction import Transaction

Move = tuple[str, str, ModelMetadata]  # a name, a protected alias of it, and the version that it shall point to
Approved = Mapping[tuple[str, str, int], Facts]  # name, alias and number -> facts of the version as it was approved


def read_entries(text: str, file: str) -> Entries:
    """Return what a file says; `file` names it in messages.

    Raises:
        CatalogError: The file is not valid.
        ModelNameError: An alias in it is not valid.
    """
    wanted = parse_entries(text, "stored", file)
    for stated in wanted.aliases or ():
        valid_alias(stated.alias)
    return wanted


def removed_versions(events: Iterable[Event]) -> set[tuple[str | None, int | None]]:
    """Return name and number of each version that events remove."""
    return {(event.name, event.version) for event in events if event.action == "unregistered"}


def apply(
    transaction: "Transaction", wanted: Entries, reason: str | None, approved: Approved | None = None
) -> list[Move]:
    """Make the catalogue equal to a file, and return the moves of protected aliases.

    Args:
        transaction: The transaction to make the changes in.
        wanted: What the file says.
        reason: Why; kept in the history.
        approved: The moves of protected aliases that may be made. None makes all of them, to preview a file.

    Raises:
        CatalogError: A change is not allowed.
    """
    existing = transaction.all_numbers()
    kept: dict[str, set[int]] = {}  # by name: the numbers of the versions that stay
    numbered = {entry.name for entry in wanted.models if entry.version}

    # First what is added or changed. Numbered versions of a name come before the one without a number.
    for entry in sorted(wanted.models, key=lambda entry: (entry.name, entry.version or float("inf"))):
        stay = kept.setdefault(entry.name, set())
        if entry.version:
            _apply_version(transaction, entry, reason, exists=entry.version in existing.get(entry.name, ()))
            stay.add(entry.version)
            existing.setdefault(entry.name, set()).add(entry.version)
        else:
            # If the file numbers no version of a name, the name keeps its earlier versions.
            stay |= set() if entry.name in numbered else existing.get(entry.name, set())
            stay.add(transaction.register(entry.name, to_record(entry), reason=reason))

    # Then the aliases, which may point to the new versions and away from those that go.
    gone = sorted(name for name in existing if name not in kept)
    moves: list[Move] = []
    if wanted.aliases is not None:
        by_name = {name: [*aliases] for name, aliases in groupby(wanted.aliases, attrgetter("name"))}
        for name in kept:
            moves += _apply_aliases(transaction, name, by_name.pop(name, []), reason, approved)
        if by_name:
            raise CatalogError(f"The file has aliases of model {min(by_name)!r}, but no version of that model.")
    for name in gone:
        for alias in transaction.aliases(name):
            if alias.version is not None:
                transaction.remove_alias(name, alias.alias, reason=reason)

    # Last the versions that the file does not have.
    for name in (*kept, *gone):
        for number in sorted(existing.get(name, set()) - kept.get(name, set())):
            transaction.unregister(name, number, reason=reason)
    return moves


def _apply_version(transaction: "Transaction", entry: ModelMetadata, reason: str | None, *, exists: bool) -> None:
    """Add a numbered version, or change the facts of it that may change."""
    facts = to_record(entry)
    if not exists:
        transaction.register(entry.name, facts, number=entry.version, reason=reason)
        return
    known = transaction.facts(entry.name, entry.version)
    changed = sorted(fact for fact in content({**facts, **known}) if not is_same(facts.get(fact), known.get(fact)))
    if changed:
        fact = changed[0]
        raise CatalogError(
            f"Fact {fact!r} of version {entry.version} of model {entry.name!r} is {facts.get(fact)!r:.80} in the file "
            f"but {known.get(fact)!r:.80} in the catalogue. A version never changes.\n"
            f'Write it without its number, as a new version: [models."{entry.name}"]',
            model=entry.name,
        )
    wanted = {fact: facts.get(fact) for fact in MUTABLE_FIELDS}
    transaction.change(entry.name, entry.version, wanted, reason=reason)


def _apply_aliases(
    transaction: "Transaction",
    name: str,
    wanted: list[Alias],
    reason: str | None,
    approved: Approved | None,
) -> list[Move]:
    """Make the aliases of a name those of the file, and return the moves of protected ones."""
    moves: list[Move] = []
    before = {alias.alias: alias for alias in transaction.aliases(name)}
    for alias in wanted:
        known = before.pop(alias.alias, Alias(name, alias.alias, None, False))
        if known.protected and not alias.protected:
            transaction.protect(name, alias.alias, False, reason=reason)
        if alias.version is None:
            if known.version is not None:
                transaction.remove_alias(name, alias.alias, reason=reason)
        elif alias.version != known.version:
            facts: Facts | None = None
            if known.protected and alias.protected:
                facts = transaction.facts(name, alias.version)
                moves.append((name, alias.alias, from_record(name, alias.version, facts)))
                if approved is not None:
                    facts = approved.get((name, alias.alias, alias.version))
            transaction.set_alias(name, alias.alias, alias.version, approved=facts, reason=reason)
        if alias.protected and not known.protected:
            transaction.protect(name, alias.alias, True, reason=reason)
    for known in before.values():
        if known.protected:
            transaction.protect(name, known.alias, False, reason=reason)
        if known.version is not None:
            transaction.remove_alias(name, known.alias, reason=reason)
    return moves
