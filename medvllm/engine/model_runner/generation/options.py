"""The options of a generation, checked."""

import math
from dataclasses import dataclass
from typing import Any

from medvllm.errors import RequestError

_MAX_SEED = 2**63 - 1
_COLDEST = 1e-6  # logits divided by less may overflow


@dataclass(frozen=True)
class GenerationOptions:
    """The options of `generate`.

    Attributes:
        max_new_tokens: The longest answer, in tokens; None for the default.
        stop: Texts that end an answer.
        temperature: 0 for the likeliest token at each step; otherwise what the logits are divided by before sampling.
        top_p: Sampling chooses among the likeliest tokens whose probabilities add up to this.
        top_k: Sampling chooses among so many of the likeliest tokens; None for all.
        seed: The start of the random numbers; None for another one at each call.
        allow_special_tokens: Whether "</s>" and the like in a prompt are special tokens.
    """

    max_new_tokens: int | None
    stop: tuple[str, ...]
    temperature: float
    top_p: float
    top_k: int | None
    seed: int | None
    allow_special_tokens: bool


def check_generate_options(
    *,
    max_new_tokens: Any = None,
    stop: Any = None,
    temperature: Any = 0.0,
    top_p: Any = None,
    top_k: Any = None,
    seed: Any = None,
    allow_special_tokens: Any = False,
) -> GenerationOptions:
    """Return the options of a generation. None stands for the default.

    Raises:
        RequestError: An option has another type, is out of range, or would have no effect.
    """
    _check_whole("max_new_tokens", max_new_tokens, 1)
    _check_whole("top_k", top_k, 1)
    _check_whole("seed", seed, 0, _MAX_SEED)
    heat = 0.0 if temperature is None else temperature
    if not _is_number(heat) or not (heat == 0 or _COLDEST <= heat < math.inf):
        raise _bad("temperature", f"0, which means no sampling, or a number from {_COLDEST}", temperature)
    share = 1.0 if top_p is None else top_p
    if not _is_number(share) or not 0 < share <= 1:
        raise _bad("top_p", "a number above 0 and at most 1", top_p)
    if not heat and (share < 1 or top_k is not None):
        option = "top_k" if top_k is not None else "top_p"
        raise RequestError(
            f"{option} has no effect: with temperature 0, the likeliest token is always chosen.\n"
            f"Ask for sampling with: temperature=1.0, {option}={top_k if top_k is not None else share}",
            argument=option,
        )
    if not isinstance(allow_special_tokens, bool):
        raise _bad("allow_special_tokens", "True or False", allow_special_tokens)
    return GenerationOptions(
        max_new_tokens, _check_stop(stop), float(heat), float(share), top_k, seed, allow_special_tokens
    )


def _check_stop(stop: Any) -> tuple[str, ...]:
    given = [] if stop is None else [stop] if isinstance(stop, str) else stop
    texts = tuple(given) if isinstance(given, (list, tuple)) else ("",)
    if not all(isinstance(text, str) and text for text in texts):
        raise RequestError(
            "stop must be a text that is not empty, or a list of such texts.\nWrite it as: stop=['\\n\\n']",
            argument="stop",
        )
    return texts


def _check_whole(option: str, value: Any, least: int, most: int | None = None) -> None:
    if value is not None and (type(value) is not int or value < least or (most is not None and value > most)):
        raise _bad(option, f"a whole number from {least}" + (f" to {most:,}" if most is not None else ""), value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _bad(option: str, wanted: str, value: Any) -> RequestError:
    found = f"{value!r}" if isinstance(value, (int, float)) else type(value).__name__
    return RequestError(f"{option} must be {wanted}, not {found}.", argument=option)
