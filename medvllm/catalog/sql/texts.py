"""JSON as the database keeps it, and its SHA-256."""

import hashlib
import json
from typing import Any


def to_json(content: Any) -> str:
    """Return `content` as JSON, as it is stored and hashed: sorted, and in ASCII, which every database keeps."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: object) -> str:
    """Return the SHA-256 of a text, or of another value that somebody put in its place."""
    return hashlib.sha256(str(text).encode()).hexdigest()
