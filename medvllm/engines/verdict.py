"""The verdict on an engine: whether it agrees with torch for one export, on this kind of CPU."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from medvllm.engines.cpu import cpu_capability
from medvllm.engines.export import Export
from medvllm.engines.kinds import engine_version
from medvllm.sources.digest_cache import digest_cache

_FORMAT = 2  # increase it when the comparison changes: older verdicts are then not used


@dataclass(frozen=True)
class Verdict:
    """What a comparison of an engine with torch in float32 found.

    Attributes:
        engine: The engine.
        version: The version of its library.
        precision: The precision of its numbers, read back from the library or from the graph that it opened.
        refusal: Why it must not serve; None if it agrees.
        shapes: How many batches were compared.
        difference: The largest difference of two numbers, as a part of the largest number.
        agreement: The share of tokens, or of texts, with the same highest number.
        cpu_s: CPU seconds for the batches of the comparison of speed.
        torch_cpu_s: The same for torch.
    """

    engine: str
    version: str
    precision: str
    refusal: str | None = None
    shapes: int = 0
    difference: float = 0.0
    agreement: float = 0.0
    cpu_s: float = 0.0
    torch_cpu_s: float = 0.0


def known_verdict(export: Export, engine: str) -> Verdict | None:
    """Return the verdict on an engine for an export, if there is one for this version of its library and this CPU."""
    text = digest_cache().verdict(_key(export, engine))
    if text is None:
        return None
    try:
        return Verdict(**json.loads(text))
    except (ValueError, TypeError):
        return None


def keep_verdict(export: Export, verdict: Verdict) -> None:
    """Remember a verdict on this machine."""
    digest_cache().keep_verdict(_key(export, verdict.engine), json.dumps(asdict(verdict)))


def find_deviation(export: Export, engine: str, content: Any, compute: Callable[[], str | None]) -> str | None:
    """Return how an engine deviates from what it must keep, or None. What was computed once is remembered.

    Args:
        export: The export.
        engine: The engine.
        content: What the answer depends on, besides the export and the engine: JSON values.
        compute: Computes the answer.
    """
    key = _deviation_key(export, engine, content)
    if (text := digest_cache().verdict(key)) is None:
        text = json.dumps(compute())
        digest_cache().keep_verdict(key, text)
    found: str | None = json.loads(text)
    return found


def known_deviation(export: Export, engine: str, content: Any) -> str | None:
    """Return the deviation that `find_deviation` found before; None if it found none, or was not asked yet."""
    text = digest_cache().verdict(_deviation_key(export, engine, content))
    found: str | None = None if text is None else json.loads(text)
    return found


def _deviation_key(export: Export, engine: str, content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return json.dumps([_key(export, engine), hashlib.sha256(text.encode()).hexdigest()])


def _key(export: Export, engine: str) -> str:
    return json.dumps([_FORMAT, export.digest, engine, engine_version(engine), cpu_capability()])
