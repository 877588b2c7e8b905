"""The task fill-mask: word pieces for the gaps in texts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from medvllm.activations import softmax
from medvllm.engine.model_runner.coverage import Coverage
from medvllm.engine.model_runner.foreign_errors import translate_tokenizer_errors
from medvllm.engine.model_runner.inference.compute import compute
from medvllm.engine.model_runner.inference.finite import check_finite, nonfinite_positions
from medvllm.engine.model_runner.inputs import check_option_text, check_single_texts
from medvllm.engine.model_runner.option_checks import check_count, check_flag
from medvllm.engine.model_runner.other_class import advise_class
from medvllm.engine.model_runner.reading.commands import check_no_stand_ins, find_commands
from medvllm.engine.model_runner.reading.windows import Window, check_token_count
from medvllm.engine.model_runner.results import Cell, Result
from medvllm.errors import RequestError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TOP_K = 5


@dataclass(frozen=True)
class Fill:
    """A word piece for a gap.

    Attributes:
        token: The tokenizer's name of the word piece, such as "Ġaspirin" for one after a blank. No two have one name.
        text: What the word piece reads as, such as " aspirin".
        score: Its probability, from 0 to 1.
        id: Its number in the vocabulary.
    """

    token: str
    text: str
    score: float
    id: int


class FilledText(list[list[Fill]]):
    """For each gap in a text, the most likely word pieces, best first.

    Attributes:
        coverage: What the model read of the text.
    """

    def __init__(self, gaps: Iterable[list[Fill]], coverage: Coverage) -> None:
        super().__init__(gaps)
        self.coverage = coverage


class FillMaskResults(Result, list[FilledText]):
    """For each text, for each gap in it, the most likely word pieces, best first."""

    columns: ClassVar[tuple[str, ...]] = ("text", "gap", "token", "score")

    def rows(self) -> Iterator[tuple[Cell, ...]]:
        """Yield a row for each word piece."""
        for number, gaps in enumerate(self, 1):
            for gap_number, fills in enumerate(gaps, 1):
                for fill in fills:
                    yield number, gap_number, fill.token, fill.score

    def to_dict(self) -> list[dict[str, Any]]:
        """Return one record for each text, for JSON."""
        return [gaps.coverage.to_dict() | {"gaps": [[vars(fill) for fill in fills] for fills in gaps]} for gaps in self]


def check_fill_mask_options(
    *, targets: Iterable[str] | None = None, top_k: int | None = None, allow_special_tokens: bool = False
) -> None:
    """Raise RequestError for an option of `fill_mask` that cannot be used with any model."""
    if top_k is not None:
        check_count("top_k", top_k)
    check_flag("allow_special_tokens", allow_special_tokens)
    if targets is not None and not isinstance(targets, (list, tuple)):
        kind = "one text" if isinstance(targets, str) else type(targets).__name__
        raise RequestError(f"targets must be a list of texts, not {kind}.\nWrite it as: [target]", option="targets")
    if targets is not None and not targets:
        raise RequestError(
            "targets must be at least one text.\nLeave it out to score all word pieces.", option="targets"
        )
    for position, target in enumerate(targets or (), 1):
        if not isinstance(target, str) or not target:
            what = "is empty" if isinstance(target, str) else f"must be text, not {type(target).__name__}"
            raise RequestError(f"Target {position} {what}.", option="targets")


def fill_mask(
    lease: Lease,
    texts: Iterable[str],
    *,
    targets: Sequence[str] | None = None,
    top_k: int | None = None,
    allow_special_tokens: bool = False,
) -> FillMaskResults:
    """Return the most likely word pieces for each gap of each text.

    A gap is written as [MASK] or as the tokenizer's own mask.

    Args:
        lease: The model in use.
        texts: The texts, each with at least one gap.
        targets: The only word pieces to score: their names, or texts that are one word piece each.
        top_k: How many word pieces to return for each gap. By default 5, or all targets.
        allow_special_tokens: Whether other special tokens in a text are special tokens.

    Raises:
        InputTooLongError: A text is longer than the model can read at once.
        RequestError: The model cannot fill gaps, a text has none, or a target is not one word piece.
    """
    tokenizer, model = lease.tokenizer, lease.model
    if not type(model).__name__.endswith("ForMaskedLM"):
        raise RequestError(
            f"Model {lease.metadata.name!r} is loaded as {type(model).__name__}, which cannot fill gaps.\n"
            f"{advise_class(lease, 'fill-mask')}",
            model=lease.metadata.name,
        )
    if tokenizer.mask_token_id is None:
        raise RequestError(
            f"The tokenizer of model {lease.metadata.name!r} has no token for a gap, so the model cannot fill one.\n"
            "List the models that can with: medvllm list --task fill-mask",
            model=lease.metadata.name,
        )
    given = check_single_texts(lease, texts, "fill-mask")
    read = _read_texts(tokenizer, given, allow_special_tokens)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    pieces = None if targets is None else _find_pieces(tokenizer, vocabulary, targets)
    names = {number: token for token, number in vocabulary.items() if pieces is None or number in pieces}
    count = top_k or (TOP_K if pieces is None else len(names))
    filled: dict[int, list[list[Fill]]] = {}
    nonfinite: set[int] = set()
    for window, logits in compute(lease, "head_tokens", [window for window, _ in read]):
        probabilities = softmax(logits)
        nonfinite |= nonfinite_positions(probabilities, [window.text] * len(probabilities))
        filled[window.text] = [_rank(tokenizer, names, scores, count) for scores in probabilities]
    check_finite(lease, nonfinite)
    return FillMaskResults(FilledText(filled[window.text], coverage) for window, coverage in read)


def _read_texts(tokenizer: Any, texts: Sequence[str], allow_special_tokens: bool) -> list[tuple[Window, Coverage]]:
    """Return each text as one window, and its coverage. Unless all are allowed, only the mask is a special token."""
    mask = str(tokenizer.mask_token)
    read = []
    if not allow_special_tokens:
        check_no_stand_ins(texts)
    for position, text in enumerate(texts):
        written = text.replace("[MASK]", mask)
        if allow_special_tokens:
            window, coverage = _tokenize(tokenizer, written, len(text), position, splits=False)
        else:
            commands = find_commands(tokenizer)
            written = commands.write(written, only=(mask,))
            splits = not commands.allow_special_tokens
            window, coverage = _tokenize(commands.tokenizer, written, len(text), position, splits=splits)
            window = commands.read([window])[0]
        gaps = [i for i, token in enumerate(window.input_ids) if token == tokenizer.mask_token_id]
        if not gaps:
            raise RequestError(f"Text {position + 1} has no gap to fill.\nWrite the gap as: [MASK]", position=position)
        read.append((replace(window, wanted=gaps), coverage))
    return read


def _tokenize(tokenizer: Any, text: str, length: int, position: int, *, splits: bool) -> tuple[Window, Coverage]:
    """Return a text as one window, and its coverage; `splits`: its special tokens are read as text."""
    with translate_tokenizer_errors(position):
        encoding = tokenizer(text, return_special_tokens_mask=True, split_special_tokens=splits, verbose=False)
    ids = encoding["input_ids"]
    check_token_count(len(ids), tokenizer.model_max_length, position)
    tokens = sum(not special for special in encoding["special_tokens_mask"])
    coverage = Coverage(((0, length),), tokens, ids.count(tokenizer.unk_token_id), 1, False)
    return Window(position, ids, [1] * len(ids), encoding.get("token_type_ids", ())), coverage


def _find_pieces(tokenizer: Any, vocabulary: Mapping[str, int], targets: Sequence[str]) -> set[int]:
    """Return the ids of targets: word pieces by their names, or texts that are one word piece each.

    RequestError names the number of a target, never the target.
    """
    found = set()
    for number, target in enumerate(targets, 1):
        check_option_text(target, f"Target {number}", "targets")
        ids = [vocabulary[target]] if target in vocabulary else _encode(tokenizer, target, number)
        if len(ids) != 1:
            what = f"has {len(ids)} word pieces in" if ids else "is empty in"
            raise RequestError(
                f"Target {number} {what} the vocabulary, and a gap is for one.\n"
                "Leave it out, or write one gap for each word piece: [MASK] [MASK]",
                option="targets",
            )
        if ids[0] == tokenizer.unk_token_id and target not in vocabulary:
            raise RequestError(f"Target {number} is not in the vocabulary.\nLeave it out.", option="targets")
        found.add(ids[0])
    return found


def _encode(tokenizer: Any, target: str, number: int) -> list[int]:
    with translate_tokenizer_errors(None, f"target {number}"):
        encoding = tokenizer(target, add_special_tokens=False, split_special_tokens=True, verbose=False)
    ids: list[int] = encoding["input_ids"]
    return ids


def _rank(tokenizer: Any, names: Mapping[int, str], scores: "NDArray[np.float32]", count: int) -> list[Fill]:
    """Return the likeliest word pieces of `names` for a gap, the best first.

    A model may have rows for which the vocabulary has no word piece.
    """
    import numpy as np

    known = np.array([number for number in names if number < len(scores)], dtype=np.int64)
    best = known[np.argsort(-scores[known], kind="stable")[:count]]
    return [
        Fill(names[number], str(tokenizer.decode([number])), score, number)
        for number, score in zip(best.tolist(), scores[best].tolist(), strict=True)
    ]
