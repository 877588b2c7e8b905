"""Adapters: small weights, trained with PEFT, that complete those of a base model which many adapters share."""

from medvllm.loading.adapters.apply import apply_adapter, base_of
from medvllm.loading.adapters.declaration import check_trained_on, import_peft
from medvllm.loading.adapters.identity import choose_classes, identify_adapter
from medvllm.loading.adapters.inherited import inherit_facts

__all__ = [
    "apply_adapter",
    "base_of",
    "check_trained_on",
    "choose_classes",
    "identify_adapter",
    "import_peft",
    "inherit_facts",
]
