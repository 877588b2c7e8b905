"""Snapshot -> tokenizer, with the entry's casing and length, safe to share between threads."""

import logging
from functools import cache
from typing import Any

from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medvllm.errors import LoadError, MedVLLMError
from medvllm.forking import Lock
from medvllm.loading import remote_code
from medvllm.loading.config import read_config
from medvllm.loading.load_options import check_requirements
from medvllm.loading.rust_panics import raise_as_errors
from medvllm.loading.tokenizer import casing, vocabulary
from medvllm.loading.tokenizer.max_length import find_max_length
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.sources import Snapshot
from medvllm.sources.snapshot import read_json

logger = logging.getLogger(__name__)

_FORK_S = 30.0  # that a fork waits for a text to be read: the library's own lock would stay taken in the child


def load_tokenizer(
    metadata: ModelMetadata, snapshot: Snapshot, cls: type[Any] | None = None
) -> PreTrainedTokenizerBase:
    """Return the entry's tokenizer; several threads may call it with different lengths at the same time.

    Args:
        cls: The class that the model was loaded with, where the caller chose one.

    Raises:
        WeightsMismatchError: It has no vocabulary, or ids that the model has no embedding for.
        LoadError: A fact of the entry has no effect on it, or anything else.
    """
    check_requirements(metadata)
    config = read_config(metadata, LoadOptions(), snapshot, cls or metadata.model_class)
    try:
        with raise_as_errors():
            tokenizer = _cased(metadata, snapshot, config)
            tokenizer.model_max_length = find_max_length(metadata, config, tokenizer)
        tokenizer.truncation_side = "right"  # windows are counted from the beginning of a text
        return guarded(tokenizer)
    except MedVLLMError:
        raise
    except Exception as error:  # whatever a strange file or a class of the repository's own leads to
        raise _error(metadata, snapshot, error) from error


def _cased(metadata: ModelMetadata, snapshot: Snapshot, config: Any) -> Any:
    """Return the tokenizer with the casing that the entry says, else the files, else the vocabulary."""
    behaviour = metadata.behaviour
    # Said aloud, the entry's casing wins over every file; left out, transformers lowercases in silence.
    facts = {"do_lower_case": behaviour.do_lower_case, "strip_accents": behaviour.strip_accents}
    stated: dict[str, Any] = {option: value for option, value in facts.items() if value is not None}
    tokenizer = _read(metadata, snapshot, config, stated)
    ids = tokenizer.get_vocab()
    words = vocabulary.words(metadata, snapshot, tokenizer, ids)
    vocabulary.check_ids(metadata, config, tokenizer, ids)
    if vocabulary.is_cased(words) and casing.lowercases(tokenizer):
        if behaviour.do_lower_case is None and not _states_casing(snapshot):
            logger.info("the vocabulary of %r is cased: its tokenizer does not lowercase", metadata.name)
            tokenizer = _read(metadata, snapshot, config, stated | {"do_lower_case": False})
        else:
            logger.warning(
                "the tokenizer of %r lowercases, as its %s, but its vocabulary is cased: none of its capitals is found",
                metadata.name,
                "files say" if behaviour.do_lower_case is None else "entry says",
            )
    declared = snapshot.declaration
    if declared and declared.lowercases and behaviour.do_lower_case is not False:
        _lowercase_texts(metadata, tokenizer)
    casing.check_casing(metadata, words, tokenizer)
    return tokenizer


def _read(metadata: ModelMetadata, snapshot: Snapshot, config: Any, stated: dict[str, Any]) -> Any:
    own = remote_code.import_own_class(metadata, snapshot, "AutoTokenizer")
    options = stated if own else stated | {"config": config}
    try:
        found = (own or AutoTokenizer).from_pretrained(
            snapshot.folder, local_files_only=True, trust_remote_code=False, **options
        )
    except ImportError as error:
        raise LoadError(f"The tokenizer of model {metadata.name!r} needs a library that is missing: {error}") from error
    except Exception as error:
        if "trust_remote_code" in str(error) and not metadata.source.trust_remote_code:
            raise remote_code.untrusted_code_error(
                metadata, snapshot, remote_code.auto_map(snapshot, "AutoTokenizer")
            ) from error
        raise _error(metadata, snapshot, error) from error
    found.name_or_path = str(snapshot.path)
    if found.is_fast and getattr(found.backend_tokenizer.model, "dropout", None):
        found.backend_tokenizer.model.dropout = None  # of a training: each call would give other tokens
    return found


def _error(metadata: ModelMetadata, snapshot: Snapshot, error: Exception) -> LoadError:
    return LoadError(
        f"The tokenizer of model {metadata.name!r} could not be loaded: {type(error).__name__}: {str(error)[:300]}",
        model=metadata.name,
        path=str(snapshot.path),
    )


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
        tokenizer.__dict__["_medvllm_lock"] = Lock(reentrant=True, rest_s=_FORK_S)
    return tokenizer


@cache
def _guarded_class(base: type[Any]) -> type[Any]:
    class Guarded(base):  # type: ignore[misc]  # the base is known at run time only
        _medvllm_unguarded = base

        def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
            lock = self.__dict__["_medvllm_lock"]
            with lock:
                if lock.was_busy:
                    raise LoadError(
                        f"Another thread was inside this {base.__name__} when the process was forked, for more than "
                        f"{_FORK_S:.0f} seconds, so it can never answer in this child.\n"
                        "Load it in the child: registry.clear_cache(), then as before."
                    )
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


def _states_casing(snapshot: Snapshot) -> bool:
    """Return whether the files themselves say whether to lowercase; a tokenizer.json alone is read past its word."""
    name = f"{snapshot.root}tokenizer_config.json"
    return name in snapshot.files and "do_lower_case" in read_json(snapshot.file(name))
