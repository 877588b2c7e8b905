"""The registry: catalogue, sources, loading and the model cache behind the specified methods."""

import contextlib
import dataclasses
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from medvllm import inherited, processes, settings
from medvllm.approval import LockApproval, check_baseline
from medvllm.catalog import Catalog, Difference, StoredCatalog, check_reason, differences
from medvllm.classes import class_path
from medvllm.errors import (
    BudgetError,
    CatalogError,
    DeviceMemoryError,
    HubUnreachableError,
    MedVLLMError,
    ModelNameError,
    ModelNotFoundError,
    RequestError,
)
from medvllm.fact_values import check_fact, wrap_single_texts
from medvllm.lease import Lease, Leasing
from medvllm.metadata import ModelMetadata, ModelType
from medvllm.model_cache import (
    CachedModel,
    Limits,
    ModelCache,
    Need,
    Plan,
    Reason,
    Statistics,
    ValueCache,
    default_cpu_budget,
)
from medvllm.names import ModelRef, parse, source_path
from medvllm.near_names import did_you_mean
from medvllm.options import Identity, LoadOptions
from medvllm.quantities import PINNED, parse_duration
from medvllm.receipt import Receipt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    from medvllm.load_result import LoadResult
    from medvllm.loading.sentence_modules import Modules
    from medvllm.sources import Fingerprint, LockedModel, Snapshot
    from medvllm.transfer import Exported, Imported

__all__ = ["Lease", "LoadedModel", "ModelMetadata", "ModelRegistry", "ModelType", "registry"]

M = TypeVar("M", bound="PreTrainedModel")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """One model in memory, as `loaded_models` reports it. `evicted`: only a caller still holds it."""

    name: str
    version: int
    source: str
    snapshot: str
    device: str
    dtype: str
    model_class: str
    size_bytes: int
    leases: int
    hits: int
    load_s: float
    loaded_at: float  # seconds since the epoch
    last_used: float
    keep_alive: float | None  # seconds after its last use; infinite for a pinned one; None: while there is room
    mapped_bytes: int  # of size_bytes, what is a file's, and shared with every process that maps it
    evicted: bool
    offloaded: bool

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them: -1 stands for a pinned model's keep_alive."""
        return vars(self) | {"keep_alive": -1 if self.keep_alive == PINNED else self.keep_alive}


