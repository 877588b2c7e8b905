"""Which class an adapter makes of its base, as which class the base is loaded for it, and with which labels."""

import re
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import transformers
from transformers import PreTrainedConfig

from medvllm.errors import LoadError, WeightsMismatchError
from medvllm.loading.adapters.declaration import (
    NAME_PREFIX,
    read_declaration,
    task_type,
    trained_class,
)
from medvllm.loading.meta_model import build_meta_model
from medvllm.loading.model_class import find_class, resolve_auto_class
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity, LoadOptions
from medvllm.sources.snapshot import Snapshot

_AUTO_CLASSES = {
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
_LABELLED = ("ForTokenClassification", "ForSequenceClassification")
_LAST = re.compile(r"(^|\.)(classifier(\.out_proj)?|classification_head\.out_proj|score|logits_proj)\.weight$")


@dataclass(frozen=True)
class Choice:
    """The classes of an adapter.

    Attributes:
        model_class: The class of the model with the adapter.
        base_class: The class that its base is loaded as. None is the base's own.
    """

    model_class: type[Any]
    base_class: type[Any] | None


def choose_classes(
    metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot, own: type[Any], config: PreTrainedConfig
) -> Choice:
    """Return the class of an adapter, and the one to load its base as.

    The base is loaded as its own class if that has all of the encoder that the adapter needs, so that the adapter
    shares it with the callers of the base. The head of the adapter may be in the adapter's file.

    Args:
        metadata: The adapter's entry.
        options: The options of the call.
        snapshot: The adapter's files.
        own: The base's own class.
        config: The base's config.

    Raises:
        LoadError: The adapter declares something that is not supported here.
    """
    read_declaration(metadata, snapshot)
    chosen = _model_class(metadata, options, snapshot, own, config)
    if chosen is own:
        return Choice(own, None)
    needed, has = (build_meta_model(cls, config) for cls in (chosen, own))
    if needed is None or has is None:
        return Choice(chosen, chosen)
    saved = {name.removeprefix(NAME_PREFIX) for header in snapshot.headers for name in header}
    heads = {name for name in needed.state_dict() if encoder_name(name, needed) is None}
    if heads - saved:
        return Choice(chosen, chosen)
    theirs = {encoder_name(name, has) for name in has.state_dict()}
    lacking = {encoder_name(name, needed) for name in needed.state_dict()} - {None} - theirs
    bare = resolve_auto_class(metadata, transformers.AutoModel, config)
    return Choice(chosen, None if not lacking or own is bare else bare)


def identify_adapter(
    metadata: ModelMetadata, snapshot: Snapshot, choice: Choice, base: Identity, config: PreTrainedConfig
) -> tuple[Identity, PreTrainedConfig]:
    """Return the identity of an adapter's load, and the config of the model with the adapter.

    Args:
        metadata: The adapter's entry.
        snapshot: The adapter's files.
        choice: Its classes.
        base: The identity of its base.
        config: The base's config.

    Raises:
        WeightsMismatchError: The entry names another number of labels than the adapter has.
    """
    own = deepcopy(config)
    if choice.model_class.__name__.endswith(_LABELLED):
        _set_labels(metadata, own, _count_labels(snapshot))
    options = replace(base.options, revision=snapshot.commit, model_class=choice.model_class)
    at = metadata.name, metadata.version, metadata.origin, snapshot.identity
    return Identity(*at, options, snapshot.disk_identity, base=base), own


def encoder_name(name: str, model: Any) -> str | None:
    """Return the name of a weight inside the encoder or decoder of a model; None for one of its head."""
    if model.base_model is model:
        return name
    prefix = f"{model.base_model_prefix}."
    return name.removeprefix(prefix) if name.startswith(prefix) else None


def _model_class(
    metadata: ModelMetadata, options: LoadOptions, snapshot: Snapshot, own: type[Any], config: PreTrainedConfig
) -> type[Any]:
    """Return the class of a model with an adapter: the caller's, the entry's, or the one that it was trained on."""
    given, kind, trained = find_class(metadata, options), task_type(snapshot), trained_class(snapshot)
    if given is not None:
        return resolve_auto_class(metadata, given, config)
    if kind is None:
        found = getattr(transformers, trained or "", own)
        return found if isinstance(found, type) else own
    if kind not in _AUTO_CLASSES:
        raise LoadError(
            f"Adapter {metadata.name!r} was trained for task_type={kind[:80]!r}, which is none of: "
            f"{', '.join(_AUTO_CLASSES)}.\nRegister it with the class to use: model_class='transformers:AutoModel'",
            model=metadata.name,
        )
    return resolve_auto_class(metadata, _AUTO_CLASSES[kind], config)


def _count_labels(snapshot: Snapshot) -> int | None:
    """Return the number of labels of the head in an adapter's file; None if the file has no head."""
    for header in snapshot.headers:
        for name, tensor in header.items():
            if _LAST.search(name) and "lora_" not in name and len(tensor["shape"]) == 2:
                return int(tensor["shape"][0])
    return None


def _set_labels(metadata: ModelMetadata, config: Any, count: int | None) -> None:
    """Name the labels of an adapter: as its entry says, or else as its base does if that has as many."""
    labels = metadata.behaviour.id2label
    if labels is not None and count is not None and len(labels) != count:
        raise WeightsMismatchError(
            f"The entry of {metadata.name!r} has {len(labels)} names (id2label), and its adapter has {count} labels.\n"
            f"Register it with the name of each class, in order: register(…, id2label=[…]), {count} names",
            model=metadata.name,
        )
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: i for i, label in enumerate(labels)}
    elif count is not None and count != config.num_labels:
        config.num_labels = count
