"""What a load made, as a recipe: module tree, and which tensor is which view of the mapped files. It stays in memory.

A later load of the same identity maps the files again and rebuilds the model from it: no byte is copied, no code of
the model's class runs, and nothing is shared with another instance. The tree is a pickle that this process makes and
reads itself: none comes from a disk or goes to one.
"""

import io
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medvllm.errors import SourceError
from medvllm.loading.mapping import MappedFile, mapped, view
from medvllm.loading.memory import size_bytes
from medvllm.sources.fingerprint import Stamp

_PRIVATE_BYTES = 16 << 20  # of buffers and the like that no file holds: position ids, rotary frequencies, masks
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_TRUSTED = ("torch.", "transformers.")
_WAYS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


@dataclass(frozen=True)
class NoRecipe:
    """Why a model cannot be rebuilt with certainty."""

    reason: str
    is_converted: bool = False  # whether all that is in the way is that its weights are not as the files hold them


class _Doubt(Exception):
    """Ends the making of a recipe."""


class _Tensor(NamedTuple):
    part: tuple[int, int, int] | None  # the number of a file, and what of it: beginning and bytes
    private: torch.Tensor | None  # what it is a copy of instead
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    is_parameter: bool
    requires_grad: bool
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Recipe:
    """How to make a model again. `tree` refers to `tensors` and `classes` by number."""

    tree: bytes
    tensors: tuple[_Tensor, ...]
    classes: tuple[type, ...]
    files: tuple[tuple[Path, Stamp], ...]
    size_bytes: int  # of the recipe itself
    model_bytes: int
    mapped_bytes: int  # of model_bytes, what is the files'
    is_converted: bool  # whether its weights are copies, as the files hold them in another dtype

    def rebuild(self) -> Any | None:
        """Return a new model, equal to the one that the recipe was made of; None when a file has changed since.

        It depends on nothing that a load in another thread changes: no module is constructed, and every dtype and
        device is said.
        """
        try:
            files = [mapped(path) for path, _ in self.files]
        except SourceError:  # gone, or being replaced
            return None
        if any(file.stamp != stamp for file, (_, stamp) in zip(files, self.files, strict=True)):
            return None
        return _Reader(self, files).load()


def recipe_of(model: torch.nn.Module, files: Sequence[MappedFile]) -> Recipe | NoRecipe:
    """Return the recipe of a model that was loaded a moment ago from `files`, or why there is none: any doubt."""
    if getattr(model, "hf_quantizer", None) is not None:
        return NoRecipe("it is quantised")
    writer = _Writer(files)
    try:
        writer.dump(model)
    except _Doubt as doubt:
        return NoRecipe(str(doubt))
    except Exception as error:  # whatever an object does that cannot be pickled
        return NoRecipe(f"it cannot be pickled: {str(error)[:200]}")
    if changed := next((file for file in files if file.is_written()), None):
        return NoRecipe(f"its class has written to the weights of {changed.path.name}")
    weight = size_bytes(model)
    # transformers copies the bias of a tied head for no reason: that is no conversion.
    is_converted = writer.private_parameters > weight / 20
    if writer.private_bytes > _PRIVATE_BYTES:
        return NoRecipe(f"{writer.private_bytes:,} bytes of its tensors are in no file", is_converted)
    tree = writer.stream.getvalue()
    return Recipe(
        tree,
        tuple(writer.tensors),
        tuple(writer.classes),
        tuple((file.path, file.stamp) for file in files),
        size_bytes=len(tree) + writer.private_bytes + 500 * len(writer.tensors),
        model_bytes=weight,
        mapped_bytes=max(weight - writer.private_bytes, 0),
        is_converted=is_converted,
    )


def _tensor(number: int) -> None:
    """Stand for a tensor in a tree; never called."""


def _class(number: int) -> None:
    """Stand for a class in a tree; never called."""


