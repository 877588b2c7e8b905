"""Every task on every kind of model, and on an adapter of it: the right answer, or a refusal that leads out."""

import ast
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner import registry as default_registry
from medvllm.errors import MedVLLMError
from tests.support import adapters, kinds, tiny
from tests.support.spread import spread

TEXT = "the patient denies chest pain"
MARKERS = ["<< ", " >>"]
LABELS = ["PRESENT", "ABSENT", "POSSIBLE"]
CROSS = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}

TASKS: dict[str, Callable[[ModelRunner], Any]] = {
    "embed": lambda runner: runner.embed([TEXT]),
    "search": lambda runner: runner.search("pain", [TEXT]),
    "fill-mask": lambda runner: runner.fill_mask(["chest [MASK]"]),
    "ner": lambda runner: runner.entities([TEXT]),
    "redact": lambda runner: runner.redact([TEXT]),
    "classify": lambda runner: runner.classify([TEXT]),
    "classify pairs": lambda runner: runner.classify([[TEXT, "pain"]]),
    "rerank": lambda runner: runner.rerank("pain", [TEXT]),
    "generate": lambda runner: runner.generate([TEXT], max_new_tokens=1),
    "assertions": lambda runner: runner.assertions([TEXT], [[(19, 29)]]),
}
VECTORS, BOTH = {"embed", "search"}, {"classify", "classify pairs"}


