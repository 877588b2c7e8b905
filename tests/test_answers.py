"""A text's answer is that of the text alone, whatever it is run with; what is no answer is an error of ours."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.inference.part import get_encoder
from medvllm.engine.model_runner.inference.queue import queue
from medvllm.errors import DeviceMemoryError, InputTooLongError, LoadError, MedVLLMError, RequestError
from tests.support import kinds, tiny
from tests.support.spread import spread

TEXTS = ["chest pain", "Patient denies fever and has no history of diabetes.", "a", "aspirin 75 mg daily"]


def _hidden(model: Any, text: str) -> torch.Tensor:
    """What plain transformers makes of one text."""
    inputs = dict(tiny.byte_tokenizer(kinds.LENGTH)(text, return_tensors="pt"))
    with torch.inference_mode():
        hidden: torch.Tensor = model(**inputs)[0][0]
    return hidden


def _plain(folder: Path, kind: str) -> Any:
    """The encoder as plain transformers loads it; of an encoder-decoder, what sentence-transformers takes."""
    model = getattr(transformers, kind.partition(" ")[0]).from_pretrained(folder).eval()
    return model.get_encoder() if kind in kinds.BY_ENCODER else model.base_model


@pytest.mark.parametrize("kind", spread([kind for kind in kinds.ALL if "Reformer" not in kind], 5))
def test_vectors_are_those_of_each_text_alone(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """Of every architecture, in batches of mixed lengths: the mean of what plain transformers gives, one by one."""
    folder = kinds.write(tmp_path / "m", kind, **({"max_position_embeddings": 200} if kind in kinds.SHORT else {}))
    registry.register("m", "generic", model_path=str(folder), pooling="mean")
    vectors = torch.from_numpy(ModelRunner("m", registry=registry).embed(TEXTS).vectors)
    plain = _plain(folder, kind)
    expected = torch.stack([_hidden(copy.deepcopy(plain), text).mean(0) for text in TEXTS])
    assert torch.allclose(vectors, expected, rtol=1e-4, atol=1e-5)


def _runs(lease: Any, part: Any) -> list[tuple[int, ...]]:
    """Keep the shapes of what a part of a model is given from now on."""
    shapes: list[tuple[int, ...]] = []
    part.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    return shapes


def test_padding_is_tried_once_and_only_where_it_is_needed(registry: ModelRegistry, tmp_path: Path) -> None:
    """Four tiny runs before the first batch of mixed lengths; none for a single text; none once it is known."""
    for kind in ("BertModel", "FNetModel"):
        runner = ModelRunner(kinds.write(tmp_path / kind, kind), registry=registry)
        with registry.lease(tmp_path / kind) as lease:
            shapes = _runs(lease, get_encoder(lease.model))
            runner.embed(["chest pain"])
            assert len(shapes) == 1
            before = queue.statistics().batches
            runner.embed(TEXTS)
            batches = queue.statistics().batches - before
            assert len(shapes) == 1 + 4 + batches and all(rows * length <= 111 for rows, length in shapes[1:5])
            runner.embed(TEXTS)
            assert len(shapes) == 5 + 2 * batches
        del lease
        registry.evict(tmp_path / kind)
        with registry.lease(tmp_path / kind) as lease:  # loaded again
            shapes = _runs(lease, get_encoder(lease.model))
            runner.embed(TEXTS)
            assert len(shapes) == batches


def test_a_model_that_was_changed_is_tried_again(registry: ModelRegistry, tmp_path: Path) -> None:
    """What was found with a module of the caller's own does not hold for the model as its files have it."""
    runner = ModelRunner(kinds.write(tmp_path / "m", "BertModel"), registry=registry)
    with registry.lease(tmp_path / "m") as lease:
        encoder = get_encoder(lease.model)
        encoder.embeddings.dropout = torch.nn.Identity()
        runner.embed(TEXTS)
    del lease, encoder
    registry.evict(tmp_path / "m")
    with registry.lease(tmp_path / "m") as lease:
        shapes, before = _runs(lease, get_encoder(lease.model)), queue.statistics().batches
        runner.embed(TEXTS)
        assert len(shapes) == 4 + queue.statistics().batches - before


