"""Translates errors of torch, transformers and tokenizers into errors of medvllm. No error contains an input text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

from medvllm.errors import DeviceMemoryError, LoadError, MedVLLMError, RequestError

P = ParamSpec("P")
R = TypeVar("R")

_NO_MEMORY = ("out of memory", "can't allocate memory")  # torch may raise either as a plain RuntimeError


@contextmanager
def translate_model_errors(model: str) -> Iterator[None]:
    """Translate what the code of a model raises. A model sees only numbers, so its error is kept as the cause."""

    def translate(error: BaseException) -> MedVLLMError:
        line = (str(error).strip().splitlines() or [""])[0].rstrip(".")[:200]
        if any(sign in line for sign in _NO_MEMORY):
            return _no_memory(model)
        return LoadError(f"Model {model!r} could not run: {type(error).__name__}: {line}.", model=model)

    with _translating(model, translate, keeps_cause=True):
        yield


@contextmanager
def translate_tokenizer_errors(position: int | None, called: str | None = None) -> Iterator[None]:
    """Translate what a tokenizer raises for a text. Its error may contain the text: it is dropped.

    Args:
        position: The position of the text in the request; None for another text.
        called: What it is called; by default, the text at this position.
    """

    def translate(error: BaseException) -> MedVLLMError:
        what = called or f"text {(position or 0) + 1}"
        return RequestError(f"The tokenizer could not read {what}: {type(error).__name__}.", position=position)

    with _translating(None, translate):
        yield


@contextmanager
def translate_other_errors(model: str) -> Iterator[None]:
    """Translate anything else that a call raises. It may contain a text, and is dropped."""

    def translate(error: BaseException) -> MedVLLMError:
        return LoadError(f"Model {model!r} could not answer: {type(error).__name__}.", model=model)

    with _translating(model, translate):
        yield


def drop_hidden_errors(call: Callable[P, R]) -> Callable[P, R]:
    """Make a function raise errors of medvllm without those that were raised `from None` before.

    Python keeps such an error as the context of the next one, where a program that reports errors would find a text.
    """

    @wraps(call)
    def calling(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return call(*args, **kwargs)
        except MedVLLMError as error:
            raised = error
        link: BaseException | None = raised
        while link is not None:
            if link.__suppress_context__:
                link.__context__ = None
            link = link.__cause__ or link.__context__
        raise raised  # not in the block above, which would make an error its own context

    return calling


@contextmanager
def _translating(
    model: str | None, translate: Callable[[BaseException], MedVLLMError], *, keeps_cause: bool = False
) -> Iterator[None]:
    try:
        yield
    except MedVLLMError:
        raise
    except MemoryError:
        raise _no_memory(model) from None
    except Exception as error:
        raise translate(error) from (error if keeps_cause else None)
    except BaseException as error:
        # A panic of Rust code is no Exception. Neither are Ctrl-C and the end of the program, which pass.
        if type(error).__name__ != "PanicException":
            raise
        raise translate(error) from (error if keeps_cause else None)


def _no_memory(model: str | None) -> DeviceMemoryError:
    whose = f" for model {model!r}" if model else ""
    return DeviceMemoryError(
        f"There is not enough memory to run the texts{whose}.\nFree some with: registry.clear_cache()", model=model
    )
