"""Weights that a load converts to another dtype: kept as a file, checked against transformers, and mapped later."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from medvllm.classes import class_path
from medvllm.loading import from_pretrained_lock
from medvllm.loading.replay.aligned import save_aligned
from medvllm.loading.replay.mapping import ALIGNED, map_file
from medvllm.sources.dtype_copies import DtypeCopy, list_copies
from medvllm.sources.snapshot import Snapshot

logger = logging.getLogger(__name__)

# Modules whose code is fixed by a version or a digest. A user's own class may change while its name stays.
_FIXED = ("transformers.", "medvllm_code_")


def find_place(
    snapshot: Snapshot, cls: type[Any], arguments: dict[str, Any], unused: tuple[str, ...] = ()
) -> DtypeCopy | None:
    """Return the place of a load's converted weights; None if its class gets no copy.

    Args:
        snapshot: The model's files.
        cls: The class of the model.
        arguments: The arguments of its `from_pretrained`.
        unused: The unused weights that the entry allows. A copy lacks them, so only such entries share it.
    """
    if not cls.__module__.startswith(_FIXED):
        return None
    config = {field: value for field, value in arguments["config"].to_dict().items() if field != "_name_or_path"}
    libraries = [torch.__version__, transformers.__version__]
    return DtypeCopy.of(
        snapshot,
        dtype=str(arguments["dtype"]),
        model_class=class_path(cls),
        config=config,
        libraries=libraries,
        layout=ALIGNED,
        unused=unused,
    )


def keep_copy(
    place: DtypeCopy | None, model: Any, missing: set[str], load: Callable[[Snapshot], torch.nn.Module]
) -> Snapshot:
    """Keep the weights of a model that was just converted, and return a snapshot that holds them.

    A copy is kept only if the model that is loaded from it is bit-equal. This is also checked for an existing copy.

    Args:
        place: The place of the copy.
        model: The converted model.
        missing: The names of weights that the checkpoint lacks.
        load: Loads a model from a snapshot.

    Raises:
        OSError: There is no copy; the message says why.
    """
    if place is None:
        raise OSError("a user's own class gets no converted copy")
    if from_pretrained_lock.is_held():
        raise OSError("it was converted inside another load")
    if (ready := place.to_snapshot()) is not None and _difference(model, load(ready), missing):
        logger.warning("%s differs from the weights converted to %s, so it is made again", place.folder, model.dtype)
        place.remove()
    if place.to_snapshot() is None and not place.rejection():
        state = _drop_tied({name: t for name, t in model.state_dict().items() if name not in missing})

        def fill(folder: Path) -> str | None:
            try:
                save_aligned(state, folder / "model.safetensors")
                difference = _difference(model, load(place.snapshot.with_weights(folder)), missing)
            except (
                OSError,
                MemoryError,
                torch.OutOfMemoryError,
            ) as error:  # a problem of this moment, not of the model
                raise OSError(f"its copy could not be made or checked: {error}") from error
            except Exception as error:  # for example, safetensors lacks the dtype
                difference = f"{type(error).__name__}: {str(error)[:200]}"
            return difference and f"a copy in {model.dtype} differs from what transformers makes: {difference}"

        place.write(sum(tensor.nbytes for tensor in state.values()), fill)
    if reason := place.rejection():
        raise OSError(reason)
    return place.snapshot.with_weights(place.folder)


def is_proven(ready: Snapshot, source: Snapshot) -> bool:
    """Return whether each weight of a copy is bit-equal to the source's weight in the copy's dtype.

    A stored digest would prove nothing, as whoever can change the copy can change the digest. If transformers gives the
    weights other names than the source, the answer is False.
    """
    weights, copies = _tensors(source), _tensors(ready)
    prefixes = {"", *(f"{name.partition('.')[0]}." for name in (*weights, *copies))}
    for name, copy in copies.items():
        names = (name, name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"))
        known = {p + n for n in names for p in prefixes} | {n.removeprefix(p) for n in names for p in prefixes}
        origins = [weights[name]] if name in weights else [weights[origin] for origin in known & weights.keys()]
        if len(origins) != 1 or not _is_equal(origins[0].to(copy.dtype), copy):
            return False
    return bool(copies)


def check_prepared_copies(snapshot: Snapshot) -> dict[str, str]:
    """Return what is wrong with the converted copies of a snapshot's weights, by folder."""
    found = {}
    for copy in list_copies(snapshot):
        ready = copy.to_snapshot()
        if not copy.rejection() and (ready is None or not is_proven(ready, snapshot)):
            found[str(copy.folder)] = "differs from the converted weights. Remove it, and it is made again"
    return found


def _tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Return the tensors of a snapshot's weights as views of their files; none of a file if torch lacks a dtype."""
    found: dict[str, torch.Tensor] = {}
    for file, header in zip(snapshot.weights, snapshot.headers, strict=True):
        found |= map_file(file).tensors(header) or {}
    return found


def _drop_tied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without the second names of tied ones, which safetensors does not store."""
    found: dict[Any, tuple[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        memory = (tensor.data_ptr(), tensor.shape) if tensor.nbytes else name  # an empty one has none
        found.setdefault(memory, (name, tensor.contiguous()))
    return dict(found.values())


def _difference(model: torch.nn.Module, other: torch.nn.Module, missing: set[str]) -> str | None:
    """Return the first tensor that is not bit-equal in both models, or None."""
    one, two = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (model, other))
    if list(one) != list(two):
        return "it has other tensors"
    return next((name for name, t in one.items() if name not in missing and not _is_equal(t, two[name])), None)


def _is_equal(one: torch.Tensor, two: torch.Tensor) -> bool:
    octets = [tensor.detach().contiguous().view(-1).view(torch.uint8) for tensor in (one, two)]
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(*octets)
