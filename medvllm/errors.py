"""The errors that medvllm raises on purpose.

MedVLLMError(Exception)
  SettingError(ValueError)   ModelNameError(ValueError)   MissingDependencyError(ImportError)
  ModelNotFoundError(KeyError)   ModelExistsError(ValueError)   CatalogError > MigrationError
  SourceError(OSError) > SnapshotNotFoundError, IncompleteSnapshotError, GatedModelError, HubUnreachableError,
                         DigestMismatchError
  OutputError(OSError)
  LoadError(RuntimeError) > WeightsMismatchError, UnsafeWeightsError, BudgetError, DeviceMemoryError
  RequestError(ValueError) > InputTooLongError
  OverloadedError(RuntimeError)   DeadlineError(TimeoutError)   RequestCancelledError   ServerError(RuntimeError)

A message says what happened and to which thing. Its last line is often a command to run next. A message never
contains the text of a note, a prompt, a token or a password.
"""

from collections.abc import Sequence
from typing import Any

__all__ = [
    "BudgetError",
    "CatalogError",
    "DeadlineError",
    "DeviceMemoryError",
    "DigestMismatchError",
    "GatedModelError",
    "HubUnreachableError",
    "IncompleteSnapshotError",
    "InputTooLongError",
    "LoadError",
    "MedVLLMError",
    "MigrationError",
    "MissingDependencyError",
    "ModelExistsError",
    "ModelNameError",
    "ModelNotFoundError",
    "OutputError",
    "OverloadedError",
    "RequestCancelledError",
    "RequestError",
    "ServerError",
    "SettingError",
    "SnapshotNotFoundError",
    "SourceError",
    "UnsafeWeightsError",
    "WeightsMismatchError",
]


class MedVLLMError(Exception):
    """The base class of every error that medvllm raises on purpose.

    Each class lists its attributes. An attribute that does not apply to one error is None or empty. Every error can be
    pickled, so it reaches the parent process of a pool.
    """

    # Subclasses add no `__init__`: pickle rebuilds an exception from its message and its `__dict__`.
    def __init__(self, message: str = "", **attributes: object) -> None:
        super().__init__(message)
        self.__dict__.update(attributes)

    def __str__(self) -> str:
        # KeyError's own `__str__` would print the message in quotes.
        return str(self.args[0]) if self.args else ""


class SettingError(MedVLLMError, ValueError):
    """A setting has a value that cannot be used, or a settings file cannot be read.

    Attributes:
        setting: The variable's name, such as "MEDVLLM_DEVICE", or the key in a settings file.
        value: The value that was found, without its password.
        file: The settings file; None for a variable of the environment.
        candidates: Settings with a similar name.
    """

    setting: str | None = None
    value: str | None = None
    file: str | None = None
    candidates: Sequence[str] = ()


class ModelNameError(MedVLLMError, ValueError):
    """The text cannot be the name of a model or of an alias."""


class MissingDependencyError(MedVLLMError, ImportError):
    """A package or class that this call needs cannot be imported.

    Attributes:
        model: The model that needs it.
        package: The missing Python package.
        reference: The class, as "module:Class".
    """

    model: str | None = None
    package: str | None = None
    reference: str | None = None


class ModelNotFoundError(MedVLLMError, KeyError):
    """No registered model, folder or repository has this name.

    Attributes:
        model: The name that was asked for.
        candidates: Similar names that are registered, or the versions and aliases that the model has.
    """

    model: str | None = None
    candidates: Sequence[str] = ()


class ModelExistsError(MedVLLMError, ValueError):
    """A model is already registered under this name.

    Attributes:
        model: The name.
    """

    model: str | None = None


class CatalogError(MedVLLMError):
    """The catalogue or one of its entries cannot be used or changed as asked.

    Attributes:
        model: The entry's name.
        reference: A class that an entry names, as "module:Class".
        path: The file that was read or written.
        conflicts: What the catalogue already has otherwise, one line each.
        missing: What a version lacks before a protected alias may point to it.
    """

    model: str | None = None
    reference: str | None = None
    path: str | None = None
    conflicts: Sequence[str] = ()
    missing: Sequence[str] = ()


class MigrationError(CatalogError):
    """The database has a schema that this version of medvllm cannot read or write.

    Attributes:
        schema: The schema that the database has.
    """

    schema: str | None = None