def test_texts_of_one_length_share_a_batch_where_padding_is_not_borne(registry: ModelRegistry, tmp_path: Path) -> None:
    """Equal lengths need no padding."""
    runner = ModelRunner(kinds.write(tmp_path / "m", "FNetModel"), registry=registry)
    runner.embed(TEXTS)
    with registry.lease(tmp_path / "m") as lease:
        shapes = _runs(lease, get_encoder(lease.model))
        runner.embed(["abc", "a", "xyz", "b"])
    assert shapes == [(2, 5), (2, 3)]


def test_tags_and_fills_do_not_depend_on_padding(registry: ModelRegistry, tmp_path: Path) -> None:
    """A tagger and a masked language model whose layers mix padding in."""
    tagger = ModelRunner(kinds.write(tmp_path / "t", "ConvBertForTokenClassification"), registry=registry)
    assert [tags.to_dict() for tags in tagger.entities(TEXTS)] == [
        tagger.entities([text])[0].to_dict() for text in TEXTS
    ]
    filler = ModelRunner(kinds.write(tmp_path / "f", "FNetForMaskedLM"), registry=registry)
    gaps = [f"{text} [MASK]" for text in TEXTS]
    assert filler.fill_mask(gaps) == [filler.fill_mask([text])[0] for text in gaps]


ANSWERS: dict[str, tuple[str, Callable[[ModelRunner], Any]]] = {
    "BertModel": ("embed", lambda runner: runner.embed(TEXTS).vectors.tolist()),
    "BertForMaskedLM": ("fill-mask", lambda runner: runner.fill_mask(["pain [MASK]"])),
    "BertForTokenClassification": ("ner", lambda runner: runner.entities(TEXTS)),
    "T5ForConditionalGeneration": ("embed", lambda runner: runner.embed(TEXTS).vectors.tolist()),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_config_that_asks_for_tuples_gives_the_same_answers(
    registry: ModelRegistry, tmp_path: Path, kind: str
) -> None:
    """Every task, and the baseline: the form in which a model returns its numbers is no business of the caller's."""
    task, answer = ANSWERS[kind]
    folder = kinds.write(tmp_path / kind, kind)
    facts: Any = {"model_path": folder, "task": task, "pooling": "mean" if kind.startswith("T5") else None}
    registry.register(kind, "generic", **facts)
    runner = ModelRunner(kind, registry=registry)
    baseline, expected = runner.record_baseline().baseline, answer(runner)
    for field in ("return_dict", "torchscript", "output_hidden_states"):
        tiny.edit_config(folder, **{field: field != "return_dict"})
        registry.register(kind, "generic", **facts, baseline=baseline, replace=True)
        assert answer(runner) == expected and runner.check_baseline() == {}


@pytest.mark.parametrize("kind", ["DPRContextEncoder", "DPRQuestionEncoder"])
def test_a_dense_passage_retriever_gives_its_own_vectors(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """Those of the first token, when that is said; nobody is given a mean that its authors did not mean."""
    folder = kinds.write(tmp_path / "m", kind)
    with pytest.raises(RequestError, match=r"(?s)needs the vector of the first token.*pooling='cls'"):
        ModelRunner(folder, registry=registry).embed(TEXTS)
    registry.register("m", "generic", model_path=str(folder), pooling="cls")
    vectors = torch.from_numpy(ModelRunner("m", registry=registry).embed(TEXTS).vectors)
    plain = getattr(transformers, kind).from_pretrained(folder).eval()
    tokenizer = tiny.byte_tokenizer()
    with torch.inference_mode():
        expected = torch.cat([plain(**tokenizer(text, return_tensors="pt")).pooler_output for text in TEXTS])
    assert torch.allclose(vectors, expected, atol=1e-5)
    registry.register(
        "p", "generic", pooling="cls", model_path=str(kinds.write(tmp_path / "p", kind, projection_dim=8))
    )
    with pytest.raises(RequestError, match="with a projection, which ModelRunner does not support"):
        ModelRunner("p", registry=registry).embed(TEXTS)


def test_vectors_may_be_wider_than_the_config_says(registry: ModelRegistry, tmp_path: Path) -> None:
    """Reformer's are of both of its streams; the same text has the same vector each time."""
    runner = ModelRunner(kinds.write(tmp_path / "m", "ReformerModel"), registry=registry)
    vectors = torch.from_numpy(runner.embed(TEXTS).vectors)
    assert vectors.shape == (4, 64) and (runner.embed(TEXTS[::-1]).vectors[::-1] == vectors.numpy()).all()


def _ruined(folder: Path, value: float) -> Path:
    """A model one weight of which is no number, so that texts of 24 letters and more have no answer."""
    state = load_file(folder / "model.safetensors")
    name = next(name for name in state if name.endswith("position_embeddings.weight"))
    state[name][24] = value
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("BertModel", "embed"),
        ("BertForMaskedLM", "fill-mask"),
        ("BertForTokenClassification", "ner"),
        ("BertForTokenClassification", "deid"),
    ],
)
def test_what_is_no_number_is_no_answer(
    registry: ModelRegistry, tmp_path: Path, kind: str, task: str, value: float
) -> None:
    """A de-identifier of NaN does not say that there is nothing to hide; the error names the text's position."""
    runner = ModelRunner(_ruined(kinds.write(tmp_path / "m", kind), value), registry=registry)
    gap = " [MASK]" if task == "fill-mask" else ""
    assert runner.run(task, [f"pain{gap}"])
    with pytest.raises(LoadError, match=r"gives NaN or infinity for text 3, so there is no answer") as raised:
        runner.run(task, [f"{text}{gap}" for text in ("pain", "no fever", "a secret of thirty letters", "pain" * 15)])
    assert raised.value.position == 2 and "secret" not in str(raised.value)


