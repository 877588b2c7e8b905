"""The task embed: one vector for each text."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from medvllm import progress
from medvllm.engine.model_runner.batches import (
    batch_windows,
    check_finite,
    get_encoder,
    nonfinite_positions,
    run_batch,
)
from medvllm.engine.model_runner.inputs import Text, check_pairs, check_single_texts
from medvllm.engine.model_runner.pooling import Pooler, finish_vectors
from medvllm.engine.model_runner.prompts import choose_prompt, count_prompt_tokens
from medvllm.engine.model_runner.results import Cell
from medvllm.engine.model_runner.windows import Coverage, split_into_windows
from medvllm.errors import RequestError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Embeddings:
    """The vectors of texts.

    Attributes:
        vectors: A tensor of shape [texts, size], float32, on the CPU.
        coverage: What the model read of each text, with its prompt.
    """

    vectors: "torch.Tensor"
    coverage: list[Coverage]

    columns: ClassVar[tuple[str, ...]] = ("TEXT", "TOKENS", "WINDOWS", "VECTOR")

    def rows(self, texts: Sequence[Any]) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each text."""
        for number, (vector, coverage) in enumerate(zip(self.vectors.tolist(), self.coverage, strict=True), 1):
            yield number, coverage.tokens, coverage.windows, vector

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        rows = zip(self.vectors.tolist(), self.coverage, strict=True)
        return [vars(coverage) | {"vector": vector} for vector, coverage in rows]


def embed(
    lease: Lease, texts: Iterable[Text], *, prompt_name: str | None = None, prompt: str | None = None
) -> Embeddings:
    """Return a vector for each text, pooled as the entry and the folder say, or else as the mean of its tokens.

    A text longer than the model is read in overlapping windows, and each token counts once.

    Args:
        lease: The model in use.
        texts: The texts, or pairs if the entry has two `inputs`.
        prompt_name: The name of the prompt to put before each text.
        prompt: The prompt itself. Without either, the prompt of the entry's role applies, or the default prompt.

    Raises:
        RequestError: A text has no tokens, or the model was not trained to embed and its entry states no pooling.
    """
    behaviour, modules = lease.metadata.behaviour, lease.modules
    _check_pooling(lease)
    chosen = choose_prompt(lease, prompt_name, prompt)
    if len(behaviour.inputs) == 2:
        pairs = check_pairs(texts, behaviour.inputs)
        given: Sequence[Text] = [(chosen + first, second) for first, second in pairs]
    else:
        given = [chosen + text for text in check_single_texts(lease, texts, "embed")]
    windows, coverage = split_into_windows(lease.tokenizer, given, behaviour.long_input)
    if (empty := next((window.text for window in windows if not window.input_ids), None)) is not None:
        raise RequestError(f"Text {empty + 1} has no tokens, so it has no vector.\nLeave it out.", position=empty)
    skipped = count_prompt_tokens(lease.tokenizer, chosen) if behaviour.include_prompt is False else 0
    encoder = get_encoder(lease.model)
    size = getattr(encoder.config, "hidden_size", 0)
    pooler = Pooler(behaviour.pooling or "mean", windows, len(coverage), size, skipped)
    for batch in progress.track_items("Running", batch_windows(lease, encoder, windows)):
        pooler.add(batch, run_batch(lease, encoder, batch, "last_hidden_state"))
    vectors = finish_vectors(lease.metadata, modules, pooler.vectors())
    check_finite(lease, nonfinite_positions(vectors, range(len(coverage))))
    return Embeddings(vectors, coverage)


def _check_pooling(lease: Lease) -> None:
    """Raise RequestError if the model was trained for another task, and its entry does not say how to pool."""
    kind, pooling = type(lease.model).__name__, lease.metadata.behaviour.pooling
    if kind.startswith("DPR") and getattr(lease.model.config, "projection_dim", None):
        raise RequestError(
            f"Model {lease.metadata.name!r} is a {kind} with a projection, which ModelRunner does not support.",
            model=lease.metadata.name,
        )
    if pooling is None and kind.startswith("DPR"):
        raise RequestError(
            f"Model {lease.metadata.name!r} is a {kind}, which needs the vector of the first token, but its entry "
            "states no pooling.\nState it with: register(…, pooling='cls')",
            model=lease.metadata.name,
        )
    if pooling is None and kind.endswith(("ForTokenClassification", "ForSequenceClassification")):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {kind}: it was trained to classify, not to embed, and its "
            "entry states no pooling.\nIf you want its vectors, state it with: register(…, pooling='mean')",
            model=lease.metadata.name,
        )
