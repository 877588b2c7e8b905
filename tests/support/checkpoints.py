"""Tiny real checkpoints, written in milliseconds, with the flaws that real repositories have.

Every weight is random, biases and LayerNorms too, so that a tensor that failed to load shows in the
outputs. The same arguments write the same bytes, except legacy_bin, whose format holds memory addresses.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Tokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaTokenizer,
)

BIO = ("O", "B-Disease", "I-Disease", "B-Chemical", "I-Chemical")
BILOU = ("O", *(f"{part}-{kind}" for kind in ("Disease", "Chemical") for part in "BILU"))
BARE = ("O", "Disease", "Chemical")
UNNAMED = ("LABEL_0", "LABEL_1", "LABEL_2")  # what a config without labels turns into

_TEXT = """\
a after all allergies allergy an and any are as at be been blood by daily day days denies discharge
dose due during emergency for from had has have he her his history hospital if in is it male female
mg ml no normal not of on or oral patient patients plan positive negative presented prescribed
procedure she since started that the this to treated treatment twice was were with without year
years old acute chronic severe mild left right lower upper bilateral abdominal cardiac renal hepatic
pulmonary cerebral chest pain fever cough dyspnea nausea headache fatigue edema bleeding fracture
infection pneumonia sepsis stroke asthma diabetes mellitus hypertension anemia cancer carcinoma
tumor lymphoma leukemia melanoma myocardial infarction heart failure atrial fibrillation kidney
liver lung breast colon brain disease syndrome disorder sclerosis als ALS MRI CT ECG COPD HIV DNA
RNA BRCA1 EGFR TP53 protein gene mutation expression cell cells receptor inhibitor enzyme aspirin
Aspirin ibuprofen warfarin Warfarin heparin insulin Insulin metformin Metformin lisinopril
penicillin amoxicillin morphine prednisone Patient Patients The She He No History Disease Syndrome
Parkinson Alzheimer Crohn ménière Ménière sjögren Sjögren café é ö ü α β µg
"""
WORDS = _TEXT.split()
LETTERS = [*string.ascii_letters, *string.digits, "é", "ö", "ü", "α", "β", "µ"]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_CHARACTERS = [*LETTERS, *(f"##{letter}" for letter in LETTERS), *string.punctuation]
WORDPIECES = list(dict.fromkeys([*_SPECIAL, *WORDS, *_CHARACTERS]))

# Any, because mypy checks a spread dict against every argument of a config.
_SIZE: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}


class Options(TypedDict, total=False):
    """What every kind of checkpoint takes; the defaults are those of `_write`."""

    dtype: Literal["float32", "bfloat16", "float16"]
    weights: Literal["safetensors", "sharded", "bin", "legacy_bin"]
    tokenizer_files: Literal["full", "vocab_only", "none"]  # vocab_only: no tokenizer_config.json
    model_type: bool  # False: config.json does not say
    architectures: bool  # False: config.json does not say
    legacy_layer_norm: bool  # True: LayerNorm.gamma and .beta, as in checkpoints converted from TensorFlow
    max_position_embeddings: int
    seed: int


def bert_masked_lm(folder: Path, *, do_lower_case: bool = False, **options: Unpack[Options]) -> Path:
    """A BERT whose masked-LM head is tied to its embeddings, as BioBERT and PubMedBERT have it."""
    return _bert(folder, BertForMaskedLM, do_lower_case, options)


def bert_encoder(
    folder: Path,
    *,
    pooler: bool = True,
    do_lower_case: bool = False,
    **options: Unpack[Options],
) -> Path:
    """A BertModel; without the pooler's weights it is what a masked-LM checkpoint loads as."""
    return _bert(folder, BertModel, do_lower_case, options, without=None if pooler else "pooler.")


def bert_token_classifier(
    folder: Path, *, labels: Sequence[str] = BIO, do_lower_case: bool = False, **options: Unpack[Options]
) -> Path:
    """A tagger; see BIO, BILOU, BARE and UNNAMED for labels."""
    return _bert(folder, BertForTokenClassification, do_lower_case, options, labels=labels)


def bert_sequence_classifier(
    folder: Path,
    *,
    labels: Sequence[str] = ("negative", "positive"),
    do_lower_case: bool = False,
    **options: Unpack[Options],
) -> Path:
    """A classifier of whole texts."""
    return _bert(folder, BertForSequenceClassification, do_lower_case, options, labels=labels)


def roberta_masked_lm(folder: Path, **options: Unpack[Options]) -> Path:
    """A RoBERTa with byte-level BPE.

    It has two positions more than `max_position_embeddings`, as real ones have 514 for 512 tokens.
    """
    length = options.get("max_position_embeddings", 64)
    vocab, merges = _byte_pairs(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    config = RobertaConfig(
        **_SIZE, vocab_size=len(vocab), max_position_embeddings=length + 2, pad_token_id=1, type_vocab_size=1
    )
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=length)
    return _write(folder, RobertaForMaskedLM, config, tokenizer, **options)


def gpt2_causal_lm(folder: Path, **options: Unpack[Options]) -> Path:
    """A GPT-2, head tied to the embeddings, without a padding token."""
    length = options.get("max_position_embeddings", 64)
    vocab, merges = _byte_pairs(["<|endoftext|>"])
    config = GPT2Config(
        n_embd=32,
        n_layer=2,
        n_head=2,
        n_positions=length,
        vocab_size=len(vocab),
        bos_token_id=0,
        eos_token_id=0,
    )
    tokenizer = GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=length)
    return _write(folder, GPT2LMHeadModel, config, tokenizer, **options)


