"""The built-in medical models, as builtin.toml describes them."""

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from types import MappingProxyType

from medvllm.catalog.entries import from_toml
from medvllm.metadata import ModelMetadata


@cache
def builtin_entries() -> Mapping[str, ModelMetadata]:
    """Return the built-in entries by name, in the order of the file. A process reads them once."""
    text = files("medvllm.catalog").joinpath("builtin.toml").read_text(encoding="utf-8")
    return MappingProxyType(from_toml(text, "built-in"))
