"""Imports the models of a bundle: all of them or none. Nothing is replaced or approved unless asked for."""

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvllm import destination
from medvllm.catalog import Catalog
from medvllm.catalog.entries import parse_entries
from medvllm.catalog.events import Event
from medvllm.catalog.intake import Intake, Wanted
from medvllm.errors import CatalogError, DigestMismatchError, SourceError
from medvllm.local_files import repository_folder
from medvllm.metadata import ModelMetadata
from medvllm.names import parse_name, source_path
from medvllm.sources import FOLDER, Lock, LockedModel, bundle, folder, home_models, hub
from medvllm.sources.bundle import Bundle, ExportRecord, State, signing
from medvllm.sources.digest_cache import digest_cache

logger = logging.getLogger(__name__)

_STATES: dict[State, str] = {"new": "new", "damaged": "repaired", "here": "here"}


@dataclass(frozen=True)
class Terms:
    """The options of an import, as `ModelRegistry.import_bundle` describes them."""

    replace: bool = False
    dry_run: bool = False
    lock: bool = False
    reason: str | None = None
    against: Path | None = None
    sha256: str | None = None
    verify_key: Path | None = None


@dataclass(frozen=True)
class Imported:
    """What an import did or, for a dry run, would do."""

    models: dict[str, str]  # "new", "repaired" or "here", by name
    changes: tuple[Event, ...]  # of the catalogue
    notes: tuple[str, ...]  # what the bundle does not bring, or the import leaves as it is
    locked: tuple[str, ...]  # models that the same call approved
    sha256: str
    contents: str
    export_record: ExportRecord

    @property
    def is_new(self) -> bool:
        """Whether the import changed anything."""
        return bool(self.changes or self.locked) or any(state != "here" for state in self.models.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        changes = [event.to_dict() for event in self.changes]
        return vars(self) | {"changes": changes, "export_record": self.export_record.to_dict(), "changed": self.is_new}


def import_bundle(catalog: Catalog, file: Path, terms: Terms) -> Imported:
    """Add the models of a bundle to this machine and its catalogue, all of them or none.

    Raises:
        SourceError: The file is not a valid bundle.
        DigestMismatchError: The bundle is damaged, is not the one of `terms`, or has a model otherwise than it is
            locked.
        CatalogError: The bundle would change what exists, and may not.
    """
    signed = None if terms.verify_key is None else signing.verify_signature(file, terms.verify_key)
    with bundle.open_bundle(file) as opened:
        for stated in (signed, terms.sha256):
            _check_digest(opened, file, stated)
        return _Import(catalog, opened, terms).run()


class _Import:
    """The import of one opened bundle, whose bytes are checked."""

    def __init__(self, catalog: Catalog, opened: Bundle, terms: Terms) -> None:
        self._catalog, self._opened, self._terms = catalog, opened, terms
        self._lock = Lock.current()
        self._brought = parse_entries(opened.entries, "stored")
        self._entries = {_key(entry): _without_code(entry) for entry in self._brought.models}
        # Branches that this machine knows at another commit, with that commit.
        self._moved = {key: commit for key in opened.locked if (commit := opened.conflicting_commit(key))}

    def run(self) -> Imported:
        """Check everything, then add files, entries and, if wanted, locks."""
        opened, terms = self._opened, self._terms
        opened.check(self._entries)
        # Compare with the locks: the one that the caller got separately, and the one of this machine.
        if terms.against is not None:
            _check_against(opened, terms.against)
        if terms.lock:
            destination.check_output(self._lock.file)
        if not terms.replace:
            _check_locked(opened, self._lock)
        # Plan: what is new here, and what the catalogue would become.
        wanted = self._collect_wanted()
        states = self._compare_files(wanted)
        due = [key for key, state in states.items() if state != "here" or key in self._moved]
        intake, changes = self._plan_changes(wanted)
        # Do it: first the files, so that no entry leads to files that are missing.
        locked: set[str] = set()
        if not terms.dry_run:
            for key in due:
                bundle.install_model(opened, key)
            if due or changes:
                self._store(wanted)
            if terms.lock:
                locked = self._approve()
            for name in {entry.name for entry in self._entries.values()}:
                self._catalog.give_way(name)
        return Imported(
            models={key: _STATES[state] for key, state in states.items()},
            changes=tuple(changes),
            notes=(*self._collect_notes(), *intake.stays),
            locked=tuple(sorted(locked)),
            sha256=opened.sha256,
            contents=opened.contents,
            export_record=opened.export_record,
        )

    def _compare_files(self, wanted: Wanted) -> dict[str, State]:
        """Return by name whether this machine has a model's files."""
        states: dict[str, State] = {key: self._opened.state_of(key) for key in self._opened.locked}
        for key, entry in self._entries.items():
            known = self._catalog.find(entry.name, str(entry.version)) if states[key] == "new" else None
            if known is not None and wanted.same_files(known, entry):  # in a folder of the user's own
                states[key] = "here"
        return states

    def _collect_wanted(self) -> Wanted:
        """Return what the bundle brings into the catalogue, and what it would change beside it."""
        models = [self._with_path(key, entry) for key, entry in self._entries.items()]
        names = {name for entry in models for name in (entry.name, *entry.source.also_known_as)}
        meant = {name: self._catalog.find(name) for name in names}
        changes = [
            f"{key!r} at {self._opened.branches[key]!r} is commit {commit[:7]}, and would be "
            f"{str(self._opened.locked[key].commit)[:7]}"
            for key, commit in self._moved.items()
        ]
        # A name that has meant the repository of that name until now would mean another model.
        changes += [
            f"{name!r} is the repository of that name, and would be {entry.location!r}"
            for entry in models
            for name in (entry.name, *entry.source.also_known_as)
            if meant[name] is None and parse_name(entry.location).name != name and _is_known_repository(name)
        ]
        return Wanted(models, self._brought.aliases or (), meant, self._has_same_files, changes)

    def _with_path(self, key: str, entry: ModelMetadata) -> ModelMetadata:
        """Return an entry that leads to where its files will be on this machine."""
        if self._opened.locked[key].source != FOLDER:
            return entry
        path = source_path(str(home_models.folder_of(self._opened.locked[key].files)))
        return entry.with_facts(model_path=path)

    def _has_same_files(self, known: ModelMetadata, entry: ModelMetadata) -> bool:
        """Return whether an entry of this machine leads to a folder with the files of one of the bundle."""
        location, model = parse_name(known.location), self._opened.locked[_key(entry)]
        if location.kind != "folder" or model.source != FOLDER:
            return False
        try:
            path = home_models.locate(Path(location.name))
            kept = folder.resolve_snapshot(path, None, extra=known.source.extra_files, adapter=known.is_adapter)
            return kept.files == model.files
        except SourceError:
            return False

    def _plan_changes(self, wanted: Wanted) -> tuple[Intake, list[Event]]:
        """Return how the catalogue would change. Raises CatalogError if that is not allowed."""
        if wanted.models:
            return self._catalog.stored.add_bundle(
                wanted, replace=self._terms.replace, reason=self._terms.reason, dry_run=True
            )
        intake = Intake(list(wanted.changes))
        intake.check(replace=self._terms.replace)
        return intake, []

    def _store(self, wanted: Wanted) -> None:
        """Add the entries to the catalogue, and the import to its history."""
        opened = self._opened
        exported = {"bundle": opened.sha256, "contents": opened.contents, "exported": opened.export_record.to_dict()}
        versions = {entry.reference: entry for entry in wanted.models if entry.version}
        noted = []
        for key, model in opened.locked.items():
            entry = versions.get(key)
            detail = {**exported, **model.facts}
            if model.approval is not None:
                detail["approved"] = {fact: text for fact, text in vars(model.approval).items() if text is not None}
            noted.append((entry.name if entry else key, entry.version if entry else None, detail))
        try:
            self._catalog.stored.add_bundle(wanted, replace=self._terms.replace, reason=self._terms.reason, noted=noted)
        except CatalogError as error:
            if wanted.models:
                raise
            logger.warning("the history lacks the import of %s: %s", ", ".join(opened.locked), error)

    def _approve(self) -> set[str]:
        """Write the models into the lock file, and return the names of those that changed in it."""
        reason = self._terms.reason or f"imported from the bundle {self._opened.sha256}"
        locked, lock = self._opened.locked, self._lock
        due = {key: model for key, model in locked.items() if lock.models.get(lock.key_of(key)) != model}
        _, news = lock.approve(due, reason)
        approved = [
            (self._entries.get(key) or ModelMetadata.build(key, "generic", {}, origin="direct"), locked[key].facts)
            for key in sorted(news)
        ]
        self._catalog.note_locked(approved, lock.file, reason)
        return news

    def _collect_notes(self) -> Sequence[str]:
        return [
            f"{_key(entry)} may not run its repository's code here: a bundle does not bring that permission"
            for entry in self._brought.models
            if entry.source.trust_remote_code
        ]


def _key(entry: ModelMetadata) -> str:
    """Return the name that a bundle has for an entry: without a number for one that is not stored."""
    return entry.reference if entry.version else entry.name


def _without_code(entry: ModelMetadata) -> ModelMetadata:
    """Return an entry without the permission to run its repository's code."""
    return entry.with_facts(trust_remote_code=None)


def _is_known_repository(name: str) -> bool:
    """Return whether a name is that of a repository that this machine has, or has loaded, in any revision."""
    ref = parse_name(name)
    if not ref.is_repo_id:
        return False
    kept = repository_folder(ref.name) / "snapshots"
    return digest_cache().commit(hub.endpoint(), ref.name, "main") is not None or os.path.isdir(kept)


def _check_digest(opened: Bundle, file: Path, stated: str | None) -> None:
    """Raise DigestMismatchError unless the expected digest is that of the bundle or of its contents."""
    if stated is not None and stated.lower() not in (opened.sha256, opened.contents):
        raise DigestMismatchError(
            f"Bundle {file} is not the expected one: its SHA-256 is {opened.sha256}, and that of its contents "
            f"{opened.contents}.\nNothing was imported. Ask for the digest that medvllm export printed.",
            path=str(file),
            files=(),
        )


def _check_against(opened: Bundle, file: Path) -> None:
    """Raise DigestMismatchError unless another lock file has every model exactly as the bundle has it."""
    known = Lock.read(file)
    if not Path(known.file).exists():
        raise SourceError(f"Lock file '{known.file}' does not exist. Nothing was imported.", path=str(known.file))
    for key, model in opened.locked.items():
        approved = _locked_as(known, key)
        if approved is None:
            raise DigestMismatchError(
                f"Model {key!r} of the bundle is not in {file}. It has: {', '.join(sorted(known.models)) or 'none'}.\n"
                "Nothing was imported. Ask for the lock file of what was exported.",
                model=key,
                files=(),
            )
        _check_same(key, approved, model)


def _check_locked(opened: Bundle, lock: Lock) -> None:
    """Raise DigestMismatchError if this machine's lock has other files for a model of the bundle."""
    for key, model in opened.locked.items():
        if (approved := _locked_as(lock, key)) is not None:
            _check_same(key, approved, model)


def _locked_as(lock: Lock, key: str) -> LockedModel | None:
    """Return what a lock has of a model of the bundle: of this version, or else of its name."""
    return lock.models.get(key) or lock.models.get(parse_name(key).name)


def _check_same(key: str, approved: LockedModel, model: LockedModel) -> None:
    approved.check_source(key, model.source, model.commit)
    approved.check(key, model.files)
    if approved.converted and model.converted:
        approved.check(key, model.converted, converted=True)
