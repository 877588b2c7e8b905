"""The errors of huggingface_hub and its HTTP client, and the medvllm error that each becomes."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from medvllm.errors import (
    GatedModelError,
    HubUnreachableError,
    MedVLLMError,
    ModelNameError,
    ModelNotFoundError,
    SnapshotNotFoundError,
    SourceError,
)
from medvllm.sources.hub.network import OFFLINE, endpoint, is_offline
from medvllm.sources.hub.responses import describe_failure, response_of
from medvllm.sources.os_errors import to_source_error

_Convert = Callable[[Any, str, str], MedVLLMError]  # the error, the repository, the revision -> our error
_NO_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


@contextmanager
def map_hub_errors(repo: str, revision: str) -> Iterator[None]:
    """Convert the errors of a block that asks the Hub for a repository. Unknown errors pass unchanged.

    Raises:
        GatedModelError: The repository asks for an agreement or for a token.
        ModelNotFoundError: The Hub has no such repository.
        SnapshotNotFoundError: The repository has no such revision.
        ModelNameError: The repository's id is not valid.
        HubUnreachableError: The Hub did not answer.
        SourceError: The cache cannot be written.
    """
    try:
        yield
    except MedVLLMError:
        raise
    except Exception as error:
        for kinds, convert in _conversions():
            if isinstance(error, kinds):
                raise convert(error, repo, revision) from error
        raise


def not_on_this_machine(repo: str, revision: str, reason: object) -> HubUnreachableError:
    """Return the error for a model that this machine does not have and cannot get now."""
    return HubUnreachableError(
        f"Model {repo!r} at {revision[:40]!r} is not on this machine. {reason}\n"
        f"On a machine that reaches the Hub, run: medvllm pull {repo}\n"
        "Then move it with medvllm export and medvllm import, or give a folder instead of the name.",
        repo=repo,
        revision=revision,
    )


@cache
def _conversions() -> tuple[tuple[tuple[type[BaseException], ...], _Convert], ...]:
    """Return the table of errors. The first row that fits counts, so subclasses come before their bases."""
    import httpx2
    from huggingface_hub import errors as hub

    failed_requests = (
        hub.HfHubHTTPError,
        hub.OfflineModeIsEnabled,
        hub.LocalEntryNotFoundError,
        hub.RevisionResolutionError,
        httpx2.HTTPError,
    )
    return (
        ((hub.GatedRepoError,), _gated),
        ((hub.RepositoryNotFoundError,), _no_repository),
        ((hub.RevisionNotFoundError,), _no_revision),
        ((hub.HFValidationError,), _invalid_id),
        (failed_requests, _failed_request),
        ((OSError, EOFError), _failed_write),
    )


def _gated(error: Exception, repo: str, revision: str) -> MedVLLMError:
    return GatedModelError(
        f"Model {repo!r} is gated: its owners ask for an agreement first.\n"
        f"Accept it at {endpoint()}/{repo}, then: export HF_TOKEN=…",
        repo=repo,
        revision=revision,
    )


def _no_repository(error: Exception, repo: str, revision: str) -> MedVLLMError:
    return ModelNotFoundError(
        f"There is no repository {repo!r} on the Hub at {endpoint()}.\nList the registered models with: medvllm list",
        repo=repo,
        revision=revision,
    )


def _no_revision(error: Exception, repo: str, revision: str) -> MedVLLMError:
    return SnapshotNotFoundError(
        f"Model {repo!r} has no revision {revision!r} on the Hub.", repo=repo, revision=revision
    )


def _invalid_id(error: Exception, repo: str, revision: str) -> MedVLLMError:
    return ModelNameError(f"{repo!r} is not a valid repository id: {error}", repo=repo, revision=revision)


def _failed_request(error: Exception, repo: str, revision: str) -> MedVLLMError:
    status = getattr(response_of(error), "status_code", None)
    if status in (401, 403):
        return GatedModelError(
            f"The Hub refuses access to {repo!r} ({status}).\nSet a token that may read it: export HF_TOKEN=…",
            repo=repo,
            revision=revision,
        )
    reason = OFFLINE if is_offline() else f"The download failed. {describe_failure(error)}"
    return not_on_this_machine(repo, revision, reason)


def _failed_write(error: Exception, repo: str, revision: str) -> MedVLLMError:
    from huggingface_hub import constants

    file = getattr(error, "filename", None)
    if isinstance(error, PermissionError) and file and not Path(file).is_relative_to(constants.HF_HUB_CACHE):
        return to_source_error(error)  # for example the file that holds the token
    advice = ""
    if getattr(error, "errno", None) in _NO_WRITE:
        advice = (
            f"\nCheck the permissions: ls -ld {constants.HF_HUB_CACHE}\n"
            "Or use another cache, in a folder with free space: export HF_HOME=/a/folder"
        )
    return SourceError(
        f"Model {repo!r} could not be stored in the Hub's cache: {error}.{advice}", repo=repo, revision=revision
    )
