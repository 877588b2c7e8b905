"""Tiny real checkpoints, written in milliseconds with the shapes of trouble that real repositories have."""

import json
import os
import pickle
import shutil
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

Weights = Literal["safetensors", "sharded", "bin", "sharded_bin", "legacy_bin"]
TokenizerFiles = Literal["full", "vocab_only", "none"]

WORDS = [
    "the",
    "patient",
    "was",
    "given",
    "aspirin",
    "Aspirin",
    "for",
    "fever",
    "and",
    "pain",
    "ALS",
    "als",
    "of",
    "a",
    "is",
    "in",
    "with",
    "no",
    "history",
    "diabetes",
    "mellitus",
    "chest",
    "left",
    "right",
    "lung",
    "heart",
    "cancer",
    "dose",
    "mg",
    "daily",
    "Patient",
    "denies",
    "shortness",
    "breath",
    "é",
    "café",
    "fièvre",
    "naïve",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = [*string.ascii_letters, *string.digits, *".,:;-/()"]
VOCABULARY = [*SPECIAL, *WORDS, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}

# The files of checkpoints that were made already, by everything that decides them.
_contents: dict[tuple[Any, ...], dict[str, bytes]] = {}
_LARGE = 2_000_000


def bert_masked_lm(folder: Path, **trouble: Any) -> Path:
    """A BERT with its masked-LM head, tied to the embeddings."""
    return bert(folder, BertForMaskedLM, **trouble)


def bert_encoder(folder: Path, *, pooler: bool = True, **trouble: Any) -> Path:
    """A plain BERT, with or without the pooler's weights."""
    return bert(folder, BertModel, drop=() if pooler else ("pooler.",), **trouble)


def bert_token_classifier(folder: Path, labels: Sequence[str] | None = None, **trouble: Any) -> Path:
    """A tagger; without labels they are LABEL_0 and LABEL_1."""
    return bert(folder, BertForTokenClassification, config=labelled(labels or ()), **trouble)


def bert_sequence_classifier(folder: Path, **trouble: Any) -> Path:
    """A classifier of whole texts."""
    return bert(folder, BertForSequenceClassification, **trouble)


def distilbert_token_classifier(
    folder: Path, labels: Sequence[str], *, positions: int = 64, do_lower_case: bool = False, **trouble: Any
) -> Path:
    """A tagger of the smaller BERT, whose sizes have other names."""
    size: dict[str, Any] = {
        "dim": 32,
        "hidden_dim": 64,
        "n_layers": 2,
        "n_heads": 2,
        "max_position_embeddings": positions,
    }
    config = DistilBertConfig(**size, **labelled(labels), vocab_size=len(VOCABULARY))
    return write(folder, DistilBertForTokenClassification, config, do_lower_case, **trouble)


def roberta_masked_lm(folder: Path, **trouble: Any) -> Path:
    """A RoBERTa with 66 position embeddings, so 64 usable positions, and a byte-level tokenizer."""
    config = RobertaConfig(**SMALL | {"max_position_embeddings": 66}, vocab_size=len(byte_vocabulary()), pad_token_id=1)
    return write(folder, RobertaForMaskedLM, config, byte_tokenizer(), **trouble)


def gpt2_causal_lm(folder: Path, **trouble: Any) -> Path:
    """A GPT-2, its head tied."""
    config = GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=64,
        vocab_size=len(byte_vocabulary()),
        bos_token_id=0,
        eos_token_id=0,
    )
    return write(folder, GPT2LMHeadModel, config, byte_tokenizer(), **trouble)


def llama_causal_lm(folder: Path, *, tied: bool = False, **trouble: Any) -> Path:
    """A Llama with rotary positions, its head untied or tied."""
    size = SMALL | {"num_key_value_heads": 2, "tie_word_embeddings": tied}
    return write(
        folder, LlamaForCausalLM, LlamaConfig(**size, vocab_size=len(byte_vocabulary())), byte_tokenizer(), **trouble
    )


