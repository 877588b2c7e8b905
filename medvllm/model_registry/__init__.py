"""The registry: models by name, loaded once, shared, and checked. Importing this imports no torch.

The object `registry` is the one that all of a process uses. No module here may be named `registry`: once imported, it
would hide the object.
"""

from medvllm.metadata import ModelMetadata, ModelType
from medvllm.model_registry.api import ModelRegistry, registry
from medvllm.model_registry.lease import Lease
from medvllm.model_registry.loaded_models import LoadedModel

__all__ = ["Lease", "LoadedModel", "ModelMetadata", "ModelRegistry", "ModelType", "registry"]
