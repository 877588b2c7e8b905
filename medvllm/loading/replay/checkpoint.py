"""The weights that transformers loads: views of the mapped files where possible, otherwise the folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from medvllm.loading.replay.mapping import MappedFile, map_file
from medvllm.sources.snapshot import Snapshot

_FROM_PRETRAINED = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Checkpoint:
    """The weights of one load.

    Attributes:
        snapshot: The model's files.
        files: The mapped weight files.
        tensors: Views of them by name; None if transformers must read the folder itself.
        reason: Why it must.
    """

    snapshot: Snapshot
    files: tuple[MappedFile, ...] = ()
    tensors: dict[str, torch.Tensor] | None = None
    reason: str | None = None

    @classmethod
    def open(cls, model_class: type[Any], snapshot: Snapshot, config: PreTrainedConfig) -> "Checkpoint":
        """Map the weights of a snapshot. Raises SourceError if a file has changed since it was verified."""
        if reason := _needs_folder(model_class, config):
            return cls(snapshot, reason=reason)
        files = tuple(map_file(file) for file in snapshot.weights)
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
        """Return the outcome of the class's `from_pretrained`, usually a model and its loading info."""
        folder = self.snapshot.loader_folder
        if self.tensors is None:
            return model_class.from_pretrained(folder, output_loading_info=True, **arguments)
        outcome = model_class.from_pretrained(None, state_dict=self.tensors, output_loading_info=True, **arguments)
        _add_generation_config(outcome[0], folder)
        return outcome


def _needs_folder(model_class: type[Any], config: PreTrainedConfig) -> str | None:
    """Return why a class must read the folder: from tensors alone, transformers would make another model. Or None."""
    if getattr(model_class.from_pretrained, "__func__", None) is not _FROM_PRETRAINED:
        return f"{model_class.__name__} has a from_pretrained of its own"
    if getattr(config, "quantization_config", None) is not None:
        return "it is quantized"
    return None


def _add_generation_config(model: Any, folder: Path) -> None:
    """Read the generation config, which `from_pretrained` does only when it is given a folder."""
    if model.can_generate() and hasattr(model, "adjust_generation_fn"):
        where = {"cache_dir": None, "force_download": False, "proxies": None, "token": None, "subfolder": ""}
        model.adjust_generation_fn(
            None, False, None, folder, local_files_only=True, revision=None, trust_remote_code=False, **where
        )
