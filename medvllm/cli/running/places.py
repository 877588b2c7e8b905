"""Where `medvllm run` runs a model: here, with a server of this user that answers as well, or on another server."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Protocol

import typer

from medvllm.errors import MedVLLMError, ModelNotFoundError, ServerError
from medvllm.model_registry import registry

if TYPE_CHECKING:
    from medvllm.client.server_answerer import ServerAnswerer

_FORBIDDEN = 403
_NOT_SENT = ("key", "vault")  # of operators: secrets, and files of this machine


class Place(Protocol):
    """Where a model runs."""

    def task(self) -> str | None:
        """Return the model's own task; None if the model must be loaded to know it."""
        ...

    def inputs(self) -> Sequence[str]:
        """Return the names of the model's inputs, if they are known."""
        ...

    def answerer(
        self, stack: ExitStack, arguments: dict[str, Any], options: Mapping[str, Any], *, with_receipt: bool
    ) -> "ServerAnswerer | None":
        """Return the server that answers; None for a model in the memory of this process.

        Args:
            stack: Closes the connections to the server.
            arguments: The options of the task. What only the server can read is taken out.
            options: What computes, and how: the options of the request.
            with_receipt: Whether a receipt is made.
        """
        ...


class LocalPlace:
    """This process, or a server of this user that answers as this process would.

    Args:
        name: The name of the model.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def task(self) -> str | None:
        """Return the model's own task; None if the model must be loaded to know it."""
        from medvllm.engine.model_runner.tasks import task_of_entry

        with suppress(ModelNotFoundError):
            return task_of_entry(registry.get_metadata(self._name))
        return None

    def inputs(self) -> Sequence[str]:
        """Return the names of the model's inputs, if they are known."""
        with suppress(ModelNotFoundError):
            return registry.get_metadata(self._name).behaviour.inputs
        return ()

    def answerer(
        self, stack: ExitStack, arguments: dict[str, Any], options: Mapping[str, Any], *, with_receipt: bool
    ) -> "ServerAnswerer | None":
        """Return a server of this user that can answer; None if there is none. The model must be in the catalogue."""
        operators = arguments.get("operators")
        if _has_secret(operators):
            return None
        try:
            entry = registry.get_metadata(self._name)
        except MedVLLMError:
            return None
        if entry.origin in ("process", "direct"):
            return None
        from medvllm.client.resident import find_resident
        from medvllm.client.server_answerer import ServerAnswerer

        if (client := find_resident()) is None:
            return None
        stack.callback(client.close)
        return ServerAnswerer(
            client,
            self._name,
            options=options,
            operators=operators,
            with_receipt=with_receipt,
            version=entry.version,
        )


class ServerPlace:
    """A server that the user named.

    Args:
        url: Its address.
        name: The name of the model there.
    """

    def __init__(self, url: str, name: str) -> None:
        from medvllm.client.local_client import client_of_command

        self._url, self._name = url, name
        self._facts: Mapping[str, Any] = {}
        with client_of_command(url) as client:
            try:
                self._facts = client.model(name)
            except ServerError as error:
                if error.status != _FORBIDDEN:  # a key may run models and not read the catalogue
                    raise

    def task(self) -> str | None:
        """Return the model's own task; None if the server must load the model to know it, or does not tell it."""
        return next(iter(self._facts.get("tasks", ())), None)

    def inputs(self) -> Sequence[str]:
        """Return the names of the model's inputs, if they are known."""
        return tuple(self._facts.get("inputs", ()))

    def answerer(
        self, stack: ExitStack, arguments: dict[str, Any], options: Mapping[str, Any], *, with_receipt: bool
    ) -> "ServerAnswerer | None":
        """Return the server."""
        from medvllm.client.local_client import client_of_command
        from medvllm.client.server_answerer import ServerAnswerer

        client = stack.enter_context(client_of_command(self._url))
        operators = arguments.pop("operators", None)
        return ServerAnswerer(client, self._name, options=options, operators=operators, with_receipt=with_receipt)


def check_place(server: str | None, *, local: bool, loading: Mapping[str, Any]) -> None:
    """Raise a usage error for options that do not go together."""
    if server is not None and local:
        raise typer.BadParameter("pass --server or --local, not both")
    if server is not None and loading:
        raise typer.BadParameter(f"--{next(iter(loading))} is for a model that is loaded here, not on a server")


def _has_secret(operators: Any) -> bool:
    if not isinstance(operators, dict):
        return operators is not None
    return any(not isinstance(each, dict) or set(_NOT_SENT) & set(each) for each in operators.values())
