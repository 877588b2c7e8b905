"""The options of a load, and the identity that equal loads share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from medvllm import settings
from medvllm.classes import class_path, is_reference
from medvllm.dtypes import LOADABLE, loadable_dtype
from medvllm.errors import RequestError, UnsafeWeightsError
from medvllm.near_names import did_you_mean, near_names
from medvllm.quantities import MinimumStay, parse_duration

__all__ = ["Identity", "LoadOptions", "dtype_name", "parse_keep_alive", "unknown_option"]

# Arguments of `from_pretrained` that the registry does not pass on, and what to do instead.
_REFUSED = {
    "device_map": "use device='cuda:1' or device='auto'",
    "cache_dir": "set HF_HUB_CACHE",
    "token": "set HF_TOKEN",
    "use_auth_token": "set HF_TOKEN",
    "proxies": "set HTTPS_PROXY",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "force_download": "remove the snapshot from the Hub's cache",
    "state_dict": "call from_pretrained of the class yourself",
    "quantization_config": "call from_pretrained of the class yourself",
    "id2label": "register the entry with id2label=['O', …]",
    "label2id": "register the entry with id2label=['O', …]",
    "ignore_mismatched_sizes": "a head of the wrong size would be replaced by random weights. "
    "Remove it from the checkpoint and register the entry with expected_missing_keys=[…]",
    "output_loading_info": "the registry checks the loading info itself",
    "engine": "run the model with registry.runner(name, engine='onnx')",
    "precision": "run the model with registry.runner(name, engine='onnx', precision='int8')",
    "subfolder": "load the folder by its path",
    "variant": "register the folder that contains it",
    "use_cache": "for a copy of your own, call load_model(…, use_cache=False)",
    "low_cpu_mem_usage": "leave it out: weights are mapped into memory, not copied",
}
_KNOWN = (
    *("device", "dtype", "torch_dtype", "revision", "use_cache", "keep_alive"),
    *("model_class", "config", "attn_implementation"),
)


@dataclass(frozen=True)
class LoadOptions:
    """The options that a caller gave. None means "not given". They are hashable, so a cache hit is one look-up.

    Attributes:
        device: Where the model runs, such as "cpu" or "cuda:0".
        dtype: The dtype of its weights, such as "float32", or "auto" for what suits the checkpoint and the device.
        revision: A branch, tag or commit on the Hub.
        model_class: The class to load, or its name as "module:Class".
        attn_implementation: The attention implementation, as transformers names it.
        config: A whole config as JSON, in place of the model's own.
        overrides: Pairs of a field of the model's config and its value as JSON, sorted by field.
    """

    device: str | None = None
    dtype: str | None = None
    revision: str | None = None
    model_class: type | str | None = None
    attn_implementation: str | None = None
    config: str | None = None
    overrides: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_kwargs(cls, given: Mapping[str, Any]) -> "LoadOptions":
        """Return the options for the keywords of a call.

        A keyword that is not an option becomes an override. Whether the config has such a field is checked later, when
        the config is read.

        Args:
            given: The keywords and their values.

        Raises:
            RequestError: A keyword is not supported or has a wrong value.
            UnsafeWeightsError: The call asks for remote code or for pickled weights.
        """
        if not given:
            return _NOTHING
        options = dict(given)
        if unnamed := next((name for name in options if not isinstance(name, str)), None):
            raise RequestError(f"The name of an option must be text, not {repr(unnamed)[:80]}.", option=unnamed)
        dtype, older = options.pop("dtype", None), options.pop("torch_dtype", None)
        if dtype is not None and older is not None and dtype_name(dtype) != dtype_name(older):
            raise RequestError(f"dtype={dtype} and torch_dtype={older} are different.\nUse only dtype.")
        if options.pop("trust_remote_code", False):
            raise UnsafeWeightsError(
                "Option 'trust_remote_code' cannot be set for a single load.\n"
                "Register an entry that pins the code: register(…, revision='…', trust_remote_code=True), where the "
                "revision is a full commit hash of 40 digits.\n"
                f"Then allow it on this machine: export {settings.TRUST_REMOTE_CODE.name}=on"
            )
        if options.pop("use_safetensors", True) is False or options.pop("weights_only", True) is False:
            raise UnsafeWeightsError("Pickled weights cannot be loaded: a pickle can run code when it is opened.")
        for name in options:
            if name in _REFUSED:
                raise RequestError(f"Option {name!r} is not supported: {_REFUSED[name]}.", option=name)
        return cls(
            device=_device(options.pop("device", None)),
            dtype=dtype_name(dtype if dtype is not None else older),
            revision=_text("revision", options.pop("revision", None)),
            model_class=_class(options.pop("model_class", None)),
            attn_implementation=_text("attn_implementation", options.pop("attn_implementation", None)),
            config=_config(options.pop("config", None)),
            overrides=tuple(sorted((name, _json(name, value)) for name, value in options.items())),
        )

    def with_defaults(self, entry: "LoadOptions") -> "LoadOptions":
        """Return the options completed with those of the entry, and then with the settings."""
        known = self.with_entry(entry)
        return replace(
            known,
            device=known.device or _device(settings.DEVICE()),
            dtype=known.dtype or dtype_name(settings.DTYPE()),
        )

    def with_entry(self, entry: "LoadOptions") -> "LoadOptions":
        """Return the options completed with those of the entry."""
        return replace(
            self,
            device=self.device or entry.device,
            dtype=self.dtype or entry.dtype,
            revision=self.revision or entry.revision,
            model_class=self.model_class or entry.model_class,
            attn_implementation=self.attn_implementation or entry.attn_implementation,
            config=self.config or entry.config,
            overrides=tuple(sorted((dict(entry.overrides) | dict(self.overrides)).items())),
        )

    def config_overrides(self) -> dict[str, Any]:
        """Return the values of the overrides by field."""
        return {name: json.loads(text) for name, text in self.overrides}

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        facts = vars(self) | {"model_class": class_path(self.model_class), "overrides": self.config_overrides()}
        return facts | {"config": json.loads(self.config) if self.config else None}


_NOTHING = LoadOptions()


@dataclass(frozen=True)
class Identity:
    """The key of a loaded model. Two loads with the same identity share one object.

    Attributes:
        name: The name of the entry.
        version: The version of the entry.
        origin: Where the entry comes from, or "direct" for a model that is loaded without an entry.
        snapshot: "repo@commit", or a folder with the digest of its files.
        options: The options in effect. Device, dtype and class are resolved.
        files: The files on disk that contain the weights. They are part of the key because a change to a mapped file
            changes the model.
        is_offloaded: Whether the weights are in host memory and not on the device.
        base: The model whose weights an adapter completes.
        engine: The engine that computes it, if it is not torch.
    """

    name: str
    version: int
    origin: str
    snapshot: str
    options: LoadOptions
    files: str = ""
    is_offloaded: bool = False
    base: "Identity | None" = None
    engine: str | None = None


def unknown_option(name: str, fields: Mapping[str, Any]) -> RequestError:
    """Return the error for a keyword that is neither an option nor one of the `fields` of the model's config."""
    near = near_names(name, (*_KNOWN, *fields))
    return RequestError(
        f"Unknown option {name!r}.{did_you_mean(near)}\n"
        f"Use one of: {', '.join(_KNOWN)}, or a field of the model's config.",
        option=name,
        candidates=tuple(near),
    )


