"""The pieces that a tokenizer makes of texts, each with the probability of every type of entity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medvllm import progress
from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.reading.batches import batch_windows, check_finite, nonfinite_positions, run_batch
from medvllm.engine.model_runner.reading.windows import split_into_windows
from medvllm.engine.model_runner.tagging.spans import _PREFIXES, _split_label, infer_scheme
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pieces:
    """The pieces of a part of a text.

    Attributes:
        offsets: The start and end of each piece in the text.
        unknown: Whether each piece stands for something that the vocabulary lacks.
        likely: The probability of each type of entity, of shape [pieces, types].
    """

    offsets: Sequence[tuple[int, int]]
    unknown: Sequence[bool]
    likely: "torch.Tensor"


def find_kinds(lease: Lease) -> list[str | None]:
    """Return the type of entity of each class of the model; None for what is outside."""
    labels = lease.model.config.id2label
    scheme = lease.metadata.behaviour.label_scheme or infer_scheme(labels.values())
    return [_split_label(labels[i], _PREFIXES[scheme])[1] for i in range(len(labels))]


def label_pieces(
    lease: Lease, texts: Sequence[str], *, allow_special_tokens: bool = False
) -> tuple[list[list[Pieces]], list[Coverage]]:
    """Return the pieces of each text, and its coverage. Long texts are read in windows.

    Args:
        lease: The model in use, a token classifier.
        texts: The texts.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens.
    """
    import torch

    model, tokenizer = lease.model, lease.tokenizer
    windows, coverage = split_into_windows(
        tokenizer, texts, lease.metadata.behaviour.long_input, offsets=True, allow_special_tokens=allow_special_tokens
    )
    classes = find_kinds(lease)
    kinds = [kind for kind in dict.fromkeys(classes) if kind is not None]
    sums = torch.tensor([[float(each == kind) for kind in kinds] for each in classes])
    pieces: list[list[Pieces]] = [[] for _ in texts]
    nonfinite: set[int] = set()
    for batch in progress.track_items("Running", batch_windows(lease, model, windows)):
        logits = run_batch(lease, model, batch, "logits")
        # A label at minus infinity is an error, too: it could never be found.
        nonfinite |= nonfinite_positions(logits, [window.text for window in batch])
        likely = logits.softmax(-1).cpu() @ sums
        for window, rows in zip(batch, likely, strict=True):
            kept = [i for i, word in enumerate(window.words) if word is not None and window.counted[i]]
            unknown = [window.input_ids[i] == tokenizer.unk_token_id for i in kept]
            pieces[window.text].append(Pieces([window.offsets[i] for i in kept], unknown, rows[kept]))
    check_finite(lease, nonfinite)
    return pieces, coverage
