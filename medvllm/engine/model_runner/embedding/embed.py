"""The task embed: one vector for each text."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.embedding.pooling import Pooler, finish_vectors
from medvllm.engine.model_runner.embedding.prompts import (
    Role,
    check_prompt_options,
    check_role,
    choose_prompt,
    count_prompt_tokens,
)
from medvllm.engine.model_runner.embedding.similarity import Similarity
from medvllm.engine.model_runner.embedding.stated_pooling import check_pooling
from medvllm.engine.model_runner.inference.compute import compute
from medvllm.engine.model_runner.inference.finite import check_finite, nonfinite_positions
from medvllm.engine.model_runner.inputs import Text, check_pairs, check_single_texts
from medvllm.engine.model_runner.option_checks import check_flag, check_long_input
from medvllm.engine.model_runner.reading.commands import check_no_stand_ins, find_commands, has_special_token
from medvllm.engine.model_runner.reading.windows import LongInput, Window, split_into_windows
from medvllm.engine.model_runner.results import Cell, Result
from medvllm.errors import RequestError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Embeddings(Result):
    """The vectors of texts.

    Attributes:
        vectors: An array of shape [texts, size], float32.
        coverage: What the model read of each text.
        similarity: How the model's vectors are compared.
    """

    columns: ClassVar[tuple[str, ...]] = ("text", "tokens", "windows", "vector")

    def __init__(
        self, vectors: "NDArray[np.float32]", coverage: list[Coverage], similarity: Similarity = "cosine"
    ) -> None:
        self.vectors, self.coverage = vectors, coverage
        self.similarity: Similarity = similarity

    def __len__(self) -> int:
        return len(self.coverage)

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each text."""
        for number, (vector, coverage) in enumerate(zip(self.vectors, self.coverage, strict=True), 1):
            yield number, coverage.tokens, coverage.windows, vector.tolist()

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        rows = zip(self.vectors.tolist(), self.coverage, strict=True)
        return [coverage.to_dict() | {"vector": vector} for vector, coverage in rows]


def check_embed_options(
    *,
    role: Role | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> None:
    """Raise RequestError for an option of `embed` that cannot be used with any model."""
    check_prompt_options(prompt_name, prompt, role)
    check_long_input(long_input)
    check_flag("allow_special_tokens", allow_special_tokens)


def embed(
    lease: Lease,
    texts: Iterable[Text],
    *,
    role: Role | None = None,
    prompt_name: str | None = None,
    prompt: str | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> Embeddings:
    """Return a vector for each text, pooled as the entry and the folder say, or else as the mean of its tokens.

    A text longer than the model is by default read in overlapping windows, and each token counts once.

    Args:
        lease: The model in use.
        texts: The texts, or pairs if the entry has two `inputs`.
        role: Which side of a search the vectors are for: the prompt of that name is put before each text.
        prompt_name: The name of the prompt to put before each text.
        prompt: The prompt itself. Without any of these, the prompt of the entry's role applies, or the default prompt.
        long_input: What becomes of a text that is longer than the model; None for what the entry says.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens. Those in a prompt always are.

    Raises:
        RequestError: A text has no tokens, or the model was not trained to embed and its entry states no pooling.
    """
    behaviour, modules = lease.metadata.behaviour, lease.modules
    check_pooling(lease)
    check_role(lease, role)
    chosen = choose_prompt(lease, prompt_name, prompt, role)
    given: Sequence[Text]
    if len(behaviour.inputs) == 2:
        given = check_pairs(texts, behaviour.inputs)
    else:
        given = check_single_texts(lease, texts, "embed")
    windows, coverage = _read(lease, chosen, given, long_input, allow_special_tokens)
    if (empty := next((window.text for window in windows if not window.input_ids), None)) is not None:
        raise RequestError(f"Text {empty + 1} has no tokens, so it has no vector.\nLeave it out.", position=empty)
    skipped = count_prompt_tokens(lease.tokenizer, chosen) if behaviour.include_prompt is False else 0
    pooler = Pooler(behaviour.pooling or "mean", windows, len(coverage), skipped)
    for window, hidden in compute(lease, "tokens", windows):
        pooler.add(window, hidden)
    pooled = pooler.vectors(getattr(lease.model.config, "hidden_size", 0))
    vectors = finish_vectors(lease.metadata, modules, pooled)
    check_finite(lease, nonfinite_positions(vectors, range(len(coverage))))
    return Embeddings(vectors, coverage, behaviour.similarity or "cosine")


def _read(
    lease: Lease, prompt: str, given: Sequence[Text], long_input: LongInput | None, allow_special_tokens: bool
) -> tuple[list[Window], list[Coverage]]:
    """Return the windows of texts with a prompt before each, and the coverage of the texts without it.

    Of a pair, the first text has the prompt.
    """
    tokenizer, policy = lease.tokenizer, long_input or lease.metadata.behaviour.long_input
    commands = None
    if not allow_special_tokens and has_special_token(tokenizer, prompt):
        commands = find_commands(tokenizer)
        check_no_stand_ins(["".join(text) for text in given])
        prompt, allow_special_tokens = commands.write(prompt), commands.allow_special_tokens
    prompted: list[Text] = [prompt + text if isinstance(text, str) else (prompt + text[0], text[1]) for text in given]
    windows, coverage = split_into_windows(
        commands.tokenizer if commands else tokenizer, prompted, policy, allow_special_tokens=allow_special_tokens
    )
    prefixes = [len(prompt) if isinstance(text, str) else 0 for text in given]
    read = [covered.without_prefix(prefix) for covered, prefix in zip(coverage, prefixes, strict=True)]
    return commands.read(windows) if commands else windows, read
