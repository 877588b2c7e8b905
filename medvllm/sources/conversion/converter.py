"""The process that converts pickles: ``python -m medvllm.sources.conversion.converter SOURCE TARGET NAME...``.

It confines itself, and writes into TARGET only. An error is the last line of standard error: ``["Class", "message"]``.
"""

import hashlib
import json
import pickle
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from medvllm.errors import IncompleteSnapshotError, MedVLLMError, SourceError, UnsafeWeightsError
from medvllm.sources.conversion.confinement import converted_bytes, isolate, seal
from medvllm.sources.conversion.converted_copy import RECORD

if TYPE_CHECKING:
    import torch


def main(source: Path, target: Path, names: Sequence[str]) -> None:
    """Confine this process, then convert the pickles."""
    network = isolate()
    import safetensors.torch  # noqa: F401  # and numpy with it: nothing can be imported once the process is sealed
    import torch

    torch.set_num_threads(1)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
    most = max((source / name).stat().st_size for name in names)
    kernel = seal(target, most, [source / name for name in names])
    convert(source, target, names, ", ".join((network, *kernel)))


def convert(source: Path, target: Path, names: Sequence[str], confinement: str) -> None:
    """Write pickled weights as safetensors, and compare each tensor with the original.

    Args:
        source: The folder of the pickles.
        target: The folder for the safetensors.
        names: The pickles by their path in `source`. Those of one folder are the shards of one checkpoint. An index
            among the names is that of the shards.
        confinement: What confines this process, for the record.

    Raises:
        SourceError: A file cannot be read or written.
        IncompleteSnapshotError: A pickle is damaged.
        UnsafeWeightsError: A pickle holds more than tensors, or asks for more memory than its size accounts for.
    """
    pickles = [name for name in names if not name.endswith(".json")]
    converted: list[Path] = []
    for folder in dict.fromkeys((source / name).parent for name in pickles):
        group = sorted(source / name for name in pickles if (source / name).parent == folder)
        shards: dict[str, str] = {}
        for number, file in enumerate(group, 1):
            shard = f"-{number:05}-of-{len(group):05}" if len(group) > 1 else ""
            written = target / folder.relative_to(source) / f"model{shard}.safetensors"
            try:
                shards |= dict.fromkeys(_convert_file(file, written), written.name)
            except MedVLLMError:
                raise
            except Exception as error:
                raise _to_medvllm_error(file, error) from error
            converted.append(written)
        if len(group) > 1:
            index = target / folder.relative_to(source) / "model.safetensors.index.json"
            index.write_text(json.dumps({"metadata": {}, "weight_map": shards}, sort_keys=True))
            converted.append(index)
    record = {
        "confinement": confinement,
        "originals": [_digest(source, source / name) for name in names],
        "converted": [_digest(target, file) for file in converted],
    }
    (target / RECORD).write_text(json.dumps(record, indent=1))


