"""Tokenizers: the entry's casing and length, and what is refused."""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import (
    AutoTokenizer,
    BertTokenizer,
    ByT5Tokenizer,
    CanineConfig,
    CanineModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import LoadError, WeightsMismatchError
from tests.support import tiny
from tests.support.loopback import LoopbackHub


@pytest.mark.parametrize("files", ["vocab_only", "full"])
@pytest.mark.parametrize("lower", [False, True])
def test_casing_follows_the_entry(registry: ModelRegistry, tmp_path: Path, files: Any, lower: bool) -> None:
    """Whatever the files say, or do not say: left to itself, a vocab.txt is lowercased."""
    folder = tiny.bert_masked_lm(tmp_path / "m", tokenizer_files=files, do_lower_case=not lower and files == "full")
    if not lower:
        # Cased words must be in the vocabulary for the outcome to show.
        tiny.bert_masked_lm(tmp_path / "cased", tokenizer_files="vocab_only")
        (folder / "vocab.txt").write_text((tmp_path / "cased" / "vocab.txt").read_text())
        if files == "vocab_only":
            assert AutoTokenizer.from_pretrained(folder).tokenize("ALS") == ["als"]
    registry.register("m", "clinical", model_path=str(folder), do_lower_case=lower)
    tokenizer = registry.load_tokenizer("m")
    assert tokenizer.tokenize("ALS") == (["als"] if lower else ["ALS"])
    assert tokenizer.tokenize("Aspirin") == (["aspirin"] if lower else ["Aspirin"])


@pytest.mark.parametrize("files", ["vocab_only", "tokenizer_json", "empty_config"])
def test_a_cased_vocabulary_is_not_lowercased_where_nothing_says_so(
    registry: ModelRegistry, tmp_path: Path, files: str
) -> None:
    """Where transformers' default would lowercase it in silence, also past what a tokenizer.json alone says."""
    folder = tiny.bert_masked_lm(tmp_path / "m", tokenizer_files="full")
    if files == "tokenizer_json":
        AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    (folder / "tokenizer_config.json").unlink()
    if files == "empty_config":
        (folder / "tokenizer_config.json").write_text("{}")
    assert AutoTokenizer.from_pretrained(folder).tokenize("Aspirin") == ["aspirin"]
    assert registry.load_tokenizer(folder).tokenize("Aspirin café") == ["Aspirin", "café"]
    uncased = tiny.bert_masked_lm(tmp_path / "u", tokenizer_files="vocab_only", do_lower_case=True)
    assert registry.load_tokenizer(uncased).tokenize("Aspirin") == ["aspirin"]


def test_files_that_lowercase_a_cased_vocabulary_are_followed_with_a_warning(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is what their authors said; the log says what it costs."""
    folder = tiny.bert_masked_lm(tmp_path / "m", tokenizer_files="full")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert registry.load_tokenizer(folder).tokenize("Aspirin") == ["aspirin"]
    assert "lowercases, as its files say, but its vocabulary is cased" in caplog.text


def test_accents_follow_the_entry(registry: ModelRegistry, tmp_path: Path) -> None:
    """Kept or stripped apart from the casing."""
    folder = tiny.bert_masked_lm(tmp_path / "m", tokenizer_files="vocab_only")
    for name, strip in (("kept", False), ("stripped", True)):
        registry.register(name, "clinical", model_path=str(folder), do_lower_case=True, strip_accents=strip)
    assert registry.load_tokenizer("kept").tokenize("café") == ["café"]
    assert registry.load_tokenizer("stripped").tokenize("café") == ["c", "##a", "##f", "##e"]


@pytest.mark.parametrize(
    ("make", "stated", "expected"),
    [
        (tiny.bert_masked_lm, None, 64),
        (tiny.bert_masked_lm, 32, 32),
        (tiny.bert_masked_lm, 512, 64),
        (tiny.roberta_masked_lm, None, 64),  # of 66 position embeddings, two stand before the first token
        (tiny.gpt2_causal_lm, None, 64),
    ],
)
def test_the_length_is_what_the_model_can_take(
    registry: ModelRegistry, tmp_path: Path, make: Any, stated: int | None, expected: int
) -> None:
    """Never transformers' 1e30; the entry may say less, not more."""
    folder = make(tmp_path / "m")
    (folder / "tokenizer_config.json").write_text("{}") if make is tiny.bert_masked_lm else None
    registry.register("m", "generic", model_path=str(folder), max_length=stated)
    assert registry.load_tokenizer("m").model_max_length == expected


def test_an_empty_vocabulary_is_an_error(registry: ModelRegistry, tmp_path: Path) -> None:
    """Every word would be [UNK], without a word from the library. The model itself still loads."""
    folder = tiny.bert_masked_lm(tmp_path / "m", tokenizer_files="none")
    with pytest.raises(WeightsMismatchError, match="has no vocabulary.*\n.*needs a vocab.txt"):
        registry.load_tokenizer(folder)
    assert registry.load_model(folder)


def test_a_damaged_tokenizer_is_an_error_of_ours(registry: ModelRegistry, tmp_path: Path) -> None:
    """Not a Rust panic or a bare Exception."""
    folder = tiny.gpt2_causal_lm(tmp_path / "m")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(LoadError, match="tokenizer of model"):
        registry.load_tokenizer(folder)


def test_the_guarded_tokenizer_is_what_it_was(registry: ModelRegistry, tmp_path: Path) -> None:
    """An instance of its class; one object a name; saved, pickled and copied like any other."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    tokenizer = registry.load_tokenizer(folder)
    assert isinstance(tokenizer, BertTokenizer) and type(tokenizer).__name__ == "BertTokenizer"
    assert registry.load_tokenizer(folder) is tokenizer
    text = "Patient denies chest pain"
    copies: list[PreTrainedTokenizerBase] = [pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)]
    tokenizer.save_pretrained(tmp_path / "saved")
    copies.append(AutoTokenizer.from_pretrained(tmp_path / "saved"))
    for other in copies:
        assert other is not tokenizer
        assert other(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert all(type(other) is type(tokenizer) for other in copies[:2])


def test_a_casing_that_the_vocabulary_does_not_have_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Cased, said of an uncased vocabulary: every capitalised word would be [UNK]."""
    folder = tiny.bert_masked_lm(tmp_path / "m", do_lower_case=True)
    registry.register("m", "clinical", model_path=str(folder), do_lower_case=False)
    with pytest.raises(LoadError, match="has no capital letter.*\n.*do_lower_case=True"):
        registry.load_tokenizer("m")


def test_an_entry_never_gets_the_tokenizer_of_a_direct_load(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path
) -> None:
    """The same repository, loaded directly and then registered as one whose text is lowercased."""
    hub.add("acme/enc", tiny.bert_encoder(tmp_path / "m", tokenizer_files="vocab_only"))
    assert registry.load_tokenizer("acme/enc").tokenize("Aspirin") == ["Aspirin"]
    registry.register("acme/enc", "clinical", do_lower_case=True)
    assert registry.load_tokenizer("acme/enc").tokenize("Aspirin") == ["aspirin"]
    assert registry.load_tokenizer("hf://acme/enc").tokenize("Aspirin") == ["Aspirin"]


def test_a_lease_has_the_tokenizer_whatever_class_was_chosen(registry: ModelRegistry, tmp_path: Path) -> None:
    """Also where the checkpoint names an architecture that nobody knows."""
    folder = tiny.bert_encoder(tmp_path / "m")
    tiny.edit_config(folder, architectures=["MyBert"])
    with registry.lease(folder, model_class="transformers:BertModel") as lease:
        assert lease.tokenizer.tokenize("fever") == ["fever"]


def _byte_level(folder: Path) -> Path:
    return tiny.roberta_masked_lm(folder)


def _unigram(folder: Path) -> Path:
    """A tokenizer of the kind of XLM-R and DeBERTa."""
    tiny.bert_encoder(folder, tokenizer_files="none")
    pieces = [("<pad>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -1.0) for word in tiny.WORDS)]
    backend = Tokenizer(models.Unigram(pieces, unk_id=1))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("fact", ["do_lower_case", "strip_accents"])
@pytest.mark.parametrize("make", [_byte_level, _unigram])
def test_casing_without_effect_is_an_error(registry: ModelRegistry, tmp_path: Path, make: Any, fact: str) -> None:
    """For a tokenizer that knows nothing of it; that it keeps capitals and accents is true."""
    folder = make(tmp_path / "m")
    stated: dict[str, Any] = {fact: True}
    registry.register("m", "clinical", model_path=str(folder), **stated)
    with pytest.raises(LoadError, match=f"{fact}=True, which has no effect.*\n.*{fact}=False"):
        registry.load_tokenizer("m")
    kept: dict[str, Any] = {"do_lower_case": False, "strip_accents": False}
    registry.register("m", "clinical", model_path=str(folder), replace=True, **kept)
    assert registry.load_tokenizer("m")("fever")["input_ids"]


def test_accents_that_the_tokenizer_strips_anyway_are_an_error(registry: ModelRegistry, tmp_path: Path) -> None:
    """Where the entry says that they are kept."""
    folder = tiny.bert_masked_lm(tmp_path / "m", do_lower_case=True)
    fast: Any = PreTrainedTokenizerFast
    for number, normalizer in enumerate((normalizers.StripAccents(), normalizers.Replace("é", "e"))):
        backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(tiny.VOCABULARY)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.Sequence([normalizers.NFD(), normalizer, normalizers.NFC(), normalizer])
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        fast(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
        registry.register(f"m{number}", "clinical", model_path=str(folder), strip_accents=False)
        with pytest.raises(LoadError, match="strips accents, but the entry says strip_accents=False"):
            registry.load_tokenizer(f"m{number}")


def _added(folder: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["covid", "mrna"])
    tokenizer.save_pretrained(folder)


def _longer(folder: Path) -> None:
    with (folder / "vocab.txt").open("a", encoding="utf-8") as file:
        file.write("covid\nmrna\n")


def _added_file(folder: Path) -> None:
    (folder / "added_tokens.json").write_text(json.dumps({"covid": len(tiny.VOCABULARY) + 5}))


def _another_vocabulary(folder: Path) -> None:
    tiny.edit_config(folder, vocab_size=60)


@pytest.mark.parametrize("spoil", [_added, _longer, _added_file, _another_vocabulary])
def test_ids_beyond_the_embeddings_are_refused(registry: ModelRegistry, tmp_path: Path, spoil: Any) -> None:
    """With both numbers, before a text with such a word comes."""
    folder = tiny.bert_encoder(tmp_path / "m")
    spoil(folder)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    with pytest.raises(WeightsMismatchError, match=f"ids up to [0-9]+, but .*{rows} embeddings"):
        registry.load_tokenizer(folder)


def test_a_pad_token_may_lie_beyond_the_embeddings(registry: ModelRegistry, tmp_path: Path) -> None:
    """It is masked; GPT-2 and Llama are often given one."""
    for make in (tiny.gpt2_causal_lm, tiny.llama_causal_lm):
        folder = make(tmp_path / make.__name__)
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
        tokenizer.save_pretrained(folder)
        assert registry.load_tokenizer(folder).pad_token_id == tiny.BYTES


def test_a_config_without_a_vocabulary_is_taken(registry: ModelRegistry, tmp_path: Path) -> None:
    """CANINE has a number for each character, and embeddings of none."""
    config = CanineConfig(**tiny.SMALL, num_hash_buckets=64, upsampling_kernel_size=2, local_transformer_stride=16)
    folder = tiny.write(tmp_path / "m", CanineModel, config, False)
    assert registry.load_tokenizer(folder).tokenize("fever") == ["fever"]


def test_bytes_have_no_casing(registry: ModelRegistry, tmp_path: Path) -> None:
    """Nor has any tokenizer of plain Python that is not told of it."""
    folder = tiny.bert_encoder(tmp_path / "m", tokenizer_files="none", config={"vocab_size": 500})
    tokenizer: Any = ByT5Tokenizer
    tokenizer().save_pretrained(folder)
    registry.register("m", "clinical", model_path=str(folder), do_lower_case=True)
    with pytest.raises(LoadError, match="do_lower_case=True, which has no effect"):
        registry.load_tokenizer("m")
    registry.register("m", "clinical", model_path=str(folder), do_lower_case=False, strip_accents=False, replace=True)
    assert registry.load_tokenizer("m")("Fièvre")["input_ids"]


def test_a_text_has_the_same_tokens_each_time(registry: ModelRegistry, tmp_path: Path) -> None:
    """Also where the file still says that merges are to be left out at random, as in a training."""
    folder = tiny.roberta_masked_lm(tmp_path / "m")
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    for merged in ("as", "asp"):  # in place of two bytes that no text here has
        unused = next(piece for piece in vocabulary if len(piece) == 1 and ord(piece) > 300)
        vocabulary[merged] = vocabulary.pop(unused)
    content["model"] |= {"merges": [["a", "s"], ["as", "p"]], "dropout": 0.5}
    file.write_text(json.dumps(content))
    plain: Any = AutoTokenizer.from_pretrained(folder)
    assert len({tuple(plain("asp as asp as asp as asp as")["input_ids"]) for _ in range(20)}) > 1
    tokenizer = registry.load_tokenizer(folder)
    content["model"]["dropout"] = None
    file.write_text(json.dumps(content))
    right = registry.load_tokenizer(folder)("asp as asp as asp as asp as")["input_ids"]
    assert all(tokenizer("asp as asp as asp as asp as")["input_ids"] == right for _ in range(20))
