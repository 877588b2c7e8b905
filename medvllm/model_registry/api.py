"""The registry as its callers see it.

Each method is a few lines: the modules beside this one do the work. The file is long because every public method
documents its arguments here. The modules are imported when a method needs them, so that importing the registry is fast.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, overload

from medvllm.errors import CatalogError, ModelNameError, ModelNotFoundError, RequestError
from medvllm.lazy import lazy
from medvllm.model_type import ModelType

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from medvllm.catalog import Catalog, StoredCatalog
    from medvllm.catalog.announcements import Announcement
    from medvllm.catalog.difference import Difference
    from medvllm.engine.model_runner.runner import ModelRunner
    from medvllm.engines import EngineName, Precision
    from medvllm.metadata import ModelMetadata
    from medvllm.model_cache import ModelCache, Plan, Statistics
    from medvllm.model_registry.bundle_export import Exported
    from medvllm.model_registry.bundle_import import Imported
    from medvllm.model_registry.engine_leases import EngineLeases
    from medvllm.model_registry.entry_resolver import EntryResolver
    from medvllm.model_registry.lease import Lease
    from medvllm.model_registry.loaded_models import LoadedModel, LoadedModels
    from medvllm.model_registry.protection import AliasProtection
    from medvllm.model_registry.session import Session
    from medvllm.model_registry.snapshots import Snapshots
    from medvllm.options import Identity
    from medvllm.processes import ProcessRecord
    from medvllm.sources import LockedModel
    from medvllm.typed_facts import Facts

M = TypeVar("M", bound="PreTrainedModel")
Name = str | os.PathLike[str]


class ModelRegistry:
    """Models by name: registered with metadata, loaded once, shared by all callers, and checked before use.

    Every method can be called from any thread. Registries with catalogues of their own are independent.

    Example:
        ```python
        from medvllm import registry

        registry.register("my-tagger", "clinical", model_path="./my-tagger")
        model = registry.load_model("my-tagger", device="cuda:0")
        ```
    """

    def __init__(self, catalog: "Catalog | None" = None) -> None:
        """Make a registry.

        Args:
            catalog: The entries. By default those of this process, then the stored ones, then the built-in ones.
        """
        self._given = catalog

    @lazy
    def _catalog(self) -> "Catalog":
        from medvllm import settings
        from medvllm.catalog import Catalog, StoredCatalog

        settings.warn_of_unknown()
        return Catalog(StoredCatalog(protection=self._protection)) if self._given is None else self._given

    @lazy
    def _protection(self) -> "AliasProtection":
        from medvllm.model_registry.protection import AliasProtection

        return AliasProtection()

    @lazy
    def _loaded(self) -> "LoadedModels":
        from medvllm.model_registry.loaded_models import LoadedModels

        return LoadedModels(self._catalog)

    @lazy
    def _model_cache(self) -> "ModelCache[Identity]":
        return self._loaded.cache  # `name in registry._model_cache` is part of the specification

    @lazy
    def _snapshots(self) -> "Snapshots":
        from medvllm.model_registry.snapshots import Snapshots

        return Snapshots(self._catalog)

    @lazy
    def _entries(self) -> "EntryResolver":
        from medvllm.model_registry.entry_resolver import EntryResolver

        return EntryResolver(self._catalog, self._snapshots)

    @lazy
    def session(self) -> "Session":
        """The half that loads, below `load_model` and `lease`. Reading it imports torch."""
        from medvllm.model_registry.session import Session

        return Session(self._catalog, self._snapshots, self._entries, self._loaded)

    @lazy
    def engine_leases(self) -> "EngineLeases":
        """The half that leases models which an engine computes, below `runner`. Reading it imports no torch."""
        from medvllm.model_registry.engine_leases import EngineLeases

        return EngineLeases(self._catalog, self._entries, self._loaded)

    @property
    def catalog(self) -> "StoredCatalog":
        """The stored entries: their versions, aliases and history. All processes that share the database see them."""
        return self._catalog.stored

    # Entries

    def register(
        self,
        name: str,
        model_type: ModelType | str,
        *,
        replace: bool = False,
        persist: bool = False,
        copy: bool = False,
        reason: str | None = None,
        **facts: "Unpack[Facts]",
    ) -> "ModelMetadata":
        """Add an entry to the registry and return its metadata.

        Facts that are not given are read from the model's folder, if it has one: its task, labels, pooling and
        maximum length. An adapter is an entry with a `base`: the entry whose weights it completes.

        Args:
            name: The name to load the model by.
            model_type: "generic", "biomedical", "clinical" or "custom", or a `ModelType`.
            replace: Whether the entry may take the place of one that has the name already.
            persist: Whether to store the entry. Other processes see it from their next look-up on, and earlier
                versions stay. No version is added if the newest one has the same facts.
            copy: Whether to copy the folder of `model_path` into MEDVLLM_HOME, and register the copy.
            reason: Why. The history keeps it, with a stored entry.
            **facts: `model_path` (a repository or folder; by default the name is the repository), `revision`, `base`,
                `model_class` and `config_class` (a class or "module:Class"), `description`, `tags`, `parameters`
                (load options), `task`, `architecture`, `do_lower_case`, `max_length`, `pooling`, `id2label`,
                `expected_missing_keys`, `license`, and the other facts of `ModelMetadata`.

        Raises:
            RequestError: A keyword is not a fact, or a value cannot be used.
            ModelExistsError: The name is taken, and `replace` is not set.
            SourceError: The folder does not exist, or holds no model that can be loaded.
            LoadError: The folder's model does not fit the facts, or this version of transformers.

        Example:
            ```python
            registry.register("my-tagger", "clinical", model_path="./my-tagger", tags=["ner"], persist=True)
            ```
        """
        from medvllm.model_registry.registration import prepare_facts

        prepared = prepare_facts(name, model_type, facts, copy=copy, catalog=self._catalog)
        metadata = self._catalog.add(name, model_type, prepared, replace=replace, persist=persist, reason=reason)
        if replace and not persist:
            self._loaded.evict(name, "replaced")
        self._announce(metadata.name)
        return metadata

    def unregister(self, name: str, *, persist: bool = False, force: bool = False, reason: str | None = None) -> None:
        """Remove an entry, or one stored version, and evict its models.

        Args:
            name: The entry's name; `name@2` removes one stored version.
            persist: Whether a stored entry may be removed, for all processes.
            force: Whether to remove a stored version though an alias points to it, or a process has it leased.
            reason: Why. The history keeps it, with a stored entry.

        Raises:
            ModelNotFoundError: No entry has the name.
            CatalogError: The entry is stored, and `persist` is not set; or it is in use, and `force` is not set.
        """
        from medvllm.names import parse_name

        ref = parse_name(name)
        if not persist and (ref.suffix is not None or self._catalog.is_stored(ref.name)):
            raise CatalogError(
                f"Model {name!r} is stored: removing it removes it for all processes.\n"
                f"If you mean that: registry.unregister({name!r}, persist=True), or: medvllm unregister {name}",
                model=ref.name,
            )
        if ref.suffix is None:
            self._catalog.remove(ref.name, force=force, reason=reason)
        else:
            self.catalog.remove(name, force=force, reason=reason)
        self._loaded.evict(ref.name)
        self._announce(ref.name)

    def list_models(
        self,
        model_type: ModelType | str | None = None,
        *,
        task: str | None = None,
        tags: Sequence[str] | str = (),
        match: str | None = None,
        search: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        here: bool = False,
        **facts: Any,
    ) -> "dict[str, ModelMetadata]":
        """Return the metadata of the entries that fit all filters, sorted by name. It never waits for a load.

        Args:
            model_type: Only entries of this type.
            task: Only entries for this task.
            tags: Only entries that have all these tags.
            match: A glob that the name must match, in any case, such as "bio*".
            search: A text that the name, another name of the model, or its description must contain.
            limit: The most entries to return, at least 1.
            after: Start behind this name: with `limit`, the last name of the page before.
            here: Only entries whose files are on this machine.
            **facts: Any other fact of `register`, and `origin` ("process", "stored" or "built-in") and `version`.
                Texts are globs: `license="apache*"`, `gated=False`, `languages="en"`. None finds entries for which
                the fact is not known.

        Raises:
            RequestError: A filter cannot be used.
        """
        if limit is not None and (type(limit) is not int or limit < 1):
            raise RequestError(f"limit must be at least 1, not {limit!r:.80}.", option="limit")
        return self._catalog.select(
            model_type,
            task=task,
            tags=tags,
            match=match,
            search=search,
            facts=facts,
            limit=limit,
            after=after,
            here=here,
        )

    def get_metadata(self, name: Name) -> "ModelMetadata":
        """Return the metadata of an entry. It never waits for a load.

        Raises:
            ModelNotFoundError: No entry has the name. The error offers names that are close to it.
        """
        from medvllm.catalog import find_entry
        from medvllm.names import parse_name

        ref = parse_name(name)
        found = find_entry(self._catalog, ref)
        if found is None:
            is_folder = ref.kind == "folder"
            advice = f"\nRegister it: medvllm register NAME --type TYPE --path {ref.text}" if is_folder else ""
            raise self._catalog.not_found(ref.name, advice=advice)
        return found.entry

    def __getitem__(self, name: str) -> "ModelMetadata":
        return self.get_metadata(name)

    def __contains__(self, name: object) -> bool:
        """Return whether an entry has the name. Names that would only load directly are not entries."""
        from medvllm.catalog import find_entry
        from medvllm.names import parse_name

        try:
            return find_entry(self._catalog, parse_name(name)) is not None
        except (ModelNameError, ModelNotFoundError):
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.list_models())

    def __len__(self) -> int:
        return len(self.list_models())

    def __bool__(self) -> bool:
        return True  # also without entries

    def diff(self, name: Name, other: Name) -> "list[Difference]":
        """Return what differs between two entries, or two versions of one.

        Facts are compared, and files where both are locked.

        Raises:
            ModelNotFoundError: One of them is not registered.
        """
        from medvllm.catalog.difference import differences

        before, after = self.get_metadata(name), self.get_metadata(other)
        locked = self._protection.get_locked(before), self._protection.get_locked(after)
        return differences(before.without_folder_facts(), after.without_folder_facts(), locked)

    # Models

    @overload
    def load_model(
        self,
        name: Name,
        *,
        model_class: type[M],
        device: "str | int | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        torch_dtype: "str | torch.dtype | None" = None,
        revision: str | None = None,
        use_cache: bool = True,
        keep_alive: str | float | None = None,
        **options: Any,
    ) -> M: ...
    @overload
    def load_model(
        self,
        name: Name,
        *,
        model_class: Any = None,
        device: "str | int | torch.device | None" = None,
        dtype: "str | torch.dtype | None" = None,
        torch_dtype: "str | torch.dtype | None" = None,
        revision: str | None = None,
        use_cache: bool = True,
        keep_alive: str | float | None = None,
        **options: Any,
    ) -> "PreTrainedModel": ...
    def load_model(
        self, name: Name, *, use_cache: bool = True, keep_alive: str | float | None = None, **options: Any
    ) -> "PreTrainedModel":
        """Return a model in eval mode. It is loaded on the first call, and shared by all equal calls after it.

        An option that is not given comes from the entry, then from the settings, then from the checkpoint. Calls are
        equal when the options in effect are equal, whether they were given or not.

        Args:
            name: A registered name, with `@version` or `@alias` if you like; or a repository or folder, which is
                loaded directly.
            model_class: The class to load, or "module:Class".
            device: "cpu", "cuda", "cuda:1", "mps", "auto", or a `torch.device`.
            dtype: "float32", "bfloat16", "float16", "float64", or a `torch.dtype`. "auto" is the checkpoint's own, or
                float32 on a CPU that has no instructions for that.
            torch_dtype: The same, by its older name.
            revision: A branch, tag or commit on the Hub, in place of the entry's.
            use_cache: False gives you a copy of your own, to train or change.
            keep_alive: How long the model stays in memory after its last use, from now on: "10m", seconds, 0 (until it
                is released), or a negative number (pinned).
            **options: `config`, `attn_implementation`, and fields of the model's config.

        Raises:
            ModelNameError: The name is not valid.
            ModelNotFoundError: No model has the name.
            RequestError: An option cannot be used.
            SourceError: The files cannot be fetched or read, or are not the expected ones.
            BudgetError: There is not enough memory for the model. `plan` shows why.
            LoadError: The files do not give a model that works.

        Example:
            ```python
            model = registry.load_model("biobert-base-cased-v1.2", device="cuda:0", dtype="bfloat16")
            ```
        """
        model: PreTrainedModel
        if use_cache:
            model = self.session.acquire(name, options, keep_alive=keep_alive)[1].model
        else:
            model = self.session.load_copy(name, options)
        return model

    def lease(
        self, name: Name, *, keep_alive: str | float | None = None, **options: Any
    ) -> "contextlib.AbstractContextManager[Lease]":
        """Return a context manager whose model stays in memory for the duration of the `with` block.

        Args:
            name: As for `load_model`.
            keep_alive: As for `load_model`.
            **options: The options of `load_model`.

        Raises:
            MedVLLMError: As for `load_model`.

        Example:
            ```python
            with registry.lease("biobert-base-cased-v1.2") as lease:
                lease.model, lease.tokenizer, lease.receipt
            ```
        """
        return self.session.lease(name, options, keep_alive)

    def runner(
        self, name: Name, *, engine: "EngineName" = "torch", precision: "Precision" = "float32", **options: Any
    ) -> "ModelRunner":
        """Return a runner of the model's tasks. Nothing is loaded until it is given texts.

        Args:
            name: As for `load_model`.
            engine: What computes: "torch", "onnx", "openvino", or "auto" for the fastest of them on this machine.
            precision: "int8" lets ONNX Runtime compute in 8 bits, if the answers to synthetic texts stay the same.
            **options: The options of `load_model`.

        Example:
            >>> registry.runner("obi/deid_bert_i2b2").entities(["Seen by Dr. Peña on 3 May."])[0].spans
        """
        from medvllm.engine.model_runner.runner import ModelRunner

        return ModelRunner(name, registry=self, engine=engine, precision=precision, **options)

    def load_tokenizer(self, name: Name, *, revision: str | None = None) -> "PreTrainedTokenizerBase":
        """Return the tokenizer of a model, with the entry's casing and maximum length. Threads can share it.

        Args:
            name: As for `load_model`. The model itself is not loaded.
            revision: A branch, tag or commit on the Hub, in place of the entry's.

        Raises:
            MedVLLMError: As for `load_model`.
        """
        return self.session.load_tokenizer(name, revision)

    def plan(self, name: Name, **options: Any) -> "Plan":
        """Return how much memory `load_model` would need and which models it would evict. Nothing is loaded.

        The files are fetched if they are not on this machine: their headers tell the size, until a load was measured.

        Args:
            name: As for `load_model`.
            **options: The options of `load_model`.

        Raises:
            MedVLLMError: The name or the files cannot be used, as for `load_model`.
        """
        return self.session.plan(name, options)

    def pull(self, name: Name, *, revision: str | None = None, refresh: bool = False) -> "Path":
        """Return the local folder of a model's files, which are fetched if they are not on this machine.

        Args:
            name: As for `load_model`. Nothing is loaded.
            revision: A branch, tag or commit on the Hub, in place of the entry's.
            refresh: Whether to ask the Hub which commit a branch or tag has today. Without it, a branch stays at the
                commit that it had when it was first asked for.

        Raises:
            MedVLLMError: The name or the files cannot be used, as for `load_model`.
        """
        if refresh:
            self._snapshots.refresh(name, revision)
            self._catalog.outdate()
        return self._snapshots.fetch(name, revision)[1].path

    # Memory

    def loaded_models(self) -> "list[LoadedModel]":
        """Return the models in memory in the order of loading, with the evicted ones that a caller still holds."""
        return self._loaded.list_models()

    def statistics(self) -> "Statistics":
        """Return counts of requests, loads and evictions, and the bytes in use by device."""
        return self._model_cache.statistics()

    def list_processes(self) -> "list[ProcessRecord]":
        """Return the processes that have models in memory and share this catalogue or MEDVLLM_HOME."""
        from medvllm.processes import list_processes

        return list_processes(self._loaded.record_stores())

    def offload(self, name: Name, **options: Any) -> bool:
        """Move a model from its accelerator to host memory, so that the next call needs no load.

        The next `load_model` or `lease` copies it back to its device. Meanwhile it counts against the budget of the
        CPU; if it does not fit there, it is evicted. A model on the CPU is evicted, too: its weights are mapped, and a
        reload takes milliseconds. A leased model stays.

        Args:
            name: As for `load_model`.
            **options: The options of the call that loaded it.

        Returns:
            Whether the model left its device.

        Raises:
            MedVLLMError: As for `load_model`.
        """
        return self.session.offload(name, options)

    def evict(self, name: Name) -> int:
        """Evict the models of an entry and return how many left. A leased model leaves with its last lease.

        The memory is free once no caller holds the model. A name that is not in memory is not an error.
        """
        from medvllm.catalog import find_entry
        from medvllm.names import parse_name

        ref = parse_name(name)
        found = find_entry(self._catalog, ref)
        return self._loaded.evict(ref.name if found is None else found.entry.name)

    def clear_cache(self) -> None:
        """Evict all models and tokenizers. Leased models leave with their last lease."""
        self._loaded.evict(None)

    # Approval

    def lock(self, *names: Name, reason: str | None = None) -> "dict[str, LockedModel]":
        """Approve models as they are: write commit, and size and SHA-256 of each file, into the lock file.

        From then on, a load of another commit or of changed bytes is refused. The files are fetched if they are not on
        this machine. Lock file and history keep who approved the model, when, and why. A model that is locked as it is
        keeps its approval, unless another reason is given.

        Args:
            names: Models, as for `load_model`.
            reason: Why.

        Returns:
            What the lock file has of the models, by entry name.

        Raises:
            MedVLLMError: The name or the files cannot be used, as for `load_model`.
            SourceError: The lock file cannot be read.
        """
        from medvllm.model_registry.approval import lock_models

        return lock_models(self._catalog, self._snapshots, names, reason)

    def verify(self, *names: Name) -> dict[str, dict[str, str]]:
        """Hash the files of locked models, and return for each model what differs, by file. It uses no network.

        Args:
            names: Models, as for `load_model`. Without names, all locked models are verified.

        Returns:
            Differences by file for each model. An empty dict for a model means that every byte is as approved.

        Raises:
            CatalogError: A named model is not in the lock file.
            SourceError: The lock file cannot be read.
        """
        from medvllm.model_registry.approval import verify_models

        return verify_models(self._snapshots, names)

    def record_baseline(
        self, name: Name, cases: Sequence[Mapping[str, Any]], *, reason: str | None = None
    ) -> "ModelMetadata":
        """Store a model's baseline in its entry, with the digest of the files that it was recorded with.

        `ModelRunner(name).record_baseline()` makes the cases and calls this. A stored version keeps its number; an
        entry of this process stays in it; a built-in entry is stored as a copy.

        Args:
            name: The entry, with `@version` or `@alias` if you like.
            cases: Inputs with their recorded outputs.
            reason: Why. Required where a protected alias points to the version.

        Raises:
            ModelNotFoundError: No entry has the name.
            RequestError: There are no cases, or one is not a dict.
        """
        from medvllm.model_registry.approval import record_baseline

        return record_baseline(self._catalog, self._snapshots, self._loaded, name, cases, reason)

    # Bundles

    def export(
        self,
        file: Name,
        *names: Name,
        unlocked: bool = False,
        replace: bool = False,
        sign: "Name | None" = None,
    ) -> "Exported":
        """Write models into one bundle for a site without a network, and return its content and digests.

        A bundle has the entries with their versions and aliases, the files, and their lock. The files are fetched if
        they are not on this machine. A folder that is not registered has its own name in the bundle.

        Args:
            file: The bundle to write; "-" for standard output.
            names: Models, as for `load_model`; several versions of one name are allowed.
            unlocked: Whether to export models that nobody has approved with `lock`.
            replace: Whether to overwrite a file that exists.
            sign: An elliptic-curve private key in PEM that signs the bundle. The signature is written beside it.

        Raises:
            DigestMismatchError: A model is not locked.
            OutputError: The file cannot be written, or exists.
        """
        from medvllm.model_registry.bundle_export import export_bundle

        key = None if sign is None else _path(sign)
        return export_bundle(
            self._catalog, self._snapshots, _path(file), names, unlocked=unlocked, replace=replace, sign=key
        )

    def import_bundle(
        self,
        file: Name,
        *,
        replace: bool = False,
        dry_run: bool = False,
        lock: bool = False,
        reason: str | None = None,
        against: "Name | None" = None,
        sha256: str | None = None,
        verify_key: "Name | None" = None,
    ) -> "Imported":
        """Add the models of a bundle to this machine and its catalogue, and return what changed.

        Every byte is checked before anything becomes visible, and versions keep their numbers. Importing a bundle
        again changes nothing. Nothing is approved by it, unless `lock` is set.

        Args:
            file: The bundle.
            replace: Whether existing names, aliases and branches may come to mean something else.
            dry_run: Whether to change nothing, and only return what would change.
            lock: Whether to approve the models, as `lock` does.
            reason: Why. The history keeps it.
            against: A lock file that you got separately. It must have every model exactly as the bundle has it.
            sha256: The digest of the bundle, or of its contents, as the export printed it.
            verify_key: The public key by which the bundle must be signed.

        Raises:
            SourceError: The file is not a valid bundle.
            DigestMismatchError: The bundle is damaged, is another one, or has a model otherwise than it is locked.
            CatalogError: It would change what exists, and `replace` is not set; or it conflicts with the catalogue.
        """
        from medvllm.catalog.reason import check_reason
        from medvllm.model_registry.bundle_import import Terms, import_bundle

        check_reason(reason)
        other = None if against is None else _path(against).absolute()
        key = None if verify_key is None else _path(verify_key)
        terms = Terms(replace, dry_run, lock, reason, other, sha256, key)
        imported = import_bundle(self._catalog, _path(file).absolute(), terms)
        for name in {event.name for event in imported.changes if event.name} if not dry_run else ():
            self._loaded.evict(name)
        return imported

    # Other processes

    def process_entries(self, name: Name) -> "tuple[ModelMetadata, ...]":
        """Return the entries behind a name that this process alone knows: registered here, and not stored.

        They are those of the name itself, of the base of an adapter, and of the encoder for the other side of a search.
        """
        from medvllm.model_registry.process_entries import find_process_entries

        return find_process_entries(self._catalog, name)

    def adopt_entries(self, entries: "Sequence[ModelMetadata]") -> None:
        """Register, in this process alone, entries that another process has registered for itself alone.

        Raises:
            ModelExistsError: The name of one of them means something else here.
        """
        for entry in entries:
            self._catalog.adopt(entry)

    def __repr__(self) -> str:
        return f"ModelRegistry({len(self._model_cache)} models in memory)"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as "the registry of the process": no model is copied, and nothing this process registered is lost.

        The names that this process has registered for itself alone go along, so that none of them silently means
        another model in the process that unpickles it.
        """
        if self is not registry:
            raise RequestError(
                "A ModelRegistry that you made belongs to one process: it cannot be pickled or copied.\n"
                "Make one in the other process, or use the registry that every process has: "
                "from medvllm.engine.model_runner import registry"
            )
        from medvllm.catalog.announcements import make_announcement

        return _unpickle, (make_announcement(self._catalog.own_meanings()),)

    def _announce(self, name: str) -> None:
        """Tell processes that start from now on what this process registers for itself alone."""
        from medvllm.catalog.announcements import announce, forget_name

        if self is registry:
            forget_name(name)
            announce(self._catalog.own_meanings())


def _path(file: object) -> "Path":
    if not isinstance(file, str | os.PathLike) or isinstance(os.fspath(file), bytes):
        raise RequestError(f"A file's path must be text or a Path, not {type(file).__name__}.")
    from pathlib import Path

    return Path(file)


def _unpickle(announcement: "Announcement") -> ModelRegistry:
    """Return this process's registry, which has heard what the sender registered for itself alone."""
    from medvllm.catalog.announcements import receive

    if announcement[0] != os.getpid() and receive([announcement]):
        registry._catalog.outdate()
    return registry


registry: ModelRegistry = ModelRegistry()
