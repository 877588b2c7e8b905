"""The entries: those of this process, the stored catalogue, installed packages, and the built-in medical models.

A listing imports this. What only other calls need is imported from its own module.
"""

from medvllm.catalog.builtin import builtin_entries
from medvllm.catalog.catalog import Catalog
from medvllm.catalog.entries import from_toml, to_toml
from medvllm.catalog.lookup import Found, explain_missing_repository, find_entry, find_model
from medvllm.catalog.stored import StoredCatalog

__all__ = [
    "Catalog",
    "Found",
    "StoredCatalog",
    "builtin_entries",
    "explain_missing_repository",
    "find_entry",
    "find_model",
    "from_toml",
    "to_toml",
]
