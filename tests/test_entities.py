"""Entities: the right words, with the right label, for every family of tokenizers."""

import logging
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import pytest
import regex
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.tagging.aggregation import AGGREGATIONS
from medvllm.engine.model_runner.tagging.spans import WordSpan
from medvllm.errors import MedVLLMError, RequestError
from tests.support import standins, taggers, tiny

LABELS = ["O", "B-A", "I-A", "B-B"]


@pytest.fixture(scope="module")
def shared() -> Iterator[ModelRegistry]:
    """One registry for the module."""
    own = ModelRegistry()
    yield own
    own.clear_cache()


# The other words share no letter with the name, so that its pieces are its own.
NAMED = [
    *("Dr.Smith", "(Smith)", "Code:Smith", "/John Smith/", "age,bone;COPD/Smith", "Smith,", "@Smith", "x/Smith/y"),
    *("Code:(Smith).", "Smith", "John   Smith", "\nSmith\t", "Dr.Smith, Jo.Jane", '"Smith"', "Smith's", "Smith,Jane"),
]


@pytest.mark.parametrize("family", taggers.FAMILIES)
def test_a_name_is_found_whatever_stands_around_it(shared: ModelRegistry, tmp_path: Path, family: str) -> None:
    """Alone, in every aggregation: also where the tokenizer takes signs and names for one word."""
    read = taggers.tokenizer(family)
    by_id = {}
    for text in NAMED:
        encoding = read(text, return_offsets_mapping=True)
        begin = text.index("Smith")
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True):
            if max(start, begin) < min(end, begin + 5) and str(read.convert_ids_to_tokens(token)).strip("▁"):
                by_id[token] = 1
    runner = ModelRunner(taggers.write(tmp_path / "m", read, ["O", "NAME"], by_id), registry=shared)
    for aggregation in AGGREGATIONS:
        found = runner.entities(NAMED, aggregation=cast(Any, aggregation))
        assert [[span.text.rstrip("s").rstrip("'") for span in each.spans] for each in found] == [["Smith"]] * len(
            NAMED
        )


ATOMS = [
    *("Smith", "Dr.", "O'Brien", "3.5", "10/12/2080", "mgkg", "a" * 60, "<s>", "</s>", "[SEP]", "<unk>"),
    *("(", ")", ",", ":", "_", "___", "@", "[**x**]", "Ġ", "▁", "##", "\u00ad", "\x00", "\u200f", "\u200b", "\ufeff"),
    *(" ", "  ", "\t", "\n", "\r\n", "\f", "\x85", "\u2028", "\u00a0", "\u202f"),
    *(
        "é",
        "e\u0301",
        "José",
        "\u0301",
        "😀",
        "👨\u200d👩\u200d👧",
        "🇩🇪",
        "❤\ufe0f",
        "1\ufe0f\u20e3",
        "ﷺ",
        "ﬁ",
        "㎎",
        "Ａ",
        "𝔸",
        "½",
    ),
    *("北京", "患者", "ผู้ป่วย", "ไข้", "カタカナ", "ひらがな", "שלום", "مرحبا", "한국어", "क्ष", "\u0600\u0661", "İ"),
]


