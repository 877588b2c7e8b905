"""Config and class of a model: from the entry, then from the checkpoint."""

import json
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from medvllm.classes import import_class
from medvllm.errors import LoadError, RequestError, UnsafeWeightsError
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions, unknown_option
from medvllm.sources import Snapshot


def model_class(metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot) -> type[Any]:
    """Return the class to load with: the caller's, the entry's, or the one that the checkpoint names."""
    chosen = import_class(options.model_class) or metadata.model_class
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
    refuse_remote_code(metadata.name, snapshot)
    raise LoadError(
        f"Model {metadata.name!r} is a {architecture!r}, which transformers {transformers.__version__} does not have.\n"
        "Register it with the class to use: model_class='module:Class'",
        model=metadata.name,
    )


def read_config(metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot, cls: type[Any]) -> PreTrainedConfig:
    """Return the model's config with the overrides of `options` applied."""
    if options.config is not None:
        config = _from_dict(metadata, json.loads(options.config), cls)
    else:
        config = _from_snapshot(metadata, snapshot, cls)
    for field, value in options.config_overrides().items():
        if not hasattr(config, field):
            raise unknown_option(field, config.to_dict())
        setattr(config, field, value)
    labels = metadata.behaviour.id2label
    if labels is not None and "id2label" not in options.config_overrides():
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    return config


def refuse_remote_code(name: str, snapshot: Snapshot) -> None:
    """Raise when the checkpoint asks for Python files of its own."""
    auto_map = snapshot.config.get("auto_map")
    if auto_map:
        raise UnsafeWeightsError(
            f"Model {name!r} wants to run code of its own ({', '.join(map(str, auto_map))} in auto_map), "
            "which medvllm does not do.\n"
            "Give a class of yours: register(…, model_class='module:Class')",
            model=name,
        )


def _from_snapshot(metadata: ModelMetadata, snapshot: Snapshot, cls: type[Any]) -> PreTrainedConfig:
    behaviour = metadata.behaviour
    own = metadata.config_class or getattr(cls, "config_class", None)
    if isinstance(own, type) and issubclass(own, PreTrainedConfig):
        return _checked(own.from_pretrained(snapshot.path, local_files_only=True))
    model_type = behaviour.architecture or snapshot.config.get("model_type")
    if model_type is None:
        raise LoadError(
            f"The config of model {metadata.name!r} has no model_type, so its architecture is not known.\n"
            "Register it with the architecture: register(…, architecture='bert')",
            model=metadata.name,
            path=str(snapshot.path),
        )
    if model_type not in CONFIG_MAPPING:
        refuse_remote_code(metadata.name, snapshot)
        raise LoadError(
            f"Model {metadata.name!r} has the architecture {str(model_type)[:80]!r}, "
            f"which transformers {transformers.__version__} does not have.",
            model=metadata.name,
        )
    # The class itself, not AutoConfig: AutoConfig gives up on a config.json without model_type.
    return _checked(CONFIG_MAPPING[model_type].from_pretrained(snapshot.path, local_files_only=True))


def _from_dict(metadata: ModelMetadata, content: dict[str, Any], cls: type[Any]) -> PreTrainedConfig:
    own = getattr(cls, "config_class", None)
    model_type = content.get("model_type") or metadata.behaviour.architecture
    if own is None and model_type not in CONFIG_MAPPING:
        raise RequestError("Option 'config' has no model_type that transformers knows.", option="config")
    return _checked((own or CONFIG_MAPPING[str(model_type)]).from_dict(content))


def _checked(config: Any) -> PreTrainedConfig:
    if not isinstance(config, PreTrainedConfig):
        raise LoadError(f"{type(config).__name__} is not a config of transformers.")
    return config
