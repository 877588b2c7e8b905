"""Snapshot -> model and tokenizer. Importing this room imports torch and transformers."""

import os

# Loads here are of local folders. Elsewhere in the process, transformers would answer a pickled repository by sending
# the user's token to an outside service that converts it.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

from medvllm.loading.code import check_allowed
from medvllm.loading.device import capacity
from medvllm.loading.load_options import identify, with_defaults
from medvllm.loading.memory import Loaded, reclaim, written_bytes
from medvllm.loading.model import load_model
from medvllm.loading.modules import load_modules
from medvllm.loading.prepared import flaws as prepared_flaws
from medvllm.loading.proof import proof
from medvllm.loading.sleep import rest, wake
from medvllm.loading.threads import threads
from medvllm.loading.tokenizer import load_tokenizer

__all__ = [
    "Loaded",
    "capacity",
    "check_allowed",
    "identify",
    "load_model",
    "load_modules",
    "load_tokenizer",
    "prepared_flaws",
    "proof",
    "reclaim",
    "rest",
    "threads",
    "wake",
    "with_defaults",
    "written_bytes",
]
