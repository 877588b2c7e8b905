"""Which entries exist: this process's registrations, a stored catalogue, and the built-in medical models."""

from medvllm.catalog.builtin import builtin_entries
from medvllm.catalog.catalog import Catalog, Store
from medvllm.catalog.entries import from_toml, to_toml
from medvllm.catalog.store import FileStore

__all__ = ["Catalog", "FileStore", "Store", "builtin_entries", "from_toml", "to_toml"]
