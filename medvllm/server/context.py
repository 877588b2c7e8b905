"""What every route needs: the registry, the calls and the limits of its server."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, TypeVar, cast

from fastapi import Depends, Request

from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.request import Priority
from medvllm.metadata import ModelMetadata
from medvllm.names import parse_name
from medvllm.server.calls import Calls
from medvllm.server.config import ServerConfig
from medvllm.server.problem import Problem, ProblemError

if TYPE_CHECKING:
    from medvllm.engines import EngineName
    from medvllm.model_registry import ModelRegistry

T = TypeVar("T")


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        registry: The models.
        config: The limits.
        calls: Runs the library's calls.
    """

    registry: "ModelRegistry"
    config: ServerConfig
    calls: Calls

    def entry(self, name: str) -> ModelMetadata:
        """Return the entry of a name, such as "ner", "ner@production" or "ner@3".

        Raises:
            ProblemError: It is a folder. Files of the server's machine are no models of the server.
            ModelNotFoundError: There is no such entry.
        """
        if parse_name(name).kind != "name":
            message = (
                f"Model {name!r} is not registered.\nThe server has the models of its catalogue only: GET /v1/models"
            )
            raise ProblemError(Problem(404, "model_not_found", message, "model"))
        return self.registry.get_metadata(name)

    def runner(self, name: str, engine: "EngineName | None" = None) -> ModelRunner:
        """Return a runner of a registered model. Raises: as `entry`."""
        self.entry(name)
        return ModelRunner(name, registry=self.registry, engine=engine or "torch")

    async def run(
        self,
        http: Request,
        call: Callable[[], T],
        *,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> T:
        """Return what a call returns, as `Calls.run` does."""
        return await self.calls.run(http, call, timeout_s=timeout_s, priority=priority)


def server_of(http: Request) -> Server:
    """Return the server that a request came to."""
    return cast(Server, http.app.state.server)


ServerOf = Annotated[Server, Depends(server_of)]
