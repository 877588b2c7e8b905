"""The entries of the catalogue as the server describes them: without paths of the machine."""

from collections.abc import Generator, Iterator, Sequence, Sized
from typing import Any

from medvllm.metadata import ModelMetadata
from medvllm.model_registry import ModelRegistry
from medvllm.names import parse_name
from medvllm.server.receipts import hide_paths

_PAGE = 1000  # entries that are read at once: meanwhile other threads wait
# What a list says of an entry. The values of some other facts may be paths.
_LISTED = (
    *("version", "origin", "model_type", "description", "tags", "tasks", "max_length", "languages", "license"),
    *("license_status", "gated", "deprecated", "successor"),
)
_DETAILS = (
    *("also_known_as", "base", "architecture", "do_lower_case", "long_input", "pooling", "normalize", "truncate_dim"),
    *("prompts", "default_prompt_name", "role", "similarity", "counterpart", "inputs", "label_scheme", "id2label"),
    *("use_restrictions", "data_restrictions", "intended_use", "training_corpora", "citation", "provenance"),
)


def known_facts(entry: ModelMetadata, *, is_detailed: bool = False) -> dict[str, Any]:
    """Return the facts of an entry that are known, as JSON values, without paths of this machine."""
    names = (*_LISTED, *_DETAILS) if is_detailed else _LISTED
    attributes = ("tasks", "model_type")
    facts = {name: getattr(entry, name) if name in attributes else entry.fact(name) for name in names}
    shown: dict[str, Any] = hide_paths({name: value for name, value in facts.items() if _is_known(value)})
    return shown


def _is_known(value: object) -> bool:
    return value is not None and not (isinstance(value, Sized) and not len(value))


def repository(entry: ModelMetadata) -> str | None:
    """Return the repository that an entry's files come from; None for a folder."""
    location = parse_name(entry.location)
    return location.name if location.is_repo_id else None


def iterate_entries(
    registry: ModelRegistry, after: str | None = None, limit: int | None = None
) -> Iterator[list[ModelMetadata]]:
    """Yield the entries of a registry by name, page by page, so that a large catalogue takes little memory.

    Args:
        registry: The registry.
        after: Only names behind this one.
        limit: The most entries.
    """
    left = limit
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = list(registry.list_models(limit=size, after=after).values())
        if page:
            yield page
        if len(page) < size:
            return
        after, left = page[-1].name, None if left is None else left - size


def join_pages(head: str, pages: Iterator[Sequence[str]], tail: str) -> Generator[str]:
    """Yield the parts of a JSON text: a head, the items of a list, and a tail."""
    filled = filter(None, pages)
    yield head + ",".join(next(filled, ()))  # an error of the first page comes before anything is sent
    for page in filled:
        yield "," + ",".join(page)
    yield tail