def test_a_label_that_could_never_be_found_is_no_answer(registry: ModelRegistry, tmp_path: Path) -> None:
    """Its score is minus infinity, so that its share is a sound 0: the text would have nothing to hide."""
    folder = tiny.bert_token_classifier(tmp_path / "m", ["O", "B-NAME"])
    state = load_file(folder / "model.safetensors")
    state["classifier.bias"][1] = float("-inf")
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match="gives NaN or infinity for text 1"):
        ModelRunner(folder, registry=registry).entities(["pain"])


def _bare(folder: Path, kind: str) -> Path:
    """A checkpoint whose tokenizer adds no special tokens, as GPT-2's does not."""
    tokenizer = tiny.byte_tokenizer(64)
    tokenizer.backend_tokenizer.post_processor = None
    kinds.write(folder, kind)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_without_tokens_has_no_spans_and_no_vector(registry: ModelRegistry, tmp_path: Path) -> None:
    """Alone or among others: it does not matter how texts fall into batches."""
    tagger = ModelRunner(_bare(tmp_path / "t", "BertForTokenClassification"), registry=registry)
    for texts in ([""], ["", ""], ["fever", ""], [*["the patient denies fever"] * 50, ""]):
        tags = tagger.entities(texts)
        assert tags[-1].spans == [] and tags[-1].coverage.tokens == 0 and len(tags) == len(texts)
    registry.register("e", "generic", model_path=_bare(tmp_path / "e", "GPT2Model"), pooling="mean")
    encoder = ModelRunner("e", registry=registry)
    for texts in ([""], ["fever", "", ""], [*["the patient denies fever"] * 50, ""]):
        with pytest.raises(RequestError, match=f"Text {texts.index('') + 1} has no tokens, so it has no vector"):
            encoder.embed(texts)
    assert tagger.entities([]) == [] and encoder.embed([]).vectors.shape == (0, 32)
    filler = ModelRunner(_bare(tmp_path / "f", "BertForMaskedLM"), registry=registry)
    assert filler.fill_mask([]) == []


def test_a_pad_token_that_stands_in_a_text_is_told_by_the_text(registry: ModelRegistry, tmp_path: Path) -> None:
    """Where the embeddings lack it, which only a row that is padded may ignore."""
    folder = tiny.gpt2_causal_lm(tmp_path / "m")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    registry.register("m", "generic", model_path=folder, pooling="mean")
    with pytest.raises(RequestError, match=r"Text 2 contains token 261, .* 261 embeddings.\n.*'\[PAD\]'"):
        ModelRunner("m", registry=registry).embed(["fever", "no [PAD] fever"], allow_special_tokens=True)


