"""Turns the arguments of `register` into the facts of an entry."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from medvllm.errors import RequestError
from medvllm.fact_values import wrap_single_texts
from medvllm.metadata import ModelMetadata
from medvllm.model_type import ModelType
from medvllm.names import check_revision, parse_name, source_path
from medvllm.options import LoadOptions, parse_keep_alive

if TYPE_CHECKING:
    from medvllm.catalog import Catalog


def prepare_facts(
    name: str, model_type: ModelType | str, given: Mapping[str, Any], *, copy: bool, catalog: "Catalog"
) -> dict[str, Any]:
    """Return the facts of an entry: those given, checked, with those that the model's folder states.

    Args:
        name: The entry's name.
        model_type: The entry's type.
        given: The facts as the caller wrote them.
        copy: Whether to copy the folder of `model_path` into MEDVLLM_HOME, and register the copy.
        catalog: The entries, among which the base of an adapter must be.
    """
    facts = wrap_single_texts(given)
    # Load options are refused now rather than at every load.
    parameters = facts.get("parameters")
    if isinstance(parameters, Mapping) and LoadOptions.from_kwargs(parameters).revision is not None:
        raise RequestError("'revision' is a fact, not a parameter: register(…, revision='…')", option="revision")
    parse_keep_alive(facts.get("keep_alive"))
    if isinstance(facts.get("base"), str):
        from medvllm.model_registry.adapter_base import find_base

        find_base(catalog, ModelMetadata.build(name, model_type, {"base": facts["base"]}))
    # A path is kept in a form that means the same in every working directory.
    if isinstance(facts.get("model_path"), str | os.PathLike):
        facts["model_path"] = source_path(facts["model_path"])
    location = None if facts.get("model_path") is None else parse_name(facts["model_path"])
    is_folder = location is not None and location.kind == "folder"
    if location is not None:
        check_revision(name, location, facts.get("revision"))
    if copy:
        from medvllm import sources

        kept = sources.copy_to_home(
            facts.get("model_path"), facts.get("extra_files") or (), adapter=facts.get("base") is not None
        )
        facts["model_path"] = source_path(str(kept))
    # A folder says for which task it is, which labels it has, how it pools: listings show that without a load.
    if is_folder:
        from medvllm import sources

        facts |= sources.read_folder_facts(ModelMetadata.build(name, model_type, facts))
    return facts
