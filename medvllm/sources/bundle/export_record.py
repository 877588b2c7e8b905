"""The last member of a bundle: who exported it."""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

_MAX_CHARACTERS = 200


@dataclass(frozen=True)
class ExportRecord:
    """Who exported a bundle, and when. The exporter says so, and nothing proves it.

    A digest of the bundle that came another way is proof.

    Attributes:
        by: The user.
        machine: The host name.
        at: The time in UTC, as ISO 8601.
        program: The name and version of the program.
        events: The number of events in the history of the exporter's catalogue.
        last_hash: The hash of the last of these events, or "" without a catalogue.
    """

    by: str
    machine: str
    at: str
    program: str
    events: int
    last_hash: str

    def to_json(self) -> bytes:
        """Return the record as the content of its member, with a digest that shows damage."""
        facts = asdict(self)
        return json.dumps(facts | {"sha256": _digest(facts)}, indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, content: bytes) -> "ExportRecord":
        """Return the record of a member's content.

        Raises:
            ValueError, LookupError, TypeError, AttributeError: The content is not a record.
        """
        facts: Any = json.loads(content)
        if facts.pop("sha256") != _digest(facts):
            raise ValueError("the record of its export is damaged")
        record = cls(**facts)
        texts = [record.by, record.machine, record.at, record.program, record.last_hash]
        if not all(isinstance(text, str) and len(text) <= _MAX_CHARACTERS and text.isprintable() for text in texts):
            raise ValueError("the record of its export does not say who exported it, and when")
        if type(record.events) is not int or record.events < 0:
            raise ValueError("the record of its export does not say where the history stood")
        return record

    def to_dict(self) -> dict[str, Any]:
        """Return the record for JSON output."""
        return asdict(self)


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
