"""Config and class of a model: from the entry, then from the checkpoint."""

import json
import re
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from medvllm.classes import import_class
from medvllm.errors import LoadError, MedVLLMError, RequestError
from medvllm.loading import code
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions, unknown_option
from medvllm.sources import Snapshot


def model_class(metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot) -> type[Any]:
    """Return the class to load with: the caller's, the entry's, or the one that the checkpoint names.

    Where the repository's own code may run, its class comes before the one of transformers.
    """
    chosen = import_class(options.model_class) or metadata.model_class
    if chosen is None:
        own = code.model_class(metadata, snapshot)
    else:
        own = code.own_class(metadata, snapshot, chosen.__name__) if hasattr(chosen, "_model_mapping") else None
    if own is not None:
        return own
    if chosen is not None:
        if not callable(getattr(chosen, "from_pretrained", None)):
            raise RequestError(
                f"Class {chosen.__name__!r} cannot load a model: it has no from_pretrained.\n"
                "Give a subclass of transformers.PreTrainedModel or an Auto class.",
                model=metadata.name,
            )
        return chosen
    named = snapshot.config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else None
    if architecture is None:
        return transformers.AutoModel
    found = getattr(transformers, architecture, None)
    if isinstance(found, type) and issubclass(found, PreTrainedModel):
        return found
    _refuse_code(metadata, snapshot)
    raise LoadError(
        f"Model {metadata.name!r} is a {architecture!r}, which transformers {transformers.__version__} does not have.\n"
        "Register it with the class to use: model_class='module:Class'",
        model=metadata.name,
    )


def concrete_class(metadata: ModelMetadata, cls: type[Any], config: PreTrainedConfig) -> type[Any]:
    """Return the class that an Auto class stands for with this config; any other class stands for itself."""
    mapping = getattr(cls, "_model_mapping", None)
    if mapping is None:
        return cls
    if type(config) not in mapping:
        raise LoadError(
            f"Model {metadata.name!r} is a {config.model_type!r}, for which there is no {cls.__name__}.",
            model=metadata.name,
        )
    found = mapping[type(config)]
    if isinstance(found, (tuple, list)):  # some architectures have several: the checkpoint says which
        named = config.architectures or []
        found = next((kind for kind in found if kind.__name__ in named), found[0])
    chosen: type[Any] = found
    return chosen


def read_config(
    metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot, cls: type[Any] | None
) -> PreTrainedConfig:
    """Return the model's config: the one that `options` give, else the checkpoint's.

    `cls` may bring a config class of its own.
    """
    given = options.config
    try:
        config = _from_dict(metadata, json.loads(given), cls) if given else _from_snapshot(metadata, snapshot, cls)
        labels = metadata.behaviour.id2label
        if labels is not None:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}
    except MedVLLMError:
        raise
    except Exception as error:  # transformers raises whatever a strange value leads to
        what = "option 'config'" if given else f"config of model {metadata.name!r}"
        kind = RequestError if given else LoadError
        raise kind(
            f"The {what} cannot be used: {type(error).__name__}: {str(error)[:300]}", model=metadata.name
        ) from error
    return config


def override(config: PreTrainedConfig, options: LoadOptions) -> tuple[tuple[str, str], ...]:
    """Apply the overrides of `options` to the config, and return those that changed it.

    RequestError names one that is no field of the config, or that cannot have that value.
    """
    if not options.overrides:
        return ()
    fields = {**config.to_dict(), **config.attribute_map, "num_labels": config.num_labels}
    if unknown := next((field for field, _ in options.overrides if field not in fields), None):
        raise unknown_option(unknown, fields)
    changed = []
    for field, text in options.overrides:
        if json.dumps(getattr(config, field, None), sort_keys=True, default=repr) == text:
            continue
        try:
            setattr(config, field, json.loads(text))
        except Exception as error:
            raise RequestError(f"Option {field!r} cannot be {text[:80]}: {str(error)[:200]}", option=field) from error
        changed.append((field, text))
    return tuple(changed)


def label_map(config: Any) -> dict[int, str] | None:
    """Return the label of each class id, or None when a config names none: LABEL_0, LABEL_1 … say nothing."""
    labels = getattr(config, "id2label", None) or {}
    return None if all(re.fullmatch(r"LABEL_\d+", str(label)) for label in labels.values()) else dict(labels)


def _refuse_code(metadata: ModelMetadata, snapshot: Snapshot) -> None:
    """Raise when the checkpoint asks for code of its own that the entry does not trust."""
    if (auto_map := snapshot.config.get("auto_map")) and not metadata.source.trust_remote_code:
        raise code.refusal(metadata, snapshot, auto_map)


def _from_snapshot(metadata: ModelMetadata, snapshot: Snapshot, cls: type[Any] | None) -> PreTrainedConfig:
    if metadata.config_class is None and (its_own := code.own_class(metadata, snapshot, "AutoConfig")):
        return _read(its_own, snapshot)
    own = metadata.config_class or getattr(cls, "config_class", None)
    declared, stated = metadata.behaviour.architecture, snapshot.config.get("model_type")
    # An architecture of the repository's own may be declared to be one that transformers has.
    if declared and declared != stated and isinstance(stated, str) and stated in CONFIG_MAPPING:
        raise LoadError(
            f"Model {metadata.name!r} is a {stated!r} by its config, and a {declared!r} by its entry.\n"
            f"If the files are the right ones, register it with: architecture={stated!r}",
            model=metadata.name,
        )
    model_type = declared or stated
    if isinstance(own, type) and issubclass(own, PreTrainedConfig):
        if isinstance(model_type, str) and own.model_type and model_type != own.model_type:
            _refuse_code(metadata, snapshot)
            raise LoadError(
                f"Model {metadata.name!r} is a {model_type[:80]!r}, not a {own.model_type!r} as {own.__name__} says.\n"
                "Load it with the class that it was saved from, or register its architecture: architecture='bert'",
                model=metadata.name,
            )
        return _read(own, snapshot)
    if model_type is None:
        raise LoadError(
            f"The config of model {metadata.name!r} has no model_type, so its architecture is not known.\n"
            "Register it with the architecture: register(…, architecture='bert')",
            model=metadata.name,
            path=str(snapshot.path),
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        _refuse_code(metadata, snapshot)
        raise LoadError(
            f"Model {metadata.name!r} has the architecture {str(model_type)[:80]!r}, "
            f"which transformers {transformers.__version__} does not have.",
            model=metadata.name,
        )
    # The class itself, not AutoConfig: AutoConfig gives up on a config.json without model_type.
    return _read(CONFIG_MAPPING[model_type], snapshot)


def _read(cls: type[Any], snapshot: Snapshot) -> PreTrainedConfig:
    return _checked(cls.from_pretrained(snapshot.folder, local_files_only=True, trust_remote_code=False))


def _from_dict(metadata: ModelMetadata, content: dict[str, Any], cls: type[Any] | None) -> PreTrainedConfig:
    own = getattr(cls, "config_class", None)
    model_type = content.get("model_type") or metadata.behaviour.architecture or getattr(own, "model_type", None)
    if own is not None and model_type == own.model_type:
        return _checked(own.from_dict(content))
    if own is not None or not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise RequestError(f"Option 'config' is of the model_type {str(model_type)[:80]!r}, which does not fit.")
    return _checked(CONFIG_MAPPING[model_type].from_dict(content))


def _checked(config: Any) -> PreTrainedConfig:
    if not isinstance(config, PreTrainedConfig):
        raise LoadError(f"{type(config).__name__} is not a config of transformers.")
    return config
