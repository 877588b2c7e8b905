"""Snapshot -> model: loaded by transformers or rebuilt from a template, and checked before anybody gets it."""

import logging
import time
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig

from medvllm.errors import LoadError, MedVLLMError, SourceError
from medvllm.load_result import LoadedBy, LoadResult
from medvllm.loading import positions, prepared, remote_code
from medvllm.loading.bounds import limit_new_weights
from medvllm.loading.checks import labels, quantization, soundness, weights
from medvllm.loading.from_pretrained_lock import exclusive_load, tie_weights
from medvllm.loading.memory import allocated_bytes, keep_freed_memory, mapped_bytes, size_bytes
from medvllm.loading.native_dtypes import is_native
from medvllm.loading.placement import copy_to_device, device_memory_error
from medvllm.loading.replay import Checkpoint, NoTemplate, Template, make_template, source_facts, templates
from medvllm.loading.rust_panics import raise_as_errors
from medvllm.loading.stateless import find_stateful, make_stateless
from medvllm.loading.torch_threads import torch_threads
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity
from medvllm.sources.snapshot import Snapshot

logger = logging.getLogger(__name__)

_REPLAY_S = 0.005  # assumed for a reload until one is measured
# Another thread that calls from_pretrained can spoil a load of ours. With one that does so all the time, every third
# load here came out wrong. Refusing the model would not help its user, so the load is repeated.
_ATTEMPTS = 10


def load_model(metadata: ModelMetadata, identity: Identity, config: PreTrainedConfig, snapshot: Snapshot) -> LoadResult:
    """Load a model in eval mode on its device, with every weight accounted for.

    The first load goes through transformers. While the files stay unchanged, later loads rebuild what it made.

    Args:
        metadata: The entry.
        identity: The model. If it is offloaded, the weights stay in host memory, and no file backs them.
        config: The model's config.
        snapshot: The model's files.

    Raises:
        WeightsMismatchError: Weights are missing or have other shapes, or the config has no place for some layers.
        UnsafeWeightsError: The load would run untrusted code.
        SourceError: The weights are damaged, or changed during the load.
        DeviceMemoryError: The device does not have enough memory.
        LoadError: Any other failure.
    """
    torch_threads.set_up()
    keep_freed_memory()
    if identity.is_offloaded:
        return _load_offloaded(metadata, identity, config, snapshot)
    if identity.options.device == "cpu":
        _warn_of_slow_dtype(metadata.name, identity.snapshot, str(identity.options.dtype))
    return _load(metadata, identity, config, snapshot)


def _load(metadata: ModelMetadata, identity: Identity, config: PreTrainedConfig, snapshot: Snapshot) -> LoadResult:
    start = time.perf_counter()
    device = str(identity.options.device)
    allocated = allocated_bytes(device)
    cls: Any = identity.options.model_class
    try:
        # A caller's inference mode would mark the weights for every other caller.
        with raise_as_errors(), torch.inference_mode(False):
            model, loaded_by, template = _replay_or_load(metadata, identity, config, snapshot)
            stateful = template.stateful if isinstance(template, Template) else find_stateful(model)
            make_stateless(model, stateful)  # after the template is made: it describes the model as it was
            if device != "cpu":
                copy_to_device(model, torch.device(device))
    except MedVLLMError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise device_memory_error(metadata.name, device) from error
    except SafetensorError as error:
        raise SourceError(
            f"The weights of model {metadata.name!r} are damaged: {error}.", path=str(snapshot.path)
        ) from error
    except Exception as error:
        if "trust_remote_code" in str(error) and not metadata.source.trust_remote_code:
            raise remote_code.untrusted_code_error(metadata, snapshot, snapshot.config.get("auto_map")) from error
        raise weights.conversion_error(metadata, error) or LoadError(
            f"Model {metadata.name!r} could not be loaded as {cls.__name__}: {_first_line(error)}", model=metadata.name
        ) from error
    seconds = time.perf_counter() - start
    # A GPU's allocator takes whole blocks. Other threads may have used it meanwhile, but never for less than nothing.
    taken = allocated_bytes(device) - allocated
    if isinstance(template, Template):
        mapped = template.mapped_bytes if device == "cpu" else 0
        reload_s = seconds if loaded_by == "replay" else _REPLAY_S
        result = LoadResult(model, max(template.model_bytes, taken), seconds, loaded_by, mapped, reload_s)
    else:
        size = max(size_bytes(model), taken)
        result = LoadResult(model, size, seconds, loaded_by, mapped_bytes(model), seconds, template.reason)
    logger.info(
        "loaded %r on %s in %.3f s by %s (%.0f MB)",
        *(metadata.name, device, seconds, loaded_by, result.size_bytes / 1e6),
    )
    return result


def _load_offloaded(
    metadata: ModelMetadata, identity: Identity, config: PreTrainedConfig, snapshot: Snapshot
) -> LoadResult:
    on_cpu = replace(identity, is_offloaded=False, options=replace(identity.options, device="cpu"))
    loaded = _load(metadata, on_cpu, config, snapshot)
    try:
        copy_to_device(loaded.model, torch.device("cpu"))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise device_memory_error(metadata.name, "cpu") from error
    return replace(loaded, mapped_bytes=0)


