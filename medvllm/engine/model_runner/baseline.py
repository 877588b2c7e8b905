"""Acceptance tests: what a model made of synthetic inputs when it was accepted, and whether it still does."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.edge import running
from medvllm.engine.model_runner.entities import find_entities, is_tagger
from medvllm.engine.model_runner.tasks import embed
from medvllm.errors import LoadError, RequestError
from medvllm.model_registry import Lease

if TYPE_CHECKING:
    import torch

# No patient's words: they are written for this purpose, with case, accents, numbers and abbreviations that matter.
_TEXTS = (
    "Patient denies chest pain; ALS was ruled out on 3 May.",
    "Mr. Juan Peña, 64, café owner, was given aspirin 75 mg o.d. at St. Mary's.",
    "HbA1c 7.2 %, eGFR >60 mL/min/1.73 m²; no evidence of metastasis.",
)
_SKETCH = 16  # numbers; the error of an estimate from them is a fifth
_TOLERANCE = {"float64": 1e-3, "float32": 1e-3}  # relative error that is no drift; other libraries and CPUs give 1e-6
_COARSE = 3e-2  # of 16-bit numbers
_NOISE = 1e-6  # what rounding leaves of a vector of nothing


def cases(lease: Lease) -> list[dict[str, Any]]:
    """Return what the model makes of the synthetic inputs: token ids, spans, and a sketch of its output each.

    A sketch is the output's projections on fixed random directions: enough to estimate how far another output is.
    """
    return [_case(lease, inputs) for inputs in _inputs(lease)]


def drift(lease: Lease, accepted: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return for each acceptance test how the model differs from what was accepted; an empty dict when it does not.

    RequestError: the tests were not made by this program.
    """
    flaws: dict[str, str] = {}
    for number, case in enumerate(accepted, 1):
        try:
            flaw = _flaw(case, _case(lease, case["inputs"]))
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(
                f"Acceptance test {number} of model {lease.metadata.name!r} cannot be read: {type(error).__name__}.\n"
                f"Record them anew: medvllm baseline record {lease.metadata.name}",
                model=lease.metadata.name,
            ) from error
        if flaw:
            flaws[f"acceptance test {number}"] = flaw
    return flaws


def _inputs(lease: Lease) -> list[list[str]]:
    """Return the synthetic inputs in the shape that the model takes: texts, pairs, texts with a gap."""
    if len(lease.metadata.behaviour.inputs) == 2:
        return [[_TEXTS[0], _TEXTS[1]], [_TEXTS[2], _TEXTS[0]]]
    mask = lease.tokenizer.mask_token if type(lease.model).__name__.endswith("ForMaskedLM") else None
    return [[text.replace("aspirin", str(mask)) if mask else text] for text in _TEXTS]


def _case(lease: Lease, inputs: Sequence[str]) -> dict[str, Any]:
    import torch

    model, tokenizer = lease.model, lease.tokenizer
    text, pair = inputs if len(inputs) == 2 else (inputs[0], None)
    encoding = tokenizer(text, pair, truncation=True, verbose=False, return_tensors="pt").to(model.device)
    if model.base_model is model:
        output = embed(lease, [inputs[0] if pair is None else (text, pair)]).vectors
    else:
        with running(lease.metadata.name), torch.inference_mode():
            output = model(**encoding)[0].float().cpu()  # of a head, or of a config that asks for tuples
    norm = float(output.norm())
    if not math.isfinite(norm):
        raise LoadError(
            f"Model {lease.metadata.name!r} gives NaN or infinity for a plain sentence: its output is {norm}.",
            model=lease.metadata.name,
        )
    case: dict[str, Any] = {
        "inputs": list(inputs),
        "ids": encoding["input_ids"][0].tolist(),
        "max_length": tokenizer.model_max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "shape": list(output.shape),
        "sketch": _sketch(output),
        "norm": float(f"{norm:.6g}"),
    }
    case["tolerance"] = _TOLERANCE.get(case["dtype"], _COARSE)
    if is_tagger(model):
        case["spans"] = [f"{span.start}-{span.end} {span.label}" for span in find_entities(lease, inputs)[0].spans]
    return case


def _flaw(accepted: Mapping[str, Any], found: Mapping[str, Any]) -> str | None:
    for fact in ("dtype", "max_length", "ids", "shape"):
        if accepted[fact] != found[fact]:
            short = fact in ("dtype", "max_length")
            return f"{fact} {found[fact]}, not {accepted[fact]}" if short else f"other {fact} than accepted"
    differences = zip(accepted["sketch"], found["sketch"], strict=True)
    distance = math.sqrt(sum((a - b) ** 2 for a, b in differences) / _SKETCH)
    error = distance / max(accepted["norm"], _NOISE)
    if not error <= accepted["tolerance"]:  # also when it is no number
        return f"output off by {error:.2g} of its length, where {accepted['tolerance']:g} is allowed"
    if accepted.get("spans") != found.get("spans"):
        return "other spans than accepted"
    return None


def _sketch(output: "torch.Tensor") -> list[float]:
    """Return the projections of an output on directions of random signs.

    The signs are the bits of a hash: they are the same everywhere, whatever a library's generator does.
    """
    import torch

    flat = output.flatten()
    sketch = []
    for row in range(_SKETCH):
        octets = bytearray(hashlib.shake_256(b"medvllm %d" % row).digest(-(-flat.numel() // 8)))
        bits = (torch.frombuffer(octets, dtype=torch.uint8).unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
        signs = bits.flatten()[: flat.numel()].float() * 2 - 1
        sketch.append(float(f"{float(signs @ flat):.6g}"))
    return sketch
