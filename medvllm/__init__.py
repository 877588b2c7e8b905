"""medvllm: say a model's name and get that model.

Example:
    ```python
    from medvllm import ModelType, load_model, registry

    registry.register("my-biobert", ModelType.BIOMEDICAL, model_path="dmis-lab/biobert-v1.1")
    model = load_model("my-biobert")
    ```

The same objects can be imported from ``medvllm.engine.model_runner``.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medvllm import errors
    from medvllm.engine.model_runner import ModelMetadata, ModelRegistry, ModelRunner, ModelType, Request, registry

    load_model = ModelRegistry().load_model

__version__ = "0.1.0"

__all__ = [
    "ModelMetadata",
    "ModelRegistry",
    "ModelRunner",
    "ModelType",
    "Request",
    "__version__",
    "errors",
    "load_model",
    "registry",
]


# Each name is imported when it is first used, so that `import medvllm` costs nothing. No module of this package may
# have one of these names: once imported, it would hide the object. `errors` is such a module, and itself the object.
def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name == "errors":
        return importlib.import_module("medvllm.errors")
    model_runner = importlib.import_module("medvllm.engine.model_runner")
    return model_runner.registry.load_model if name == "load_model" else getattr(model_runner, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