class _Writer(pickle.Pickler):
    """Takes a module tree apart. Pickle's memo keeps ties: what is one object stays one.

    Tensors and classes go beside it: a class itself, not its name, which may lead to another one later.
    """

    def __init__(self, files: Sequence[MappedFile]) -> None:
        self.stream = io.BytesIO()
        super().__init__(self.stream, protocol=5)
        self.tensors: list[_Tensor] = []
        self.classes: list[type] = []
        self.private_bytes = self.private_parameters = 0
        self._files = files
        self._private_storages: set[int] = set()
        self._plain: set[type] = set()  # kinds of objects that pickle takes apart as it always does

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is OrderedDict and not vars(obj):  # a module has seven, and pickle's own way takes twice the time
            return OrderedDict, (), None, None, iter(obj.items()) if obj else None
        if kind in self._plain:
            return NotImplemented
        kinds = kind.__mro__
        if torch.Tensor in kinds:
            self.tensors.append(self._described(obj))
            return _tensor, (len(self.tensors) - 1,)
        if type in kinds and "<locals>" not in obj.__qualname__:
            self.classes.append(obj)
            return _class, (len(self.classes) - 1,)
        if torch.nn.Module in kinds:
            _check_module(obj)
        elif torch.UntypedStorage in kinds or torch.TypedStorage in kinds:
            raise _Doubt("it holds memory that is no tensor")
        else:
            self._plain.add(kind)
        return NotImplemented

    def _described(self, tensor: torch.Tensor) -> _Tensor:
        kind = type(tensor)
        if (
            (kind is not torch.nn.Parameter and kind is not torch.Tensor)
            or tensor.layout is not torch.strided
            or tensor.device.type != "cpu"
            or tensor.is_quantized
            or not tensor.is_leaf
            or tensor.grad is not None
            or tensor._backward_hooks
            or any(type(value) not in (bool, int, str) for value in vars(tensor).values())
            or tensor.is_conj()
            or tensor.is_neg()
        ):
            raise _Doubt(f"it holds a {kind.__name__} that is more than its bytes")
        storage = tensor.untyped_storage()
        part = self._part(storage)
        private = None
        if part is None:
            private = tensor.detach().clone()
            self.private_bytes += private.nbytes
            self.private_parameters += private.nbytes if kind is torch.nn.Parameter else 0
            if storage.nbytes() and storage.data_ptr() in self._private_storages:
                raise _Doubt("two of its tensors share memory that is in no file")
            self._private_storages.add(storage.data_ptr())
        return _Tensor(
            part,
            private,
            tensor.dtype,
            int(tensor.storage_offset()),
            tensor.shape,
            tensor.stride(),
            kind is torch.nn.Parameter,
            tensor.requires_grad,
            dict(vars(tensor)),
        )

    def _part(self, storage: torch.UntypedStorage) -> tuple[int, int, int] | None:
        for number, file in enumerate(self._files):
            if (begin := file.where(storage)) is not None:
                return number, begin, storage.nbytes()
        return None


def _check_module(module: torch.nn.Module) -> None:
    kind = type(module)
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        raise _Doubt(f"its {kind.__name__} has hooks")
    if not kind.__module__.startswith(_TRUSTED) and any(
        getattr(kind, way) is not getattr(torch.nn.Module, way) for way in _WAYS
    ):
        raise _Doubt(f"{kind.__name__} is pickled in a way of its own")


class _Reader(pickle.Unpickler):
    """Puts a module tree together."""

    def __init__(self, recipe: Recipe, files: Sequence[MappedFile]) -> None:
        super().__init__(io.BytesIO(recipe.tree))
        parts: dict[tuple[int, int, int] | None, torch.UntypedStorage] = {}
        for tensor in recipe.tensors:
            if tensor.part is not None and tensor.part not in parts:
                number, begin, size = tensor.part
                parts[tensor.part] = files[number].part(begin, size)
        tensors = [_made(tensor, parts) for tensor in recipe.tensors]
        self._standing_for: dict[str, Callable[[int], Any]] = {
            _tensor.__name__: tensors.__getitem__,
            _class.__name__: recipe.classes.__getitem__,
        }

    def find_class(self, module: str, name: str) -> Any:
        return self._standing_for[name] if module == __name__ else super().find_class(module, name)


def _made(tensor: _Tensor, parts: Mapping[tuple[int, int, int] | None, torch.UntypedStorage]) -> torch.Tensor:
    part, private, dtype, offset, shape, strides, is_parameter, requires_grad, attributes = tensor
    made = view(parts[part], dtype, offset, shape, strides) if private is None else private.clone()
    if is_parameter:
        made = torch.nn.Parameter(made, requires_grad=requires_grad)
    elif requires_grad:
        made.requires_grad_()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made
