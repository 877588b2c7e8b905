"""Engines beside torch, for every task and family: the same answers, and the same refusals."""

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.embedding.embed import Embeddings
from medvllm.errors import MedVLLMError
from tests.support import kinds, tiny
from tests.support.exports import Exports

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

TEXTS = [
    "",
    " ",
    "x",
    "No fever.",
    "Given aspirin 75 mg for chest pain. " * 12,
    "na\u00efve caf\u00e9 \U0001f600 \U0001d538\U00020000 e\u0301",
    "before [SEP] after </s> and <s> or <pad><mask>",
    "\u0645\u0631\u064a\u0636 \u60a3\u8005",
]
GAPS = ["Given <mask> for pain.", "<mask>", "\U0001f600 <mask> x", "two <mask> and <mask>", "none"]
ENCODERS = [
    "BertModel",
    "RobertaModel",
    "DistilBertModel",
    "ElectraModel",
    "DebertaV2Model",
    "MPNetModel",
    "AlbertModel",
    "XLMRobertaModel",
    "ModernBertModel",
    "T5EncoderModel",
    "GPT2Model",
]
FAMILIES = [name.removesuffix("Model") for name in ENCODERS if name not in ("T5EncoderModel", "GPT2Model")]


def _leaves(result: Any) -> Iterator[Any]:
    """All values of a result, in order."""
    if isinstance(result, np.ndarray):
        yield from (result.shape, *result.ravel().tolist())
    elif isinstance(result, Embeddings):
        yield from _leaves([result.vectors, result.coverage])
    elif isinstance(result, list | tuple):
        yield len(result)
        for each in result:
            yield from _leaves(each)
    elif is_dataclass(result):
        for field in fields(result):
            yield from _leaves(getattr(result, field.name))
    else:
        yield result


def _check(one: ModelRunner, two: ModelRunner, call: Callable[[ModelRunner], Any]) -> None:
    """Compare an engine with torch: the answers, or the errors."""
    found: list[Any] = []
    for runner in (one, two):
        try:
            found.append(call(runner))
        except MedVLLMError as error:
            found.append((type(error).__name__, str(error)))
    kinds_of = [isinstance(each, tuple) for each in found]
    assert kinds_of[0] == kinds_of[1], found
    if kinds_of[0]:
        assert found[0] == found[1]
        return
    leaves = [list(_leaves(each)) for each in found]
    facts, numbers = (
        [[leaf for leaf in of if isinstance(leaf, float) == is_number] for of in leaves] for is_number in (False, True)
    )
    assert facts[0] == facts[1]
    np.testing.assert_allclose(numbers[0], numbers[1], atol=1e-4)


def _check_each(runners: tuple[ModelRunner, ModelRunner], call: Callable[[ModelRunner, list[Any]], Any]) -> None:
    """Compare for each text alone, and for all that are no error together."""
    for text in TEXTS:
        _check(*runners, lambda runner, text=text: call(runner, [text]))  # type: ignore[misc]
    _check(*runners, lambda runner: call(runner, TEXTS))
    _check(*runners, lambda runner: call(runner, TEXTS[2:]))


class Beside:
    """Makes the runners of a model: by an engine, and by torch."""

    def __init__(self, registry: ModelRegistry, exports: Exports, folder: Path, home: Path) -> None:
        self._registry, self._exports, self._folder, self._home = registry, exports, folder, home

    def __call__(self, kind: str, task: str, engine: Any, **config: Any) -> tuple[ModelRunner, ModelRunner]:
        layers = (
            "num_layers" if kind.startswith("T5") else "n_layer" if kind.startswith("GPT2") else "num_hidden_layers"
        )
        folder = kinds.write(self._folder / kind, kind, **{layers: 1} | config)
        self._exports.prepare(folder, self._home, task, ("onnx", "openvino"))
        runner = self._registry.runner(folder, engine=engine)
        return runner, self._registry.runner(folder)


