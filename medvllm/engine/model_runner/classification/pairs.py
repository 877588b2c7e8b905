"""Whether a classifier is a cross-encoder, and whether its one label is the score of a pair of texts."""

from medvllm.errors import LoadError, RequestError
from medvllm.model_registry import Lease


def is_cross_encoder(lease: Lease) -> bool:
    """Return whether the entry or the folder says that a classifier is a cross-encoder, of one label or of several.

    An entry that takes single texts overrules its folder.
    """
    behaviour = lease.metadata.behaviour
    return len(behaviour.inputs) != 1 and (behaviour.task == "rerank" or lease.scoring is not None)


def scores_pairs(lease: Lease) -> bool:
    """Return whether a model has one label, and its entry or its folder says that this is the score of a pair."""
    takes_pairs = len(lease.metadata.behaviour.inputs) == 2 or is_cross_encoder(lease)
    return bool(lease.model.config.num_labels == 1 and takes_pairs)


def check_folder(lease: Lease) -> None:
    """Raise LoadError if the folder of a cross-encoder declares something that is not supported."""
    if lease.scoring is not None and lease.scoring.refusal is not None:
        raise LoadError(
            f"Model {lease.metadata.name!r} cannot score texts: its folder {lease.scoring.refusal}.",
            model=lease.metadata.name,
        )


def check_scores_pairs(lease: Lease) -> None:
    """Raise RequestError unless the model gives one score for a query and a document."""
    name, inputs = lease.metadata.name, lease.metadata.behaviour.inputs
    classes = lease.model.config.num_labels
    if classes != 1 or len(inputs) == 1:
        what = f"has {classes} labels" if classes != 1 else f"takes single texts ({inputs[0]})"
        raise RequestError(
            f"Model {name!r} {what}, so it gives no score for a query and a document.\n"
            "List the models that do with: medvllm list --task rerank",
            model=name,
        )
    if not scores_pairs(lease):
        raise RequestError(
            f"Model {name!r} has one label, and neither its entry nor its folder says that this is the score of a "
            "query and a document.\nIf it is a cross-encoder, register it with: task='rerank'",
            model=name,
        )


def check_has_label(lease: Lease) -> None:
    """Raise RequestError for a cross-encoder whose score has no label, unless its entry names one or classifies."""
    behaviour = lease.metadata.behaviour
    if is_cross_encoder(lease) and scores_pairs(lease) and not behaviour.id2label and behaviour.task != "classify":
        raise RequestError(
            f"Model {lease.metadata.name!r} is a cross-encoder: it scores pairs of texts, and its score has no label.\n"
            "If it has one, register it with: id2label=['RELEVANT']\n"
            "Rank documents by their scores with: runner.rerank(query, documents)",
            model=lease.metadata.name,
        )
