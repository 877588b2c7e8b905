"""What native libraries do that no Python program expects: panics, and memory without bounds."""

from pathlib import Path

import pytest
from tokenizers import Regex, pre_tokenizers

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.inputs import MAX_CHARACTERS
from medvllm.errors import InputTooLongError
from medvllm.loading.rust_panics import raise_as_errors
from tests.support import tiny


def test_a_panic_of_a_rust_library_is_an_ordinary_error() -> None:
    """One that `except Exception` sees; Ctrl-C stays what it is."""
    split = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    with pytest.raises(RuntimeError, match="a panic: "), raise_as_errors():
        split.pre_tokenize_str("a" * 60 + "b")
    with pytest.raises(KeyboardInterrupt), raise_as_errors():
        raise KeyboardInterrupt
    with pytest.raises(KeyError), raise_as_errors():
        raise KeyError("x")


def test_a_text_beyond_all_notes_is_refused_before_it_takes_memory(registry: ModelRegistry, tmp_path: Path) -> None:
    """A tokenizer without memory would end the process; the largest that is read is."""
    runner = ModelRunner(tiny.bert_encoder(tmp_path / "m"), registry=registry)
    with pytest.raises(InputTooLongError, match="Text 2 has 4,000,001 characters; the maximum is 4") as error:
        runner.embed(["fever", "x" * (MAX_CHARACTERS + 1)])
    assert (error.value.limit, error.value.position) == (MAX_CHARACTERS, 1)