@pytest.fixture
def beside(registry: ModelRegistry, shared_exports: Exports, tmp_path: Path, engine_home: Path) -> Beside:
    return Beside(registry, shared_exports, tmp_path, engine_home)


ENGINES = pytest.mark.parametrize("engine", ["onnx", "openvino"])


def _is_computed_by(runner: ModelRunner, task: str, engine: str, texts: list[Any]) -> bool:
    receipt: Any = runner.run(task, texts, with_receipt=True).receipt
    return bool(receipt.engine["name"] == engine)


@ENGINES
@pytest.mark.parametrize("kind", ENCODERS)
def test_vectors(beside: Beside, kind: str, engine: str) -> None:
    """Without a pooling: an encoder's are the mean, and a decoder is refused."""
    runners = beside(kind, "embed", engine)
    _check_each(runners, lambda runner, texts: runner.embed(texts))
    _check_each(runners, lambda runner, texts: runner.embed(texts, allow_special_tokens=True))
    assert kind == "GPT2Model" or _is_computed_by(runners[0], "embed", engine, ["x"])


@ENGINES
@pytest.mark.parametrize("family", FAMILIES)
def test_entities(beside: Beside, family: str, engine: str) -> None:
    """And what redaction makes of them."""
    runners = beside(f"{family}ForTokenClassification", "ner", engine)
    _check_each(runners, lambda runner, texts: runner.entities(texts))
    _check_each(runners, lambda runner, texts: runner.redact(texts, labels=["DRUG"]))
    _check(*runners, lambda runner: runner.entities([["given", "aspirin", "\U0001f600", "75"], [], ["x"]]))
    assert _is_computed_by(runners[0], "ner", engine, ["x"])


@ENGINES
@pytest.mark.parametrize("family", FAMILIES)
def test_classes(beside: Beside, family: str, engine: str) -> None:
    """Of texts, of pairs, and ranks by pairs."""
    runners = beside(f"{family}ForSequenceClassification", "classify", engine, **tiny.labelled(["A", "B", "C"]))
    _check_each(runners, lambda runner, texts: runner.classify(texts, windows="mean"))
    _check_each(runners, lambda runner, texts: runner.classify(texts))
    pairs = [("No fever.", text) for text in TEXTS]
    _check(*runners, lambda runner: runner.classify(pairs))
    _check(*runners, lambda runner: runner.classify(pairs[2:3]))
    _check(*runners, lambda runner: runner.rerank("fever", TEXTS[2:]))
    assert _is_computed_by(runners[0], "classify", engine, ["x"])


@pytest.mark.parametrize("family", ["Bert", "Roberta"])
def test_ranks(registry: ModelRegistry, tmp_path: Path, family: str) -> None:
    """Of a cross-encoder, which its entry says that it is."""
    folder = kinds.write(
        tmp_path / "ranker", f"{family}ForSequenceClassification", num_hidden_layers=1, **tiny.labelled(["RELEVANT"])
    )
    registry.register("ranker", "clinical", model_path=str(folder), task="rerank")
    runners = registry.runner("ranker", engine="onnx"), registry.runner("ranker")
    for texts in (TEXTS, TEXTS[2:], TEXTS[4:5], []):
        _check(*runners, lambda runner, texts=texts: runner.rerank("fever", texts))  # type: ignore[misc]
    receipt: Any = runners[0].rerank("fever", TEXTS[2:], with_receipt=True).receipt
    assert receipt.engine["name"] == "onnx"


@ENGINES
@pytest.mark.parametrize("family", FAMILIES)
def test_gaps(beside: Beside, family: str, engine: str) -> None:
    """Of one text and of several, and what is no gap."""
    runners = beside(f"{family}ForMaskedLM", "fill-mask", engine)
    for texts in (*([text] for text in GAPS), GAPS[:4], GAPS):
        _check(*runners, lambda runner, texts=texts: runner.fill_mask(texts))  # type: ignore[misc]
    assert _is_computed_by(runners[0], "fill-mask", engine, GAPS[:1])