def malicious_bin(folder: Path, marker: Path) -> Path:
    """A BERT whose pytorch_model.bin is a pickle that creates `marker` when it is opened carelessly."""

    class Touch:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {marker}",)

    bert_encoder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Touch()}))
    return folder


def remote_code(folder: Path, marker: Path) -> Path:
    """A model with code of its own that creates `marker` when it is imported."""
    bert_encoder(folder)
    edit_config(
        folder,
        model_type="its-own",
        architectures=["ItsOwnModel"],
        auto_map={"AutoConfig": "modeling_own.ItsOwnConfig", "AutoModel": "modeling_own.ItsOwnModel"},
    )
    (folder / "modeling_own.py").write_text(f"open({str(marker)!r}, 'w').close()\n")
    return folder


def own_code(folder: Path, *, says: str = "first", tokenizer: bool = False, **trouble: Any) -> Path:
    """A model whose config, class and, if wanted, tokenizer are code of its own, in files that import each other."""
    bert_encoder(folder, **trouble)
    autos = {"AutoConfig": "configuration_own.OwnConfig", "AutoModel": "modeling_own.OwnModel"}
    edit_config(folder, model_type="its-own", architectures=["OwnModel"], auto_map=autos)
    (folder / "configuration_own.py").write_text(
        "from transformers import BertConfig\n\nclass OwnConfig(BertConfig):\n    model_type = 'its-own'\n"
    )
    (folder / "words_own.py").write_text(f"SAYS = {says!r}\n")
    (folder / "modeling_own.py").write_text(
        "from transformers import BertModel\n\nfrom . import words_own\nfrom .configuration_own import OwnConfig\n\n"
        "class OwnModel(BertModel):\n    config_class = OwnConfig\n    says = words_own.SAYS\n"
    )
    if tokenizer:
        (folder / "tokenization_own.py").write_text(
            "from transformers import BertTokenizer\n\nclass OwnTokenizer(BertTokenizer):\n    own = True\n"
        )
        file = folder / "tokenizer_config.json"
        named = {
            "tokenizer_class": "OwnTokenizer",
            "auto_map": {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]},
        }
        file.write_text(json.dumps(json.loads(file.read_text()) | named))
    return folder


def edit_config(folder: Path, **changes: Any) -> None:
    """Change fields of config.json; None removes a field."""
    file = folder / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def edit_weights(folder: Path, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Path:
    """Put what `change` makes of the name and value of each weight in its place."""
    weights = load_file(folder / "model.safetensors")
    made = {name: change(name, weight).contiguous() for name, weight in weights.items()}
    save_file(made, folder / "model.safetensors", {"format": "pt"})
    return folder


def labelled(labels: Sequence[str]) -> dict[str, Any]:
    """The fields of a config for labels; none for none."""
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    return named if labels else {}


def bert(
    folder: Path,
    cls: type[PreTrainedModel],
    *,
    do_lower_case: bool = False,
    config: dict[str, Any] | None = None,
    **trouble: Any,
) -> Path:
    """A BERT of any head; fields of its config in `config`."""
    full = BertConfig(**{"vocab_size": len(VOCABULARY)} | SMALL | (config or {}))
    return write(folder, cls, full, do_lower_case, **trouble)


def write(
    folder: Path, cls: type[PreTrainedModel], config: Any, tokenizer: "PreTrainedTokenizerFast | bool", **trouble: Any
) -> Path:
    """A checkpoint of any class, its trouble chosen; `tokenizer` is one, or whether a BERT's is to lowercase.

    To make one takes ten times as long as to write it, so the bytes of small ones are kept for the next test.
    """
    reads: Any = tokenizer
    if not isinstance(tokenizer, bool):
        reads = tokenizer.backend_tokenizer.to_str(), tokenizer.model_max_length
    key = cls, type(config), config.to_json_string(use_diff=False), reads, *sorted(trouble.items())
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        return _make(folder, cls, config, tokenizer, **trouble)
    if key not in _contents:
        _make(folder, cls, config, tokenizer, **trouble)
        made = {file.name: file.read_bytes() for file in folder.iterdir()}
        if sum(map(len, made.values())) < _LARGE:
            _contents[key] = made
        return folder
    for name, content in _contents[key].items():
        (folder / name).write_bytes(content)
    return folder


def _make(
    folder: Path,
    cls: type[PreTrainedModel],
    config: Any,
    tokenizer: "PreTrainedTokenizerFast | bool",
    *,
    seed: int = 0,
    dtype: str = "float32",
    weights: Weights = "safetensors",
    tokenizer_files: TokenizerFiles = "full",
    model_type: bool = True,
    architectures: bool = True,
    legacy_layer_norm: bool = False,
    drop: tuple[str, ...] = (),
) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = cls(config).to(getattr(torch, dtype))
        # Fresh biases are 0 and fresh norms 1, also where a load has missed them: none may stay so.
        for parameter in model.parameters():
            parameter.data += 0.02 * torch.randn_like(parameter)
    model.config.architectures = [cls.__name__]
    model.config.dtype = dtype
    model.config.save_pretrained(folder)
    edit_config(
        folder, **({} if model_type else {"model_type": None}), **({} if architectures else {"architectures": None})
    )
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(drop or "\0")}
    if legacy_layer_norm:
        legacy = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        state = {_renamed(name, legacy): tensor for name, tensor in state.items()}
    _write_weights(folder, state, list(getattr(model, "all_tied_weights_keys", {})), weights)
    _write_tokenizer(folder, tokenizer, tokenizer_files, getattr(config, "max_position_embeddings", 64))
    return folder


