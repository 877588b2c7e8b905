"""Models that leave in a bundle, and models that come in one: nothing changes on the way, and nobody approves by it."""

import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from medvllm import __version__, destination
from medvllm.author import now, who
from medvllm.catalog import Catalog, to_toml
from medvllm.catalog.entries import parse_entries
from medvllm.catalog.events import Alias, Event
from medvllm.catalog.intake import Intake, Wanted
from medvllm.errors import CatalogError, DigestMismatchError, OutputError, RequestError, SourceError
from medvllm.local_files import repository_folder
from medvllm.metadata import ModelMetadata
from medvllm.names import parse, source_path, valid_name
from medvllm.sources import Lock, LockedModel, Snapshot, branch, bundle, folder, hub, signing, to_lock
from medvllm.sources.bundle import Bundle, State
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.lock_text import FOLDER
from medvllm.sources.provenance import Provenance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Exported:
    """A bundle that was written. `sha256` is the file's; `contents` stands for the models, whoever exports them."""

    path: str
    models: tuple[str, ...]  # with the versions that have numbers
    aliases: tuple[str, ...]  # such as "m@production -> 3"
    size_bytes: int
    sha256: str
    contents: str
    provenance: Provenance
    signature: str | None = None  # its file

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        return vars(self) | {"provenance": self.provenance.to_dict()}


