"""The class of a model: the caller's, the entry's, or the one that the checkpoint's config names."""

import re
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from medvllm.classes import import_class
from medvllm.errors import LoadError, RequestError
from medvllm.loading import remote_code
from medvllm.metadata import ModelMetadata
from medvllm.options import LoadOptions
from medvllm.sources.snapshot import Snapshot

# One network under several names: some checkpoints have the config of one and the architecture of another.
_SISTERS = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert"}
# Without an architecture in the config, the model is an encoder, unless the entry's task needs a head.
_HEADS = {
    "ner": "AutoModelForTokenClassification",
    "deid": "AutoModelForTokenClassification",
    "classify": "AutoModelForSequenceClassification",
    "assertions": "AutoModelForSequenceClassification",
    "rerank": "AutoModelForSequenceClassification",
    "fill-mask": "AutoModelForMaskedLM",
}
# An unknown class with one of these in its name has a head on top of the encoder, which cannot be loaded here.
_HEAD = re.compile(
    r"For[A-Z0-9]|LMHead|Ner(?![a-z])|NER|(?i:classif|crf|tagg|rerank|cross.?encoder|scor|regress|reward|splade|detect)"
    r"|(?i:generat|decoder|lstm)"
)
_ENCODER = re.compile(r"sentence|encoder|embed|colbert|adapter", re.IGNORECASE)


def find_model_class(metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot) -> type[Any]:
    """Return the class to load with: the caller's, the entry's, or the one that the checkpoint names.

    If the repository's own code is trusted and allowed, its class is preferred to that of transformers.

    Raises:
        RequestError: The given class cannot load a model.
        UnsafeWeightsError: The checkpoint needs code that is not trusted or not allowed.
        LoadError: transformers does not have the class that the checkpoint names.
    """
    chosen = find_class(metadata, options)
    if chosen is None:
        own = remote_code.import_model_class(metadata, snapshot)
    else:
        own = (
            remote_code.import_own_class(metadata, snapshot, chosen.__name__)
            if hasattr(chosen, "_model_mapping")
            else None
        )
    if own is not None:
        return own
    return _named_class(metadata, snapshot) if chosen is None else chosen


def find_class(metadata: ModelMetadata, options: LoadOptions) -> type[Any] | None:
    """Return the class that the caller or else the entry gives; None if neither gives one.

    Raises:
        RequestError: The class cannot load a model.
    """
    chosen: type[Any] | None = import_class(options.model_class) or metadata.model_class
    if chosen is not None and not callable(getattr(chosen, "from_pretrained", None)):
        raise RequestError(
            f"Class {chosen.__name__!r} cannot load a model: it has no from_pretrained.\n"
            "Use a subclass of transformers.PreTrainedModel, or an Auto class.",
            model=metadata.name,
        )
    return chosen


def resolve_auto_class(metadata: ModelMetadata, cls: type[Any], config: PreTrainedConfig) -> type[Any]:
    """Return the class that an Auto class means for this config. Any other class is returned as it is.

    Raises:
        LoadError: The Auto class has none for this config.
    """
    mapping = getattr(cls, "_model_mapping", None)
    if mapping is None:
        return cls
    if type(config) not in mapping:
        raise LoadError(
            f"Model {metadata.name!r} is a {config.model_type!r}, and {cls.__name__} has no class for it.\n"
            "Load it with another class, such as: model_class='transformers:AutoModel'",
            model=metadata.name,
        )
    found = mapping[type(config)]
    if isinstance(found, (tuple, list)):  # some architectures have several; the checkpoint names one
        named = config.architectures or []
        found = next((kind for kind in found if kind.__name__ in named), found[0])
    chosen: type[Any] = found
    return chosen


def auto_class_name(name: str, model_type: object) -> str:
    """Return the name of the Auto class that does, for a `model_type`, what the class `name` does for its own."""
    task = re.search(r"For[A-Z0-9]\w*|LMHeadModel", name)
    for auto, cls in vars(modeling_auto).items():
        if not auto.startswith("AutoModel") or auto in ("AutoModelForPreTraining", "AutoModelWithLMHead"):
            continue
        names = getattr(getattr(cls, "_model_mapping", None), "_model_mapping", {})
        if model_type not in names:
            continue
        listed = {each for found in names.values() for each in ((found,) if isinstance(found, str) else found)}
        if name in listed or (task and auto == f"AutoModel{task[0]}"):
            return auto
    return "AutoModel"


def _named_class(metadata: ModelMetadata, snapshot: Snapshot) -> type[Any]:
    name = _architecture(snapshot.config)
    if name is None:
        found: type[Any] = getattr(transformers, _HEADS.get(metadata.behaviour.task or "", "AutoModel"))
        return found
    model_type = metadata.behaviour.architecture or snapshot.config.get("model_type")
    for known in (name, name.removeprefix("TF"), name.removeprefix("Flax")):  # the same network of another framework
        cls: Any = getattr(transformers, known, None)
        if isinstance(cls, type) and (hasattr(cls, "_model_mapping") or issubclass(cls, PreTrainedModel)):
            return _sister(cls, model_type)
    remote_code.refuse_untrusted_code(metadata, snapshot)
    if _is_encoder(name, model_type):
        return transformers.AutoModel
    advice = "'module:Class'"
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING:
        advice = f"'transformers:{auto_class_name(name, model_type)}', or your own 'module:Class'"
    raise LoadError(
        f"Model {metadata.name!r} is a {name!r}, which transformers {transformers.__version__} does not have.\n"
        f"Register it with the class to use: model_class={advice}",
        model=metadata.name,
    )


def _architecture(config: dict[str, Any]) -> str | None:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) and first else None


def _sister(found: type[Any], model_type: object) -> type[Any]:
    """Return the class of the config's architecture if the checkpoint names a sister's; AutoModel for base classes."""
    if found.__name__.endswith("PreTrainedModel"):
        return transformers.AutoModel
    of = getattr(getattr(found, "config_class", None), "model_type", None)
    if of != model_type and of in _SISTERS and model_type in _SISTERS:
        found = getattr(transformers, found.__name__.replace(_SISTERS[of], _SISTERS[str(model_type)]), found)
    return found


def _is_encoder(name: str, model_type: object) -> bool:
    """Return whether an unknown class is surely an encoder: its name has the architecture, and no head.

    If it has more weights than the encoder, the load refuses them by name.
    """
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING or _HEAD.search(name):
        return False
    stem = re.sub(r"[^a-z0-9]", "", model_type)
    return stem in re.sub(r"[^a-z0-9]", "", name.lower()) or _ENCODER.search(name) is not None
