"""What a load through transformers reads: views of the mapped files where it may be handed them, else the folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from medvllm.loading.mapping import MappedFile, mapped
from medvllm.sources import Snapshot

_FROM_PRETRAINED = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one load. Without `tensors`, for a `reason`, transformers reads the folder itself."""

    snapshot: Snapshot
    files: tuple[MappedFile, ...] = ()
    tensors: dict[str, torch.Tensor] | None = None
    reason: str | None = None

    @classmethod
    def opened(cls, model_class: type[Any], snapshot: Snapshot, config: PreTrainedConfig) -> "Checkpoint":
        """Map the weights of a snapshot."""
        if reason := _needs_folder(model_class, config):
            return cls(snapshot, reason=reason)
        files = tuple(mapped(file) for file in snapshot.weights)
        if any(file.stamp != snapshot.file_stamps.stamp_of(file.path) for file in files):
            snapshot.check_unchanged()
        tensors: dict[str, torch.Tensor] = {}
        for file, header in zip(files, snapshot.headers, strict=True):
            views = file.tensors(header)
            if views is None:
                return cls(snapshot, reason=f"torch has no dtype for a tensor of {file.path.name}")
            tensors |= views
        return cls(snapshot, files, tensors)

    def load(self, model_class: type[Any], arguments: dict[str, Any]) -> Any:
        """Return what `from_pretrained` of the class gives with its loading info."""
        folder = self.snapshot.loader_folder
        if self.tensors is None:
            return model_class.from_pretrained(folder, output_loading_info=True, **arguments)
        outcome = model_class.from_pretrained(None, state_dict=self.tensors, output_loading_info=True, **arguments)
        _add_generation_config(outcome[0], folder)
        return outcome


def _needs_folder(model_class: type[Any], config: PreTrainedConfig) -> str | None:
    """Return why a class must be given the folder: from tensors alone, transformers would make another model."""
    if getattr(model_class.from_pretrained, "__func__", None) is not _FROM_PRETRAINED:
        return f"{model_class.__name__} has a from_pretrained of its own"
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantised"
    return None


def _add_generation_config(model: Any, folder: Path) -> None:
    """Do what `from_pretrained` does last of all, and only with a folder."""
    if model.can_generate() and hasattr(model, "adjust_generation_fn"):
        where = {"cache_dir": None, "force_download": False, "proxies": None, "token": None, "subfolder": ""}
        model.adjust_generation_fn(
            None, False, None, folder, local_files_only=True, revision=None, trust_remote_code=False, **where
        )
