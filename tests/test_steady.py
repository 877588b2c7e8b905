"""Models that change themselves in forward: the object that all callers share answers as a fresh one does."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from medvllm.engine.model_runner import ModelRegistry
from tests.support import kinds
from tests.support.spread import spread

LENGTHS = (60, 5, 30)


def _ids(length: int) -> torch.Tensor:
    return torch.randint(5, 200, (1, length), generator=torch.Generator().manual_seed(length))


def _answer(model: Any, length: int) -> torch.Tensor:
    inputs = {"input_ids": _ids(length)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = _ids(length)
    with torch.inference_mode():
        answer: torch.Tensor = model(**inputs)[0]
    return answer


SOME = ("BigBirdForMaskedLM", "LlamaModel (dynamic)", "LlamaForCausalLM (longrope)", "ReformerModel", "XGLMModel")


def _fresh(folder: Path, model: Any) -> dict[int, torch.Tensor]:
    """What a model that transformers has just loaded makes of one input alone."""
    plain: Any = getattr(transformers, type(model).__name__).from_pretrained(folder).eval()
    with torch.random.fork_rng():
        answers = {}
        for length in LENGTHS:
            torch.manual_seed(0)  # of Reformer's hashes
            answers[length] = _answer(copy.deepcopy(plain), length)
    return answers


@pytest.mark.parametrize("kind", spread(kinds.REMEMBERING, 2))
def test_an_answer_does_not_depend_on_what_came_before(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """Long after short, short after long, loaded and reloaded: the bits of a fresh model, and nothing stays behind."""
    folder = kinds.write(tmp_path / "m", kind)
    model = registry.load_model(folder)
    fresh, state = _fresh(folder, model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    draws = torch.random.get_rng_state()
    for _ in range(2):
        for length in (60, 5, 60, 30):
            assert torch.equal(_answer(model, length), fresh[length])
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
        assert torch.equal(torch.random.get_rng_state(), draws)
        registry.clear_cache()
        model = registry.load_model(folder)


@pytest.mark.parametrize("kind", SOME)
def test_threads_do_not_change_each_others_answers(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """Short and long at the same time, on one object."""
    folder = kinds.write(tmp_path / "m", kind)
    model = registry.load_model(folder)
    fresh = _fresh(folder, model)
    lengths = [LENGTHS[i % 3] for i in range(12)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda length: _answer(model, length), lengths))
    assert all(torch.equal(answer, fresh[length]) for length, answer in zip(lengths, answers, strict=True))


@pytest.mark.parametrize("kind", SOME)
def test_a_copy_is_as_steady_as_the_model(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """Pickled, copied or saved, it is of the class that transformers knows, and answers the same."""
    folder = kinds.write(tmp_path / "m", kind)
    model = registry.load_model(folder)
    fresh = _fresh(folder, model)
    plain = getattr(transformers, type(model).__name__)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), copy.copy(model)):
        assert isinstance(other, plain) and type(other).__name__ == plain.__name__
        assert all(torch.equal(_answer(other, length), fresh[length]) for length in (5, 60))
    model.save_pretrained(tmp_path / "saved")
    again: Any = registry.load_model(tmp_path / "saved")
    assert again.config.architectures == [plain.__name__] and torch.equal(_answer(again, 60), fresh[60])


def test_a_model_that_nothing_changes_keeps_its_class(registry: ModelRegistry, tmp_path: Path) -> None:
    """Most models are handed out exactly as transformers makes them."""
    for kind in ("BertModel", "LlamaModel", "MT5ForConditionalGeneration", "DebertaV2Model"):
        model = registry.load_model(kinds.write(tmp_path / kind, kind))
        assert all(type(module).forward.__module__ != "medvllm.loading.stateless" for module in model.modules())


def test_training_changes_what_it_always_changes(registry: ModelRegistry, tmp_path: Path) -> None:
    """A caller's own model in training mode learns, through the weights that it has."""
    folder = kinds.write(tmp_path / "m", "BigBirdForMaskedLM")
    model: Any = registry.load_model(folder, use_cache=False)
    model.train()
    model(input_ids=_ids(20), labels=_ids(20)).loss.backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
    model.eval()
    model.zero_grad()
    model(input_ids=_ids(60), labels=_ids(60)).loss.backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0
