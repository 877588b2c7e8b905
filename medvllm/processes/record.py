"""What a process tells others: which models it holds. Never its arguments, and nothing that it read."""

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from medvllm.processes.process import Process

_MAX_TEXT = 4096  # characters of a name, a path or a class
_MAX_PID = 2**31 - 1


@dataclass(frozen=True)
class ProcessRecord:
    """A process and the models that it holds.

    Attributes:
        process: The process.
        program: The file name of its program.
        models: The models, with the keys of `LoadedModel.to_dict`.
    """

    process: Process
    program: str
    models: tuple[dict[str, Any], ...]

    @classmethod
    def of_this_process(cls, models: Sequence[dict[str, Any]]) -> "ProcessRecord":
        """Return the record of this process."""
        name = Path(sys.argv[0]).name[:100] if sys.argv else ""
        return cls(Process.current(), name if name.isprintable() else "", tuple(models))

    @classmethod
    def parse(cls, text: bytes) -> "ProcessRecord | None":
        """Return the record that a text holds; None unless every field is valid, as anybody may have written it."""
        try:
            content = json.loads(text)
            process = Process(*(content[field] for field in ("host", "boot", "namespace", "pid", "started")))
            models = tuple({field: model[field] for field in _FIELDS} for model in content["models"])
            texts = process.host, process.boot, process.namespace, process.started, content["program"]
            is_valid = all(map(_is_text, texts)) and type(process.pid) is int and 0 < process.pid <= _MAX_PID
            if is_valid and all(_FIELDS[field](value) for model in models for field, value in model.items()):
                return cls(process, content["program"], models)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass
        return None

    def to_json(self) -> str:
        """Return the record as the JSON text that is stored."""
        return json.dumps(asdict(self.process) | {"program": self.program, "models": self.models})


def main_facts(models: Sequence[Mapping[str, Any]]) -> list[tuple[object, ...]]:
    """Return the facts that others should learn soon: which models these are, and which of them are leased."""
    fields = ("name", "version", "origin", "snapshot", "device", "dtype", "keep_alive", "evicted", "offloaded")
    return [(*(model[field] for field in fields), model["leases"] > 0) for model in models]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT and (value.isprintable())


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1 <= value < 1e18


def _is_count(value: object) -> bool:
    return type(value) is int and _is_number(value) and value >= 0


def _is_finite(value: object) -> bool:
    return _is_number(value) and math.isfinite(float(value))  # type: ignore[arg-type]


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


_FIELDS: dict[str, Callable[[object], bool]] = {
    **dict.fromkeys(("name", "origin", "snapshot", "device", "dtype", "model_class"), _is_text),
    **dict.fromkeys(("version", "size_bytes", "mapped_bytes", "leases", "hits"), _is_count),
    **dict.fromkeys(("load_s", "loaded_at", "last_used"), _is_finite),
    "keep_alive": lambda value: value is None or _is_finite(value),
    **dict.fromkeys(("evicted", "offloaded"), _is_bool),
}
