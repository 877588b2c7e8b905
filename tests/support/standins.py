"""Tiny stand-ins for the repositories of the built-in models: each in that repository's shape of trouble."""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import transformers as t

from tests.support import tiny

NER = ["O", "B-Disease_disorder", "I-Disease_disorder", "B-Sign_symptom", "I-Sign_symptom"]
CLINICAL_NER = ["O", "B-problem", "I-problem", "B-test", "I-test", "B-treatment", "I-treatment"]
PHI = ["HCW", "HOSPITAL", "PATIENT", "DATE", "PHONE"]
BILOU = ["O", *(f"{place}-{kind}" for kind in ("PATIENT", "DATE") for place in "BILU")]


def bert(folder: Path, cls: type[Any], *, labels: Sequence[str] = (), positions: int = 512, **trouble: Any) -> Path:
    """A BERT with as many positions as the real one; weights are a pickle unless `weights` says otherwise."""
    config = tiny.labelled(labels) | {"max_position_embeddings": positions}
    return tiny.bert(folder, cls, config=config, **{"weights": "bin"} | trouble)


def shaped(folder: Path, cls: type[Any], size: dict[str, Any], files: str = "json", **trouble: Any) -> Path:
    """Another architecture, with a byte-level tokenizer: as tokenizer.json, or as vocab.json and merges.txt."""
    labels = trouble.pop("labels", ())
    config = cls.config_class(**tiny.SMALL | tiny.labelled(labels) | size)
    tiny.write(folder, cls, config, tiny.byte_tokenizer(config.max_position_embeddings), **{"weights": "bin"} | trouble)
    if files == "bpe":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(tiny.byte_vocabulary()))
        (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def sentence_transformer(folder: Path, max_length: int, **trouble: Any) -> Path:
    """A BERT with the files that sentence-transformers adds: it pools the mean."""
    bert(folder, t.BertModel, do_lower_case=True, **trouble)
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            ]
        )
    )
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_length}))
    return folder


def megatron(folder: Path, **trouble: Any) -> Path:
    """Gatortron: more embedding rows than its cased vocabulary has words."""
    rows = len(tiny.VOCABULARY) + 75
    config = t.MegatronBertConfig(**tiny.SMALL | {"max_position_embeddings": 512}, vocab_size=rows)
    trouble = {"weights": "bin", "tokenizer_files": "vocab_only"} | trouble
    return tiny.write(folder, t.MegatronBertForMaskedLM, config, False, **trouble)


def biogpt(folder: Path, **trouble: Any) -> Path:
    """Its tokenizer is written in Python, and needs sacremoses."""
    letters = [*tiny.LETTERS, *(f"{letter}</w>" for letter in tiny.LETTERS)]
    vocabulary = {word: i for i, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *letters])}
    config = t.BioGptConfig(
        **tiny.SMALL | {"max_position_embeddings": 1024, "vocab_size": len(vocabulary), "scale_embedding": False}
    )
    tiny.write(folder, t.BioGptForCausalLM, config, False, **{"weights": "bin", "tokenizer_files": "none"} | trouble)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


_RAW: dict[str, Any] = {"tokenizer_files": "vocab_only"}
_UNCASED: dict[str, Any] = {"do_lower_case": True}
_MLM, _ENCODER, _TAGGER, _SEQ = (
    *(t.BertForMaskedLM, t.BertModel),
    *(t.BertForTokenClassification, t.BertForSequenceClassification),
)
_ONE = ["B-DISEASE", "I-DISEASE", "O"]
_LLAMA: dict[str, Any] = {"num_key_value_heads": 2, "vocab_size": tiny.BYTES, "max_position_embeddings": 4096}

