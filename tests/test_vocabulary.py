"""The tables of tokenizers' files are those of the transformers that is installed."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from transformers import CONFIG_MAPPING, PreTrainedTokenizerBase, models
from transformers.models.auto.tokenization_auto import TOKENIZER_MAPPING_NAMES
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from medvllm.sources.layout import _FURTHER_WEIGHTS
from medvllm.sources.tokenizer_files import _SLOW_CLASSES, _SLOW_TYPES, tokenizer_files

# Their modules need packages that are not here: what they read was seen in their source.
_UNSEEN = {"Cpm", "M2M100", "Marian", "Siglip", "Speech2Text", "Pop2Piano"}


def _classes() -> Iterator[type[PreTrainedTokenizerBase]]:
    for package in pkgutil.iter_modules(models.__path__):
        folder = importlib.import_module(f"transformers.models.{package.name}")
        for module in pkgutil.iter_modules(folder.__path__):
            if not module.name.startswith("tokenization_") or package.name == "auto":
                continue
            try:
                found = vars(importlib.import_module(f"{folder.__name__}.{module.name}"))
            except (ImportError, NameError):  # sentencepiece, pretty_midi
                continue
            for kind in found.values():
                is_class = isinstance(kind, type) and kind.__module__ == f"{folder.__name__}.{module.name}"
                if is_class and issubclass(kind, PreTrainedTokenizerBase):
                    yield kind


@pytest.fixture(scope="module")
def classes() -> list[type[PreTrainedTokenizerBase]]:
    """Every class of a tokenizer."""
    return list(_classes())


def test_every_vocabulary_file_of_every_class_is_known(classes: list[type[PreTrainedTokenizerBase]]) -> None:
    """Alone in a folder, without a tokenizer.json, each is one of the model's files."""
    assert len(classes) > 90
    for kind in classes:
        names = set(kind.vocab_files_names.values()) - {"tokenizer_config.json", "tokenizer.json"}
        config = {"tokenizer_class": kind.__name__}
        assert set(tokenizer_files(names, {}, config)) == names, kind.__name__


def test_the_classes_that_read_their_vocabulary_beside_tokenizer_json_are_known(
    classes: list[type[PreTrainedTokenizerBase]],
) -> None:
    """Those written in Python, and no others: by class, and by the model types that they are the default of."""
    slow = {kind.__name__ for kind in classes if not issubclass(kind, TokenizersBackend)}
    plain = {name.removesuffix("Tokenizer") for name in slow}
    assert plain == _SLOW_CLASSES - _UNSEEN
    named = {
        kind for kind, name in TOKENIZER_MAPPING_NAMES.items() if name in {*slow, *(f"{n}Tokenizer" for n in _UNSEEN)}
    }
    assert named <= _SLOW_TYPES <= {*TOKENIZER_MAPPING_NAMES, *CONFIG_MAPPING.keys(), "bertweet", "phobert", "cpm"}


def test_classes_with_further_weights_are_known() -> None:
    """A config class of transformers that names more files of weights."""
    found = {kind.model_type: kind.extra_files for kind in CONFIG_MAPPING.values() if kind.extra_files}
    assert found == _FURTHER_WEIGHTS
