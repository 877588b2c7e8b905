"""What a sentence-transformers folder declares of its vectors: read once, whole, and understood or refused by name.

Both formats are read: that of sentence-transformers 5.4 and later, and the older one with a flag for each pooling mode.
"""

import json
import platform
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib import metadata as packages
from typing import Any, get_args

from medvllm.facts import PoolingMode, Texts
from medvllm.sources.layout import SENTENCE_CONFIGS
from medvllm.sources.snapshot import Snapshot, read_json

__all__ = ["Declaration", "Dense", "LayerNorm", "Normalize", "declared"]

UNDERSTOOD = "6.2.0"  # the sentence-transformers whose vectors these are

# Prompts that every folder has, empty where it does not say otherwise.
PROMPTS = ("query", "document")

# The flags of the older format, in the order in which their vectors are joined.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_INPUT = "sentence_embedding"
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
# How a Transformer may be loaded without its vectors being others.
_HARMLESS = {"attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors"}
_ARGUMENTS = [f"{of}_{kind}" for of in ("model", "tokenizer", "processor", "config") for kind in ("args", "kwargs")]


@dataclass(frozen=True)
class Dense:
    """A linear layer on vectors, with an activation."""

    path: str
    in_features: int
    out_features: int
    bias: bool
    activation: str  # the dotted name of its class
    residual: bool


@dataclass(frozen=True)
class LayerNorm:
    """A layer that centres and scales vectors."""

    path: str
    dimension: int


@dataclass(frozen=True)
class Normalize:
    """A layer that scales vectors to unit length."""

    path: str


Module = Dense | LayerNorm | Normalize


@dataclass(frozen=True)
class Declaration:
    """What a folder says of its vectors. `refusal` says what of it is not understood: then none can be made."""

    max_length: int | None = None
    lowercases: bool = False  # whether texts are lowercased, whatever the tokenizer does
    pooling: PoolingMode | tuple[PoolingMode, ...] | None = None
    include_prompt: bool = True
    modules: tuple[Module, ...] = ()  # what follows the pooling, in order
    prompts: Mapping[str, str] | None = None
    default_prompt_name: str | None = None
    truncate_dim: int | None = None
    refusal: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What completes an entry, by the keywords of its facts."""
        last = self.modules[-1] if self.modules else None
        facts: dict[str, Any] = {
            "max_length": self.max_length,
            "pooling": self.pooling,
            "include_prompt": None if self.include_prompt else False,
            # What is cut after it was scaled is not of unit length.
            "normalize": True if isinstance(last, Normalize) and self.truncate_dim is None else None,
            "prompts": Texts(self.prompts) if self.prompts else None,
            "default_prompt_name": self.default_prompt_name,
            "truncate_dim": self.truncate_dim,
        }
        return {fact: value for fact, value in facts.items() if value is not None}


class _Refused(Exception):
    """Something in the folder is not understood; the message says what, to follow the folder's name."""


def declared(snapshot: Snapshot) -> Declaration | None:
    """Return what a snapshot's folder declares, or None when sentence-transformers did not write it.

    SourceError: a file of it is damaged.
    """
    if not _has(snapshot, "modules.json"):
        return None
    try:
        return _understood(snapshot, _json(snapshot, "modules.json", list))
    except _Refused as refused:
        return Declaration(refusal=str(refused))


