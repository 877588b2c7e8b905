"""The entries behind a name that only this process knows, for another process that runs the name."""

import os
from contextlib import suppress

from medvllm.catalog import Catalog, find_entry
from medvllm.errors import MedVLLMError
from medvllm.metadata import ModelMetadata
from medvllm.names import parse_name


def find_process_entries(catalog: Catalog, name: "str | os.PathLike[str]") -> tuple[ModelMetadata, ...]:
    """Return the entries of this process alone that running a name needs, those that others lean on first.

    A stored adapter may have a base that is not stored, and an encoder of queries such a counterpart.
    """
    found: list[ModelMetadata] = []
    left: list[str | os.PathLike[str]] = [name]
    seen = set()
    while left:
        ref = parse_name(left.pop())
        if ref.kind != "name" or ref.text in seen:
            continue
        seen.add(ref.text)
        if (own := catalog.own(ref.name)) is not None:
            found.insert(0, own)
        entry = own
        with suppress(MedVLLMError):  # what is wrong with a name is told when it is run
            entry = own or getattr(find_entry(catalog, ref), "entry", None)
        if entry is not None:
            left += filter(None, (entry.source.base, entry.behaviour.counterpart))
    return tuple(found)