def _convert_file(file: Path, written: Path) -> list[str]:
    """Write the tensors of one pickle, read them back to compare, and return their names."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    tensors = _state_dict(file)
    try:
        save_file(_separate(tensors), written, metadata={"format": "pt"})
    except KeyError as error:
        raise _unfit(file, f"safetensors has no dtype for {error}") from error
    with safe_open(written, framework="pt") as stored:
        for name, tensor in tensors.items():
            if not _is_equal(stored.get_tensor(name), tensor):
                raise SourceError(f"Tensor {name!r} of {file} changed in the conversion.", path=str(file))
    return list(tensors)


def _state_dict(file: Path) -> dict[str, "torch.Tensor"]:
    """Return the tensors of a pickle by name, dense and on the CPU. Those in a zip archive are mapped from the file."""
    import torch

    is_archive = _check_archive(file)
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    if not isinstance(state, Mapping):
        raise _unfit(file, f"it holds a {type(state).__name__}")
    # Checkpoints also hold step counts, and None for a missing bias.
    state = {name: value for name, value in state.items() if not isinstance(value, (NoneType, bool, int, float, str))}
    if not state:
        raise _unfit(file, "it holds an empty dict")
    for name, tensor in state.items():
        if not isinstance(name, str):
            raise _unfit(file, f"one of its names is a {type(name).__name__}")
        if not isinstance(tensor, torch.Tensor):
            raise _unfit(file, f"its {name[:80]!r} is a {type(tensor).__name__}, not a tensor")
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
            kind = "quantized" if tensor.is_quantized else "without data" if tensor.is_meta else str(tensor.layout)
            raise _unfit(file, f"its {name[:80]!r} is a tensor that safetensors cannot hold ({kind})")
    total = sum(tensor.nbytes for tensor in state.values())
    if total > converted_bytes(file.stat().st_size):
        raise UnsafeWeightsError(
            f"{file} is not converted: its {file.stat().st_size:,} bytes would become {total:,}.", path=str(file)
        )
    return {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in state.items()}


def _check_archive(file: Path) -> bool:
    """Return whether a file is a zip archive, as newer checkpoints are. Raise an error for a damaged archive."""
    with file.open("rb") as stream:
        if stream.read(4) != b"PK\x03\x04":
            return False
    # torch.load checks no checksum of a mapped archive, and would read compressed entries as plain ones.
    with zipfile.ZipFile(file) as archive:
        if packed := next((e.filename for e in archive.infolist() if e.compress_type != zipfile.ZIP_STORED), None):
            raise UnsafeWeightsError(
                f"{file} is not opened: its entry {packed[:80]!r} is compressed, which torch never does.",
                path=str(file),
            )
        if damaged := archive.testzip():
            raise _damaged(file, f"the checksum of its entry {damaged[:80]!r} is wrong")
    return True


def _separate(tensors: Mapping[str, "torch.Tensor"]) -> dict[str, "torch.Tensor"]:
    """Return the tensors contiguous, each with memory of its own. Only tensors that are not so yet are copied.

    safetensors stores no ties: each name of a tied tensor gets a copy of its bytes, and loading ties them again.
    """
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone().contiguous() if memory in seen else tensor.contiguous()
        seen.add(memory)
    return apart


def _is_equal(stored: "torch.Tensor", original: "torch.Tensor") -> bool:
    """Return whether two tensors have the same dtype, shape and bytes, also where they are NaN."""
    import torch

    if stored.dtype != original.dtype or stored.shape != original.shape:
        return False
    # A tensor of one element may be contiguous with any stride, but a view as bytes needs stride 1.
    flat = (tensor.contiguous().as_strided((tensor.numel(),), (1,)) for tensor in (stored, original))
    return torch.equal(*(tensor.view(torch.uint8) for tensor in flat))


def _digest(folder: Path, file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"name": file.relative_to(folder).as_posix(), "size": file.stat().st_size, "sha256": digest}


def _to_medvllm_error(file: Path, error: Exception) -> MedVLLMError:
    """Return the medvllm error for one of torch, zipfile, safetensors or the file system."""
    reason = (str(error).strip().splitlines() or [""])[0][:200]
    if isinstance(error, pickle.UnpicklingError):
        return UnsafeWeightsError(
            f"{file} is not opened. The pickle is damaged, or it holds more than tensors and could run code.\n"
            "Ask its authors for model.safetensors.",
            path=str(file),
        )
    if isinstance(error, MemoryError) or "allocate memory" in reason or "bad_alloc" in reason:
        return UnsafeWeightsError(
            f"{file} is not converted: it asks for more memory than its {file.stat().st_size:,} bytes account for.",
            path=str(file),
        )
    if isinstance(error, OSError) or "os error" in reason:  # safetensors says the latter
        return SourceError(f"{file} could not be converted to safetensors: {reason}.", path=str(file))
    return _damaged(file, f"{type(error).__name__}: {reason}")


def _damaged(file: Path, reason: str) -> IncompleteSnapshotError:
    return IncompleteSnapshotError(
        f"{file} is damaged: {reason}.\nFetch it again, or ask its authors for model.safetensors.", path=str(file)
    )


def _unfit(file: Path, found: str) -> SourceError:
    return SourceError(
        f"{file} cannot be converted to safetensors: {found}.\n"
        "It must be a state dict, a dict from name to tensor: torch.save(model.state_dict(), 'pytorch_model.bin')",
        path=str(file),
    )


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
    except MedVLLMError as error:
        sys.exit(json.dumps([type(error).__name__, str(error)]))
