"""A Ray that is started on this machine, or a cluster that runs already."""

import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from typing import Any, cast

import ray
from ray.exceptions import AuthenticationError, NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError

from medvllm.cores import count_cores
from medvllm.errors import SettingError

# What Ray raises for an actor that has ended, or whose machine has. What its memory monitor kills is no RayActorError.
ENDED = (RayActorError, OutOfMemoryError, ObjectLostError, NodeDiedError)
_INLINED = 64 * 2**20  # bytes of a request or a part that Ray passes on without its object store
_SHARED = "/dev/shm"  # the memory that processes share on Linux
_LEAST = 75 * 2**20  # bytes of an object store, as Ray demands
_KNOCK_S = 5.0  # for the cluster to accept a connection
_KINDS = {"num_cpus": "CPU", "num_gpus": "GPU"}  # what an option asks for, as Ray counts it


def start_or_connect(address: str | None, *, cpus: int, objects: int, advice: str) -> Any:
    """Start Ray, or connect to a cluster, and return Ray's context. Ray puts a handler of its own on SIGTERM.

    Args:
        address: The address of a cluster; None to start a Ray on this machine.
        cpus: How many CPUs a Ray that is started must have room for. It counts them; it does not bind them.
        objects: The size of the object store of a Ray that is started, in bytes, if there is so much memory for it.
        advice: How to start a Ray instead, if there is no cluster at the address.

    Raises:
        SettingError: There is no cluster at the address that can be used, or too little shared memory here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # No text is written to a disk: neither objects in their place, nor those that find no room there.
        in_memory: dict[str, Any] = {}
        if sys.platform == "linux":
            room = os.statvfs(_SHARED)
            objects = fit_into_memory(objects, room.f_bavail * room.f_frsize)
            in_memory["object_spilling_directory"] = _SHARED
        return ray.init(
            "local",
            num_cpus=max(count_cores(), cpus),
            include_dashboard=False,
            object_store_memory=objects,
            _node_ip_address="127.0.0.1",
            _system_config={"task_rpc_inlined_bytes_limit": _INLINED, "automatic_object_spilling_enabled": False},
            **in_memory,
            **quiet,
        )
    if address != "auto":
        _knock(address, advice)  # Ray itself would try for minutes
    try:
        return ray.init(address, **quiet)
    except AuthenticationError as error:
        raise SettingError(
            f"The Ray cluster at {address!r} asks for a token that this machine does not have.\n"
            "Copy the file ~/.ray/auth_token of a machine of the cluster to the same place here.",
            value=address,
        ) from error
    except (ValueError, OSError, RuntimeError) as error:  # a ConnectionError, too
        if isinstance(error, RuntimeError) and "Version mismatch" in str(error):
            raise SettingError(
                f"The Ray cluster at {address!r} cannot be used from here: {' '.join(str(error).split())}\n"
                "Install the same versions of Ray and Python on each machine.",
                value=address,
            ) from error
        raise _no_cluster(address, error, advice) from error


def fit_into_memory(objects: int, room: int) -> int:
    """Return the size of an object store, in bytes. If it were larger than the shared memory, Ray would use a disk.

    Args:
        objects: The size that is wanted.
        room: The shared memory that is free.

    Raises:
        SettingError: There is too little of it.
    """
    usable = room * 9 // 10
    if usable < _LEAST:
        raise SettingError(
            f"Ray needs {_LEAST / 2**20:.0f} MiB of shared memory, so that it writes no text to a disk, and of the "
            f"{room / 2**20:.0f} MiB that are free in {_SHARED}, it can use nine tenths.\n"
            "Give a container more of it: docker run --shm-size 1g",
            value=room,
        )
    return min(objects, usable)


def find_lack(count: int, options: Mapping[str, float], *, is_own: bool) -> str | None:
    """Return what Ray lacks to start so many actors or replicas at once, in words; None if nothing.

    Args:
        count: How many.
        options: What each of them takes: `num_cpus` and `num_gpus`.
        is_own: Whether the Ray was started for them, so that nobody else uses it.
    """
    has = _resources() if is_own else cast(dict[str, float], ray.available_resources())  # type: ignore[no-untyped-call]
    for option, kind in _KINDS.items():
        each, free = options.get(option, 0), has.get(kind, 0.0)
        if count * each > free:
            need = f"{count} processes with {each:g} {kind} each need {count * each:g} {kind}"
            return f"{need}, and Ray has {free:g} free."
    return None


def has_gpus() -> bool:
    """Return whether a machine of the cluster has a GPU."""
    return _resources().get("GPU", 0) > 0


def logs_folder() -> str:
    """Return the folder of Ray's logs, on each machine those of its own processes."""
    here = ray.get_runtime_context()
    return f"{here.get_temp_dir()}/{here.get_session_name()}/logs"


def _resources() -> dict[str, float]:
    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]


def keep_sigterm() -> Callable[[], None]:
    """Return what puts the present handler of SIGTERM back, in whose place Ray puts its own.

    Ray does so in the main thread only, and only there it can be undone.
    """
    before = signal.getsignal(signal.SIGTERM)

    def put_back() -> None:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)

    return put_back


def _knock(address: str, advice: str) -> None:
    """Raise SettingError if nobody listens at an address."""
    if address.startswith("ray://"):
        raise SettingError(
            f"{address!r} is the address of a Ray Client, which has no part in what medvllm does in a cluster.\n"
            "Start medvllm on a machine of the cluster, with: --ray auto",
            value=address,
        )
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise SettingError(
            f"{address!r} is no address of a Ray cluster.\nWrite host and port, such as: --ray 10.0.0.1:6379",
            value=address,
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()
    except OSError as error:
        raise _no_cluster(address, error, advice) from error


def _no_cluster(address: str, error: Exception, advice: str) -> SettingError:
    return SettingError(
        f"No Ray cluster can be reached at {address!r} from this machine: {type(error).__name__}.\n"
        f"Start one here: ray start --head\n{advice}",
        value=address,
    )
