"""What becomes of a long text may be said in a call, whatever the entry says."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import InputTooLongError, RequestError
from tests.support import tiny

LONG = "the patient was given aspirin for fever and chest pain"
Call = Callable[..., Any]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Call]:
    """For each task, a call that returns the coverage of the text, by a model whose entry refuses long texts."""
    folder: Path = tmp_path_factory.mktemp("models")
    registry = ModelRegistry()
    options: Any = {"max_length": 8, "long_input": "error"}
    score = tiny.bert_sequence_classifier(folder / "rank", config=tiny.labelled(["SCORE"]))
    for name, task, made in (
        ("embed", "embed", tiny.bert_encoder(folder / "embed")),
        ("ner", "ner", tiny.bert_token_classifier(folder / "ner", ["O", "B-X"])),
        ("classify", "classify", tiny.bert_sequence_classifier(folder / "cls", config=tiny.labelled(["A", "B"]))),
        ("rerank", "rerank", score),
    ):
        registry.register(name, "clinical", model_path=str(made), task=task, **options)
    runner = {name: ModelRunner(name, registry=registry) for name in ("embed", "ner", "classify", "rerank")}
    return {
        "embed": lambda **how: runner["embed"].embed([LONG], **how).coverage[0],
        "ner": lambda **how: runner["ner"].entities([LONG], **how)[0].coverage,
        "classify": lambda **how: runner["classify"].classify([LONG], **how)[0].coverage,
        "rerank": lambda **how: runner["rerank"].rerank("no", [LONG], **how)[0].coverage,
    }


@pytest.mark.parametrize("task", ["embed", "ner", "classify", "rerank"])
def test_a_call_may_say_what_becomes_of_a_long_text(calls: dict[str, Call], task: str) -> None:
    """Windows read all of it, a cut is in the coverage, and the entry decides if the call says nothing."""
    call = calls[task]
    for how in ({}, {"long_input": None}, {"long_input": "error"}):
        with pytest.raises(InputTooLongError):
            call(**how)
    whole, cut = call(long_input="window"), call(long_input="truncate")
    assert whole.windows > 1 and whole.read == ((0, len(LONG)),) and not whole.truncated
    assert cut.windows == 1 and cut.truncated and cut.read[0][1] < len(LONG)
    with pytest.raises(RequestError, match="long_input must be one of 'window', 'error', 'truncate', not 'cut'"):
        call(long_input="cut")


def test_a_score_may_be_asked_for_as_a_logit(calls: dict[str, Call], tmp_path: Path) -> None:
    """Or from 0 to 1, whatever the entry says; a softmax over one label is refused."""
    registry = ModelRegistry()
    folder = tiny.bert_sequence_classifier(tmp_path / "rank", config=tiny.labelled(["SCORE"]))
    registry.register("rank", "clinical", model_path=str(folder), task="rerank", activation="none")
    runner = ModelRunner("rank", registry=registry)
    [usual] = runner.rerank("no", ["fever"])
    [logit] = runner.rerank("no", ["fever"], activation="none")
    [scaled] = runner.rerank("no", ["fever"], activation="sigmoid")
    assert usual.score == logit.score != scaled.score and 0 < scaled.score < 1
    with pytest.raises(RequestError, match="activation must be one of"):
        runner.rerank("no", ["fever"], activation="softmax")  # type: ignore[arg-type]
