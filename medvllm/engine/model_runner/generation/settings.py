"""What transformers is told about a generation: the model's own rules, and nothing that would make it random."""

from typing import TYPE_CHECKING, Any

from medvllm.engine.model_runner.generation.options import GenerationOptions

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# The rules of a model that hold for every answer: which tokens begin, end or pad it, and which may not come.
_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_NEUTRAL: dict[str, tuple[Any, ...]] = {  # and the values that change nothing
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty"), (None, 1.0)),
    **dict.fromkeys(
        ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), (None, 0)
    ),
    **dict.fromkeys(("bad_words_ids", "sequence_bias", "suppress_tokens", "begin_suppress_tokens"), (None, [], {})),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), (None,)),
}


def make_generation_config(
    model: Any, tokenizer: "PreTrainedTokenizerBase", options: GenerationOptions, *, is_conversation: bool
) -> "GenerationConfig":
    """Return the config of a generation, without its length.

    It keeps the model's rules. Beams, sampling and caches of the model's own config are left out.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    rules = {name: getattr(own, name, None) for name in (*_IDS, *_NEUTRAL)}
    ends = _as_list(rules["eos_token_id"]) or _as_list(tokenizer.eos_token_id)
    if is_conversation:  # a chat template puts this one behind a turn
        ends += _as_list(tokenizer.eos_token_id)
    special = dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
    ends += [special[text] for text in options.stop if text in special]
    rules["eos_token_id"] = sorted({end for end in ends if end >= 0}) or None
    if rules["pad_token_id"] is None or rules["pad_token_id"] < 0:
        rules["pad_token_id"] = (rules["eos_token_id"] or [None])[0]
    sampling: dict[str, Any] = {"do_sample": False}
    if options.temperature:
        sampling = {
            "do_sample": True,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "top_k": options.top_k or 0,
        }
    return GenerationConfig(**rules, **sampling, disable_compile=True)  # type: ignore[no-untyped-call]


def has_rules(config: "GenerationConfig") -> bool:
    """Return whether a config forbids or prefers tokens."""
    return any(getattr(config, name) not in neutral for name, neutral in _NEUTRAL.items())


def _as_list(ids: Any) -> list[int]:
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)
