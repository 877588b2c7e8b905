"""The config of an exported model, with the names that transformers gives its fields."""

from collections.abc import Mapping
from typing import Any


class PlainConfig:
    """The fields of a config as attributes. A field that the model does not have raises AttributeError.

    Args:
        fields: The fields by name. The keys of `id2label` may be texts, as JSON has them.
    """

    def __init__(self, fields: Mapping[str, Any]) -> None:
        self.__dict__.update(fields)
        labels: Mapping[Any, str] = fields.get("id2label") or {}
        self.id2label = {int(number): label for number, label in labels.items()}

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"the config has no field {name!r}")

    def get_text_config(self) -> "PlainConfig":
        """Return the part of the config that describes the reading of text: all of it."""
        return self
