"""Snapshot -> tokenizer, with the entry's casing and length, safe to share between threads."""

import logging
import threading
from collections.abc import Collection
from functools import cache
from typing import Any

from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medvllm.errors import LoadError, WeightsMismatchError
from medvllm.loading import code
from medvllm.loading.config import read_config
from medvllm.loading.effective import check_requirements
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.sources import Snapshot
from medvllm.sources.snapshot import read_json

logger = logging.getLogger(__name__)

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
    check_requirements(metadata)
    behaviour = metadata.behaviour
    config = read_config(metadata, LoadOptions(), snapshot, cls or metadata.model_class)
    casing = {"do_lower_case": behaviour.do_lower_case, "strip_accents": behaviour.strip_accents}
    # Said aloud, the entry's casing wins over every file; left out, transformers lowercases in silence.
    stated: dict[str, Any] = {option: value for option, value in casing.items() if value is not None}
    tokenizer = _read(metadata, snapshot, config, stated)
    words = _words(metadata, snapshot, tokenizer)
    if _is_cased(words) and _lowercases(tokenizer):
        if behaviour.do_lower_case is None and not _states_casing(snapshot):
            logger.info("the vocabulary of %r is cased: its tokenizer does not lowercase", metadata.name)
            tokenizer = _read(metadata, snapshot, config, stated | {"do_lower_case": False})
        else:
            logger.warning(
                "the tokenizer of %r lowercases, as its %s, but its vocabulary is cased: none of its capitals is found",
                metadata.name,
                "files say" if behaviour.do_lower_case is None else "entry says",
            )
    _check_casing(metadata, words, tokenizer)
    positions = getattr(config, "max_position_embeddings", None) or _UNSET_LENGTH
    if config.model_type in _OFFSET_POSITIONS and positions != _UNSET_LENGTH:
        positions -= (config.pad_token_id or 0) + 1
    declared = snapshot.declaration
    # The length that sentence-transformers was told replaces the tokenizer's own, where the entry has no other.
    own = _UNSET_LENGTH if declared and declared.max_length else tokenizer.model_max_length
    tokenizer.model_max_length = min(behaviour.max_length or _UNSET_LENGTH, own, positions)
    if declared and declared.lowercases and behaviour.do_lower_case is not False:
        _lowercase_texts(metadata, tokenizer)
    tokenizer.truncation_side = "right"  # windows are counted from the beginning of a text
    return guarded(tokenizer)


def _read(metadata: ModelMetadata, snapshot: Snapshot, config: Any, stated: dict[str, Any]) -> Any:
    own = code.own_class(metadata, snapshot, "AutoTokenizer")
    options = stated if own else stated | {"config": config}
    try:
        return (own or AutoTokenizer).from_pretrained(
            snapshot.path, local_files_only=True, trust_remote_code=False, **options
        )
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


def _lowercase_texts(metadata: ModelMetadata, tokenizer: Any) -> None:
    """Have a tokenizer lowercase what it reads, before anything else that it does."""
    if not tokenizer.is_fast:
        raise LoadError(
            f"The folder of model {metadata.name!r} lowercases texts, which a {type(tokenizer).__name__} cannot do.\n"
            "Register it with: do_lower_case=False",
            model=metadata.name,
        )
    backend = tokenizer.backend_tokenizer
    steps = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


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


def _words(metadata: ModelMetadata, snapshot: Snapshot, tokenizer: Any) -> set[str]:
    """Return a tokenizer's vocabulary without its special tokens; WeightsMismatchError when it has none."""
    words: set[str] = tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)
    if not words:
        raise WeightsMismatchError(
            f"The tokenizer of model {metadata.name!r} has no vocabulary: every word would be unknown.\n"
            f"{snapshot.path} needs a vocab.txt or tokenizer.json.",
            model=metadata.name,
            path=str(snapshot.path),
        )
    return words - _BERT_SPECIAL


def _is_cased(words: Collection[str]) -> bool:
    """Return whether a vocabulary was made of text whose case was kept: then one piece of many has a capital."""
    return sum(word != word.lower() for word in words) > len(words) / 100


def _lowercases(tokenizer: Any) -> bool:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return normalizer is not None and normalizer.normalize_str("ALS") == "als"


def _states_casing(snapshot: Snapshot) -> bool:
    """Return whether the files themselves say whether to lowercase; a tokenizer.json alone is read past its word."""
    file = snapshot.path / "tokenizer_config.json"
    return file.is_file() and "do_lower_case" in read_json(file)


def _check_casing(metadata: ModelMetadata, words: Collection[str], tokenizer: Any) -> None:
    """Refuse a tokenizer, or a vocabulary, that is not cased where the entry says so."""
    if metadata.behaviour.do_lower_case is not False:
        return
    if any(word != word.upper() for word in words) and not any(word != word.lower() for word in words):
        raise LoadError(
            f"The vocabulary of model {metadata.name!r} has no capital letter, and the entry says that it is cased.\n"
            "Every capitalised word would be unknown. Register it with: do_lower_case=True",
            model=metadata.name,
        )
    if _lowercases(tokenizer):
        raise LoadError(f"The tokenizer of model {metadata.name!r} lowercases, and the entry says that it must not.")
