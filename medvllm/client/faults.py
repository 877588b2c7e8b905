"""The errors of a server's answers, as the errors of the library; and whether to ask again."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urljoin, urlsplit

from medvllm import __version__, errors
from medvllm.errors import MedVLLMError, RequestError, ServerError

_TRIES = 3
_LONGEST_WAIT_S = 30.0
_RETRIED = (408, 429, 502, 503)
_WAYS_OUT = {  # of errors of TLS
    "CERTIFICATE_VERIFY_FAILED": "If it is the certificate of your server, name its file: SSL_CERT_FILE=CHAIN.pem",
    "WRONG_VERSION_NUMBER": "Does it use TLS? If not, its address begins with http://",
    "RECORD_LAYER_FAILURE": "Does it use TLS? If not, its address begins with http://",
}
_NOTHING_DONE = "Is it running? Start one: medvllm serve"


def error_of(status: int, headers: Mapping[str, str], body: bytes, url: str) -> MedVLLMError:
    """Return the error that an answer stands for: of the library's own class, by the code of the answer.

    Args:
        status: The HTTP status.
        headers: The headers.
        body: The body.
        url: The address of the server.
    """
    problem = _problem(body)
    if problem is None:
        if 300 <= status < 400 and (other := _origin(url, headers.get("location", ""))) is not None:
            message = f"The server at {url} sends its clients to {other}.\nUse that address: MEDVLLM_SERVER={other}"
            return ServerError(message, url=url, status=status)
        message = f"The server at {url} answered with status {status}, and not as a server of medvllm does.\n"
        return ServerError(f"{message}Is this its address? Set it with: MEDVLLM_SERVER", url=url, status=status)
    if problem.get("code") in ("not_found", "method_not_allowed"):  # of a route, not of a model
        return unknown_form(url, status)
    return error_in(problem, url, status, retry_s(headers))


def error_in(
    problem: Mapping[str, Any], url: str, status: int | None = None, retry_after_s: float | None = None
) -> MedVLLMError:
    """Return the error that the record of a problem stands for."""
    message, code = str(problem.get("message") or f"The server failed with status {status}."), problem.get("code")
    kind = _class_of(problem, code, status)
    details = problem.get("details")
    attributes: dict[str, Any] = dict(details) if isinstance(details, dict) else {}
    if isinstance(problem.get("index"), int):
        attributes["position"] = problem["index"]
    if issubclass(kind, errors.OverloadedError | ServerError):
        attributes["retry_after_s"] = retry_after_s
    if kind is ServerError:
        attributes |= {"url": url, "status": status, "code": code}
    return kind(message, **{name: value for name, value in attributes.items() if hasattr(kind, name)})


def retry_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds after which the server says that the same request may succeed; None if it says nothing."""
    if headers.get("x-should-retry", "").lower() == "false":
        return None
    try:
        seconds = float(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(max(seconds, 0.0), _LONGEST_WAIT_S) if seconds == seconds else None


def wait_s(status: int, headers: Mapping[str, str], tries: int, left_s: float) -> float | None:
    """Return how long to wait before the same request is sent again; None if it is not.

    Args:
        status: The status of the answer.
        headers: The headers of the answer.
        tries: How often the request was sent.
        left_s: The seconds that are left for the call.
    """
    seconds = retry_s(headers) if status in _RETRIED and tries < _TRIES else None
    return seconds if seconds is not None and seconds < left_s else None


def not_reached(url: str, why: str) -> ServerError:
    """Return the error for a server that does not answer."""
    way_out = next((text for word, text in _WAYS_OUT.items() if word in why), _NOTHING_DONE)
    return ServerError(f"The server at {url} cannot be reached: {why}.\n{way_out}", url=url)


def unknown_form(url: str, status: int | None = None) -> ServerError:
    """Return the error for a server that is of another version: it lacks a route, or its answer is not understood."""
    return ServerError(
        f"The server at {url} has another version of medvllm, which version {__version__} cannot talk to.\n"
        f"Its version, which the client needs, too: curl {url}/api/version",
        url=url,
        status=status,
    )


def hung_up(url: str) -> ServerError:
    """Return the error for a server that closes each connection without an answer."""
    is_plain = url.startswith("http:")
    way_out = f"Does it use TLS? Then it is: https{url.removeprefix('http')}" if is_plain else _NOTHING_DONE
    return ServerError(f"The server at {url} closed the connection without an answer.\n{way_out}", url=url)


def another(url: str) -> ServerError:
    """Return the error for a program that has the port of a server of this user, and not its key."""
    return ServerError(f"Another program has the port of the server at {url}.\n{_NOTHING_DONE}", url=url)


def broken_off(url: str) -> ServerError:
    """Return the error for an answer that is not complete."""
    return ServerError(f"The answer of the server at {url} broke off.\nAsk it again, or look at its log.", url=url)


def too_late(seconds: float) -> errors.DeadlineError:
    """Return the error for a call whose time is over."""
    return errors.DeadlineError(
        f"The server did not answer within {seconds:g} s.\nAllow more time: timeout_s={10 * seconds:g}",
        timeout_s=seconds,
    )


def _origin(url: str, location: str) -> str | None:
    """Return the scheme and host of another server that a redirection names, without a user or a path."""
    try:
        own, other = urlsplit(url), urlsplit(urljoin(url, location))
        origin = f"{other.scheme}://{other.netloc.rpartition('@')[2]}"
    except ValueError:
        return None
    is_other = other.scheme in ("http", "https") and (other.scheme, other.netloc) != (own.scheme, own.netloc)
    return origin if is_other and origin.isascii() and origin.isprintable() else None


def _problem(body: bytes) -> Mapping[str, Any] | None:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    problem = content.get("error") if isinstance(content, dict) else None
    return problem if isinstance(problem, dict) else None


def _class_of(problem: Mapping[str, Any], code: object, status: int | None) -> type[MedVLLMError]:
    kind = problem.get("kind")
    if isinstance(kind, str) and kind in errors.__all__:
        found: type[MedVLLMError] = getattr(errors, kind)
        return found
    if isinstance(code, str) and code in _CODES:
        return _CODES[code]
    return RequestError if status in (413, 422) else ServerError


_CODES: dict[str, type[MedVLLMError]] = {
    "model_not_found": errors.ModelNotFoundError,
    "input_too_long": errors.InputTooLongError,
    "invalid_request": errors.RequestError,
    "overloaded": errors.OverloadedError,
    "deadline_exceeded": errors.DeadlineError,
    "client_closed_request": errors.RequestCancelledError,
    "memory_full": errors.BudgetError,
    "model_too_large": errors.BudgetError,
    "model_gated": errors.GatedModelError,
    "hub_unreachable": errors.HubUnreachableError,
    "model_files_unusable": errors.SourceError,
    "model_unusable": errors.LoadError,
    "catalog_unusable": errors.CatalogError,
    "server_misconfigured": errors.SettingError,
    "not_installed": errors.MissingDependencyError,
}
