"""What a folder of the user's own says about its model. It is read at registration, from JSON files and headers alone.

Listings show it, with its provenance. A load reads the folder again, because the model may have been trained further.
"""

import re
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medvllm.errors import LoadError, SnapshotNotFoundError, SourceError, WeightsMismatchError
from medvllm.heads import task_of_adapter, task_of_class
from medvllm.metadata import READ, ModelMetadata
from medvllm.names import parse_name
from medvllm.sources.digest import Digest
from medvllm.sources.fingerprint import Fingerprint
from medvllm.sources.json_files import read_json
from medvllm.sources.layout import decide_layout, list_files
from medvllm.sources.snapshot import Snapshot, check_complete

_HEADS = ("classifier.out_proj.weight", "classifier.weight", "score.weight")
_UNLIMITED = 10**9  # tokenizers give 1e30 if they know no length
# Model types whose positions begin after that of the padding token.
_SHIFTED = {"roberta", "xlm-roberta", "camembert", "longformer", "mpnet", "roberta-prelayernorm", "xlm-roberta-xl"}
# Model types that can use all of their positions.
_PLAIN = {"bert", "distilbert", "electra", "albert", "gpt2", "deberta", "deberta-v2", "modernbert", "big_bird"}
_MAX_LABELS = 1000


def read_folder_facts(entry: ModelMetadata) -> dict[str, Any]:
    """Return the facts that an entry's folder states and the entry does not, by keyword, with their provenance.

    Raises:
        SourceError: The folder does not exist, or holds no model that can be loaded.
        LoadError: The installed transformers does not know the model's architecture.
        WeightsMismatchError: The labels of the entry do not fit the model.
    """
    folder = Path(parse_name(entry.location).name)
    snapshot = _snapshot(entry, folder)
    if entry.is_adapter:
        stated_facts = _adapter_facts(snapshot)
    else:
        _check_architecture(entry, snapshot.config)
        _check_labels(entry, snapshot)
        stated_facts = _facts(snapshot)
    found = {fact: value for fact, value in stated_facts.items() if getattr(entry.behaviour, fact) is None}
    if not found:
        return {}
    return found | {"provenance": dict.fromkeys(found, READ) | entry.provenance}


def nameless_labels_error(name: str, last: int, examples: tuple[str, str] = ("O", "B-DISEASE")) -> WeightsMismatchError:
    """Return the error for a model whose labels are LABEL_0, LABEL_1 and so on; `examples` are names for the advice."""
    first, second = examples
    return WeightsMismatchError(
        f"Model {name!r} names its labels LABEL_0 to LABEL_{last}, which do not tell what they stand for.\n"
        f'Register it with their names, in order: --fact \'id2label=["{first}", "{second}"]\', '
        f"or register(…, id2label=['{first}', '{second}'])",
        model=name,
    )


def _snapshot(entry: ModelMetadata, folder: Path) -> Snapshot:
    """Return a folder as a snapshot, without hashing its files."""
    try:
        is_folder = folder.is_dir()
    except OSError:
        is_folder = False
    if not is_folder:
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise SnapshotNotFoundError(
            f"Folder '{str(folder)[:300]}' {what}.\n"
            "Name the folder that holds config.json. To register a folder of another machine: medvllm catalog apply",
            path=str(folder),
        )
    try:
        layout = decide_layout(
            folder,
            list_files(folder),
            lambda name, kind: read_json(folder / name, kind),
            extra=entry.source.extra_files,
            adapter=entry.is_adapter,
        )
        snapshot = Snapshot(folder, None, None, layout, dict.fromkeys(layout.files, Digest(0, "")), Fingerprint())
        check_complete(snapshot)
        if not layout.pickles:
            snapshot.check_config_and_headers()
    except PermissionError as error:
        raise SourceError(f"Folder '{folder}' cannot be read: {error}.", path=str(folder)) from error
    return snapshot


def _check_architecture(entry: ModelMetadata, config: dict[str, Any]) -> None:
    """Raise LoadError for an unknown architecture. A class of the user's own needs no known one."""
    if any(entry.class_paths) or entry.source.trust_remote_code:
        return
    kind = entry.behaviour.architecture or config.get("model_type")
    if kind is None:
        raise LoadError(
            f"The config of model {entry.name!r} has no model_type, so its architecture is unknown.\n"
            "Register it with the architecture: register(…, architecture='bert')",
            model=entry.name,
        )
    if not _is_known(kind):
        raise LoadError(
            f"Model {entry.name!r} has the architecture {str(kind)[:80]!r}, "
            f"which transformers {_version()} does not have.",
            model=entry.name,
        )


