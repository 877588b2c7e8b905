"""Real adapters, made with PEFT on tiny checkpoints: every weight is random, and none is zero."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from medvllm.loading.transformers_output import hide_output

LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["query", "value"]}

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_contents: dict[tuple[bytes, str], dict[str, bytes]] = {}


def lora(
    folder: Path,
    base: Path,
    *,
    task_type: str | None = "TOKEN_CLS",
    model_class: str = "AutoModelForTokenClassification",
    labels: int = 3,
    seed: int = 0,
    stated_base: str | None = None,
    **config: Any,
) -> Path:
    """Write an adapter for a base, as PEFT saves one. Its bytes are kept for the next test."""
    content = b"".join((base / name).read_bytes() for name in ("config.json", "model.safetensors"))
    key = hashlib.sha256(content).digest(), repr((task_type, model_class, labels, seed, stated_base, config))
    if key not in _contents:
        options = peft.LoraConfig(task_type=task_type, **LORA | config)
        save(adapted(base, options, model_class, labels=labels, seed=seed), folder, stated_base)
        _contents[key] = {name: (folder / name).read_bytes() for name in ADAPTER_FILES}
        (folder / "README.md").unlink()
    folder.mkdir(exist_ok=True)
    for name, file in _contents[key].items():
        (folder / name).write_bytes(file)
    return folder


def adapted(base: Path, config: Any, model_class: str, *, labels: int = 3, seed: int = 0) -> Any:
    """A model of PEFT on a base, with random weights in all that it would train."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's wrapper reads a deprecated property
        torch.manual_seed(seed)
        made = peft.get_peft_model(plain(base, model_class, labels), config)
        for name, parameter in made.named_parameters():
            if parameter.requires_grad:
                parameter.data = 0.3 * torch.randn_like(parameter) + (1 if "magnitude" in name else 0)
    return made.eval()


def save(made: Any, folder: Path, stated_base: str | None = None) -> None:
    """Save an adapter; `stated_base` is what its config says that it was trained on."""
    made.peft_config["default"].base_model_name_or_path = stated_base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of biases that it takes for empty weights
        made.save_pretrained(folder)


def plain(base: Path, model_class: str, labels: int = 3, dtype: torch.dtype = torch.float32) -> Any:
    """The base alone, as a training script would load it; a head that its checkpoint lacks is random."""
    cls = getattr(transformers, model_class)
    options: dict[str, Any] = {} if model_class in ("AutoModel", "AutoModelForCausalLM") else {"num_labels": labels}
    with hide_output():
        return cls.from_pretrained(base, dtype=dtype, ignore_mismatched_sizes=True, **options).eval()


def peft_answer(
    base: Path, folder: Path, model_class: str, ids: torch.Tensor, *, labels: int = 3, dtype: Any = torch.float32
) -> torch.Tensor:
    """What PEFT itself answers with an adapter."""
    model = peft.PeftModel.from_pretrained(plain(base, model_class, labels, dtype), folder).eval()
    return answer(model, ids)


def answer(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """The first output of a model."""
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
        return found
