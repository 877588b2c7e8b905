"""Tokenizers that threads may share.

A fast tokenizer keeps truncation and padding as state. Without a lock, one thread's maximum length truncates another
thread's text, without an error.
"""

from contextlib import nullcontext
from copy import copy, deepcopy
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from medvllm.errors import LoadError
from medvllm.forking import Lock

_FORK_S = (
    30.0  # seconds that a fork waits for a text to be encoded: the library's own lock would stay locked in a child
)


def make_thread_safe(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Make a tokenizer safe to share between threads, and return it.

    Its class becomes a subclass that encodes under a lock, so it is still an instance of what it was.
    """
    if not hasattr(type(tokenizer), "_medvllm_base"):
        base: Any = type(tokenizer)
        tokenizer.__class__ = _thread_safe_class(base)
        tokenizer.__dict__["_medvllm_lock"] = Lock(reentrant=True, rest_s=_FORK_S)
    return tokenizer


@cache
def _thread_safe_class(base: type[Any]) -> type[Any]:
    class ThreadSafe(base):  # type: ignore[misc]  # the base is known at run time only
        _medvllm_base = base

        def _encode_plus(self, *args: Any, **kwargs: Any) -> Any:
            lock = self.__dict__["_medvllm_lock"]
            with lock:
                if lock.was_busy:
                    raise LoadError(
                        f"This {base.__name__} cannot be used in this process: when the process was forked, another "
                        f"thread had been encoding with it for more than {_FORK_S:.0f} seconds.\n"
                        "Load it again with: registry.clear_cache(); registry.load_tokenizer(…)"
                    )
                return super()._encode_plus(*args, **kwargs)

        def __reduce_ex__(self, protocol: object) -> Any:
            # Pickled and copied as its own class, and made thread-safe again: a lock can be neither pickled nor copied.
            state = {key: value for key, value in self.__dict__.items() if key != "_medvllm_lock"}
            return _rebuild, (base, state)

    # save_pretrained writes the name of the class, which transformers must know.
    ThreadSafe.__name__, ThreadSafe.__qualname__, ThreadSafe.__module__ = (
        base.__name__,
        base.__qualname__,
        base.__module__,
    )
    return ThreadSafe


def _rebuild(base: type[Any], state: dict[str, Any]) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = object.__new__(base)
    tokenizer.__dict__.update(state)
    return make_thread_safe(tokenizer)


def copy_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer that may get further tokens, made while no other thread encodes with it."""
    if tokenizer.is_fast:
        with tokenizer.__dict__.get("_medvllm_lock") or nullcontext():
            return deepcopy(tokenizer)
    made: Any = copy(tokenizer)  # what is inside of one that is written in Python may not be copied
    for name in ("_added_tokens_decoder", "_added_tokens_encoder", "tokens_trie"):
        setattr(made, name, deepcopy(getattr(made, name)))
    copied: PreTrainedTokenizerBase = made
    return copied
