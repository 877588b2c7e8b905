"""The half of the registry that loads: from a call to a model in memory. Importing this imports torch.

Each step of a load is one room's: the resolver says what a call means, the model cache makes room and keeps the model,
and `medvllm.loading` reads the files.
"""

import contextlib
import os
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from medvllm import loading, settings, sources
from medvllm.catalog import Catalog
from medvllm.classes import class_path
from medvllm.errors import BudgetError, DeviceMemoryError
from medvllm.load_result import LoadResult
from medvllm.model_cache import CachedModel, KnownBy, Need, Plan
from medvllm.model_registry.entry_resolver import EntryResolver
from medvllm.model_registry.known_calls import Hit, KnownCalls, key_of
from medvllm.model_registry.lease import Leasing
from medvllm.model_registry.loaded_models import LoadedModels
from medvllm.model_registry.nesting import Nesting
from medvllm.model_registry.resolver import LoadTarget, Resolver
from medvllm.model_registry.snapshots import Snapshots
from medvllm.model_registry.tokenizers import Tokenizers
from medvllm.names import parse_name
from medvllm.options import Identity, LoadOptions, parse_keep_alive
from medvllm.receipt import Receipt
from medvllm.sources.digest_cache import digest_cache

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from medvllm.engines.vector_modules import Modules


