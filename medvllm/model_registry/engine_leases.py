"""Leases of models that an engine computes. Importing this imports no torch.

The model is exported and compared with torch once, by a process of its own. A model or an engine that this refuses is
computed by torch, and the log and the receipt say why.
"""

import logging
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from medvllm import engines, settings, sources
from medvllm.catalog import Catalog
from medvllm.classes import class_path
from medvllm.engines import EngineModel, Export, Verdict
from medvllm.engines.vector_modules import Activation, Modules, load_modules
from medvllm.errors import BudgetError, DigestMismatchError
from medvllm.forking import Lock
from medvllm.load_result import LoadResult
from medvllm.metadata import ModelMetadata
from medvllm.model_cache import CachedModel, Need
from medvllm.model_registry.engine_preparation import Preparation, Preparations, Unsuited, prepare
from medvllm.model_registry.entry_resolver import Basis, EntryResolver
from medvllm.model_registry.known_calls import KnownCalls, key_of
from medvllm.model_registry.lease import Lease
from medvllm.model_registry.loaded_models import LoadedModels
from medvllm.names import parse_name
from medvllm.options import Identity, LoadOptions, parse_keep_alive
from medvllm.receipt import Receipt
from medvllm.sources.sentence import Scoring
from medvllm.threads import count_threads

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

    from medvllm.engines import EngineName, Precision

logger = logging.getLogger(__name__)


class PartChooser(Hashable, Protocol):
    """Chooses what an engine computes. Equal ones choose alike."""

    def __call__(self, metadata: ModelMetadata, snapshot: sources.Snapshot) -> str | None: ...


class Gate(Protocol):
    """What a model must keep besides the comparison with torch.

    Attributes:
        content: What `find_difference` depends on besides the models, as JSON values.
    """

    content: Any

    def find_deviation(self, lease: Lease, /) -> str | None:
        """Return how a model deviates from the baseline of its entry."""

    def find_difference(self, lease: Lease, reference: Lease, /) -> str | None:
        """Return what a model in int8 decides in another way than one in float32."""


Fallback = Callable[[], AbstractContextManager[Lease]]


@dataclass(frozen=True)
class EngineTarget:
    """What a call with an engine means, for as long as its fingerprint is current."""

    metadata: ModelMetadata
    snapshot: sources.Snapshot
    options: LoadOptions
    part: str
    folder: "Path"
    basis: Basis
    fingerprint: sources.Fingerprint
    is_lasting: bool


@dataclass(frozen=True)
class Choice:
    """An export that a call may use, and the engine that computes it."""

    target: EngineTarget
    export: Export
    verdict: Verdict
    identity: Identity

    @property
    def metadata(self) -> ModelMetadata:
        """The entry, completed with what the files say."""
        return self.target.metadata

    @property
    def scoring(self) -> Scoring | None:
        """What the files declare about the scores of a cross-encoder."""
        return self.target.snapshot.scoring


