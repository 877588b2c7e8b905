"""The deployments of Ray Serve: the replicas that have models, and the ingress that clients reach by Ray's proxies."""

from typing import Any, cast

from ray import serve
from ray.serve.deployment import Deployment
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from medvllm.model_registry import registry
from medvllm.server.config import ServerConfig
from medvllm.server.replicas.front import create_front
from medvllm.server.replicas.replica import Replica
from medvllm.server.running import DRAIN_S, log_requests
from medvllm.server.tracing import tracing_of_environment

# More than a server has open. So Ray holds no request back while there is a replica: the server itself says what waits
# and what is refused, as it does without Ray.
_MAX_OPEN = 1000
_MAX_WAITING = 256  # requests while there is no replica
_QUIET = {"enable_access_log": False}  # the server has a log of its own, without paths
_LIMITS: dict[str, Any] = {
    "max_ongoing_requests": _MAX_OPEN,
    "max_queued_requests": _MAX_WAITING,
    "graceful_shutdown_timeout_s": DRAIN_S,
    "graceful_shutdown_wait_loop_s": 0.2,
    "logging_config": _QUIET,
}


def models() -> Deployment:
    """Return the deployment of the replicas, which `bind` gives a ServerConfig and an environment."""
    made: Any = serve.deployment(
        name="Models",
        request_router_config={"request_router_class": "medvllm.server.replicas.router:ModelRouter"},
        max_constructor_retry_count=3,
        ray_actor_options={"num_cpus": 1},
        **_LIMITS,
    )
    return cast(Deployment, made(Replica))


def ingress() -> Deployment:
    """Return the deployment of the ingress, which `bind` gives a ServerConfig and the replicas."""
    made: Any = serve.deployment(name="Ingress", ray_actor_options={"num_cpus": 0}, **_LIMITS)
    return cast(Deployment, made(serve.ingress()(Ingress)))


class Ingress:
    """The front of the server, behind Ray's proxies.

    Args:
        config: The limits of the server.
        replicas: What answers.
    """

    def __init__(self, config: ServerConfig, replicas: DeploymentHandle[Any]) -> None:
        self._config, self._replicas = config, replicas
        log_requests()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return what answers Ray's proxies."""
        return create_front(registry, self._config, self._replicas, tracing=tracing_of_environment())
