"""The error for a name that is registered already."""

from medvllm.errors import ModelExistsError


def name_taken(name: str, origin: str, version: int) -> ModelExistsError:
    """Return the error for registering a name that an entry has; `origin` and `version` are those of the entry."""
    return ModelExistsError(
        f"Model {name!r} is already registered ({origin}, version {version}).\n"
        "Choose another name, or replace the entry: register(…, replace=True), or medvllm register --replace",
        model=name,
    )


def other_name_taken(name: str, owner: str, origin: str, version: int) -> ModelExistsError:
    """Return the error for registering another name of an entry; `owner` is that entry's name."""
    return ModelExistsError(
        f"{name!r} is another name of model {owner!r} ({origin}, version {version}).\n"
        "Choose another name, or let this one mean the new entry: register(…, replace=True), or "
        "medvllm register --replace",
        model=name,
    )
