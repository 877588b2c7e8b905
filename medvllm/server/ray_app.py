"""The server as an application of Ray Serve: `serve deploy` with `import_path: medvllm.server.ray_app:app`."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from ray.serve import Application

from medvllm.engine.model_runner.redaction.keys import read_key_file
from medvllm.engines.kinds import EngineName
from medvllm.errors import SettingError
from medvllm.model_registry import registry
from medvllm.server.config import ServerConfig
from medvllm.server.keyring import read_keys
from medvllm.server.replicas.deployments import ingress, models


class Arguments(BaseModel):
    """What `args` of an application in the file for `serve deploy` may have.

    Attributes:
        load: Models that each replica loads at its start, and keeps.
        engine: What computes requests that do not say it.
        allow_hosts: Names under which clients reach the server.
        redaction_keys: Secret keys that clients can name: their files, which each machine has.
        insecure: Whether requests need no API key, whoever can reach the server.
    """

    model_config = ConfigDict(extra="forbid")

    load: list[str] = []
    engine: EngineName = "torch"
    allow_hosts: list[str] = []
    redaction_keys: dict[str, Path] = {}
    insecure: bool = False


def app(arguments: Arguments) -> Application:
    """Return the application: an ingress that clients reach through Ray's proxies, and the replicas behind it.

    Args:
        arguments: The settings of the server. The others are those of the cluster's environment.

    Raises:
        SettingError: There is no API key, and `insecure` is not set: Ray decides who can reach its proxies. Or a
            redaction key cannot be read.
        ModelNotFoundError: A model of `load` is not registered.
    """
    for name in arguments.load:
        registry.get_metadata(name)  # what is not registered, clients could not ask for
    for name, file in arguments.redaction_keys.items():
        if not file.is_absolute():  # each process of Ray has a working directory of its own
            raise SettingError(
                f"The file of redaction key {name!r}, '{file}', is no absolute path.\n"
                f"Write: redaction_keys: {{{name}: {file.absolute()}}}",
                value=str(file),
            )
        read_key_file(file, f"redaction_keys, {name}")
    has_keys = not arguments.insecure and bool(read_keys(registry))
    if not (has_keys or arguments.insecure):
        raise SettingError(
            "There is no API key that clients would need.\n"
            "Make one: medvllm key add NAME\nTo let everybody use the server: args: {insecure: true}"
        )
    config = ServerConfig(
        requires_key=has_keys,
        hosts=tuple(arguments.allow_hosts),
        engine=arguments.engine,
        loaded=tuple(arguments.load),
        redaction_keys=arguments.redaction_keys,
    )
    replicas: Any = models().bind(config, None)
    return ingress().bind(config, replicas)
