"""What a call to `load_model` means: which entry, which files, which options. Importing this imports torch."""

import logging
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from medvllm import loading, sources
from medvllm.catalog import Catalog
from medvllm.heads import is_same_head, task_of_class
from medvllm.metadata import ModelMetadata
from medvllm.model_registry.adapter_base import find_base
from medvllm.model_registry.entry_resolver import Basis, EntryResolver, FoundEntry
from medvllm.model_registry.snapshots import Snapshots
from medvllm.names import parse_name
from medvllm.options import Identity, LoadOptions
from medvllm.sources.sentence import Scoring

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadTarget:
    """What a call means, for as long as `Resolver.is_current` and `fingerprint.is_current()` say so."""

    metadata: ModelMetadata
    snapshot: sources.Snapshot
    identity: Identity
    config: "PreTrainedConfig"
    basis: Basis  # before the name was looked up
    fingerprint: sources.Fingerprint  # of the files, their folders, and the lock; of a base's files, too
    is_lasting: bool  # False for a folder's path: its meaning depends on the working directory and on links
    base: "LoadTarget | None" = None  # of an adapter

    @property
    def scoring(self) -> Scoring | None:
        """What the files declare about the scores of a cross-encoder; an adapter with the head of its base has its."""
        own = self.snapshot.scoring
        return self.base.scoring if own is None and self.base is not None and self.has_head_of(self.base) else own

    @property
    def task(self) -> str | None:
        """The task that the entry states, or else the one of a head that labels: "rerank" for a cross-encoder."""
        if (stated := self.metadata.behaviour.task) is not None:
            return stated
        found = task_of_class(self.class_name)
        if found == "classify" and self.scoring is not None and self.config.num_labels == 1:
            return "rerank"
        return found if found in ("classify", "ner") else None

    @property
    def class_name(self) -> str:
        """The name of the class that is loaded."""
        return str(getattr(self.identity.options.model_class, "__name__", ""))

    def has_head_of(self, base: "LoadTarget") -> bool:
        """Return whether an adapter has the same kind of head as its base, with the same labels."""
        is_same = is_same_head(task_of_class(self.class_name), task_of_class(base.class_name))
        return is_same and self.config.id2label == base.config.id2label


class Resolver:
    """Turns a name and the options of a call into a `LoadTarget`. It fetches files, and loads nothing."""

    def __init__(self, catalog: Catalog, snapshots: Snapshots, entries: EntryResolver) -> None:
        self._catalog = catalog
        self._snapshots = snapshots
        self.entries = entries
        self._warned: set[str] = set()  # what the log has said of adapters

    def resolve(self, name: "str | os.PathLike[str]", given: LoadOptions) -> LoadTarget:
        """Return what a call means: the entry, its files (fetched if need be), and the identity of the load.

        Raises:
            ModelNameError, ModelNotFoundError: The name means no model.
            RequestError: The options cannot be used.
            SourceError: The files cannot be had, or are not what they should be.
            LoadError: The device is not here, or the config cannot be used.
        """
        ref = parse_name(name)
        found = self.entries.find(ref, given.revision)
        metadata = found.metadata
        if metadata.is_adapter:
            return self._resolve_adapter(found, given)
        # Options before files: a device that is not here must not cost a download.
        options = loading.with_defaults(metadata, given)
        snapshot = self.entries.fetch(metadata, given.revision or found.revision)
        # What the files say completes entry and options.
        metadata = metadata.with_missing_facts(snapshot.declared_facts)
        identity, config = loading.identify(metadata, options, snapshot)
        fingerprint = snapshot.fingerprint + found.lock
        return LoadTarget(metadata, snapshot, identity, config, found.basis, fingerprint, ref.kind != "folder")

    def is_current(self, target: LoadTarget) -> bool:
        """Return whether entries and settings still are as they were when a target was resolved."""
        return self.entries.is_current(target) and (target.base is None or self.is_current(target.base))

    def _resolve_adapter(self, found: FoundEntry, given: LoadOptions) -> LoadTarget:
        """Return what a call for an adapter means: its entry, its files, and the base with the same options."""
        metadata = found.metadata
        loading.with_defaults(metadata, given)  # for its checks
        stated = given.with_entry(LoadOptions.from_kwargs(metadata.parameters))
        name = str(metadata.source.base)
        find_base(self._catalog, metadata)
        for_base = replace(stated, revision=None, model_class=None)
        base = self.resolve(name, for_base)
        snapshot = self._snapshots.get(metadata, given.revision or found.revision)
        doubt = loading.check_trained_on(metadata, snapshot, base.metadata, base.snapshot)
        if doubt is not None and (said := f"{metadata.reference}: {doubt}") not in self._warned:
            self._warned.add(said)
            logger.warning("adapter %r: %s", metadata.reference, doubt)
        metadata = metadata.with_missing_facts(snapshot.declared_facts)
        own: Any = base.identity.options.model_class
        choice = loading.choose_classes(metadata, stated, snapshot, own, base.config)
        alone = base
        if choice.base_class is not None:
            base = self.resolve(name, replace(for_base, model_class=choice.base_class))
        identity, config = loading.identify_adapter(metadata, snapshot, choice, base.identity, base.config)
        fingerprint = snapshot.fingerprint + base.fingerprint + found.lock
        target = LoadTarget(metadata, snapshot, identity, config, found.basis, fingerprint, base.is_lasting, base)
        of_base = alone.metadata.with_facts(task=alone.task)
        facts = loading.inherit_facts(metadata, snapshot, of_base, has_same_head=target.has_head_of(alone))
        return replace(target, metadata=facts)
