"""The weights of a model that was just loaded: all of its checkpoint's, and nothing else, in the right shapes."""

import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from traceback import walk_tb
from typing import Any

import torch

from medvllm.errors import WeightsMismatchError
from medvllm.loading.checks import unused_weights
from medvllm.metadata import ModelMetadata
from medvllm.sources.snapshot import Snapshot


def check_weights(metadata: ModelMetadata, model: Any, info: Any, snapshot: Snapshot) -> None:
    """Check that the model has the weights of its checkpoint. A pooler that the checkpoint lacks is removed.

    Args:
        metadata: The entry, which may allow missing and unused weights.
        model: The model.
        info: The loading info of `from_pretrained`: missing, unexpected and mismatched keys.
        snapshot: The model's files.

    Raises:
        WeightsMismatchError: Weights are missing, have other shapes, or are not used by the model.
    """
    unexpected = set(map(str, info["unexpected_keys"]))
    _check_once(metadata, model, snapshot)
    if surplus := _surplus_layer(model, unexpected):
        raise WeightsMismatchError(
            f"The checkpoint of {metadata.name!r} has {surplus}, a layer that its config does not have.\n"
            "The config and the weights do not belong together. Fetch both from the same commit.",
            model=metadata.name,
        )
    unused_weights.check_scales(metadata, model, unexpected, snapshot)
    _check_shapes(metadata, model, info["mismatched_keys"])
    _check_missing(metadata, model, info["missing_keys"], unexpected)
    if info["error_msgs"]:
        raise WeightsMismatchError(
            f"The checkpoint of {metadata.name!r} does not fit: {_some(sorted(info['error_msgs']))}.",
            model=metadata.name,
        )
    unused_weights.check_unused(metadata, model, unexpected, snapshot)


def conversion_error(metadata: ModelMetadata, error: Exception) -> WeightsMismatchError | None:
    """Return an error that names the weights that transformers could not convert; None for other failures.

    The error of transformers says only that its log has a report.
    """
    for frame, _ in walk_tb(error.__traceback__):
        failed = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if failed:
            name, why = sorted((str(name), str(why)) for name, why in failed.items())[0]
            return WeightsMismatchError(
                f"The checkpoint of {metadata.name!r} does not fit its config: {name} cannot be built from it, "
                f"{why.strip().splitlines()[-1][:300]}.\n"
                "The config and the weights do not belong together. Fetch both from the same commit.",
                model=metadata.name,
                mismatched=tuple(map(str, failed)),
            )
    return None


def _check_once(metadata: ModelMetadata, model: Any, snapshot: Snapshot) -> None:
    """Refuse a checkpoint with a weight under two names, with and without the encoder's prefix: one would be lost."""
    prefix, own = f"{getattr(model, 'base_model_prefix', '')}.", model.state_dict().keys()
    names = Counter(name.removeprefix(prefix) for header in snapshot.headers for name in header)
    twice = (name for name, times in names.items() if times > 1 and not {name, f"{prefix}{name}"} <= own)
    if first := next(twice, None):
        raise WeightsMismatchError(
            f"The checkpoint of {metadata.name!r} has {first!r} twice, with and without the prefix {prefix!r}.\n"
            "Load it with the class that saved it, and save it again: model.save_pretrained('folder')",
            model=metadata.name,
        )


def _surplus_layer(model: Any, unexpected: Iterable[str]) -> str | None:
    """Return a key of a layer after the model's last one, or None: these layers would be lost without an error."""
    stacks = {name: len(module) for name, module in model.named_modules() if isinstance(module, torch.nn.ModuleList)}
    for key in sorted(unexpected):
        for match in re.finditer(r"\.(\d+)\.", key):
            path = key[: match.start()]
            for stack in (path, path.removeprefix(f"{model.base_model_prefix}."), f"{model.base_model_prefix}.{path}"):
                if stack in stacks and int(match[1]) >= stacks[stack]:
                    return str(key)
    return None


