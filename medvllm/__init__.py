"""medvllm: say a model's name and get that model.

The registry lives at its specified path: ``from medvllm.engine.model_runner import registry, ModelType``.
"""

__version__ = "0.1.0"
