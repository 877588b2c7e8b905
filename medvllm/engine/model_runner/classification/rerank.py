"""The task rerank: documents in the order in which they answer a query."""

from collections.abc import Iterable
from typing import Literal, get_args

from medvllm.engine.model_runner.classification.classify import combine_windows
from medvllm.engine.model_runner.classification.head import (
    Activation,
    apply_activation,
    check_classifier,
    compute_logits,
    unknown_activation_error,
)
from medvllm.engine.model_runner.classification.pairs import check_folder, check_scores_pairs
from medvllm.engine.model_runner.inputs import check_query, check_texts
from medvllm.engine.model_runner.option_checks import check_choice, check_count, check_flag, check_long_input
from medvllm.engine.model_runner.ranking import RankedText, Ranking
from medvllm.engine.model_runner.reading.windows import LongInput, split_into_windows
from medvllm.errors import RequestError
from medvllm.model_registry import Lease

ScoreActivation = Literal["sigmoid", "none"]


def check_rerank_options(
    *,
    query: str | None = None,
    top_k: int | None = None,
    activation: ScoreActivation | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> None:
    """Raise RequestError for an option of `rerank` that cannot be used with any model."""
    check_query(query)
    if top_k is not None:
        check_count("top_k", top_k)
    if activation is not None:
        check_choice("activation", activation, get_args(ScoreActivation))
    check_long_input(long_input)
    check_flag("allow_special_tokens", allow_special_tokens)


def rerank(
    lease: Lease,
    documents: Iterable[str],
    *,
    query: str,
    top_k: int | None = None,
    activation: ScoreActivation | None = None,
    long_input: LongInput | None = None,
    allow_special_tokens: bool = False,
) -> Ranking:
    """Return the documents in the order of their scores for the query, the best first.

    A document that is longer than the model is by default read in windows, each with the whole query, and has the
    score of its best window. Documents of equal scores keep their order.

    Args:
        lease: The model in use.
        documents: The documents.
        query: The query.
        top_k: How many documents to return; None for all.
        activation: "sigmoid" for scores from 0 to 1, "none" for logits; None for what the entry or the folder says.
        long_input: What becomes of a text that is longer than the model; None for what the entry says.
        allow_special_tokens: Whether "[SEP]" and the like in a text are special tokens.

    Raises:
        InputTooLongError: The query leaves no room for a document, or the entry forbids splitting a document.
        RequestError: The model gives no score for a pair of texts, or a document cannot be used.
    """
    check_classifier(lease, "rerank")
    given = check_texts(documents)
    chosen = _find_activation(lease, activation)
    prompt = lease.scoring.prompt if lease.scoring else ""
    windows, coverage = split_into_windows(
        lease.tokenizer,
        [(prompt + query, document) for document in given],
        long_input or lease.metadata.behaviour.long_input,
        allow_special_tokens=allow_special_tokens,
    )
    scores = combine_windows(compute_logits(lease, windows), windows, len(given), "max")
    ranked = [
        RankedText(index, score, covered)
        for index, (score, covered) in enumerate(
            zip(apply_activation(scores, chosen)[:, 0].tolist(), coverage, strict=True)
        )
    ]
    return Ranking(sorted(ranked, key=lambda document: -document.score)[:top_k])


def _find_activation(lease: Lease, given: ScoreActivation | None) -> Activation:
    """Return how the logit of a pair becomes its score: as the caller, the entry or the folder says, or by a sigmoid.

    Raises:
        RequestError: The model does not give one score for a pair, or the entry's activation makes no order.
        LoadError: The folder declares something that is not supported.
    """
    check_folder(lease)
    check_scores_pairs(lease)
    if given is not None:
        return given
    name, behaviour, declared = lease.metadata.name, lease.metadata.behaviour, lease.scoring
    if behaviour.activation is None and declared is not None and declared.unknown_activation is not None:
        raise unknown_activation_error(name, declared.unknown_activation)
    chosen = behaviour.activation or (declared.activation if declared else None) or "sigmoid"
    if chosen == "softmax":
        raise RequestError(
            f"Model {name!r} has one label, and a softmax over one label is always 1.\n"
            "Register it with: activation='sigmoid', or activation='none' for its logits",
            model=name,
        )
    return chosen