def _check_shapes(metadata: ModelMetadata, model: Any, mismatched: Iterable[tuple[str, Any, Any]]) -> None:
    wrong = sorted((str(name), list(stored), list(wanted)) for name, stored, wanted in mismatched)
    if not wrong:
        return
    labels = metadata.behaviour.id2label
    _, stored, wanted = wrong[0]
    heads = [name for name, *_ in wrong if not _is_body(name, model)]
    if labels is not None and len(heads) == len(wrong) and stored and wanted[:1] == [len(labels)]:
        raise WeightsMismatchError(
            f"The entry of {metadata.name!r} has {len(labels)} names (id2label), and its checkpoint has {stored[0]} "
            "labels.\n"
            f"Register it with the name of each class, in order: register(…, id2label=[…]), {stored[0]} names",
            model=metadata.name,
        )
    each = [f"{name} is {stored}, but the config requires {wanted}" for name, stored, wanted in wrong]
    raise WeightsMismatchError(
        f"The checkpoint of {metadata.name!r} does not fit its config: {_some(each, '; ')}.\n"
        "The config and the weights do not belong together. Fetch both from the same commit.",
        model=metadata.name,
        mismatched=tuple(name for name, *_ in wrong),
    )


def _check_missing(metadata: ModelMetadata, model: Any, keys: Iterable[str], unexpected: Iterable[str]) -> None:
    expected = metadata.behaviour.expected_missing_keys
    missing = sorted(key for key in keys if not any(fnmatchcase(key, pattern) for pattern in expected))
    if missing and model.base_model is model and all(_is_pooler(key) for key in missing):
        # Random weights would give a random pooler_output. Without a pooler it is None. No head uses it here.
        for module in model.modules():
            if getattr(module, "pooler", None) is not None:
                module.pooler = None
        return
    if not missing:
        return
    what = f"The checkpoint of {metadata.name!r} lacks {_some(missing)}"
    if prefix := _prefix(missing, unexpected):
        raise WeightsMismatchError(
            f"{what}: the names of its weights begin with {prefix!r}, which a wrapper of the model adds.\n"
            f"Save it without: {{name.removeprefix({prefix!r}): tensor for name, tensor in weights.items()}}",
            model=metadata.name,
            missing=tuple(missing),
        )
    advice = "The config and the weights do not belong together. Fetch both from the same commit."
    if not any(_is_body(key, model) for key in missing):
        patterns = list(dict.fromkeys(map(_head, missing)))
        advice = (
            "Load it with the class that saved it, or allow them by name: "
            f"register(…, expected_missing_keys={patterns})"
        )
    raise WeightsMismatchError(
        f"{what}, so a {type(model).__name__} would be partly random.\n{advice}",
        model=metadata.name,
        missing=tuple(missing),
    )


def _prefix(missing: list[str], unexpected: Iterable[str]) -> str | None:
    """Return the prefix that the checkpoint has before the names of missing weights, or None."""
    lacking = set(missing)
    found: Counter[str] = Counter()
    for key in unexpected:
        parts = key.split(".")
        for i in range(1, len(parts)):
            if ".".join(parts[i:]) in lacking:
                found[".".join(parts[:i]) + "."] += 1
                break
    return found.most_common(1)[0][0] if found else None


def _is_pooler(key: str) -> bool:
    return re.search(r"(^|\.)pooler\.", key) is not None


def _is_body(key: str, model: Any) -> bool:
    """Return whether a weight belongs to the encoder or decoder, and not to a head or pooler on top of it."""
    inside = model.base_model is model or key.startswith(f"{model.base_model_prefix}.")
    return inside and not _is_pooler(key)


def _head(key: str) -> str:
    """Return the glob for the head or pooler that a weight belongs to."""
    head, pooler, _ = key.rpartition("pooler.")
    return f"{head}{pooler}*" if pooler else key.partition(".")[0] + (".*" if "." in key else "")


def _some(items: list[str], separator: str = ", ") -> str:
    return separator.join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