class Session:
    """Loads models for a registry: finds what a call means, and shares what is in memory already.

    Attributes:
        resolver: Turns a call into a `LoadTarget`.
        tokenizers: The tokenizers, and the modules behind a pooling.
        release: Ends a lease that `acquire` gave.
    """

    def __init__(self, catalog: Catalog, snapshots: Snapshots, entries: EntryResolver, loaded: LoadedModels) -> None:
        self._catalog = catalog
        self._snapshots = snapshots
        self._loaded = loaded
        self._cache = loaded.cache
        self._nesting = Nesting()
        self.resolver = Resolver(catalog, snapshots, entries)
        self.tokenizers = Tokenizers(loaded.tokenizers, self._nesting)
        self._calls: KnownCalls[LoadTarget] = KnownCalls()
        self.release = self._cache.release

    def acquire(
        self,
        name: "str | os.PathLike[str]",
        options: Mapping[str, Any],
        *,
        lease: bool = False,
        keep_alive: str | float | None = None,
    ) -> tuple[LoadTarget, CachedModel[Identity]]:
        """Return what a call means and its model in memory, which is loaded now if it is not there.

        Args:
            name: What the caller gave as the model's name.
            options: The other keywords of the call.
            lease: Whether to lease the model before any other thread can evict it.
            keep_alive: How long it stays after its last use, from now on; None leaves that as it is.
        """
        key = key_of(name, options, loading.PLAIN_TYPES)
        keep_alive_s = None if keep_alive is None else parse_keep_alive(keep_alive)
        hit = partial(self._cache.hit, lease=lease, keep_alive=keep_alive_s)
        found = self._calls.find_trusted(key, hit)
        return found or self._acquire_checked(name, options, key, hit, lease, keep_alive_s)

    @settings.shared_look()
    def _acquire_checked(
        self,
        name: "str | os.PathLike[str]",
        options: Mapping[str, Any],
        key: Hashable,
        hit: Hit,
        lease: bool,
        keep_alive_s: float | None,
    ) -> tuple[LoadTarget, CachedModel[Identity]]:
        """Do the same, after a look at everything that the meaning of the call depends on."""
        target, cached = self._calls.look(key, hit, self._is_same)
        if target is not None and cached is not None:
            return target, cached
        if target is None:
            # Resolve: which entry, which files, which options.
            target = self._resolve(name, options)
            self._loaded.evict_outdated(target.metadata.name, target.snapshot)
        # Reserve, load, publish: the cache makes room for what the load needs, and all who ask meanwhile share it.
        # Inside a load this thread holds the lock that every load needs: to wait for another load would never end.
        is_nested = self._nesting.depth > 0
        with self._lease_base(target) as load:
            loaded = self._cache.get(
                target.identity,
                load,
                need=self._need(target),
                lease=lease,
                keep_alive=keep_alive_s,
                may_wait=not is_nested,
            )
        if not is_nested:
            self._calls.put(key, target, loaded)
        return target, loaded

    def _is_same(self, target: LoadTarget) -> bool:
        """Return whether a call still means what it meant before, and its files are unchanged."""
        return self.resolver.is_current(target) and target.is_lasting and target.fingerprint.is_current()

    def load_copy(self, name: "str | os.PathLike[str]", options: Mapping[str, Any]) -> Any:
        """Return a model that is the caller's own: loaded now, and shared with nobody."""
        target = self._resolve(name, options)
        may_wait = self._nesting.depth == 0
        if target.base is None:
            return self._cache.copy(
                target.identity, partial(self.load, target), need=self._need(target), may_wait=may_wait
            ).model
        loading.import_peft(target.metadata)  # before the base is loaded
        # The base is the caller's own, too: training may write to its weights.
        base = self._cache.copy(
            target.base.identity, partial(self.load, target.base), need=self._whole_need(target), may_wait=may_wait
        )
        load = partial(self._apply_adapter, target, base.model)
        return self._cache.copy(target.identity, load, need=self._need(target), may_wait=may_wait).model

    def lease(
        self, name: "str | os.PathLike[str]", options: Mapping[str, Any], keep_alive: str | float | None
    ) -> Leasing:
        """Return what leases a model for the duration of a `with` block."""
        if not isinstance(name, str):
            parse_name(name)  # for its checks
        return Leasing(self, name, options, keep_alive)

    def free_bytes(self, device: str) -> int | None:
        """Return the bytes that the memory budget of a device has left; None without a budget."""
        return self._cache.free_bytes(device)

    def plan(self, name: "str | os.PathLike[str]", options: Mapping[str, Any]) -> Plan:
        """Return what a load would need, and which models would leave for it."""
        target = self._resolve(name, options)
        need, base = self._need(target), target.base
        if base is not None and self._cache.plan(base.identity, self._need(base)).fit != "loaded":
            need = self._whole_need(target)
        return self._cache.plan(target.identity, need)

    def load_tokenizer(self, name: "str | os.PathLike[str]", revision: str | None) -> "PreTrainedTokenizerBase":
        """Return the tokenizer of a name; the model is not loaded."""
        metadata, snapshot = self._snapshots.fetch(name, revision)
        if metadata.is_adapter:
            return self.tokenizer_of(self._resolve(name, {} if revision is None else {"revision": revision}))
        return self.tokenizers.get(
            metadata.without_folder_facts().with_missing_facts(snapshot.declared_facts), snapshot
        )

    def offload(self, name: "str | os.PathLike[str]", options: Mapping[str, Any]) -> bool:
        """Move a model's weights from its accelerator to host memory; return whether it left its device."""
        target = self._resolve(name, options)
        if not self._cache.discard(target.identity, "offloaded"):
            return False
        if target.identity.options.device != "cpu" and target.base is None:
            with contextlib.suppress(BudgetError, DeviceMemoryError):  # no room: the model is evicted
                self.load_offloaded(target)
        return True

    def load_offloaded(self, target: LoadTarget) -> None:
        """Load a model's weights into host memory, from where `load` moves them to their device.

        Raises:
            BudgetError: Host memory has no room for them.
        """
        identity, need = replace(target.identity, is_offloaded=True), replace(self._need(target), device="cpu")

        def load() -> LoadResult:
            with self._nesting.enter():
                return loading.load_model(target.metadata, identity, target.config, target.snapshot)

        self._cache.get(identity, load, need=need, may_wait=False)

    def load(self, target: LoadTarget) -> LoadResult:
        """Load a model now, whatever is in memory: the cache calls this once it has reserved the room.

        Raises:
            DigestMismatchError: A file has changed since the target was resolved.
        """
        offloaded = self._cache.pop(replace(target.identity, is_offloaded=True), "restored")
        if offloaded is not None and target.snapshot.file_stamps.is_current():
            return loading.restore_offloaded(offloaded, target.metadata.name, str(target.identity.options.device))
        del offloaded
        with self._nesting.enter():
            loaded = loading.load_model(target.metadata, target.identity, target.config, target.snapshot)
        self._finish_load(target, loaded)
        return loaded

    @contextlib.contextmanager
    def _lease_base(self, target: LoadTarget) -> Iterator[Callable[[], LoadResult]]:
        """Yield what loads a target. An adapter's base stays in memory meanwhile; afterwards, its adapter keeps it."""
        if (base := target.base) is None:
            yield partial(self.load, target)
            return
        loading.import_peft(target.metadata)  # before the base is loaded
        cached = self._cache.get(
            base.identity,
            partial(self.load, base),
            need=self._whole_need(target),
            lease=True,
            may_wait=not self._nesting.depth,
        )
        try:
            yield partial(self._apply_adapter, target, cached.model)
        finally:
            self._cache.release(cached)

    def _apply_adapter(self, target: LoadTarget, base: Any) -> LoadResult:
        """Put an adapter into its base, which is in memory."""
        with self._nesting.enter():
            loaded = loading.apply_adapter(target.metadata, target.identity, target.config, target.snapshot, base)
        self._finish_load(target, loaded)
        return loaded

    def _finish_load(self, target: LoadTarget, loaded: LoadResult) -> None:
        """Check that the files of a load are unchanged, and record what it took."""
        target.snapshot.check_unchanged()
        digest_cache().keep_memory_estimate(_memory_key(target.identity), loaded.size_bytes, loaded.load_s)
        if settings.AUDIT_LOADS():
            self._note_load(target, loaded)

    def _resolve(self, name: "str | os.PathLike[str]", options: Mapping[str, Any]) -> LoadTarget:
        return self.resolver.resolve(name, LoadOptions.from_kwargs(options))

    def _need(self, target: LoadTarget) -> Need:
        """Return what a load needs: what the last one took or, before the first, what the files' headers say."""
        files = target.snapshot if target.base is None else target.base.snapshot
        return replace(self._size(target), dtype=target.identity.options.dtype, stored_dtype=files.dtype)

    def _size(self, target: LoadTarget) -> Need:
        """Return the same, without the dtypes."""
        options, keep_alive = target.identity.options, target.metadata.memory.keep_alive
        device = str(options.device)
        keep_alive_s = settings.KEEP_ALIVE() if keep_alive is None else parse_keep_alive(keep_alive)
        if target.base is not None:  # an adapter has few bytes, which are single precision in any case
            taken = digest_cache().memory_estimate(_memory_key(target.identity))
            size_bytes, load_s = taken or (target.snapshot.size_bytes("float32"), None)
            known_by: KnownBy = "measured" if taken else "headers"
            return Need(device, size_bytes, known_by, load_s, keep_alive_s, base=target.base.identity)

        def bytes_in_bfloat16() -> int | None:
            narrow, own = map(target.snapshot.size_bytes, ("bfloat16", str(options.dtype)))
            return narrow if narrow < own else None

        measured = digest_cache().memory_estimate(_memory_key(target.identity))
        if measured is not None:
            return Need(device, measured[0], "measured", measured[1], keep_alive_s, bytes_in_bfloat16)
        size_bytes = target.snapshot.size_bytes(str(options.dtype))
        return Need(device, size_bytes, "headers", None, keep_alive_s, bytes_in_bfloat16)

    def _whole_need(self, target: LoadTarget) -> Need:
        """Return what a load needs with the base of an adapter."""
        assert target.base is not None
        need = self._need(target.base)
        return replace(need, size_bytes=need.size_bytes + self._need(target).size_bytes, in_bfloat16=lambda: None)

    def _note_load(self, target: LoadTarget, loaded: LoadResult) -> None:
        """Add a load to the history. If that fails, so does the load: no model is handed out without a record."""
        receipt = self.receipt_of(target, loaded.model, loaded.size_bytes)
        detail = {"snapshot": receipt.snapshot, "options": receipt.options, "receipt": receipt.digest}
        self._catalog.stored.note_load(target.metadata, detail)

    def tokenizer_of(self, target: LoadTarget) -> "PreTrainedTokenizerBase":
        """Return the tokenizer of a target, loaded once."""
        model_class = target.identity.options.model_class
        chosen = model_class if isinstance(model_class, type) else None
        if target.base is None:
            return self.tokenizers.get(target.metadata, target.snapshot, chosen)
        snapshot = target.snapshot if target.snapshot.has_tokenizer else target.base.snapshot
        return self.tokenizers.get(target.metadata, snapshot, chosen, config_from=target.base.snapshot)

    def modules_of(self, target: LoadTarget) -> "Modules":
        """Return the modules behind the pooling of a target, loaded once."""
        base = target.base if target.snapshot.declaration is None else None
        return self.tokenizers.get_modules(target.metadata, (base or target).snapshot)

    def receipt_of(self, target: LoadTarget, model: Any, size_bytes: int) -> Receipt:
        """Return the receipt of a target, whose model is in memory."""
        snapshot = target.snapshot
        if snapshot.locked and not target.fingerprint.is_current():
            snapshot = replace(snapshot, locked=sources.is_locked(target.metadata, snapshot))
        proof = loading.make_proof(snapshot, model, size_bytes, partial(self.tokenizer_of, target))
        receipt = Receipt.of(target.metadata, target.identity, snapshot.commit, proof, snapshot.bundle)
        if (base := target.base) is None:
            return receipt
        base_model = loading.base_of(model)
        of_base = self.receipt_of(base, base_model, loading.size_bytes(base_model))
        proof = replace(proof, architecture=of_base.proof.architecture)
        return replace(receipt, proof=proof, base=of_base)


def _memory_key(identity: Identity) -> str:
    """Return a key that is equal for loads of equal size: the bytes, and what is made of them on a kind of device."""
    options = identity.options
    kind = str(options.device).partition(":")[0]
    shape = class_path(options.model_class), options.attn_implementation, options.config, options.overrides
    return repr((identity.snapshot, kind, options.dtype, shape))
