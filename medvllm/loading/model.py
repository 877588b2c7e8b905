"""Snapshot -> model: through transformers, then checked before anybody gets it."""

import logging
import time
from copy import deepcopy
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from medvllm.errors import (
    DeviceMemoryError,
    LoadError,
    MedVLLMError,
    SourceError,
)
from medvllm.loading import code, labels, positions, prepared, quantization, weights
from medvllm.loading.bounds import bounded
from medvllm.loading.checkpoint import Checkpoint
from medvllm.loading.from_pretrained_lock import foreign_load_running, gate, retie, wait_until_quiet
from medvllm.loading.memory import How, Loaded, allocated_bytes, mapped_bytes, size_bytes
from medvllm.loading.panics import caught
from medvllm.loading.place import place
from medvllm.loading.recipe import NoRecipe, Recipe, recipe_of
from medvllm.loading.recipes import origin, recipes
from medvllm.loading.steady import steady
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity
from medvllm.sources import Snapshot

logger = logging.getLogger(__name__)

_REPLAY_S = 0.005  # that a reload takes until one was measured
_ATTEMPTS = 10  # a load elsewhere that does not take the gate may spoil one of ours


def load_model(metadata: ModelMetadata, identity: Identity, config: PreTrainedConfig, snapshot: Snapshot) -> Loaded:
    """Return the model that `identity` describes, in eval mode on its device, every weight accounted for.

    The first load goes through transformers; while the files stay as they are, later ones rebuild what it made.

    WeightsMismatchError: weights are missing or misshapen, or there are layers that the config has no place for.
    UnsafeWeightsError: loading would run code. DeviceMemoryError: no room. LoadError: anything else.
    """
    start = time.perf_counter()
    options = identity.options
    allocated = allocated_bytes(str(options.device))
    cls: Any = options.model_class
    dtype = getattr(torch, options.dtype or "float32")
    if dtype is torch.float16 and options.device == "cpu":
        logger.warning("%r runs in float16 on the CPU, several times slower than in float32 or bfloat16", metadata.name)
    arguments: dict[str, Any] = {
        "dtype": dtype,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": False,  # a repository's own class is imported by us
        "ignore_mismatched_sizes": True,  # told with the loading info: its own error says neither which nor how
    }
    if options.attn_implementation:
        arguments["attn_implementation"] = options.attn_implementation
    made_of = origin(metadata, snapshot)
    recipe: Recipe | NoRecipe | None
    recipe = known = recipes.find(identity, made_of)
    try:
        # A caller's inference mode would mark the weights of everybody for good.
        with caught(), torch.inference_mode(False):
            model = _rebuilt(metadata, known) if known is not None else None
            how: How = "transformers" if model is None else "replay"
            if model is None:
                quantization.check_method(metadata, config)
                positions.check_kind(metadata, config)
                labels.check_map(metadata, cls, config)
                code.warn_of_other(metadata, snapshot, cls)
                arguments["config"] = deepcopy(config)  # the model's own
                model, recipe = _first(metadata, cls, snapshot, arguments, dtype)
                recipes.keep(identity, made_of, recipe)
            steady(model)  # a recipe is of the model as it was
            if options.device != "cpu":
                place(model, torch.device(str(options.device)))
    except MedVLLMError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceMemoryError(
            f"Device {options.device!r} has no room for model {metadata.name!r}.\n"
            "Free some: registry.clear_cache(), or load it with dtype='bfloat16'.",
            model=metadata.name,
            device=options.device,
        ) from error
    except SafetensorError as error:
        raise SourceError(
            f"The weights of model {metadata.name!r} are damaged: {error}.", path=str(snapshot.path)
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error) and not metadata.source.trust_remote_code:
            raise code.refusal(metadata, snapshot, snapshot.config.get("auto_map")) from error
        raise weights.unconverted(metadata, error) or LoadError(
            f"Model {metadata.name!r} could not be loaded as {cls.__name__}: {_first_line(error)}", model=metadata.name
        ) from error
    seconds = time.perf_counter() - start
    # A device's allocator gives whole blocks; another thread's work on it may be among them, but never less.
    taken = allocated_bytes(str(options.device)) - allocated
    if isinstance(recipe, Recipe):
        mapped = recipe.mapped_bytes if options.device == "cpu" else 0
        reload_s = seconds if how == "replay" else _REPLAY_S
        loaded = Loaded(model, max(recipe.model_bytes, taken), seconds, how, mapped, reload_s)
    else:
        reason = recipe.reason if recipe else None
        weight = max(size_bytes(model), taken)
        loaded = Loaded(model, weight, seconds, how, mapped_bytes(model), seconds, reason)
    logger.info(
        "loaded %r on %s in %.3f s by %s (%.0f MB)",
        *(metadata.name, options.device, loaded.load_s, how, loaded.size_bytes / 1e6),
    )
    return loaded


def _rebuilt(metadata: ModelMetadata, recipe: Recipe) -> Any | None:
    """Return the model of a recipe, or None when transformers must load it anew."""
    try:
        return recipe.rebuild()
    except MemoryError:
        raise
    except Exception:  # whatever a class of the user's own does; what can be loaded is
        logger.warning("%r could not be rebuilt and is loaded anew", metadata.name, exc_info=True)
        return None


