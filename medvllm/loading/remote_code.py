"""Remote code: a repository's own modules, run from verified bytes if an entry pins them and an operator allows it.

transformers would copy them into a cache and run what it finds there. Whoever can write to that cache can change a copy
without changing its size and time, or add an `__init__.py` or bytecode. Here, only the files that were hashed run.
"""

import hashlib
import importlib
import logging
import re
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import dynamic_module_utils
from transformers.models.auto.auto_factory import add_generation_mixin_to_remote_model

from medvllm import settings
from medvllm.errors import DigestMismatchError, LoadError, MedVLLMError, MissingDependencyError, UnsafeWeightsError
from medvllm.forking import Lock
from medvllm.metadata import ModelMetadata
from medvllm.sources.json_files import read_json
from medvllm.sources.snapshot import Snapshot

logger = logging.getLogger(__name__)

# No load asks on standard input whether code may run: with 0 seconds to answer, transformers refuses.
dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0

_REFERENCE = re.compile(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)", re.ASCII)  # module.Class
_LOCK = Lock()  # guards _CLASSES, and the creation of packages
_CLASSES: dict[tuple[type, str], type[Any]] = {}  # (a class, its Auto class) -> the class to use


def check_allowed(metadata: ModelMetadata) -> None:
    """Raise UnsafeWeightsError if an entry trusts its repository's code and the operator does not allow that."""
    setting = settings.TRUST_REMOTE_CODE
    if metadata.source.trust_remote_code and not setting():
        raise UnsafeWeightsError(
            f"Model {metadata.name!r} runs its own code, which this installation does not allow ({setting.name}).\n"
            f"If you trust that code: export {setting.name}=on",
            model=metadata.name,
        )


def untrusted_code_error(metadata: ModelMetadata, snapshot: Snapshot, auto_map: object) -> UnsafeWeightsError:
    """Return the error for a model whose `auto_map` names code that its entry does not trust."""
    setting = settings.TRUST_REMOTE_CODE
    advice = "No commit pins the code of a folder. Use your own class: register(…, model_class='module:Class')"
    if snapshot.repo:
        advice = (
            "If you trust that code, register the model with: "
            f"register(…, model_path={snapshot.repo!r}, revision={snapshot.commit!r}, trust_remote_code=True)"
        )
        advice += "" if setting() else f"\nThen allow it: export {setting.name}=on"
    return UnsafeWeightsError(
        f"Model {metadata.name!r} needs its own code (auto_map: {str(auto_map)[:200]}), "
        f"which no entry trusts.\n{advice}",
        model=metadata.name,
    )


def refuse_untrusted_code(metadata: ModelMetadata, snapshot: Snapshot) -> None:
    """Raise UnsafeWeightsError if the checkpoint names code of its own that the entry does not trust."""
    if (named := snapshot.config.get("auto_map")) and not metadata.source.trust_remote_code:
        raise untrusted_code_error(metadata, snapshot, named)


def warn_of_untrusted_code(metadata: ModelMetadata, snapshot: Snapshot, cls: type[Any]) -> None:
    """Log a warning if a class of transformers replaces the checkpoint's own and the entry does not choose it.

    Both classes share a name, and often weights. They may still compute something else, for example with bidirectional
    attention.
    """
    named = [ref for auto, ref in auto_map(snapshot).items() if auto.startswith("AutoModel")]
    if named and not metadata.source.trust_remote_code and metadata.model_class is None:
        logger.warning(
            "%r has its own model code (auto_map: %s), which no entry trusts; %s of transformers is used. "
            "If that computes the same, register it with: model_class='transformers:%s'",
            *(metadata.name, str(named[0])[:100], cls.__name__, cls.__name__),
        )


def import_model_class(metadata: ModelMetadata, snapshot: Snapshot) -> type[Any] | None:
    """Return the repository's own class for the checkpoint's architecture, or for AutoModel; None if it has none."""
    named = snapshot.config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    autos = {auto: ref for auto, ref in auto_map(snapshot).items() if auto.startswith("AutoModel")}
    exact = [auto for auto, ref in autos.items() if str(ref).rpartition(".")[2] == architecture]
    return import_own_class(metadata, snapshot, exact[0] if exact else "AutoModel")


