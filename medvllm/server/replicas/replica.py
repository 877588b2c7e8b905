"""A replica: the whole application of a server, in a process that Ray starts."""

import os
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from ray import serve
from starlette.types import Message, Scope

from medvllm.engine.model_runner.engine_lease import lease_for_task
from medvllm.model_registry import registry
from medvllm.model_registry.handover import take_over
from medvllm.server.app import create_app
from medvllm.server.config import ServerConfig
from medvllm.server.replicas.exchange import Exchange
from medvllm.server.tracing import tracing_of_environment

_MAX_ADVERTISED = 1000  # models for which a replica asks for requests; it has fewer of them in memory


class Replica:
    """Answers requests as a server without Ray does.

    The registry decides what is in memory. Ray only knows the names of the models that were asked for here last, so
    that their next requests come here.

    Args:
        config: The limits of the server.
        environment: The settings of the process that started the server; None for those of this one.
    """

    def __init__(self, config: ServerConfig, environment: Mapping[str, str] | None) -> None:
        if environment is not None:
            take_over(environment, os.environ)
        self._app = create_app(registry, config, tracing=tracing_of_environment())
        for name in config.loaded:
            with lease_for_task(registry, name, {"keep_alive": -1}, config.engine, "float32", None):
                pass

    @serve.multiplexed(max_num_models_per_replica=_MAX_ADVERTISED)  # type: ignore[untyped-decorator]
    async def advertise(self, model: str) -> str:
        """Have requests for a model come here. What Ray keeps is its name, and not the model."""
        return model

    async def answer(self, scope: Scope, *body: bytes) -> AsyncGenerator[list[Message]]:
        """Yield the messages of the answer to a request.

        Args:
            scope: The request, as ASGI has it.
            *body: Its body, in pieces.
        """
        if model := serve.get_multiplexed_model_id():
            await self.advertise(model)  # pyright: ignore[reportCallIssue], of a decorator without types
        async for messages in Exchange(self._app, scope, b"".join(body)).messages():
            yield messages

    async def answer_whole(self, scope: Scope, *body: bytes) -> tuple[str, list[Message]]:
        """Return the name of this replica, and all messages of its answer to a request."""
        messages: list[Message] = []
        async for found in self.answer(scope, *body):
            messages += found
        context: Any = serve.get_replica_context()
        return context.replica_id.unique_id, messages