class ModelRegistry:
    """Models by name: registered with metadata, loaded once, shared, and checked before anybody gets them.

    Every method may be called from any thread. A catalogue of its own keeps registries apart.
    """

    def __init__(self, catalog: Catalog | None = None) -> None:
        settings.warn_of_unknown()
        self._approval = LockApproval()
        self._catalog = catalog or Catalog(StoredCatalog(approval=self._approval))
        self._warned: set[str] = set()  # deprecated entries that the log has named
        self._model_cache: ModelCache[Identity] = ModelCache(
            Limits(
                budget=_budget,
                max_models=settings.MAX_MODELS,
                wait_s=settings.MEMORY_TIMEOUT,
                free_memory=lambda device: _loading().free_memory(),
                on_change=partial(_change, weakref.ref(self)),
            )
        )
        # What a call resolved to, so that a hit need not resolve it again; an entry is replaced, never changed.
        self._resolved: dict[Hashable, tuple[_Resolved | None, Callable[[], CachedModel[Identity] | None]]] = {}
        self._tokenizers: ValueCache[tuple[Any, ...], Any] = (
            ValueCache()
        )  # and modules behind a pooling; the name comes first
        self._nesting = threading.local()  # `.depth`: how many loads of ours this thread is inside of

    @property
    def catalog(self) -> StoredCatalog:
        """The entries that outlive the process: their versions, aliases and history."""
        return self._catalog.stored

    def register(
        self,
        name: str,
        model_type: ModelType | str,
        *,
        replace: bool = False,
        persist: bool = False,
        copy: bool = False,
        reason: str | None = None,
        **facts: Any,
    ) -> ModelMetadata:
        """Add an entry and return its metadata; `copy` takes the folder of `model_path` into MEDVLLM_HOME.

        `persist` stores it: other processes see it from their next look-up on, earlier versions stay, and the history
        keeps the `reason`. Storing what the newest version is already makes no other.

        `facts` are model_class, config_class (a class or "module:Class"), description, tags, parameters (load options),
        model_path (None: the name is the source), revision, task, architecture, do_lower_case, max_length, pooling,
        id2label, expected_missing_keys, license and the other facts of `ModelMetadata`; RequestError names an unknown
        one and its nearest. What a folder itself says is read from it, for listings: its task, labels, pooling, length.
        SourceError, LoadError: the folder is not there, or what it holds cannot be loaded. ModelExistsError: the name
        is taken and `replace` is not set.
        """
        facts = wrap_single_texts(facts)
        parameters = facts.get("parameters")
        # Refused now rather than at every load.
        if isinstance(parameters, Mapping) and LoadOptions.from_kwargs(parameters).revision is not None:
            raise RequestError("'revision' is no parameter but a fact of its own: register(…, revision='…')")
        _seconds(facts.get("keep_alive"))
        if isinstance(facts.get("model_path"), str | os.PathLike):
            facts["model_path"] = source_path(facts["model_path"])
        if copy:
            kept = _sources().take(facts.get("model_path"), facts.get("extra_files") or ())
            facts["model_path"] = source_path(str(kept))
        if facts.get("model_path") is not None and parse(facts["model_path"]).kind == "folder":
            facts |= _sources().read(ModelMetadata.build(name, model_type, facts))
        metadata = self._catalog.add(name, model_type, facts, replace=replace, persist=persist, reason=reason)
        if replace and not persist:
            self._leave(name, "replaced")
        self._tell(metadata.name)
        return metadata

    def unregister(self, name: str, *, persist: bool = False, force: bool = False, reason: str | None = None) -> None:
        """Remove an entry, or one stored version (`name@2`), and let its models go.

        A stored one is gone for every process: that takes `persist`. ModelNotFoundError: there is none of that name.
        CatalogError: it is stored, and an alias points to it or a process on this machine has it leased; `force`
        removes it all the same.
        """
        ref = parse(name)
        if not persist and (ref.suffix is not None or self._catalog.is_stored(ref.name)):
            raise CatalogError(
                f"Model {name!r} is stored: it would be gone for every process.\n"
                f"If that is meant: registry.unregister({name!r}, persist=True), or: medvllm unregister {name}",
                model=ref.name,
            )
        if ref.suffix is None:
            self._catalog.remove(ref.name, force=force, reason=reason)
        else:
            self.catalog.remove(name, force=force, reason=reason)
        self._leave(ref.name)
        self._tell(ref.name)

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
        **facts: Any,
    ) -> dict[str, ModelMetadata]:
        """Return metadata by name, sorted, of the entries that fit every filter; it never waits for a load.

        `tags` must all be there; `match` is a glob on the name in any case, such as "bio*"; `search` is a text that a
        name, another name of the model or its description has. Any other fact of `register` is a filter too:
        license="apache*", gated=False, languages="en"; so are `origin` ("stored", "process", "built-in") and `version`.
        None asks for what is not known. A page of a long list are the first `limit` names `after` the last one of the
        page before.
        """
        if limit is not None and (type(limit) is not int or limit < 1):
            raise RequestError(f"limit must be at least 1, not {limit!r:.80}.", option="limit")
        return self._catalog.select(
            model_type, task=task, tags=tags, match=match, search=search, facts=facts, limit=limit, after=after
        )

    def get_metadata(self, name: "str | os.PathLike[str]") -> ModelMetadata:
        """Return an entry's metadata, or raise ModelNotFoundError with near names; it never waits for a load."""
        ref = parse(name)
        entry = self._known(ref)
        if entry is None:
            advice = (
                f"\nRegister it: medvllm register NAME --type TYPE --path {ref.text}" if ref.kind == "folder" else ""
            )
            raise self._catalog.not_found(ref.name, advice=advice)
        return entry[0]

    def __getitem__(self, name: str) -> ModelMetadata:
        return self.get_metadata(name)

    def __contains__(self, name: object) -> bool:
        """Return whether an entry answers to a name: what `get_metadata` gives, and not what loads directly."""
        try:
            return self._known(parse(name)) is not None
        except (ModelNameError, ModelNotFoundError):
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.list_models())

    def __len__(self) -> int:
        return len(self.list_models())

    def __bool__(self) -> bool:
        return True  # also one without entries

    def diff(self, name: str, other: str) -> list[Difference]:
        """Return what differs between two entries, or versions of one: facts, and files where the lock has both.

        ModelNotFoundError: one of them is not registered.
        """
        before, after = self.get_metadata(name), self.get_metadata(other)
        return differences(
            before.stated(), after.stated(), (self._approval.locked(before), self._approval.locked(after))
        )

    @overload
    def load_model(
        self,
        name: "str | os.PathLike[str]",
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
        name: "str | os.PathLike[str]",
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
        self,
        name: "str | os.PathLike[str]",
        *,
        use_cache: bool = True,
        keep_alive: str | float | None = None,
        **options: Any,
    ) -> "PreTrainedModel":
        """Return the model of that name, loaded now in eval mode, or the one that is in memory already.

        `name` is a registered name, or a repository or folder to load directly. What is not stated comes from the
        entry, then the settings, then the checkpoint, so that equal loads are one object. Other `options` are
        `config`, `attn_implementation` and fields of the model's config. All callers share the object: with
        `use_cache=False` it is the caller's own, to train or change. `keep_alive` is how long it stays in memory after
        its last use, from now on: "10m", seconds, 0 (until it is released), or negative (pinned).

        ModelNameError, ModelNotFoundError, RequestError: what was asked for. SourceError: its files.
        BudgetError: it has no room; `plan` says why. LoadError: no sound model came of them.
        """
        if not use_cache:
            target = self._resolve(name, LoadOptions.from_kwargs(options))
            own = self._model_cache.copy(
                target.identity, lambda: self._load(target), need=self._need(target), may_wait=not self._is_nested()
            )
            return cast("PreTrainedModel", own.model)
        return cast("PreTrainedModel", self._acquire(name, options, keep_alive=keep_alive)[1].model)

    def lease(
        self, name: "str | os.PathLike[str]", *, keep_alive: str | float | None = None, **options: Any
    ) -> contextlib.AbstractContextManager[Lease]:
        """Give a model that stays in memory inside the ``with`` block; the options are those of `load_model`."""
        return Leasing(name if isinstance(name, str) else parse(name).text, self._leased(name, options, keep_alive))

    @contextlib.contextmanager
    def _leased(
        self, name: "str | os.PathLike[str]", options: Mapping[str, Any], keep_alive: str | float | None
    ) -> Iterator[Lease]:
        target, cached = self._acquire(name, options, lease=True, keep_alive=keep_alive)

        lease = Lease(
            target.metadata,
            cached,
            partial(self._tokenizer_of, target),
            partial(self._modules_of, target),
            partial(self._receipt, target, size_bytes=cached.size_bytes),
        )
        try:
            yield lease
        finally:
            lease.end()
            self._model_cache.release(cached)

    def _tokenizer_of(self, target: "_Resolved") -> "PreTrainedTokenizerBase":
        return self._tokenizer(target.metadata, target.snapshot, target.identity.options.model_class)

    def _modules_of(self, target: "_Resolved") -> "Modules":
        metadata, snapshot = target.metadata, target.snapshot
        key = (metadata.name, "modules", frozenset((*snapshot.files.items(), *snapshot.converted.items())))

        def make() -> Any:
            modules = _loading().load_modules(metadata, snapshot)
            snapshot.check_unchanged()
            return modules

        return cast("Modules", self._tokenizers.get(key, make, may_wait=not self._is_nested()))

    def _receipt(self, target: "_Resolved", model: Any, size_bytes: int) -> Receipt:
        snapshot = target.snapshot
        if snapshot.locked and not target.seen.holds():
            snapshot = dataclasses.replace(snapshot, locked=_sources().is_locked(target.metadata, snapshot))
        proof = _loading().make_proof(snapshot, model, size_bytes, partial(self._tokenizer_of, target))
        return Receipt.of(target.metadata, target.identity, snapshot.commit, proof, snapshot.bundle)

    def load_tokenizer(
        self, name: "str | os.PathLike[str]", *, revision: str | None = None
    ) -> "PreTrainedTokenizerBase":
        """Return the tokenizer of that name with the entry's casing and length; threads may share it."""
        metadata, snapshot = self._fetch(name, revision)
        return self._tokenizer(metadata.stated().completed(snapshot.sentence_transformer), snapshot)

    def pull(self, name: "str | os.PathLike[str]", *, revision: str | None = None, refresh: bool = False) -> Path:
        """Return the local folder of a model's files, fetched if they are not here; nothing is loaded.

        A branch stays at the commit that it had when it was first asked for; `refresh` asks for its commit of today.
        """
        if refresh:
            _sources().refresh(self._find(parse(name))[0], revision)
        return self._fetch(name, revision)[1].path

    def lock(self, *names: "str | os.PathLike[str]", reason: str | None = None) -> "dict[str, LockedModel]":
        """Approve models as they are: write commit, and size and SHA-256 of every file, into the lock file.

        The file also keeps who approved them, when, and the `reason`, and so does the history. A model that is there as
        it is stays as it was approved, unless another reason is given. The files are fetched if they are not here. From
        then on a load of another commit or byte is refused. Returns what the lock has of them, by entry name.
        """
        check_reason(reason)
        sources = _sources()
        lock, locked, entries = sources.Lock.current(), {}, {}
        for name in names:
            ref = parse(name)
            metadata, revision = self._find(ref)
            # Asked for by its version, a stored entry has that version approved, beside others; so it stays.
            is_version = ref.suffix is not None and revision is None
            approved = metadata.reference if is_version else lock.name_of(metadata)
            locked[approved] = sources.to_lock(sources.resolve(metadata, revision))
            entries[approved] = metadata
        lock, news = lock.approve(locked, reason)
        self._catalog.note_locked([(entries[name], locked[name].facts) for name in sorted(news)], lock.file, reason)
        return {name: lock.models[lock.key(name)] for name in locked}

    def verify(self, *names: "str | os.PathLike[str]") -> dict[str, dict[str, str]]:
        """Hash the files of locked models, all when none is named, and return for each model what differs by file.

        An empty dict means that every byte is the approved one. No network is used.
        """
        sources = _sources()
        lock = sources.Lock.current()
        entries = [self._find(parse(name))[0] for name in names]
        locked = lock.selected(tuple(map(lock.name_of, entries)))
        asked = [(lock.name_of(entry), entry) for entry in entries] if names else [(name, None) for name in locked]
        flaws: dict[str, dict[str, str]] = {}
        for name, entry in asked:
            try:
                entry = entry or self._find(parse(name))[0]
                found = sources.verify(entry, locked[name], lambda snapshot: _loading().check_prepared_copies(snapshot))
            except ModelNotFoundError:
                found = {"entry": "is not registered any more: remove its table from the lock file"}
            flaws[name] = flaws.get(name, {}) | found
        return flaws

    def record_baseline(
        self, name: "str | os.PathLike[str]", cases: Sequence[Mapping[str, Any]], *, reason: str | None = None
    ) -> ModelMetadata:
        """Keep a model's acceptance tests in its entry, with the digest of the files that they hold for, and return it.

        A stored version takes them as it is, with a `reason` where a protected alias points to it. An entry of this
        process stays in it; a built-in one is stored as a copy. `ModelRunner(name).record_baseline()` makes the cases.
        ModelNotFoundError: there is no entry.
        """
        _, kept = check_fact(str(name), "baseline", list(cases))
        entry, files = self.get_metadata(parse(name).text), _sources().to_lock(self._fetch(name, None)[1]).digest
        if entry.origin == "stored":
            return self.catalog.mark(entry.reference, baseline=kept, baseline_digest=files, reason=reason)[0]
        standing = dataclasses.replace(entry.lifecycle, baseline_digest=files)
        entry = self._catalog.put(entry.changed(baseline=kept, standing=standing))
        self._leave(entry.name, "replaced")
        return entry

    def loaded_models(self) -> list[LoadedModel]:
        """Return what is in memory, in the order of loading; `evicted` are those that only a caller holds.

        A model whose weights are mapped costs little until it is written to: `mapped_bytes` are the file's own, which
        every process that maps it shares.
        """
        found = self._model_cache.models()
        models = [cached.model for cached, _ in found]
        return self._listed(found, _loading().written_bytes(models) if models else {})

    def record_stores(self) -> list[processes.RecordStore]:
        """Return where this process notes what is in memory: beside the catalogue, or else in MEDVLLM_HOME."""
        home = processes.RecordFolder(settings.HOME() / "run")
        board = self._catalog.record_store()
        return [home] if board is None or board == home else [board, home]

    def describe_models(self, *, will_publish: bool = True) -> list[dict[str, Any]]:
        """Return what is in memory, for `medvllm ps`, without asking the system what was written to.

        `will_publish`: it is going to be written where other processes see it.
        """
        found = self._model_cache.models_to_list() if will_publish else self._model_cache.models()
        models = [model.to_dict() for model in self._listed(found, {})]
        for model, (cached, _) in zip(models, found, strict=True):
            if will_publish and cached.is_listed_as_leased:
                model["leases"] = max(cached.leases, 1)
        return models

    def _listed(self, found: list[tuple[CachedModel[Identity], bool]], written: Mapping[int, int]) -> list[LoadedModel]:
        """Return what was found; `written` gives the bytes by which a model, by its id, has left its files."""
        now = time.time()
        return [
            LoadedModel(
                name=cached.identity.name,
                version=cached.identity.version,
                source=cached.identity.origin,
                snapshot=cached.identity.snapshot,
                device=cached.device,
                dtype=str(cached.identity.options.dtype),
                model_class=str(class_path(cached.identity.options.model_class)),
                size_bytes=cached.size_bytes,
                leases=cached.leases,
                hits=cached.hits,
                load_s=cached.load_s,
                loaded_at=cached.loaded_at,
                last_used=now - self._model_cache.idle_s(cached),
                keep_alive=cached.keep_alive,
                mapped_bytes=cached.mapped_bytes - written.get(id(cached.model), 0),
                evicted=evicted,
                offloaded=cached.identity.is_offloaded,
            )
            for cached, evicted in found
        ]

    def plan(self, name: "str | os.PathLike[str]", **options: Any) -> Plan:
        """Return what `load_model` would take and who would leave for it, without loading.

        The files are fetched if they are not here: their headers tell the size, until a load has been measured.
        """
        target = self._resolve(name, LoadOptions.from_kwargs(options))
        return self._model_cache.plan(target.identity, self._need(target))

    def statistics(self) -> Statistics:
        """Return what this registry has done so far: requests, loads, evictions by reason, and bytes by device."""
        return self._model_cache.statistics()

    def offload(self, name: "str | os.PathLike[str]", **options: Any) -> bool:
        """Move a model from its accelerator to host memory, so that the next call needs no load.

        The next `load_model` or `lease` copies it back to its device. Meanwhile it counts against the budget of the
        CPU; if it does not fit there, it is evicted. A model on the CPU is evicted, too: its weights are mapped, and a
        reload takes milliseconds. A leased model stays.

        Returns:
            Whether the model left its device.
        """
        target = self._resolve(name, LoadOptions.from_kwargs(options))
        if not self._model_cache.discard(target.identity, "offloaded"):
            return False
        try:
            if target.identity.options.device != "cpu":
                with contextlib.suppress(BudgetError, DeviceMemoryError):
                    self._offload(target)
        finally:
            _loading().free_memory()
        return True

    def _offload(self, target: "_Resolved") -> None:
        """Keep a model's weights in host memory."""
        identity, need = _offloaded(target.identity), dataclasses.replace(self._need(target), device="cpu")

        def load() -> "LoadResult":
            with self._nested():
                return cast(
                    "LoadResult", _loading().load_model(target.metadata, identity, target.config, target.snapshot)
                )

        self._model_cache.get(identity, load, need=need, may_wait=False)

    def evict(self, name: "str | os.PathLike[str]") -> int:
        """Let the models of that name leave memory; return how many left. A leased one leaves with its last lease.

        The memory comes back once no caller holds the model. A name that is not in memory is no error.
        """
        ref = parse(name)
        entry = self._entry(ref)
        return self._leave(entry[0].name if entry else ref.name)

    def clear_cache(self) -> None:
        """Let every model and tokenizer leave memory; leased models leave with their last lease."""
        self._leave(None)

    def __repr__(self) -> str:
        return f"ModelRegistry({len(self._model_cache)} models in memory)"

    def __reduce__(self) -> "tuple[Any, ...]":
        """Go to another process, or into a copy, by name: the models stay where they are.

        What this process has registered for itself alone is told: there, such a name is not to mean something else.
        """
        if self is not registry:
            raise RequestError(
                "A ModelRegistry of your own is of one process, and there is no copy of it.\n"
                "Make it in the other process, or use the one that all have: "
                "from medvllm.engine.model_runner import registry"
            )
        return _received, (inherited.told(self._catalog.own_meanings()),)

    def own_entry(self, name: "str | os.PathLike[str]") -> ModelMetadata | None:
        """Return what a name means in this process alone: an entry that was registered without `persist`; or None."""
        ref = parse(name)
        return self._catalog.own(ref.name) if ref.kind == "name" else None

    def adopt(self, entry: ModelMetadata) -> None:
        """Register, for this process alone, what another process has registered for itself alone.

        ModelExistsError: the name means something else here.
        """
        self._catalog.adopt(entry)

    def _tell(self, name: str) -> None:
        if self is registry:
            inherited.forget(name)
            inherited.tell(self._catalog.own_meanings())

    def _leave(self, name: str | None, reason: Reason = "asked") -> int:
        left = self._model_cache.evict(name, reason)
        self._tokenizers.discard(lambda key: name is None or key[0] == name)
        if left:
            _loading().free_memory()
        return left

    def _acquire(
        self,
        name: "str | os.PathLike[str]",
        options: Mapping[str, Any],
        *,
        lease: bool = False,
        keep_alive: str | float | None = None,
    ) -> "tuple[_Resolved, CachedModel[Identity]]":
        """Return the model of a call, loading it when it is not in memory."""
        stated, stays_s = LoadOptions.from_kwargs(options), _seconds(keep_alive)
        key = (name, stated, _SETTINGS())
        target, found = self._resolved.get(key, _UNKNOWN) if isinstance(name, str) else _UNKNOWN
        if target is not None and not self._holds(target):
            target = None
        if target is not None and target.is_lasting and target.seen.holds():
            if stays_s is None and (known := found()) is not None and self._model_cache.hit(known, lease=lease):
                return target, known
            known = None  # one that has left is not to keep its memory from the load
        else:
            target = self._resolved_anew(name, stated, target)
        # Inside a load this thread holds the gate: waiting for another load, which needs the gate, would be for ever.
        nested = self._is_nested()
        cached = self._model_cache.get(
            target.identity,
            lambda: self._load(target),
            need=self._need(target),
            lease=lease,
            keep_alive=stays_s,
            may_wait=not nested,
        )
        if len(self._resolved) >= _REMEMBERED:
            self._resolved.clear()
        if isinstance(name, str) and not nested:
            self._resolved[key] = target, weakref.ref(cached)
        return target, cached

    def _resolved_anew(
        self, name: "str | os.PathLike[str]", stated: LoadOptions, before: "_Resolved | None"
    ) -> "_Resolved":
        """Return what a call means now. What was loaded from files that have changed since is outdated."""
        target = self._resolve(name, stated)
        if before is not None and before.snapshot.path == target.snapshot.path and before.identity != target.identity:
            self._leave(before.metadata.name, "replaced")
        return target

    def _load(self, target: "_Resolved") -> "LoadResult":
        offloaded = self._model_cache.pop(_offloaded(target.identity), "restored")
        if offloaded is not None and target.snapshot.taken.holds():
            return cast(
                "LoadResult",
                _loading().restore_offloaded(offloaded, target.metadata.name, str(target.identity.options.device)),
            )
        del offloaded
        with self._nested():
            loaded = cast(
                "LoadResult", _loading().load_model(target.metadata, target.identity, target.config, target.snapshot)
            )
        target.snapshot.check_unchanged()
        _sources().keep_memory_estimate(_memory_key(target.identity), loaded.size_bytes, loaded.load_s)
        if settings.AUDIT_LOADS():
            self._note_load(target, loaded)
        return loaded

    def _note_load(self, target: "_Resolved", loaded: "LoadResult") -> None:
        """Add a load to the history; one that cannot be added is none: the model is not handed out."""
        receipt = self._receipt(target, loaded.model, loaded.size_bytes)
        detail = {"snapshot": receipt.snapshot, "options": receipt.options, "receipt": receipt.digest}
        self.catalog.note_load(target.metadata, detail)

    def _holds(self, target: "_Resolved") -> bool:
        """Return whether entries and settings are still those with which a call was resolved."""
        return (
            target.generation == self._catalog.generation(stored=target.generation[1] is not False)
            and (target.metadata.origin != "direct" or settings.ALLOW_UNREGISTERED())
            and (not target.metadata.source.trust_remote_code or settings.TRUST_REMOTE_CODE())
        )

    @contextlib.contextmanager
    def _nested(self) -> Iterator[None]:
        """Mark this thread as inside a load of ours."""
        self._nesting.depth = getattr(self._nesting, "depth", 0) + 1
        try:
            yield
        finally:
            self._nesting.depth -= 1

    def _is_nested(self) -> bool:
        """Return whether this thread is inside a load of ours."""
        return getattr(self._nesting, "depth", 0) > 0

    def _need(self, target: "_Resolved") -> Need:
        """Return what a load is expected to take: what the last one took, or what the files' headers say."""
        options, stays = target.identity.options, target.metadata.memory.keep_alive
        device, keep_alive = str(options.device), settings.KEEP_ALIVE() if stays is None else _seconds(stays)

        def narrower() -> int | None:
            narrow, own = map(target.snapshot.size_bytes, ("bfloat16", str(options.dtype)))
            return narrow if narrow < own else None

        measured = _sources().memory_estimate(_memory_key(target.identity))
        if measured is not None:
            return Need(device, measured[0], "measured", measured[1], keep_alive, narrower)
        size_bytes = target.snapshot.size_bytes(str(options.dtype))
        return Need(device, size_bytes, "headers", None, keep_alive, narrower)

    def _resolve(self, name: "str | os.PathLike[str]", stated: LoadOptions) -> "_Resolved":
        """Return what a call means: the entry, its snapshot (fetched if need be) and the identity of the load."""
        ref = parse(name)
        generation, lock = self._catalog.generation(stored=ref.kind == "name"), _sources().in_force()
        metadata, revision = self._find(ref)
        metadata = metadata.stated()
        self._warn(metadata)
        # Before anything is fetched: a device that is not here would waste a download.
        options = _loading().with_defaults(metadata, stated)
        snapshot = self._snapshot(metadata, stated.revision or revision)
        if metadata.origin == "direct":
            # A folder was named on purpose; a repository may be a misspelt name.
            level = logging.INFO if snapshot.repo is None else logging.WARNING
            logger.log(level, "%r is not registered: loaded directly, from %s", metadata.name, snapshot.identity)
        metadata = metadata.completed(snapshot.sentence_transformer)
        identity, config = _loading().identify(metadata, options, snapshot)
        seen, is_lasting = _sources().seen(snapshot, lock), ref.kind != "folder"
        return _Resolved(metadata, snapshot, identity, config, generation, seen, is_lasting)

    def _warn(self, metadata: ModelMetadata) -> None:
        """Say once of a deprecated entry that it is, and what takes its place."""
        standing = metadata.lifecycle
        if (standing.deprecated or standing.successor) and metadata.reference not in self._warned:
            self._warned.add(metadata.reference)
            why = f": {standing.deprecated}" if standing.deprecated else ""
            instead = f". Use {standing.successor!r} in its place" if standing.successor else ""
            logger.warning("Model %r is deprecated%s%s", metadata.reference, why, instead)

    def _fetch(self, name: "str | os.PathLike[str]", revision: str | None) -> "tuple[ModelMetadata, Snapshot]":
        metadata, named_revision = self._find(parse(name))
        return metadata, self._snapshot(metadata, revision or named_revision)

    def export(
        self,
        file: "str | os.PathLike[str]",
        *names: "str | os.PathLike[str]",
        unlocked: bool = False,
        replace: bool = False,
        sign: "str | os.PathLike[str] | None" = None,
    ) -> "Exported":
        """Write models into one bundle for a site without a network, and return what went, and its digests.

        A bundle has entries with their versions and aliases, files, and their lock. The files are fetched if they are
        not here. A folder that is not registered gets its own last name.

        Args:
            file: The bundle to write; "-" for standard output.
            names: Models; several versions of a name may go.
            unlocked: Whether models go that nobody has approved in the lock.
            replace: Whether a file that is there may be replaced.
            sign: The private key of an elliptic curve, in PEM, that signs the bundle; the signature lies beside it.

        Raises:
            DigestMismatchError: A model is not locked.
            OutputError: The file cannot be written, or is there.
        """
        from medvllm import transfer

        target, key = _path(file), None if sign is None else _path(sign)
        transfer.check_target(target, replace=replace, key=key)
        asked = [self._find(parse(name)) for name in names]
        found = ((metadata, revision, self._snapshot(metadata, revision)) for metadata, revision in asked)
        return transfer.export(self._catalog, target, found, unlocked=unlocked, sign=key)

    def import_bundle(
        self,
        file: "str | os.PathLike[str]",
        *,
        replace: bool = False,
        dry_run: bool = False,
        lock: bool = False,
        reason: str | None = None,
        against: "str | os.PathLike[str] | None" = None,
        sha256: str | None = None,
        verify_key: "str | os.PathLike[str] | None" = None,
    ) -> "Imported":
        """Make the models of a bundle this machine's, and return what that changed.

        Every byte is checked before anything becomes visible; versions keep their numbers. Importing again changes
        nothing. Nothing is approved by it, unless `lock` says so.

        Args:
            file: The bundle.
            replace: Whether names, aliases and branches that are here may come to mean something else.
            dry_run: Whether only to say what would change.
            lock: Whether to approve the models, as `lock` does.
            reason: Why; the history keeps it.
            against: A lock file that came another way, which must have every model as it is in the bundle.
            sha256: The digest of the bundle or of its contents, as the export printed it.
            verify_key: The public key by which the bundle must be signed.

        Raises:
            SourceError: It is no sound bundle.
            DigestMismatchError: It is damaged, not the one that is meant, or a model is not the locked one.
            CatalogError: It would change what is here, and `replace` is not set; or it cannot be brought in at all.
        """
        from medvllm import transfer

        check_reason(reason)
        bundle = _path(file).absolute()
        other = None if against is None else _path(against).absolute()
        key = None if verify_key is None else _path(verify_key)
        terms = transfer.Terms(replace, dry_run, lock, reason, other, sha256, key)
        imported = transfer.take(self._catalog, bundle, terms)
        for name in {event.name for event in imported.changes if event.name} if not dry_run else ():
            self._leave(name)
        return imported

    def _snapshot(self, metadata: ModelMetadata, revision: str | None) -> "Snapshot":
        """Return a model's files, checked against the lock, and against what was accepted of a protected version."""
        sources = _sources()
        try:
            snapshot: Snapshot = sources.resolve(metadata, revision, locked=sources.Lock.current().find(metadata))
        except (ModelNotFoundError, HubUnreachableError) as error:
            if metadata.origin == "direct" and metadata.location.startswith("hf://"):
                raise self._not_registered(metadata.name, error) from error.__cause__
            raise
        if metadata.origin == "stored" and (alias := self.catalog.protected_by(metadata)) is not None:
            check_baseline(metadata, alias, None if revision is not None else sources.to_lock(snapshot).digest)
        return snapshot

    def _not_registered(self, name: str, error: MedVLLMError) -> MedVLLMError:
        """Return the error of a repository that could not be had, with what else the name may have been meant for."""
        near = self._catalog.near(name)
        hint = (
            "\nA name that another process registered is known only in that process. To share it: "
            "register(…, persist=True)"
        )
        message = f"Model {name!r} is not registered.{did_you_mean(near)}\n{error}{'' if '/' in name else hint}"
        return type(error)(message, **vars(error) | {"candidates": tuple(near)})

    def _find(self, ref: ModelRef) -> tuple[ModelMetadata, str | None]:
        """Return the metadata and revision that a reference means, falling back to direct loading."""
        entry = self._known(ref)
        if entry is not None:
            return entry
        if ref.kind == "name" and (where := self._catalog.was_removed(ref.name)) is not None:
            why = f"\nSee when, and why: medvllm history {ref.name}" if where == "stored" else ""
            raise self._catalog.not_found(
                ref.text,
                f" any more: it was unregistered{'' if where == 'stored' else ' in this process'}",
                advice=why or (f"\nA repository of that name is written as: hf://{ref.text}" if ref.is_repo_id else ""),
                near=[],
            )
        if ref.kind == "name":
            near = [] if "/" in ref.name else self._catalog.near(ref.name)
            if near:
                advice = f"\nA repository of that name is written as: hf://{ref.text}"
                raise self._catalog.not_found(ref.text, advice=advice, near=near)
            if "/" not in ref.name and os.path.isdir(ref.name):
                raise self._catalog.not_found(ref.text, advice=f"\nThe folder of that name is written as: ./{ref.text}")
            if not ref.is_repo_id:
                raise self._catalog.not_found(
                    ref.text, ", nor is it a repository's id", advice=f"\nA folder is written as: ./{ref.text}"
                )
        if not settings.ALLOW_UNREGISTERED():
            raise self._catalog.not_found(
                ref.text, f", and direct loading is switched off ({settings.ALLOW_UNREGISTERED.name})"
            )
        path = ref.name if ref.kind == "folder" else f"hf://{ref.name}"
        return ModelMetadata.build(ref.name, ModelType.GENERIC, {"model_path": path}, origin="direct"), ref.suffix

    def _known(self, ref: ModelRef) -> tuple[ModelMetadata, str | None] | None:
        """Return what `_entry` does, unless the name means another model where this process comes from."""
        there = inherited.elsewhere(ref.name) if ref.kind == "name" else None
        if there is None:
            return self._entry(ref)
        here = self._catalog.find(ref.name, ref.suffix)
        is_meant = here is None or ref.suffix in (None, str(there.version))
        if is_meant and (here is None or (here.origin != "process" and here.digest != there.digest)):
            what = "is not registered" if here is None else f"is another one ({here.origin}, version {here.version})"
            advice = "\nRegister it there for all: registry.register(…, persist=True), or send a ModelRunner of it"
            if here is not None and here.version != there.version:
                advice += f"\nThe one of this process: {here.name}@{here.version}"
            raise self._catalog.not_found(
                ref.text,
                what=f"{what} in this process: the one that started it registered that name for itself alone",
                advice=advice,
                near=[],
            )
        return self._entry(ref)

    def _entry(self, ref: ModelRef) -> tuple[ModelMetadata, str | None] | None:
        """Return the entry that a reference names, and the revision it asks of it; None when there is no entry."""
        if ref.kind == "folder":
            return None
        if ref.kind == "hub":
            entry = self._catalog.find_source(ref.name)
            return None if entry is None else (entry, ref.suffix)
        entry = self._catalog.find(ref.name, ref.suffix)
        if entry is not None or ref.suffix is None:
            return None if entry is None else (entry, None)
        entry = self._catalog.find(ref.name)
        if entry is not None and ("/" not in ref.name or ref.suffix.isdecimal()):
            known = self._catalog.known(ref.name)
            raise ModelNotFoundError(
                f"Model {ref.name!r} has no version or alias {ref.suffix!r}. It has: {', '.join(known[-20:])}.\n"
                f"Load it with: {ref.name}@{entry.version}",
                model=ref.name,
                candidates=tuple(known),
            )
        return None if entry is None else (entry, ref.suffix)

    def _tokenizer(
        self, metadata: ModelMetadata, snapshot: "Snapshot", model_class: Any = None
    ) -> "PreTrainedTokenizerBase":
        # With the behaviour: another catalogue, or a backup of this one, may have another entry under these numbers.
        files = snapshot.identity, snapshot.content
        key = (metadata.name, metadata.version, metadata.origin, files, metadata.behaviour)
        _loading().check_allowed(metadata)

        def make() -> Any:
            tokenizer = _loading().load_tokenizer(metadata, snapshot, model_class)
            snapshot.check_unchanged()
            return tokenizer

        return cast("PreTrainedTokenizerBase", self._tokenizers.get(key, make, may_wait=not self._is_nested()))


