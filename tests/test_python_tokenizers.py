"""Tokenizers that are written in Python: their windows are those of a fast tokenizer with the same tokens."""

from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import PreTrainedTokenizerBase

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.reading.windows import split_into_windows
from medvllm.engine.model_runner.word_list import join_words
from medvllm.errors import InputTooLongError
from tests.support import kinds, tiny

WORDS = " ".join(word for word in tiny.WORDS if word.isascii())
NOTE = f"{WORDS} " * 8
LENGTH = 64


class Unusual(transformers.ByT5Tokenizer):
    """A tokenizer that puts special tokens around a text in its own way."""

    def prepare_for_model(self, *args: Any, **kwargs: Any) -> Any:
        return super().prepare_for_model(*args, **kwargs)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PreTrainedTokenizerBase]:
    """A BERT's tokenizer, written in Python and fast."""
    folder = tmp_path_factory.mktemp("tokenizers")
    (folder / "vocab.txt").write_text("\n".join(tiny.VOCABULARY))
    options: dict[str, Any] = {"do_lower_case": False, "model_max_length": LENGTH}
    return {
        "slow": transformers.BertTokenizerLegacy(  # type: ignore[no-untyped-call]
            str(folder / "vocab.txt"), **options
        ),
        "fast": transformers.BertTokenizer(str(folder / "vocab.txt"), **options),
    }


@pytest.mark.parametrize("policy", ["window", "truncate"])
@pytest.mark.parametrize(
    "text",
    [NOTE, "fever", "", NOTE[:200], ("aspirin for fever", NOTE), (WORDS[:40], "fever"), (WORDS[:90], NOTE * 3)],
    ids=["long", "short", "empty", "edge", "pair", "short pair", "long pair"],
)
def test_windows_are_those_of_a_fast_tokenizer(pairs: Any, text: Any, policy: str) -> None:
    """Ids, what each window counts, places in the text, coverage. Spans are found in single texts only."""
    for offsets in (False, True) if isinstance(text, str) else (False,):
        _check_equal(pairs, text, offsets, policy)


def _check_equal(pairs: Any, text: Any, offsets: bool, policy: str) -> None:
    slow, fast = (split_into_windows(pairs[kind], [text], policy, offsets=offsets) for kind in ("slow", "fast"))
    assert slow[1] == fast[1]
    for one, other in zip(slow[0], fast[0], strict=True):
        assert (one.input_ids, one.counted) == (other.input_ids, other.counted)
        assert one.types in ((), other.types)  # this class has none
        if offsets:  # of special tokens, nothing is said
            inside = [k for k, word in enumerate(other.words) if word is not None]
            assert [one.offsets[k] for k in inside] == [other.offsets[k] for k in inside]
            assert [k for k, word in enumerate(one.words) if word is not None] == inside


def test_a_pair_has_the_types_that_the_class_declares(pairs: Any, tmp_path: Path) -> None:
    """Also if transformers returns them only to who asks."""
    (tmp_path / "vocab.txt").write_text("\n".join(tiny.VOCABULARY))
    options: dict[str, Any] = {"do_lower_case": False, "model_max_length": LENGTH}
    japanese = transformers.BertJapaneseTokenizer(  # type: ignore[no-untyped-call]
        str(tmp_path / "vocab.txt"), **options
    )
    for text in (("aspirin for fever", "pain"), ("aspirin for fever", NOTE)):
        slow, fast = (split_into_windows(read, [text], "window")[0] for read in (japanese, pairs["fast"]))
        assert [(one.input_ids, one.types) for one in slow] == [(one.input_ids, one.types) for one in fast]


def test_lists_of_words_are_split_too(pairs: Any) -> None:
    """Each token knows its word, in every window."""
    words = join_words(NOTE.split())
    slow, fast = (split_into_windows(pairs[kind], [words], "window", offsets=True) for kind in ("slow", "fast"))
    assert slow[1] == fast[1] and slow[1][0].windows > 3
    assert [window.words for window in slow[0]] == [window.words for window in fast[0]]


def test_long_texts_have_the_answers_of_a_fast_tokenizer(registry: ModelRegistry, tmp_path: Path) -> None:
    """In every task that reads windows."""
    labels = {"tagger": ["O", "B-DRUG", "I-DRUG"], "judge": ["PRESENT", "ABSENT"], "ranker": ["LABEL_0"]}
    makers: dict[str, Any] = {
        "encoder": tiny.bert_encoder,
        "tagger": lambda folder: tiny.bert_token_classifier(folder, labels["tagger"]),
        **{
            kind: lambda folder, kind=kind: tiny.bert_sequence_classifier(folder, config=tiny.labelled(labels[kind]))
            for kind in ("judge", "ranker")
        },
    }
    facts: dict[str, Any] = {"judge": {"entity_markers": ["( ", " )"]}, "ranker": {"task": "rerank"}}
    for kind, make in makers.items():
        for family in ("slow", "fast"):
            folder = make(tmp_path / f"{kind}-{family}")
            if family == "slow":
                (folder / "tokenizer.json").unlink(missing_ok=True)
                (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizerLegacy"}')
            more = {"model_path": folder, "do_lower_case": False} | facts.get(kind, {})
            registry.register(f"{kind}-{family}", "clinical", **more)

    def ask(family: str) -> list[Any]:
        by_kind = {kind: ModelRunner(f"{kind}-{family}", registry=registry) for kind in makers}
        [judged] = by_kind["judge"].assertions([NOTE], [[(300, 307), (0, 3)]])
        return [
            by_kind["encoder"].embed([NOTE, "fever"]).vectors.tolist(),
            by_kind["tagger"].entities([NOTE, NOTE.split()]),
            [(found.label, found.coverage, found.score) for found in judged],
            by_kind["ranker"].rerank("aspirin for fever", [NOTE, "fever"]),  # whose types are another matter
        ]

    assert registry.load_tokenizer("encoder-slow").is_fast is False
    slow, fast = ask("slow"), ask("fast")
    assert slow[:3] == fast[:3] and {each.coverage.windows for each in slow[3]} == {1, 6}


def test_what_cannot_be_split_exactly_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Where the class puts special tokens around a text in its own way, or where the end of what is read is unknown."""
    unusual = Unusual(model_max_length=LENGTH)
    split_into_windows(unusual, ["fever"], "window")
    with pytest.raises(InputTooLongError, match=r"Text 1 has 101 tokens.*its Unusual cannot split.*\nShorten the text"):
        split_into_windows(unusual, ["x" * 100], "window")
    read = transformers.ByT5Tokenizer(model_max_length=LENGTH)
    [covered] = split_into_windows(read, ["é" * 100], "truncate")[1]
    assert covered.read == ((0, 32),) and covered.truncated  # half of the last one
    with pytest.raises(InputTooLongError, match="must not be split"):
        split_into_windows(read, ["é" * 100], "error")


def test_any_text_is_covered_whole(registry: ModelRegistry, tmp_path: Path) -> None:
    """By a tokenizer of bytes: each token counts once, and windows end inside of characters."""
    folder = kinds.write(tmp_path / "m", "T5EncoderModel", vocab_size=384)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / file).unlink(missing_ok=True)
    transformers.ByT5Tokenizer(model_max_length=LENGTH).save_pretrained(folder)
    text = "naïve é 日本 😀 " * 30
    [covered] = ModelRunner(folder, registry=registry).embed([text]).coverage
    assert covered.read == ((0, len(text)),) and covered.tokens == len(text.encode()) and covered.windows > 5
