"""The base of an adapter: the entry whose weights it completes."""

from medvllm.catalog import Catalog, find_entry
from medvllm.errors import CatalogError, ModelNotFoundError
from medvllm.metadata import ModelMetadata
from medvllm.names import parse_name


def find_base(catalog: Catalog, adapter: ModelMetadata) -> ModelMetadata:
    """Return the entry of an adapter's base.

    Raises:
        ModelNotFoundError: The base is not registered.
        CatalogError: The base is an adapter itself.
    """
    name = str(adapter.source.base)
    found = find_entry(catalog, parse_name(name))
    if found is None:
        raise ModelNotFoundError(
            f"Model {adapter.name!r} is an adapter, and its base {name!r} is not registered.\n"
            f"Register it first: medvllm register {name} --type {adapter.model_type}",
            model=name,
            candidates=(),
        )
    if found.entry.is_adapter:
        raise CatalogError(
            f"Model {adapter.name!r} has the base {name!r}, which is an adapter itself. "
            f"The base of an adapter is a whole model.\nUse the base of {name!r}: base={found.entry.source.base!r}",
            model=adapter.name,
        )
    return found.entry
