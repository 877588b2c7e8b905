"""From a branch or tag to its commit. The Hub is asked once; the answer holds until `refresh_commit`."""

import functools
import logging

from medvllm.errors import HubUnreachableError
from medvllm.names import is_commit
from medvllm.sources.digest_cache import digest_cache
from medvllm.sources.hub.errors import map_hub_errors, not_on_this_machine
from medvllm.sources.hub.network import call_with_retries, check_reachable, endpoint, is_offline
from medvllm.sources.hub.responses import describe_failure, retry_delay
from medvllm.sources.os_errors import to_source_error

logger = logging.getLogger(__name__)


def commit_of(repo: str, revision: str | None) -> str:
    """Return the commit of a branch or tag (None: `main`), as this machine first saw it."""
    if is_commit(revision):
        return revision
    return digest_cache().commit(endpoint(), repo, revision or "main") or refresh_commit(repo, revision)


def refresh_commit(repo: str, revision: str | None) -> str:
    """Return the commit of a branch or tag (None: `main`) as the Hub has it now, and remember it."""
    if is_commit(revision):
        return revision
    commit = _ask_commit(repo, revision or "main")
    digest_cache().keep_commit(endpoint(), repo, revision or "main", commit)
    return commit


def _ask_commit(repo: str, revision: str) -> str:
    """Return the Hub's answer, or the commit in the Hub's cache if there is no answer."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError

    cause: Exception
    ask = functools.partial(HfApi().resolve_revision, repo, revision=revision)
    with map_hub_errors(repo, revision):
        if is_offline():
            return str(ask(local_files_only=True).resolved)
        try:
            cached: str | None = str(ask(local_files_only=True).resolved)
        except RevisionResolutionError:
            cached = None
        try:
            check_reachable()
            # huggingface_hub tries for 23 s by itself. That is enough where a cached commit can stand in.
            return str((call_with_retries(ask) if cached is None else ask()).resolved)
        except HubUnreachableError as error:
            cause, reason = error, str(error)
        except (HfHubHTTPError, LocalEntryNotFoundError, RevisionResolutionError, httpx2.HTTPError) as error:
            if retry_delay(error) is None:  # the Hub did answer, and said no
                raise
            cause, reason = error, f"The request failed. {describe_failure(error)}"
        except PermissionError as error:  # the token's file, or the cache, belongs to another user
            cause, reason = error, str(to_source_error(error))
    if cached is None:
        raise not_on_this_machine(repo, revision, reason) from cause
    logger.warning("the Hub does not answer: using %r at %s, the commit in the Hub's cache", repo, cached[:7])
    return cached
