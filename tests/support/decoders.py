"""Tiny decoders that chat: a byte-level tokenizer with the tokens of a chat template."""

import json
from pathlib import Path
from typing import Any

from tokenizers import decoders, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support import tiny

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
START, END = "<|im_start|>", "<|im_end|>"


def tokenizer(template: str | None = CHATML, length: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer whose texts begin with <s>."""
    found = tiny.byte_tokenizer(length)
    found.backend_tokenizer.decoder = decoders.ByteLevel()
    found.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    found.add_special_tokens({"additional_special_tokens": [START, END]})
    found.chat_template = template
    return found


def llama(
    folder: Path,
    template: str | None = CHATML,
    *,
    length: int = 512,
    generation: dict[str, Any] | None = None,
    **trouble: Any,
) -> Path:
    """A Llama with that tokenizer; `generation` is its generation_config.json."""
    size = tiny.SMALL | {"num_key_value_heads": 2, "max_position_embeddings": length, "vocab_size": tiny.BYTES + 2}
    config = LlamaConfig(**size, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    own = tokenizer(template, length)
    tiny.write(folder, LlamaForCausalLM, config, own, **trouble)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    own.save_pretrained(folder)  # with the template, which does not decide the other files
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder
