"""Snapshot -> model and tokenizer. Importing this room imports torch and transformers."""

from medvllm.loading.effective import filled, identify
from medvllm.loading.memory import Loaded, reclaim
from medvllm.loading.model import load_model
from medvllm.loading.tokenizer import load_tokenizer

__all__ = ["Loaded", "filled", "identify", "load_model", "load_tokenizer", "reclaim"]
