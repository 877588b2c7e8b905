"""What a registry has in memory, as its callers and other processes see it: models, and the tokenizers beside them."""

import gc
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from medvllm import processes, settings
from medvllm.catalog import Catalog
from medvllm.classes import class_path
from medvllm.model_cache import CachedModel, Limits, ModelCache, Reason, ValueCache, default_cpu_budget
from medvllm.options import Identity
from medvllm.quantities import PINNED
from medvllm.sources import Snapshot


@dataclass(frozen=True)
class LoadedModel:
    """One model in memory, as `registry.loaded_models()` lists it."""

    name: str
    version: int
    origin: str  # where the entry comes from: "process", "stored", "built-in" or "direct"
    snapshot: str  # "repo@commit", or the folder with the digest of its files
    device: str
    dtype: str
    model_class: str
    size_bytes: int
    leases: int
    hits: int
    load_s: float
    loaded_at: float  # seconds since the epoch
    last_used: float  # seconds since the epoch
    keep_alive: float | None  # seconds in memory after its last use; infinite if pinned; None: until room is needed
    mapped_bytes: int  # the part of size_bytes that is shared with all processes that map the file
    evicted: bool  # whether the model has left the cache, and only a caller still holds it
    offloaded: bool  # whether its weights wait in host memory, to go back to their accelerator
    base: str | None  # the entry whose memory an adapter uses beside its own size_bytes
    engine: str  # what computes it: "torch", "onnx" or "openvino"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values. `keep_alive` of a pinned model is -1."""
        return vars(self) | {"keep_alive": -1 if self.keep_alive == PINNED else self.keep_alive}


class LoadedModels:
    """The models and tokenizers that a registry has in memory.

    It loads nothing. The room `processes` asks it what to tell other processes.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self.cache: ModelCache[Identity] = ModelCache(
            Limits(
                budget=_budget_bytes,
                max_models=settings.MAX_MODELS,
                wait_s=settings.MEMORY_TIMEOUT,
                free_memory=_free_memory,
                on_change=partial(_schedule_write, weakref.ref(self)),
            )
        )
        # Tokenizers, and the modules behind a pooling. The first part of a key is the entry's name.
        self.tokenizers: ValueCache[tuple[Any, ...], Any] = ValueCache()

    def list_models(self) -> list[LoadedModel]:
        """Return the models in memory in the order of loading, with those that only a caller holds."""
        found = self.cache.models()
        mapped = [each.model for each, _ in found if each.mapped_bytes]
        if not mapped:
            return self._describe(found, {})
        from medvllm import loading

        return self._describe(found, loading.written_bytes(mapped))

    def evict(self, name: str | None, reason: Reason = "asked") -> int:
        """Evict the models of an entry, or all for None, and drop their tokenizers; return how many models left."""
        left = self.cache.evict(name, reason)
        self.tokenizers.discard(lambda key: name is None or key[0] == name)
        return left

    def evict_outdated(self, name: str, snapshot: Snapshot) -> None:
        """Evict the models of an entry if one of them was loaded from files of its folder that have changed since.

        Args:
            name: The entry.
            snapshot: The entry's files as they are now.
        """
        if snapshot.repo:  # the folder of a commit has its files only
            return
        folder = snapshot.identity.rpartition("@")[0]
        found = (each.identity for each, is_evicted in self.cache.models() if not is_evicted)
        if any(
            each.name == name and each.snapshot.rpartition("@")[0] == folder and each.snapshot != snapshot.identity
            for each in found
        ):
            self.evict(name, "replaced")

    def record_stores(self) -> list[processes.RecordStore]:
        """Return where this process records what is in memory: beside the catalogue, or else in MEDVLLM_HOME."""
        home = processes.RecordFolder(settings.HOME() / "run")
        store = self._catalog.record_store()
        return [home] if store is None or store == home else [store, home]

    def describe_models(self, *, will_publish: bool = True) -> list[dict[str, Any]]:
        """Return the models in memory, as `medvllm ps` shows them.

        Pages that were written to are not counted: that would ask the system about each of them.

        Args:
            will_publish: Whether the answer is written where other processes see it.
        """
        found = self.cache.models_to_list() if will_publish else self.cache.models()
        models = [model.to_dict() for model in self._describe(found, {})]
        for model, (cached, _) in zip(models, found, strict=True):
            if will_publish and cached.is_listed_as_leased:
                model["leases"] = max(cached.leases, 1)
        return models

    def _describe(
        self, found: list[tuple[CachedModel[Identity], bool]], written: Mapping[int, int]
    ) -> list[LoadedModel]:
        """Describe models of the cache; `written` has the mapped bytes that were written to, by the id of a model."""
        now = time.time()
        return [
            LoadedModel(
                name=cached.identity.name,
                version=cached.identity.version,
                origin=cached.identity.origin,
                snapshot=cached.identity.snapshot,
                device=cached.device,
                dtype=str(cached.identity.options.dtype),
                model_class=str(class_path(cached.identity.options.model_class)),
                size_bytes=cached.size_bytes,
                leases=cached.leases,
                hits=self.cache.hits(cached),
                load_s=cached.load_s,
                loaded_at=cached.loaded_at,
                last_used=now - self.cache.idle_s(cached),
                keep_alive=cached.keep_alive,
                mapped_bytes=cached.mapped_bytes - written.get(id(cached.model), 0),
                evicted=evicted,
                offloaded=cached.identity.is_offloaded,
                base=None if cached.identity.base is None else cached.identity.base.name,
                engine=cached.identity.engine or "torch",
            )
            for cached, evicted in found
        ]


def _budget_bytes(device: str) -> int | None:
    """Return the bytes of models that a device may hold: the setting's, or else what the device has."""
    budget = settings.MEMORY_BUDGET()
    if device in budget:
        return budget[device]
    if device == "cpu":
        return default_cpu_budget()
    from medvllm import loading

    return loading.default_budget(device)


def _free_memory(evicted: "Sequence[weakref.ref[Any]]") -> None:
    """Return the memory of evicted models to the system."""
    if "torch" not in sys.modules:  # then they were models of engines
        if any(model() is not None for model in evicted):
            gc.collect()
        return
    from medvllm import loading

    loading.free_memory(evicted)


def _schedule_write(loaded: "weakref.ref[LoadedModels]") -> None:
    if (alive := loaded()) is not None:
        processes.publisher.schedule_write(alive)