def _budget(device: str) -> int | None:
    """Return the bytes of models that a device may hold: what the operator says, else what the machine has."""
    stated = settings.MEMORY_BUDGET()
    if device in stated:
        return stated[device]
    return default_cpu_budget() if device == "cpu" else cast("int | None", _loading().default_budget(device))


def _change(registry: "weakref.ref[ModelRegistry]") -> None:
    if (alive := registry()) is not None:
        processes.publisher.schedule_write(alive)


def _seconds(keep_alive: str | float | None) -> float | None:
    try:
        return None if keep_alive is None else parse_duration(keep_alive)
    except ValueError as error:
        raise RequestError(
            f"keep_alive is {error}.\nGive a duration such as '10m', seconds, 0 (until it is released) or -1 (pinned).",
            option="keep_alive",
        ) from error


def _path(file: object) -> Path:
    if not isinstance(file, str | os.PathLike) or isinstance(os.fspath(file), bytes):
        raise RequestError(f"A file's path must be text or a Path, not {type(file).__name__}.")
    return Path(file)


def _offloaded(identity: Identity) -> Identity:
    """Return the identity of a model's weights in host memory."""
    return dataclasses.replace(identity, is_offloaded=True)


def _memory_key(identity: Identity) -> str:
    """Name what weighs the same: the bytes, and what is made of them on a kind of device."""
    options = identity.options
    kind = str(options.device).partition(":")[0]
    shape = class_path(options.model_class), options.attn_implementation, options.config, options.overrides
    return repr((identity.snapshot, kind, options.dtype, shape))


_REMEMBERED = 10_000  # resolved calls
_SETTINGS = settings.Texts(settings.DEVICE, settings.DTYPE, settings.LOCK_FILE, settings.REQUIRE_LOCK)  # part of a call
_UNKNOWN: tuple[None, Callable[[], None]] = (None, lambda: None)


@dataclass(frozen=True)
class _Resolved:
    """What a call to `load_model` means, for as long as the catalogue's generation and what was `seen` stay."""

    metadata: ModelMetadata
    snapshot: "Snapshot"
    identity: Identity
    config: "PreTrainedConfig"
    generation: tuple[int, Hashable]
    seen: "Fingerprint"  # of the files, their folders, and the lock
    is_lasting: bool  # what a folder's name means depends on the working directory and on links: not remembered


# Imported on first use: listing and registering must not wait seconds for torch.
def _loading() -> "ModuleType":
    from medvllm import loading

    return loading


def _sources() -> "ModuleType":
    from medvllm import sources

    return sources


def _received(told: inherited.Told) -> ModelRegistry:
    """Return the registry that all processes have, to one that was sent it."""
    if told[0] != os.getpid() and inherited.hear([told]):
        registry._catalog.outdate()
    return registry


registry = ModelRegistry()
