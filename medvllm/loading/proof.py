"""The verified part of a receipt: what a loaded model and its files prove."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

from medvllm.errors import MedVLLMError
from medvllm.loading.checks.labels import label_map
from medvllm.receipt import Proof
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
    changed = [_name(snapshot, file) for file in snapshot.file_stamps.changed_paths()]
    architecture, labels = snapshot.config.get("model_type"), label_map(getattr(model, "config", None))
    return Proof(
        commit=snapshot.commit if snapshot.is_listed else None,
        files={name: vars(digest) for name, digest in snapshot.files.items()},
        converted={name: vars(digest) for name, digest in snapshot.converted.items()},
        locked=snapshot.locked and not changed,
        changed=changed,
        architecture=architecture if isinstance(architecture, str) else None,
        size_bytes=size_bytes,
        tokenizer_sha256=_tokenizer_digest(tokenizer),
        labels_sha256=_sha256(sorted(labels.items())) if labels else None,
    )


def _name(snapshot: Snapshot, file: Path) -> str:
    """Return a file's path within its snapshot, or the whole path of a converted copy."""
    return file.relative_to(snapshot.path).as_posix() if file.is_relative_to(snapshot.path) else str(file)


def _tokenizer_digest(load: Callable[[], PreTrainedTokenizerBase]) -> str | None:
    try:
        tokenizer: Any = load()
    except MedVLLMError:  # a model can be used without a tokenizer
        return None
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


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
