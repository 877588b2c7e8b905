"""classify and rerank: labels and scores as transformers and sentence-transformers compute them, or an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import InputTooLongError, LoadError, MedVLLMError, RequestError, WeightsMismatchError
from tests.support import cross_encoders, kinds, tiny
from tests.support.cross_encoders import DOCUMENTS, QUERY
from tests.support.spread import spread

TEXTS = ["Patient denies chest pain; ALS was ruled out.", "a", "", "aspirin 75 mg daily for fever", "naïve é 日本 😀"]
PAIRS = [["No fever.", "The patient was given aspirin"], ["", "a"], ["a b", "left lung and heart"]]
NLI = ["contradiction", "entailment", "neutral"]
SCORES: dict[str, list[float]] = json.loads(cross_encoders.SCORES.read_text())


def write(folder: Path, kind: str, labels: list[str], **fields: Any) -> Path:
    """A classifier of an architecture, with a head that tells texts apart."""
    folder = kinds.write(folder, kind, **tiny.labelled(labels), **fields)
    return tiny.edit_weights(folder, lambda _, weight: weight * 4 if weight.ndim == 2 else weight)


def by_pipeline(folder: Path, texts: list[Any], function: str | None = None) -> list[list[tuple[str, float]]]:
    """What transformers' pipeline says of each text."""
    classifier: Any = pipeline("text-classification", model=str(folder), device="cpu")
    items = [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]} for text in texts]
    options = {} if function is None else {"function_to_apply": function}
    found = [classifier(item, top_k=None, **options) for item in items]
    return [[(label["label"], label["score"]) for label in labels] for labels in found]


def check_equal(ours: Any, theirs: list[list[tuple[str, float]]]) -> None:
    """Labels in the same order with scores equal to 1e-5."""
    for labels, expected in zip(ours, theirs, strict=True):
        assert [label.label for label in labels] == [label for label, _ in expected]
        assert [label.score for label in labels] == pytest.approx([score for _, score in expected], abs=1e-5)


KINDS = ["Bert", "Roberta", "Electra", "MPNet", "DebertaV2", "Longformer", "ModernBert", "DistilBert", "Albert"]
KINDS += ["XLNet", "FNet", "ConvBert", "Nystromformer", "GPT2", "Llama", "Bart", "Funnel", "XLM"]


@pytest.mark.parametrize("kind", spread(KINDS, 4))
def test_labels_are_those_of_the_pipeline_for_every_architecture(
    registry: ModelRegistry, tmp_path: Path, kind: str
) -> None:
    """Whatever else is in the batch, and whatever padding does to the architecture."""
    more: dict[str, Any] = {"block_sizes": [1, 1], "num_hidden_layers": None} if kind == "Funnel" else {}
    more |= {"n_langs": 1, "use_lang_emb": False} if kind == "XLM" else {}
    more |= {"max_position_embeddings": None} if kind == "XLNet" else {}
    folder = write(tmp_path / "m", f"{kind}ForSequenceClassification", ["PRESENT", "ABSENT", "POSSIBLE"], **more)
    runner = ModelRunner(folder, registry=registry)
    texts = [text for text in TEXTS if text]
    result = runner.classify(texts * 3)
    theirs = by_pipeline(folder, texts)
    check_equal(result, theirs * 3)
    assert (result[0].label, result[0].score) == pytest.approx(theirs[0][0]) and len(result[0]) == 3
    assert {label for labels in theirs for label, _ in labels[:1]}


