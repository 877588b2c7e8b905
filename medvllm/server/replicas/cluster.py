"""Replicas in a Ray of our own, or in a cluster that runs already."""

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from medvllm import settings
from medvllm.cores import count_cores
from medvllm.errors import ServerError, SettingError
from medvllm.model_registry.handover import hand_over
from medvllm.ray_cluster import find_lack, has_gpus, keep_sigterm, logs_folder, start_or_connect
from medvllm.server.config import ServerConfig
from medvllm.server.replicas.deployments import models
from medvllm.server.replicas.names import find_left, own_name

logger = logging.getLogger(__name__)

_OBJECTS = 128 * 2**20  # bytes for Ray's object store; what goes between the front and its replicas stays out of it


@contextmanager
def replicas_in_ray(
    config: ServerConfig, address: str | None, count: int, *, place: str
) -> Iterator[DeploymentHandle[Any]]:
    """Yield replicas of a server. Afterwards they have ended, and so has a Ray that was started for them.

    Args:
        config: The limits of the server.
        address: The address of a cluster; None to start a Ray on this machine.
        count: How many replicas.
        place: Host and port where the server listens. The replicas of an earlier one there that was killed
            end.

    Raises:
        SettingError: There is no cluster at the address, or a setting cannot be used.
        ServerError: The replicas do not start.
    """
    environment = hand_over()
    put_back = keep_sigterm()
    name: str | None = None
    is_terminated = is_first = False
    try:
        cores = settings.THREADS() or (max(1, count_cores() // count) if address is None else 1)
        _start(address, cores * count)
        machine = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        name = own_name(machine, place)
        if address is not None:
            _end_earlier(machine, place)
        is_first = address is not None and not (serve.status().proxies or serve.status().applications)
        options = _options_for(count, cores, is_own=address is None)
        yield _deploy(config, environment, name, count, options)
    except SystemExit:  # what Ray's handler makes of SIGTERM
        is_terminated = True
    finally:
        _end(name, is_first=is_first)
        put_back()
    if is_terminated:
        signal.raise_signal(signal.SIGTERM)


def _start(address: str | None, cpus: int) -> None:
    """Start Ray, or connect to a cluster."""
    advice = "To start a Ray for this server, leave out the address."
    start_or_connect(address, cpus=cpus, objects=_OBJECTS, advice=advice)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def _end_earlier(machine: str, place: str) -> None:
    """End the replicas of earlier servers at this address that were killed."""
    for name in find_left(serve.status().applications, machine, place):
        logger.warning("An earlier server at this address was killed, and left its replicas in the cluster. They end.")
        serve.delete(name)


def _options_for(count: int, cores: int, *, is_own: bool) -> dict[str, float]:
    """Return what each replica takes. In a Ray of our own, there must be room for all: it does not grow."""
    options: dict[str, float] = {"num_cpus": cores}
    if settings.DEVICE() != "cpu" and has_gpus():
        options["num_gpus"] = 1
    if (lack := find_lack(count, options, is_own=is_own)) is not None:
        if is_own:
            raise SettingError(f"{lack}\nUse fewer replicas, such as: --replicas 1", value=count)
        logger.warning("%s The server begins when there is room for them.", lack)
    return options


def _deploy(
    config: ServerConfig,
    environment: dict[str, str],
    name: str,
    count: int,
    options: dict[str, float],
) -> DeploymentHandle[Any]:
    deployment: Any = models().options(num_replicas=count, ray_actor_options=options)
    serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
    try:
        return serve.run(deployment.bind(config, environment), name=name, route_prefix=None)
    except RuntimeError as error:
        raise ServerError(
            f"The replicas do not start.\nRay's log says why, on the machine of the replica, in: {logs_folder()}/serve"
        ) from error


def _end(name: str | None, *, is_first: bool) -> None:
    """End the replicas, and Ray Serve too if nobody else uses it: its settings hold for all in a cluster."""
    if ray.is_initialized():
        with suppress(RayServeException, TimeoutError):  # it has not begun; Ray goes on ending it
            if name is not None:
                serve.delete(name)
            if is_first and not serve.status().applications:
                serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
