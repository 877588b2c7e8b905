"""The edge to foreign code: what the libraries below raise leaves as an error of ours, without any input text."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from medvllm.errors import DeviceMemoryError, LoadError, MedVLLMError, RequestError

_NO_MEMORY = ("out of memory", "can't allocate memory")  # torch says either in a plain RuntimeError too


@contextmanager
def running(model: str) -> Iterator[None]:
    """Translate what a model's own code raises: it is given numbers alone, so its message holds no text."""

    def translated(error: BaseException) -> MedVLLMError:
        line = (str(error).strip().splitlines() or [""])[0].rstrip(".")[:200]
        if any(sign in line for sign in _NO_MEMORY):
            return _no_memory(model)
        return LoadError(f"Model {model!r} could not run: {type(error).__name__}: {line}.", model=model)

    with _edge(model, translated):
        yield


@contextmanager
def reading(position: int) -> Iterator[None]:
    """Translate what a tokenizer raises at the text of that position, by its type: the message may hold the text."""

    def translated(error: BaseException) -> MedVLLMError:
        return RequestError(
            f"The tokenizer could not read text {position + 1}: {type(error).__name__}.", position=position
        )

    with _edge(None, translated):
        yield


@contextmanager
def answering(model: str) -> Iterator[None]:
    """Translate whatever else a call raises, by its type."""
    with _edge(
        model, lambda error: LoadError(f"Model {model!r} could not answer: {type(error).__name__}.", model=model)
    ):
        yield


@contextmanager
def _edge(model: str | None, translated: Callable[[BaseException], MedVLLMError]) -> Iterator[None]:
    try:
        yield
    except MedVLLMError:
        raise
    except MemoryError as error:
        raise _no_memory(model) from error
    except Exception as error:
        raise translated(error) from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of Rust code; others are Ctrl-C and the program's end
            raise
        raise translated(error) from error


def _no_memory(model: str | None) -> DeviceMemoryError:
    whose = f" for model {model!r}" if model else ""
    return DeviceMemoryError(
        f"There is not enough memory to run the texts{whose}.\nFree some with: registry.clear_cache()", model=model
    )
