"""The entries: those of this process, the stored catalogue, installed packages, and the built-in medical models."""

from medvllm.catalog.builtin import builtin_entries
from medvllm.catalog.catalog import Catalog
from medvllm.catalog.difference import Difference, differences
from medvllm.catalog.entries import from_toml, to_toml
from medvllm.catalog.events import Alias, Event, check_reason
from medvllm.catalog.log import Locked, VersionRecord
from medvllm.catalog.lookup import Found, explain_missing_repository, find_entry, find_model
from medvllm.catalog.stored import StoredCatalog

__all__ = [
    "Alias",
    "Catalog",
    "Difference",
    "Event",
    "Found",
    "Locked",
    "StoredCatalog",
    "VersionRecord",
    "builtin_entries",
    "check_reason",
    "differences",
    "explain_missing_repository",
    "find_entry",
    "find_model",
    "from_toml",
    "to_toml",
]