@pytest.fixture(scope="module", params=taggers.FAMILIES)
def chance(request: pytest.FixtureRequest, shared: ModelRegistry, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tagger with a random label for each piece, its tokenizer, and the pieces that it labels."""
    read = taggers.tokenizer(request.param, 24)
    drawn = random.Random(1)
    by_id = {token: drawn.choice([0, 0, 0, 1, 2, 3]) for token in range(len(taggers.SPECIAL), len(read))}
    folder = taggers.write(tmp_path_factory.mktemp("m") / request.param, read, LABELS, by_id)
    return ModelRunner(folder, registry=shared), read, {token for token, label in by_id.items() if label}


@given(st.lists(st.lists(st.sampled_from(ATOMS), max_size=20).map("".join), min_size=1, max_size=5))
@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
def test_spans_hold_for_any_text(chance: Any, texts: list[str]) -> None:
    """Their offsets cut out their text; no blank at their ends, no cluster cut, no labelled letter lost."""
    runner, read, labelled = chance
    for aggregation in AGGREGATIONS:
        for text, found in zip(texts, runner.entities(texts, aggregation=aggregation), strict=True):
            clusters = {0} | {match.end() for match in regex.finditer(r"\X", text)}
            assert all(a.end <= b.start for a, b in pairwise(found.spans))
            for span in found.spans:
                assert span.text == text[span.start : span.end] and span.text.strip() == span.text != ""
                assert {span.start, span.end} <= clusters and 0 <= span.score <= 1
            assert found.coverage.read == (((0, len(text)),) if text else ())
            if aggregation in ("any", "max", "simple"):
                covered = {place for span in found.spans for place in range(span.start, span.end)}
                assert _labelled_letters(read, text, labelled) <= covered


def _labelled_letters(read: Any, text: str, labelled: set[int]) -> set[int]:
    encoding = read(text, return_offsets_mapping=True, split_special_tokens=True, truncation=False, verbose=False)
    return {
        place
        for token, (start, end) in zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
        if token in labelled and read.convert_ids_to_tokens(token).strip("▁")
        for place in range(start, end)
        if text[place].isalnum()
    }


def test_a_text_has_the_spans_that_it_has_alone(chance: Any) -> None:
    """Whatever it is run with, and over how many windows."""
    runner, _, _ = chance
    drawn = random.Random(2)
    texts = ["".join(drawn.choices([*ATOMS, " ", " ", " "], k=drawn.randrange(60))) for _ in range(6)]
    together = runner.entities(texts, aggregation="average")
    assert max(found.coverage.windows for found in together) > 2
    for text, one in zip(texts, together, strict=True):
        (other,) = runner.entities([text], aggregation="average")
        assert one.coverage == other.coverage and len(one.spans) == len(other.spans)
        for a, b in zip(one.spans, other.spans, strict=True):
            assert (a.start, a.end, a.label) == (b.start, b.end, b.label) and abs(a.score - b.score) < 1e-5


@pytest.mark.parametrize("family", ["wordpiece", "byte-level", "unigram", "llama"])
def test_windows_say_what_one_pass_says(shared: ModelRegistry, tmp_path: Path, family: str) -> None:
    """For a model that looks at each piece alone, exactly: in every aggregation, also for words of many pieces."""
    drawn = random.Random(3)
    text = " ".join(drawn.choices(["Smith", "Dr.", "mgkg" * 4, "(3.5)", "O'Brien", "北京"], k=60))
    size = len(taggers.tokenizer(family))
    by_id = {token: drawn.choice([0, 0, 1, 2, 3]) for token in range(len(taggers.SPECIAL), size)}
    wide = taggers.write(tmp_path / "wide", taggers.tokenizer(family, 4000), LABELS, by_id)
    narrow = taggers.write(tmp_path / "narrow", taggers.tokenizer(family, 16), LABELS, by_id)
    for aggregation in AGGREGATIONS:
        one, many = (
            ModelRunner(m, registry=shared).entities([text], aggregation=cast(Any, aggregation))[0]
            for m in (wide, narrow)
        )
        assert (one.coverage.windows, many.coverage.windows > 9) == (1, True)
        assert [(s.start, s.end, s.label) for s in one.spans] == [(s.start, s.end, s.label) for s in many.spans]


def test_texts_of_100_000_characters(shared: ModelRegistry, tmp_path: Path) -> None:
    """One word of 50,000, and many; to the end."""
    read = taggers.tokenizer("unigram", 512)
    by_id = {token: token % 2 for token in range(len(read))}
    runner = ModelRunner(taggers.write(tmp_path / "m", read, ["O", "NAME"], by_id), registry=shared)
    text = "a" * 50_000 + ", Smith" * 7_150
    (found,) = runner.entities([text])
    assert found.coverage.read == ((0, len(text)),) and found.coverage.tokens > 14_000 and len(text) > 100_000
    assert found.spans[-1].end == len(text) or not by_id[read("Smith")["input_ids"][-2]]
    assert all(span.text == text[span.start : span.end] for span in found.spans)


# Pipelines

BERT_TEXTS = [
    "The patient denies chest pain .",
    "Given aspirin 75mg/kg, (no fever).",
    "unheardof words: diabetes mellitus",
]
# Each word begins with a letter: of a piece that is only a blank, the pipeline makes a span.
ROBERTA_TEXTS = [
    "Smith saw John for fever",
    "given aspirin for asthma and fever",
    "Mary saw Jones for asthmatic fevers",
]


@pytest.mark.parametrize("aggregation", ["first", "max", "average", "simple"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
def test_aggregations_are_those_of_transformers(
    shared: ModelRegistry, tmp_path: Path, kind: str, aggregation: Any
) -> None:
    """Where its pipeline sees words: of a BERT everywhere, of a RoBERTa between blanks."""
    if kind == "bert":
        folder, texts = tiny.bert_token_classifier(tmp_path / "m", LABELS, seed=3), BERT_TEXTS
    else:
        read = taggers.tokenizer("byte-level", 64)
        size = tiny.SMALL | {"max_position_embeddings": 66, "vocab_size": len(read), "pad_token_id": 1}
        config = transformers.RobertaConfig(**size, **tiny.labelled(LABELS))
        folder = tiny.write(tmp_path / "m", transformers.RobertaForTokenClassification, config, read, seed=3)
        texts = ROBERTA_TEXTS
    model: Any = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    pipe = transformers.pipeline(
        "token-classification",
        model=model,
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        aggregation_strategy=aggregation,
    )
    found = ModelRunner(folder, registry=shared).entities(texts, aggregation=aggregation)
    assert sum(len(each.spans) for each in found) > 3
    for text, ours in zip(texts, found, strict=True):
        theirs = [(_behind_blanks(text, e["start"]), e["end"], e["entity_group"]) for e in cast(Any, pipe(text))]
        assert [(span.start, span.end, span.label) for span in ours.spans] == theirs
        scores = {e["end"]: e["score"] for e in cast(Any, pipe(text))}
        assert all(span.score <= scores[span.end] + 1e-5 for span in ours.spans)  # the lowest, not the mean


def _behind_blanks(text: str, start: int) -> int:
    return start + len(text[start:]) - len(text[start:].lstrip())


# Options


def _word_tagger(folder: Path, labels: Sequence[str], by_piece: dict[str, str], **options: Any) -> Path:
    """A WordPiece tagger with labels for some pieces."""
    read = taggers.tokenizer("wordpiece", 32)
    by_id = {read.convert_tokens_to_ids(piece): labels.index(label) for piece, label in by_piece.items()}
    assert read.unk_token_id not in by_id
    return taggers.write(folder, read, labels, cast(Any, by_id), **options)


PIECES = {"Jones": "B-PER", "##s": "I-PER", "fever": "B-DRUG", "aspirin": "B-DRUG"}
KINDS = ["O", "B-PER", "I-PER", "B-DRUG", "I-DRUG"]


def test_the_default_label_of_a_word_is_said(shared: ModelRegistry, tmp_path: Path) -> None:
    """The first piece's; for de-identification any piece's; the entry's own; and the caller's before all."""
    folder = str(_word_tagger(tmp_path / "m", KINDS, PIECES))
    text = ["Dr. Smiths saw Jones"]  # ##s alone is labelled

    def found(name: str, task: str = "ner", **options: Any) -> list[str]:
        return [span.text for span in ModelRunner(name, registry=shared).run(task, text, **options)[0].spans]

    assert taggers.tokenizer("wordpiece").tokenize("Smiths")[-1] == "##s"
    shared.register("tagger", "clinical", model_path=folder, task="ner")
    shared.register("deid", "clinical", model_path=folder, task="deid")
    shared.register("first", "clinical", model_path=folder, task="deid", aggregation="first")
    assert found(folder) == found("tagger") == found("first") == ["Jones"]
    assert found(folder, "deid") == found("deid") == found("deid", "deid") == ["Smiths", "Jones"]
    with pytest.raises(RequestError, match=r"'tagger' has the task 'ner', so it may leave names.*\n.*\n.*labels=\["):
        found("tagger", "deid")
    assert found("tagger", "deid", labels=["PER"]) == ["Smiths", "Jones"]
    assert found("first", "deid") == ["Jones"] and found("tagger", aggregation="any") == ["Smiths", "Jones"]
    assert found("tagger", aggregation="simple") == ["s", "Jones"]


def test_labels_and_a_threshold_choose_spans(shared: ModelRegistry, tmp_path: Path) -> None:
    """A span below the threshold is left out; a label that the model lacks is named."""
    folder = _word_tagger(tmp_path / "m", KINDS, PIECES, certainty=0.5)
    runner = ModelRunner(folder, registry=shared)
    text = ["fever in Jones aspirin"]
    every = runner.entities(text)[0].spans
    assert [span.label for span in every] == ["DRUG", "PER", "DRUG"]
    assert runner.entities(text, labels=["DRUG"])[0].spans == [every[0], every[2]]
    with pytest.raises(RequestError, match="at least one label"):
        runner.entities(text, labels=[])
    assert runner.entities(text, threshold=every[0].score)[0].spans == every
    assert runner.entities(text, threshold=every[0].score + 1e-3)[0].spans == []
    with pytest.raises(RequestError, match=r"has no label 'DRUGS'. .*'DRUG'.*\nIts labels: PER, DRUG"):
        runner.entities(text, labels=["DRUGS"])


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"threshold": 1.5}, "threshold must be a number from 0 to 1, not 1.5"),
        ({"threshold": -0.1}, "threshold must be a number from 0 to 1"),
        ({"threshold": float("nan")}, "threshold must be a number from 0 to 1, not nan"),
        ({"threshold": True}, "threshold must be a number"),
        ({"threshold": "0.5"}, "threshold must be a number"),
        ({"labels": "DATE"}, r"labels must be a list of labels, not str.\nWrite it as: labels=\['DATE'\]"),
        ({"labels": [1]}, "labels must be a list of labels"),
        ({"aggregation": "fist"}, "aggregation must be one of 'first', .*'first'"),
        ({"aggregation": 1}, "aggregation must be one of"),
        ({"allow_special_tokens": 1}, "allow_special_tokens must be True or False"),
    ],
)
def test_an_option_that_cannot_be_used_is_refused(registry: ModelRegistry, options: Any, why: str) -> None:
    """Before anything is loaded."""
    with pytest.raises(RequestError, match=why):
        ModelRunner("acme/not-there", registry=registry).entities(["a"], **options)


# Words


@pytest.mark.parametrize("family", taggers.FAMILIES)
def test_words_of_the_caller_are_read_as_they_are(shared: ModelRegistry, tmp_path: Path, family: str) -> None:
    """The first piece of each word decides, as in training; spans say which words, and where in the joined text."""
    words = ["Seen", "by", "Smith-Jones", "Mary", ",", "10/12/2080", "", " x "]
    read = taggers.tokenizer(family, 16)
    front = " " if family in ("byte-level", "o200k") else ""

    def first(word: str) -> int:
        ids: list[int] = read([front + word], is_split_into_words=True, add_special_tokens=False)["input_ids"]
        return ids[0]

    by_id = {first(word): label for word, label in (("Smith-Jones", 1), ("Mary", 2), ("10/12/2080", 3))}
    expected = {number for number, word in enumerate(words) if word.strip() and by_id.get(first(word))}
    runner = ModelRunner(taggers.write(tmp_path / "m", read, LABELS, by_id), registry=shared)
    found = runner.entities([words, words * 4, [], ["Seen"], "Seen"])
    spans = cast("list[WordSpan]", found[0].spans)
    assert {n for span in spans for n in range(span.first_word, span.last_word + 1)} == expected >= {2, 3, 5}
    joined = " ".join(words)
    for span in spans:
        named = " ".join(words[span.first_word : span.last_word + 1])
        assert span.text == joined[span.start : span.end] == named.strip()
    assert found[1].coverage.windows > 1 and len(found[1].spans) == 4 * len(spans)
    assert found[0].coverage.read == ((0, len(joined)),) and found[2].spans == [] and found[2].coverage.tokens == 0
    assert found[0].to_dict()["spans"][0].keys() >= {"first_word", "last_word"}


def test_words_that_cannot_be_used_are_refused(shared: ModelRegistry, tmp_path: Path) -> None:
    """By their position, never by what they are."""
    runner = ModelRunner(_word_tagger(tmp_path / "m", KINDS, PIECES), registry=shared)
    for texts, why in (
        ([["a"], ["b", 5]], "Text 2 is a list of words, of which word 2 must be text, not int"),
        ([[["a"]]], "Text 1 is a list of words, of which word 1 must be text, not list"),
        ([5], "Text 1 must be text, not int"),
        ([["a", "\ud800"]], "Text 1 is not valid Unicode"),
        ([["a"], ["b", "Seen by Dr. Smith."]], "Text 2 is a list of words, but its item 2 has white space in it"),
        ([("Title", "An\u00a0abstract")], "Text 1 is a list of words, but its item 2 has white space in it"),
        ("fever", "Texts must be a list of texts"),
    ):
        with pytest.raises(RequestError, match=why):
            runner.entities(cast(Any, texts))


def test_an_entrys_word_pattern_splits_its_texts(shared: ModelRegistry, tmp_path: Path) -> None:
    """A date is one word with one label, as the model was trained; what the pattern leaves out is not read."""
    read = taggers.tokenizer("wordpiece", 16)
    first = read(["10/12/2080"], is_split_into_words=True, add_special_tokens=False)["input_ids"][0]
    folder = str(taggers.write(tmp_path / "m", read, ["O", "U-DATE"], {first: 1}))
    text = "Seen 10/12/2080, " * 5
    pattern = r"\d+(?:[-./]\d+)*|\w+|[^\w\s]"
    shared.register("split", "clinical", model_path=folder, task="deid", word_pattern=pattern)
    shared.register("whole", "clinical", model_path=folder, task="deid")
    (found,) = ModelRunner("split", registry=shared).entities([text])
    assert [span.text for span in found.spans] == ["10/12/2080"] * 5 and found.coverage.windows > 1
    assert all(span.text == text[span.start : span.end] for span in found.spans)
    assert not any(isinstance(span, WordSpan) for span in found.spans)
    assert "10/12/2080" not in {s.text for s in ModelRunner("whole", registry=shared).entities([text])[0].spans}
    shared.register("part", "clinical", model_path=folder, task="deid", word_pattern=r"\d+(?:[-./]\d+)*")
    assert ModelRunner("part", registry=shared).entities(["Seen 10/12/2080 ok"])[0].coverage.read == ((5, 15),)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        (r"(?:a+)+$", "takes too long"),
        (r"(\w+\s?)*$", "also matches the empty text"),
        (r"(", "is not a regular expression"),
        (r"a*", "also matches the empty text"),
    ],
)
def test_a_word_pattern_that_cannot_be_used_is_refused(registry: ModelRegistry, pattern: str, why: str) -> None:
    """When it is registered."""
    with pytest.raises(RequestError, match=f"word_pattern of model 'm' {why}.*\n.*word_pattern='"):
        registry.register("m", "clinical", model_class="a.b:C", word_pattern=pattern)


# Tokenizers without offsets


def test_offsets_are_found_for_tokenizers_that_give_none(shared: ModelRegistry, tmp_path: Path) -> None:
    """Of bytes, and of words of a tokenizer written in Python."""
    labels, folder, other = ["O", "NAME"], tmp_path / "bytes", taggers.tokenizer("wordpiece", 64)
    read = transformers.ByT5Tokenizer(model_max_length=64)
    by_id = dict.fromkeys(read("Smit", add_special_tokens=False)["input_ids"], 1)
    taggers.write(folder, other, labels, by_id, rows=400)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    read.save_pretrained(folder)
    (found,) = ModelRunner(folder, registry=shared).entities(["Dr.Smith (José), 北京"], aggregation="simple")
    assert [span.text for span in found.spans] == ["Smit"]
    source, folder = standins.biogpt(tmp_path / "source"), tmp_path / "moses"
    taggers.write(folder, other, labels, dict.fromkeys(range(200), 1))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    for file in ("vocab.json", "merges.txt"):
        (folder / file).write_text((source / file).read_text())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BioGptTokenizer", "model_max_length": 64}')
    runner = ModelRunner(folder, registry=shared)
    (found,) = runner.entities(["Dr.Smith (3.5)"])
    assert [span.text for span in found.spans] == ["Dr.Smith (3.5)"]
    assert [span.text for span in runner.entities([["Dr.", "Smith"]])[0].spans] == ["Dr. Smith"]


def test_nothing_of_a_text_is_told(shared: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not by an error, its causes or a log; whatever is wrong."""
    canary = "Zanzibar4711"
    caplog.set_level(logging.DEBUG)
    folder = str(_word_tagger(tmp_path / "m", KINDS, PIECES))
    shared.register("short", "clinical", model_path=folder, long_input="error")
    shared.register("slow", "clinical", model_path=folder, word_pattern=r"(?:\w+ ?)+x")
    for name, texts in (
        ("short", [canary * 50]),
        ("short", [[canary, 5]]),
        ("short", [canary + "\ud800"]),
        ("slow", [canary + " nothing" * 4]),
    ):
        try:
            ModelRunner(name, registry=shared).entities(cast(Any, texts))
        except MedVLLMError as error:
            chain: BaseException | None = error
            while chain is not None:
                assert canary not in str(chain) and canary not in repr(chain)
                chain = chain.__cause__ or chain.__context__
    assert canary not in caplog.text


def test_a_text_without_tokens_has_no_spans(shared: ModelRegistry, tmp_path: Path) -> None:
    """Where the tokenizer adds none either: alone or among others."""
    read = taggers.tokenizer("byte-level", 64)
    read.backend_tokenizer.post_processor = None
    runner = ModelRunner(taggers.write(tmp_path / "m", read, ["O", "NAME"], {9: 1}), registry=shared)
    given: list[list[Any]] = [[""], ["", "fever"], [[]], [[""], ["fever"]]]
    for texts in given:
        assert runner.entities(texts)[0].spans == []
