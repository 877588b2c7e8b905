"""The Open Inference Protocol v2, as Triton and KServe speak it, with Triton's repository extension."""

from medvllm.server.protocols.open_inference.routes import router

__all__ = ["router"]
