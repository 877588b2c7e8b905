"""The reason for a change, as the history keeps it."""

from medvllm.errors import RequestError
from medvllm.spelling import has_lone_surrogate

_MAX_REASON = 2000  # characters


def check_reason(reason: str | None) -> None:
    """Raise RequestError if the history cannot keep a reason."""
    if reason is not None and not 0 < len(reason) <= _MAX_REASON:
        raise RequestError(f"A reason must have 1 to {_MAX_REASON:,} characters, not {len(reason):,}.")
    if reason is not None and has_lone_surrogate(reason):
        raise RequestError("A reason must not contain half of a surrogate pair: it is not valid Unicode text.")