@pytest.mark.parametrize("kind", ["GPT2Model", "LlamaModel", "BertModel"])
@pytest.mark.parametrize("padding", [{"pad_token": "[PAD]"}, {"pad_token": None}])
def test_the_padding_token_need_not_be_in_the_model(
    registry: ModelRegistry, tmp_path: Path, kind: str, padding: dict[str, Any]
) -> None:
    """One that was added and never given an embedding, or none at all: padding is hidden from the model anyway."""
    folder = kinds.write(tmp_path / "m", kind)
    registry.register("m", "generic", model_path=folder, pooling="mean")
    expected = torch.from_numpy(ModelRunner("m", registry=registry).embed(TEXTS).vectors)
    tokenizer = tiny.byte_tokenizer(kinds.LENGTH)
    if padding["pad_token"]:
        tokenizer.add_special_tokens(padding)
        assert tokenizer.pad_token_id == tiny.BYTES
    else:
        tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    registry.clear_cache()
    other = ModelRunner("m", registry=registry)
    assert torch.allclose(torch.from_numpy(other.embed(TEXTS).vectors), expected, atol=1e-5)


class Failing(transformers.BertModel):  # type: ignore[no-untyped-call]
    """A model whose code fails as it is told."""

    error: BaseException = RuntimeError()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("index out of range in self\nmore"), LoadError),
        (IndexError("index 5 is out of bounds"), LoadError),
        (KeyError("label"), LoadError),
        (AttributeError("'tuple' object has no attribute 'logits'"), LoadError),
        (AssertionError(), LoadError),
        (MemoryError(), DeviceMemoryError),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), DeviceMemoryError),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), DeviceMemoryError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (SystemExit(2), SystemExit),
    ],
)
def test_what_a_model_raises_is_an_error_of_ours(
    registry: ModelRegistry, tmp_path: Path, error: BaseException, expected: type[BaseException]
) -> None:
    """With the cause kept; but what ends the program ends it."""
    registry.register("m", "generic", model_path=str(kinds.write(tmp_path / "m", "BertModel")), model_class=Failing)
    Failing.error = error
    runner = ModelRunner("m", registry=registry)
    for call in (lambda: runner.embed(["secret"]), lambda: runner.record_baseline()):
        with pytest.raises(expected) as raised:
            call()
        if isinstance(raised.value, MedVLLMError):
            assert raised.value.__cause__ is (None if isinstance(error, MemoryError) else error)
            assert "'m'" in str(raised.value) and "secret" not in str(raised.value)


class PanicException(BaseException):
    """As Rust code raises it: no Exception, and of this name."""


@pytest.mark.parametrize("error", [PanicException("at 'secret'"), Exception("secret"), OverflowError("secret")])
def test_what_a_tokenizer_raises_names_the_text_and_not_its_words(
    registry: ModelRegistry, tmp_path: Path, error: BaseException
) -> None:
    """Its own message may quote what it could not read, so its error is not kept."""
    folder = kinds.write(tmp_path / "m", "BertForMaskedLM")
    runner = ModelRunner(folder, registry=registry)
    with registry.lease(folder) as lease:
        tokenizer: Any = lease.tokenizer

    def fail(text: Any, *args: Any, **kwargs: Any) -> Any:
        if "secret" in str(text):
            raise error
        return type(tokenizer)._encode_plus(tokenizer, text, *args, **kwargs)

    tokenizer._encode_plus = fail
    for task in ("embed", "fill-mask"):
        with pytest.raises(RequestError, match=f"could not read text 2: {type(error).__name__}") as raised:
            runner.run(task, ["a [MASK]", "secret [MASK]"], allow_special_tokens=True)
        assert "secret" not in str(raised.value)
        assert raised.value.__cause__ is None and raised.value.__context__ is None


def test_what_a_callers_own_texts_raise_is_the_callers(registry: ModelRegistry, tmp_path: Path) -> None:
    """A generator that reads from somewhere fails as it does everywhere."""

    def texts() -> Any:
        yield "a"
        raise ConnectionResetError("the database is gone")

    with pytest.raises(ConnectionResetError):
        ModelRunner(kinds.write(tmp_path / "m", "BertModel"), registry=registry).embed(texts())


