"""A Ray that is started on this machine, or a cluster that runs already."""

import logging
import os
import socket
from typing import Any

import ray
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

from medvllm.cores import count_cores
from medvllm.errors import SettingError

# What Ray raises for an actor that has ended, or whose machine has. What its memory monitor kills is no RayActorError.
ENDED = (RayActorError, OutOfMemoryError, ObjectLostError, NodeDiedError)
_INLINED = 64 * 2**20  # bytes of a request or a part that Ray passes on without its object store
_KNOCK_S = 5.0  # for the cluster to accept a connection


def start_or_connect(address: str | None, *, count: int, objects: int, advice: str) -> Any:
    """Start Ray, or connect to a cluster, and return Ray's context. Ray puts a handler of its own on SIGTERM.

    Args:
        address: The address of a cluster; None to start a Ray on this machine.
        count: How many processes it must have room for.
        objects: The size of the object store of a Ray that is started, in bytes.
        advice: How to start a Ray instead, if there is no cluster at the address.

    Raises:
        SettingError: There is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        return ray.init(
            "local",
            num_cpus=max(count_cores(), count),
            include_dashboard=False,
            object_store_memory=objects,
            _node_ip_address="127.0.0.1",
            # No text is written to a disk.
            _system_config={"task_rpc_inlined_bytes_limit": _INLINED, "automatic_object_spilling_enabled": False},
            **quiet,
        )
    try:
        if address != "auto":
            _knock(address)  # Ray itself would try for minutes
        return ray.init(address, **quiet)
    except (ValueError, OSError, RuntimeError) as error:  # a ConnectionError, too
        raise SettingError(
            f"No Ray cluster can be reached at {address!r} from this machine: {type(error).__name__}.\n"
            f"Start one here: ray start --head\n{advice}",
            value=address,
        ) from error


def _knock(address: str) -> None:
    """Raise OSError or ValueError if nobody listens at an address."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