def import_own_class(metadata: ModelMetadata, snapshot: Snapshot, auto: str) -> type[Any] | None:
    """Return the repository's own class for an Auto class; None if it has none, or is not trusted.

    Args:
        metadata: The entry.
        snapshot: The model's files.
        auto: The name of the Auto class.

    Raises:
        UnsafeWeightsError: The operator does not allow it, or the code belongs to another repository.
        MissingDependencyError: The code needs a package that is not installed.
        LoadError: The code cannot be imported.
    """
    if not metadata.source.trust_remote_code:
        return None
    reference = auto_map(snapshot, auto).get(auto)
    if isinstance(reference, list):  # for tokenizers: the slow one, then the fast one
        reference = next((ref for ref in reversed(reference) if ref is not None), None)
    if reference is None:
        return None
    check_allowed(metadata)
    repo, foreign, _ = str(reference).rpartition("--")
    if foreign:
        raise UnsafeWeightsError(
            f"The code of model {metadata.name!r} belongs to another repository, {repo[:100]!r}, "
            "whose commit is not pinned.\n"
            "Use your own class: register(…, model_class='module:Class', config_class='module:Class')",
            model=metadata.name,
        )
    match = _REFERENCE.fullmatch(str(reference))
    if match is None or f"{snapshot.root}{match[1]}.py" not in snapshot.files:
        raise LoadError(
            f"The code of model {metadata.name!r} lacks {auto}: {str(reference)[:200]!r} is not at the top of "
            f"{snapshot.identity}.",
            model=metadata.name,
        )
    try:
        found = getattr(importlib.import_module(f"{_package(snapshot)}.{match[1]}"), match[2])
        with _LOCK:
            if (found, auto) not in _CLASSES:
                found.register_for_auto_class(auto)  # save_pretrained then saves its code, too
                _CLASSES[found, auto] = add_generation_mixin_to_remote_model(found)  # type: ignore[no-untyped-call]
            return _CLASSES[found, auto]
    except MedVLLMError:
        raise
    except Exception as error:  # the code may raise anything when it is imported
        kind = MissingDependencyError if isinstance(error, ImportError) else LoadError
        raise kind(
            f"The code of model {metadata.name!r} cannot be used: {type(error).__name__}: {str(error)[:300]}",
            model=metadata.name,
        ) from error


def auto_map(snapshot: Snapshot, auto: str = "AutoModel") -> dict[str, Any]:
    """Return the checkpoint's `auto_map`: its own classes by Auto class. The tokenizer has its own file."""
    content = snapshot.config
    if auto == "AutoTokenizer":
        name = f"{snapshot.root}tokenizer_config.json"
        content = read_json(snapshot.file(name)) if name in snapshot.files else {}
    named = content.get("auto_map")
    if auto == "AutoTokenizer" and isinstance(named, list):  # older repositories have a list
        named = {auto: named}
    return named if isinstance(named, dict) else {}


class _Modules(MetaPathFinder, Loader):
    """Finds and runs the modules of one snapshot. Bytecode is neither read nor written."""

    def __init__(self, package: str, snapshot: Snapshot) -> None:
        self._package, self._snapshot = package, snapshot

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, module = fullname.rpartition(".")
        file = f"{self._snapshot.root}{module}.py"
        if package != self._package or file not in self._snapshot.files:
            return None
        return spec_from_file_location(fullname, self._snapshot.file(file), loader=self)

    def exec_module(self, module: ModuleType) -> None:
        file = Path(str(module.__file__))
        content = file.read_bytes()
        if hashlib.sha256(content).hexdigest() != self._snapshot.files[self._snapshot.root + file.name].sha256:
            raise DigestMismatchError(
                f"{file} has changed since it was verified, so it is not run.", path=str(file), files=(file.name,)
            )
        exec(compile(content, file, "exec", dont_inherit=True), vars(module))


def _package(snapshot: Snapshot) -> str:
    """Return the name of the package of the snapshot's modules. Each commit has its own."""
    modules = sorted((name, digest.sha256) for name, digest in snapshot.files.items() if name.endswith(".py"))
    key = hashlib.sha256(repr((snapshot.identity, modules)).encode()).hexdigest()
    name = f"medvllm_code_{key[:40]}"
    with _LOCK:
        if name not in sys.modules:
            sys.meta_path.append(_Modules(name, snapshot))
            # The package has no folder, so no other finder can find its modules.
            sys.modules[name] = module_from_spec(ModuleSpec(name, None, is_package=True))
    return name
