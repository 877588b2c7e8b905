"""The devices of this machine, and the one that a load uses."""

import torch

from medvllm.errors import LoadError

_SHARE = 0.9  # of a GPU's memory; the rest is for activations


def list_devices() -> dict[str, str]:
    """Return the devices that torch can use here, each with its name."""
    devices = {"cpu": f"{torch.get_num_threads()} threads"}
    devices |= {f"cuda:{i}": torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        devices["mps"] = "Apple GPU"
    if torch.xpu.is_available():
        devices |= {f"xpu:{i}": torch.xpu.get_device_name(i) for i in range(torch.xpu.device_count())}
    return devices


def default_budget(device: str) -> int | None:
    """Return the bytes of models that an accelerator should hold: a share of its memory; None if that is not known."""
    if device.startswith("cuda"):
        return int(_SHARE * torch.cuda.get_device_properties(device).total_memory)
    return None


def resolve_device(device: str) -> str:
    """Return the device to use.

    Args:
        device: A device, or "auto" for the first accelerator, or the CPU if there is none.

    Raises:
        LoadError: The device is not available.
    """
    devices = list(list_devices())
    if device == "auto":
        return devices[1] if len(devices) > 1 else "cpu"
    meant = f"{device}:0" if device == "xpu" else device
    if meant in devices:
        return meant
    built = (
        ""
        if torch.version.cuda or not device.startswith("cuda")
        else f" (torch {torch.__version__} is built without CUDA)"
    )
    raise LoadError(
        f"Device {device!r} is not available here{built}. Available: {', '.join(devices)}.\n"
        "Use one of these, or 'auto': an accelerator if there is one, else the CPU.",
        device=device,
        available=tuple(devices),
    )
