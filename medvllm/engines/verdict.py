"""The verdict on an engine: whether it agrees with torch for one export, on this kind of CPU."""

import hashlib
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from medvllm.engines.export import Export
from medvllm.engines.kinds import engine_version
from medvllm.sources.digest_cache import digest_cache

_FORMAT = 1  # increase it when the comparison changes: older verdicts are then not used


@dataclass(frozen=True)
class Verdict:
    """What a comparison of an engine with torch in float32 found.

    Attributes:
        engine: The engine.
        version: The version of its library.
        precision: The precision of its numbers, read back from the library.
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


@cache
def cpu_capability() -> str:
    """Return a name for what this CPU can compute: the architecture and a digest of its flags."""
    digest = hashlib.sha256(" ".join(sorted(_read_flags())).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}"


def cpu_flags() -> str:
    """Return what of this CPU decides how fast models run: the flags for vectors and for matrices."""
    known = [flag for flag in _read_flags() if flag.startswith(("avx", "amx", "sve", "asimd"))]
    return " ".join([platform.machine(), *sorted(known)])


def _read_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()


def find_deviation(
    export: Export, engine: str, baseline: Sequence[Mapping[str, Any]], compute: Callable[[], str | None]
) -> str | None:
    """Return how an engine deviates from the baseline of an entry, or None. What was computed once is remembered.

    Args:
        export: The export.
        engine: The engine.
        baseline: The baseline.
        compute: Computes the answer.
    """
    content = json.dumps(baseline, sort_keys=True, default=str)
    key = json.dumps([_key(export, engine), hashlib.sha256(content.encode()).hexdigest()])
    if (text := digest_cache().verdict(key)) is None:
        text = json.dumps(compute())
        digest_cache().keep_verdict(key, text)
    found: str | None = json.loads(text)
    return found


def _key(export: Export, engine: str) -> str:
    return json.dumps([_FORMAT, export.digest, engine, engine_version(engine), cpu_capability()])