def test_a_model_that_reads_no_texts_is_refused_by_name(registry: ModelRegistry, tmp_path: Path) -> None:
    """It says what it reads instead."""
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 3}
    folder = kinds.write(tmp_path / "m", "ViTModel", **sizes)
    with pytest.raises(RequestError, match="A ViTModel reads pixel_values, not text"):
        ModelRunner(folder, registry=registry).embed(["a"])


ARTICLES = [("Aspirin", "Given for pain and for fever."), ("Statins in old age", "No."), ("", "Chest pain."), ("A", "")]


def test_an_entry_of_two_inputs_takes_pairs(registry: ModelRegistry, tmp_path: Path) -> None:
    """Encoded as the tokenizer encodes pairs, in batches of mixed lengths, and pairs in the baseline."""
    folder = tiny.bert_encoder(tmp_path / "m")
    facts: dict[str, Any] = {"pooling": "cls", "inputs": ["title", "abstract"], "do_lower_case": False}
    registry.register("m", "generic", model_path=str(folder), task="embed", **facts)
    runner = ModelRunner("m", registry=registry)
    found = runner.embed([ARTICLES[0], list(ARTICLES[1]), *ARTICLES[2:]])
    plain: Any = transformers.BertModel.from_pretrained(folder)
    tokenizer = registry.load_tokenizer("m")
    with torch.inference_mode():
        # As lists: transformers leaves out an empty second text of a pair that is encoded alone.
        encoded = [tokenizer([first], [second], return_tensors="pt") for first, second in ARTICLES]
        expected = torch.cat([plain(**inputs).last_hidden_state[:, 0] for inputs in encoded])
    assert torch.allclose(torch.from_numpy(found.vectors), expected, atol=1e-5)
    assert [c.tokens for c in found.coverage] == [12, 17, 7, 1]
    entry = runner.record_baseline()
    assert all(len(case["inputs"]) == 2 and case["shape"] == [1, 32] for case in entry.baseline)
    assert runner.check_baseline() == {}


def test_a_long_second_text_is_read_whole_with_the_first_in_every_window(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    """Each token counts once; a first text that leaves no room is refused, and so is cutting where it is forbidden."""
    folder = tiny.bert_encoder(tmp_path / "m")
    facts: dict[str, Any] = {"model_path": str(folder), "inputs": ["title", "abstract"], "do_lower_case": False}
    registry.register("m", "generic", **facts, pooling="mean")
    runner = ModelRunner("m", registry=registry)
    title, abstract = "chest pain", "fever and pain of the heart " * 30
    with registry.lease("m") as lease:
        rows: list[list[int]] = []
        lease.model.register_forward_pre_hook(
            lambda module, args, kwargs: rows.extend(kwargs["input_ids"].tolist()), with_kwargs=True
        )
        coverage = runner.embed([(title, abstract)]).coverage[0]
        ids = lease.tokenizer(title, add_special_tokens=False)["input_ids"]
    assert coverage.windows > 2 and coverage.tokens == len((title + " " + abstract).split())
    row = rows[-1]  # all windows
    begins = [i for i, token in enumerate(row) if token == row[0] and row[i + 1 : i + 1 + len(ids)] == ids]
    assert len(begins) == coverage.windows
    with pytest.raises(InputTooLongError, match="first text of pair 2 leaves no room for the second: .* 64 tokens"):
        runner.embed([(title, abstract), ("pain " * 61, "fever")])
    registry.register("e", "generic", **facts, long_input="error")
    with pytest.raises(InputTooLongError, match="Text 1 is longer than the 64 tokens"):
        ModelRunner("e", registry=registry).embed([(title, abstract)])


def test_inputs_that_a_task_cannot_give_are_an_error(registry: ModelRegistry, tmp_path: Path) -> None:
    """One text where a pair is needed, a pair where one text is, and what no task can give."""
    encoder, tagger = (
        str(tiny.bert_encoder(tmp_path / "e")),
        str(tiny.bert_token_classifier(tmp_path / "t", ["O", "X"])),
    )
    filler = str(tiny.bert_masked_lm(tmp_path / "f"))
    registry.register("pair", "generic", model_path=encoder, inputs=["title", "abstract"])
    registry.register("one", "generic", model_path=encoder, inputs=["the name of one concept"])
    registry.register("three", "generic", model_path=encoder, inputs=["a", "b", "c"])
    registry.register("tagger", "generic", model_path=tagger, inputs=["question", "context"])
    registry.register("filler", "generic", model_path=filler, inputs=["question", "context"])
    with pytest.raises(
        RequestError, match=r"Text 1 must be a pair: .* title and abstract.\nWrite it as: \[\[title, abst"
    ):
        ModelRunner("pair", registry=registry).embed(["ab"])
    for item in (("a",), ("a", "b", "c"), ["a", 1], None):
        with pytest.raises(RequestError, match="Text 2 must be"):
            ModelRunner("pair", registry=registry).embed([("a", "b"), item])  # type: ignore[list-item]
    with pytest.raises(RequestError, match=r"Text 2 is a pair, .*\nIf .*inputs=\['title'"):
        ModelRunner("one", registry=registry).embed(["a", ("a", "b")])
    assert ModelRunner("one", registry=registry).embed(["a"]).vectors.shape == (1, 32)
    for name, task in {"three": "embed", "tagger": "ner", "filler": "fill-mask"}.items():
        with pytest.raises(RequestError, match=f"takes pairs of .* and .*, but task '{task}'"):
            ModelRunner(name, registry=registry).run(task, ["a [MASK]"])


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("BertForMultipleChoice", "multiple-choice"),
        ("BertForQuestionAnswering", "question-answering"),
        ("BertForNextSentencePrediction", "next-sentence-prediction"),
    ],
)
def test_what_was_not_asked_is_not_run(registry: ModelRegistry, tmp_path: Path, kind: str, task: str) -> None:
    """A head that ModelRunner does not run yet is named, and no vector is given in its place."""
    runner = ModelRunner(kinds.write(tmp_path / "m", kind), registry=registry)
    with pytest.raises(RequestError, match=f"cannot run task '{task}' yet.\nIt can run: embed"):
        runner.run(None, ["a"])