def _replay_or_load(
    metadata: ModelMetadata, identity: Identity, config: PreTrainedConfig, snapshot: Snapshot
) -> tuple[Any, LoadedBy, Template | NoTemplate]:
    """Return a model on the CPU, how it was loaded, and its template or why it has none."""
    cls: Any = identity.options.model_class
    facts = source_facts(metadata, snapshot)
    template = templates.find(identity, facts)
    if template is not None and (model := _rebuild(metadata, template)) is not None:
        return model, "replay", template
    quantization.check_method(metadata, config)
    positions.check_kind(metadata, config)
    labels.check_label_map(metadata, cls, config)
    remote_code.warn_of_untrusted_code(metadata, snapshot, cls)
    model, made = _load_first(metadata, identity, config, snapshot)
    templates.store(identity, facts, made)
    return model, "transformers", made


def _rebuild(metadata: ModelMetadata, template: Template) -> Any | None:
    """Return the model of a template; None if transformers must load it."""
    try:
        return template.rebuild()
    except MemoryError:
        raise
    except Exception:  # a user's own class may raise anything
        logger.warning("%r could not be rebuilt and is loaded by transformers", metadata.name, exc_info=True)
        return None


def _load_first(
    metadata: ModelMetadata, identity: Identity, config: PreTrainedConfig, snapshot: Snapshot
) -> tuple[Any, Template | NoTemplate]:
    """Load with transformers, and return the model with its template or why it has none.

    Weights in another dtype than the file's are converted once. From then on their copy is mapped.
    """
    cls: Any = identity.options.model_class
    dtype = getattr(torch, identity.options.dtype or "float32")
    arguments: dict[str, Any] = {
        "config": deepcopy(config),  # the model's own
        "dtype": dtype,
        "use_safetensors": True,
        "local_files_only": True,
        "trust_remote_code": False,  # `remote_code` imports a repository's own class
        "ignore_mismatched_sizes": True,  # the loading info lists them, which transformers' own error does not
    }
    if identity.options.attn_implementation:
        arguments["attn_implementation"] = identity.options.attn_implementation

    def load(held: Snapshot) -> tuple[Any, set[str], Template | NoTemplate]:
        model, missing, checkpoint = _load_soundly(metadata, cls, held, arguments, dtype)
        model.config._name_or_path = model.name_or_path = str(snapshot.path)
        model.eval()
        return model, missing, NoTemplate(why) if (why := checkpoint.reason) else make_template(model, checkpoint.files)

    # Use the converted copy of an earlier process, if there is one and it can be proven.
    copy = prepared.find_place(snapshot, cls, arguments, metadata.behaviour.unused_weights)
    if copy is not None and (ready := copy.to_snapshot()) is not None and prepared.is_proven(ready, snapshot):
        try:
            model, _, template = load(ready)
            return model, template
        except Exception as error:  # the copy may be the cause: the source decides
            logger.warning("%s, a copy of the weights of %r, is dropped: %s", copy.folder, metadata.name, error)
            copy.remove()
    # Load the source.
    model, missing, template = load(snapshot)
    if not template.is_converted:
        return model, template
    # Keep the converted weights, and map them in place of the private ones.
    try:
        converted = prepared.keep_copy(copy, model, missing, lambda held: load(held)[0])
    except OSError as reason:
        return model, template if isinstance(template, Template) else NoTemplate(f"{template.reason}: {reason}")
    del model, template  # before the mapped model takes memory
    model, _, template = load(converted)
    return model, template


def _load_soundly(
    metadata: ModelMetadata, cls: type[Any], snapshot: Snapshot, arguments: dict[str, Any], dtype: torch.dtype
) -> tuple[Any, set[str], Checkpoint]:
    """Return a checked model, the weights that its checkpoint lacks, and the checkpoint."""
    flaw: str | None = None
    for attempt in range(1, _ATTEMPTS + 1):
        checkpoint = Checkpoint.open(cls, snapshot, arguments["config"])
        with exclusive_load(), limit_new_weights(metadata.name, cls, snapshot):
            outcome = checkpoint.load(cls, arguments)
        model, info = soundness.unpack_outcome(metadata.name, cls, outcome)
        if soundness.find_untied_weight(model):
            tie_weights(model, info["missing_keys"])
        if (flaw := soundness.find_flaw(model, dtype)) is None:
            quantization.check_read(metadata, model, snapshot)
            weights.check_weights(metadata, model, info, snapshot)
            labels.check_label_names(metadata, model)
            _warn_of_bidirectional_decoder(metadata, model)
            return model, set(info["missing_keys"]), checkpoint
        logger.warning("%r was not loaded correctly (%s), attempt %d of %d", metadata.name, flaw, attempt, _ATTEMPTS)
    raise LoadError(
        f"Model {metadata.name!r} was not loaded correctly as {cls.__name__}: {flaw}.\n"
        "If another thread calls from_pretrained at the same time, let it call registry.load_model instead.",
        model=metadata.name,
    )


@lru_cache(maxsize=256)  # once for each model, not for each load
def _warn_of_slow_dtype(name: str, snapshot: str, dtype: str) -> None:
    """Log a warning if this CPU has no instructions for the dtype that somebody asked for."""
    if not is_native(dtype):
        logger.warning(
            "%r runs in %s on the CPU, which has no instructions for it and is several times slower than in float32. "
            "Load it with: dtype='float32'",
            *(name, dtype),
        )


def _warn_of_bidirectional_decoder(metadata: ModelMetadata, model: Any) -> None:
    if type(model).__name__ == "BertLMHeadModel" and not model.config.is_decoder:
        logger.warning(
            "%r is a bidirectional BERT loaded as a causal language model: it can score text, but not generate it",
            metadata.name,
        )


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:300]}"
