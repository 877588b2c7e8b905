"""Base and adapter -> a model: a copy of the base that shares its weights, with the adapter's layers in it."""

import time
from typing import Any
from weakref import WeakKeyDictionary

import torch

from medvllm.errors import LoadError, MedVLLMError
from medvllm.load_result import LoadResult
from medvllm.loading.adapters.declaration import NAME_PREFIX, read_declaration
from medvllm.loading.adapters.injection import inject_lora
from medvllm.loading.adapters.sharing import share_model
from medvllm.loading.checks import labels
from medvllm.loading.from_pretrained_lock import exclusive_load
from medvllm.loading.placement import device_memory_error
from medvllm.loading.replay.mapping import map_file
from medvllm.metadata import ModelMetadata
from medvllm.options import Identity
from medvllm.sources.snapshot import Snapshot

# A model with an adapter keeps its base, whose memory it uses, for as long as anyone holds it.
_bases: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def base_of(model: Any) -> Any:
    """Return the base of a model with an adapter."""
    return _bases[model]


def apply_adapter(
    metadata: ModelMetadata, identity: Identity, config: Any, snapshot: Snapshot, base: Any
) -> LoadResult:
    """Return a model with an adapter, in eval mode on the device of its base. The base stays as it is.

    Args:
        metadata: The adapter's entry.
        identity: The adapter.
        config: The config of the model with the adapter.
        snapshot: The adapter's files.
        base: The base model.

    Returns:
        The model. Its `size_bytes` are those of the adapter alone.

    Raises:
        WeightsMismatchError: Weights are missing, have other shapes, or have no place in the model.
        DeviceMemoryError: The device does not have enough memory.
        LoadError: The adapter cannot be used with this base.
    """
    start = time.perf_counter()
    cls: Any = identity.options.model_class
    labels.check_label_map(metadata, cls, config)
    if getattr(base, "hf_quantizer", None) is not None:
        raise LoadError(
            f"Adapter {metadata.name!r} has a quantized base, which is not supported.\n"
            "Register the adapter with the checkpoint that its base was made from.",
            model=metadata.name,
        )
    try:
        with torch.inference_mode(False), torch.no_grad():
            with exclusive_load():
                model = share_model(base, cls, config)
            inject_lora(metadata, model, read_declaration(metadata, snapshot), _read_weights(snapshot))
    except MedVLLMError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise device_memory_error(metadata.name, str(identity.options.device)) from error
    except Exception as error:  # for a strange config, PEFT may raise anything
        reason = (str(error).strip().splitlines() or [""])[0][:300]
        raise LoadError(
            f"Adapter {metadata.name!r} could not be put into its base as {cls.__name__}: "
            f"{type(error).__name__}: {reason}",
            model=metadata.name,
        ) from error
    labels.check_label_names(metadata, model)
    model.requires_grad_(False)
    model.eval()
    _bases[model] = base
    shared = {(t.device, t.data_ptr()) for t in (*base.parameters(), *base.buffers())}
    own = {(t.device, t.data_ptr()): t.nbytes for t in (*model.parameters(), *model.buffers())}
    size_bytes = sum(size for place, size in own.items() if place not in shared)
    seconds = time.perf_counter() - start
    return LoadResult(model, size_bytes, seconds, "adapter", mapped_bytes=0, reload_s=seconds)


def _read_weights(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Return the weights of an adapter by their names in the model, as views of its mapped file.

    Raises:
        LoadError: torch has no dtype for one of them, or two have one name.
    """
    (file,), (header,) = map(map_file, snapshot.weights), snapshot.headers
    views = file.tensors(header)
    if views is None:
        raise LoadError(f"The adapter {file.path} has a tensor of a dtype that torch does not have.")
    found = {name.removeprefix(NAME_PREFIX): tensor for name, tensor in views.items()}
    if len(found) < len(views):
        raise LoadError(
            f"The adapter {file.path} has a weight twice, with and without {NAME_PREFIX!r} before its name."
        )
    return found
