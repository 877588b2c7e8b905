"""Snapshot -> tokenizer, with the entry's casing and maximum length."""

import logging
from typing import Any

from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from medvllm.errors import LoadError, MedVLLMError
from medvllm.loading import remote_code
from medvllm.loading.config import read_config
from medvllm.loading.load_options import check_requirements
from medvllm.loading.rust_panics import raise_as_errors
from medvllm.loading.tokenizer import casing, vocabulary
from medvllm.loading.tokenizer.max_length import find_max_length
from medvllm.loading.tokenizer.thread_safe import make_thread_safe
from medvllm.loading.torch_threads import torch_threads
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.sources.json_files import read_json
from medvllm.sources.snapshot import Snapshot

logger = logging.getLogger(__name__)


def load_tokenizer(
    metadata: ModelMetadata,
    snapshot: Snapshot,
    cls: type[Any] | None = None,
    *,
    config_from: Snapshot | None = None,
) -> PreTrainedTokenizerBase:
    """Return the entry's tokenizer. Threads may share it and call it with different lengths at the same time.

    Args:
        metadata: The entry.
        snapshot: The model's files.
        cls: The class that the model was loaded with, if the caller chose one.
        config_from: The files with the model's config, if they are others: the base of an adapter has it.

    Raises:
        MissingDependencyError: A package that the entry requires is not installed.
        WeightsMismatchError: The vocabulary is empty, or the model has no embedding for some of its ids.
        LoadError: A fact of the entry contradicts the tokenizer or has no effect on it, or any other failure.
    """
    torch_threads.set_up()
    check_requirements(metadata)
    config = read_config(metadata, LoadOptions(), config_from or snapshot, cls or metadata.model_class)
    try:
        with raise_as_errors():
            tokenizer = _read_with_casing(metadata, snapshot, config)
            tokenizer.model_max_length = find_max_length(metadata, config, tokenizer)
        tokenizer.truncation_side = "right"  # windows are counted from the start of a text
        return make_thread_safe(tokenizer)
    except MedVLLMError:
        raise
    except Exception as error:  # a strange file or a repository's own class may raise anything
        raise _error(metadata, snapshot, error) from error


def _read_with_casing(metadata: ModelMetadata, snapshot: Snapshot, config: Any) -> Any:
    """Return the tokenizer with the casing of the entry, or else of the files, or else of the vocabulary."""
    behaviour = metadata.behaviour
    # If the entry gives the casing, it overrides every file. If nothing gives it, transformers lowercases by default.
    facts = {"do_lower_case": behaviour.do_lower_case, "strip_accents": behaviour.strip_accents}
    given: dict[str, Any] = {option: value for option, value in facts.items() if value is not None}
    tokenizer = _read(metadata, snapshot, config, given)
    ids = tokenizer.get_vocab()
    words = vocabulary.words(metadata, snapshot, tokenizer, ids)
    vocabulary.check_ids(metadata, config, tokenizer, ids)
    if vocabulary.is_cased(words) and casing.lowercases(tokenizer):
        if behaviour.do_lower_case is None and not _states_casing(snapshot):
            logger.info("the vocabulary of %r is cased: its tokenizer does not lowercase", metadata.name)
            tokenizer = _read(metadata, snapshot, config, given | {"do_lower_case": False})
        else:
            logger.warning(
                "the tokenizer of %r lowercases, as its %s, but its vocabulary is cased: its capitals are never found",
                metadata.name,
                "files say" if behaviour.do_lower_case is None else "entry says",
            )
    declared = snapshot.declaration
    if declared and declared.lowercases and behaviour.do_lower_case is not False:
        _lowercase_texts(metadata, tokenizer)
    casing.check_casing(metadata, words, tokenizer)
    return tokenizer


def _read(metadata: ModelMetadata, snapshot: Snapshot, config: Any, given: dict[str, Any]) -> Any:
    own = remote_code.import_own_class(metadata, snapshot, "AutoTokenizer")
    options = given if own else given | {"config": config}
    try:
        found = (own or AutoTokenizer).from_pretrained(
            snapshot.loader_folder, local_files_only=True, trust_remote_code=False, **options
        )
    except ImportError as error:
        raise LoadError(
            f"The tokenizer of model {metadata.name!r} needs a library that is not installed: {error}"
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error) and not metadata.source.trust_remote_code:
            raise remote_code.untrusted_code_error(
                metadata, snapshot, remote_code.auto_map(snapshot, "AutoTokenizer")
            ) from error
        raise _error(metadata, snapshot, error) from error
    found.name_or_path = str(snapshot.path)
    if found.is_fast and getattr(found.backend_tokenizer.model, "dropout", None):
        found.backend_tokenizer.model.dropout = None  # left from training: each call would return other tokens
    return found


def _error(metadata: ModelMetadata, snapshot: Snapshot, error: Exception) -> LoadError:
    return LoadError(
        f"The tokenizer of model {metadata.name!r} could not be loaded: {type(error).__name__}: {str(error)[:300]}",
        model=metadata.name,
        path=str(snapshot.path),
    )


def _lowercase_texts(metadata: ModelMetadata, tokenizer: Any) -> None:
    """Make a tokenizer lowercase its input, before anything else."""
    if not tokenizer.is_fast:
        raise LoadError(
            f"The folder of model {metadata.name!r} lowercases texts, which a {type(tokenizer).__name__} cannot do.\n"
            "Register it with: do_lower_case=False",
            model=metadata.name,
        )
    backend = tokenizer.backend_tokenizer
    steps = [backend.normalizer] if backend.normalizer is not None else []
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])


def _states_casing(snapshot: Snapshot) -> bool:
    """Return whether the files say whether to lowercase. transformers ignores what a tokenizer.json alone says."""
    name = f"{snapshot.root}tokenizer_config.json"
    return name in snapshot.files and "do_lower_case" in read_json(snapshot.file(name))
