"""The config of a model: the one that the caller gives, or the checkpoint's, with the facts of the entry."""

import json
import logging
from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from medvllm.errors import LoadError, MedVLLMError, RequestError
from medvllm.loading import remote_code
from medvllm.loading.model_class import auto_class_name
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions, unknown_option
from medvllm.sources.snapshot import Snapshot

logger = logging.getLogger(__name__)


def read_config(
    metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot, cls: type[Any] | None
) -> PreTrainedConfig:
    """Return the model's config: the one in `options`, or the checkpoint's.

    Args:
        metadata: The entry.
        options: The options of the load.
        snapshot: The model's files.
        cls: The class of the model, which may have a config class.

    Raises:
        LoadError: The checkpoint's config cannot be used.
        RequestError: The given config cannot be used.
    """
    given = options.config
    try:
        config = _from_dict(metadata, json.loads(given), cls) if given else _from_snapshot(metadata, snapshot, cls)
        labels = metadata.behaviour.id2label
        if labels is not None:
            _warn_of_another_order(metadata, config.id2label)
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: i for i, label in enumerate(labels)}
    except MedVLLMError:
        raise
    except Exception as error:  # for a strange value, transformers may raise anything
        what = "option 'config'" if given else f"config of model {metadata.name!r}"
        kind = RequestError if given else LoadError
        raise kind(
            f"The {what} cannot be used: {type(error).__name__}: {str(error)[:300]}", model=metadata.name
        ) from error
    return config


def apply_overrides(config: PreTrainedConfig, options: LoadOptions) -> tuple[tuple[str, str], ...]:
    """Apply the overrides of `options` to the config, and return those that changed it.

    Raises:
        RequestError: An override is not a field of the config, or cannot have that value.
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


def _warn_of_another_order(metadata: ModelMetadata, stated: object) -> None:
    """Log a warning if a label of the entry is one of the config's under another class id. The entry's order holds."""
    labels = metadata.behaviour.id2label or ()
    known = stated if isinstance(stated, dict) else {}
    places = {str(label).casefold(): number for number, label in known.items()}
    for number, label in enumerate(labels):
        if places.get(label.casefold(), number) != number:
            logger.warning(
                "class %d is %r in the entry of %r and %r in its config.json; the order of the entry is used",
                *(number, label, metadata.name, known.get(number)),
            )
            return


def _from_snapshot(metadata: ModelMetadata, snapshot: Snapshot, cls: type[Any] | None) -> PreTrainedConfig:
    if metadata.config_class is None and (its_own := remote_code.import_own_class(metadata, snapshot, "AutoConfig")):
        return _read(its_own, snapshot)
    own = metadata.config_class or getattr(cls, "config_class", None)
    declared, stated = metadata.behaviour.architecture, snapshot.config.get("model_type")
    # An entry may declare that a repository's own architecture is one that transformers has.
    if declared and declared != stated and isinstance(stated, str) and stated in CONFIG_MAPPING:
        raise LoadError(
            f"Model {metadata.name!r} is a {stated!r} according to its config, but its entry says {declared!r}.\n"
            f"If the files are right, register it with: architecture={stated!r}",
            model=metadata.name,
        )
    model_type = declared or stated
    if isinstance(own, type) and issubclass(own, PreTrainedConfig):
        if isinstance(model_type, str) and own.model_type and model_type != own.model_type:
            remote_code.refuse_untrusted_code(metadata, snapshot)
            own_class = auto_class_name(getattr(cls, "__name__", ""), model_type)
            raise LoadError(
                f"Model {metadata.name!r} is a {model_type[:80]!r}, but {own.__name__} is for a {own.model_type!r}.\n"
                f"Load it with a class for its architecture: model_class='transformers:{own_class}'",
                model=metadata.name,
            )
        return _read(own, snapshot)
    if model_type is None:
        raise LoadError(
            f"The config of model {metadata.name!r} has no model_type, so its architecture is unknown.\n"
            "Register it with the architecture: register(…, architecture='bert')",
            model=metadata.name,
            path=str(snapshot.path),
        )
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        remote_code.refuse_untrusted_code(metadata, snapshot)
        raise LoadError(
            f"Model {metadata.name!r} has the architecture {str(model_type)[:80]!r}, "
            f"which transformers {transformers.__version__} does not have.",
            model=metadata.name,
        )
    # The class itself, not AutoConfig: AutoConfig gives up on a config.json without model_type.
    return _read(CONFIG_MAPPING[model_type], snapshot)


def _read(cls: type[Any], snapshot: Snapshot) -> PreTrainedConfig:
    config = _check_config(cls.from_pretrained(snapshot.loader_folder, local_files_only=True, trust_remote_code=False))
    # transformers looks at a repository's name when its files name the wrong tokenizer.
    config._name_or_path = snapshot.repo or str(snapshot.path)
    return config


def _from_dict(metadata: ModelMetadata, content: dict[str, Any], cls: type[Any] | None) -> PreTrainedConfig:
    own = getattr(cls, "config_class", None)
    model_type = content.get("model_type") or metadata.behaviour.architecture or getattr(own, "model_type", None)
    if own is not None and model_type == own.model_type:
        return _check_config(own.from_dict(content))
    if own is not None or not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise RequestError(
            f"Option 'config' has the model_type {str(model_type)[:80]!r}, which does not fit the model."
        )
    return _check_config(CONFIG_MAPPING[model_type].from_dict(content))


def _check_config(config: Any) -> PreTrainedConfig:
    if not isinstance(config, PreTrainedConfig):
        raise LoadError(f"{type(config).__name__} is not a config of transformers.")
    return config
