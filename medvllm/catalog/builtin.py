"""The built-in medical models, as builtin.toml describes them."""

from importlib.resources import files

from medvllm.catalog.entries import from_toml
from medvllm.metadata import ModelMetadata


def builtin_entries() -> dict[str, ModelMetadata]:
    """Return the built-in entries by name, in the order of the file."""
    text = files("medvllm.catalog").joinpath("builtin.toml").read_text(encoding="utf-8")
    return from_toml(text, "built-in")