class EngineLeases:
    """Leases models that engines compute.

    Attributes:
        release: Ends a lease.
        free_bytes: Returns the bytes that the memory budget of a device has left; None without a budget.

    Args:
        catalog: The entries.
        entries: Finds the entry and the files of a name.
        loaded: What is in memory.
    """

    def __init__(self, catalog: Catalog, entries: EntryResolver, loaded: LoadedModels) -> None:
        self._catalog, self._entries, self._loaded = catalog, entries, loaded
        self._preparations = Preparations()
        self._calls: KnownCalls[Choice] = KnownCalls()
        self._said: set[tuple[str, str, str]] = set()  # why a model is not computed as asked, as the log has said
        self._lock = Lock()  # guards _said
        self.release, self.free_bytes = loaded.cache.release, loaded.cache.free_bytes

    @contextmanager
    def lease(
        self,
        name: "str | os.PathLike[str]",
        options: Mapping[str, Any],
        choose_part: PartChooser,
        engine: "EngineName",
        *,
        precision: "Precision",
        gate: Gate,
        fallback: Fallback,
    ) -> Iterator[Lease]:
        """Lease a model that an engine computes; or the model that `fallback` leases, if no engine may compute it.

        Args:
            name: What the caller gave as the model's name.
            options: The other keywords of the call, also `keep_alive`.
            choose_part: Returns what the engine computes for an entry and its files: "tokens", "head_tokens" or
                "head_texts"; None if no engine can do the task.
            engine: "onnx", "openvino" or "auto".
            precision: "int8" allows it. If it is refused, the engine computes in float32, and the receipt says why.
            gate: Compares the model with the baseline of its entry, and int8 with float32.
            fallback: Leases the model of torch.
        """

        def in_float32(engine: Any) -> AbstractContextManager[Lease]:
            return self.lease(name, options, choose_part, engine, precision="float32", gate=gate, fallback=fallback)

        try:
            choice, cached = self._acquire(name, options, choose_part, engine, precision, gate)
        except Unsuited as unsuited:
            reason: str | None = str(unsuited)
        else:
            lease = Lease(choice, cached, self)
            try:
                reason = self._find_refusal(choice, lease, gate, partial(in_float32, choice.verdict.engine))
                if reason is None:
                    yield lease
                    return
            finally:
                lease.end()
            self._loaded.cache.discard(choice.identity, "refused")
        assert reason is not None
        if precision == "int8":
            with in_float32(engine) as lease:
                if lease.engine is None:
                    lease.engine = {"asked_precision": precision, "reason": reason}
                    self._say(str(name), f"in float32, not in {precision}", reason)
                else:
                    lease.engine["asked_precision"] = precision
                yield lease
            return
        self._say(str(name), f"by torch, not by engine {engine!r}", reason, is_expected=engine == "auto")
        with fallback() as lease:
            lease.engine = {"name": "torch", "asked": engine, "reason": reason}
            yield lease

    def _acquire(
        self,
        name: "str | os.PathLike[str]",
        options: Mapping[str, Any],
        choose_part: PartChooser,
        engine: "EngineName",
        precision: "Precision",
        gate: Gate,
    ) -> tuple[Choice, CachedModel[Identity]]:
        """Return what a call means and its model in memory, leased.

        Raises:
            Unsuited: No engine may compute the model.
        """
        keep_alive = parse_keep_alive(options.get("keep_alive"))
        options = {option: value for option, value in options.items() if option != "keep_alive"}
        call = key_of(name, options)
        key = None if call is None else (call, choose_part, engine, precision)
        hit = partial(self._loaded.cache.hit, lease=True, keep_alive=keep_alive)
        if (found := self._calls.find_trusted(key, hit)) is not None:
            return found
        choice, cached = self._calls.look(key, hit, self._is_current)
        if choice is not None and cached is not None:
            return choice, cached
        if choice is None:
            target = self.resolve(name, LoadOptions.from_kwargs(options), choose_part)
            self._let_go(target)
            choice = self._choose(target, engine, precision)
        for kept in _must_keep(choice, gate):
            if kept and (reason := engines.known_deviation(choice.export, choice.verdict.engine, kept)):
                raise Unsuited(reason)
        load = partial(self._load, choice)
        loaded = self._loaded.cache.get(choice.identity, load, need=_need(choice), lease=True, keep_alive=keep_alive)
        self._calls.put(key, choice, loaded)
        return choice, loaded

    def _let_go(self, target: EngineTarget) -> None:
        """Evict the models of an entry if one of them was opened from files that have changed since."""
        name = target.metadata.name
        self._loaded.evict_outdated(name, target.snapshot)
        graphs = (
            each.model.export
            for each, is_evicted in self._loaded.cache.models()
            if each.identity.name == name and each.identity.engine and not is_evicted
        )
        if any(not export.fingerprint.is_current() for export in graphs):
            self._loaded.evict(name, "replaced")

    def _is_current(self, choice: Choice) -> bool:
        """Return whether a call still means what it meant before, and its files are unchanged."""
        target = choice.target
        return (
            target.is_lasting
            and self._entries.is_current(target)
            and target.fingerprint.is_current()
            and choice.export.fingerprint.is_current()
        )

    def resolve(self, name: "str | os.PathLike[str]", given: LoadOptions, choose_part: PartChooser) -> EngineTarget:
        """Return what a call means.

        Raises:
            Unsuited: No engine can do what it asks for.
        """
        ref = parse_name(name)
        found = self._entries.find(ref, given.revision)
        metadata = found.metadata
        options = given.with_defaults(LoadOptions.from_kwargs(metadata.parameters))
        _check_options(metadata, options)
        snapshot = self._entries.fetch(metadata, given.revision or found.revision)
        metadata = metadata.with_missing_facts(snapshot.declared_facts)
        if (part := choose_part(metadata, snapshot)) is None:
            raise Unsuited("no engine can do this task")
        options = replace(options, device="cpu", dtype="float32", attn_implementation=None, revision=snapshot.commit)
        folder = engines.export_folder(metadata, snapshot, options, part)
        fingerprint = snapshot.fingerprint + found.lock
        is_lasting = ref.kind != "folder"
        return EngineTarget(metadata, snapshot, options, part, folder, found.basis, fingerprint, is_lasting)

    def _choose(self, target: EngineTarget, engine: "EngineName", precision: "Precision") -> Choice:
        """Return the engine that computes a model: the one that was asked for, or the fastest.

        Raises:
            Unsuited: None may, or torch is the fastest.
        """
        candidates = engines.installed_engines() if engine == "auto" else (engine,)
        if not candidates:
            raise Unsuited("no engine is installed")
        found = [self._prepare(target, candidates)] if engine == "auto" or precision == "float32" else []
        if precision == "int8":
            found.append(self._prepare(target, ("onnx",), precision))
        accepted = [
            (verdict, export)
            for export, verdicts in ((each.export, each.verdicts) for each in found)
            if export is not None
            for verdict in verdicts
            if verdict.refusal is None
        ]
        if not accepted:
            raise Unsuited("; ".join(dict.fromkeys(each.refusal for each in found)))
        chosen, export = min(accepted, key=lambda each: each[0].cpu_s)
        if engine == "auto" and chosen.cpu_s >= chosen.torch_cpu_s:
            raise Unsuited(
                f"torch is the fastest here: {chosen.torch_cpu_s:.2f} s, {chosen.engine} {chosen.cpu_s:.2f} s"
            )
        metadata, model_class = target.metadata, export.facts["options"]["model_class"]
        options = replace(target.options, model_class=model_class, dtype=export.precision)
        identity = Identity(
            *(metadata.name, metadata.version, metadata.origin, target.snapshot.identity),
            options,
            export.digest[:16],
            engine=chosen.engine,
        )
        return Choice(target, export, chosen, identity)

    def _prepare(
        self, target: EngineTarget, candidates: tuple[str, ...], precision: "Precision" = "float32"
    ) -> Preparation:
        """Return the export of a model with the verdicts on engines. What is not known yet is made now."""
        given = target.metadata, target.snapshot, target.options, target.part
        folder, source = target.folder, None
        if precision == "int8":
            folder, source = engines.export_folder(*given, precision), target.folder
        return self._preparations.get(folder, candidates, partial(prepare, *given, folder, candidates, source))

    def _load(self, choice: Choice) -> LoadResult:
        """Open an export in its engine: the cache calls this once it has reserved the room."""
        start = time.perf_counter()
        export = choice.export
        model = engines.open_model(export, choice.verdict.engine, count_threads())
        if changed := export.fingerprint.changed_paths():
            raise DigestMismatchError(
                f"{changed[0]} changed after it was verified and before it was used.\n"
                "Load the model again when no program writes to its files.",
                path=str(changed[0]),
                files=tuple(file.name for file in changed),
            )
        choice.target.snapshot.check_unchanged()
        seconds = time.perf_counter() - start
        result = LoadResult(model, model.size_bytes, seconds, "engine", 0, seconds)
        logger.info(
            "opened %r in %s in %.3f s (%.0f MB)",
            *(choice.identity.name, choice.verdict.engine, seconds, result.size_bytes / 1e6),
        )
        if settings.AUDIT_LOADS():
            receipt = self.receipt_of(choice, model, result.size_bytes)
            detail = {"snapshot": receipt.snapshot, "options": receipt.options, "receipt": receipt.digest}
            self._catalog.stored.note_load(choice.target.metadata, detail)
        return result

    def tokenizer_of(self, choice: Choice) -> "PreTrainedTokenizerBase":
        """Return the tokenizer of a choice, opened once. It has what the tasks use of one of transformers."""
        export = choice.export
        key = choice.metadata.name, "engine", export.digest

        def open_tokenizer() -> Any:
            return engines.PlainTokenizer(export.folder / engines.TOKENIZER, export.facts["tokenizer"])

        tokenizer: PreTrainedTokenizerBase = self._loaded.tokenizers.get(key, open_tokenizer)
        return tokenizer

    def modules_of(self, choice: Choice) -> Modules:
        """Return the modules behind the pooling of a choice, loaded once."""
        target = choice.target
        files = target.snapshot.files, target.snapshot.converted
        key = target.metadata.name, "modules", frozenset(item for each in files for item in each.items())

        def load() -> Modules:
            made = load_modules(target.metadata, target.snapshot, _find_activation_of_torch)
            target.snapshot.check_unchanged()
            return made

        modules: Modules = self._loaded.tokenizers.get(key, load)
        return modules

    def receipt_of(self, choice: Choice, model: EngineModel, size_bytes: int) -> Receipt:
        """Return the receipt of a choice, whose model is in memory."""
        target, facts = choice.target, choice.export.facts
        snapshot = target.snapshot
        if snapshot.locked and not target.fingerprint.is_current():
            snapshot = replace(snapshot, locked=sources.is_locked(target.metadata, snapshot))
        proof = sources.prove(snapshot, size_bytes, facts["tokenizer_sha256"], facts["labels_sha256"])
        receipt = Receipt.of(target.metadata, choice.identity, snapshot.commit, proof, snapshot.bundle)
        return replace(receipt, engine=model.describe(choice.verdict))

    def _find_refusal(
        self, choice: Choice, lease: Lease, gate: Gate, exact: Callable[[], AbstractContextManager[Lease]]
    ) -> str | None:
        """Return why an engine must not serve: the baseline of the entry or, in int8, what float32 decides.

        Each is computed once for an export.
        """

        def compare() -> str | None:
            with exact() as reference:
                return gate.find_difference(lease, reference)

        checks: tuple[Callable[[], str | None], ...] = (partial(gate.find_deviation, lease), compare)
        for kept, check in zip(_must_keep(choice, gate), checks, strict=True):
            try:
                found = engines.find_deviation(choice.export, choice.verdict.engine, kept, check) if kept else None
            except BudgetError:
                found = "the memory budget has no room to compare it with float32"
            if found is not None:
                return found
        return None

    def _say(self, name: str, how: str, reason: str, *, is_expected: bool = False) -> None:
        """Log once why a model is not computed as the caller asked. It is a warning, unless that is expected."""
        with self._lock:
            if (said := (name, how, reason)) in self._said:
                return
            self._said.add(said)
        level = logging.INFO if is_expected else logging.WARNING
        logger.log(level, "%r is computed %s: %s", name, how, reason)


