"""The canary: words of the texts are in the answer, and in nothing else that a call leaves behind."""

import json
import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import MedVLLMError
from tests.support import decoders, tiny
from tests.support.spread import spread

WORD = "xanthopsiacanary"
NOTE = f"Patient {WORD} Smith was given aspirin for fever on 03/05/2024."
LONG = NOTE * 60
ODD = f"{WORD} \ud800"

# Task -> a model of it, and how it is called with texts that hold the word in each of its inputs.
CALLS: dict[str, Callable[[ModelRunner, Any], Any]] = {
    "embed": lambda runner, text: runner.embed([text], with_receipt=True),
    "ner": lambda runner, text: runner.entities([text], with_receipt=True),
    "redact": lambda runner, text: runner.redact([text], with_receipt=True),
    "classify": lambda runner, text: runner.classify([text], with_receipt=True),
    "rerank": lambda runner, text: runner.rerank("fever", [text], with_receipt=True),
    "rerank, query": lambda runner, text: runner.rerank(text, ["fever"], with_receipt=True),
    "assertions": lambda runner, text: runner.assertions([text], [[(8, 8 + len(WORD))]], with_receipt=True),
    "fill-mask": lambda runner, text: runner.fill_mask(
        [f"{text} [MASK]" if isinstance(text, str) else text], with_receipt=True
    ),
    "generate": lambda runner, text: runner.generate([text], max_new_tokens=4, with_receipt=True),
    "generate, messages": lambda runner, text: runner.generate(
        [[{"role": "user", "content": text}]], max_new_tokens=4, with_receipt=True
    ),
    "generate, stream": lambda runner, text: list(runner.generate([text], max_new_tokens=4, stream=True)),
}


class Odd:
    """A value that is no text, and whose repr is one."""

    def __repr__(self) -> str:
        return WORD


def _make(task: str, folder: Path) -> Path:
    kind = task.partition(",")[0]
    if kind == "generate":
        return decoders.llama(folder)
    if kind in ("ner", "redact"):
        return tiny.bert_token_classifier(folder, ["O", "B-PATIENT", "I-PATIENT"])
    if kind in ("classify", "assertions"):
        return tiny.bert_sequence_classifier(folder, config=tiny.labelled(["PRESENT", "ABSENT"]))
    if kind == "rerank":
        return tiny.bert_sequence_classifier(folder, config=tiny.labelled(["RELEVANT"]))
    if kind == "fill-mask":
        return tiny.bert_masked_lm(folder)
    return tiny.bert_encoder(folder)


def _facts(task: str) -> dict[str, Any]:
    kind = task.partition(",")[0]
    own: dict[str, dict[str, Any]] = {
        "redact": {"task": "deid"},
        "assertions": {"entity_markers": ("[", "]")},
    }
    casing = {} if kind == "generate" else {"do_lower_case": False}
    return {"long_input": "error"} | casing | own.get(kind, {"task": kind})


@pytest.fixture
def check(
    home: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[BaseException | None], None]]:
    """Look for the word in logs, output, warnings, files of the home folder, and an error with all that it holds."""
    monkeypatch.setenv("MEDVLLM_AUDIT_LOADS", "on")
    caplog.set_level(logging.DEBUG)
    warnings.simplefilter("always")

    def look(error: BaseException | None) -> None:
        captured = capsys.readouterr()
        left = {
            "log": caplog.text,
            "stdout": captured.out,
            "stderr": captured.err,
            "warnings": " ".join(str(warning.message) for warning in recwarn),
        }
        left |= {str(path): path.read_bytes().decode("latin-1") for path in home.rglob("*") if path.is_file()}
        seen: set[int] = set()
        while error is not None and id(error) not in seen:
            seen.add(id(error))
            lines = traceback.format_exception_only(error)
            left[f"error {len(seen)}"] = "".join(lines) + repr(vars(error)) + repr(error.args)
            error = error.__cause__ or error.__context__
        assert [place for place, text in left.items() if WORD in text] == []

    yield look
    look(None)


@pytest.mark.parametrize("task", spread(CALLS, 2))
def test_an_answer_leaves_no_words_behind(
    registry: ModelRegistry, tmp_path: Path, task: str, check: Callable[[BaseException | None], None]
) -> None:
    """Also not in its receipt, or in the history of a stored entry."""
    folder = str(_make(task, tmp_path / "m"))
    registry.register("m", "clinical", model_path=folder, persist=True, **_facts(task))
    result = CALLS[task](ModelRunner("m", registry=registry), NOTE)
    check(None)
    if "stream" not in task:
        assert WORD not in json.dumps(result.receipt.to_dict())
    assert all(WORD not in json.dumps(event.detail) for event in registry.catalog.history("m"))


@pytest.mark.parametrize(
    "bad", [ODD, LONG, Odd(), [WORD, Odd()], WORD.encode()], ids=["odd", "long", "none", "list", "bytes"]
)
@pytest.mark.parametrize("task", spread(CALLS, 3))
def test_an_error_tells_no_words(
    registry: ModelRegistry, tmp_path: Path, task: str, bad: Any, check: Callable[[BaseException | None], None]
) -> None:
    """Whatever is wrong with a text."""
    registry.register("m", "clinical", model_path=str(_make(task, tmp_path / "m")), **_facts(task))
    with pytest.raises(MedVLLMError) as caught:
        CALLS[task](ModelRunner("m", registry=registry), bad)
    check(caught.value)


@pytest.mark.parametrize("task", spread(CALLS, 2))
def test_a_model_that_fails_tells_no_words(
    registry: ModelRegistry,
    tmp_path: Path,
    task: str,
    check: Callable[[BaseException | None], None],
) -> None:
    """NaN in the weights, and a tokenizer whose error quotes the text."""
    registry.register("m", "clinical", model_path=str(_make(task, tmp_path / "m")), **_facts(task))
    runner = ModelRunner("m", registry=registry)
    with registry.lease("m") as lease:
        for parameter in lease.model.parameters():
            parameter.data.fill_(float("nan"))
        with pytest.raises(MedVLLMError) as caught:
            CALLS[task](runner, NOTE)
        check(caught.value)

        def fail(text: Any, *args: Any, **kwargs: Any) -> Any:
            raise ValueError(f"cannot encode {text!r}")

        tokenizer: Any = lease.tokenizer
        tokenizer._encode_plus = fail
        with pytest.raises(MedVLLMError) as caught:
            CALLS[task](runner, NOTE)
    check(caught.value)
