"""What a name means: an entry of the catalogue or, if there is none, a repository or folder that is loaded directly."""

import os
from typing import NamedTuple

from medvllm import settings
from medvllm.catalog.announcements import Meaning, meaning_elsewhere
from medvllm.catalog.catalog import Catalog
from medvllm.errors import MedVLLMError, ModelNotFoundError
from medvllm.metadata import ModelMetadata
from medvllm.model_type import ModelType
from medvllm.names import ModelRef
from medvllm.near_names import did_you_mean


class Found(NamedTuple):
    """The entry that a name means, and the Hub revision that the name asks for."""

    entry: ModelMetadata
    revision: str | None


def find_entry(catalog: Catalog, ref: ModelRef) -> Found | None:
    """Return the entry that a name means, or None when no entry has that name.

    Raises:
        ModelNotFoundError: The entry has no such version or alias, or the name means another model in the process
            that started this one.
    """
    if ref.kind == "folder":
        return None
    if ref.kind == "hub":
        entry = catalog.find_source(ref.name)
        return None if entry is None else Found(entry, ref.suffix)
    if (meaning := meaning_elsewhere(ref.name)) is not None:
        _check_same_meaning(catalog, ref, meaning)
    entry = catalog.find(ref.name, ref.suffix)
    if entry is not None or ref.suffix is None:
        return None if entry is None else Found(entry, None)
    entry = catalog.find(ref.name)
    if entry is None:
        return None
    # After "org/model@" a branch or commit may follow too; after another name, only a version or an alias.
    if "/" not in ref.name or ref.suffix.isdecimal():
        raise _no_such_version(catalog, ref, entry)
    return Found(entry, ref.suffix)


def find_model(catalog: Catalog, ref: ModelRef, revision: str | None = None) -> Found:
    """Return the entry that a name means. Without one, return an entry of origin "direct" for the repository or folder.

    Args:
        catalog: The entries.
        ref: The name.
        revision: The revision that the call asks for: only a repository has one.

    Raises:
        ModelNotFoundError: No entry has that name, and it cannot or must not be loaded directly: it is close to a
            registered name, it was unregistered, it is not a repository's id, or a setting forbids direct loading.
    """
    found = find_entry(catalog, ref)
    if found is not None:
        return found
    # `hf://…` and paths are explicit. A plain name may be misspelt, and must not load whatever the Hub has under it.
    if ref.kind == "name":
        _check_may_be_repository(catalog, ref, revision)
    if not settings.ALLOW_UNREGISTERED():
        raise catalog.not_found(
            ref.text, f", and loading unregistered models is switched off ({settings.ALLOW_UNREGISTERED.name})"
        )
    path = ref.name if ref.kind == "folder" else f"hf://{ref.name}"
    entry = ModelMetadata.build(ref.name, ModelType.GENERIC, {"model_path": path}, origin="direct")
    return Found(entry, ref.suffix)


def explain_missing_repository(catalog: Catalog, name: str, error: MedVLLMError) -> MedVLLMError:
    """Return the error of a repository that could not be fetched, with what else its name may have meant."""
    near = catalog.near(name)
    hint = (
        "\nA model that another process registered is known only in that process. To share it: "
        "register(…, persist=True)"
    )
    message = f"Model {name!r} is not registered.{did_you_mean(near)}\n{error}{'' if '/' in name else hint}"
    return type(error)(message, **vars(error) | {"candidates": tuple(near)})


def _check_same_meaning(catalog: Catalog, ref: ModelRef, there: Meaning) -> None:
    """Raise ModelNotFoundError when a name means another model here than in the process that announced it."""
    here = catalog.find(ref.name, ref.suffix)
    is_meant = here is None or ref.suffix in (None, str(there.version))
    is_same = here is not None and (here.origin == "process" or here.digest == there.digest)
    if not is_meant or is_same:
        return
    what = (
        "is not registered in this process"
        if here is None
        else f"is another model in this process ({here.origin}, version {here.version})"
    )
    advice = "\nShare it with all processes: registry.register(…, persist=True). Or send a ModelRunner of it."
    if here is not None and here.version != there.version:
        advice += f"\nTo use the one of this process: {here.name}@{here.version}"
    what += ": the process that started it registered the name for itself alone"
    raise catalog.not_found(ref.text, what=what, advice=advice, near=[])


def _check_may_be_repository(catalog: Catalog, ref: ModelRef, revision: str | None) -> None:
    """Raise ModelNotFoundError unless a name without an entry can only mean a repository on the Hub."""
    as_repository = f"\nIf you mean the repository of that name: hf://{ref.text}"
    as_folder = f"\nIf you mean the folder of that name: ./{ref.text}"
    if (where := catalog.was_removed(ref.name)) is not None:
        if where == "stored":
            why, advice = ": it was unregistered", f"\nSee when, and why: medvllm history {ref.name}"
        else:
            why, advice = ": it was unregistered in this process", as_repository if ref.is_repo_id else ""
        raise catalog.not_found(ref.text, f" any more{why}", advice=advice, near=[])
    if "/" not in ref.name and (near := catalog.near(ref.name)):
        advice = as_folder if os.path.isdir(ref.name) else as_repository
        raise catalog.not_found(ref.text, advice=advice, near=near)
    if ref.suffix is None and revision is None and os.path.isdir(ref.name):
        raise catalog.not_found(ref.text, advice=as_folder + (as_repository if "/" in ref.name else ""))
    if not ref.is_repo_id:
        raise catalog.not_found(ref.text, ", and it is not a repository's id", advice=as_folder)


def _no_such_version(catalog: Catalog, ref: ModelRef, entry: ModelMetadata) -> ModelNotFoundError:
    known = catalog.known(ref.name)
    return ModelNotFoundError(
        f"Model {ref.name!r} has no version or alias {ref.suffix!r}. It has: {', '.join(known[-20:])}.\n"
        f"Use the current one: {ref.name}@{entry.version}",
        model=ref.name,
        candidates=tuple(known),
    )
