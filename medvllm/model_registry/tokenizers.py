"""The tokenizers of entries, and the modules that a sentence-transformers folder puts behind its pooling."""

from typing import TYPE_CHECKING, Any

from medvllm import loading
from medvllm.engines.vector_modules import Modules
from medvllm.metadata import ModelMetadata
from medvllm.model_cache import ValueCache
from medvllm.model_registry.nesting import Nesting
from medvllm.sources import Snapshot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Tokenizers:
    """Loads each tokenizer once for an entry and its files, for all threads."""

    def __init__(self, kept: ValueCache[tuple[Any, ...], Any], nesting: Nesting) -> None:
        self._kept = kept
        self._nesting = nesting

    def get(
        self,
        metadata: ModelMetadata,
        snapshot: Snapshot,
        model_class: type[Any] | None = None,
        *,
        config_from: Snapshot | None = None,
    ) -> "PreTrainedTokenizerBase":
        """Return an entry's tokenizer.

        Args:
            metadata: The entry.
            snapshot: The files with the tokenizer.
            model_class: The class that the caller loads the model with.
            config_from: The files with the model's config, if they are others: the base of an adapter has it.
        """
        # The behaviour too: another catalogue, or a backup of this one, may have another entry of this version.
        files = snapshot.identity, snapshot.content_digest
        key = (metadata.name, metadata.version, metadata.origin, files, metadata.behaviour)
        loading.check_allowed(metadata)

        def load() -> "PreTrainedTokenizerBase":
            tokenizer = loading.load_tokenizer(metadata, snapshot, model_class, config_from=config_from)
            snapshot.check_unchanged()
            return tokenizer

        tokenizer: PreTrainedTokenizerBase = self._kept.get(key, load, may_wait=not self._nesting.depth)
        return tokenizer

    def get_modules(self, metadata: ModelMetadata, snapshot: Snapshot) -> Modules:
        """Return the modules that a folder puts behind its pooling."""
        key = (metadata.name, "modules", frozenset((*snapshot.files.items(), *snapshot.converted.items())))

        def load() -> Modules:
            modules = loading.load_modules(metadata, snapshot)
            snapshot.check_unchanged()
            return modules

        modules: Modules = self._kept.get(key, load, may_wait=not self._nesting.depth)
        return modules
