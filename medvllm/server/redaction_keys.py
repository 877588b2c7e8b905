"""The secret keys of redactions. They are on the server: a client names one, and never sends one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medvllm.engine.model_runner.redaction.keys import read_key, read_key_file
from medvllm.near_names import did_you_mean, near_names
from medvllm.server.problem import Problem, ProblemError

_KEYED = ("hash", "surrogate", "shift_dates")


def use_server_keys(
    operators: Mapping[str, Mapping[str, Any]] | None, keys: Mapping[str, Path], *, param: str = "operators"
) -> dict[str, dict[str, Any]] | None:
    """Return the operators of a request, with the keys that they name.

    Args:
        operators: The operators of each label, as the client sent them.
        keys: The files of the server's keys by their names. Without a name, the key of MEDVLLM_REDACTION_KEY_FILE is
            used.
        param: The field of the request that has the operators.

    Raises:
        ProblemError: The server has no such key, or an operator would write to the server's disk.
        SettingError: The file of a key cannot be read.
    """
    if operators is None:
        return None
    return {label: _use_key(f"{param}.{label}", operator, keys) for label, operator in operators.items()}


def _use_key(param: str, given: Mapping[str, Any], keys: Mapping[str, Path]) -> dict[str, Any]:
    # A null stands for what is left out.
    operator, kind = {name: value for name, value in given.items() if value is not None}, given.get("type")
    if operator.pop("vault", None) is not None:
        message = "Surrogates cannot be kept in a file of the server.\nKeep them equal between calls with a key: key="
        raise ProblemError(Problem(422, "vault_not_accepted", message, f"{param}.vault"))
    if kind not in _KEYED:
        return operator
    if kind != "hash" and "key" not in operator:
        return operator
    name = operator.pop("key", None)
    key = find_key(name, keys, what=f"Operator {kind!r}", param=param)
    return operator if name is None else operator | {"key": key}


def find_key(name: object, keys: Mapping[str, Path], *, what: str, param: str) -> bytes:
    """Return a key of the server.

    Args:
        name: What the client sent as the name of one; None for the server's own.
        keys: The files of the server's keys by their names.
        what: What needs it.
        param: The field of the request that has the name, without its last part.

    Raises:
        ProblemError: The server has no such key.
        SettingError: The file of the key cannot be read.
    """
    if name is None:
        if (own := read_key()) is None:
            message = f"{what} needs a key, and the server has none of its own.{_known(keys)}"
            raise ProblemError(Problem(422, "no_redaction_key", message, f"{param}.key"))
        return own
    # What was sent may be a secret, so it is never repeated.
    if not isinstance(name, str) or name not in keys:
        near = did_you_mean(near_names(name, keys)) if isinstance(name, str) else ""
        message = f"The server has no key of that name.{near} Secrets are never sent: key names one.{_known(keys)}"
        raise ProblemError(Problem(422, "unknown_redaction_key", message, f"{param}.key"))
    return read_key_file(keys[name], f"the key {name!r}")


def _known(keys: Mapping[str, Path]) -> str:
    if keys:
        return f"\nIts keys: {', '.join(keys)}"
    return "\nWhoever runs the server gives it one with: medvllm serve --redaction-key NAME=FILE"
