"""Whether a model in use is a decoder: what it makes of a token never depends on the tokens after it."""

from typing import TYPE_CHECKING

from medvllm.engine.model_runner.inference.part import Part, find_part
from medvllm.engine.model_runner.inference.torch_forward import TorchForward
from medvllm.engine.model_runner.inference.trial import Outcomes
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.engines import EngineModel
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_outcomes: Outcomes[bool] = Outcomes()


def is_causal(lease: Lease, part: Part) -> bool:
    """Return whether a part of a model is a decoder. It is tried once for each model if the config does not tell.

    Args:
        lease: The model in use.
        part: The part that has numbers for each token: "tokens" or "head_tokens".

    Raises:
        LoadError: The model cannot run.
        RequestError: The model does not read text.
    """
    if isinstance(lease.model, EngineModel):
        return lease.model.is_causal
    from medvllm.loading.causality import tell_causality, try_causality

    module = find_part(lease.model, part)
    if (told := tell_causality(module.config)) is not None:
        return told

    def attempt() -> bool:
        forward = TorchForward(lease, part)

        def compute(ids: list[int]) -> "NDArray[np.float32]":
            return forward.run([Window(0, ids, [])])[0]

        return try_causality(compute, lease.tokenizer, lease.model.dtype)

    return _outcomes.find(lease, module, part, attempt)
