"""Snapshot -> tokenizer, with the entry's casing and length, safe to share between threads."""

import re
import threading
from functools import cache
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medvllm.errors import LoadError, MedVLLMError, WeightsMismatchError
from medvllm.loading import code
from medvllm.loading.config import read_config
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.sources import Snapshot

# Architectures whose positions begin behind the padding token's id.
_OFFSET_POSITIONS = {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "longformer", "mpnet"}
_BERT_SPECIAL = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}  # also where a tokenizer does not declare them
_UNSET_LENGTH = 10**9  # transformers says 1e30 when no length is known


def load_tokenizer(
    metadata: ModelMetadata, snapshot: Snapshot, cls: type[Any] | None = None
) -> PreTrainedTokenizerBase:
    """Return the entry's tokenizer; several threads may call it with different lengths at the same time.

    `cls` is the class that the model was loaded with, where the caller chose one. `model_max_length` is the smallest of
    the entry's, the tokenizer's own and the model's positions.
    """
    behaviour = metadata.behaviour
    config = read_config(metadata, LoadOptions(), snapshot, cls or metadata.model_class)
    casing = {"do_lower_case": behaviour.do_lower_case, "strip_accents": behaviour.strip_accents}
    stated: dict[str, Any] = {option: value for option, value in casing.items() if value is not None}
    own = code.own_class(metadata, snapshot, "AutoTokenizer")
    stated |= {} if own else {"config": config}
    try:
        # Said aloud, the entry's casing wins over every file; left out, transformers lowercases in silence.
        tokenizer = (own or AutoTokenizer).from_pretrained(
            snapshot.path, local_files_only=True, trust_remote_code=False, **stated
        )
    except MedVLLMError:
        raise
    except ImportError as error:
        raise LoadError(f"The tokenizer of model {metadata.name!r} needs a library that is missing: {error}") from error
    except Exception as error:
        if "trust_remote_code" in str(error) and not metadata.source.trust_remote_code:
            raise code.refusal(metadata, snapshot, code.auto_map(snapshot, "AutoTokenizer")) from error
        raise LoadError(
            f"The tokenizer of model {metadata.name!r} could not be loaded: {type(error).__name__}: {str(error)[:300]}",
            model=metadata.name,
            path=str(snapshot.path),
        ) from error
    _check(metadata, snapshot, tokenizer)
    positions = getattr(config, "max_position_embeddings", None) or _UNSET_LENGTH
    if config.model_type in _OFFSET_POSITIONS and positions != _UNSET_LENGTH:
        positions -= (config.pad_token_id or 0) + 1
    tokenizer.model_max_length = min(behaviour.max_length or _UNSET_LENGTH, tokenizer.model_max_length, positions)
    tokenizer.truncation_side = "right"  # windows are counted from the beginning of a text
    return guarded(tokenizer)


def guarded(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make `tokenizer` safe to share between threads, and return it.

    A fast tokenizer keeps truncation and padding as state: unguarded, one thread's length cuts another's text. The
    class becomes a subclass that encodes under a lock; it is still an instance of what it was.
    """
    if not hasattr(type(tokenizer), "_medvllm_unguarded"):
        base: Any = type(tokenizer)
        tokenizer.__class__ = _guarded_class(base)
        tokenizer.__dict__["_medvllm_lock"] = threading.RLock()
    return tokenizer


@cache
def _guarded_class(base: type[Any]) -> type[Any]:
    class Guarded(base):  # type: ignore[misc]  # the base is known at run time only
        _medvllm_unguarded = base

        def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
            with self.__dict__["_medvllm_lock"]:
                return super()._encode_plus(*args, **kwargs)

        def __reduce_ex__(self, protocol: object) -> Any:
            # Pickled and copied as what it was, then guarded anew: a lock can be neither.
            state = {key: value for key, value in self.__dict__.items() if key != "_medvllm_lock"}
            return _rebuild, (base, state)

    # save_pretrained writes the class's name, which transformers must know.
    Guarded.__name__, Guarded.__qualname__, Guarded.__module__ = base.__name__, base.__qualname__, base.__module__
    return Guarded


def _rebuild(base: type[Any], state: dict[str, Any]) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = object.__new__(base)
    tokenizer.__dict__.update(state)
    return guarded(tokenizer)


def _check(metadata: ModelMetadata, snapshot: Snapshot, tokenizer: Any) -> None:
    """Refuse a tokenizer without words, or with another casing than the entry's."""
    vocabulary = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    if not vocabulary:
        raise WeightsMismatchError(
            f"The tokenizer of model {metadata.name!r} has no vocabulary: every word would be unknown.\n"
            f"{snapshot.path} needs a vocab.txt or tokenizer.json.",
            model=metadata.name,
            path=str(snapshot.path),
        )
    if metadata.behaviour.do_lower_case is not False:
        return
    words = "".join(vocabulary - _BERT_SPECIAL)
    if re.search("[a-z]", words) and not re.search("[A-Z]", words):
        raise LoadError(
            f"The vocabulary of model {metadata.name!r} has no capital letter, and the entry says that it is cased.\n"
            "Every capitalised word would be unknown. Register it with: do_lower_case=True",
            model=metadata.name,
        )
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer and normalizer.normalize_str("ALS") != "ALS":
        raise LoadError(f"The tokenizer of model {metadata.name!r} lowercases, and the entry says that it must not.")
