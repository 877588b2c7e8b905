"""The built-in medical models, as builtin.toml describes them."""

import tomllib
from importlib.resources import files

from medvllm.metadata import ModelMetadata


def builtin_entries() -> dict[str, ModelMetadata]:
    """Return the built-in entries by name, in the order of the file."""
    content = tomllib.loads(files("medvllm.catalog").joinpath("builtin.toml").read_text(encoding="utf-8"))
    entries: dict[str, ModelMetadata] = {}
    for name, facts in content["models"].items():
        kind = facts.pop("model_type")
        entries[name] = ModelMetadata.build(name, kind, facts, origin="built-in")
    return entries
