"""The verified part of a receipt: what a loaded model and its files prove."""

import hashlib
import json
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from medvllm.errors import MedVLLMError
from medvllm.label_schemes import label_map
from medvllm.receipt import Proof
from medvllm.sources.proof import prove
from medvllm.sources.snapshot import Snapshot

_digests: WeakKeyDictionary[PreTrainedTokenizerBase, str] = WeakKeyDictionary()  # a large vocabulary takes 0.1 s


def make_proof(
    snapshot: Snapshot, model: Any, size_bytes: int, tokenizer: Callable[[], PreTrainedTokenizerBase]
) -> Proof:
    """Return the proof of a loaded model.

    Args:
        snapshot: The files that it was loaded from.
        model: The model.
        size_bytes: Its size in memory.
        tokenizer: Loads its tokenizer. The model may have none.
    """
    try:
        of_tokenizer: str | None = tokenizer_digest(tokenizer())
    except MedVLLMError:  # a model can be used without a tokenizer
        of_tokenizer = None
    return prove(snapshot, size_bytes, of_tokenizer, labels_digest(getattr(model, "config", None)))


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a hash of a tokenizer: its vocabulary, casing and maximum length."""
    if tokenizer not in _digests:
        if tokenizer.is_fast:
            content = json.loads(tokenizer.backend_tokenizer.to_str())
            # State of the last call.
            content |= {"truncation": None, "padding": None}
        else:
            content = sorted(tokenizer.get_vocab().items())
        shape = type(tokenizer).__name__, tokenizer.model_max_length, tokenizer.special_tokens_map
        _digests[tokenizer] = _sha256([*shape, content])
    return _digests[tokenizer]


def labels_digest(config: Any) -> str | None:
    """Return a hash of the label map in a config; None without named labels."""
    labels = label_map(config)
    return _sha256(sorted(labels.items())) if labels else None


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
