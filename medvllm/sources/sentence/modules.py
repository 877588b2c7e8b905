"""The modules of a folder: a Transformer, a Pooling, and layers on the vectors."""

from collections.abc import Callable
from typing import Any, get_args

from medvllm.facts import PoolingMode
from medvllm.sources.json_files import read_json
from medvllm.sources.layout import SENTENCE_CONFIGS
from medvllm.sources.sentence.declaration import Dense, LayerNorm, Module, Normalize
from medvllm.sources.sentence.fields import Fields, Refused, check_known, is_bool, is_count, is_none, shorten
from medvllm.sources.sentence.folder import ModelFiles, read_module_fields

# The flags of the older format, in the order in which their vectors are concatenated.
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_VECTOR = "sentence_embedding"
_TEXT = {"text": {"method": "forward", "method_output_name": "last_hidden_state"}}
# Arguments of a Transformer that do not change its vectors.
_HARMLESS = {"attn_implementation", "low_cpu_mem_usage", "trust_remote_code", "use_safetensors"}
_ARGUMENTS = [f"{of}_{kind}" for of in ("model", "tokenizer", "processor", "config") for kind in ("args", "kwargs")]


def read_kind(module: Any) -> str:
    """Return the class name of a module in modules.json, without its package, which has changed over the years."""
    if not isinstance(module, dict) or not isinstance(module.get("type"), str):
        raise Refused("lists a module without a type in modules.json")
    check_known(module.keys() - {"idx", "name", "path", "type", "kwargs"}, "modules.json")
    path: str = module["type"]
    kind = path.rpartition(".")[2]
    if path not in _class_paths(kind):
        raise Refused(f"has the module {path[:200]!r}, which medvllm does not support")
    if missing := next((key for key in ("name", "path") if not isinstance(module.get(key), str)), None):
        raise Refused(f"lists a {kind} without a {missing} in modules.json")
    if module.get("kwargs"):
        raise Refused(f"passes kwargs to its {kind} in modules.json")
    return kind


def read_transformer(model: ModelFiles, path: str) -> dict[str, Any]:
    """Return what the Transformer declares, as keywords of a Declaration."""
    if f"{path}/".lstrip("/") != model.root:
        raise Refused(f"has its Transformer in {path or '.'!r}, but its config.json in {model.root or '.'!r}")
    fields = _transformer_fields(model)
    length = fields.read("max_seq_length", lambda value: value is None or is_count(value))
    lowercases = fields.read("do_lower_case", is_bool, False)
    fields.read("unpad_inputs", lambda value: value is None or is_bool(value))
    fields.read("transformer_task", lambda value: value == "feature-extraction")
    fields.read("modality_config", lambda value: value == _TEXT)
    fields.read("module_output_name", lambda value: value == "token_embeddings")
    for name in ("tokenizer_name_or_path", "query_length", "document_length", "query_expansion"):
        fields.read(name, is_none)
    fields.read("processing_kwargs", lambda value: value in (None, {}))
    for name in _ARGUMENTS:
        fields.read(name, lambda value: isinstance(value, dict) and value.keys() <= _HARMLESS)
    fields.check_all_read()
    return {"max_length": length, "lowercases": lowercases}


def read_pooling(model: ModelFiles, path: str) -> tuple[dict[str, Any], int | None]:
    """Return what the Pooling declares, and the number of values of its vectors if it is known."""
    fields = read_module_fields(model, path)
    sizes = [fields.read(name, is_count) for name in ("embedding_dimension", "word_embedding_dimension")]
    include_prompt = fields.read("include_prompt", is_bool, True)
    flags = {name: fields.read(name, is_bool) for name in _FLAGS if name in fields}
    flagged = tuple(mode for name, mode in _FLAGS.items() if flags.get(name)) or ("mean",)
    stated = fields.read("pooling_mode", _is_pooling, flagged)
    modes = (stated,) if isinstance(stated, str) else tuple(stated)
    if flags and modes != flagged:
        raise Refused(f"has both pooling_mode {shorten(stated)} and the flags of {shorten(flagged)} in {fields.file}")
    fields.check_all_read()
    size = sizes[0] or sizes[1]
    config_file = f"{model.root}config.json"  # an adapter has none
    config = read_json(model.file(config_file)) if config_file in model.files else {}
    if size != config.get("hidden_size", size):  # the model decides the width, whatever the Pooling says
        size = None
    pooling = {"pooling": modes[0] if len(modes) == 1 else modes, "include_prompt": include_prompt}
    return pooling, size * len(modes) if size else None


