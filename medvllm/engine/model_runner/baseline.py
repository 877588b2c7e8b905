"""Baselines: what a model returned for synthetic inputs when it was approved, and whether it still does."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medvllm.dtypes import WIDENED
from medvllm.engine.model_runner.embedding.embed import embed
from medvllm.engine.model_runner.foreign_errors import translate_model_errors
from medvllm.engine.model_runner.inference.compute import compute
from medvllm.engine.model_runner.reading.windows import Window
from medvllm.engine.model_runner.tagging.entities import find_entities
from medvllm.engine.model_runner.tagging.tagged_text import is_token_classifier
from medvllm.engines import EngineModel
from medvllm.errors import LoadError, RequestError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Synthetic texts, no patient's words. They have the case, accents, numbers and abbreviations that matter.
_TEXTS = (
    "Patient denies chest pain; ALS was ruled out on 3 May.",
    "Mr. Juan Peña, 64, café owner, was given aspirin 75 mg o.d. at St. Mary's.",
    "HbA1c 7.2 %, eGFR >60 mL/min/1.73 m²; no evidence of metastasis.",
)
_PROJECTIONS = 16  # numbers kept of each output; a distance estimated from them is off by about a fifth
# Relative error of an output that is allowed. Other libraries and CPUs cause about 1e-6.
_TOLERANCE = {"float64": 1e-3, "float32": 1e-3, "int8": 0.15}
_COARSE_TOLERANCE = 3e-2  # for 16-bit numbers
_SMALLEST_NORM = 1e-6  # avoids a division by zero for an output of zeros


def compute_cases(lease: Lease) -> list[dict[str, Any]]:
    """Return the model's output for each synthetic input: token ids, spans, and random projections of the output.

    The projections on fixed random directions are enough to estimate how far another output is.
    """
    return [_compute_case(lease, inputs) for inputs in _inputs(lease)]


def find_deviations(lease: Lease, baseline: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return how the model deviates from each case of its baseline, or an empty dict if it does not.

    Raises:
        RequestError: medvllm did not record this baseline.
    """
    deviations: dict[str, str] = {}
    for number, case in enumerate(baseline, 1):
        try:
            deviation = _compare(lease, case, _compute_case(lease, case["inputs"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"Case {number} of the baseline of model {lease.metadata.name!r} cannot be read: "
                f"{type(error).__name__}.\nRecord a new one with: medvllm baseline record {lease.metadata.reference}",
                model=lease.metadata.name,
            ) from error
        if deviation:
            deviations[f"case {number}"] = deviation
    return deviations


def _inputs(lease: Lease) -> list[list[str]]:
    """Return the synthetic inputs in the form that the model takes: texts, pairs, or texts with a [MASK]."""
    if len(lease.metadata.behaviour.inputs) == 2:
        return [[_TEXTS[0], _TEXTS[1]], [_TEXTS[2], _TEXTS[0]]]
    mask = lease.tokenizer.mask_token if type(lease.model).__name__.endswith("ForMaskedLM") else None
    return [[text.replace("aspirin", str(mask)) if mask else text] for text in _TEXTS]


def _compute_case(lease: Lease, inputs: Sequence[str]) -> dict[str, Any]:
    import numpy as np

    model, tokenizer = lease.model, lease.tokenizer
    text, pair = inputs if len(inputs) == 2 else (inputs[0], None)
    encoding = tokenizer(text, pair, truncation=True, verbose=False)
    if _is_encoder(model):
        output = embed(lease, [inputs[0] if pair is None else (text, pair)]).vectors
    elif isinstance(model, EngineModel):
        ids = encoding["input_ids"]
        window = Window(0, ids, [1] * len(ids), encoding.get("token_type_ids", ()))
        output = next(found for _, found in compute(lease, model.part, [window]))[None]
    else:
        output = _run_torch(lease, encoding)
    norm = float(np.linalg.norm(output))
    if not math.isfinite(norm):
        raise LoadError(
            f"Model {lease.metadata.name!r} gives NaN or infinity for a plain sentence.\n"
            "In float16 large numbers overflow; load it with: dtype='float32'\n"
            "If it happens in float32 too, the weights are damaged.",
            model=lease.metadata.name,
        )
    case: dict[str, Any] = {
        "inputs": list(inputs),
        "ids": list(encoding["input_ids"]),
        "max_length": tokenizer.model_max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "shape": list(output.shape),
        "projections": _project(output),
        "norm": float(f"{norm:.6g}"),
    }
    case["tolerance"] = _TOLERANCE.get(case["dtype"], _COARSE_TOLERANCE)
    if is_token_classifier(model):
        case["spans"] = [f"{span.start}-{span.end} {span.label}" for span in find_entities(lease, inputs)[0].spans]
    return case


def _is_encoder(model: Any) -> bool:
    """Return whether a model has no head."""
    return model.part == "tokens" if isinstance(model, EngineModel) else model.base_model is model


def _run_torch(lease: Lease, encoding: Mapping[str, Any]) -> "NDArray[np.float32]":
    """Return the first output of a model with a head for one text."""
    import torch

    given = {name: torch.tensor([numbers]).to(lease.model.device) for name, numbers in encoding.items()}
    with translate_model_errors(lease.metadata.name), torch.inference_mode():
        # Of a head, or of a config that asks for tuples.
        output: NDArray[np.float32] = lease.model(**given)[0].float().cpu().numpy()
    return output


def _compare(lease: Lease, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    """Return how a case differs from the recorded one, or None if it does not."""
    for fact in ("dtype", "max_length"):
        if recorded[fact] != found[fact] and not (fact == "dtype" and _is_comparable(lease, recorded, found)):
            return f"{fact} is {found[fact]}, was {recorded[fact]}"
    for fact, words in (("ids", "token ids"), ("shape", "shape of the output")):
        if recorded[fact] != found[fact]:
            return f"{words} changed"
    differences = zip(recorded["projections"], found["projections"], strict=True)
    distance = math.sqrt(sum((a - b) ** 2 for a, b in differences) / _PROJECTIONS)
    error = distance / max(recorded["norm"], _SMALLEST_NORM)
    allowed = recorded["tolerance"]
    if recorded["dtype"] != found["dtype"]:
        allowed = max(allowed, found["tolerance"])
    if not error <= allowed:  # also if it is NaN
        return f"output changed by {error:.1%}; at most {allowed:.1%} is allowed"
    if recorded.get("spans") != found.get("spans"):
        return "spans changed"
    return None


def _is_comparable(lease: Lease, *cases: Mapping[str, Any]) -> bool:
    """Return whether cases of two dtypes have the same weights.

    The first dtype may be the checkpoint's own of 16 bits, and the second float32, which holds its numbers exactly: a
    machine that has no instructions for the first computes in the second. An engine rounds any dtype to int8.
    """
    if isinstance(lease.model, EngineModel) and lease.model.dtype == "int8":
        return True
    own = lease.receipt.proof.dtype
    return own in WIDENED and {case["dtype"] for case in cases} <= {own, "float32"}


def _project(output: "NDArray[np.float32]") -> list[float]:
    """Return the projections of an output on directions of random signs.

    The signs are the bits of a hash, so they are the same on every machine and with every library.
    """
    import numpy as np

    flat = output.ravel()
    projections = []
    for row in range(_PROJECTIONS):
        octets = hashlib.shake_256(b"medvllm %d" % row).digest(-(-flat.size // 8))
        bits = np.unpackbits(np.frombuffer(octets, dtype=np.uint8), bitorder="little")[: flat.size]
        signs = bits.astype(np.float32) * 2 - 1
        projections.append(float(f"{float(signs @ flat):.6g}"))
    return projections
