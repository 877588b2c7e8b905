"""Taggers whose label for each piece is set by hand, with a tokenizer of each family."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
LENGTH = 512
_CORPUS = [
    "Dr. Smith saw John Smith and Mary Jones on 03/2019 for fever, asthma, diabetes and COPD.",
    "Patient: Smith, John. DOB: 10/12/2080. Given aspirin 75 mg, 3.5 mg/kg, no fever.",
    "O'Brien was given metformin (500 mg) at St. Mary's; fièvre, José, naïve, mgkg, mg, kg",
    "北京 患者 ไข้ ผู้ป่วย カタカナ ひらがな Müller Peña ИВАН שלום",
] * 4
# As o200k and Llama 3 split a text: one sign may stand in front of a word.
_SIGN_IN_FRONT = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"


def _wordpiece(lowercase: bool) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False)
    backend.train_from_iterator(_CORPUS, trainer)
    return backend


def _byte_level(*steps: Any, size: int = 420) -> Tokenizer:
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_CORPUS, trainer)
    backend.decoder = decoders.ByteLevel()
    return backend


def _unigram(scheme: str, **options: Any) -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False, **options
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return backend


def _llama() -> Tokenizer:
    """Without words: the whole text is one, and a byte that the vocabulary lacks is a piece."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*SPECIAL, *pieces], show_progress=False, max_token_length=12
    )
    backend.train_from_iterator([word for text in _CORPUS for word in text.split()], trainer)
    return backend


_BACKENDS: dict[str, Callable[[], Tokenizer]] = {
    "wordpiece": lambda: _wordpiece(False),
    "wordpiece-uncased": lambda: _wordpiece(True),
    "byte-level": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "byte-level-prefix": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "unigram": lambda: _unigram("always"),
    "unigram-first": lambda: _unigram("first"),
    "o200k": lambda: _byte_level(
        pre_tokenizers.Split(Regex(_SIGN_IN_FRONT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ),
    "llama": _llama,
}
FAMILIES = list(_BACKENDS)


@cache
def _trained(family: str) -> str:
    return _BACKENDS[family]().to_str()


def tokenizer(family: str, length: int = LENGTH) -> PreTrainedTokenizerFast:
    """A tiny tokenizer of a family, trained on a few clinical sentences."""
    backend = Tokenizer.from_str(_trained(family))
    ids = backend.token_to_id("<s>"), backend.token_to_id("</s>")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", ids[0]), ("</s>", ids[1])]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, model_max_length=length, mask_token="<mask>", **names
    )
    return fast


def write(
    folder: Path,
    read: PreTrainedTokenizerFast,
    labels: Sequence[str],
    by_id: Mapping[int, int],
    certainty: float = 10.0,
    rows: int = 0,
) -> Path:
    """A tagger without layers: the label of a piece depends on the piece only, and is the first one by default.

    It has as many embeddings as the tokenizer has pieces, and at least `rows`.
    """
    size = max(len(labels), 8)
    config = BertConfig(
        vocab_size=max(len(read), rows),
        hidden_size=size,
        num_hidden_layers=0,
        num_attention_heads=1,
        intermediate_size=8,
        max_position_embeddings=max(read.model_max_length, 8),
        id2label=dict(enumerate(labels)),
        label2id={label: number for number, label in enumerate(labels)},
        architectures=["BertForTokenClassification"],
    )
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.bert.embeddings.LayerNorm.weight.fill_(1.0)
        table = model.bert.embeddings.word_embeddings.weight
        for number in range(len(table)):
            table[number, by_id.get(number, 0)] = 1.0
        model.classifier.weight[:, : len(labels)] = torch.eye(len(labels)) * certainty
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    read.save_pretrained(folder)
    return folder


def mark(
    folder: Path, family: str, text: str, wanted: Mapping[str, str], labels: Sequence[str], **options: Any
) -> Path:
    """A tagger that labels every piece with a letter of a wanted word of the text; all other pieces are outside."""
    read = tokenizer(family)
    encoding = read(text, return_offsets_mapping=True)
    by_id: dict[int, int] = {}
    for word, label in wanted.items():
        start = text.index(word)
        for token, (low, high) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if max(low, start) < min(high, start + len(word)) and str(read.convert_ids_to_tokens(token)).strip("▁"):
                by_id[token] = labels.index(label)
    return write(folder, read, labels, by_id, **options)