def read_module(model: ModelFiles, kind: str, path: str) -> Module | None:
    """Return a module after the Pooling, or None for one that changes no vector."""
    if kind not in _MODULES:
        raise Refused(f"has a second {kind} in modules.json")
    return _MODULES[kind](model, path)


def _transformer_fields(model: ModelFiles) -> Fields:
    """Return the fields of the first file beside the config that has content, as sentence-transformers does."""
    for name in (f"{model.root}{name}" for name in SENTENCE_CONFIGS):
        if name in model.files and (content := read_json(model.file(name))):
            return Fields(name, content)
    return Fields("", {})


def _read_dense(model: ModelFiles, path: str) -> Dense:
    fields = read_module_fields(model, path)
    taken, given = (fields.read(name, is_count) for name in ("in_features", "out_features"))
    if taken is None or given is None:
        raise Refused(f"has no {'in' if taken is None else 'out'}_features in {fields.file}")
    bias = fields.read("bias", is_bool, True)
    activation = fields.read("activation_function", _is_activation, "torch.nn.modules.activation.Tanh")
    residual = fields.read("use_residual", is_bool, False)
    _check_input_and_output(fields)
    fields.check_all_read()
    return Dense(path, taken, given, bias, activation, residual)


def _read_layer_norm(model: ModelFiles, path: str) -> LayerNorm:
    fields = read_module_fields(model, path)
    dimension = fields.read("dimension", is_count)
    if dimension is None:
        raise Refused(f"has no dimension in {fields.file}")
    fields.check_all_read()
    return LayerNorm(path, dimension)


def _read_normalize(model: ModelFiles, path: str) -> Normalize:
    fields = read_module_fields(model, path, optional=True)
    _check_input_and_output(fields)
    fields.check_all_read()
    return Normalize(path)


def _read_dropout(model: ModelFiles, path: str) -> None:
    """Check a Dropout, which does nothing outside of training."""
    fields = read_module_fields(model, path, optional=True)
    fields.read("dropout", lambda value: type(value) in (int, float) and 0 <= value <= 1)
    fields.check_all_read()


_MODULES: dict[str, Callable[[ModelFiles, str], Module | None]] = {
    "Dense": _read_dense,
    "LayerNorm": _read_layer_norm,
    "Normalize": _read_normalize,
    "Dropout": _read_dropout,
}


def _class_paths(kind: str) -> set[str]:
    """Return the dotted names that a supported class has had in sentence-transformers."""
    if kind not in ("Transformer", "Pooling", *_MODULES):
        return set()
    file = {"LayerNorm": "layer_norm"}.get(kind, kind.lower())
    packages = ("sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules")
    old = "sentence_transformers.models"
    return {f"{old}.{kind}", f"{old}.{kind}.{kind}"} | {
        f"{package}{part}.{kind}" for package in packages for part in ("", f".{file}")
    }


def _check_input_and_output(fields: Fields) -> None:
    """Raise Refused unless a module takes the vector of a text and returns it."""
    fields.read("module_input_name", lambda value: value == _VECTOR)
    fields.read("module_output_name", lambda value: value in (None, _VECTOR))


def _is_pooling(value: Any) -> bool:
    modes = [value] if isinstance(value, str) else value
    return isinstance(modes, list) and bool(modes) and all(mode in get_args(PoolingMode) for mode in modes)


def _is_activation(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("torch.nn.")
