"""The specified import path: ``from medvllm.engine.model_runner import registry, ModelType``."""

import sys
from typing import TYPE_CHECKING, Any

import medvllm.model_registry as _home
from medvllm.model_registry import ModelRegistry, registry
from medvllm.model_type import ModelType

if TYPE_CHECKING:
    from medvllm.engine.model_runner.request import Request
    from medvllm.engine.model_runner.runner import ModelRunner
    from medvllm.metadata import ModelMetadata

__all__ = ["ModelMetadata", "ModelRegistry", "ModelRunner", "ModelType", "Request", "registry"]

# The framework's older code imports `medvllm.engine.model_runner.registry` as a module. A file of that name would, on
# import, hide the object `registry` of this package; an alias of the module that holds it does not.
sys.modules[f"{__name__}.registry"] = _home


# Imported when they are first used: most programs that import the registry only list or load.
def __getattr__(name: str) -> Any:
    if name == "ModelRunner":
        from medvllm.engine.model_runner.runner import ModelRunner

        return ModelRunner
    if name == "ModelMetadata":
        from medvllm.metadata import ModelMetadata

        return ModelMetadata
    if name == "Request":
        from medvllm.engine.model_runner.request import Request

        return Request
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