def test_vectors_of_a_classifier_are_given_where_a_pooling_is_stated(registry: ModelRegistry, tmp_path: Path) -> None:
    """Taggers, classifiers and cross-encoders were trained for something else; others may be asked freely."""
    for kind in ("BertForTokenClassification", "BertForSequenceClassification", "DebertaV2ForSequenceClassification"):
        folder = kinds.write(tmp_path / kind, kind)
        with pytest.raises(RequestError, match=r"trained to classify, .* states no pooling.*\n.*pooling='mean'"):
            ModelRunner(folder, registry=registry).embed(["a"])
        registry.register(kind, "generic", model_path=str(folder), pooling="mean")
        assert ModelRunner(kind, registry=registry).embed(["a"]).vectors.shape == (1, 32)


def test_a_masked_language_model_fills_the_gaps_that_there_are(registry: ModelRegistry, tmp_path: Path) -> None:
    """Without an entry: gaps are filled, and texts without any get vectors; with one, its task is done."""
    runner = ModelRunner(kinds.write(tmp_path / "m", "BertForMaskedLM"), registry=registry)
    assert [runner.run(None, [text]).task for text in ("pain", "pain [MASK]", "pain <mask>")] == [
        "embed",
        "fill-mask",
        "fill-mask",
    ]
    with pytest.raises(RequestError, match="Text 2 has no gap to fill"):
        runner.run(None, ["pain [MASK]", "pain"])
    registry.register("m", "generic", model_path=str(tmp_path / "m"), task="embed")
    assert ModelRunner("m", registry=registry).run(None, ["pain [MASK]"]).task == "embed"


def test_an_argument_that_a_task_does_not_take_is_named(registry: ModelRegistry) -> None:
    """Before anything is loaded."""
    runner = ModelRunner("acme/not-there", registry=registry)
    with pytest.raises(RequestError, match="Task 'fill-mask' takes no argument 'topk'. .*'top_k'"):
        runner.run("fill-mask", ["a"], topk=1)
    with pytest.raises(RequestError, match="cannot run task 'transcribe' yet"):
        runner.run("transcribe", ["a"])
