"""Whether a model makes vectors at all if neither its entry nor its folder says how they are pooled."""

from contextlib import suppress

from medvllm.engine.model_runner.classification.pairs import is_cross_encoder
from medvllm.engine.model_runner.inference.causality import is_causal
from medvllm.engine.model_runner.inference.part import judges_whole_texts
from medvllm.engines import EngineModel
from medvllm.errors import LoadError, RequestError
from medvllm.heads import task_of_class
from medvllm.model_registry import Lease


def check_pooling(lease: Lease) -> None:
    """Raise RequestError if the model was trained for another task, and nothing says how its vectors are pooled.

    Without a pooling, the vector of a text is the mean of the tokens of an encoder. A decoder has no such usual vector:
    some models take its last token, others the mean.
    """
    name, kind = lease.metadata.name, type(lease.model).__name__
    is_dpr = kind.startswith("DPR")
    if is_dpr and getattr(lease.model.config, "projection_dim", None):
        raise RequestError(
            f"Model {name!r} is a {kind} with a projection, which ModelRunner does not support.\n"
            "List the models that embed with: medvllm list --task embed",
            model=name,
        )
    if lease.metadata.behaviour.pooling is not None:
        return
    if is_dpr:
        raise RequestError(
            f"Model {name!r} is a {kind}, which needs the vector of the first token, but its entry states no pooling."
            "\nState it with: register(…, pooling='cls')",
            model=name,
        )
    task = task_of_class(kind)
    if task not in (None, "embed", "fill-mask", "generate"):
        other = "to classify" if task in ("ner", "classify") else "for another task"
        advice = "\nRank documents with: runner.rerank(query, documents)" if _ranks(lease) else ""
        raise RequestError(
            f"Model {name!r} is loaded as {kind}: it was trained {other}, not to embed, and its entry states "
            f"no pooling.\nIf you want its vectors, state it with: register(…, pooling='mean'){advice}",
            model=name,
        )
    if task != "fill-mask" and _generates(lease):
        raise RequestError(
            f"Model {name!r} is loaded as {kind}, which is made to generate text, and neither its entry nor its folder "
            "says how its vectors are pooled: some models take the last token of a text, others the mean.\n"
            "State what its authors say: register(…, pooling='lasttoken'), or pooling='mean'",
            model=name,
        )


def _ranks(lease: Lease) -> bool:
    return judges_whole_texts(lease.model) and is_cross_encoder(lease)


def _generates(lease: Lease) -> bool:
    """Return whether a model was trained to generate text: a decoder, or an encoder with a decoder behind it."""
    if not isinstance(lease.model, EngineModel):
        base = lease.model.base_model
        if getattr(base.config, "is_encoder_decoder", False):
            return getattr(base, "decoder", None) is not None  # an encoder that was saved alone has none
    with suppress(LoadError):  # what it cannot run, it cannot embed
        return is_causal(lease, "tokens")
    return False
