"""Engines: libraries that compute a model from an exported graph. They need neither torch nor transformers."""

from typing import TYPE_CHECKING

from medvllm.lazy_names import lazy_names

if TYPE_CHECKING:
    from medvllm.engines.export import TOKENIZER, Export, export_folder, find_export
    from medvllm.engines.job import Job, Outcome
    from medvllm.engines.kinds import (
        ENGINES,
        EngineName,
        Precision,
        check_engine,
        check_precision,
        engine_version,
        installed_engines,
    )
    from medvllm.engines.model import EngineModel, memory_bytes, open_model
    from medvllm.engines.tokenizer import PlainTokenizer
    from medvllm.engines.verdict import Verdict, find_deviation, keep_verdict, known_deviation, known_verdict

__all__ = [
    "ENGINES",
    "TOKENIZER",
    "EngineModel",
    "EngineName",
    "Export",
    "Job",
    "Outcome",
    "PlainTokenizer",
    "Precision",
    "Verdict",
    "check_engine",
    "check_precision",
    "engine_version",
    "export_folder",
    "find_deviation",
    "find_export",
    "installed_engines",
    "keep_verdict",
    "known_deviation",
    "known_verdict",
    "memory_bytes",
    "open_model",
]

__getattr__ = lazy_names(
    __name__,
    {
        "export": ("TOKENIZER", "Export", "export_folder", "find_export"),
        "job": ("Job", "Outcome"),
        "kinds": (
            "ENGINES",
            "EngineName",
            "Precision",
            "check_engine",
            "check_precision",
            "engine_version",
            "installed_engines",
        ),
        "model": ("EngineModel", "memory_bytes", "open_model"),
        "tokenizer": ("PlainTokenizer",),
        "verdict": ("Verdict", "find_deviation", "keep_verdict", "known_deviation", "known_verdict"),
    },
)