@dataclass(frozen=True)
class Imported:
    """What an import did, or would do. `models` are "new", "repaired" or "here" by name.

    `changes` are those of the catalogue; `notes` are what did not come with it, or was left as it is here.
    """

    models: dict[str, str]
    changes: tuple[Event, ...]
    notes: tuple[str, ...]
    locked: tuple[str, ...]  # what was approved here by the same call
    sha256: str
    contents: str
    provenance: Provenance

    @property
    def is_new(self) -> bool:
        """Whether anything was not here already."""
        return bool(self.changes or self.locked) or any(state != "here" for state in self.models.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON has them."""
        changes = [event.to_dict() for event in self.changes]
        return vars(self) | {"changes": changes, "provenance": self.provenance.to_dict(), "changed": self.is_new}


def check_target(target: Path, *, replace: bool, key: Path | None) -> None:
    """Raise OutputError when a bundle could not be written, or would take the place of a file that is there.

    RequestError: it could not be signed with `key`.
    """
    if key is not None:
        if str(target) == "-" or (os.path.exists(target) and not os.path.isfile(target)):
            raise RequestError(f"A bundle that is signed is a file, not '{target}'.\nGive it a name: -o bundle.tar")
        signing.check_key(key)
    if not replace and str(target) != "-" and os.path.isfile(target):
        raise OutputError(f"'{target}' is there already.\nTo put the bundle in its place: --replace", path=str(target))
    destination.check(target)


def export(
    catalog: Catalog,
    target: Path,
    found: Iterable[tuple[ModelMetadata, str | None, Snapshot]],
    *,
    unlocked: bool,
    sign: Path | None,
) -> Exported:
    """Write models into a bundle; each is given with the revision that was asked of it, and its files.

    `sign` is a private key; the signature lies beside it.

    Raises:
        DigestMismatchError: Nobody has approved a model's files, and `unlocked` is not set.
        RequestError: Two models would go by one name.
    """
    lock = Lock.current()
    models: dict[str, tuple[Snapshot, LockedModel]] = {}
    entries: dict[str, ModelMetadata] = {}
    branches: dict[str, str] = {}
    stored: dict[str, set[int]] = {}  # the versions of each name whose aliases go with them
    for metadata, revision, snapshot in found:
        if not (snapshot.locked or unlocked):
            raise DigestMismatchError(
                f"Model {metadata.reference!r} is not in {lock.file}: nobody has approved its files.\n"
                f"To approve it: medvllm lock {metadata.reference}\nTo export it all the same: --unlocked",
                model=metadata.name,
                files=(),
            )
        entry = _portable(metadata, snapshot)
        key, approved = entry.reference, lock.known(metadata)
        known = models.get(key, (snapshot,))[0], entries.get(key, entry)
        if known != (snapshot, entry):
            raise RequestError(
                f"A bundle has one model of a name, and two of {key!r} are asked for.\n"
                "Write each into a bundle of its own."
            )
        if snapshot.repo is None or metadata.origin != "direct":
            entries[key] = entry
        if metadata.origin == "stored":
            stored.setdefault(metadata.name, set()).add(metadata.version)
        if (follows := branch(metadata)) and snapshot.repo:
            branches[key] = follows if revision is None else revision
        models[key] = snapshot, replace(to_lock(snapshot), approval=approved.approval if approved else None)
    aliases = [
        alias
        for name, versions in sorted(stored.items())
        for alias in catalog.stored.aliases(name)
        if alias.version in versions
    ]
    events, last_hash = catalog.stored.position() if catalog.has_stored else (0, "")
    provenance = Provenance(who(), socket.gethostname(), now(), f"medvllm {__version__}", events, last_hash)
    packed = bundle.write(target, to_toml(entries.values(), aliases), models, branches, provenance)
    shown = tuple(f"{alias.name}@{alias.alias} -> {alias.version}" for alias in aliases)
    signature = None if sign is None else str(signing.sign(target, sign))
    return Exported(
        str(target), tuple(models), shown, packed.size_bytes, packed.sha256, packed.contents, provenance, signature
    )


def _portable(metadata: ModelMetadata, snapshot: Snapshot) -> ModelMetadata:
    """Return an entry as it travels: a folder's path means nothing elsewhere, and a version keeps its number."""
    if snapshot.repo is None:
        metadata = metadata.changed(source=replace(metadata.source, model_path=None))
        if metadata.origin == "direct":
            metadata = metadata.changed(name=valid_name(snapshot.path.name))
    return metadata.changed(origin="stored") if metadata.origin == "process" else metadata


@dataclass(frozen=True)
class Terms:
    """On which terms a bundle is taken. `against` is a lock file, `sha256` a digest, that came another way."""

    replace: bool = False
    dry_run: bool = False
    lock: bool = False
    reason: str | None = None
    against: Path | None = None
    sha256: str | None = None
    key: Path | None = None  # the public one, by which it must be signed


def take(catalog: Catalog, file: Path, terms: Terms) -> Imported:
    """Make the models of a bundle this machine's, all of them or none.

    Raises:
        SourceError: It is no sound bundle.
        DigestMismatchError: It is damaged, not the one of `terms`, or its models are not the locked ones.
        CatalogError: It would change what is here, and may not.
    """
    signed = None if terms.key is None else signing.verify(file, terms.key)
    with bundle.opened(file) as opened:
        for stated in (signed, terms.sha256):
            _check_digest(opened, file, stated)
        brought = parse_entries(opened.entries, "stored")
        entries = {_key(entry): _untrusted(entry) for entry in brought.models}
        opened.check(entries)
        lock = Lock.current()
        if terms.against is not None:
            _check_against(opened, terms.against)
        if terms.lock:
            destination.check(lock.file)
        if not terms.replace:
            _check_locked(opened, lock)
        moved = {key: commit for key in opened.locked if (commit := opened.moved(key))}
        wanted = _wanted(catalog, opened, entries, brought.aliases or (), moved)
        states: dict[str, State] = {key: opened.state(key) for key in opened.locked}
        for key, entry in entries.items():
            known = catalog.find(entry.name, str(entry.version)) if states[key] == "new" else None
            if known is not None and wanted.same_files(known, entry):  # in a folder of the user's own
                states[key] = "here"
        due = [key for key, state in states.items() if state != "here" or key in moved]
        intake, changes = _planned(catalog, wanted, terms)
        locked: set[str] = set()
        if not terms.dry_run:
            for key in due:
                bundle.land(opened, key)
            if due or changes:
                _keep(catalog, opened, wanted, terms)
            if terms.lock:
                locked = _approve(catalog, lock, opened, entries, terms)
            for name in {entry.name for entry in entries.values()}:
                catalog.give_way(name)
    return Imported(
        {key: _STATES[state] for key, state in states.items()},
        tuple(changes),
        (*_notes(brought.models), *intake.stays),
        tuple(sorted(locked)),
        opened.sha256,
        opened.contents,
        opened.provenance,
    )


_STATES: dict[State, str] = {"new": "new", "damaged": "repaired", "here": "here"}


def _key(entry: ModelMetadata) -> str:
    """Return the name that a bundle has for an entry: without a number for one that is stored nowhere."""
    return entry.reference if entry.version else entry.name


def _check_digest(opened: Bundle, file: Path, stated: str | None) -> None:
    if stated is not None and stated.lower() not in (opened.sha256, opened.contents):
        raise DigestMismatchError(
            f"Bundle {file} is not the expected one: it has the SHA-256 {opened.sha256}, and its contents "
            f"{opened.contents}.\nNothing of it was imported. Ask for the digest that medvllm export printed.",
            path=str(file),
            files=(),
        )


def _check_against(opened: Bundle, file: Path) -> None:
    """Raise DigestMismatchError unless a lock that came another way has every model of a bundle, as it is there."""
    known = Lock.read(file)
    if not Path(known.file).exists():
        raise SourceError(f"Nothing was imported: there is no lock file '{known.file}'.", path=str(known.file))
    for key, model in opened.locked.items():
        approved = known.models.get(key) or known.models.get(parse(key).name)
        if approved is None:
            raise DigestMismatchError(
                f"Model {key!r} of the bundle is not in {file}. It has: {', '.join(sorted(known.models)) or 'none'}.\n"
                "Nothing was imported. Ask for the lock of what was exported.",
                model=key,
                files=(),
            )
        _compare(key, approved, model)


def _check_locked(opened: Bundle, lock: Lock) -> None:
    """Raise DigestMismatchError when a model is locked here otherwise than a bundle has it."""
    for key, model in opened.locked.items():
        approved = lock.models.get(key) or lock.models.get(parse(key).name)
        if approved is not None:
            _compare(key, approved, model)


def _compare(key: str, approved: LockedModel, model: LockedModel) -> None:
    approved.check_source(key, model.source, model.commit)
    approved.check(key, model.files)
    if approved.converted and model.converted:
        approved.check(key, model.converted, converted=True)


def _untrusted(entry: ModelMetadata) -> ModelMetadata:
    """Return an entry without the permission to run its repository's code: no bundle brings that."""
    return entry.changed(source=replace(entry.source, trust_remote_code=None))


def _notes(models: Sequence[ModelMetadata]) -> list[str]:
    return [
        f"{_key(entry)} may not run its repository's code here: that permission does not come with a bundle"
        for entry in models
        if entry.source.trust_remote_code
    ]


def _wanted(
    catalog: Catalog,
    opened: Bundle,
    entries: Mapping[str, ModelMetadata],
    aliases: Sequence[Alias],
    moved: Mapping[str, str],
) -> Wanted:
    """Return what a bundle brings into the catalogue, and what it would change beside it."""
    models = []
    for key, entry in entries.items():
        if opened.locked[key].source == FOLDER:
            place = source_path(str(folder.kept(opened.locked[key].files)))
            entry = entry.changed(source=replace(entry.source, model_path=place))
        models.append(entry)

    def same_files(known: ModelMetadata, entry: ModelMetadata) -> bool:
        location, model = parse(known.location), opened.locked[_key(entry)]
        if location.kind != "folder" or model.source != FOLDER:
            return False
        try:
            place = folder.located(Path(location.name))
            return folder.resolve(place, None, extra=known.source.extra_files).files == model.files
        except SourceError:
            return False

    names = {name for entry in models for name in (entry.name, *entry.source.also_known_as)}
    meant = {name: catalog.find(name) for name in names}
    changes = [
        f"{key!r} at {opened.branches[key]!r} is commit {commit[:7]}, and would be {str(opened.locked[key].commit)[:7]}"
        for key, commit in moved.items()
    ]
    # What was loaded by the name of its repository would be another model.
    changes += [
        f"{name!r} is the repository of that name, and would be {entry.location!r}"
        for entry in models
        for name in (entry.name, *entry.source.also_known_as)
        if meant[name] is None and parse(entry.location).name != name and _is_known(name)
    ]
    return Wanted(models, aliases, meant, same_files, changes)


def _is_known(name: str) -> bool:
    """Return whether a name is that of a repository which was loaded, or is here, in whichever revision."""
    ref = parse(name)
    if not ref.is_repo_id:
        return False
    kept = repository_folder(ref.name) / "snapshots"
    return digest_cache().commit(hub.endpoint(), ref.name, "main") is not None or os.path.isdir(kept)


def _planned(catalog: Catalog, wanted: Wanted, terms: Terms) -> tuple[Intake, list[Event]]:
    """Return what the catalogue would become. CatalogError: it may not."""
    if wanted.models:
        return catalog.stored.add_bundle(wanted, replace=terms.replace, reason=terms.reason, dry_run=True)
    intake = Intake(list(wanted.changes))
    intake.check(replace=terms.replace)
    return intake, []


def _keep(catalog: Catalog, opened: Bundle, wanted: Wanted, terms: Terms) -> None:
    """Add what a bundle brings to the catalogue, and to its history that it was imported, and from where."""
    origin = {"bundle": opened.sha256, "contents": opened.contents, "exported": opened.provenance.to_dict()}
    versions = {entry.reference: entry for entry in wanted.models if entry.version}
    noted = []
    for key, model in opened.locked.items():
        entry = versions.get(key)
        detail = {**origin, **model.facts}
        if model.approval is not None:
            detail["approved"] = {fact: text for fact, text in vars(model.approval).items() if text is not None}
        noted.append((entry.name if entry else key, entry.version if entry else None, detail))
    try:
        catalog.stored.add_bundle(wanted, replace=terms.replace, reason=terms.reason, noted=noted)
    except CatalogError as error:
        if wanted.models:
            raise
        logger.warning("the history does not have the import of %s: %s", ", ".join(opened.locked), error)


def _approve(
    catalog: Catalog, lock: Lock, opened: Bundle, entries: Mapping[str, ModelMetadata], terms: Terms
) -> set[str]:
    """Write a bundle's models into the lock; return those that are news there."""
    reason = terms.reason or f"imported from the bundle {opened.sha256}"
    due = {key: model for key, model in opened.locked.items() if lock.models.get(lock.key(key)) != model}
    _, news = lock.approve(due, reason)
    direct = ModelMetadata.build
    approved = [
        (entries.get(key) or direct(key, "generic", {}, origin="direct"), opened.locked[key].facts)
        for key in sorted(news)
    ]
    catalog.note_locked(approved, lock.file, reason)
    return news
