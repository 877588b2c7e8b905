"""The effective options of a load, and its identity: options are completed before two loads are compared."""

import json
from dataclasses import replace
from importlib import metadata as packages

import torch
from transformers import PreTrainedConfig

from medvllm.errors import LoadError, MedVLLMError, MissingDependencyError
from medvllm.loading import config, device, model_class, remote_code
from medvllm.loading.checks.quantization import is_quantized
from medvllm.loading.native_dtypes import is_native
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity, LoadOptions
from medvllm.sources.snapshot import Snapshot

# The types of the values of options that say the same whenever they are equal, and are hashable.
PLAIN_TYPES = frozenset({str, type(None), torch.dtype, torch.device})
# Fields of a config that do not change the model.
_INCIDENTAL = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"}


def with_defaults(metadata: ModelMetadata, stated: LoadOptions) -> LoadOptions:
    """Return the caller's options, completed from the entry and then from the settings.

    Raises:
        MissingDependencyError: A package that the entry requires is not installed.
        UnsafeWeightsError: The entry runs its own code, which is not allowed here.
        LoadError: The device is not available.
    """
    check_requirements(metadata)
    remote_code.check_allowed(metadata)
    options = stated.with_defaults(LoadOptions.from_kwargs(metadata.parameters))
    return replace(options, device=device.resolve_device(options.device or "cpu"))


def check_requirements(metadata: ModelMetadata) -> None:
    """Raise MissingDependencyError unless the packages that the entry requires are installed."""
    for package in metadata.source.requires:
        try:
            packages.version(package)
        except packages.PackageNotFoundError as error:
            raise MissingDependencyError(
                f"Model {metadata.name!r} needs the package {package!r}, which is not installed.\n"
                f"Install it with: pip install {package}",
                model=metadata.name,
                package=package,
            ) from error


def identify(metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot) -> tuple[Identity, PreTrainedConfig]:
    """Return the identity of a load, and the model's config.

    Options that are still open are taken from the checkpoint. Options that only repeat a default are removed, so that
    both spellings share one cached model.

    Raises:
        LoadError: The config cannot be used.
        RequestError: An option is not a field of the config.
    """
    try:
        return _identify(metadata, options, snapshot)
    except MedVLLMError:
        raise
    except Exception as error:  # a strange value in a config may raise anything
        raise LoadError(
            f"The config of model {metadata.name!r} cannot be used: {type(error).__name__}: {str(error)[:300]}",
            model=metadata.name,
        ) from error


def _identify(metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot) -> tuple[Identity, PreTrainedConfig]:
    named = model_class.find_model_class(metadata, options, snapshot)
    own = config.read_config(metadata, LoadOptions(), snapshot, named)
    cls = model_class.resolve_auto_class(metadata, named, own)
    given = options.config
    if given is not None and _content(json.loads(given)) == _content(own.to_dict()):
        given = None
    base = own if given is None else config.read_config(metadata, LoadOptions(config=given), snapshot, named)
    attention = "sdpa" if getattr(cls, "_supports_sdpa", False) else "eager"
    overrides = config.apply_overrides(base, options)
    identity = Identity(
        metadata.name,
        metadata.version,
        metadata.origin,
        snapshot.identity,
        replace(
            options,
            dtype=_dtype(options, snapshot),
            revision=snapshot.commit,
            model_class=cls,
            attn_implementation=None if options.attn_implementation == attention else options.attn_implementation,
            config=given,
            overrides=overrides,
        ),
        snapshot.disk_identity,
    )
    return identity, base


def _dtype(options: LoadOptions, snapshot: Snapshot) -> str:
    """Return the dtype of a load: the stated one or else the checkpoint's own.

    A CPU that has no instructions for the checkpoint's own gets float32: the same numbers, computed several times
    faster. A quantized model computes as its method wants.
    """
    if options.dtype not in (None, "auto"):
        return str(options.dtype)
    own = snapshot.dtype or "float32"
    is_slow = options.device == "cpu" and not is_native(own) and not is_quantized(snapshot.config)
    return "float32" if is_slow else own


def _content(fields: dict[str, object]) -> str:
    kept = {field: value for field, value in fields.items() if field not in _INCIDENTAL}
    return json.dumps(kept, sort_keys=True, default=repr)
