"""The connection to the Hub: its address, whether it answers, and retries."""

import logging
import socket
import time
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from medvllm import settings
from medvllm.errors import HubUnreachableError
from medvllm.sources.hub.responses import retry_delay

R = TypeVar("R")
logger = logging.getLogger(__name__)

OFFLINE = "The Hub is not asked: HF_HUB_OFFLINE is set."

_WAITS_S = (0.5, 1.0, 2.0)  # between two tries; huggingface_hub itself retries only some faults
_PATIENCE_S = 30.0  # no further try after this time
_LONGEST_WAIT_S = 60.0  # the most that a Hub may ask for with Retry-After
MAX_TRIES = len(_WAITS_S) + 1


def endpoint() -> str:
    """Return the Hub's address without a password, so that it can be shown and stored."""
    return settings.without_password(_address())


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE forbids requests."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def check_reachable() -> float:
    """Return the seconds that it takes to connect to the Hub, or to the proxy in front of it.

    huggingface_hub tries for 23 seconds, for each file, before it gives up. This check fails early.

    Raises:
        HubUnreachableError: No connection within MEDVLLM_HUB_TIMEOUT seconds.
    """
    url = urlsplit(_address())
    host = url.hostname or ""
    from urllib.request import getproxies, proxy_bypass  # it imports an HTTP client

    proxy = getproxies().get(url.scheme)
    if proxy and not proxy_bypass(host):
        url = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = url.port or (443 if url.scheme == "https" else 80)
    start = time.perf_counter()
    try:
        socket.create_connection((url.hostname or host, port), settings.HUB_TIMEOUT()).close()
    except OSError as error:
        raise HubUnreachableError(f"The Hub at {endpoint()} does not answer: {error}.", endpoint=endpoint()) from error
    return time.perf_counter() - start


def call_with_retries(call: Callable[[], R], max_tries: int = MAX_TRIES) -> R:
    """Return the result of `call`, repeated after faults that usually pass: busy servers, resets, short bodies.

    Raises:
        Exception: The last error of `call`, once it cannot succeed or too many tries failed.
        HubUnreachableError: The Hub stopped answering between two tries.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError

    start = time.monotonic()
    for attempt, wait_s in enumerate(_WAITS_S[: max_tries - 1], 1):
        try:
            return call()
        except (HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError, httpx2.HTTPError) as error:
            delay_s = retry_delay(error)
            if delay_s is None or time.monotonic() - start > _PATIENCE_S:
                raise
            pause_s = max(wait_s, min(delay_s, _LONGEST_WAIT_S))
            logger.info("the Hub failed (%s): try %d in %.1f s", type(error).__name__, attempt + 1, pause_s)
            time.sleep(pause_s)
        check_reachable()
    return call()


def _address() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)
