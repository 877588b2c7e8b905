"""The specified import path: ``from medvllm.engine.model_runner import registry, ModelType``."""

import sys

import medvllm.model_registry as _home
from medvllm.engine.model_runner.runner import ModelRunner
from medvllm.metadata import ModelMetadata, ModelType
from medvllm.model_registry import ModelRegistry, registry

__all__ = ["ModelMetadata", "ModelRegistry", "ModelRunner", "ModelType", "registry"]

# The framework's older code imports `medvllm.engine.model_runner.registry` as a module. A file of that name would, on
# import, hide the object `registry` of this package; an alias of the module that holds it does not.
sys.modules[f"{__name__}.registry"] = _home
