"""Texts of different lengths run in one row without padding, and answer as each does alone."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.inference.causality import is_causal
from medvllm.engine.model_runner.inference.part import Part
from medvllm.engine.model_runner.inference.torch_forward import TorchForward
from medvllm.engine.model_runner.reading.windows import Window
from tests.support import kinds
from tests.support.spread import spread
from tests.support.trained import MINILM

PACKED = [
    "BertModel",
    "RobertaModel",
    "XLMRobertaModel",
    "CamembertModel",
    "ElectraModel",
    "DistilBertModel",
    "AlbertModel",
    "ModernBertModel",
    "NomicBertModel",
    "EuroBertModel",
    "ErnieModel",
    "T5EncoderModel",
    "MT5ForConditionalGeneration",
    "GPT2Model",
    "LlamaModel",
    "Qwen3Model",
    "MistralModel",
    "GemmaModel",
]
HEADS = [
    "BertForTokenClassification",
    "RobertaForTokenClassification",
    "XLMRobertaForTokenClassification",
    "ModernBertForTokenClassification",
    "ElectraForTokenClassification",
    "DistilBertForTokenClassification",
    "BertForMaskedLM",
    "RobertaForMaskedLM",
]
PADDED = ["MPNetModel", "DebertaV2Model", "BartModel", "M2M100Model", "XLMModel"]
LENGTHS = [1, 2, 128, 40, 40, 7, 95, 2, 128, 33]


def _windows(lengths: list[int], **more: Any) -> list[Window]:
    numbers = np.random.default_rng(0)
    return [
        Window(n, numbers.integers(4, 250, length).tolist(), [1] * length, **more) for n, length in enumerate(lengths)
    ]


def _check(forward: TorchForward, windows: list[Window]) -> None:
    for found, window in zip(forward.run(windows), windows, strict=True):
        assert np.allclose(found, forward.run([window])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", spread([*PACKED, *HEADS], 3))
def test_windows_in_one_row_have_the_numbers_that_each_has_alone(
    registry: ModelRegistry, tmp_path: Path, kind: str
) -> None:
    """From one token to the longest, some of one length, in any order; and only the tokens that are wanted."""
    # Local attention: of ModernBERT to 8 tokens on each side, of Mistral to 16 before.
    fields = {"local_attention": 16} if "ModernBert" in kind else {"sliding_window": 16} if "Mistral" in kind else {}
    part: Part = "head_tokens" if kind in HEADS else "tokens"
    with registry.lease(kinds.write(tmp_path / "m", kind, **fields)) as lease:
        forward = TorchForward(lease, part)
        assert forward.layout == "packed"
        windows = _windows(LENGTHS)
        _check(forward, windows)
        _check(forward, windows[4:7] + windows[:2])
        _check(forward, [Window(0, list(range(4, 30)), [], wanted=[5, 0, 7]), Window(1, [9] * 7, [], wanted=[])])
        padding = Window(0, [5, 1, 9, 1, 1, 8], [])  # the padding token in a text: RoBERTa counts no position for it
        _check(forward, [padding, *_windows([7, 3])])


@pytest.mark.parametrize("kind", PADDED)
def test_a_model_that_ignores_the_row_is_padded(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """Its answers in a row would be wrong without an error."""
    with registry.lease(kinds.write(tmp_path / "m", kind)) as lease:
        forward = TorchForward(lease, "tokens")
        assert forward.layout == "padded"
        _check(forward, _windows(LENGTHS))


def test_windows_that_cannot_run_together_are_run_apart(registry: ModelRegistry, tmp_path: Path) -> None:
    """They may have come together while the model still ran several texts in one row."""
    with registry.lease(kinds.write(tmp_path / "m", "FNetModel")) as lease:
        forward = TorchForward(lease, "tokens")
        assert forward.layout == "equal"
        _check(forward, _windows(LENGTHS))


class Liar(transformers.BertModel):  # type: ignore[no-untyped-call]
    """Says that its attention can be chosen, and keeps its own for itself."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("cu_seq_lens_q", None)
        for module in self.modules():
            if isinstance(config := getattr(module, "config", None), transformers.PreTrainedConfig):
                config._attn_implementation = "sdpa"
        return super().forward(*args, **kwargs)


class Short(transformers.BertModel):  # type: ignore[no-untyped-call]
    """Has a table that is too short for a row of many texts."""

    def forward(self, input_ids: torch.Tensor, position_ids: Any = None, **kwargs: Any) -> Any:
        if input_ids.shape[1] > self.config.max_position_embeddings:
            raise IndexError("index out of range in self")
        return super().forward(input_ids, position_ids=position_ids, **kwargs)


@pytest.mark.parametrize("kind", [Liar, Short])
def test_a_model_that_says_it_can_and_cannot_is_padded(registry: ModelRegistry, tmp_path: Path, kind: Any) -> None:
    """It is found out by a probe, or, if only a long row does not fit, when that comes."""
    folder = kinds.write(tmp_path / "m", "BertModel")
    registry.register("m", "generic", model_path=str(folder), model_class=kind)
    with registry.lease("m") as lease:
        assert type(lease.model) is kind
        forward = TorchForward(lease, "tokens")
        length = lease.model.config.max_position_embeddings
        assert forward.layout == ("padded" if kind is Liar else "packed")
        windows = [Window(0, [5] * length, []), Window(1, [6, 7], []), Window(2, [8] * 9, [])]
        _check(forward, windows)
        assert forward.layout == "padded"


