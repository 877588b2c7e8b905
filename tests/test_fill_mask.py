"""fill_mask: the pieces and probabilities of transformers' pipeline, with names that tell them apart."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import pipeline

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.reading.commands import find_commands
from medvllm.engine.model_runner.reading.windows import split_into_windows
from medvllm.errors import MedVLLMError, RequestError
from tests.support import kinds, standins, tiny

MAKERS: dict[str, Any] = {
    "wordpiece": tiny.bert_masked_lm,
    "byte-level": tiny.roberta_masked_lm,
    "rows without a piece": lambda folder: kinds.write(folder, "BertForMaskedLM", vocab_size=tiny.BYTES + 40),
}
TEXTS = ["the [MASK] was given [MASK] for fever", "chest [MASK]", "é[MASK] 日本"]


@pytest.mark.parametrize("kind", MAKERS)
def test_pieces_and_probabilities_are_those_of_the_pipeline(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """Of each gap, in the same order; each has its own name, and none is empty."""
    folder = MAKERS[kind](tmp_path / "m")
    result = ModelRunner(folder, registry=registry).fill_mask(TEXTS, top_k=150)
    filler: Any = pipeline("fill-mask", model=str(folder), device="cpu")
    mask = filler.tokenizer.mask_token
    for text, gaps in zip(TEXTS, result, strict=True):
        theirs = filler(text.replace("[MASK]", mask), top_k=150)
        for fills, expected in zip(gaps, theirs if isinstance(theirs[0], list) else [theirs], strict=True):
            known = [each for each in expected if filler.tokenizer.convert_ids_to_tokens(each["token"]) is not None]
            shared = min(len(known), len(fills))
            assert shared > 100
            assert [fill.score for fill in fills[:shared]] == pytest.approx(
                [each["score"] for each in known[:shared]], abs=1e-6
            )
            assert {fill.text for fill in fills[:shared]} <= {each["token_str"] for each in expected}
            names = [fill.token for fill in fills]
            assert all(names) and len(set(names)) == len(names)


def test_targets_are_scored_among_all_pieces(registry: ModelRegistry, tmp_path: Path) -> None:
    """As the pipeline scores them: by name, or as a text of one piece; the best first, all of them."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    runner = ModelRunner(folder, registry=registry)
    targets = ["aspirin", "ALS", "##x", "fever", "the", "and", "of", "fever "]
    [[fills]] = runner.fill_mask(["given [MASK] daily"], targets=targets)
    filler: Any = pipeline("fill-mask", model=str(folder), device="cpu")
    theirs = filler("given [MASK] daily", targets=targets[:-1], top_k=7)
    assert [fill.token for fill in fills] == [filler.tokenizer.convert_ids_to_tokens(each["token"]) for each in theirs]
    assert [fill.score for fill in fills] == pytest.approx([each["score"] for each in theirs], abs=1e-6)
    [[best]] = runner.fill_mask(["given [MASK] daily"], targets=tuple(targets), top_k=2)
    assert best == fills[:2]
    bytes_folder = tiny.roberta_masked_lm(tmp_path / "b")
    [[pieces]] = ModelRunner(bytes_folder, registry=registry).fill_mask(["a[MASK]"], targets=["a", " ", "Ġ", "b"])
    assert {fill.token for fill in pieces} == {"a", "Ġ", "b"}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["fever", "secretive"], "Target 2 has 9 word pieces in the vocabulary, and a gap is for one"),
        (["日本"], "Target 1 has 2 word pieces|Target 1 is not in the vocabulary"),
        (["😀"], "Target 1 is not in the vocabulary"),
        ([" "], "Target 1 is empty in the vocabulary"),
        ([""], "Target 1 is empty"),
        (["a", 3], "Target 2 must be text, not int"),
        ("fever", "targets must be a list of texts, not one text"),
        (3, "targets must be a list of texts, not int"),
        (["secret\udcff"], "not valid Unicode"),
    ],
)
def test_a_target_that_is_not_one_piece_is_refused(
    registry: ModelRegistry, tmp_path: Path, targets: Any, message: str
) -> None:
    """Never its first piece, as the pipeline takes it, and never [UNK]. The error does not repeat it."""
    runner = ModelRunner(tiny.bert_masked_lm(tmp_path / "m"), registry=registry)
    with pytest.raises(RequestError, match=message) as caught:
        runner.fill_mask(["a [MASK]"], targets=targets)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("kind", MAKERS)
