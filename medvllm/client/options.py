"""The options of a client's methods: those of the task, as `ModelRunner` has them, and those of the request."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from medvllm.engine.model_runner.classification.classify import Combination
    from medvllm.engine.model_runner.classification.head import Activation
    from medvllm.engine.model_runner.classification.rerank import ScoreActivation
    from medvllm.engine.model_runner.embedding.prompts import Role
    from medvllm.engine.model_runner.reading.windows import LongInput
    from medvllm.engine.model_runner.tagging.aggregation import Aggregation
    from medvllm.engines import EngineName, Precision

# What the request has beside the options of the task, and its word there.
OF_REQUEST = {
    "engine": "engine",
    "precision": "precision",
    "with_receipt": "receipt",
    "priority": "priority",
    "timeout_s": "timeout_s",
    "keep_alive": "keep_alive",
}


class RequestOptions(TypedDict, total=False):
    """What the requests of all tasks have."""

    engine: "EngineName"
    """What computes; that of the server by default."""
    precision: "Precision"
    """In which precision an engine may compute; float32 by default."""
    with_receipt: bool
    """Whether the result has a receipt of what answered. Folders of the server are left out."""
    priority: Literal["interactive", "bulk"]
    """"interactive" calls go before those that are "bulk"."""
    timeout_s: float
    """Seconds for the call, with its retries; those of the client by default."""
    keep_alive: float | str
    """How long the model stays in memory afterwards: seconds, a duration such as "10m", or -1 for always."""


class TextOptions(RequestOptions, total=False):
    """What the tasks that read long texts have."""

    allow_special_tokens: bool
    long_input: "LongInput | None"


class EmbedOptions(TextOptions, total=False):
    """The options of `embed`."""

    role: "Role | None"
    prompt_name: str | None
    prompt: str | None


class EntityOptions(TextOptions, total=False):
    """The options of `entities`."""

    threshold: float
    labels: Sequence[str] | None
    aggregation: "Aggregation | None"


class RedactOptions(RequestOptions, total=False):
    """The options of `redact`. A `key` of an operator names a key of the server."""

    operators: Mapping[str, Mapping[str, Any]] | None
    threshold: float
    labels: Sequence[str] | None
    documents: Sequence[str] | None
    allow_special_tokens: bool


class ClassifyOptions(TextOptions, total=False):
    """The options of `classify`."""

    top_k: int | None
    activation: "Activation | None"
    windows: "Combination | None"


class AssertionOptions(RequestOptions, total=False):
    """The options of `assertions`."""

    allow_special_tokens: bool


class RerankOptions(TextOptions, total=False):
    """The options of `rerank`."""

    top_k: int | None
    activation: "ScoreActivation | None"


class FillMaskOptions(RequestOptions, total=False):
    """The options of `fill_mask`."""

    targets: Iterable[str] | None
    top_k: int | None
    allow_special_tokens: bool


class GenerateOptions(RequestOptions, total=False):
    """The options of `generate`."""

    max_new_tokens: int | None
    stop: str | Sequence[str] | None
    temperature: float
    top_p: float | None
    top_k: int | None
    seed: int | None
    allow_special_tokens: bool
