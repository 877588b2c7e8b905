"""Tiny checkpoints of many architectures, all with one byte-level tokenizer: what holds for one must hold for all."""

from pathlib import Path
from typing import Any

import transformers

from tests.support import tiny

LENGTH = 128
# What configs call a size, and how small it is here.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "emb_dim", "embedding_size"), 32),
    **dict.fromkeys(("intermediate_size", "hidden_dim", "d_ff", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layers", "n_layer", "num_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_attention_heads", "n_heads", "n_head", "num_heads"), 2),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads", "num_key_value_heads"), 2),
    **dict.fromkeys(("d_kv", "head_dim", "attention_head_size"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_encoder_position_embeddings"), LENGTH + 8),
    "attention_window": 16,
    "block_size": 4,
    "num_random_blocks": 1,
    "type_vocab_size": 3,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}
_LONG |= {"short_factor": [1.0] * 8, "long_factor": [3.0] * 8}
_LSH: dict[str, Any] = {
    "attn_layers": ["local", "lsh"],
    "lsh_attn_chunk_length": 8,
    "local_attn_chunk_length": 8,
    "axial_pos_shape": [8, 17],
    "axial_pos_embds_dim": [16, 16],
}

# Class -> fields of its config beside the sizes. A word in brackets tells two of one class apart.
REMEMBERING: dict[str, dict[str, Any]] = {
    "BigBirdForMaskedLM": {},
    "BigBirdForTokenClassification": {},
    "BigBirdPegasusForConditionalGeneration": {},
    "LlamaModel (dynamic)": {"rope_parameters": _DYNAMIC, "max_position_embeddings": 24},
    "LlamaForCausalLM (longrope)": {"rope_parameters": _LONG},
    "EuroBertModel (dynamic)": {"rope_parameters": _DYNAMIC, "max_position_embeddings": 24},
    "ReformerModel": _LSH,
    "XGLMModel": {"max_position_embeddings": 16},
    "M2M100Model": {"max_position_embeddings": 16},
    "FSMTModel": {"max_position_embeddings": 16, "src_vocab_size": tiny.BYTES, "tgt_vocab_size": tiny.BYTES},
}
MIXING: dict[str, dict[str, Any]] = {
    "FNetModel": {},
    "FNetForMaskedLM": {},
    "NystromformerModel": {},
    "ConvBertModel": {},
    "ConvBertForTokenClassification": {},
    "YosoModel": {},
    "MobileBertModel": {},
    "MobileBertForTokenClassification": {},
    "NllbMoeModel": {"encoder_sparse_step": 1, "num_experts": 2, "expert_capacity": 8, "max_position_embeddings": 200},
    "CpmAntModel": {"prompt_types": 4, "prompt_length": 2},
}
ENCODER_DECODERS: dict[str, dict[str, Any]] = {
    "T5ForConditionalGeneration": {},
    "T5EncoderModel": {},
    "MT5ForConditionalGeneration": {},
    "UMT5ForConditionalGeneration": {},
    "LongT5ForConditionalGeneration": {},
    "SwitchTransformersForConditionalGeneration": {},
    "PegasusForConditionalGeneration": {},
    "MarianModel": {"pad_token_id": 1},
    "ProphetNetModel": {"num_encoder_layers": 2, "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2}
    | {"num_hidden_layers": None},
}
PLAIN: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "RobertaModel": {},
    "AlbertModel": {},
    "MPNetModel": {},
    "DebertaV2Model": {},
    "LongformerModel": {},
    "ModernBertModel": {},
    "XLMModel": {"n_langs": 1, "use_lang_emb": False},
    "FunnelModel": {"block_sizes": [1, 1], "num_hidden_layers": None},
    "GPT2Model": {},
    "GPT2LMHeadModel": {},
    "LlamaModel": {},
    "BertForMaskedLM": {},
    "BertForPreTraining": {},
    "BertForQuestionAnswering": {},
    "BartModel": {},
    "LEDModel": {},
}
SHORT = {kind for kind, fields in REMEMBERING.items() if fields.get("max_position_embeddings")}  # fewer than a text has
BY_ENCODER = {*ENCODER_DECODERS, "M2M100Model", "NllbMoeModel"}  # vectors are the encoder's
ALL = {**REMEMBERING, **MIXING, **ENCODER_DECODERS, **PLAIN}


def write(folder: Path, kind: str, **more: Any) -> Path:
    """A checkpoint of a kind in `ALL`, or of a class with the fields of its config in `more`."""
    cls: Any = getattr(transformers, kind.partition(" ")[0])
    default = cls.config_class()
    sizes = {
        name: size for name, size in _SIZES.items() if isinstance(getattr(default, name, None), int | float | list)
    }
    tokens = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    fields = sizes | tokens | {"vocab_size": tiny.BYTES} | ALL.get(kind, {}) | more
    if kind.endswith("ForTokenClassification"):
        fields |= tiny.labelled(["O", "B-DRUG", "I-DRUG"])
    # Some sizes are another field under a second name, and have no setter.
    fields = {name: value for name, value in fields.items() if value is not None}
    fields = {name: value for name, value in fields.items() if name not in _fixed(cls.config_class, fields)}
    return tiny.write(folder, cls, cls.config_class(**fields), tiny.byte_tokenizer(LENGTH))


def _fixed(config: Any, fields: dict[str, Any]) -> set[str]:
    """Fields that the class computes."""
    computed = {name for name in fields if isinstance(getattr(config, name, None), property)}
    return {name for name in computed if getattr(config, name).fset is None}