# Entry -> a function from folder (and `drop`, weights to leave out) to the stand-in.
STANDINS: dict[str, Callable[..., Path]] = {
    "biobert-base-cased-v1.2": partial(bert, cls=_MLM, model_type=False, **_RAW),
    "emilyalsentzer/Bio_ClinicalBERT": partial(bert, cls=_MLM, architectures=False, **_RAW),
    "emilyalsentzer/Bio_Discharge_Summary_BERT": partial(bert, cls=_MLM, architectures=False, **_RAW),
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext": partial(bert, cls=_MLM, **_UNCASED),
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": partial(bert, cls=_MLM, **_UNCASED),
    "michiyasunaga/BioLinkBERT-base": partial(bert, cls=_ENCODER, **_UNCASED),
    "michiyasunaga/BioLinkBERT-large": partial(bert, cls=_ENCODER, **_UNCASED),
    "allenai/scibert_scivocab_uncased": partial(bert, cls=_MLM, **_UNCASED, **_RAW),
    "allenai/scibert_scivocab_cased": partial(bert, cls=_MLM, **_RAW),
    "bionlp/bluebert_pubmed_mimic_uncased_L-12_H-768_A-12": partial(
        bert, cls=_MLM, model_type=False, architectures=False, legacy_layer_norm=True, **_UNCASED, **_RAW
    ),
    "UFNLP/gatortron-base": megatron,
    "yikuan8/Clinical-Longformer": partial(
        shaped,
        cls=t.LongformerForMaskedLM,
        size={"vocab_size": tiny.BYTES, "max_position_embeddings": 4098, "attention_window": 8, "pad_token_id": 1},
        files="bpe",
    ),
    **dict.fromkeys(
        ("thomas-sounack/BioClinical-ModernBERT-base", "thomas-sounack/BioClinical-ModernBERT-large"),
        partial(
            shaped,
            cls=t.ModernBertForMaskedLM,
            size={"vocab_size": tiny.BYTES, "max_position_embeddings": 8192, "pad_token_id": 1},
            weights="safetensors",
        ),
    ),
    "cambridgeltl/SapBERT-from-PubMedBERT-fulltext": partial(bert, cls=_ENCODER, **_UNCASED),
    "ncbi/MedCPT-Query-Encoder": partial(bert, cls=_ENCODER, **_UNCASED),
    "ncbi/MedCPT-Article-Encoder": partial(bert, cls=_ENCODER, **_UNCASED),
    "ncbi/MedCPT-Cross-Encoder": partial(bert, cls=_SEQ, labels=["LABEL_0"], **_UNCASED),
    "NeuML/pubmedbert-base-embeddings": partial(sentence_transformer, max_length=512),
    "pritamdeka/S-PubMedBert-MS-MARCO": partial(sentence_transformer, max_length=350),
    "d4data/biomedical-ner-all": partial(
        tiny.distilbert_token_classifier, labels=NER, positions=512, do_lower_case=True, weights="bin"
    ),
    "samrawal/bert-base-uncased_clinical-ner": partial(bert, cls=_TAGGER, labels=CLINICAL_NER, **_UNCASED),
    **{
        f"alvaroalon2/biobert_{kind}_ner": partial(bert, cls=_TAGGER, labels=_ONE, **_RAW)
        for kind in ("diseases", "chemical", "genetic")
    },
    **{
        f"pruas/BENT-PubMedBERT-NER-{kind}": partial(bert, cls=_TAGGER, labels=["O", "B", "I"], **_UNCASED)
        for kind in ("Disease", "Chemical", "Gene", "Anatomical", "Cell-Type", "Cell-Line")
    },
    "StanfordAIMI/stanford-deidentifier-base": partial(bert, cls=_TAGGER, labels=["O", *PHI], **_UNCASED),
    "obi/deid_roberta_i2b2": partial(
        shaped,
        cls=t.RobertaForTokenClassification,
        size={"vocab_size": tiny.BYTES, "max_position_embeddings": 514, "pad_token_id": 1},
        files="bpe",
        labels=BILOU,
    ),
    "obi/deid_bert_i2b2": partial(bert, cls=_TAGGER, labels=BILOU, **_RAW),
    "bvanaken/clinical-assertion-negation-bert": partial(
        bert, cls=_SEQ, labels=["PRESENT", "ABSENT", "POSSIBLE"], **_UNCASED
    ),
    "pritamdeka/PubMedBERT-MNLI-MedNLI": partial(bert, cls=_SEQ, labels=["LABEL_0", "LABEL_1", "LABEL_2"], **_UNCASED),
    "microsoft/biogpt": biogpt,
    "stanford-crfm/BioMedLM": partial(
        shaped,
        cls=t.GPT2LMHeadModel,
        size={"vocab_size": tiny.BYTES, "max_position_embeddings": 1024},
    ),
    "epfl-llm/meditron-7b": partial(shaped, cls=t.LlamaForCausalLM, size=_LLAMA),
    "BioMistral/BioMistral-7B": partial(
        shaped, cls=t.MistralForCausalLM, size=_LLAMA | {"max_position_embeddings": 32768, "sliding_window": 4096}
    ),
    "aaditya/Llama3-OpenBioLLM-8B": partial(
        shaped, cls=t.LlamaForCausalLM, size=_LLAMA | {"max_position_embeddings": 8192}, weights="sharded"
    ),
    "google/medgemma-27b-text-it": partial(
        shaped,
        cls=t.Gemma3ForCausalLM,
        size=_LLAMA | {"head_dim": 16, "max_position_embeddings": 131072, "query_pre_attn_scalar": 16},
        weights="sharded",
    ),
}


def one_of_each(names: Iterable[str]) -> list[str]:
    """The first of the names of each stand-in: several repositories have the same shape."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(repr(STANDINS[name]), name)
    return list(found.values())
