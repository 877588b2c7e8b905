"""The filters of a listing."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import translate
from typing import Any, NamedTuple

from medvllm.catalog.record import StoredRow
from medvllm.errors import RequestError
from medvllm.fact_filters import check_glob, to_glob
from medvllm.metadata import ModelMetadata, matches_filters, mentions_text
from medvllm.model_type import ModelType
from medvllm.words import usual_entry_task

Candidate = ModelMetadata | StoredRow  # what a name means, made into metadata or not yet


class Selection(NamedTuple):
    """Filters that were checked. An entry is selected when it fits every filter that was given."""

    model_type: ModelType | None
    task: str | None
    tags: tuple[str, ...]
    match: str | None  # a glob, in lower case
    text: str | None  # in lower case
    globs: Mapping[str, str]
    names: Collection[str] | None = None  # the only names

    @classmethod
    def of(
        cls,
        model_type: ModelType | str | None,
        *,
        task: str | None,
        tags: object,
        match: str | None,
        search: str | None,
        facts: Mapping[str, Any] | None,
    ) -> "Selection":
        """Return the selection for the filters of a listing, as a caller gives them.

        Raises:
            RequestError: A filter has the wrong type, or a value that no entry can have.
        """
        for name, value in (("task", task), ("search", search)):
            check_text(name, value)
        return cls(
            None if model_type is None else ModelType.of(model_type),
            None if task is None else usual_entry_task(task),
            _tags(tags),
            None if match is None else check_glob("match", match).casefold(),
            None if search is None else search.casefold(),
            {fact: to_glob(fact, value) for fact, value in (facts or {}).items()},
        )

    def filter(self, entries: Iterable[Candidate]) -> Iterator[Candidate]:
        """Return those entries that fit, in their order. Cheap filters come first: there may be 100,000 entries."""
        fitting = iter(entries)
        if (names := self.names) is not None:
            fitting = (entry for entry in fitting if entry.name in names)
        if self.match is not None:
            is_named = re.compile(translate(self.match)).match
            fitting = (entry for entry in fitting if is_named(entry.name.casefold()))
        if (text := self.text) is not None:
            fitting = (entry for entry in fitting if mentions_text(entry.fact, text))
        if self.model_type is not None:
            fitting = (entry for entry in fitting if entry.model_type == self.model_type)
        if self.task is not None or self.tags or self.globs:
            fitting = (entry for entry in fitting if matches_filters(entry.fact, self.task, self.tags, self.globs))
        return fitting


def check_text(name: str, value: object) -> None:
    """Raise RequestError if the value of a filter is neither text nor None."""
    if value is not None and not isinstance(value, str):
        raise RequestError(f"Filter {name!r} must be text, not {type(value).__name__}.", option=name)


def _tags(tags: object) -> tuple[str, ...]:
    wanted = (tags,) if isinstance(tags, str) else tags
    if not isinstance(wanted, list | tuple | set | frozenset) or not all(isinstance(tag, str) for tag in wanted):
        raise RequestError("Filter 'tags' must be text or a list of texts.", option="tags")
    return tuple(wanted)