@pytest.mark.parametrize(
    ("labels", "problem", "entry", "given", "function"),
    [
        (NLI, None, None, None, "softmax"),
        (NLI, "single_label_classification", None, None, None),
        (NLI, "multi_label_classification", None, None, None),
        (NLI, "regression", None, None, None),
        (["SEVERITY"], None, None, None, "sigmoid"),
        (["SEVERITY"], "regression", None, None, "none"),
        (NLI, "regression", "sigmoid", None, "sigmoid"),
        (NLI, "regression", "sigmoid", "softmax", "softmax"),
        (NLI, None, "softmax", "none", "none"),
    ],
)
def test_the_callers_activation_wins_over_the_entrys_and_that_over_the_configs(
    registry: ModelRegistry, tmp_path: Path, labels: list[str], problem: Any, entry: Any, given: Any, function: Any
) -> None:
    """As transformers' function_to_apply; without any, the number of labels decides."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", labels, problem_type=problem)
    registry.register("m", "clinical", model_path=folder, activation=entry, inputs=["text"])
    result = ModelRunner("m", registry=registry).classify(TEXTS, activation=given)
    check_equal(result, by_pipeline(folder, TEXTS, function))


def test_pairs_are_read_as_pairs(registry: ModelRegistry, tmp_path: Path) -> None:
    """With token types; an entry with two inputs takes nothing else, and labels of entailment ask for a pair."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", NLI)
    registry.register("nli", "clinical", model_path=folder, inputs=["premise", "hypothesis"])
    registry.register("single", "clinical", model_path=folder, inputs=["text"])
    for name in ("nli", folder):
        runner = ModelRunner(name, registry=registry)
        check_equal(runner.classify(PAIRS), by_pipeline(folder, PAIRS))
        with pytest.raises(RequestError, match="Text 1 must be a pair: the model takes premise and hypothesis"):
            runner.classify(["No fever."])
        with pytest.raises(RequestError, match="Text 2 must be a pair"):
            runner.classify([PAIRS[0], "No fever."])
    with pytest.raises(RequestError, match="Text 1 is a pair, but the model takes single texts"):
        ModelRunner("single", registry=registry).classify(PAIRS)


def test_an_empty_text_of_a_pair_is_read_as_empty(registry: ModelRegistry, tmp_path: Path) -> None:
    """transformers leaves an empty second text out if a pair is encoded alone, and keeps it in a batch."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", NLI)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    encoding = tokenizer(["chest pain"], [""], return_tensors="pt")
    with torch.inference_mode():
        scores = model(**encoding).logits[0].softmax(-1)
    [found] = ModelRunner(folder, registry=registry).classify([["chest pain", ""]])
    assert {each.label: each.score for each in found} == pytest.approx(
        dict(zip(NLI, scores.tolist(), strict=True)), abs=1e-6
    )


def test_a_pair_of_a_model_without_token_types_has_none(registry: ModelRegistry, tmp_path: Path) -> None:
    """A tokenizer gives them, and the model has an embedding for the first text only."""
    folder = write(tmp_path / "m", "RobertaForSequenceClassification", NLI, type_vocab_size=1)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    result = ModelRunner(folder, registry=registry).classify(PAIRS)
    for labels, pair in zip(result, PAIRS, strict=True):
        ids = torch.tensor([tokenizer(*pair)["input_ids"]])
        with torch.inference_mode():
            scores = model(ids).logits[0].softmax(-1)
        assert {label.label: label.score for label in labels} == pytest.approx(
            dict(zip(NLI, scores.tolist(), strict=True)), abs=1e-6
        )


def test_labels_without_names_are_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """LABEL_0 and LABEL_1 tell nothing; an entry names them, in its own order."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", ["LABEL_0", "LABEL_1", "LABEL_2"])
    with pytest.raises(WeightsMismatchError, match="LABEL_0 to LABEL_2, which do not tell"):
        ModelRunner(folder, registry=registry).classify(TEXTS)
    registry.register("m", "clinical", model_path=folder, id2label=["A", "B", "C"])
    ours = ModelRunner("m", registry=registry).classify(TEXTS)
    named = {"LABEL_0": "A", "LABEL_1": "B", "LABEL_2": "C"}
    theirs = by_pipeline(folder, TEXTS)
    check_equal(ours, [[(named[label], score) for label, score in labels] for labels in theirs])


def test_two_classes_with_one_label_are_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Neither score would be that of the label, and the likeliest label could come last."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", ["ABSENT", "PRESENT", "ABSENT"])
    with pytest.raises(WeightsMismatchError, match="Two classes of model .* have the label 'ABSENT'"):
        ModelRunner(folder, registry=registry).classify(TEXTS)


