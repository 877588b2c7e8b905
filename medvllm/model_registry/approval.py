"""Approval of models: lock their files, verify them later, and record a baseline of their output."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from medvllm import sources
from medvllm.catalog import Catalog, find_entry
from medvllm.catalog.reason import check_reason
from medvllm.errors import ModelNotFoundError, RequestError
from medvllm.fact_values import check_fact
from medvllm.metadata import ModelMetadata
from medvllm.model_registry.loaded_models import LoadedModels
from medvllm.model_registry.snapshots import Snapshots
from medvllm.names import parse_name


def lock_models(
    catalog: Catalog, snapshots: Snapshots, names: Sequence["str | os.PathLike[str]"], reason: str | None
) -> dict[str, sources.LockedModel]:
    """Write the commit and files of models into the lock file, and return its content for them, by entry name."""
    check_reason(reason)
    lock = sources.Lock.current()
    locked: dict[str, sources.LockedModel] = {}
    entries: dict[str, ModelMetadata] = {}
    for name in names:
        metadata, revision = snapshots.find(name)
        # A stored version that was asked for by its number or alias is locked beside the others of its name.
        is_version = parse_name(name).suffix is not None and revision is None
        key = metadata.reference if is_version else lock.name_of(metadata)
        locked[key] = sources.LockedModel.from_snapshot(sources.resolve_snapshot(metadata, revision))
        entries[key] = metadata
    lock, news = lock.approve(locked, reason)
    catalog.note_locked([(entries[key], locked[key].facts) for key in sorted(news)], lock.file, reason)
    return {key: lock.models[lock.key_of(key)] for key in locked}


def verify_models(snapshots: Snapshots, names: Sequence["str | os.PathLike[str]"]) -> dict[str, dict[str, str]]:
    """Hash the files of the named or of all locked models, and return the differences of each, by file."""
    lock = sources.Lock.current()
    entries = [snapshots.find(name).entry for name in names]
    locked = lock.select(tuple(map(lock.name_of, entries)))
    asked: list[tuple[str, ModelMetadata | None]]
    asked = [(lock.name_of(entry), entry) for entry in entries] if names else [(name, None) for name in locked]
    differences: dict[str, dict[str, str]] = {}
    for name, known in asked:
        try:
            entry = known or snapshots.find(name).entry
            found = sources.verify_files(entry, locked[name], _check_prepared)
        except ModelNotFoundError:
            found = {"entry": "is not registered any more: remove its table from the lock file"}
        differences[name] = differences.get(name, {}) | found
    return differences


def record_baseline(
    catalog: Catalog,
    snapshots: Snapshots,
    loaded: LoadedModels,
    name: "str | os.PathLike[str]",
    cases: Sequence[Mapping[str, Any]],
    reason: str | None,
) -> ModelMetadata:
    """Keep a baseline in an entry, with the digest of the files that it holds for, and return the entry."""
    _, kept = check_fact(str(name), "baseline", list(cases))
    ref = parse_name(name)
    if not kept:
        raise RequestError(
            f"A baseline of model {ref.name!r} needs at least one case.\n"
            f"Record one with: medvllm baseline record {ref.text}",
            model=ref.name,
        )
    found = find_entry(catalog, ref)
    if found is None:
        raise catalog.not_found(ref.name)
    entry, digest = found.entry, sources.LockedModel.from_snapshot(snapshots.fetch(name)[1]).digest
    if entry.origin == "stored":
        return catalog.stored.update(entry.reference, baseline=kept, baseline_digest=digest, reason=reason)[0]
    entry = catalog.put(entry.with_facts(baseline=kept, baseline_digest=digest))
    loaded.evict(entry.name, "replaced")  # the entry is a new version
    return entry


def _check_prepared(snapshot: sources.Snapshot) -> dict[str, str]:
    """Return what is wrong with copies of a snapshot's weights in another dtype. Only this needs torch."""
    from medvllm import loading

    return loading.check_prepared_copies(snapshot)
