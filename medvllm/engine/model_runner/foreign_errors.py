"""Translates errors of torch, transformers and tokenizers into errors of medvllm. No message contains an input text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medvllm.errors import DeviceMemoryError, LoadError, MedVLLMError, RequestError

_NO_MEMORY = ("out of memory", "can't allocate memory")  # torch may raise either as a plain RuntimeError


@contextmanager
def translate_model_errors(model: str) -> Iterator[None]:
    """Translate what the code of a model raises. A model sees only numbers, so its message contains no text."""

    def translate(error: BaseException) -> MedVLLMError:
        line = (str(error).strip().splitlines() or [""])[0].rstrip(".")[:200]
        if any(sign in line for sign in _NO_MEMORY):
            return _no_memory(model)
        return LoadError(f"Model {model!r} could not run: {type(error).__name__}: {line}.", model=model)

    with _translating(model, translate):
        yield


@contextmanager
def translate_tokenizer_errors(position: int) -> Iterator[None]:
    """Translate what a tokenizer raises for a text, given its position. The message may contain the text."""

    def translate(error: BaseException) -> MedVLLMError:
        return RequestError(
            f"The tokenizer could not read text {position + 1}: {type(error).__name__}.", position=position
        )

    with _translating(None, translate):
        yield


@contextmanager
def translate_other_errors(model: str) -> Iterator[None]:
    """Translate anything else that a call raises. The message may contain a text."""

    def translate(error: BaseException) -> MedVLLMError:
        return LoadError(f"Model {model!r} could not answer: {type(error).__name__}.", model=model)

    with _translating(model, translate):
        yield


@contextmanager
def _translating(model: str | None, translate: Callable[[BaseException], MedVLLMError]) -> Iterator[None]:
    try:
        yield
    except MedVLLMError:
        raise
    except MemoryError as error:
        raise _no_memory(model) from error
    except Exception as error:
        raise translate(error) from error
    except BaseException as error:
        # A panic of Rust code is no Exception. Neither are Ctrl-C and the end of the program, which pass.
        if type(error).__name__ != "PanicException":
            raise
        raise translate(error) from error


def _no_memory(model: str | None) -> DeviceMemoryError:
    whose = f" for model {model!r}" if model else ""
    return DeviceMemoryError(
        f"There is not enough memory to run the texts{whose}.\nFree some with: registry.clear_cache()", model=model
    )
