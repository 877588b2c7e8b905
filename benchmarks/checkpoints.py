"""Checkpoints with random weights, in the shape of real ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedModel

TINY = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100)
BERT_BASE = BertConfig()
BERT_LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
LLAMA_1B = LlamaConfig(
    hidden_size=2048,
    num_hidden_layers=22,
    num_attention_heads=32,
    num_key_value_heads=4,
    intermediate_size=5632,
    vocab_size=32000,
)


def bert(folder: Path, config: BertConfig) -> Path:
    """Write a BERT in float32 and return its folder."""
    return _write(folder, BertModel, config, torch.float32)


def llama(folder: Path, config: LlamaConfig) -> Path:
    """Write a Llama in bfloat16 and return its folder."""
    return _write(folder, LlamaForCausalLM, config, torch.bfloat16)


def dtype_of(folder: Path) -> dict[str, str]:
    """Return the options that load a checkpoint in its own dtype on every CPU, as `from_pretrained` does."""
    return {"dtype": json.loads((folder / "config.json").read_text())["dtype"]}


def _write(folder: Path, cls: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> Path:
    with torch.device("meta"):  # names and shapes; the class's own initialisation would take a minute
        shapes = {name: tensor.shape for name, tensor in cls(config).state_dict().items()}
    weights = {name: torch.empty(shape, dtype=dtype).uniform_(-0.05, 0.05) for name, shape in shapes.items()}
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config.architectures, config.dtype = [cls.__name__], dtype
    config.save_pretrained(folder)
    return folder