def test_pairs_keep_the_numbers_of_their_texts(registry: ModelRegistry, tmp_path: Path) -> None:
    """Pairs and single texts in one row."""
    with registry.lease(kinds.write(tmp_path / "m", "BertModel")) as lease:
        forward = TorchForward(lease, "tokens")
        pairs = [Window(n, [7] * n, [], types=[0] * 3 + [1] * (n - 3)) for n in (9, 4, 30)]
        _check(forward, [*pairs, Window(0, [7] * 12, [])])
        plain, typed = forward.run([Window(0, [7] * 9, []), pairs[0], pairs[1]])[:2]
        assert not np.allclose(plain, typed, atol=1e-2)


def test_a_head_for_whole_texts_is_padded(registry: ModelRegistry, tmp_path: Path) -> None:
    """It would find the first token of the first text only."""
    for kind in ("BertForSequenceClassification", "RobertaForSequenceClassification"):
        with registry.lease(kinds.write(tmp_path / kind, kind)) as lease:
            forward = TorchForward(lease, "head_texts")
            assert forward.layout == "padded"
            _check(forward, _windows(LENGTHS))


def test_the_model_itself_stays_as_it_is(registry: ModelRegistry, tmp_path: Path) -> None:
    """Its config, its modules and what it answers to its owner; and what the owner changes holds for rows, too."""
    with registry.lease(kinds.write(tmp_path / "m", "BertModel")) as lease:
        model, forward = lease.model, TorchForward(lease, "tokens")
        config, modules = model.config.to_dict(), [(id(module), type(module)) for module in model.modules()]
        ids = torch.arange(5, 30).unsqueeze(0)
        before = model(ids).last_hidden_state
        _check(forward, _windows(LENGTHS))
        assert model.config.to_dict() == config and model.config._attn_implementation == "sdpa"
        assert [(id(module), type(module)) for module in model.modules()] == modules
        assert torch.equal(model(ids).last_hidden_state, before)
        changed: list[Any] = []
        model.encoder.layer[1].register_forward_hook(lambda module, args, output: changed.append(output))
        model.encoder.layer[0] = model.encoder.layer[1]
        _check(forward, _windows(LENGTHS))
        assert changed


def test_threads_share_a_packed_model(registry: ModelRegistry, tmp_path: Path) -> None:
    """Eight threads with rows of their own on one model."""
    with registry.lease(kinds.write(tmp_path / "m", "ModernBertModel")) as lease:
        forward = TorchForward(lease, "tokens")
        windows = _windows(LENGTHS * 3)
        alone = [forward.run([window])[0] for window in windows]

        def run(seed: int) -> bool:
            order = np.random.default_rng(seed).permutation(len(windows))
            found = forward.run([windows[i] for i in order])
            return all(np.allclose(rows, alone[i], rtol=0, atol=1e-6) for rows, i in zip(found, order, strict=True))

        with ThreadPoolExecutor(8) as threads:
            assert all(threads.map(run, range(32)))


def test_every_task_answers_a_list_as_it_answers_each_text(registry: ModelRegistry, tmp_path: Path) -> None:
    """Short texts with texts of several windows."""
    texts = ["pain", "Aspirin 75 mg daily. " * 20, "fever and cough", "No known drug allergies, per chart. " * 9, "a"]
    embedder = ModelRunner(kinds.write(tmp_path / "e", "RobertaModel"), registry=registry)
    together = embedder.embed(texts).vectors
    assert np.allclose(together, [embedder.embed([text]).vectors[0] for text in texts], atol=1e-6)
    tagger = ModelRunner(kinds.write(tmp_path / "t", "RobertaForTokenClassification"), registry=registry)
    for found, text in zip(tagger.entities(texts), texts, strict=True):
        alone = tagger.entities([text])[0]
        assert found.coverage == alone.coverage
        assert [(s.start, s.end, s.label) for s in found.spans] == [(s.start, s.end, s.label) for s in alone.spans]
        assert [s.score for s in found.spans] == pytest.approx([s.score for s in alone.spans], abs=1e-6)
    filler = ModelRunner(kinds.write(tmp_path / "f", "BertForMaskedLM"), registry=registry)
    gaps = ["pain [MASK]", "[MASK]", "no [MASK] of the chest or [MASK]"]
    for filled, text in zip(filler.fill_mask(gaps), gaps, strict=True):
        for gap, same in zip(filled, filler.fill_mask([text])[0], strict=True):
            assert [fill.token for fill in gap] == [fill.token for fill in same]


@pytest.mark.parametrize(
    "setting", spread([lambda: torch.autocast("cpu"), lambda: torch.device("meta"), torch.inference_mode], 3)
)
def test_a_trial_does_not_depend_on_the_callers_thread(registry: ModelRegistry, tmp_path: Path, setting: Any) -> None:
    """Its outcome holds for all callers: of a trial that fails, they would all have smaller batches."""
    with registry.lease(MINILM) as lease, registry.lease(kinds.write(tmp_path / "m", "GPTNeoXModel")) as decoder:
        with setting():
            assert TorchForward(lease, "tokens").layout == "packed"
            assert not is_causal(lease, "tokens") and is_causal(decoder, "tokens")
        _check(TorchForward(lease, "tokens"), _windows(LENGTHS))
