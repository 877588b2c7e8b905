"""Tiny decoders that chat: a byte-level tokenizer with the tokens of a chat template."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, processors
from transformers import BertTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer in the manner of Llama 2: blanks are part of words, and rare characters are several tokens."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abc,.é", "▁ab", "▁c"]
    backend = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)  # type: ignore[no-untyped-call]


def word_pieces(folder: Path) -> Any:
    """A tokenizer in the manner of BERT, whose decoder takes blanks out again."""
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "do",
        "n",
        "not",
        "##t",
        "'",
        "ab",
        "##c",
        ".",
        ",",
        "is",
        "s",
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(str(folder / "vocab.txt"), clean_up_tokenization_spaces=True)
