"""Weights of a model that was just loaded: those of its checkpoint, all of them, in the right shapes."""

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
from medvllm.sources import Snapshot


def check_weights(metadata: ModelMetadata, model: Any, info: Any, snapshot: Snapshot) -> None:
    """Raise WeightsMismatchError unless checkpoint and model fit. A pooler that the checkpoint lacks is taken out.

    Args:
        info: What `from_pretrained` tells of the load: missing, unexpected and mismatched keys.
    """
    unexpected = set(map(str, info["unexpected_keys"]))
    _check_once(metadata, model, snapshot)
    if surplus := _surplus_layer(model, unexpected):
        raise WeightsMismatchError(
            f"The checkpoint of {metadata.name!r} has {surplus}, for which its config has no place.\n"
            "Config and weights do not belong together: fetch both from one commit.",
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
    """Return what transformers' report of a failed load says of weights that it could not convert, or None.

    Its error says only that there is such a report.
    """
    for frame, _ in walk_tb(error.__traceback__):
        failed = getattr(frame.f_locals.get("loading_info"), "conversion_errors", None)
        if failed:
            name, why = sorted((str(name), str(why)) for name, why in failed.items())[0]
            return WeightsMismatchError(
                f"The checkpoint of {metadata.name!r} does not fit its config: {name} cannot be made of it, "
                f"{why.strip().splitlines()[-1][:300]}.\n"
                "Config and weights do not belong together: fetch both from one commit.",
                model=metadata.name,
                mismatched=tuple(map(str, failed)),
            )
    return None


def _check_once(metadata: ModelMetadata, model: Any, snapshot: Snapshot) -> None:
    """Refuse a checkpoint that has a weight under two names, with and without the encoder's prefix: one would win."""
    prefix, own = f"{getattr(model, 'base_model_prefix', '')}.", model.state_dict().keys()
    names = Counter(name.removeprefix(prefix) for header in snapshot.headers for name in header)
    twice = (name for name, times in names.items() if times > 1 and not {name, f"{prefix}{name}"} <= own)
    if first := next(twice, None):
        raise WeightsMismatchError(
            f"The checkpoint of {metadata.name!r} has {first!r} twice, with and without the prefix {prefix!r}.\n"
            "Load it with the class that it was saved from, and save it again: model.save_pretrained('folder')",
            model=metadata.name,
        )


def _surplus_layer(model: Any, unexpected: Iterable[str]) -> str | None:
    """Return a key of a layer beyond the model's last, or None: such a checkpoint would lose layers in silence."""
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
            f"The entry of {metadata.name!r} has {len(labels)} names for {stored[0]} labels (id2label).\n"
            f"Register it with the name of each class, in order: register(…, id2label=[…]), {stored[0]} names",
            model=metadata.name,
        )
    each = [f"{name} is {stored}, and the config asks for {wanted}" for name, stored, wanted in wrong]
    raise WeightsMismatchError(
        f"The checkpoint of {metadata.name!r} does not fit its config: {_some(each, '; ')}.\n"
        "Config and weights do not belong together: fetch both from one commit.",
        model=metadata.name,
        mismatched=tuple(name for name, *_ in wrong),
    )


def _check_missing(metadata: ModelMetadata, model: Any, keys: Iterable[str], unexpected: Iterable[str]) -> None:
    expected = metadata.behaviour.expected_missing_keys
    missing = sorted(key for key in keys if not any(fnmatchcase(key, pattern) for pattern in expected))
    if missing and model.base_model is model and all(_is_pooler(key) for key in missing):
        # A pooler with random weights would give a random pooler_output: with none, it is None. No head stands on it.
        for module in model.modules():
            if getattr(module, "pooler", None) is not None:
                module.pooler = None
        return
    if not missing:
        return
    what = f"The checkpoint of {metadata.name!r} lacks {_some(missing)}"
    if prefix := _prefix(missing, unexpected):
        raise WeightsMismatchError(
            f"{what}: its weights have {prefix!r} before their names, as a wrapper of the model saves them.\n"
            f"Save it without: {{name.removeprefix({prefix!r}): tensor for name, tensor in weights.items()}}",
            model=metadata.name,
            missing=tuple(missing),
        )
    advice = "Config and weights do not belong together: fetch both from one commit."
    if not any(_is_body(key, model) for key in missing):
        patterns = list(dict.fromkeys(map(_head, missing)))
        advice = (
            "Load it with the class that it was saved from, or allow them by name: "
            f"register(…, expected_missing_keys={patterns})"
        )
    raise WeightsMismatchError(
        f"{what}, so a {type(model).__name__} would be partly random.\n{advice}",
        model=metadata.name,
        missing=tuple(missing),
    )


def _prefix(missing: list[str], unexpected: Iterable[str]) -> str | None:
    """Return what stands before the names of weights that the model lacks, or None."""
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
    """Return whether a weight is one of the encoder or decoder, and not of a head or pooler on top of it."""
    inside = model.base_model is model or key.startswith(f"{model.base_model_prefix}.")
    return inside and not _is_pooler(key)


def _head(key: str) -> str:
    """Return the glob for a head or pooler that a weight is of."""
    head, pooler, _ = key.rpartition("pooler.")
    return f"{head}{pooler}*" if pooler else key.partition(".")[0] + (".*" if "." in key else "")


def _some(items: list[str], separator: str = ", ") -> str:
    return separator.join(items[:3]) + (f" and {len(items) - 3} more" if len(items) > 3 else "")
