"""assertions: each span is judged as it stands in its text, marked as the model was trained."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.tagging.spans import Span
from medvllm.errors import InputTooLongError, LoadError, MedVLLMError, RequestError
from tests.support import kinds, tiny

LABELS = ["PRESENT", "ABSENT", "POSSIBLE"]
MARKERS = ["[entity] ", " [entity]"]
TEXT = "The patient denies fever and chest pain; history of diabetes."


def write(folder: Path, kind: str = "Bert") -> Path:
    """A classifier whose answers differ from text to text."""
    if kind == "Bert":
        tiny.bert_sequence_classifier(folder, config=tiny.labelled(LABELS))
    else:
        kinds.write(folder, f"{kind}ForSequenceClassification", **tiny.labelled(LABELS))
    return tiny.edit_weights(folder, lambda _, weight: weight * 4 if weight.ndim == 2 else weight)


def runner_of(registry: ModelRegistry, folder: Path, **more: Any) -> ModelRunner:
    """A runner of an entry with the markers of clinical-assertion-negation-bert."""
    facts: Any = {"entity_markers": MARKERS, "task": "assertions", "replace": True} | more
    registry.register("m", "clinical", model_path=folder, **facts)
    return ModelRunner("m", registry=registry)


def scores_of(folder: Path, text: str) -> dict[str, float]:
    """What the model says of a marked text."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.inference_mode():
        scores = model(**tokenizer(text, return_tensors="pt")).logits[0].softmax(-1)
    return dict(zip(LABELS, scores.tolist(), strict=True))


def test_spans_are_marked_in_their_text(registry: ModelRegistry, tmp_path: Path) -> None:
    """Given as objects, records or pairs; each span has its own answer, in the order of the spans."""
    folder = write(tmp_path / "m")
    runner = runner_of(registry, folder)
    spans: list[Any] = [Span(29, 39, "PROBLEM", 0.9, "chest pain"), {"start": 19, "end": 24}, (52, 60), [4, 11]]
    result = runner.assertions([TEXT, "no pain"], [spans, []], with_receipt=True)
    assert [found.text for found in result[0]] == ["chest pain", "fever", "diabetes", "patient"] and result[1] == []
    for found in result[0]:
        marked = f"{TEXT[: found.start]}[entity] {found.text} [entity]{TEXT[found.end :]}"
        assert found.scores == pytest.approx(scores_of(folder, marked), abs=1e-6)
        assert (found.label, found.score) == max(found.scores.items(), key=lambda item: item[1])
        assert list(found.scores.values()) == sorted(found.scores.values(), reverse=True)
        assert found.coverage.read == ((0, len(TEXT)),) and not found.coverage.truncated
    assert len({found.score for found in result[0]}) == 4
    assert runner.task == "assertions" and result.receipt and len(list(result.rows())) == 4
    assert result.to_dict()[0]["assertions"][1]["text"] == "fever"
    alone = runner.run("negation-detection", [TEXT], spans=[[(19, 24)]])[0][0]
    assert alone.scores == pytest.approx(result[0][1].scores, abs=1e-5)


@pytest.mark.parametrize("kind", ["Bert", "Roberta"])
@pytest.mark.parametrize("where", [0, 1, 300, 899])
def test_a_long_text_is_read_around_the_span(registry: ModelRegistry, tmp_path: Path, kind: str, where: int) -> None:
    """In 1,200 tokens without a full stop: the span with as many tokens before as after, as one text of that length."""
    folder = write(tmp_path / "m", kind)
    runner = runner_of(registry, folder)
    words = ["___" if i % 7 == 0 else "pain" if i % 2 else "heart" for i in range(900)]
    words[where] = "fever"
    text, start = " ".join(words), len(" ".join(words[:where])) + (where > 0)
    [[found]] = runner.assertions([text], [[(start, start + 5)]])
    [(low, high)] = found.coverage.read
    assert found.text == "fever" and low <= start and start + 5 <= high
    limit = registry.load_tokenizer("m").model_max_length
    special = 2
    assert limit - special - 1 <= found.coverage.tokens <= limit - special
    if where == 300:
        assert low > 0 and high < len(text) and found.coverage.truncated
        assert abs((start - low) - (high - start - 5)) < 40
    part = text[low:start] + "[entity] fever [entity]" + text[start + 5 : high]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with registry.lease("m") as lease, torch.inference_mode():
        ids = tokenizer(part)["input_ids"]
        expected = lease.model(torch.tensor([ids])).logits[0].softmax(-1)
    if kind == "Bert":
        assert found.scores == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5)


def test_markers_that_are_special_tokens_stay_special(registry: ModelRegistry, tmp_path: Path) -> None:
    """The same characters in the note are text; with another marker in the note, a plain one is refused."""
    folder = write(tmp_path / "m")
    plain = runner_of(registry, folder)
    with pytest.raises(RequestError, match=r"Text 2 contains '\[entity\]' or '\[entity\]', with which"):
        plain.assertions([TEXT, "a secret [entity] b"], [[], [(2, 8)]])
    runner = runner_of(registry, folder, entity_markers=["[SEP] ", " [SEP]"])
    [[found]] = runner.assertions([TEXT], [[(19, 24)]])
    assert found.scores == pytest.approx(scores_of(folder, TEXT.replace("fever", "[SEP] fever [SEP]")), abs=1e-6)
    note = "denies [SEP] fever"
    [[inside]] = runner.assertions([note], [[(13, 18)]])
    with registry.lease("m") as lease, torch.inference_mode():
        before = lease.tokenizer("denies [SEP]", add_special_tokens=False, split_special_tokens=True)["input_ids"]
        after = lease.tokenizer("[SEP] fever [SEP]", add_special_tokens=False)["input_ids"]
        ids = [lease.tokenizer.cls_token_id, *before, *after, lease.tokenizer.sep_token_id]
        expected = lease.model(torch.tensor([ids])).logits[0].softmax(-1)
    assert inside.scores == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-6)


