"""Checks that the facts of an entry can be stored, and come back as they are."""

import json
from collections.abc import Mapping
from typing import Any

from medvllm.catalog.record import Facts
from medvllm.catalog.sql.texts import to_json
from medvllm.errors import RequestError
from medvllm.spelling import has_lone_surrogate

MAX_FACTS = 1_000_000  # bytes of the facts of one entry as JSON


def normalize_facts(name: str, facts: Facts) -> dict[str, Any]:
    """Return facts as the database will give them back.

    Args:
        name: The model, for messages.
        facts: The facts of a version.

    Raises:
        RequestError: They are not JSON, contain None or half a surrogate pair, or are too long.
    """
    try:
        text = to_json(facts)
    except (TypeError, ValueError) as error:
        raise RequestError(f"Model {name!r} cannot be stored: {error}.", model=name) from error
    if "null" in text and _has_none(facts):
        raise RequestError(f"Model {name!r} cannot be stored: a fact contains None.\nOmit the value.", model=name)
    if "\\ud" in text and has_lone_surrogate(json.dumps(facts, ensure_ascii=False)):
        raise RequestError(
            f"Model {name!r} cannot be stored: a fact contains half of a surrogate pair, which is not valid Unicode "
            "text.",
            model=name,
        )
    if len(text) > MAX_FACTS:
        raise RequestError(
            f"The facts of model {name!r} take {len(text):,} bytes. At most {MAX_FACTS:,} are allowed.", model=name
        )
    stored: dict[str, Any] = json.loads(text)
    return stored


def _has_none(value: Any) -> bool:
    """Return whether something inside a fact is None: JSON can express that, but an exported TOML file cannot."""
    if isinstance(value, Mapping):
        return any(map(_has_none, value.values()))
    return any(map(_has_none, value)) if isinstance(value, (list, tuple)) else value is None
