"""What a server answers in place of a result. Each protocol renders it in its own shape."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from starlette.exceptions import HTTPException

from medvllm import errors

_LONGEST_RETRY_S = 30  # clients sleep for as long as the server says


@dataclass(frozen=True)
class Problem:
    """Why a request has no result.

    Attributes:
        status: The HTTP status.
        code: A word for programs.
        message: A text for people. It never contains a text of the request, or a path of the machine.
        param: The field of the request that is at fault; None for others.
        retry_after_s: The seconds after which the same request may succeed; None if it will not.
        position: The index of the text at fault, from 0.
        text_id: The id that the client gave to this text.
        kind: The class of the library's error, for its own client; None if the server itself refuses.
        details: The attributes of that error which clients may see, without those above.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after_s: float | None = None
    position: int | None = None
    text_id: str | None = None
    kind: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    def headers(self) -> dict[str, str]:
        """Return the headers of the answer. Clients that retry on this status are told whether it helps."""
        if self.retry_after_s is None:
            return {"x-should-retry": "false"}
        return {"Retry-After": str(min(max(ceil(self.retry_after_s), 1), _LONGEST_RETRY_S))}


class ProblemError(HTTPException):
    """Raised by a route to answer with a problem."""

    # It is an HTTPException, because FastAPI replaces other errors that are raised while it reads a body.
    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.status, problem.message)
        self.problem = problem


def problem_of(error: BaseException) -> Problem:
    """Return the problem that an error of a call stands for.

    The messages of errors about files may have paths of this machine, and those of foreign errors anything: the log has
    them, and the client gets the class of the error.
    """
    if isinstance(error, ProblemError):
        return error.problem
    kind = next((found for cls in type(error).__mro__ if (found := _KINDS.get(cls))), None)
    if kind is None:
        return Problem(500, "internal_error", "The server failed. Its log says why.")
    status, code, is_shown = kind
    position = getattr(error, "position", None)
    param = getattr(error, "option", None) or getattr(error, "argument", None) or getattr(error, "keyword", None)
    retry_after_s = _RETRY_S.get(status)
    if isinstance(error, errors.OverloadedError) and error.retry_after_s is not None:
        retry_after_s = error.retry_after_s
    if isinstance(error, errors.BudgetError) and getattr(error.plan, "fit", "later") == "never":
        status, code, retry_after_s = 507, "model_too_large", None
    message = str(error) if is_shown else f"The model cannot be loaded or run: {type(error).__name__}."
    shown = {name: getattr(error, name, None) for name in _DETAILS} if is_shown else {}
    details = {name: value for name, value in shown.items() if value is not None and value != ()}
    return Problem(status, code, message, param, retry_after_s, position, kind=type(error).__name__, details=details)


# Status, code, and whether the client sees the message.
_KINDS: dict[type[BaseException], tuple[int, str, bool]] = {
    errors.ModelNotFoundError: (404, "model_not_found", True),
    errors.ModelNameError: (404, "model_not_found", True),
    errors.InputTooLongError: (422, "input_too_long", True),
    errors.RequestError: (422, "invalid_request", True),
    errors.OverloadedError: (429, "overloaded", True),
    errors.DeadlineError: (504, "deadline_exceeded", True),
    errors.RequestCancelledError: (499, "client_closed_request", True),
    errors.BudgetError: (503, "memory_full", True),
    errors.DeviceMemoryError: (503, "memory_full", False),
    errors.GatedModelError: (403, "model_gated", False),
    errors.HubUnreachableError: (502, "hub_unreachable", False),
    errors.SourceError: (500, "model_files_unusable", False),
    errors.LoadError: (500, "model_unusable", False),
    errors.CatalogError: (503, "catalog_unusable", False),
    errors.SettingError: (500, "server_misconfigured", False),
    errors.MissingDependencyError: (501, "not_installed", True),
}
# No values: they may be texts.
_DETAILS = (
    *("option", "keyword", "argument", "model", "task", "limit", "queued_tokens", "timeout_s"),
    *("candidates", "package", "reference"),
)
_RETRY_S = {429: 1.0, 502: 10.0, 503: 5.0}