def test_an_order_of_labels_that_contradicts_the_config_is_said(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The entry's order holds. One that only renames the labels is what the fact is for."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", ["Entailment", "neutral", "contradiction"])
    registry.register("m", "clinical", model_path=folder, id2label=NLI)
    result = ModelRunner("m", registry=registry).classify([PAIRS[0]])
    assert {label.label for label in result[0]} == set(NLI)
    assert "class 0 is 'contradiction' in the entry of 'm' and 'Entailment' in its config.json" in caplog.text
    caplog.clear()
    registry.register("new", "clinical", model_path=folder, id2label=["follows", "neutral", "contradicts"])
    registry.load_model("new")
    assert "config.json" not in caplog.text


def test_a_long_text_is_refused_unless_somebody_says_how_to_read_it(registry: ModelRegistry, tmp_path: Path) -> None:
    """No combination of windows is what one pass would say: the caller or the entry chooses one."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", ["A", "B"])
    runner, text = ModelRunner(folder, registry=registry), "secret denies chest pain " * 60
    with pytest.raises(InputTooLongError, match="Text 2 is longer than the 128 tokens") as caught:
        runner.classify(["a", text])
    assert "secret" not in str(caught.value)
    with registry.lease(folder) as lease:
        pieces = lease.tokenizer(text, truncation=True, max_length=128, stride=31, return_overflowing_tokens=True)
        logits = [lease.model(torch.tensor([ids])).logits[0].detach() for ids in pieces["input_ids"]]
    parts, lengths = torch.stack(logits), torch.tensor([float(len(ids)) for ids in pieces["input_ids"]])
    assert len(parts) > 2
    expected: dict[Any, torch.Tensor] = {
        "mean": (parts.softmax(-1) * lengths.unsqueeze(1)).sum(0) / lengths.sum(),
        "max": parts.softmax(-1).amax(0),
    }
    for how, scores in expected.items():
        found = runner.classify(["a", text], windows=how)[1]
        assert {label.label: label.score for label in found} == pytest.approx(
            dict(zip("AB", scores.tolist(), strict=True)), abs=1e-6
        )
        assert found.coverage.windows == len(parts) and found.coverage.read == ((0, len(text)),)
    for policy in ("window", "truncate", "error"):
        registry.register(policy, "generic", model_path=folder, long_input=policy)
    windowed = ModelRunner("window", registry=registry)
    assert windowed.classify([text])[0] == runner.classify([text], windows="mean")[0]
    several = windowed.classify([text], activation="sigmoid")[0]
    assert several == runner.classify([text], activation="sigmoid", windows="max")[0]
    cut = ModelRunner("truncate", registry=registry).classify([text])[0]
    assert cut.coverage.truncated and cut.coverage.read[0][1] < len(text)
    with pytest.raises(InputTooLongError):
        ModelRunner("error", registry=registry).classify([text])


def test_options_of_classify_are_checked_before_anything_is_loaded(registry: ModelRegistry, tmp_path: Path) -> None:
    """Each by its name; a model without labels for whole texts is refused by name."""
    registry.register("far", "generic", model_path="nowhere/at-all")
    runner: Any = ModelRunner("far", registry=registry)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"activation": "sigmoud"}, "must be one of 'softmax', 'sigmoid', 'none', not 'sigmoud'. .*'sigmoid'"),
        ({"activation": 3}, "activation must be one of"),
        ({"windows": "sum"}, "windows must be one of 'mean', 'max', not 'sum'"),
        ({"allow_special_tokens": 1}, "allow_special_tokens must be True or False, not 1"),
    ]
    for options, message in wrong:
        with pytest.raises(RequestError, match=message):
            runner.classify(["a"], **options)
    bad: list[tuple[dict[str, Any], str]] = [
        ({}, "The query is missing"),
        ({"query": 3}, "The query must be one text, not int"),
        ({"query": "b\udcff"}, "The query is not valid Unicode"),
        ({"query": "a", "top_k": True}, "top_k must be at least 1, not True"),
    ]
    for options, message in bad:
        with pytest.raises(RequestError, match=message):
            runner.run("rerank", ["a"], **options)
    tagger = ModelRunner(tiny.bert_token_classifier(tmp_path / "m", ["O", "B-X", "I-X"]), registry=registry)
    with pytest.raises(RequestError, match="BertForTokenClassification, which does not judge whole texts"):
        tagger.classify(["a"])
    one = ModelRunner(write(tmp_path / "one", "BertForSequenceClassification", ["X"]), registry=registry)
    with pytest.raises(RequestError, match="a softmax over one label is always 1"):
        one.classify(["a"], activation="softmax")
    assert one.classify([]) == []


def test_results_are_a_table_and_records(registry: ModelRegistry, tmp_path: Path) -> None:
    """top_k labels a text, in rows, for JSON and for pandas; a receipt on request."""
    runner = ModelRunner(write(tmp_path / "m", "BertForSequenceClassification", ["A", "B", "C"]), registry=registry)
    result = runner.classify(TEXTS, top_k=2, with_receipt=True)
    assert [len(labels) for labels in result] == [2] * len(TEXTS) and result.task == "classify" and result.receipt
    record = result.to_dict()[0]
    assert record["labels"][0] == {"label": result[0].label, "score": result[0].score} and record["read"]
    assert list(result.to_pandas().columns) == ["text", "label", "score"] and len(result.to_pandas()) == 10
    assert result[0][0].label in repr(result) and runner.task == "classify"
    ranked = runner.run(None, ["a"])
    assert ranked.task == "classify"


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cross-encoder on MiniLM whose folder says nothing of its scores."""
    return cross_encoders.write(tmp_path_factory.mktemp("cross") / "m")


def ranker(registry: ModelRegistry, folder: Path, **facts: Any) -> ModelRunner:
    """A runner of a folder that an entry declares to be a cross-encoder."""
    registry.register("ranker", "generic", model_path=folder, task="rerank", **facts)
    return ModelRunner("ranker", registry=registry)


@pytest.mark.parametrize("case", spread(cross_encoders.CASES, 2))
def test_scores_are_those_of_sentence_transformers(
    registry: ModelRegistry, reranker: Path, case: str, tmp_path: Path
) -> None:
    """Logit or sigmoid as the folder declares it, in each form that the library has written; a prompt, too."""
    folder = cross_encoders.write(reranker.parent / case, case)
    runner = ranker(registry, folder) if case == "silent" else ModelRunner(folder, registry=registry)
    ranked = runner.rerank(QUERY, DOCUMENTS)
    expected = SCORES[case]
    assert {each.index: each.score for each in ranked} == pytest.approx(dict(enumerate(expected)), abs=1e-5)
    assert [each.index for each in ranked] == sorted(range(len(expected)), key=lambda i: -expected[i])
    assert runner.rerank(QUERY, []) == []
    assert [each.index for each in runner.rerank(QUERY, DOCUMENTS, top_k=2)] == [each.index for each in ranked[:2]]
    if case not in ("silent",):
        assert runner.task == "rerank"
        entry = registry.register("own", "generic", model_path=folder)
        assert entry.behaviour.task == "rerank"
        with pytest.raises(MedVLLMError, match="cannot be used for vectors|trained to classify, not to embed"):
            runner.embed(["a"])


def test_the_entrys_activation_wins_over_the_folders(registry: ModelRegistry, reranker: Path, tmp_path: Path) -> None:
    """And an activation that is not known is refused, unless the entry states one."""
    by_entry = ranker(registry, reranker, activation="none").rerank(QUERY, DOCUMENTS)
    assert {each.index: each.score for each in by_entry} == pytest.approx(dict(enumerate(SCORES["listed"])), abs=1e-5)
    with pytest.raises(RequestError, match="a softmax over one label is always 1"):
        ranker(registry, reranker, activation="softmax", replace=True).rerank(QUERY, DOCUMENTS)
    odd: list[dict[str, Any]] = [
        {"activation_fn": declared} for declared in ("torch.nn.modules.activation.Tanh", "own.Activation", 3)
    ]
    for i, declared in enumerate([*odd, {"default_prompt_name": "q"}]):
        folder = write(tmp_path / str(i), "BertForSequenceClassification", ["R"])
        for name, content in cross_encoders.listed(**declared).items():
            (folder / name).write_text(json.dumps(content))
        with pytest.raises(LoadError, match="has the activation .* which medvllm does not support|a default prompt"):
            ModelRunner(folder, registry=registry).rerank(QUERY, DOCUMENTS)
        registry.register("stated", "generic", model_path=folder, activation="none", replace=True)
        if declared in odd:
            assert ModelRunner("stated", registry=registry).rerank(QUERY, DOCUMENTS)
        else:
            with pytest.raises(LoadError, match="has a default prompt that is no text"):
                ModelRunner("stated", registry=registry).rerank(QUERY, DOCUMENTS)


def test_a_long_document_has_the_score_of_its_best_window(registry: ModelRegistry, reranker: Path) -> None:
    """Wherever in 1,200 tokens without a full stop the answer stands; the query is in every window."""
    runner = ranker(registry, reranker, max_length=128, activation="none")
    filler = "sodium 140 potassium 4 ___ " * 90
    document = filler + "secret aspirin 75 mg daily after a stroke " + filler
    found = runner.rerank(QUERY, [document, "aspirin"])
    long = next(each for each in found if each.index == 0)
    assert long.coverage.tokens > 1200 and long.coverage.read == ((0, len(document)),)
    with registry.lease("ranker") as lease, torch.inference_mode():
        room = 128 - 3 - len(lease.tokenizer(QUERY, add_special_tokens=False)["input_ids"])
        options: dict[str, Any] = {"truncation": "only_second", "max_length": 128, "stride": min(64, room // 4)}
        pieces = lease.tokenizer(QUERY, document, return_overflowing_tokens=True, **options)
        logits = [
            float(lease.model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits)
            for ids, types in zip(pieces["input_ids"], pieces["token_type_ids"], strict=True)
        ]
    assert long.score == pytest.approx(max(logits), abs=1e-5)
    with pytest.raises(InputTooLongError, match="leaves no room for the second") as caught:
        runner.rerank("secret " * 200, ["aspirin"])
    assert "secret" not in str(caught.value)
    with pytest.raises(RequestError, match="Text 2 must be text, not int"):
        runner.rerank(QUERY, ["a", 3])  # type: ignore[list-item]


def test_a_classifier_of_several_labels_ranks_nothing(registry: ModelRegistry, tmp_path: Path) -> None:
    """It has no one score; neither has a model of single texts."""
    folder = write(tmp_path / "m", "BertForSequenceClassification", NLI)
    with pytest.raises(RequestError, match="has 3 labels, so it gives no score for a query and a document"):
        ModelRunner(folder, registry=registry).rerank("a", ["b"])
    one = write(tmp_path / "one", "BertForSequenceClassification", ["SEVERITY"])
    registry.register("one", "generic", model_path=one, inputs=["note"])
    with pytest.raises(RequestError, match=r"takes single texts \(note\), so it gives no score"):
        ModelRunner("one", registry=registry).rerank("a", ["b"])


def test_special_tokens_in_a_text_are_text(registry: ModelRegistry, reranker: Path) -> None:
    """[SEP] in a document does not end it, unless the caller allows it."""
    runner = ranker(registry, reranker)
    commands, text = ["aspirin [SEP] dose"], ["aspirin [ SEP ] dose"]
    assert runner.rerank(QUERY, commands)[0].score == pytest.approx(runner.rerank(QUERY, text)[0].score, abs=1e-6)
    allowed = runner.rerank(QUERY, commands, allow_special_tokens=True)[0]
    assert allowed.score != pytest.approx(runner.rerank(QUERY, text)[0].score, abs=1e-4)


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.text(max_size=40), min_size=1, max_size=5), query=st.text(max_size=20))
def test_any_text_gets_an_answer_or_an_error_of_ours(
    tiny_registry: ModelRegistry, texts: list[str], query: str
) -> None:
    """And the answer is that of the text alone."""
    classifier, ranker = (ModelRunner(name, registry=tiny_registry) for name in ("classifier", "ranker"))
    try:
        labels, ranked = classifier.classify(texts), ranker.rerank(query, texts)
    except MedVLLMError:
        return
    for i, text in enumerate(texts):
        [alone], [single] = classifier.classify([text]), ranker.rerank(query, [text])
        assert {each.label: each.score for each in alone} == pytest.approx(
            {each.label: each.score for each in labels[i]}, abs=1e-5
        )
        score = next(each.score for each in ranked if each.index == i)
        assert single.score == pytest.approx(score, abs=1e-5)
        assert 0 <= alone.score <= 1 and 0 <= score <= 1


@pytest.fixture(scope="module")
def tiny_registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    """A registry with a classifier and a reranker."""
    folder, registry = tmp_path_factory.mktemp("tiny"), ModelRegistry()
    for name, labels in (("classifier", ["A", "B"]), ("ranker", ["R"])):
        made = write(folder / name, "RobertaForSequenceClassification", labels)
        task = "rerank" if name == "ranker" else "classify"
        registry.register(name, "generic", model_path=made, long_input="window", task=task)
    return registry


def test_a_classifier_that_overflows_gives_no_answer(registry: ModelRegistry, tmp_path: Path) -> None:
    """NaN is an error that names the text by its place."""
    folder = tiny.bert_sequence_classifier(tmp_path / "m", config=tiny.labelled(["R"]))
    tiny.edit_weights(folder, lambda name, weight: weight * float("nan") if "classifier" in name else weight)
    with pytest.raises(LoadError, match="gives NaN or infinity for text 1"):
        ranker(registry, folder).rerank("a", ["b"])
