"""Snapshot -> model and tokenizer. Importing this room imports torch and transformers."""

import os

# All loads here are of local folders. For a pickled repository, transformers would otherwise send the user's token to
# an outside service that converts it. This also protects loads elsewhere in the process.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

from medvllm.loading.adapters import (
    apply_adapter,
    base_of,
    check_trained_on,
    choose_classes,
    identify_adapter,
    import_peft,
    inherit_facts,
)
from medvllm.loading.device import default_budget
from medvllm.loading.load_options import PLAIN_TYPES, identify, with_defaults
from medvllm.loading.memory import free_memory, size_bytes, written_bytes
from medvllm.loading.model import load_model
from medvllm.loading.placement import restore_offloaded
from medvllm.loading.prepared import check_prepared_copies
from medvllm.loading.proof import make_proof
from medvllm.loading.remote_code import check_allowed
from medvllm.loading.sentence_modules import find_activation, load_modules
from medvllm.loading.tokenizer import load_tokenizer
from medvllm.loading.torch_threads import torch_threads

__all__ = [
    "PLAIN_TYPES",
    "apply_adapter",
    "base_of",
    "check_allowed",
    "check_prepared_copies",
    "check_trained_on",
    "choose_classes",
    "default_budget",
    "find_activation",
    "free_memory",
    "identify",
    "identify_adapter",
    "import_peft",
    "inherit_facts",
    "load_model",
    "load_modules",
    "load_tokenizer",
    "make_proof",
    "restore_offloaded",
    "size_bytes",
    "torch_threads",
    "with_defaults",
    "written_bytes",
]
