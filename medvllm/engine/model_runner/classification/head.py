"""The head of a text classifier: its labels, its logits, and how these become scores."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

from medvllm.activations import sigmoid, softmax
from medvllm.engine.model_runner.inference.compute import compute
from medvllm.engine.model_runner.inference.finite import check_finite, nonfinite_positions
from medvllm.engine.model_runner.inference.part import judges_whole_texts
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.errors import LoadError, RequestError, WeightsMismatchError
from medvllm.label_schemes import label_map
from medvllm.model_registry import Lease
from medvllm.sources.folder_facts import nameless_labels_error

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Activation = Literal["softmax", "sigmoid", "none"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def check_classifier(lease: Lease, task: str) -> None:
    """Raise RequestError if the model does not judge whole texts."""
    if not judges_whole_texts(lease.model):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(lease.model).__name__}, which does not judge whole "
            f"texts, as task {task!r} needs.\nList the models that do with: medvllm list --task {task}",
            model=lease.metadata.name,
        )


def get_labels(lease: Lease) -> list[str]:
    """Return the label of each class, in the order of the logits.

    Raises:
        WeightsMismatchError: They are called LABEL_0, LABEL_1 and so on, which tells nothing; or two have one name.
    """
    config = lease.model.config
    labels = label_map(config)
    if labels is None:
        if config.num_labels > 1:
            raise nameless_labels_error(lease.metadata.name, config.num_labels - 1, ("PRESENT", "ABSENT"))
        behaviour = lease.metadata.behaviour
        if behaviour.id2label is None:
            is_single = len(behaviour.inputs) == 1
            advice = "" if is_single else "If it is a cross-encoder, register it with: task='rerank'\n"
            raise WeightsMismatchError(
                f"Model {lease.metadata.name!r} names its one label LABEL_0, which does not tell what it stands for.\n"
                f"{advice}{'Register' if is_single else 'Otherwise register'} it with the name of the label: "
                "id2label=['SEVERITY']",
                model=lease.metadata.name,
            )
        labels = config.id2label
    names = [labels[number] for number in range(len(labels))]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise WeightsMismatchError(
            f"Two classes of model {lease.metadata.name!r} have the label {twice!r}, so its score would be divided.\n"
            "Register it with a name for each class, in order: register(…, id2label=['PRESENT', 'ABSENT'])",
            model=lease.metadata.name,
        )
    return names


def compute_logits(lease: Lease, windows: Sequence[Window]) -> "NDArray[np.float32]":
    """Return the logits of windows, of shape [windows, classes].

    Raises:
        RequestError: A text has no tokens.
        LoadError: The model cannot run, or returns NaN or infinity.
    """
    import numpy as np

    if (empty := next((window.text for window in windows if not window.input_ids), None)) is not None:
        raise RequestError(f"Text {empty + 1} has no tokens, so it has no label.\nLeave it out.", position=empty)
    places = {id(window): place for place, window in enumerate(windows)}
    logits = np.zeros((len(windows), lease.model.config.num_labels), dtype=np.float32)
    for window, row in compute(lease, "head_texts", windows):
        logits[places[id(window)]] = row
    check_finite(lease, nonfinite_positions(logits, [window.text for window in windows]))
    return logits


def choose_activation(lease: Lease, given: Activation | None) -> Activation:
    """Return how logits become scores: the caller's choice, the entry's, or what the model's kind of problem asks for.

    As transformers' pipeline does, a model with one label has a sigmoid, and one with several labels a softmax, unless
    the config says that it is a regression ("none") or that its labels do not exclude each other ("sigmoid"). A folder
    of a cross-encoder with several labels may state a sigmoid, too.

    Raises:
        RequestError: A softmax over a single label, which is always 1.
        LoadError: The folder states an activation that is not supported.
    """
    config, declared = lease.model.config, lease.scoring
    by_problem: dict[str | None, Activation] = {"regression": "none", "multi_label_classification": "sigmoid"}
    usual: Activation = by_problem.get(config.problem_type, "softmax" if config.num_labels > 1 else "sigmoid")
    if declared is not None and declared.activation == "sigmoid":
        usual = "sigmoid"
    stated = given or lease.metadata.behaviour.activation
    if stated is None and declared is not None and declared.unknown_activation is not None:
        raise unknown_activation_error(lease.metadata.name, declared.unknown_activation)
    chosen: Activation = stated or usual
    if chosen == "softmax" and config.num_labels == 1:
        raise RequestError(
            f"Model {lease.metadata.name!r} has one label, and a softmax over one label is always 1.\n"
            "Use: activation='sigmoid'",
            model=lease.metadata.name,
            option="activation",
        )
    return chosen


def unknown_activation_error(name: str, flaw: str) -> LoadError:
    """Return the error for a folder that states an activation which is not supported."""
    return LoadError(
        f"Model {name!r} cannot score texts as its authors do: its folder {flaw}.\n"
        "If you want its logits, register it with: activation='none'",
        model=name,
    )


def apply_activation(logits: "NDArray[np.float32]", activation: Activation) -> "NDArray[np.float32]":
    """Return the scores for logits of shape [texts, classes]."""
    if activation == "softmax":
        return softmax(logits)
    return sigmoid(logits) if activation == "sigmoid" else logits
