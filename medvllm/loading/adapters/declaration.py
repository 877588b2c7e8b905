"""What an adapter's config declares. All of it is understood, or the adapter is refused by name."""

import re
from collections.abc import Mapping
from typing import Any

from medvllm.errors import LoadError, MissingDependencyError
from medvllm.metadata import ModelMetadata
from medvllm.names import is_commit, parse_name
from medvllm.sources.snapshot import Snapshot

# Fields that say where the adapter comes from or how it was trained. They do not change its answers.
_INERT = (
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("inference_mode", "lora_dropout", "init_lora_weights", "runtime_config", "loftq_config", "eva_config"),
    *("corda_config", "lora_ga_config", "velora_config", "megatron_core", "qalora_group_size", "monteclora_config"),
)
_USED = (
    *("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "lora_bias", "bias"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save"),
    "fan_in_fan_out",
)
# The ways to start a training that leave the weights of the base as they are.
_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
NAME_PREFIX = "base_model.model."  # before the name of each weight in the file of an adapter
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_MERGE = "Merge it into its base, and register the result: model.merge_and_unload().save_pretrained('folder')"


def read_declaration(metadata: ModelMetadata, snapshot: Snapshot) -> dict[str, Any]:
    """Return the fields of an adapter's config that decide what it computes, as keywords of PEFT's LoraConfig.

    Raises:
        LoadError: The adapter is not a LoRA, or declares something that is not supported here.
    """
    fields = snapshot.config
    kind = fields.get("peft_type")
    if kind != "LORA":
        what = f"is of the kind {str(kind)[:80]!r}" if kind else "does not say its kind (peft_type)"
        raise _refusal(metadata, f"{what}, and only LoRA adapters are supported", _advice(kind))
    if (start := fields.get("init_lora_weights")) not in _STARTS:
        raise _refusal(
            metadata,
            f"was trained from init_lora_weights={str(start)[:80]!r}, which changes the weights of its base",
            "Save it as a plain LoRA: "
            "model.save_pretrained('folder', path_initial_model_for_weight_conversion='initial')",
        )
    for field, value in fields.items():
        if field not in (*_INERT, *_USED) and value not in (None, False, [], {}, ""):
            raise _refusal(metadata, f"declares {field[:80]!r}, which is not supported", _MERGE)
    if not fields.get("target_modules"):
        raise _refusal(metadata, "names no modules (target_modules)", _MERGE)
    return {field: fields[field] for field in _USED if field in fields}


def task_type(snapshot: Snapshot) -> str | None:
    """Return the kind of head that an adapter was trained with, as PEFT calls it; None if it does not say."""
    found = snapshot.config.get("task_type")
    return found if isinstance(found, str) and found else None


def trained_class(snapshot: Snapshot) -> str | None:
    """Return the name of the transformers class that an adapter was trained on, if its config has one."""
    mapping = snapshot.config.get("auto_mapping")
    if not isinstance(mapping, Mapping):
        return None
    name, library = mapping.get("base_model_class"), mapping.get("parent_library")
    is_known = isinstance(name, str) and isinstance(library, str) and library.partition(".")[0] == "transformers"
    return name if is_known else None


def check_trained_on(metadata: ModelMetadata, snapshot: Snapshot, base: ModelMetadata, files: Snapshot) -> str | None:
    """Check that an adapter was trained on its base. Return what nothing shows, in words; None if there is no doubt.

    Args:
        metadata: The adapter's entry.
        snapshot: The adapter's files.
        base: The entry of its base.
        files: The files of the base.

    Raises:
        LoadError: It was trained on another repository.
    """
    stated, revision = (snapshot.config.get(field) for field in ("base_model_name_or_path", "revision"))
    if not isinstance(stated, str) or not stated:
        return None
    shown = repr(stated[:100])
    names = {base.name, parse_name(base.location).name, *base.source.also_known_as}
    if stated.casefold() not in {name.casefold() for name in names}:
        if files.repo is not None and _REPOSITORY.fullmatch(stated):
            raise LoadError(
                f"Adapter {metadata.name!r} was trained on {shown}, but its base {base.name!r} is {files.repo!r}.\n"
                f"Register the adapter with the entry of {shown} as its base. "
                f"If both are the same model: register({base.name!r}, …, also_known_as=[{shown}])",
                model=metadata.name,
            )
        return f"it was trained on {shown}, and nothing shows that its base {base.name!r} is the same model"
    if is_commit(revision) and files.commit is not None and revision != files.commit:
        return f"it was trained on {shown} at {str(revision)[:7]}, and its base is at {files.commit[:7]}"
    return None


def import_peft(metadata: ModelMetadata) -> Any:
    """Return the library, or raise MissingDependencyError."""
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError(
            f"Model {metadata.name!r} is an adapter, which needs the package 'peft'.\n"
            "Install it with: pip install 'medvllm[peft]'",
            model=metadata.name,
            package="peft",
        ) from error
    return peft


def _advice(kind: object) -> str:
    if isinstance(kind, str) and ("PROMPT" in kind or kind in ("P_TUNING", "PREFIX_TUNING", "CARTRIDGE", "CPT")):
        return "Train a LoRA instead: peft.LoraConfig(…). An adapter of this kind cannot be merged into its base."
    return _MERGE


def _refusal(metadata: ModelMetadata, what: str, advice: str) -> LoadError:
    return LoadError(f"Adapter {metadata.name!r} {what}.\n{advice}", model=metadata.name)
