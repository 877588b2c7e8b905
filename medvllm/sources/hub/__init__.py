"""Repositories on the Hub, through huggingface_hub and its cache. Each file is compared with its commit's listing."""

from medvllm.sources.hub.importing import add_to_cache
from medvllm.sources.hub.inspection import Request
from medvllm.sources.hub.listing import listing_file
from medvllm.sources.hub.network import check_reachable, endpoint
from medvllm.sources.hub.paths import snapshot_folder
from medvllm.sources.hub.repository import inspect_snapshot, resolve_snapshot
from medvllm.sources.hub.revisions import commit_of, refresh_commit

__all__ = [
    "Request",
    "add_to_cache",
    "check_reachable",
    "commit_of",
    "endpoint",
    "inspect_snapshot",
    "listing_file",
    "refresh_commit",
    "resolve_snapshot",
    "snapshot_folder",
]
