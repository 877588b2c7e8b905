"""The template of a loaded model: its module tree, and which part of the mapped files each tensor is.

A later load of the same identity maps the files again and rebuilds the model from the template. No byte is copied, no
code of the model's class runs, and nothing is shared with another instance. The tree is a pickle that this process
makes and reads itself. It stays in memory: no pickle comes from a disk or goes to one.
"""

import copyreg
import io
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from medvllm.errors import SourceError
from medvllm.loading.memory import no_collection, size_bytes
from medvllm.loading.replay.mapping import MappedFile, map_file, view
from medvllm.loading.replay.module_state import set_state, split_state
from medvllm.loading.stateless import find_stateful
from medvllm.sources.fingerprint import Stamp

_PRIVATE_BYTES = 16 << 20  # of buffers and the like that no file holds: position ids, rotary frequencies, masks
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
    *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_TRUSTED = ("torch.", "transformers.")
_WAYS = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")


@dataclass(frozen=True)
class NoTemplate:
    """Why a model cannot be rebuilt with certainty.

    Attributes:
        reason: The reason, in words.
        is_converted: Whether the only reason is that its weights are in another dtype than the file's.
    """

    reason: str
    is_converted: bool = False


class _DoubtError(Exception):
    """Something about a model leaves a doubt, so it gets no template."""


class _Tensor(NamedTuple):
    """How to make a tensor again."""

    part: tuple[int, int, int] | None  # the number of a file, the offset in it, and the bytes
    private: torch.Tensor | None  # the tensor to copy instead, if it is in no file
    dtype: torch.dtype
    offset: int
    shape: torch.Size
    strides: tuple[int, ...]
    is_parameter: bool
    requires_grad: bool
    attributes: dict[str, Any]
    is_alone: bool = False  # no other tensor has the same part, which is as long as the tensor

    def is_whole(self) -> bool:
        """Return whether the tensor is the whole of a part, without gaps."""
        size = self.dtype.itemsize * self.shape.numel()
        return self.part is not None and size > 0 and (self.offset, self.part[2]) == (0, size)


@dataclass(frozen=True)
class Template:
    """How to make a model again. `tree` refers to `tensors` and `classes` by number."""

    tree: bytes
    tensors: tuple[_Tensor, ...]
    classes: tuple[type, ...]
    files: tuple[tuple[Path, Stamp], ...]
    size_bytes: int  # of the template itself
    model_bytes: int
    mapped_bytes: int  # how many of model_bytes belong to the files
    is_converted: bool  # its weights are copies, because the files have them in another dtype
    stateful: tuple[str, ...] = ()  # the names of modules that `make_stateless` must change

    def rebuild(self) -> Any | None:
        """Return a new model, equal to the one that the template was made of; None if a file has changed since.

        This is safe beside a load in another thread: no module is constructed, and no default dtype or device is used.
        """
        try:
            files = [map_file(path) for path, _ in self.files]
        except SourceError:  # a file is gone, or is being replaced
            return None
        if any(file.stamp != stamp for file, (_, stamp) in zip(files, self.files, strict=True)):
            return None
        with no_collection():
            return _Reader(self, files).load()


def make_template(model: torch.nn.Module, files: Sequence[MappedFile]) -> Template | NoTemplate:
    """Return the template of a model, or why it has none: any doubt is a reason.

    Args:
        model: A model that was just loaded and has not been used.
        files: The mapped files that it was loaded from.
    """
    if getattr(model, "hf_quantizer", None) is not None:
        return NoTemplate("it is quantized")
    writer = _Writer(files)
    try:
        writer.dump(model)
    except _DoubtError as doubt:
        return NoTemplate(str(doubt))
    except Exception as error:  # an object that cannot be pickled may raise anything
        return NoTemplate(f"it cannot be pickled: {str(error)[:200]}")
    if changed := next((file for file in files if file.has_writes()), None):
        return NoTemplate(f"its class has written to the weights of {changed.path.name}")
    model_bytes = size_bytes(model)
    # transformers copies the bias of a tied head without need: that is not a conversion.
    is_converted = writer.private_parameter_bytes > model_bytes / 20
    if writer.private_bytes > _PRIVATE_BYTES:
        return NoTemplate(f"{writer.private_bytes:,} bytes of its tensors are in no file", is_converted)
    tree = writer.stream.getvalue()
    uses = Counter(tensor.part for tensor in writer.tensors)
    return Template(
        tree,
        tuple(tensor._replace(is_alone=uses[tensor.part] == 1 and tensor.is_whole()) for tensor in writer.tensors),
        tuple(writer.classes),
        tuple((file.path, file.stamp) for file in files),
        size_bytes=len(tree) + writer.private_bytes + 500 * len(writer.tensors),
        model_bytes=model_bytes,
        mapped_bytes=max(model_bytes - writer.private_bytes, 0),
        is_converted=is_converted,
        stateful=find_stateful(model),
    )