class SourceError(MedVLLMError, OSError):
    """A model's files cannot be found, read or used.

    Attributes:
        model: The model's name.
        path: The file or folder.
        repo: The repository's id on the Hub.
        revision: The branch, tag or commit that was asked for.
        commit: The commit that it stands for.
        candidates: Similar names that are registered.
    """

    model: str | None = None
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    commit: str | None = None
    candidates: Sequence[str] = ()


class SnapshotNotFoundError(SourceError):
    """The folder, the repository or its revision does not exist."""


class IncompleteSnapshotError(SourceError):
    """Files of a model are missing or shorter than they should be.

    Attributes:
        missing: The names of these files.
    """

    missing: Sequence[str] = ()


class GatedModelError(SourceError):
    """The Hub asks for a token, or for the acceptance of terms, before it gives the files."""


class HubUnreachableError(SourceError):
    """The Hub does not answer, or HF_HUB_OFFLINE is set.

    Attributes:
        endpoint: The Hub's address.
    """

    endpoint: str | None = None


class DigestMismatchError(SourceError):
    """A file differs from the one that the Hub, the lock file or a bundle lists.

    Attributes:
        files: The names of these files.
    """

    files: Sequence[str] = ()


class OutputError(MedVLLMError, OSError):
    """A result cannot be written to the given path.

    Attributes:
        path: The path.
    """

    path: str | None = None


class LoadError(MedVLLMError, RuntimeError):
    """The files are complete, but they do not give a model that works.

    Attributes:
        model: The model's name.
        path: The file or folder.
        device: The device that was asked for.
        available: The devices of this machine.
        position: The index of the text, from 0, for which the model gave no usable result.
    """

    model: str | None = None
    path: str | None = None
    device: str | None = None
    available: Sequence[str] = ()
    position: int | None = None


class WeightsMismatchError(LoadError):
    """The checkpoint and the model do not fit: weights are missing, unused or of another shape, or labels have no name.

    Attributes:
        missing: Weights that the checkpoint lacks.
        unused: Weights that the model does not use.
        mismatched: Weights of another shape.
    """

    missing: Sequence[str] = ()
    unused: Sequence[str] = ()
    mismatched: Sequence[str] = ()


class UnsafeWeightsError(LoadError):
    """Loading would run code: a pickle, or Python modules of the repository."""


class BudgetError(LoadError):
    """The model does not fit into the memory budget.

    Attributes:
        plan: What the load needs, what is in use, and which models could leave.
    """

    plan: Any = None  # a Plan, as `ModelRegistry.plan` returns it


class DeviceMemoryError(LoadError):
    """The device ran out of memory."""


class RequestError(MedVLLMError, ValueError):
    """An argument or an input cannot be used.

    Attributes:
        option: The argument's name.
        keyword: The fact's name, for `register` and for filters.
        argument: The argument of a task.
        value: The value that was given.
        model: The model's name.
        task: The task.
        top_k: The number of answers that was asked for.
        position: The index of the text, from 0.
        candidates: Similar words that would be accepted.
    """

    option: str | None = None
    keyword: str | None = None
    argument: str | None = None
    value: object = None
    model: str | None = None
    task: str | None = None
    top_k: object = None
    position: int | None = None
    candidates: Sequence[str] = ()


class InputTooLongError(RequestError):
    """The input is longer than the task accepts, and the task may not cut it.

    Attributes:
        limit: The longest input that is accepted, in tokens, or in characters for a text as a whole.
    """

    limit: int | None = None


class OverloadedError(MedVLLMError, RuntimeError):
    """So many tokens wait for their turn that no more are admitted.

    Attributes:
        model: The model that was to read more.
        queued_tokens: The tokens that wait.
        limit: How many may wait.
        retry_after_s: The estimated seconds until these tokens have been read.
    """

    model: str | None = None
    queued_tokens: int | None = None
    limit: int | None = None
    retry_after_s: float | None = None


class DeadlineError(MedVLLMError, TimeoutError):
    """The deadline of a request passed before the answer was complete.

    Attributes:
        timeout_s: The seconds that the request had.
    """

    timeout_s: float | None = None


class RequestCancelledError(MedVLLMError):
    """A request was cancelled before its answer was complete."""


class ServerError(MedVLLMError, RuntimeError):
    """A server of medvllm cannot be reached, refuses the client, or fails.

    Attributes:
        url: The server's address.
        status: The HTTP status of its answer; None if there was none.
        code: The word for programs in its answer.
        retry_after_s: The seconds after which the same request may succeed; None if it will not.
    """

    url: str | None = None
    status: int | None = None
    code: str | None = None
    retry_after_s: float | None = None
