"""What a server answers in place of a result. Each protocol renders it in its own shape."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from medvllm import errors

logger = logging.getLogger(__name__)

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
        is_local: Whether the client is a command of the server's user, who runs the library on the same machine.
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
    is_local: bool = False

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
        return Problem(500, "internal_error", f"The server failed.\n{_ASK}")
    status, code, shown_as = kind
    position = getattr(error, "position", None)
    param = getattr(error, "option", None) or getattr(error, "argument", None) or getattr(error, "keyword", None)
    retry_after_s = _RETRY_S.get(status)
    if isinstance(error, errors.OverloadedError) and error.retry_after_s is not None:
        retry_after_s = error.retry_after_s
    if isinstance(error, errors.BudgetError) and getattr(error.plan, "fit", "later") == "never":
        status, code, retry_after_s = 507, "model_too_large", None
    message = str(error) if shown_as is None else shown_as.format(type(error).__name__)
    shown = {} if shown_as is not None else {name: getattr(error, name, None) for name in _DETAILS}
    details = {name: value for name, value in shown.items() if value is not None and value != ()}
    return Problem(status, code, message, param, retry_after_s, position, kind=type(error).__name__, details=details)


def describe_failure(error: BaseException) -> str:
    """Return what the log says of an error. No message of the library has a text of a request; others may."""
    kind = type(error).__name__
    return f"{kind}: {error}".replace("\n", " ") if isinstance(error, errors.MedVLLMError) else kind


def log_failure(http: Request, error: BaseException, problem: Problem) -> None:
    """Log an error that is answered with a problem, if it is one of the server and not of the client."""
    if problem.status >= 500:
        logger.error("request %s failed: %s", http.state.about["request_id"], describe_failure(error))


def problem_for(http: Request, error: BaseException) -> Problem:
    """Return the problem that an error stands for, for the client of a request."""
    return replace(problem_of(error), is_local=http.state.is_own)


_ASK = "Ask whoever runs the server. The log has more, under the X-Request-Id of this answer."
_LATER = "Try again later, or ask whoever runs the server."
_FILES = f"The files of the model are missing, not complete or not as they should be on the server: {{}}.\n{_ASK}"
_MEMORY = f"The device of the server ran out of memory: {{}}.\nSend fewer or shorter texts. {_LATER}"
# Status, code, and the message for clients; None for the error's own one.
_KINDS: dict[type[BaseException], tuple[int, str, str | None]] = {
    errors.ModelNotFoundError: (404, "model_not_found", None),
    errors.ModelNameError: (404, "model_not_found", None),
    errors.InputTooLongError: (422, "input_too_long", None),
    errors.RequestError: (422, "invalid_request", None),
    errors.OverloadedError: (429, "overloaded", None),
    errors.DeadlineError: (504, "deadline_exceeded", None),
    errors.RequestCancelledError: (499, "client_closed_request", None),
    errors.BudgetError: (503, "memory_full", None),
    errors.DeviceMemoryError: (503, "memory_full", _MEMORY),
    errors.GatedModelError: (403, "model_gated", f"The Hub does not give the model to the server: {{}}.\n{_ASK}"),
    errors.HubUnreachableError: (502, "hub_unreachable", f"The server cannot reach the Hub: {{}}.\n{_LATER}"),
    errors.SourceError: (500, "model_files_unusable", _FILES),
    errors.LoadError: (500, "model_unusable", f"The model cannot be loaded or run: {{}}.\n{_ASK}"),
    errors.CatalogError: (503, "catalog_unusable", f"The server cannot read its catalogue: {{}}.\n{_LATER}"),
    errors.SettingError: (500, "server_misconfigured", f"A setting of the server cannot be used: {{}}.\n{_ASK}"),
    errors.MissingDependencyError: (501, "not_installed", None),
}
# No values: they may be texts.
_DETAILS = (
    *("option", "keyword", "argument", "model", "task", "limit", "queued_tokens", "timeout_s"),
    *("candidates", "package", "reference"),
)
_RETRY_S = {429: 1.0, 502: 10.0, 503: 5.0}
