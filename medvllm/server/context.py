"""What every route needs: the registry, the calls and the limits of its server."""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

from fastapi import Depends, Request

from medvllm.api_keys import RIGHTS, Right
from medvllm.engine.model_runner.engine_lease import lease_for_task
from medvllm.engine.model_runner.request import Priority
from medvllm.metadata import ModelMetadata
from medvllm.model_registry import Lease
from medvllm.names import parse_name
from medvllm.options import parse_keep_alive
from medvllm.quantities import LONGEST_S, PINNED, MinimumStay
from medvllm.server.calls import Calls
from medvllm.server.config import ServerConfig
from medvllm.server.problem import Problem, ProblemError
from medvllm.server.served_runner import ServedRunner

if TYPE_CHECKING:
    from medvllm.engines import EngineName, Precision
    from medvllm.model_registry import ModelRegistry

T = TypeVar("T")

_SHORTEST_S = 60.0  # that a key without "manage" may let a model stay: less would unload it for others


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        registry: The models.
        config: The limits.
        calls: Runs the library's calls.
        about: What the log may say of the request: the name of the entry that it is for, and the version that answered.
        rights: What the key of the request permits.
    """

    registry: "ModelRegistry"
    config: ServerConfig
    calls: Calls
    about: dict[str, str] = field(default_factory=dict)
    rights: tuple[Right, ...] = RIGHTS

    def reference(self, name: str) -> str:
        """Return a name as the registry has it. Some clients write "ner:3" for "ner@3", "ner:latest" for "ner"."""
        head, colon, suffix = name.rpartition(":")
        if not (colon and head) or {"@", "/"} & set(suffix) or "@" in head or name in self.registry:
            return name
        return head if suffix == "latest" else f"{head}@{suffix}"

    def entry(self, name: str) -> ModelMetadata:
        """Return the entry of a name, such as "ner", "ner@production", "ner@3" or "ner:3".

        Raises:
            ProblemError: It is a folder, or a branch of a repository. The server has the models of its catalogue only.
            ModelNotFoundError: There is no such entry, version or alias.
        """
        name = self.reference(name)
        ref = parse_name(name)
        if ref.kind != "name":
            raise _not_found(f"Model {name!r} is not registered.")
        found = self.registry.get_metadata(name)
        is_version = ref.suffix in (None, str(found.version))
        if not is_version and self.registry.catalog.find(found.name, ref.suffix) is None:
            raise _not_found(f"Model {ref.name!r} has no version or alias {ref.suffix!r}.")
        self.about["model"] = found.name
        return found

    def runner(
        self,
        name: str,
        engine: "EngineName | None" = None,
        precision: "Precision" = "float32",
        *,
        keep_alive: str | float | None = None,
    ) -> ServedRunner:
        """Return a runner of a registered model, with the version that the name means now for all that it runs.

        Args:
            name: As for `entry`.
            engine: What computes; None for that of the server.
            precision: In which precision an engine may compute.
            keep_alive: How long the model stays in memory after its last use, from now on; None leaves that as it is.

        Raises:
            ProblemError: As for `entry`.
            ModelNotFoundError: As for `entry`.
            RequestError: `keep_alive` is not a duration.
        """
        entry = self.entry(name)
        options = self._stay(keep_alive)
        options |= {"registry": self.registry, "engine": engine or self.config.engine, "precision": precision}
        return ServedRunner(entry.reference, self.about, **options)

    def lease(
        self, name: str, engine: "EngineName | None" = None, *, keep_alive: str | float | None = None
    ) -> AbstractContextManager[Lease]:
        """Return what leases a model, for the duration of a `with` block.

        Args:
            name: As for `entry`.
            engine: What computes; None for that of the server, as for requests without an engine.
            keep_alive: As for `runner`.

        Raises:
            ProblemError: As for `entry`.
            ModelNotFoundError: As for `entry`.
        """
        self.entry(name)
        options = self._stay(keep_alive)
        chosen = engine or self.config.engine
        return lease_for_task(self.registry, self.reference(name), options, chosen, "float32", None)

    def _stay(self, keep_alive: str | float | None) -> dict[str, Any]:
        """Return how long a model stays, as an option. ProblemError: the key must not pin a model, or unload it.

        Without the right to manage, the time is not shortened, which somebody else may have set.
        """
        seconds = parse_keep_alive(keep_alive)
        if seconds is None:
            return {}
        if (seconds < _SHORTEST_S or seconds == PINNED) and "manage" not in self.rights:
            message = (
                "The key may not unload a model, or pin it.\n"
                f"Leave out keep_alive, or give {_SHORTEST_S:g} seconds or more, and not -1."
            )
            raise ProblemError(Problem(403, "permission_denied", message, "keep_alive"))
        seconds = seconds if seconds == PINNED else min(seconds, LONGEST_S)
        return {"keep_alive": seconds if "manage" in self.rights else MinimumStay(seconds)}

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

    async def look(self, http: Request, call: Callable[[], T]) -> T:
        """Return what a call returns that neither runs a model nor loads one, as `Calls.look` does."""
        return await self.calls.look(http, call)

    def stream(
        self,
        http: Request,
        call: Callable[[], Generator[T]],
        *,
        timeout_s: float | None = None,
        priority: Priority = "interactive",
    ) -> AsyncGenerator[T]:
        """Yield what a generator yields, as `Calls.stream` does."""
        return self.calls.stream(http, call, timeout_s=timeout_s, priority=priority)

    def look_through(self, http: Request, call: Callable[[], Generator[T]]) -> AsyncGenerator[T]:
        """Yield what a generator yields that neither runs a model nor loads one, as `Calls.look_through` does."""
        return self.calls.look_through(http, call)


def _not_found(what: str) -> ProblemError:
    message = f"{what}\nThe server has the models of its catalogue only: GET /v1/models"
    return ProblemError(Problem(404, "model_not_found", message, "model"))


def server_of(http: Request) -> Server:
    """Return the server that a request came to, with the limits of the request's key."""
    server = cast(Server, http.app.state.server)
    return replace(server, config=http.state.config, about=http.state.about, rights=http.state.rights)


ServerOf = Annotated[Server, Depends(server_of)]