def _tensor(number: int) -> None:
    """Stand for a tensor in a tree. It is never called."""


def _class(number: int) -> None:
    """Stand for a class in a tree. It is never called."""


class _Writer(pickle.Pickler):
    """Pickles a module tree. The memo of pickle keeps ties: one object stays one object.

    Tensors and classes are kept beside the tree: a class itself, not its name, which may mean another class later.
    """

    def __init__(self, files: Sequence[MappedFile]) -> None:
        self.stream = io.BytesIO()
        super().__init__(self.stream, protocol=5)
        self.tensors: list[_Tensor] = []
        self.classes: list[type] = []
        self.private_bytes = self.private_parameter_bytes = 0
        self._files = files
        self._private_storages: set[int] = set()
        self._plain: set[type] = set()  # types that need no check, and are pickled as usual

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is OrderedDict and not vars(obj):  # a module has seven; the default way takes twice the time
            return OrderedDict, (), None, None, iter(obj.items()) if obj else None
        if kind in self._plain:
            return NotImplemented
        kinds = kind.__mro__
        if torch.Tensor in kinds:
            self.tensors.append(self._describe(obj))
            return _tensor, (len(self.tensors) - 1,)
        if type in kinds and "<locals>" not in obj.__qualname__:
            self.classes.append(obj)
            return _class, (len(self.classes) - 1,)
        if torch.nn.Module in kinds:
            _check_module(obj)
            if (state := split_state(obj)) is not None:
                return copyreg.__newobj__, (kind,), state, None, None, set_state  # type: ignore[attr-defined]
        elif torch.UntypedStorage in kinds or torch.TypedStorage in kinds:
            raise _DoubtError("it holds memory that is not a tensor")
        else:
            self._plain.add(kind)
        return NotImplemented

    def _describe(self, tensor: torch.Tensor) -> _Tensor:
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
            raise _DoubtError(f"it holds a {kind.__name__} that is more than its bytes")
        storage = tensor.untyped_storage()
        part = self._find_part(storage)
        private = None
        if part is None:
            private = tensor.detach().clone()
            self.private_bytes += private.nbytes
            self.private_parameter_bytes += private.nbytes if kind is torch.nn.Parameter else 0
            if storage.nbytes() and storage.data_ptr() in self._private_storages:
                raise _DoubtError("two of its tensors share memory that is in no file")
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

    def _find_part(self, storage: torch.UntypedStorage) -> tuple[int, int, int] | None:
        for number, file in enumerate(self._files):
            if (begin := file.offset_of(storage)) is not None:
                return number, begin, storage.nbytes()
        return None


def _check_module(module: torch.nn.Module) -> None:
    kind = type(module)
    if any(getattr(module, hooks, None) for hooks in _HOOKS):
        raise _DoubtError(f"its {kind.__name__} has hooks")
    if not kind.__module__.startswith(_TRUSTED) and any(
        getattr(kind, way) is not getattr(torch.nn.Module, way) for way in _WAYS
    ):
        raise _DoubtError(f"{kind.__name__} defines how it is pickled")


class _Reader(pickle.Unpickler):
    """Rebuilds a module tree."""

    def __init__(self, template: Template, files: Sequence[MappedFile]) -> None:
        super().__init__(io.BytesIO(template.tree))
        parts: dict[tuple[int, int, int], torch.UntypedStorage] = {}
        tensors = [_make_tensor(tensor, files, parts) for tensor in template.tensors]
        self._standing_for: dict[str, Callable[[int], Any]] = {
            _tensor.__name__: tensors.__getitem__,
            _class.__name__: template.classes.__getitem__,
        }

    def find_class(self, module: str, name: str) -> Any:
        return self._standing_for[name] if module == __name__ else super().find_class(module, name)


def _make_tensor(
    tensor: _Tensor, files: Sequence[MappedFile], parts: dict[tuple[int, int, int], torch.UntypedStorage]
) -> torch.Tensor:
    """Return a new tensor. `parts` holds the parts of files that several tensors have in common."""
    part, private, dtype, offset, shape, strides, is_parameter, requires_grad, attributes, is_alone = tensor
    if private is not None:
        made = private.clone()
    elif part is None:
        raise ValueError("a tensor of a template is neither in a file nor beside it")
    elif is_alone:  # as most are
        number, begin, size = part
        made = files[number].vector(begin, size, dtype)
        if len(shape) != 1 or strides != (1,):
            made.as_strided_(shape, strides)
    else:
        if part not in parts:
            number, begin, size = part
            parts[part] = files[number].part(begin, size)
        made = view(parts[part], dtype, offset, shape, strides)
    if is_parameter:
        made.__class__ = torch.nn.Parameter  # its constructor would make yet another tensor
    if requires_grad:
        made.requires_grad = True
    if attributes:
        vars(made).update(attributes)
    return made