def sentence_folder(make: Callable[[Path], Path], mode: str) -> Callable[[Path], Path]:
    """A folder of sentence-transformers around a checkpoint, with a pooling."""

    def write(folder: Path) -> Path:
        make(folder)
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
        modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
        listed = [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        return folder

    return write


def judge(labels: list[str], **config: Any) -> Callable[[Path], Path]:
    """A classifier of texts."""
    return lambda folder: tiny.bert_sequence_classifier(folder, config=tiny.labelled(labels) | config)


def of_kind(kind: str, **config: Any) -> Callable[[Path], Path]:
    """A checkpoint of a class."""
    return lambda folder: kinds.write(folder, kind, **config)


# Kind -> how it is written, facts of its entry, its task, and the tasks that it answers.
KINDS: dict[str, tuple[Callable[[Path], Path], dict[str, Any], str, set[str]]] = {
    "encoder": (tiny.bert_encoder, {}, "embed", VECTORS),
    "encoder of an encoder-decoder": (of_kind("T5EncoderModel"), {}, "embed", VECTORS),
    "masked language model": (tiny.bert_masked_lm, {}, "fill-mask", {*VECTORS, "fill-mask"}),
    "tagger": (lambda folder: tiny.bert_token_classifier(folder, ["O", "B-X", "I-X"]), {}, "ner", {"ner"}),
    "de-identifier": (
        lambda folder: tiny.bert_token_classifier(folder, ["O", "B-NAME", "I-NAME"]),
        {"task": "deid"},
        "deid",
        {"ner", "redact"},
    ),
    "classifier": (judge(LABELS), {}, "classify", BOTH),
    "classifier of pairs": (judge(["contradiction", "entailment", "neutral"]), {}, "classify", {"classify pairs"}),
    "classifier of one label": (judge(["SEVERITY"]), {}, "classify", BOTH),
    "one label without a name": (judge(["LABEL_0"]), {}, "classify", set()),
    "labels without names": (judge(["LABEL_0", "LABEL_1"]), {}, "classify", set()),
    "decoder that classifies": (
        of_kind("LlamaForSequenceClassification", **tiny.labelled(LABELS)),
        {},
        "classify",
        BOTH,
    ),
    "judge of marked spans": (
        judge(LABELS),
        {"task": "assertions", "entity_markers": MARKERS},
        "assertions",
        {"assertions"},
    ),
    "cross-encoder by its folder": (judge(["LABEL_0"], **CROSS), {}, "rerank", {"rerank"}),
    "cross-encoder by its entry": (judge(["LABEL_0"]), {"task": "rerank"}, "rerank", {"rerank"}),
    "cross-encoder with a label": (
        judge(["LABEL_0"], **CROSS),
        {"id2label": ["RELEVANT"]},
        "rerank",
        {"rerank", "classify pairs"},
    ),
    "cross-encoder of several labels": (judge(LABELS, **CROSS), {}, "classify", {"classify pairs"}),
    "score of single texts": (judge(["LABEL_0"], **CROSS), {"inputs": ["text"], "task": "classify"}, "classify", set()),
    "sentence-transformers": (sentence_folder(tiny.bert_encoder, "cls_token"), {}, "embed", VECTORS),
    "decoder of sentence-transformers": (
        sentence_folder(of_kind("LlamaForCausalLM"), "lasttoken"),
        {},
        "embed",
        {*VECTORS, "generate"},
    ),
    "decoder": (of_kind("LlamaForCausalLM"), {}, "generate", {"generate"}),
    "decoder without a head": (of_kind("LlamaModel"), {}, "embed", set()),
    "BERT as a decoder": (of_kind("BertLMHeadModel", is_decoder=True), {}, "generate", {"generate"}),
    "encoder-decoder": (of_kind("T5ForConditionalGeneration"), {}, "generate", {"generate"}),
    "encoder-decoder that fills": (of_kind("BartForConditionalGeneration"), {}, "generate", {"generate"}),
    "encoder-decoder without a head": (of_kind("BartModel"), {}, "embed", set()),
    "answers of questions": (of_kind("BertForQuestionAnswering"), {}, "question-answering", set()),
    "dense passage retriever": (of_kind("DPRQuestionEncoder"), {}, "embed", set()),
}
# Kind -> the task_type of an adapter, the class that it is trained on, its number of labels, and other options.
ADAPTED: dict[str, tuple[str | None, str, int, dict[str, Any]]] = {
    "encoder": ("FEATURE_EXTRACTION", "AutoModel", 0, {}),
    "masked language model": (None, "AutoModelForMaskedLM", 0, {}),
    "tagger": ("TOKEN_CLS", "AutoModelForTokenClassification", 3, {}),
    "de-identifier": ("TOKEN_CLS", "AutoModelForTokenClassification", 3, {}),
    "classifier": ("SEQ_CLS", "AutoModelForSequenceClassification", 3, {}),
    "classifier of pairs": ("SEQ_CLS", "AutoModelForSequenceClassification", 3, {}),
    "judge of marked spans": (None, "AutoModelForSequenceClassification", 3, {}),
    "cross-encoder by its folder": ("SEQ_CLS", "AutoModelForSequenceClassification", 1, {}),
    "cross-encoder by its entry": (None, "AutoModelForSequenceClassification", 1, {}),
    "cross-encoder of several labels": ("SEQ_CLS", "AutoModelForSequenceClassification", 3, {}),
    "sentence-transformers": ("FEATURE_EXTRACTION", "AutoModel", 0, {}),
    "decoder": ("CAUSAL_LM", "AutoModelForCausalLM", 0, {"target_modules": ["q_proj"]}),
    "encoder-decoder": ("SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", 0, {"target_modules": ["q"]}),
}
_FACT = re.compile(r"\b(pooling|task|id2label|entity_markers)=('[^']*'|\[(?:'[^']*'(?:, )?)+\])")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kinds")


@pytest.mark.parametrize("kind", spread(KINDS, 2))
def test_each_task_answers_or_leads_out(folders: Path, kind: str) -> None:
    """A refusal names the model. Its advice is followed: what it says to register then answers."""
    make, facts, task, answered = KINDS[kind]
    registry = ModelRegistry()
    facts = {"model_path": make(folders / "m" / kind.replace(" ", "-")), **facts}
    registry.register("m", "clinical", **facts)
    runner = ModelRunner("m", registry=registry)
    assert runner.task == task
    refused = _check_tasks(runner, answered)
    for name, error in refused.items():
        for fact, value in _FACT.findall(error):
            known = _named(registry) if fact == "id2label" else ast.literal_eval(value)
            _follow(registry, name, facts, {fact: known})
    registry.clear_cache()


@pytest.mark.parametrize("kind", spread(ADAPTED, 2))
def test_an_adapter_does_what_its_base_does(folders: Path, kind: str) -> None:
    """Its task and its answers, and its refusals."""
    make, facts, task, answered = KINDS[kind]
    task_type, model_class, labels, options = ADAPTED[kind]
    registry = ModelRegistry()
    base = make(folders / "base" / kind.replace(" ", "-"))
    registry.register("base", "clinical", model_path=base, **facts)
    made = folders / "adapter" / kind.replace(" ", "-")
    made.parent.mkdir(exist_ok=True)
    adapters.lora(made, base, task_type=task_type, model_class=model_class, labels=labels, **options)
    registry.register("m", "clinical", model_path=made, base="base")
    runner = ModelRunner("m", registry=registry)
    # Without an entry that says more, a masked language model fills gaps where there are some.
    assert runner.task == ("embed" if task == "fill-mask" else task)
    _check_tasks(runner, answered)
    registry.clear_cache()


def _check_tasks(runner: ModelRunner, answered: set[str]) -> dict[str, str]:
    """Run every task; return the messages of those that are refused."""
    refused = {}
    for name, ask in TASKS.items():
        try:
            ask(runner)
        except MedVLLMError as error:
            refused[name] = str(error)
    assert TASKS.keys() - refused.keys() == answered, refused
    for name, message in refused.items():
        assert "'m'" in message or "pair" in message, (name, message)
        assert len(message.splitlines()) > 1, (name, message)
        if listed := re.search(r"medvllm list --task ([\w-]+)", message):
            assert default_registry.list_models(task=listed[1])
    return refused


def _named(registry: ModelRegistry) -> list[str]:
    """As many names as the model has labels."""
    with registry.lease("m") as lease:
        return [f"NAME-{number}" for number in range(lease.model.config.num_labels)]


def _follow(registry: ModelRegistry, name: str, facts: dict[str, Any], advised: dict[str, Any]) -> None:
    """Run a task that was refused, with the facts that the refusal advises to register; a second one may follow."""
    registry.register("advised", "clinical", **facts | advised, replace=True)
    runner = ModelRunner("advised", registry=registry)
    if name.startswith("classify") and runner.task == "rerank":  # a cross-encoder, with a label or without one
        name = "classify pairs" if "id2label" in advised else "rerank"
    try:
        TASKS[name](runner)
    except MedVLLMError as error:
        further = {fact for fact, _ in _FACT.findall(str(error))} - advised.keys()
        assert further == {"id2label"}, error
        _follow(registry, name, facts, advised | {"id2label": _named(registry)})
