"""What applying a file of entries changes in the stored catalogue."""

from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from medvllm.catalog.entries import Entries
from medvllm.catalog.events import Alias
from medvllm.catalog.stored import from_record, to_record
from medvllm.errors import CatalogError
from medvllm.facts import MUTABLE_FIELDS
from medvllm.metadata import ModelMetadata

if TYPE_CHECKING:
    from medvllm.catalog.sql.transaction import Transaction

Move = tuple[str, str, ModelMetadata]  # a protected alias of a name, and the version that it is to point to
Approved = Mapping[tuple[str, str, int], Mapping[str, Any]]  # the facts of the version that an alias may point to


def apply(
    transaction: "Transaction", wanted: Entries, reason: str | None, approved: Approved | None = None
) -> list[Move]:
    """Make the catalogue what is wanted, and return what protected aliases were moved to.

    Of the moves of protected aliases only those `approved` are made; None: all, to see what they are.
    """
    there = transaction.all_numbers()
    kept: dict[str, set[int]] = {}  # the versions of each name that stay
    numbered = {entry.name for entry in wanted.models if entry.version}
    for entry in sorted(wanted.models, key=lambda entry: (entry.name, entry.version or float("inf"))):
        stay = kept.setdefault(entry.name, set())
        if entry.version:
            _version(transaction, entry, reason, is_there=entry.version in there.get(entry.name, ()))
            stay.add(entry.version)
            there.setdefault(entry.name, set()).add(entry.version)
        else:
            # A name of which the file numbers no version keeps its earlier ones.
            stay |= set() if entry.name in numbered else there.get(entry.name, set())
            stay.add(transaction.register(entry.name, to_record(entry), reason=reason))
    gone = sorted(name for name in there if name not in kept)
    moves: list[Move] = []
    if wanted.aliases is not None:
        by_name = {name: [*aliases] for name, aliases in groupby(wanted.aliases, attrgetter("name"))}
        for name in kept:
            moves += _aliases(transaction, name, by_name.pop(name, []), reason, approved)
        if by_name:
            raise CatalogError(f"The entries have aliases of model {min(by_name)!r}, but no version of it.")
    for name in gone:
        for alias in transaction.aliases(name):
            if alias.version is not None:
                transaction.remove_alias(name, alias.alias, reason=reason)
    for name in (*kept, *gone):
        for number in sorted(there.get(name, ())):
            if number not in kept.get(name, ()):
                transaction.unregister(name, number, reason=reason)
    return moves


def _version(transaction: "Transaction", entry: ModelMetadata, reason: str | None, *, is_there: bool) -> None:
    """Make a version what is wanted: added, or with other marks; its content never changes."""
    from medvllm.catalog.sql.transaction import content, same

    facts = to_record(entry)
    if not is_there:
        transaction.register(entry.name, facts, number=entry.version, reason=reason)
        return
    known = transaction.facts(entry.name, entry.version)
    changed = sorted(fact for fact in content({**facts, **known}) if not same(facts.get(fact), known.get(fact)))
    if changed:
        fact = changed[0]
        raise CatalogError(
            f"Version {entry.version} of model {entry.name!r} has another {fact} in the catalogue: "
            f"{known.get(fact)!r:.80}, not {facts.get(fact)!r:.80}. A version never changes.\n"
            f'Write it as the next one: [models."{entry.name}"]',
            model=entry.name,
        )
    transaction.change(entry.name, entry.version, {mark: facts.get(mark) for mark in MUTABLE_FIELDS}, reason=reason)


def _aliases(
    transaction: "Transaction",
    name: str,
    wanted: list[Alias],
    reason: str | None,
    approved: Approved | None,
) -> list[Move]:
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
            facts: Mapping[str, Any] | None = None
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