def _understood(snapshot: Snapshot, listed: list[Any]) -> Declaration:
    """Return what the folder declares, or raise _Refused at the first thing that is not understood."""
    kinds = [_kind(module) for module in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        order = " and ".join(kinds[:2]) or "nothing"
        raise _Refused(f"begins with {order} in modules.json, where medvllm runs a Transformer and a Pooling")
    if len({module["name"] for module in listed}) != len(listed):
        raise _Refused("has two modules of one name in modules.json")
    paths = [module["path"] for module in listed]  # folders of the model's, as the layout knows
    transformer = _transformer(snapshot, paths[0])
    pooling, width = _pooling(snapshot, paths[1])
    modules: list[Module] = []
    for kind, path in zip(kinds[2:], paths[2:], strict=True):
        if kind not in _MODULES:
            raise _Refused(f"has a second {kind} in modules.json")
        module = _MODULES[kind](snapshot, path)
        width = module.out_features if isinstance(module, Dense) else width
        modules += [module] if module is not None else []
    return Declaration(**transformer, **pooling, modules=tuple(modules), **_whole(snapshot, width))


def _kind(module: Any) -> str:
    """Return the class of a module, without where sentence-transformers has kept it over the years."""
    if not isinstance(module, dict) or not isinstance(module.get("type"), str):
        raise _Refused("lists a module without a type in modules.json")
    _check_known(module.keys() - {"idx", "name", "path", "type", "kwargs"}, "modules.json")
    stated: str = module["type"]
    kind = stated.rpartition(".")[2]
    if stated not in _types(kind):
        raise _Refused(f"has the module {stated[:200]!r}, which medvllm does not run")
    if lacking := next((key for key in ("name", "path") if not isinstance(module.get(key), str)), None):
        raise _Refused(f"lists a {kind} without a {lacking} in modules.json")
    if module.get("kwargs"):
        raise _Refused(f"passes kwargs to its {kind} in modules.json")
    return kind


def _types(kind: str) -> set[str]:
    if kind not in ("Transformer", "Pooling", *_MODULES):
        return set()
    file = {"LayerNorm": "layer_norm"}.get(kind, kind.lower())
    homes = ("sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules")
    old = "sentence_transformers.models"
    return {f"{old}.{kind}", f"{old}.{kind}.{kind}"} | {
        f"{home}{part}.{kind}" for home in homes for part in ("", f".{file}")
    }


def _transformer(snapshot: Snapshot, path: str) -> dict[str, Any]:
    if f"{path}/".lstrip("/") != snapshot.root:
        raise _Refused(f"has its Transformer in {path or '.'!r}, and its config.json in {snapshot.root or '.'!r}")
    names = (f"{snapshot.root}{file}" for file in SENTENCE_CONFIGS)
    read = ((file, _json(snapshot, file)) for file in names if _has(snapshot, file))
    file, config = next(((file, config) for file, config in read if config), ("", {}))
    config = dict(config)
    length = _take(config, file, "max_seq_length", lambda value: value is None or _is_count(value))
    lowercases = _take(config, file, "do_lower_case", _is_bool, False)
    _take(config, file, "unpad_inputs", lambda value: value is None or type(value) is bool)
    _take(config, file, "transformer_task", lambda value: value == "feature-extraction", "feature-extraction")
    _take(config, file, "modality_config", lambda value: value == _TEXT, _TEXT)
    _take(config, file, "module_output_name", lambda value: value == "token_embeddings", "token_embeddings")
    for key in ("tokenizer_name_or_path", "query_length", "document_length", "query_expansion"):
        _take(config, file, key, lambda value: value is None)
    _take(config, file, "processing_kwargs", lambda value: value in (None, {}))
    for key in _ARGUMENTS:
        _take(config, file, key, lambda value: isinstance(value, dict) and value.keys() <= _HARMLESS, {})
    _check_known(config, file)
    return {"max_length": length, "lowercases": lowercases}


def _pooling(snapshot: Snapshot, path: str) -> tuple[dict[str, Any], int | None]:
    """Return what the Pooling declares, and how many numbers its vectors have, where it says so."""
    file, config = _config(snapshot, path)
    sizes = [_take(config, file, key, _is_count) for key in ("embedding_dimension", "word_embedding_dimension")]
    included = _take(config, file, "include_prompt", _is_bool, True)
    flags = {key: _take(config, file, key, _is_bool) for key in _FLAGS if key in config}
    flagged = tuple(mode for key, mode in _FLAGS.items() if flags.get(key)) or ("mean",)
    stated = _take(config, file, "pooling_mode", _is_pooling, flagged)
    modes = (stated,) if isinstance(stated, str) else tuple(stated)
    if flags and modes != flagged:
        raise _Refused(f"has both pooling_mode {_shown(stated)} and the flags of {_shown(flagged)} in {file}")
    _check_known(config, file)
    size = sizes[0] or sizes[1]
    if size != snapshot.config.get("hidden_size", size):  # its vectors are as wide as they are, whatever it says
        size = None
    pooling = {"pooling": modes[0] if len(modes) == 1 else modes, "include_prompt": included}
    return pooling, size * len(modes) if size else None


def _dense(snapshot: Snapshot, path: str) -> Dense:
    file, config = _config(snapshot, path)
    taken, given = (_take(config, file, key, _is_count) for key in ("in_features", "out_features"))
    if taken is None or given is None:
        raise _Refused(f"has no {'in' if taken is None else 'out'}_features in {file}")
    bias = _take(config, file, "bias", _is_bool, True)
    activation = _take(config, file, "activation_function", _is_activation, "torch.nn.modules.activation.Tanh")
    residual = _take(config, file, "use_residual", _is_bool, False)
    _check_ports(config, file)
    _check_known(config, file)
    return Dense(path, taken, given, bias, activation, residual)


def _layer_norm(snapshot: Snapshot, path: str) -> LayerNorm:
    file, config = _config(snapshot, path)
    dimension = _take(config, file, "dimension", _is_count)
    if dimension is None:
        raise _Refused(f"has no dimension in {file}")
    _check_known(config, file)
    return LayerNorm(path, dimension)


def _normalize(snapshot: Snapshot, path: str) -> Normalize:
    file, config = _config(snapshot, path, optional=True)
    _check_ports(config, file)
    _check_known(config, file)
    return Normalize(path)


def _dropout(snapshot: Snapshot, path: str) -> None:
    """Nothing is dropped once a model is trained."""
    file, config = _config(snapshot, path, optional=True)
    _take(config, file, "dropout", lambda value: type(value) in (int, float) and 0 <= value <= 1)
    _check_known(config, file)


_MODULES: dict[str, Callable[[Snapshot, str], Module | None]] = {
    "Dense": _dense,
    "LayerNorm": _layer_norm,
    "Normalize": _normalize,
    "Dropout": _dropout,
}


def _whole(snapshot: Snapshot, width: int | None) -> dict[str, Any]:
    """Return what is declared of the model as a whole; its vectors have `width` numbers, where that is known."""
    file = "config_sentence_transformers.json"
    config = dict(_json(snapshot, file)) if _has(snapshot, file) else {}
    for key in ("__version__", "similarity_fn_name"):  # how it was made, and how its vectors are compared
        config.pop(key, None)
    _take(config, file, "model_type", lambda value: value == "SentenceTransformer", "SentenceTransformer")
    _requirements(_take(config, file, "requirements", lambda value: value is None or isinstance(value, dict)))
    prompts = config.pop("prompts", {})
    if not isinstance(prompts, dict) or not all(text is None or isinstance(text, str) for text in prompts.values()):
        raise _Refused(f"has prompts that are no texts by name in {file}")
    prompts = {name: text or "" for name, text in prompts.items() if text or name not in PROMPTS}
    default = _take(config, file, "default_prompt_name", lambda value: value is None or isinstance(value, str))
    if default is not None and default not in (*prompts, *PROMPTS):
        raise _Refused(f"has the default prompt {default[:80]!r}, which is not among its prompts, in {file}")
    kept = _take(config, file, "truncate_dim", lambda value: value is None or _is_count(value))
    kept = None if kept is None or (width is not None and kept >= width) else kept
    _check_known(config, file)
    return {"prompts": prompts, "default_prompt_name": default, "truncate_dim": kept}


def _requirements(requirements: Mapping[str, Any] | None) -> None:
    """Raise _Refused unless the packages that the folder asks for are here."""
    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    for package, wanted in (requirements or {}).items():
        stated = wanted.get("specifier") if isinstance(wanted, dict) else wanted
        try:
            fits = SpecifierSet(str(stated)).contains(_version(package), prereleases=True)
        except (packages.PackageNotFoundError, InvalidSpecifier, ValueError):
            fits = False
        if not fits:
            raise _Refused(f"requires {package[:80]!r} {_shown(stated)}, which is not here")


def _version(package: str) -> str:
    if package in ("sentence-transformers", "sentence_transformers"):
        return UNDERSTOOD
    if package == "python":
        return platform.python_version()
    return packages.version({"pytorch": "torch"}.get(package, package))


def _config(snapshot: Snapshot, path: str, *, optional: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the name of a module's config.json and a copy of its content."""
    file = f"{path or '.'}/config.json"
    if path and _has(snapshot, file):
        return file, dict(_json(snapshot, file))
    if not optional:
        raise _Refused(f"has no {file} of that module")
    return file, {}


def _check_ports(config: dict[str, Any], file: str) -> None:
    """Raise _Refused unless a module takes the vector of a text, and gives it back."""
    _take(config, file, "module_input_name", lambda value: value == _INPUT, _INPUT)
    _take(config, file, "module_output_name", lambda value: value in (None, _INPUT))


def _take(config: dict[str, Any], file: str, key: str, fits: Callable[[Any], bool], default: Any = None) -> Any:
    """Take a key out of a config and return its value, the default without one; _Refused unless it is understood."""
    if key not in config:
        return default
    value = config.pop(key)
    if not fits(value):
        raise _Refused(f"has {key} {_shown(value)} in {file}, which medvllm does not run")
    return value


def _check_known(keys: Collection[str], file: str) -> None:
    """Raise _Refused when keys are left that nothing here understands."""
    if keys:
        raise _Refused(f"has {min(keys)[:80]!r} in {file}, which medvllm does not know")


def _is_bool(value: Any) -> bool:
    return type(value) is bool


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _is_pooling(value: Any) -> bool:
    modes = [value] if isinstance(value, str) else value
    return isinstance(modes, list) and bool(modes) and all(mode in get_args(PoolingMode) for mode in modes)


def _is_activation(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("torch.nn.")


def _has(snapshot: Snapshot, name: str) -> bool:
    return name in snapshot.files


def _json(snapshot: Snapshot, name: str, kind: type = dict) -> Any:
    return read_json(snapshot.file(name), kind=kind)


def _shown(value: Any) -> str:
    return json.dumps(value, default=str)[:80]