def dtype_name(value: object) -> str | None:
    """Return the name of a dtype, such as "float32".

    Args:
        value: A torch.dtype or a text. "auto" means what suits the checkpoint and the device. None stays None.

    Raises:
        RequestError: A model cannot be loaded in this dtype.
    """
    if value is None:
        return None
    text = str(value)  # torch.float16 becomes "torch.float16", so torch need not be imported here
    name = "auto" if text.lower() == "auto" else loadable_dtype(text)
    if name is None:
        raise RequestError(f"dtype {text[:80]!r} is not one of: {', '.join(LOADABLE)}, auto.", option="dtype")
    return name


def parse_keep_alive(value: str | float | None) -> float | None:
    """Return how many seconds a model stays in memory after its last use.

    Args:
        value: Seconds, or a duration such as "10m". A negative value means forever, and returns infinity. None means
            "not given" and stays None.

    Raises:
        RequestError: The value is not a duration.
    """
    try:
        return (
            value
            if value is None or isinstance(value, MinimumStay)
            else _parse_known(value)
            if type(value) in (str, int, float)
            else parse_duration(value)
        )
    except ValueError as error:
        raise RequestError(
            f"keep_alive={repr(value)[:80]} is {error}.\n"
            "Use seconds, a duration such as '10m', 0 (until the model is released) or -1 (pinned).",
            option="keep_alive",
        ) from error


_parse_known = lru_cache(maxsize=256, typed=True)(parse_duration)  # each call of a service states the same ones


def _device(value: object) -> str | None:
    if value is None:
        return None
    if type(value) is int and value >= 0:
        return f"cuda:{value}"
    text = str(value).lower()  # a torch.device prints as "cuda:0"
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda", "mps", "xpu", "auto") or not (index.isdecimal() or text == kind):
        raise RequestError(f"Device {str(value)[:80]!r} is not one of: cpu, cuda, cuda:N, mps, auto.", option="device")
    return "cpu" if kind == "cpu" else "cuda:0" if text == "cuda" else text


def _text(option: str, value: object) -> str | None:
    if value is not None and (not isinstance(value, str) or not value):
        raise RequestError(f"Option {option!r} must be text, not {repr(value)[:80]}.", option=option)
    return value


def _class(value: object) -> type | str | None:
    if value is not None and not (isinstance(value, type) or (isinstance(value, str) and is_reference(value))):
        raise RequestError(f"Option 'model_class' must be a class or 'module:Class', not {repr(value)[:80]}.")
    return value


def _config(value: Any) -> str | None:
    if value is None:
        return None
    content = value.to_dict() if hasattr(value, "to_dict") else value
    if not isinstance(content, Mapping):
        raise RequestError(f"Option 'config' must be a config or a dict, not {type(value).__name__}.", option="config")
    return _json("config", content)


def _json(option: str, value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True)
    except (TypeError, ValueError):
        raise RequestError(
            f"Option {option!r} must be a JSON value, not {type(value).__name__}.", option=option
        ) from None
