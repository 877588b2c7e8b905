"""Reading the declaration of a folder: all of it is understood, or the folder is refused with the reason.

Two formats are read: that of sentence-transformers 5.4 and later, and the older one with a flag for each pooling mode.
"""

import platform
from collections.abc import Mapping
from typing import Any

from medvllm.sources.json_files import read_json
from medvllm.sources.sentence.declaration import Declaration, Dense, Module
from medvllm.sources.sentence.fields import Refused, is_count, shorten
from medvllm.sources.sentence.folder import ModelFiles, read_fields
from medvllm.sources.sentence.modules import read_kind, read_module, read_pooling, read_transformer

SUPPORTED_VERSION = "6.2.0"  # medvllm computes the vectors of this sentence-transformers

_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
_PROMPTS = ("query", "document")  # every folder has these prompts, empty by default


def read_declaration(model: ModelFiles) -> Declaration | None:
    """Return what a folder declares, or None if sentence-transformers did not write it.

    A folder with something that medvllm does not support gets a declaration with a `refusal`.

    Raises:
        SourceError: A file of the folder is damaged.
    """
    if "modules.json" not in model.files:
        return None
    try:
        return _read(model, read_json(model.file("modules.json"), list))
    except Refused as refused:
        return Declaration(refusal=str(refused))


def _read(model: ModelFiles, listed: list[Any]) -> Declaration:
    """Return the declaration, or raise Refused at the first thing that is not supported."""
    kinds = [read_kind(module) for module in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        order = " and ".join(kinds[:2]) or "nothing"
        raise Refused(f"begins with {order} in modules.json, but medvllm runs a Transformer and a Pooling")
    if len({module["name"] for module in listed}) != len(listed):
        raise Refused("has two modules with the same name in modules.json")
    paths = [module["path"] for module in listed]  # the layout has checked that they stay in the folder
    transformer = read_transformer(model, paths[0])
    pooling, width = read_pooling(model, paths[1])
    modules: list[Module] = []
    for kind, path in zip(kinds[2:], paths[2:], strict=True):
        module = read_module(model, kind, path)
        width = module.out_features if isinstance(module, Dense) else width
        modules += [module] if module is not None else []
    return Declaration(**transformer, **pooling, modules=tuple(modules), **_read_model_fields(model, width))


def _read_model_fields(model: ModelFiles, width: int | None) -> dict[str, Any]:
    """Return what is declared for the whole model. Its vectors have `width` values, if that is known."""
    fields = read_fields(model, "config_sentence_transformers.json")
    fields.ignore("__version__")
    similarity = fields.read("similarity_fn_name", lambda value: value is None or value in _SIMILARITIES)
    fields.read("model_type", lambda value: value == "SentenceTransformer")
    _check_requirements(fields.read("requirements", lambda value: value is None or isinstance(value, dict)))
    prompts = fields.read("prompts", lambda value: True, {})
    if not _is_prompts(prompts):  # a message must not show the text of a prompt
        raise Refused(f"has prompts that are not texts in {fields.file}")
    prompts = {name: text or "" for name, text in prompts.items() if text or name not in _PROMPTS}
    default = fields.read("default_prompt_name", lambda value: value is None or isinstance(value, str))
    if default is not None and default not in (*prompts, *_PROMPTS):
        raise Refused(f"has the default prompt {default[:80]!r}, which is not one of its prompts, in {fields.file}")
    kept = fields.read("truncate_dim", lambda value: value is None or is_count(value))
    kept = None if kept is None or (width is not None and kept >= width) else kept
    fields.check_all_read()
    return {"prompts": prompts, "default_prompt_name": default, "truncate_dim": kept, "similarity": similarity}


def _is_prompts(value: Any) -> bool:
    return isinstance(value, dict) and all(text is None or isinstance(text, str) for text in value.values())


def _check_requirements(requirements: Mapping[str, Any] | None) -> None:
    """Raise Refused unless the packages that the folder requires are installed."""
    from importlib.metadata import PackageNotFoundError

    from packaging.specifiers import InvalidSpecifier, SpecifierSet

    for package, wanted in (requirements or {}).items():
        specifier = wanted.get("specifier") if isinstance(wanted, dict) else wanted
        try:
            fits = SpecifierSet(str(specifier)).contains(_version(package), prereleases=True)
        except (PackageNotFoundError, InvalidSpecifier, ValueError):
            fits = False
        if not fits:
            raise Refused(f"requires {package[:80]!r} {shorten(specifier)}, which is not installed")


def _version(package: str) -> str:
    from importlib.metadata import version

    if package in ("sentence-transformers", "sentence_transformers"):
        return SUPPORTED_VERSION
    if package == "python":
        return platform.python_version()
    return version({"pytorch": "torch"}.get(package, package))