def test_other_special_tokens_in_a_text_are_text(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """The gap is one. With allow_special_tokens, all are, as in the pipeline."""
    folder = MAKERS[kind](tmp_path / "m")
    runner = ModelRunner(folder, registry=registry)
    tokenizer = registry.load_tokenizer(folder)
    text = f"the {tokenizer.sep_token} was {tokenizer.cls_token} [MASK]{tokenizer.pad_token}"
    before = tokenizer.backend_tokenizer.to_str()
    plain, allowed = runner.fill_mask([text]), runner.fill_mask([text], allow_special_tokens=True)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert plain[0].coverage.tokens > allowed[0].coverage.tokens
    assert plain[0].coverage.tokens <= len(ids) and plain[0].coverage.read == ((0, len(text)),)
    filler: Any = pipeline("fill-mask", model=str(folder), device="cpu")
    theirs = filler(text.replace("[MASK]", tokenizer.mask_token), top_k=5)
    assert allowed[0][0][0].score == pytest.approx(theirs[0]["score"], abs=1e-6)
    assert len(plain[0]) == 1 and tokenizer.backend_tokenizer.to_str() == before


def test_a_text_with_reserved_code_points_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """It could be read as a gap that nobody wrote."""
    runner = ModelRunner(tiny.bert_masked_lm(tmp_path / "m"), registry=registry)
    with pytest.raises(RequestError, match=r"Text 2 contains U\+FDD0, which Unicode reserves"):
        runner.fill_mask(["a [MASK]", "secret \ufdd04\ufdd1 [MASK]"])


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> list[ModelRunner]:
    """Runners of a WordPiece and of a byte-level model."""
    folder, registry = tmp_path_factory.mktemp("fill"), ModelRegistry()
    made = [tiny.bert_masked_lm(folder / "wordpiece"), tiny.roberta_masked_lm(folder / "bytes")]
    return [ModelRunner(each, registry=registry) for each in made]


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.tuples(st.text(max_size=25), st.text(max_size=25)), min_size=1, max_size=4))
def test_any_text_gets_an_answer_or_an_error_of_ours(runners: list[ModelRunner], texts: list[tuple[str, str]]) -> None:
    """And the answer is that of the text alone."""
    for runner in runners:
        written = ["[MASK]".join(parts) for parts in texts]
        try:
            result = runner.fill_mask(written)
        except MedVLLMError:
            continue
        for text, gaps in zip(written, result, strict=True):
            [alone] = runner.fill_mask([text])
            for fills, expected in zip(gaps, alone, strict=True):
                scores = [fill.score for fill in fills]
                assert scores == pytest.approx([fill.score for fill in expected], abs=1e-5)
                assert scores == sorted(scores, reverse=True) and all(fill.token for fill in fills)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """A WordPiece, a byte-level and a Python tokenizer."""
    folder, registry = tmp_path_factory.mktemp("tokenizers"), ModelRegistry()
    made = [tiny.bert_masked_lm(folder / "a"), tiny.roberta_masked_lm(folder / "b"), standins.biogpt(folder / "c")]
    return [registry.load_tokenizer(each) for each in made]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_stand_ins_are_read_as_the_library_reads_special_tokens(tokenizers: list[Any], data: st.DataObject) -> None:
    """Written for all special tokens of a text, they give the library's ids; the tokenizer stays as it is."""
    tokenizer = data.draw(st.sampled_from(tokenizers))
    plain = st.text(st.characters(codec="utf-8"), max_size=8)
    parts = data.draw(st.lists(st.one_of(st.sampled_from(sorted(tokenizer.all_special_tokens)), plain), max_size=6))
    text, before = "".join(parts), len(tokenizer)
    commands = find_commands(tokenizer)
    windows, _ = split_into_windows(
        commands.tokenizer, [commands.write(text)], "window", allow_special_tokens=commands.allow_special_tokens
    )
    expected = tokenizer(text, verbose=False)["input_ids"]
    if len(windows) == 1:
        assert commands.read(windows)[0].input_ids == expected
    assert len(tokenizer) == before
