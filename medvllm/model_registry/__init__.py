"""The registry: models by name, loaded once, shared, and checked. Importing this imports no torch.

The object `registry` is the one that all of a process uses. No module here may be named `registry`: once imported, it
would hide the object.
"""

from typing import TYPE_CHECKING, Any

from medvllm.model_registry.api import ModelRegistry, registry
from medvllm.model_type import ModelType

if TYPE_CHECKING:
    from medvllm.metadata import ModelMetadata
    from medvllm.model_registry.lease import Lease
    from medvllm.model_registry.loaded_models import LoadedModel

__all__ = ["Lease", "LoadedModel", "ModelMetadata", "ModelRegistry", "ModelType", "registry"]


# Imported when they are first used: the import of the registry needs none of them.
def __getattr__(name: str) -> Any:
    if name == "Lease":
        from medvllm.model_registry.lease import Lease

        return Lease
    if name == "LoadedModel":
        from medvllm.model_registry.loaded_models import LoadedModel

        return LoadedModel
    if name == "ModelMetadata":
        from medvllm.metadata import ModelMetadata

        return ModelMetadata
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
