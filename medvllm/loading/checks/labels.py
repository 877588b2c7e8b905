"""The labels of a head: each class has a name, and the names follow the entry's label scheme."""

from typing import Any

from transformers import PreTrainedConfig

from medvllm.errors import LoadError, WeightsMismatchError
from medvllm.label_schemes import label_map, read_scheme
from medvllm.metadata import ModelMetadata
from medvllm.sources.folder_facts import nameless_labels_error

_NAMES = "Register it with the name of each class, in order: register(…, id2label=['O', 'B-DISEASE', 'I-DISEASE'])"


def check_label_map(metadata: ModelMetadata, cls: type[Any], config: PreTrainedConfig) -> None:
    """Raise WeightsMismatchError unless each class of a classifier has a label, and each label is text."""
    if not _classifies(cls):
        return
    labels: Any = getattr(config, "id2label", None)
    if not isinstance(labels, dict):
        flaw: str | None = "is missing or not a map"
    elif odd := sorted(map(str, labels.keys() ^ set(range(len(labels))))):
        flaw = f"has {len(labels)} labels with gaps, or with keys that are not class ids: {', '.join(odd[:3])}"
    else:
        wrong = [key for key, label in labels.items() if not isinstance(label, str) or not label.strip()]
        flaw = f"has {labels[wrong[0]]!r:.80} for class {wrong[0]}, which must be text" if wrong else None
    if flaw:
        raise WeightsMismatchError(
            f"The label map (id2label) of model {metadata.name!r} {flaw}.\n{_NAMES}", model=metadata.name
        )


def check_label_names(metadata: ModelMetadata, model: Any) -> None:
    """Raise unless the labels of a token classifier have names that follow the entry's scheme.

    Raises:
        WeightsMismatchError: The labels are only LABEL_0, LABEL_1, …
        LoadError: The labels do not follow the scheme.
    """
    if not type(model).__name__.endswith("ForTokenClassification"):
        return
    labels = label_map(model.config)
    if labels is None:
        raise nameless_labels_error(metadata.name, model.num_labels - 1)
    behaviour = metadata.behaviour
    if behaviour.label_scheme is None and behaviour.outside_label is None:
        return  # entities are asked for, or not
    try:
        read_scheme(list(labels.values()), behaviour.label_scheme, behaviour.outside_label)
    except ValueError as flaw:
        stated = "label_scheme" if behaviour.label_scheme else "outside_label"
        raise LoadError(
            f"The labels of model {metadata.name!r} do not follow the entry's {stated} "
            f"{getattr(behaviour, stated)!r}: {flaw}.\n"
            f"Leave out {stated}, or name the labels: register(…, id2label=['O', 'B-DISEASE', 'I-DISEASE'])",
            model=metadata.name,
        ) from None


def _classifies(cls: type[Any]) -> bool:
    return cls.__name__.endswith(("ForTokenClassification", "ForSequenceClassification"))
