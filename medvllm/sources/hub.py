"""A repository on the Hub, through huggingface_hub and its own cache."""

import functools
import logging
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from medvllm import settings
from medvllm.errors import (
    GatedModelError,
    HubUnreachableError,
    IncompleteSnapshotError,
    MedVLLMError,
    ModelNameError,
    ModelNotFoundError,
    SnapshotNotFoundError,
    SourceError,
)
from medvllm.sources.snapshot import Snapshot, check_complete, weight_files

P = ParamSpec("P")
R = TypeVar("R")
logger = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
_DESCRIPTION = ["*.json", "*.txt", "*.model", "*.jinja"]
_WEIGHTS = ["model.safetensors", "model-*.safetensors"]
_PICKLES = ["pytorch_model.bin", "pytorch_model-*.bin"]
_OTHER_FORMATS = ["onnx/*", "openvino/*", "coreml/*", "original/*", "*/*.safetensors", "*/*.bin"]

# A branch is resolved once in a process, so that a model's commit cannot change between two loads.
_commits: dict[tuple[str, str], str] = {}


def resolve(repo: str, revision: str | None) -> Snapshot:
    """Return the snapshot of `repo` at `revision` (the default branch when None), from the cache when it is there."""
    commit = revision if revision and _COMMIT.fullmatch(revision) else _commit(repo, revision or "main")
    path = _snapshot(repo, commit, _DESCRIPTION + _WEIGHTS)
    if (path / "config.json").is_file() and not weight_files(path):
        path = _snapshot(repo, commit, _DESCRIPTION + _PICKLES)
    try:
        check_complete(path)
    except IncompleteSnapshotError as error:
        raise IncompleteSnapshotError(
            f"Snapshot of {repo!r} at {commit[:7]} cannot be loaded: {error}", repo=repo, commit=commit, path=str(path)
        ) from error
    return Snapshot(path, repo, commit, path)


def endpoint() -> str:
    """Return the Hub's address."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def check_reachable() -> float:
    """Return the seconds that a connection to the Hub took, or raise HubUnreachableError.

    huggingface_hub itself tries for 23 s, for each file, before it gives up.
    """
    url = urlsplit(endpoint())
    host = url.hostname or ""
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


def _translated(call: Callable[P, R]) -> Callable[P, R]:
    """Give errors of huggingface_hub and its HTTP client as ours; the first argument is the repository."""

    @functools.wraps(call)
    def translating(*args: P.args, **kwargs: P.kwargs) -> R:
        import httpx2
        from huggingface_hub import errors as hub

        repo, revision = args[0], args[1]
        facts = {"repo": repo, "revision": revision}
        try:
            return call(*args, **kwargs)
        except MedVLLMError:
            raise
        except hub.GatedRepoError as error:
            raise GatedModelError(
                f"Model {repo!r} is gated: its owners ask for an agreement first.\n"
                f"Accept it at {endpoint()}/{repo}, then: export HF_TOKEN=…",
                **facts,
            ) from error
        except hub.RepositoryNotFoundError as error:
            raise ModelNotFoundError(
                f"Model {repo!r} is neither registered nor on the Hub at {endpoint()}.\n"
                f"List the registered ones with: medvllm list. A folder is written as: ./{repo}",
                **facts,
            ) from error
        except hub.RevisionNotFoundError as error:
            raise SnapshotNotFoundError(f"Model {repo!r} has no revision {revision!r} on the Hub.", **facts) from error
        except hub.HFValidationError as error:
            raise ModelNameError(f"{repo!r} is not a repository's id: {error}", **facts) from error
        except hub.HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else "?"
            if status in (401, 403):
                raise GatedModelError(
                    f"The Hub refuses access to {repo!r} ({status}).\nSet a token that may read it: export HF_TOKEN=…",
                    **facts,
                ) from error
            raise _absent(repo, revision, f"The Hub answered {status}.") from error
        except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError, hub.RevisionResolutionError) as error:
            offline = "The library is set to offline (HF_HUB_OFFLINE)."
            raise _absent(repo, revision, offline if _is_offline() else "The Hub did not give it.") from error
        except httpx2.HTTPError as error:
            raise _absent(repo, revision, f"The connection failed ({type(error).__name__}).") from error
        except (OSError, EOFError) as error:
            raise SourceError(f"Model {repo!r} could not be stored in the Hub's cache: {error}.", **facts) from error

    return translating


@_translated
def _commit(repo: str, revision: str) -> str:
    """Return the commit that a branch or tag names; without a Hub, the one that the cache remembers."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RevisionResolutionError

    if known := _commits.get((repo, revision)):
        return known
    unreachable: HubUnreachableError | None = None
    if not _is_offline():
        try:
            check_reachable()
        except HubUnreachableError as error:
            unreachable = error
    local = _is_offline() or unreachable is not None
    try:
        commit = str(HfApi().resolve_revision(repo, revision=revision, local_files_only=local).resolved)
    except RevisionResolutionError as error:
        if unreachable is None:
            raise
        raise _absent(repo, revision, unreachable) from error
    if unreachable is not None:
        logger.warning("the Hub does not answer: using %r at %s, as the cache remembers it", repo, commit[:7])
    return _commits.setdefault((repo, revision), commit)


@_translated
def _snapshot(repo: str, commit: str, patterns: list[str]) -> Path:
    """Return the folder with the files of a commit that match, fetching what the cache lacks."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    chosen = functools.partial(
        snapshot_download,
        repo,
        revision=commit,
        allow_patterns=patterns,
        ignore_patterns=_OTHER_FORMATS,
        tqdm_class=_progress_bar(),
    )
    try:
        path = Path(chosen(local_files_only=True))
    except LocalEntryNotFoundError:
        path = None
    # Other libraries leave snapshots of single files; only a listing tells that all is there.
    listed = path is not None and (path.parents[1] / "trees" / f"{commit}.json").is_file()
    if path is not None and (listed or _is_offline()):
        return path
    try:
        if not _is_offline():
            check_reachable()
    except HubUnreachableError as error:
        if path is not None:
            return path
        raise _absent(repo, commit, error) from error
    return Path(chosen())


@functools.cache
def _progress_bar() -> Any:
    """Return the library's progress bar class, made to show on a terminal only."""
    from huggingface_hub import utils

    base: Any = utils.tqdm  # type: ignore[attr-defined]  # public, but not listed in __all__

    class TerminalBar(base):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs | {"disable": kwargs.get("disable") or not sys.stderr.isatty()})

    return TerminalBar


def _absent(repo: object, revision: object, reason: object) -> HubUnreachableError:
    return HubUnreachableError(
        f"Model {repo!r} at {str(revision)[:40]!r} is not on this machine. {reason}\n"
        f"Where the Hub answers: medvllm pull {repo}\n"
        "Then copy the Hub's cache (HF_HUB_CACHE) here and set HF_HUB_OFFLINE=1, or give a folder instead of the name.",
        repo=repo,
        revision=revision,
    )


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
