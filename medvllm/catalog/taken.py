"""The error for a name that is registered already."""

from medvllm.errors import ModelExistsError


def name_taken(name: str, origin: str, version: int) -> ModelExistsError:
    """Return the error for registering a name that an entry has; `origin` and `version` are those of the entry."""
    return ModelExistsError(
        f"Model {name!r} is already registered ({origin}, version {version}).\n"
        "Choose another name, or replace the entry: register(…, replace=True), or medvllm register --replace",
        model=name,
    )