def test_a_marker_is_found_in_a_side_of_a_pair(registry: ModelRegistry, tmp_path: Path) -> None:
    """As it stands there: a quote is no end of a text."""
    runner = runner_of(registry, write(tmp_path / "m"), entity_markers=["<\\' ", " '>"])
    marked = "denies <\\' fever '> today"
    assert len(runner.classify([(marked, "a note"), ("a note", marked)])) == 2
    with pytest.raises(RequestError, match="Text 1 has no marked span"):
        runner.classify([("denies <\\' fever", "a '> note")])


def test_offsets_may_come_from_a_table(registry: ModelRegistry, tmp_path: Path) -> None:
    """Its integers are NumPy's."""
    runner = runner_of(registry, write(tmp_path / "m"))
    start, end = np.array([19, 24])
    assert runner.assertions([TEXT], [[(start, end)]]) == runner.assertions([TEXT], [[(19, 24)]])


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        (None, "The spans are missing"),
        ("fever", "The spans must be a list, not str"),
        ([], "There is 1 text|There are 1 texts, but spans for 0"),
        ([(3, 5)], "Span 1 of text 1 has no start and end that are whole numbers"),
        ([{"start": 3}], "The spans of text 1 must be a list, not dict"),
        ([[{"start": 3}]], "Span 1 of text 1 has no start and end"),
        ([[(3, 5, 7)]], "Span 1 of text 1 has 3 items"),
        ([[(3.0, 5)]], "has no start and end that are whole numbers"),
        ([[(True, 5)]], "has no start and end that are whole numbers"),
        ([[(1, 2), (5, 5)]], "Span 2 of text 1 must begin before it ends, but begins at 5 and ends at 5"),
        ([[(-3, 5)]], "must begin before it ends"),
        ([[(55, 62)]], "Span 1 of text 1 ends at 62, but the text has 61 characters"),
        ([[(3, 4)]], "Span 1 of text 1 covers white space only"),
    ],
)
def test_wrong_offsets_are_errors(registry: ModelRegistry, tmp_path: Path, spans: Any, message: str) -> None:
    """Each names the span by its place, and never a text."""
    runner = runner_of(registry, write(tmp_path / "m"))
    with pytest.raises(RequestError, match=message) as caught:
        runner.assertions([TEXT], spans)
    assert "fever" not in str(caught.value)


def test_what_cannot_judge_a_span_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """A classifier whose entry has no markers, a tagger, a span or a text that is too long, and NaN."""
    folder = write(tmp_path / "m")
    with pytest.raises(RequestError, match="does not say how a span is marked.*\n.*entity_markers="):
        ModelRunner(folder, registry=registry).assertions([TEXT], [[(19, 24)]])
    tagger = ModelRunner(tiny.bert_token_classifier(tmp_path / "t", ["O", "B-X", "I-X"]), registry=registry)
    with pytest.raises(RequestError, match="does not judge whole texts"):
        tagger.assertions([TEXT], [[(19, 24)]])
    runner = runner_of(registry, folder)
    with pytest.raises(InputTooLongError, match="Span 1 of text 1 does not fit into the 64 tokens"):
        runner.assertions(["fever " * 100], [[(0, 500)]])
    with pytest.raises(InputTooLongError, match="Text 1 is longer than the 64 tokens"):
        runner_of(registry, folder, long_input="error").assertions(["fever " * 100], [[(0, 5)]])
    tiny.edit_weights(folder, lambda name, weight: weight * float("nan") if "classifier" in name else weight)
    with pytest.raises(LoadError, match="gives NaN or infinity for text 2"):
        runner_of(registry, folder).assertions(["a", TEXT], [[], [(19, 24)]])


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> ModelRunner:
    """A runner that many examples share."""
    return runner_of(ModelRegistry(), write(tmp_path_factory.mktemp("assertions") / "m"))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_span_of_any_text_gets_an_answer_or_an_error_of_ours(runner: ModelRunner, data: st.DataObject) -> None:
    """The answer is that of the span alone, and what was read includes the span."""
    text = data.draw(st.text(min_size=1, max_size=60)) * data.draw(st.sampled_from([1, 1, 5]))
    pairs = st.tuples(st.integers(0, len(text)), st.integers(0, len(text))).map(lambda pair: tuple(sorted(pair)))
    spans: Any = data.draw(st.lists(pairs, min_size=1, max_size=4))
    try:
        [found] = runner.assertions([text], [spans])
    except MedVLLMError:
        return
    for assertion, span in zip(found, spans, strict=True):
        [[alone]] = runner.assertions([text], [[span]])
        assert alone.scores == pytest.approx(assertion.scores, abs=1e-5)
        [(low, high)] = assertion.coverage.read
        assert 0 <= low <= assertion.start < assertion.end <= high <= len(text)
        assert assertion.text == text[span[0] : span[1]] and assertion.coverage.tokens <= 62
