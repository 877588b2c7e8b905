"""Weights that a load converts: kept as a file, checked against what transformers makes, and mapped from then on."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from medvllm.classes import class_path
from medvllm.loading import gate
from medvllm.sources import Snapshot
from medvllm.sources.prepared import Prepared

# Whose code a version or a digest tells: a class of the user's own may make something else of the same names tomorrow.
_FIXED = ("transformers.", "medvllm_code_")


def place(
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
        unused=unused,
    )


def make(
    place: Prepared | None, model: Any, missing: set[str], load: Callable[[Snapshot], torch.nn.Module]
) -> Snapshot:
    """Keep the weights of a model that was just converted, and return the snapshot that holds them.

    `missing` are those that the checkpoint lacks. The copy stays only if what `load` makes of it is bit-equal to the
    model. OSError: why it does not.
    """
    if place is None:
        raise OSError("a class of the user's own gets no converted copy")
    if gate.is_inside():
        raise OSError("it was converted inside another load")
    if place.find() is None and not place.unfit():
        state = _distinct({name: t for name, t in model.state_dict().items() if name not in missing})

        def fill(folder: Path) -> str | None:
            for name in ("config.json", "generation_config.json"):
                if (file := place.snapshot.weights / name).is_file():
                    shutil.copyfile(file, folder / name)
            save_file(state, folder / "model.safetensors", {"format": "pt"})
            try:
                difference = _difference(model, load(replace(place.snapshot, weights=folder)), missing)
            except (OSError, MemoryError, torch.OutOfMemoryError) as error:  # of this moment, not of the model
                raise OSError(f"its copy could not be checked: {error}") from error
            except Exception as error:
                difference = f"it does not load: {str(error)[:200]}"
            return difference and f"a copy in {model.dtype} is not what transformers makes: {difference}"

        place.keep(sum(tensor.nbytes for tensor in state.values()), fill)
    if reason := place.unfit():
        raise OSError(reason)
    return replace(place.snapshot, weights=place.folder)


def _distinct(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors without the second names of tied ones, which safetensors does not write."""
    found: dict[tuple[Any, ...], tuple[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        found.setdefault((tensor.data_ptr(), tensor.shape), (name, tensor.contiguous()))
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
