"""Which entries exist: this process's registrations, the stored catalogue, and the built-in medical models."""

from medvllm.catalog.builtin import builtin_entries
from medvllm.catalog.catalog import Catalog
from medvllm.catalog.entries import from_toml, to_toml
from medvllm.catalog.events import Alias, Event
from medvllm.catalog.stored import StoredCatalog, check_reason

__all__ = ["Alias", "Catalog", "Event", "StoredCatalog", "builtin_entries", "check_reason", "from_toml", "to_toml"]
