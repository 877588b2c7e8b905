"""What a failed request to the Hub tells: its response, its reason, and whether another try may succeed."""

from collections.abc import Iterator
from typing import Any


def describe_failure(error: BaseException) -> str:
    """Return what went wrong with a request, as a sentence without an address."""
    if (response := response_of(error)) is not None:
        return f"It answered {response.status_code}."
    cause = list(_causes(error))[-1]
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}."
    return f"The connection failed ({type(cause).__name__})."


def response_of(error: BaseException) -> Any:
    """Return the HTTP response that an error comes from, or None."""
    return next((cause.response for cause in _causes(error) if getattr(cause, "response", None) is not None), None)


def retry_delay(error: BaseException) -> float | None:
    """Return the seconds that the Hub asks to wait before the next try.

    Returns:
        0.0 if the Hub does not say how long. None if another try cannot succeed.
    """
    import httpx2

    response = response_of(error)
    if response is None:
        return 0.0 if any(isinstance(cause, httpx2.TransportError) for cause in _causes(error)) else None
    if response.status_code not in (408, 429) and response.status_code < 500:
        return None
    delay = response.headers.get("Retry-After", "")
    return float(delay) if delay.isdecimal() else 0.0


def _causes(error: BaseException | None) -> Iterator[Any]:
    while error is not None:
        yield error
        error = error.__cause__
