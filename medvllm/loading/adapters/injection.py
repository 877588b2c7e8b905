"""LoRA layers in a model that shares its weights: PEFT puts them in, and nothing is written to shared memory."""

from collections.abc import Mapping
from typing import Any

import torch

from medvllm.errors import WeightsMismatchError
from medvllm.loading.adapters.declaration import import_peft
from medvllm.metadata import ModelMetadata

_NAME = "default"  # PEFT's name of a model's only adapter
_HALVES = (torch.float16, torch.bfloat16)


def inject_lora(
    metadata: ModelMetadata, model: Any, fields: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put the layers of an adapter into a model, with its weights.

    Args:
        metadata: The adapter's entry.
        model: The model. Its weights may be shared: those that the adapter replaces get memory of their own.
        fields: The keywords of PEFT's LoraConfig.
        tensors: The weights of the adapter, by their names in its file.

    Raises:
        WeightsMismatchError: A weight of the adapter is missing, has another shape, or has no place in the model.
    """
    peft = import_peft(metadata)
    tensors = _without_second_names(tensors)
    device = next(weight.device for weight in model.parameters() if not weight.is_meta)
    # Nothing is initialized: neither random numbers are drawn, nor weights of the base read or changed.
    config = peft.LoraConfig(**fields, inference_mode=True, init_lora_weights=False)
    # On `meta`, new layers take no memory, and one that the file lacks cannot stay unnoticed. This is the thread's own
    # device: PEFT's own way would patch torch for all threads.
    with torch.device("meta"):
        peft.inject_adapter_in_model(config, model, _NAME)
    writer = _Writer(metadata, model, config, device)
    hook = model.register_load_state_dict_pre_hook(writer.make_room)
    try:
        outcome = peft.set_peft_model_state_dict(model, tensors, _NAME)
    except KeyError as error:
        raise _missing(metadata, [str(error.args[0])]) from error
    finally:
        hook.remove()
    if unexpected := sorted({*outcome.unexpected_keys, *writer.unexpected}):
        raise WeightsMismatchError(
            f"Adapter {metadata.name!r} has weights with no place in a {type(model).__name__} as its config describes "
            f"it: {', '.join(unexpected[:3])}.\n"
            "Save it again with model.save_pretrained('folder'), or register it with the class that it was trained "
            "on: model_class='transformers:AutoModel'",
            model=metadata.name,
            unused=tuple(unexpected),
        )
    _unwrap_saved_modules(peft, model)
    named = (*model.named_parameters(), *model.named_buffers())
    if missing := sorted(name for name, tensor in named if tensor.is_meta):
        raise _missing(metadata, missing)


class _Writer:
    """Gives the weights that an adapter writes memory of their own, just before PEFT writes them."""

    def __init__(self, metadata: ModelMetadata, model: Any, config: Any, device: torch.device) -> None:
        self._metadata, self._model, self._config, self._device = metadata, model, config, device
        self.unexpected: list[str] = []  # names of weights that the config gives an adapter no right to change

    def make_room(self, module: Any, state: dict[str, torch.Tensor], prefix: str, *_: Any) -> None:
        """Replace each parameter that `state` is about to be written to. PEFT has given the names of the model."""
        places: dict[int, list[tuple[torch.nn.Module, str]]] = {}
        named: dict[str, tuple[torch.nn.Module, torch.Tensor, torch.dtype]] = {}
        allowed = self._embeddings()
        for path, owner in self._model.named_modules(remove_duplicate=False):
            for attribute, parameter in owner._parameters.items():
                if parameter is not None:
                    places.setdefault(id(parameter), []).append((owner, attribute))
                    named[f"{path}.{attribute}".lstrip(".")] = owner, parameter, parameter.dtype
        dtypes = self._dtypes()
        for name in state:
            if name not in named:
                continue  # PEFT reports it
            owner, old, dtype = named[name]
            is_own = old.is_meta or ".modules_to_save." in name
            is_bias = name.endswith(".bias") and self._config.bias != "none"
            if not (is_own or is_bias or id(old) in allowed):
                self.unexpected.append(name)
                continue
            if old.shape != state[name].shape:
                raise WeightsMismatchError(
                    f"Adapter {self._metadata.name!r} does not fit its base: {name} is {list(state[name].shape)}, and "
                    f"the model needs {list(old.shape)}.\nRegister it with the base that it was trained on: base=…",
                    model=self._metadata.name,
                    mismatched=(name,),
                )
            room = torch.empty(old.shape, dtype=dtypes.get(id(old), dtype), device=self._device)
            new = torch.nn.Parameter(room, requires_grad=False)
            for place, attribute in places[id(old)]:
                place._parameters[attribute] = new
        for name in self.unexpected:
            del state[name]

    def _dtypes(self) -> dict[int, torch.dtype]:
        """Return the dtype of each new weight of a LoRA layer, by its id.

        It is the dtype of the layer below or, as PEFT has it, float32 if that is a half.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        found: dict[int, torch.dtype] = {}
        layers: list[Any] = [module for module in self._model.modules() if isinstance(module, BaseTunerLayer)]
        for layer in layers:
            dtype = layer.get_base_layer().weight.dtype
            new = {id(weight) for weight in layer.parameters() if weight.is_meta}
            found |= dict.fromkeys(new, torch.float32 if dtype in _HALVES else dtype)
        return found

    def _embeddings(self) -> set[int]:
        """Return the ids of the embeddings' weights, which PEFT saves with an adapter of them."""
        found = set()
        for module in (self._model.get_input_embeddings(), self._model.get_output_embeddings()):
            inner = getattr(module, "base_layer", None)
            if inner is not None:
                found |= {id(weight) for weight in inner.parameters()}
        return found


def _without_second_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights without those that PEFT saves twice: with all biases, that of a module saved whole."""
    first = {name: name.replace(".modules_to_save.", ".") for name in tensors}
    return {
        name: tensor
        for name, tensor in tensors.items()
        if first[name] == name or first[name] not in tensors or not torch.equal(tensor, tensors[first[name]])
    }


def _unwrap_saved_modules(peft: Any, model: Any) -> None:
    """Put the modules that an adapter has saved whole in the place of those of the base."""
    for path, module in list(model.named_modules()):
        if isinstance(module, peft.utils.other.ModulesToSaveWrapper):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module.modules_to_save[_NAME])


def _missing(metadata: ModelMetadata, names: list[str]) -> WeightsMismatchError:
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return WeightsMismatchError(
        f"Adapter {metadata.name!r} lacks {shown}, and its base does not have it either: the model would be partly "
        "random.\nSave it with its head: peft.LoraConfig(…, modules_to_save=['classifier'])",
        model=metadata.name,
        missing=tuple(names),
    )
