"""Replicas in a Ray of our own, or in a cluster that runs already."""

import logging
import secrets
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from medvllm import settings
from medvllm.cores import count_cores
from medvllm.errors import ServerError, SettingError
from medvllm.model_registry.handover import hand_over
from medvllm.ray_cluster import start_or_connect
from medvllm.server.config import ServerConfig
from medvllm.server.replicas.deployments import models

_OBJECTS = 128 * 2**20  # bytes for Ray's object store; what goes between the front and its replicas stays out of it


@contextmanager
def replicas_in_ray(config: ServerConfig, address: str | None, count: int) -> Iterator[DeploymentHandle[Any]]:
    """Yield replicas of a server. Afterwards they have ended, and so has a Ray that was started for them.

    Args:
        config: The limits of the server.
        address: The address of a cluster; None to start a Ray on this machine.
        count: How many replicas.

    Raises:
        SettingError: There is no cluster at the address, or a setting cannot be used.
        ServerError: The replicas do not start.
    """
    environment = hand_over()
    before = signal.getsignal(signal.SIGTERM)  # Ray puts its own handler there
    name = f"medvllm-{secrets.token_hex(4)}"  # another server may be in the cluster
    is_terminated = is_first = False
    try:
        session = _start(address, count)
        is_first = address is not None and not (serve.status().proxies or serve.status().applications)
        yield _deploy(config, environment, name, count, is_own=address is None, session=session)
    except SystemExit:  # what Ray's handler makes of SIGTERM
        is_terminated = True
    finally:
        _end(name, is_first=is_first)
        signal.signal(signal.SIGTERM, before)
    if is_terminated:
        signal.raise_signal(signal.SIGTERM)


def _start(address: str | None, count: int) -> str:
    """Start Ray, or connect to a cluster, and return the folder of its logs."""
    if address is not None and address.startswith("ray://"):
        raise SettingError(
            f"{address!r} is the address of a Ray Client, which cannot stream answers.\n"
            "Start the server on a machine of the cluster: medvllm serve --ray auto",
            value=address,
        )
    advice = "To start a Ray for this server, leave out the address."
    context = start_or_connect(address, count=count, objects=_OBJECTS, advice=advice)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    return f"{context.address_info['session_dir']}/logs/serve"


def _deploy(
    config: ServerConfig, environment: dict[str, str], name: str, count: int, *, is_own: bool, session: str
) -> DeploymentHandle[Any]:
    cores = settings.THREADS() or (max(1, count_cores() // count) if is_own else 1)
    options: dict[str, Any] = {"num_cpus": cores}
    if settings.DEVICE() != "cpu" and _resources().get("GPU", 0) > 0:
        options["num_gpus"] = 1
    deployment: Any = models().options(num_replicas=count, ray_actor_options=options)
    serve.start(proxy_location="Disabled", logging_config={"enable_access_log": False})
    try:
        return serve.run(deployment.bind(config, environment), name=name, route_prefix=None)
    except RuntimeError as error:
        raise ServerError(
            f"The replicas do not start.\nRay's log says why, on the machine of the replica, in: {session}"
        ) from error


def _resources() -> dict[str, float]:
    return cast(dict[str, float], ray.cluster_resources())  # type: ignore[no-untyped-call]


def _end(name: str, *, is_first: bool) -> None:
    """End the replicas, and Ray Serve too if nobody else uses it: its settings hold for all in a cluster."""
    if ray.is_initialized():
        with suppress(RayServeException):  # it has not begun
            serve.delete(name)
            if is_first and not serve.status().applications:
                serve.shutdown()  # type: ignore[no-untyped-call]
    ray.shutdown()
