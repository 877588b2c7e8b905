"""What exactly answered: entry, source, commit, effective options, library versions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata as packages
from typing import Any

from medvllm.options import Identity

LIBRARIES = ("medvllm", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub")


@cache
def library_versions() -> Mapping[str, str]:
    """Return the installed version of each library that takes part in an answer; nothing is imported."""
    found = {}
    for library in LIBRARIES:
        try:
            found[library] = packages.version(library)
        except packages.PackageNotFoundError:
            found[library] = "not installed"
    return found


@dataclass(frozen=True)
class Receipt:
    """The facts of one loaded model. `source` is "direct" for a name that no entry answers to."""

    name: str
    version: int
    source: str
    snapshot: str  # "repo@commit", or the folder
    options: dict[str, Any]
    size_bytes: int
    libraries: dict[str, str] = field(default_factory=lambda: dict(library_versions()))

    @classmethod
    def of(cls, identity: Identity, size_bytes: int) -> "Receipt":
        """Return the receipt of a load."""
        options = identity.options.to_dict()
        return cls(identity.name, identity.version, identity.origin, identity.snapshot, options, size_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the receipt as JSON has it."""
        return vars(self).copy()
