"""Which entries exist: this process's registrations, a stored catalogue, and the built-in medical models."""

from medvllm.catalog.builtin import builtin_entries
from medvllm.catalog.catalog import Catalog, Store

__all__ = ["Catalog", "Store", "builtin_entries"]
