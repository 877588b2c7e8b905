"""Requests of `/v1/chat/completions` and `/v1/completions`, and the options of `ModelRunner.generate` that they are."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field

from medvllm.server.other_names import one_of
from medvllm.server.protocols.openai.messages import Message
from medvllm.server.texts import TolerantModel
from medvllm.server.unsupported import Refused, refuse_others

# What other servers can do with an answer, and this one cannot, with the values that ask for nothing.
_REFUSED: Refused = {
    **dict.fromkeys(("n", "best_of"), (1,)),
    **dict.fromkeys(("tools", "functions", "audio", "web_search_options", "suffix"), ([], {}, "")),
    **dict.fromkeys(("tool_choice", "function_call"), ("none", "auto")),
    **dict.fromkeys(("logprobs", "echo"), (False,)),
    **dict.fromkeys(("top_logprobs", "presence_penalty", "frequency_penalty", "min_p", "min_tokens"), (0,)),
    **dict.fromkeys(
        ("repetition_penalty", "repeat_penalty", "length_penalty", "typical_p", "tfs_z", "num_beams"), (1,)
    ),
    **dict.fromkeys(("no_repeat_ngram_size", "mirostat", "penalty_alpha", "top_a", "dry_multiplier"), (0,)),
    **dict.fromkeys(("xtc_probability", "dynatemp_range", "epsilon_cutoff", "eta_cutoff", "min_new_tokens"), (0,)),
    **dict.fromkeys(("logit_bias", "chat_template_kwargs", "bad_words", "stop_token_ids"), ({}, [])),
    **dict.fromkeys(("use_beam_search", "ignore_eos", "continue_final_message"), (False,)),
    **dict.fromkeys(("include_stop_str_in_output", "no_stop_trim"), (False,)),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens"), (True,)),
    **dict.fromkeys(
        ("regex", "ebnf", "json_schema", "stop_regex", "max_new_tokens", "num_predict", "stop_sequences"), ()
    ),
    **dict.fromkeys(("max_length", "max_output_tokens", "n_predict", "random_seed", "adapter_id", "lora_path"), ()),
    **dict.fromkeys(("safe_prompt", "watermark", "return_full_text"), (False,)),
    **dict.fromkeys(("logits_processors", "vllm_xargs"), ([], {})),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar", "structured_outputs"), ()),
    **dict.fromkeys(("chat_template", "documents", "allowed_token_ids", "prompt_logprobs", "grammar"), ()),
    **dict.fromkeys(("truncate_prompt_tokens", "reasoning_effort"), ("none",)),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "verbosity": ("medium",),
    "add_generation_prompt": (True,),
}


class StreamOptions(TolerantModel):
    """What a stream has besides the text."""

    include_usage: bool | None = None


class GenerationRequest(TolerantModel):
    """How to generate. Unknown keys are ignored, as clients send keys of their own."""

    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: Annotated[int, Field(ge=1, description="The longest answer; by default 256 tokens.")] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, description="The newer name of max_tokens.")] | None = None
    stop: str | Annotated[list[str], Field(max_length=64)] | None = None
    temperature: Annotated[float, Field(ge=0, description="By default 0: the likeliest token.")] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, description="0 stands for the likeliest token.")] | None = None
    top_k: Annotated[int, Field(ge=-1, description="-1 and 0 stand for all tokens.")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    allow_special_tokens: bool = False

    def options(self) -> dict[str, Any]:
        """Return the options of `ModelRunner.generate`.

        Raises:
            ProblemError: The request asks for more than the server can do.
        """
        refuse_others(self.model_extra, _REFUSED)
        top_p = None if self.top_p == 1 else self.top_p
        top_k = None if self.top_k in (-1, 0) else self.top_k
        heat = 0.0 if top_p == 0 else self.temperature
        if heat is None:  # who narrows the choice wants one: OpenAI samples by default
            heat = 0.0 if top_p is None and top_k is None else 1.0
        refuse_others(self.model_extra, {"do_sample": (heat > 0,)})
        return {
            "max_new_tokens": one_of(
                {"max_tokens": self.max_tokens, "max_completion_tokens": self.max_completion_tokens}
            ),
            "stop": self.stop,
            "temperature": heat,
            "top_p": top_p if heat else None,
            "top_k": top_k if heat else None,
            "seed": self.seed,
            "allow_special_tokens": self.allow_special_tokens,
        }


class ChatRequest(GenerationRequest):
    """A conversation to answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"model": "my-decoder", "messages": [{"role": "user", "content": "What is aspirin?"}]}
        }
    )

    messages: Annotated[list[Message], Field(min_length=1)]


class CompletionRequest(GenerationRequest):
    """Texts to continue."""

    model_config = ConfigDict(json_schema_extra={"example": {"model": "my-decoder", "prompt": "Aspirin is"}})

    prompt: str | list[str] | list[int] | list[list[int]]