def _renamed(name: str, endings: dict[str, str]) -> str:
    for ending, new in endings.items():
        if name.endswith(ending):
            return name.removesuffix(ending) + new
    return name


def _write_weights(folder: Path, state: dict[str, torch.Tensor], tied: list[str], weights: Weights) -> None:
    if weights in ("bin", "legacy_bin"):
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=weights == "bin")
        return
    names = sorted(state)
    stem, suffix = ("pytorch_model", "bin") if weights == "sharded_bin" else ("model", "safetensors")
    if weights == "safetensors":
        save_file(
            {name: state[name] for name in names if name not in tied}, folder / "model.safetensors", {"format": "pt"}
        )
        return
    shards: dict[str, str] = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"{stem}-0000{i}-of-00002.{suffix}"
        if suffix == "bin":
            torch.save({name: state[name] for name in part}, folder / file)
        else:
            save_file({name: state[name] for name in part if name not in tied}, folder / file, {"format": "pt"})
        shards |= {name: file for name in part if suffix == "bin" or name not in tied}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))


def _write_tokenizer(
    folder: Path, tokenizer: "PreTrainedTokenizerFast | bool", files: TokenizerFiles, length: int
) -> None:
    if files == "none":
        return
    if not isinstance(tokenizer, bool):
        tokenizer.save_pretrained(folder)
        return
    vocabulary = [word.lower() for word in VOCABULARY[len(SPECIAL) :]] if tokenizer else VOCABULARY[len(SPECIAL) :]
    padding = [f"[unused{i}]" for i in range(len(VOCABULARY))]
    words = list(dict.fromkeys([*SPECIAL, *vocabulary, *padding]))[: len(VOCABULARY)]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    if files == "full":
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"do_lower_case": tokenizer, "tokenizer_class": "BertTokenizer", "model_max_length": length})
        )


def byte_vocabulary() -> dict[str, int]:
    """The token ids of `byte_tokenizer`."""
    return {
        token: i
        for i, token in enumerate(
            ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        )
    }


def byte_tokenizer(length: int = 64) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges."""
    backend = Tokenizer(models.BPE(byte_vocabulary(), [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    tokens = {
        "bos_token": "<s>",
        "pad_token": "<pad>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "mask_token": "<mask>",
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=length, **tokens)  # type: ignore[no-untyped-call]


BYTES = len(byte_vocabulary())


def copy(source: Path, target: Path) -> Path:
    """A copy of a checkpoint, to damage."""
    shutil.copytree(source, target)
    return target