def llama_causal_lm(folder: Path, *, tied: bool = False, **options: Unpack[Options]) -> Path:
    """A Llama with grouped-query attention and a tokenizer.json of its own class, as Llama 3 has."""
    length = options.get("max_position_embeddings", 64)
    vocab, merges = _byte_pairs(["<s>", "</s>"])
    config = LlamaConfig(
        **_SIZE,
        num_key_value_heads=1,
        vocab_size=len(vocab),
        max_position_embeddings=length,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=tied,
    )
    backend = Tokenizer(BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", model_max_length=length
    )
    return _write(folder, LlamaForCausalLM, config, tokenizer, **options)


def truncated(folder: Path) -> Path:
    """Cut model.safetensors in half, as an interrupted copy does."""
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return folder


def corrupt_header(folder: Path) -> Path:
    """Spoil the first byte of model.safetensors' JSON header; the size stays."""
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[8] ^= 0xFF
    weights.write_bytes(content)
    return folder


class _Payload:
    def __init__(self, marker: Path) -> None:
        self.code = f"open({str(marker)!r}, 'w').close()"

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, (self.code,)


def malicious_bin(folder: Path, marker: Path) -> Path:
    """A BERT whose pytorch_model.bin creates `marker` when it is unpickled without care."""
    bert_masked_lm(folder, weights="bin")
    weights = folder / "pytorch_model.bin"
    torch.save({**torch.load(weights, weights_only=True), "bert.extra": _Payload(marker)}, weights)
    return folder


def remote_code(folder: Path, marker: Path) -> Path:
    """A BERT under a class of its own, whose module creates `marker` when it is imported."""
    bert_encoder(folder)
    code = f"""\
from transformers import BertConfig, BertModel

open({str(marker)!r}, "w").close()


class XConfig(BertConfig):
    model_type = "x-bert"


class XModel(BertModel):
    config_class = XConfig
"""
    (folder / "modeling_x.py").write_text(code)
    classes = {"AutoConfig": "modeling_x.XConfig", "AutoModel": "modeling_x.XModel"}
    _edit_config(folder, {"model_type": "x-bert", "architectures": ["XModel"], "auto_map": classes})
    return folder


def _bert(
    folder: Path,
    cls: type[PreTrainedModel],
    do_lower_case: bool,
    options: Options,
    *,
    labels: Sequence[str] | None = None,
    without: str | None = None,
) -> Path:
    length = options.get("max_position_embeddings", 64)
    config = BertConfig(**_SIZE, vocab_size=len(WORDPIECES), max_position_embeddings=length)
    if labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: number for number, label in enumerate(labels)}
    vocab = {piece: number for number, piece in enumerate(WORDPIECES)}
    tokenizer = BertTokenizer(vocab=vocab, do_lower_case=do_lower_case, model_max_length=length)
    return _write(folder, cls, config, tokenizer, without=without, **options)


def _write(
    folder: Path,
    cls: type[PreTrainedModel],
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    without: str | None = None,
    dtype: str = "float32",
    weights: str = "safetensors",
    tokenizer_files: str = "full",
    model_type: bool = True,
    architectures: bool = True,
    legacy_layer_norm: bool = False,
    max_position_embeddings: int = 64,
    seed: int = 0,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    model, state = _model(cls, config, dtype, seed)
    if without:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(without)}
    if legacy_layer_norm:
        state = {_legacy(name): tensor for name, tensor in state.items()}
    _write_weights(folder, state, set(model.all_tied_weights_keys), weights)

    config.architectures, config.dtype = [cls.__name__], dtype
    config.save_pretrained(folder)
    keep = {"model_type": model_type, "architectures": architectures}
    _edit_config(folder, {name: None for name, kept in keep.items() if not kept})
    _write_tokenizer(folder, tokenizer, tokenizer_files)
    return folder


def _model(
    cls: type[PreTrainedModel], config: PreTrainedConfig, dtype: str, seed: int
) -> tuple[PreTrainedModel, dict[str, torch.Tensor]]:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = cls(config)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        model.to(dtype=getattr(torch, dtype))  # type: ignore[call-arg]  # a decorator hides its self
    return model, dict(model.state_dict())


def _legacy(name: str) -> str:
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def _write_weights(folder: Path, state: dict[str, torch.Tensor], tied: set[str], weights: str) -> None:
    if weights in ("bin", "legacy_bin"):
        # Tied tensors stay shared: torch.save keeps one storage under both names.
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=weights == "bin")
        return
    state = {name: tensor for name, tensor in state.items() if name not in tied}
    total = sum(tensor.nbytes for tensor in state.values())
    limit = total // 2 if weights == "sharded" else total
    split = split_torch_state_dict_into_shards(state, max_shard_size=limit)
    for file, names in split.filename_to_tensors.items():
        save_file({name: state[name] for name in names}, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, files: str) -> None:
    if files == "none":
        return
    if files == "full":
        tokenizer.save_pretrained(folder)
    if isinstance(tokenizer, BertTokenizer):
        (folder / "vocab.txt").write_text("\n".join(WORDPIECES) + "\n", encoding="utf-8")
    elif files == "vocab_only" and type(tokenizer) is PreTrainedTokenizerFast:
        tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    elif files == "vocab_only":
        tokenizer.backend_tokenizer.model.save(str(folder))  # vocab.json and merges.txt


def _edit_config(folder: Path, changes: Mapping[str, Any]) -> None:
    """Change keys of config.json; None removes one."""
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    kept = {key: value for key, value in config.items() if key not in changes or value is not None}
    path.write_text(json.dumps(kept, indent=2) + "\n")


def _byte_pairs(special: list[str]) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges of a byte-level BPE trained on WORDS; training is deterministic.

    The merges are Any: transformers declares strings and takes pairs.
    """
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator([" ".join(WORDS)] * 2, trainer)
    model = json.loads(backend.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]
