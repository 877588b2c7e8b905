"""Labels of a head: each class has one, and they are what the entry's scheme says."""

import re
from typing import Any

from transformers import PreTrainedConfig

from medvllm.errors import LoadError, WeightsMismatchError
from medvllm.metadata import ModelMetadata
from medvllm.sources.reading import nameless_labels

_OUTSIDE = ("O", "0")
_PLACED = re.compile(r"([BILUES])-.|([BI])$")
_NAMES = "Register it with the name of each class, in order: register(…, id2label=['O', 'B-DISEASE', 'I-DISEASE'])"


def label_map(config: Any) -> dict[int, str] | None:
    """Return the label of each class id, or None when a config names none: LABEL_0, LABEL_1 … say nothing."""
    labels = getattr(config, "id2label", None) or {}
    return None if all(re.fullmatch(r"LABEL_\d+", str(label)) for label in labels.values()) else dict(labels)


def check_label_map(metadata: ModelMetadata, cls: type[Any], config: PreTrainedConfig) -> None:
    """Raise WeightsMismatchError unless each class of a classifying head has a label, and each label is a text."""
    if not _classifies(cls):
        return
    labels: Any = getattr(config, "id2label", None)
    if not isinstance(labels, dict):
        flaw: str | None = "is none"
    elif odd := sorted(map(str, labels.keys() ^ set(range(len(labels))))):
        flaw = f"of {len(labels)} has gaps or keys that are no class's: {', '.join(odd[:3])}"
    else:
        wrong = [key for key, label in labels.items() if not isinstance(label, str) or not label.strip()]
        flaw = f"has no text for class {wrong[0]}, but {labels[wrong[0]]!r:.80}" if wrong else None
    if flaw:
        raise WeightsMismatchError(
            f"The label map (id2label) of model {metadata.name!r} {flaw}.\n{_NAMES}", model=metadata.name
        )


def check_label_names(metadata: ModelMetadata, model: Any) -> None:
    """Raise when the labels of a tagger say nothing (WeightsMismatchError), or are not of the entry's scheme."""
    if not type(model).__name__.endswith("ForTokenClassification"):
        return
    labels = label_map(model.config)
    if labels is None:
        raise nameless_labels(metadata.name, model.num_labels - 1)
    scheme = metadata.behaviour.label_scheme
    if scheme is not None and (flaw := _misfit(list(labels.values()), scheme)):
        raise LoadError(
            f"The labels of model {metadata.name!r} are not written in the entry's label_scheme {scheme!r}: {flaw}.\n"
            "Leave label_scheme out, or name the labels: register(…, id2label=['O', 'B-DISEASE', 'I-DISEASE'])",
            model=metadata.name,
        )


def _classifies(cls: type[Any]) -> bool:
    return cls.__name__.endswith(("ForTokenClassification", "ForSequenceClassification"))


def _misfit(labels: list[str], scheme: str) -> str | None:
    """Return why labels cannot be of a scheme, or None."""
    inside = [label for label in labels if label not in _OUTSIDE]
    if len(inside) == len(labels):
        return "none of them is 'O', outside"
    places = {label: (match[1] or match[2]) for label in inside if (match := _PLACED.match(label))}
    if scheme == "IO":
        # B-CELL beside T-CELL is a name; B- before every name, or an I- anywhere, is a place.
        placed = [label for label, place in places.items() if place in "BI"]
        begins = any(places[label] == "I" for label in placed) or len(placed) == len(inside)
        return f"{placed[0]!r} says B or I" if placed and begins else None
    if inside and not places:
        return f"{inside[0]!r} says no place such as B or I"
    ends = [label for label, place in places.items() if place in "LUES"]
    if scheme == "BIO" and ends:
        return f"{ends[0]!r} is of BILOU"
    if scheme == "BILOU" and inside and not ends:
        return "none of them begins with L, U, E or S"
    return None