def _is_known(kind: object) -> bool:
    """Return whether transformers names an architecture. Its files are searched, as importing it takes seconds."""
    package = find_spec("transformers")
    if package is None or package.origin is None:
        return True
    auto = Path(package.origin).parent / "models" / "auto"
    files = [auto / name for name in ("auto_mappings.py", "configuration_auto.py")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.is_file()]
    return not texts or any(f'"{kind}"' in text for text in texts)


def _version() -> str:
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "(unknown version)"


def _check_labels(entry: ModelMetadata, snapshot: Snapshot) -> None:
    """Raise WeightsMismatchError unless there is one label for each class, and an entity model's labels have names."""
    if any(entry.class_paths):
        return
    stated, task = entry.behaviour.id2label, _head(snapshot.config)
    if task not in ("ner", "classify"):
        return
    classes = _classes(snapshot)
    if stated is not None and classes is not None and len(stated) != classes:
        raise WeightsMismatchError(
            f"The entry of {entry.name!r} has {len(stated)} names for {classes} labels (id2label).\n"
            f"Register it with the name of each class, in order: register(…, id2label=[…]), {classes} names",
            model=entry.name,
        )
    labels = snapshot.config.get("id2label")
    named = list(labels.values()) if isinstance(labels, dict) else []
    if stated is None and task == "ner" and all(re.fullmatch(r"LABEL_\d+", str(label)) for label in named):
        raise nameless_labels_error(entry.name, (classes or len(named) or 2) - 1)


def _classes(snapshot: Snapshot) -> int | None:
    """Return the number of classes of a checkpoint's head, from its weights or else from its config."""
    if not snapshot.layout.pickles:
        for header in snapshot.headers:
            for name in _HEADS:
                if name in header and header[name]["shape"]:
                    return int(header[name]["shape"][0])
    labels = snapshot.config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else None


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return the facts that the folder states, by keyword."""
    config, declaration = snapshot.config, snapshot.declaration
    declared = {} if declaration is None or declaration.refusal else snapshot.declared_facts
    head = _head(config)
    is_reranker = head == "classify" and snapshot.scoring is not None and _classes(snapshot) in (1, None)
    task = "embed" if declared else "rerank" if is_reranker else None if declaration else head or "embed"
    kind = config.get("model_type")
    facts: dict[str, Any] = {
        "task": task,
        "architecture": kind if isinstance(kind, str) else None,
        "max_length": _length(snapshot, kind),
        "id2label": _labels(config) if head in ("ner", "classify") else None,
        **declared,
    }
    return {fact: value for fact, value in facts.items() if value is not None}


def _adapter_facts(snapshot: Snapshot) -> dict[str, Any]:
    """Return the facts that the folder of an adapter states. Its base has the others."""
    declaration = snapshot.declaration
    declared = {} if declaration is None or declaration.refusal else snapshot.declared_facts
    task = task_of_adapter(snapshot.config.get("task_type"))
    return declared if task is None else {"task": task, **declared}


def _head(config: dict[str, Any]) -> str | None:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else named
    return task_of_class(first) if isinstance(first, str) else None


def _labels(config: dict[str, Any]) -> tuple[str, ...] | None:
    """Return the label of each class, in order, if each class has one."""
    labels = config.get("id2label")
    if not isinstance(labels, dict) or len(labels) > _MAX_LABELS:
        return None
    if set(labels) != {str(number) for number in range(len(labels))}:
        return None
    ordered = tuple(labels[str(number)] for number in range(len(labels)))
    return ordered if all(isinstance(label, str) and label for label in ordered) else None


def _length(snapshot: Snapshot, kind: object) -> int | None:
    """Return the number of tokens that a model can read at once, if tokenizer and config agree on it."""
    file = f"{snapshot.root}tokenizer_config.json"
    stated = read_json(snapshot.file(file)).get("model_max_length") if file in snapshot.files else None
    own = int(stated) if isinstance(stated, int | float) and 0 < stated < _UNLIMITED else None
    positions, pad = (snapshot.config.get(field) for field in ("max_position_embeddings", "pad_token_id"))
    if type(positions) is not int or positions < 1:
        return own
    if kind in _SHIFTED:
        positions -= (pad if isinstance(pad, int) else 1) + 1
    elif kind not in _PLAIN:
        return own if own is not None and own < positions - 2 else None
    return min(positions, own or positions)
