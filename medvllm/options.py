"""The effective arguments of a load, and the identity that two equal loads share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from medvllm import settings
from medvllm.classes import class_path, is_reference
from medvllm.dtypes import LOADABLE, loadable_dtype
from medvllm.errors import RequestError, UnsafeWeightsError
from medvllm.near_names import did_you_mean, near_names
from medvllm.quantities import parse_duration

__all__ = ["Identity", "LoadOptions", "dtype_name", "parse_keep_alive", "unknown_option"]

# Arguments of `from_pretrained` that a registry must not pass on, and what to do instead.
_REFUSED = {
    "device_map": "use device='cuda:1', or device='auto'",
    "cache_dir": "set HF_HUB_CACHE",
    "token": "set HF_TOKEN",
    "use_auth_token": "set HF_TOKEN",
    "proxies": "set HTTPS_PROXY",
    "local_files_only": "set HF_HUB_OFFLINE=1",
    "force_download": "remove the snapshot from the Hub's cache",
    "state_dict": "call the class's from_pretrained yourself",
    "quantization_config": "call the class's from_pretrained yourself",
    "id2label": "register the entry with id2label=['O', …]",
    "label2id": "register the entry with id2label=['O', …]",
    "ignore_mismatched_sizes": "a head of another size does not belong to the model. "
    "Remove it from the checkpoint, and register the entry with expected_missing_keys=[…]",
    "output_loading_info": "the registry checks the weights for you",
    "subfolder": "give the folder as the name",
    "variant": "register the folder that holds it",
    "use_cache": "for a copy of your own, call load_model(…, use_cache=False)",
    "low_cpu_mem_usage": "omit it, as weights are mapped and not copied",
}
_KNOWN = (
    *("device", "dtype", "torch_dtype", "revision", "use_cache", "keep_alive"),
    *("model_class", "config", "attn_implementation"),
)


@dataclass(frozen=True)
class LoadOptions:
    """The options of a call, hashable so that a hit is one look-up. None means "not given".

    Attributes:
        device: The device, such as "cuda:0".
        dtype: The dtype of the weights, such as "float32", or "auto".
        revision: A branch, tag or commit on the Hub.
        model_class: The class to load, or "module:Class".
        attn_implementation: The attention that transformers uses.
        config: A whole config as JSON text.
        overrides: Fields of the model's config as JSON texts, sorted by name.
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
        """Return the options of a call's keywords.

        Whether an override is a field of the config is checked once the config is read.

        Raises:
            RequestError: An option cannot be used.
            UnsafeWeightsError: An option would run code, or open a pickle.
        """
        if not given:
            return _NOTHING
        options = dict(given)
        if unnamed := next((name for name in options if not isinstance(name, str)), None):
            raise RequestError(f"The name of option {unnamed!r} must be text.", option=unnamed)
        dtype, older = options.pop("dtype", None), options.pop("torch_dtype", None)
        if dtype is not None and older is not None and dtype_name(dtype) != dtype_name(older):
            raise RequestError(f"dtype={dtype} and torch_dtype={older} are different.\nPass one of them.")
        if options.pop("trust_remote_code", False):
            raise UnsafeWeightsError(
                "trust_remote_code is not an option of a load: an entry pins the code, and an operator allows it.\n"
                "Use register(…, revision='…', trust_remote_code=True), with all 40 digits of the commit, "
                f"and: export {settings.TRUST_REMOTE_CODE.name}=on"
            )
        if options.pop("use_safetensors", True) is False or options.pop("weights_only", True) is False:
            raise UnsafeWeightsError("Pickled weights are not read: a pickle can run code when it is opened.")
        for name in options:
            if name in _REFUSED:
                raise RequestError(f"Option {name!r} is not accepted: {_REFUSED[name]}.", option=name)
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
        """Return these options, completed from the entry's and then from the settings."""
        return replace(
            self,
            device=self.device or entry.device or _device(settings.DEVICE()),
            dtype=self.dtype or entry.dtype or dtype_name(settings.DTYPE()),
            revision=self.revision or entry.revision,
            model_class=self.model_class or entry.model_class,
            attn_implementation=self.attn_implementation or entry.attn_implementation,
            config=self.config or entry.config,
            overrides=tuple(sorted((dict(entry.overrides) | dict(self.overrides)).items())),
        )

    def config_overrides(self) -> dict[str, Any]:
        """Return the overrides as values."""
        return {name: json.loads(text) for name, text in self.overrides}

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON values."""
        facts = vars(self) | {"model_class": class_path(self.model_class), "overrides": self.config_overrides()}
        return facts | {"config": json.loads(self.config) if self.config else None}


_NOTHING = LoadOptions()


@dataclass(frozen=True)
class Identity:
    """What two loads must have in common to share one model.

    Attributes:
        name: The entry's name.
        version: The entry's version.
        origin: Where the entry comes from; "direct" without an entry.
        snapshot: "repo@commit", or a folder with the digest of its files.
        options: The options in effect: device, dtype and class are never None.
        files: A digest of the weight files on the disk. A model is mapped from them, so it changes when they do.
        is_offloaded: Whether its weights are in host memory instead of on its device.
    """

    name: str
    version: int
    origin: str
    snapshot: str
    options: LoadOptions
    files: str = ""
    is_offloaded: bool = False


def unknown_option(name: str, fields: Mapping[str, Any]) -> RequestError:
    """Return the error for an option that is neither ours nor a field of the model's config."""
    near = near_names(name, (*_KNOWN, *fields))
    return RequestError(
        f"Unknown option {name!r}.{did_you_mean(near)}\n"
        f"Use one of: {', '.join(_KNOWN)}, or a field of the model's config.",
        option=name,
        candidates=tuple(near),
    )


def dtype_name(value: object) -> str | None:
    """Return the name of a dtype, such as "float32", for a torch.dtype or text. "auto" is the checkpoint's own.

    Raises:
        RequestError: The value is not a dtype that a model can be loaded in.
    """
    if value is None:
        return None
    text = str(value)  # torch.float16 prints as "torch.float16", so torch need not be imported
    name = "auto" if text.lower() == "auto" else loadable_dtype(text)
    if name is None:
        raise RequestError(f"dtype must be one of {', '.join(LOADABLE)} or auto, not {text[:80]!r}.", option="dtype")
    return name


def parse_keep_alive(value: str | float | None) -> float | None:
    """Return how many seconds a model stays in memory after its last use: infinite for a negative value.

    Args:
        value: Seconds, or a duration such as "10m". None, for "not given", stays None.

    Raises:
        RequestError: The value is not a duration.
    """
    try:
        return None if value is None else parse_duration(value)
    except ValueError as error:
        raise RequestError(
            f"keep_alive is {error}.\nUse a duration such as '10m', seconds, 0 (until it is released) or -1 (pinned).",
            option="keep_alive",
        ) from error


def _device(value: object) -> str | None:
    if value is None:
        return None
    if type(value) is int and value >= 0:
        return f"cuda:{value}"
    text = str(value).lower()  # a torch.device prints as "cuda:0"
    kind, _, index = text.partition(":")
    if kind not in ("cpu", "cuda", "mps", "xpu", "auto") or not (index.isdecimal() or text == kind):
        raise RequestError(
            f"device must be cpu, cuda, cuda:N, mps, xpu or auto, not {str(value)[:80]!r}.", option="device"
        )
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
            f"Option {option!r} must be a value that JSON can hold, not {type(value).__name__}.", option=option
        ) from None