def _must_keep(choice: Choice, gate: Gate) -> tuple[Any, Any]:
    """Return what an engine must keep: the baseline of the entry, and what float32 decides; empty if not so."""
    metadata = choice.target.metadata
    texts = [gate.content, metadata.behaviour._asdict()] if choice.export.precision == "int8" else ()
    return metadata.baseline, texts


def _find_activation_of_torch(name: str) -> Activation | None:
    logger.info("torch is imported for the activation %r", name)
    from medvllm import loading

    return loading.find_activation(name)


def _check_options(metadata: ModelMetadata, options: LoadOptions) -> None:
    """Raise Unsuited if a load asks for what no engine can do."""
    if metadata.is_adapter:
        raise Unsuited("it is an adapter")
    if metadata.source.trust_remote_code:
        raise Unsuited("it runs code of its own")
    if options.device not in (None, "cpu"):
        raise Unsuited(f"the device is {options.device!r}, and engines run on the CPU: state device='cpu' to use one")
    if options.dtype not in (None, "auto", "float32"):
        raise Unsuited(f"the dtype is {options.dtype!r}, and engines compute in float32")
    for path in (*metadata.class_paths, class_path(options.model_class)):
        if path is not None and not path.startswith(("transformers:", "transformers.")):
            raise Unsuited(f"its class {path!r} is not one of transformers")


def _need(choice: Choice) -> Need:
    keep_alive = choice.target.metadata.memory.keep_alive
    keep_alive_s = settings.KEEP_ALIVE() if keep_alive is None else parse_keep_alive(keep_alive)
    export, stored = choice.export, choice.target.snapshot.dtype
    size_bytes = engines.memory_bytes(export)
    return Need("cpu", size_bytes, "headers", None, keep_alive_s, dtype=export.precision, stored_dtype=stored)
