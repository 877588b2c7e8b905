"""medvllm: say a model's name and get that model.

``from medvllm import registry, ModelRunner, ModelType``; the specified path is
``from medvllm.engine.model_runner import registry, ModelType``, and gives the same objects.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvllm.engine.model_runner import ModelMetadata, ModelRegistry, ModelRunner, ModelType, registry

__version__ = "0.1.0"

__all__ = ["ModelMetadata", "ModelRegistry", "ModelRunner", "ModelType", "registry"]


# On first use: `medvllm.settings` or the version alone is not to import them. No module of this package may be called
# as one of them is: once imported, it would hide the object.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from medvllm.engine import model_runner

    return getattr(model_runner, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