def _first(
    metadata: ModelMetadata, cls: type[Any], snapshot: Snapshot, arguments: dict[str, Any], dtype: torch.dtype
) -> tuple[Any, Recipe | NoRecipe]:
    """Return a model as transformers makes it, and its recipe or why it has none.

    Weights of another dtype than the file's are converted once, and mapped from their copy from then on.
    """

    def made(held: Snapshot) -> tuple[Any, set[str], Recipe | NoRecipe]:
        model, missing, checkpoint = _materialise(metadata, cls, held, arguments, dtype)
        model.config._name_or_path = model.name_or_path = str(snapshot.path)
        model.eval()
        return model, missing, NoRecipe(why) if (why := checkpoint.reason) else recipe_of(model, checkpoint.files)

    copy = prepared.place(snapshot, cls, arguments, metadata.behaviour.unused_weights)
    if copy is not None and (ready := copy.to_snapshot()) is not None and prepared.is_proven(ready, snapshot):
        try:
            model, _, recipe = made(ready)
            return model, recipe
        except Exception as error:  # the copy alone may be at fault: the source decides
            logger.warning("%s, a copy of the weights of %r, is dropped: %s", copy.folder, metadata.name, error)
            copy.remove()
    model, missing, recipe = made(snapshot)
    if recipe.is_converted:
        try:
            converted = prepared.make(copy, model, missing, lambda held: made(held)[0])
        except OSError as reason:
            return model, recipe if isinstance(recipe, Recipe) else NoRecipe(f"{recipe.reason}: {reason}")
        del model, recipe  # before the mapped copy comes
        model, _, recipe = made(converted)
    return model, recipe


def _materialise(
    metadata: ModelMetadata, cls: type[Any], snapshot: Snapshot, arguments: dict[str, Any], dtype: torch.dtype
) -> tuple[Any, set[str], Checkpoint]:
    """Load behind the gate until the outcome is sound; a load elsewhere can spoil it.

    Returns the model, the weights that its checkpoint lacks, and the checkpoint.
    """
    flaw: str | None = None
    for attempt in range(1, _ATTEMPTS + 1):
        checkpoint = Checkpoint.opened(cls, snapshot, arguments["config"])
        with gate(), bounded(metadata.name, cls, snapshot):
            outcome = checkpoint.load(cls, arguments)
        model, info = _unpacked(metadata, cls, outcome)
        if _untied(model):
            retie(model, info["missing_keys"])
        before, flaw = flaw, _flaw(model, dtype)
        if flaw is None:
            quantization.check_read(metadata, model, snapshot)
            weights.check(metadata, model, info, snapshot)
            labels.check_names(metadata, model)
            _warn_of_decoding(metadata, model)
            return model, set(info["missing_keys"]), checkpoint
        if flaw == before and not foreign_load_running():
            raise LoadError(
                f"Model {metadata.name!r} is unsound as {cls.__name__} makes it: {flaw}.", model=metadata.name
            )
        logger.warning("%r came out unsound (%s), attempt %d of %d", metadata.name, flaw, attempt, _ATTEMPTS)
        wait_until_quiet(1.0)
    raise LoadError(
        f"Model {metadata.name!r} came out unsound {_ATTEMPTS} times: {flaw}.\n"
        "Another part of the program loads models at the same time: let it use registry.load_model.",
        model=metadata.name,
    )


def _unpacked(metadata: ModelMetadata, cls: type[Any], outcome: Any) -> tuple[Any, Any]:
    """Return the model and its loading info, of the class that was asked for; a custom class may give anything."""
    if not (isinstance(outcome, tuple) and len(outcome) == 2 and isinstance(outcome[0], torch.nn.Module)):
        raise LoadError(f"{cls.__name__}.from_pretrained gave no model with its loading info.", model=metadata.name)
    if issubclass(cls, torch.nn.Module) and not isinstance(outcome[0], cls):
        raise LoadError(f"{cls.__name__}.from_pretrained gave a {type(outcome[0]).__name__}.", model=metadata.name)
    return outcome[0], outcome[1]


def _untied(model: Any) -> str | None:
    """Return a weight that should be another one and is not, or None."""
    for target, source in getattr(model, "all_tied_weights_keys", {}).items():
        if model.get_parameter_or_buffer(target) is not model.get_parameter_or_buffer(source):
            return str(target)
    return None


def _flaw(model: Any, dtype: torch.dtype) -> str | None:
    """Return what a concurrent load did to the model, or None: weights on meta, of another dtype, or untied."""
    kept_in_fp32 = [
        *(getattr(model, "_keep_in_fp32_modules", None) or ()),
        *(getattr(model, "_keep_in_fp32_modules_strict", None) or ()),
    ]
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_meta:
            return f"{name} has no data"
    for name, parameter in model.named_parameters():
        if (
            parameter.is_floating_point()
            and parameter.dtype != dtype
            and not any(part in name for part in kept_in_fp32)
        ):
            return f"{name} is {parameter.dtype}, not {dtype}"
    if target := _untied(model):
        return f"{target} is not tied"
    return None


def _warn_of_decoding(metadata: ModelMetadata, model: Any) -> None:
    if type(model).__name__ == "BertLMHeadModel" and not model.config.is_decoder:
        logger.warning(
            "%r is a bidirectional BERT loaded as a causal language model: fit for scores, not for generating",
            metadata.name,
        )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
