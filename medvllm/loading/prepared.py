"""Weights that a load converts: kept as a file, checked against what transformers makes, and mapped from then on."""

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
from medvllm.sources import Snapshot
from medvllm.sources.prepared import Prepared, copies_of

logger = logging.getLogger(__name__)

# Whose code a version or a digest tells: a class of the user's own may make something else of the same names tomorrow.
_FIXED = ("transformers.", "medvllm_code_")


def find_place(
    snapshot: Snapshot, cls: type[Any], arguments: dict[str, Any], unused: tuple[str, ...] = ()
) -> Prepared | None:
    """Return the place for the converted weights of a load, or None when its class allows none.

    A copy no longer has the weights that the model does not take: another entry may not allow what `unused` does.
    """
    if not cls.__module__.startswith(_FIXED):
        return None
    config = {field: value for field, value in arguments["config"].to_dict().items() if field != "_name_or_path"}
    libraries = [torch.__version__, transformers.__version__]
    return Prepared.of(
        snapshot,
        dtype=str(arguments["dtype"]),
        model_class=class_path(cls),
        config=config,
        libraries=libraries,
        layout=ALIGNED,
        unused=unused,
    )


def keep_copy(
    place: Prepared | None, model: Any, missing: set[str], load: Callable[[Snapshot], torch.nn.Module]
) -> Snapshot:
    """Keep the weights of a model that was just converted, and return the snapshot that holds them.

    `missing` are those that the checkpoint lacks. A copy stays only if what `load` makes of it is bit-equal to the
    model, also one that is there already. OSError: why it does not.
    """
    if place is None:
        raise OSError("a class of the user's own gets no converted copy")
    if from_pretrained_lock.is_held():
        raise OSError("it was converted inside another load")
    if (ready := place.find()) is not None and _difference(model, load(ready), missing):
        logger.warning("%s is not what the weights become in %s: it is made anew", place.folder, model.dtype)
        place.drop()
    if place.find() is None and not place.unfit():
        state = _distinct({name: t for name, t in model.state_dict().items() if name not in missing})

        def fill(folder: Path) -> str | None:
            try:
                save_aligned(state, folder / "model.safetensors")
                difference = _difference(model, load(place.snapshot.prepared(folder)), missing)
            except (OSError, MemoryError, torch.OutOfMemoryError) as error:  # of this moment, not of the model
                raise OSError(f"its copy could not be made or checked: {error}") from error
            except Exception as error:  # also a dtype that safetensors does not have
                difference = f"{type(error).__name__}: {str(error)[:200]}"
            return difference and f"a copy in {model.dtype} is not what transformers makes: {difference}"

        place.keep(sum(tensor.nbytes for tensor in state.values()), fill)
    if reason := place.unfit():
        raise OSError(reason)
    return place.snapshot.prepared(place.folder)


def is_proven(ready: Snapshot, source: Snapshot) -> bool:
    """Return whether each weight of a copy is, to the bit, the source's in the copy's dtype.

    A record beside a file proves nothing: who can write the one can write the other. Where transformers names the
    weights otherwise than the source does, this cannot tell.
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
    """Return for each copy of a snapshot's weights in another dtype that is not what they become what is wrong."""
    found = {}
    for copy in copies_of(snapshot):
        ready = copy.find()
        if not copy.unfit() and (ready is None or not is_proven(ready, snapshot)):
            found[str(copy.folder)] = "is not what the weights become; remove it, and it is made anew"
    return found


def _tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    """Return the tensors of a snapshot's weights, as views of their files; none when torch lacks a dtype."""
    found: dict[str, torch.Tensor] = {}
    for file, header in zip(snapshot.weights, snapshot.headers, strict=True):
        found |= map_file(file).tensors(header) or {}
    return found


def _distinct(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without the second names of tied ones, which safetensors does not write."""
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
