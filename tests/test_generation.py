"""generate: what decoders write, for texts and conversations, whole and as a stream."""

from pathlib import Path
from typing import Any

import pytest
import torch

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import InputTooLongError, RequestError
from tests.support import tiny


def plain(lease: Any, prompt: str, tokens: int) -> list[int]:
    """The new tokens of transformers' own generate; the tiny tokenizer's end token is not part of the prompt."""
    ids = lease.tokenizer(prompt, return_tensors="pt")["input_ids"][:, :-1]
    out = lease.model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=1
    )
    return list(map(int, out[0, ids.shape[1] :]))


@pytest.mark.parametrize("make", [tiny.gpt2_causal_lm, tiny.llama_causal_lm])
def test_answers_are_those_of_transformers(registry: ModelRegistry, tmp_path: Path, make: Any) -> None:
    """Greedy, one prompt or several at once, whole or streamed."""
    folder = make(tmp_path / "m")
    runner = ModelRunner(folder, registry=registry)
    prompts = ["chest pain", "fever", "The patient denies"]
    together = runner.generate(prompts, max_new_tokens=12)
    alone = [runner.generate([prompt], max_new_tokens=12)[0] for prompt in prompts]
    assert list(together) == alone
    with registry.lease(folder) as lease:
        for prompt, answer in zip(prompts, together, strict=True):
            expected = plain(lease, prompt, 12)
            assert answer.text == lease.tokenizer.decode(expected, skip_special_tokens=True)
            assert answer.completion_tokens == len(expected) and answer.prompt_tokens == len(prompt) + 1
            assert answer.coverage.read == ((0, len(prompt)),)
    pieces = list(runner.generate(prompts, max_new_tokens=12, stream=True))
    for position, answer in enumerate(together):
        own = [piece for piece in pieces if piece.position == position]
        assert "".join(own) == answer.text and own[-1].answer == answer


def test_an_encoder_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Also if it is loaded with a class for generation, as the specification's example does."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    with pytest.raises(RequestError, match="BertForMaskedLM, which cannot generate"):
        ModelRunner(folder, registry=registry).generate(["fever"])
    registry.register("m", "generic", model_path=str(folder), model_class="transformers:AutoModelForCausalLM")
    with pytest.raises(RequestError, match="is no decoder"):
        ModelRunner("m", registry=registry).generate(["fever"])


def test_a_prompt_is_never_cut(registry: ModelRegistry, tmp_path: Path) -> None:
    """The error names the numbers."""
    runner = ModelRunner(tiny.llama_causal_lm(tmp_path / "m"), registry=registry)
    with pytest.raises(InputTooLongError, match="Text 1 has 61 tokens, and its answer needs room for 10 more"):
        runner.generate(["x" * 60], max_new_tokens=10)
    assert runner.generate(["x" * 60])[0].completion_tokens == 3
