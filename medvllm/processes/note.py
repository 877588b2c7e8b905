"""What a process tells of itself: which models it holds. No argument of its command line, and nothing that it read."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from medvllm.processes.process import Process

_MOST_TEXT = 4096  # characters of a name, a path or a class
_MOST_PID = 2**31 - 1


@dataclass(frozen=True)
class Note:
    """A process, the name of its program, and the models that it holds, as `ModelRegistry.loaded_models` has them."""

    process: Process
    program: str
    models: tuple[dict[str, Any], ...]

    @classmethod
    def parsed(cls, text: bytes) -> "Note | None":
        """Return a note, or None unless every part of it is of its kind: whoever wrote it."""
        try:
            content = json.loads(text)
            process = Process(*(content[field] for field in ("host", "boot", "namespace", "pid", "started")))
            models = tuple({field: model[field] for field in _FIELDS} for model in content["models"])
            texts = process.host, process.boot, process.namespace, process.started, content["program"]
            is_sound = all(map(_is_text, texts)) and type(process.pid) is int and 0 < process.pid <= _MOST_PID
            if is_sound and all(_FIELDS[field](value) for model in models for field, value in model.items()):
                return cls(process, content["program"], models)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        return None

    def text(self) -> str:
        """Return the note as it is kept."""
        return json.dumps(asdict(self.process) | {"program": self.program, "models": self.models})


def essence(models: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Return what of the models others are to know soon: which they are, and whether somebody has one leased."""
    fields = ("name", "version", "source", "snapshot", "device", "dtype", "keep_alive", "evicted")
    return [(*(model[field] for field in fields), model["leases"] > 0) for model in models]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MOST_TEXT and (value.isprintable())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1 <= value < 1e18


def _is_count(value: object) -> bool:
    return type(value) is int and _is_number(value) and value >= 0


def _is_date(value: object) -> bool:
    return _is_number(value) and math.isfinite(float(value))  # type: ignore[arg-type]


_FIELDS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("name", "source", "snapshot", "device", "dtype", "model_class"), _is_text),
    **dict.fromkeys(("version", "size_bytes", "mapped_bytes", "leases", "hits"), _is_count),
    **dict.fromkeys(("load_s", "loaded_at", "last_used"), _is_date),
    "keep_alive": lambda value: value is None or _is_date(value),
    "evicted": lambda value: isinstance(value, bool),
}
