"""Adapters: entries whose base is another entry. They answer as PEFT does, and share the memory of one base."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import (
    BudgetError,
    CatalogError,
    DigestMismatchError,
    IncompleteSnapshotError,
    LoadError,
    MedVLLMError,
    MissingDependencyError,
    ModelNotFoundError,
    RequestError,
    SourceError,
    WeightsMismatchError,
)
from tests.support import adapters, kinds, tiny
from tests.support.adapters import answer, lora, peft_answer
from tests.support.console import command
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.spread import spread

IDS = torch.tensor([[2, 5, 6, 7, 8, 9, 10, 11, 3], [2, 14, 13, 12, 11, 22, 21, 20, 3]])
LABELS = ["O", "B-DRUG", "I-DRUG"]
TEXTS = ["the patient was given aspirin for fever", "no history of diabetes"]
TAGGER, CLASSIFIER = "AutoModelForTokenClassification", "AutoModelForSequenceClassification"

# PEFT's own wrapper, which the tests compare with, reads a deprecated property.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture
def registry() -> Iterator[ModelRegistry]:
    made = ModelRegistry()
    yield made
    made.clear_cache()


@pytest.fixture
def ward(registry: ModelRegistry, tmp_path: Path) -> ModelRegistry:
    """A registry with a base, "base", and two taggers on it, "one" and "two"."""
    registry.register("base", "clinical", model_path=str(tiny.bert_masked_lm(tmp_path / "base")))
    for seed, name in enumerate(("one", "two")):
        lora(tmp_path / name, tmp_path / "base", seed=seed)
        registry.register(name, "clinical", model_path=str(tmp_path / name), base="base", id2label=LABELS)
    return registry


def _weights(model: Any) -> dict[str, torch.Tensor]:
    named = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in named}


def _edit(folder: Path, **fields: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    return folder


def _edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


# Answers

_EVERY = r".*\.(query|key|dense)"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True, "r": 3},
    "dora": {"use_dora": True},
    "all biases": {"bias": "all"},
    "own biases": {"bias": "lora_only"},
    "bias of its own": {"lora_bias": True},
    "regular expression": {"target_modules": r".*layer\.1\..*\.(query|key)"},
    "exclusion": {"target_modules": ["query", "value"], "exclude_modules": ["encoder.layer.0.attention.self.query"]},
    "some layers": {"layers_to_transform": [1], "layers_pattern": "layer"},
    "patterns": {"rank_pattern": {r"layer\.0\..*query": 2}, "alpha_pattern": {"value": 32}},
    "embeddings": {"target_modules": ["word_embeddings", "query"]},
    "saved embeddings": {"modules_to_save": ["position_embeddings", "classifier"]},
    "saved layer": {"modules_to_save": ["classifier", "encoder.layer.1.output"]},
    "all linear": {"target_modules": "all-linear", "exclude_modules": ["classifier"]},
    "dropout": {"lora_dropout": 0.5},
    "gaussian": {"init_lora_weights": "gaussian"},
}


def test_a_tagger_answers_as_with_peft(registry: ModelRegistry, tmp_path: Path) -> None:
    """With each option of LoRA; and the base stays as it is, bit for bit."""
    base = tiny.bert_masked_lm(tmp_path / "base")
    registry.register("base", "clinical", model_path=str(base))
    model, before, different = registry.load_model("base"), _weights(registry.load_model("base")), []
    for variant, config in VARIANTS.items():
        folder = lora(tmp_path / variant, base, **config)
        registry.register(variant, "clinical", model_path=str(folder), base="base", id2label=LABELS)
        found = answer(registry.load_model(variant), IDS)
        if not torch.allclose(found, peft_answer(base, folder, TAGGER, IDS), atol=1e-6):
            different.append(variant)
        assert all(torch.equal(before[name], tensor) for name, tensor in _weights(model).items()), variant
    assert different == []
    assert all(parameter.requires_grad for parameter in model.parameters())


MAKERS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "RoBERTa": (tiny.roberta_masked_lm, {}),
    "BERT with a pooler": (
        tiny.bert_encoder,
        {"task_type": "SEQ_CLS", "model_class": CLASSIFIER, "labels": 2},
    ),
    "vectors": (tiny.bert_masked_lm, {"task_type": "FEATURE_EXTRACTION", "model_class": "AutoModel"}),
    "vectors of an encoder": (tiny.bert_encoder, {"task_type": "FEATURE_EXTRACTION", "model_class": "AutoModel"}),
    "no task": (tiny.bert_masked_lm, {"task_type": None, "model_class": "AutoModel"}),
    "word pieces": (tiny.bert_masked_lm, {"task_type": None, "model_class": "AutoModelForMaskedLM"}),
    "Llama": (
        tiny.llama_causal_lm,
        {"task_type": "CAUSAL_LM", "model_class": "AutoModelForCausalLM", "target_modules": ["q_proj", "v_proj"]},
    ),
    "Llama, tied": (
        lambda folder: tiny.llama_causal_lm(folder, tied=True),
        {"task_type": "CAUSAL_LM", "model_class": "AutoModelForCausalLM", "target_modules": ["down_proj", "o_proj"]},
    ),
    "classifier of Llama": (
        tiny.llama_causal_lm,
        {"task_type": "SEQ_CLS", "model_class": CLASSIFIER, "target_modules": ["q_proj"], "labels": 4},
    ),
    "GPT-2": (
        tiny.gpt2_causal_lm,
        {
            "task_type": "CAUSAL_LM",
            "model_class": "AutoModelForCausalLM",
            "target_modules": ["c_attn", "c_proj"],
            "fan_in_fan_out": True,
        },
    ),
}


@pytest.mark.parametrize("kind", spread(MAKERS, 2))
@pytest.mark.parametrize("dtype", spread(["float32", "bfloat16"], 2))
def test_other_models_answer_as_with_peft(registry: ModelRegistry, tmp_path: Path, kind: str, dtype: str) -> None:
    make, how = MAKERS[kind]
    base = make(tmp_path / "base")
    folder = lora(tmp_path / "adapter", base, **how)
    registry.register("base", "clinical", model_path=str(base))
    labels: dict[str, Any] = {"id2label": LABELS} if "model_class" not in how else {}
    registry.register("a", "clinical", model_path=str(folder), base="base", **labels)
    ids = torch.tensor([[0, 60, 61, 62, 63, 64, 2], [0, 71, 72, 73, 74, 75, 2]])
    model = registry.load_model("a", dtype=dtype)
    model.config.pad_token_id = 1
    model_class, count = how.get("model_class", TAGGER), how.get("labels", 3)
    wanted = peft.PeftModel.from_pretrained(
        adapters.plain(base, model_class, count, getattr(torch, dtype)), folder
    ).eval()
    wanted.config.pad_token_id = 1
    assert torch.allclose(answer(model, ids), answer(wanted, ids), atol=1e-6)
    theirs = {name.removeprefix("base_model.model."): weight for name, weight in wanted.named_parameters()}
    for name, weight in model.named_parameters():
        if "lora_" in name:
            assert weight.dtype == theirs[name].dtype and torch.equal(weight, theirs[name])


@pytest.mark.parametrize("kind", ["BigBirdForMaskedLM", "LlamaForCausalLM (longrope)"])
def test_a_base_that_would_remember_inputs_stays_stateless(registry: ModelRegistry, tmp_path: Path, kind: str) -> None:
    """A long input before a short one changes nothing."""
    base = kinds.write(tmp_path / "base", kind)
    how: dict[str, Any] = {"task_type": "SEQ_CLS", "model_class": CLASSIFIER, "labels": 2}
    if "Llama" in kind:
        how["target_modules"] = ["q_proj"]
    registry.register("base", "custom", model_path=str(base))
    registry.register("a", "custom", model_path=str(lora(tmp_path / "a", base, **how)), base="base")
    model = registry.load_model("a")
    model.config.pad_token_id = 1
    short, long = torch.arange(4, 28)[None], torch.arange(4, 124)[None]
    first = answer(model, short)
    answer(model, long)
    assert torch.equal(answer(model, short), first)


def test_labels_casing_and_task_come_from_the_base_where_the_adapter_states_none(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    base = tiny.bert_token_classifier(tmp_path / "base", LABELS)
    facts: dict[str, Any] = {"task": "deid", "aggregation": "max", "word_pattern": r"\w+", "do_lower_case": True}
    registry.register("base", "clinical", model_path=str(base), max_length=32, **facts)
    registry.register("a", "clinical", model_path=str(lora(tmp_path / "a", base)), base="base", aggregation="first")
    with registry.lease("a") as lease, registry.lease("base") as of_base:
        behaviour = lease.metadata.behaviour
        assert (behaviour.task, behaviour.aggregation, behaviour.word_pattern) == ("deid", "first", r"\w+")
        assert lease.tokenizer.model_max_length == 32
        assert lease.tokenizer.tokenize("ASPIRIN") == of_base.tokenizer.tokenize("aspirin")
        assert list(lease.model.config.id2label.values()) == LABELS


def test_an_adapter_does_what_its_base_does(registry: ModelRegistry, tmp_path: Path) -> None:
    """Whether the entry or the folder of the base says so, and whether or not the adapter names its kind of head."""
    declared = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    silent = tiny.bert_sequence_classifier(tmp_path / "silent", config=tiny.labelled(["LABEL_0"]))
    folder = tiny.bert_sequence_classifier(tmp_path / "cross", config=tiny.labelled(["LABEL_0"]) | declared)
    registry.register("by folder", "clinical", model_path=folder)
    registry.register("by entry", "clinical", model_path=silent, task="rerank", activation="none")
    for base, files in (("by folder", folder), ("by entry", silent)):
        scores = {}
        for kind in ("SEQ_CLS", None):
            name = f"{base}, {kind}"
            made = lora(tmp_path / name, files, task_type=kind, model_class=CLASSIFIER, labels=1)
            registry.register(name, "clinical", model_path=made, base=base)
            runner = ModelRunner(name, registry=registry)
            assert runner.task == "rerank"
            ids = registry.load_tokenizer(base)(TEXTS[1], TEXTS[0], return_tensors="pt")
            [ranked] = runner.rerank(TEXTS[1], TEXTS[:1])
            with torch.inference_mode():
                scores[kind] = float(registry.load_model(name)(**ids).logits)
            assert ranked.score == pytest.approx(scores[kind], abs=1e-5)
            with pytest.raises(RequestError, match=r"is a cross-encoder.*\n.*\n.*runner.rerank\(query, documents\)"):
                runner.classify(TEXTS)


def test_an_adapter_with_other_labels_does_not_take_the_task_of_its_base(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    """What a base finds, reads or ranks says nothing of labels that it lacks: above all, it makes no de-identifier."""
    tagger = tiny.bert_token_classifier(tmp_path / "deid", ["O", "B-NAME", "I-NAME"])
    registry.register("deid", "clinical", model_path=tagger, task="deid")
    registry.register("same", "clinical", model_path=lora(tmp_path / "same", tagger), base="deid")
    registry.register("drugs", "clinical", model_path=lora(tmp_path / "a", tagger), base="deid", id2label=LABELS)
    assert (
        ModelRunner("same", registry=registry).task == "deid" and ModelRunner("drugs", registry=registry).task == "ner"
    )
    with pytest.raises(RequestError, match="has the task 'ner', so it may leave names in a text"):
        ModelRunner("drugs", registry=registry).redact(TEXTS)
    cross = tiny.bert_sequence_classifier(tmp_path / "cross", config=tiny.labelled(["LABEL_0"]))
    registry.register("cross", "clinical", model_path=cross, task="rerank", inputs=["query", "document"])
    made = lora(tmp_path / "three", cross, task_type="SEQ_CLS", model_class=CLASSIFIER)
    registry.register("three", "clinical", model_path=made, base="cross", id2label=["A", "B", "C"])
    three = ModelRunner("three", registry=registry)
    assert three.task == "classify" and len(three.classify(TEXTS)[0]) == 3
    marked = tiny.bert_sequence_classifier(tmp_path / "marked", config=tiny.labelled(["PRESENT", "ABSENT"]))
    registry.register("marked", "clinical", model_path=marked, task="assertions", entity_markers=["<< ", " >>"])
    made = lora(tmp_path / "own", marked, task_type="SEQ_CLS", model_class=CLASSIFIER, labels=2)
    registry.register("own", "clinical", model_path=made, base="marked")
    assert ModelRunner("own", registry=registry).assertions(TEXTS[:1], [[(4, 11)]])[0][0].label in ("PRESENT", "ABSENT")


def test_an_adapter_with_another_head_takes_no_labels_from_its_base(registry: ModelRegistry, tmp_path: Path) -> None:
    base = tiny.bert_token_classifier(tmp_path / "base", LABELS)
    registry.register("base", "clinical", model_path=str(base), task="deid", label_scheme="BIO")
    folder = lora(tmp_path / "a", base, task_type="SEQ_CLS", model_class=CLASSIFIER, modules_to_save=["bert.pooler"])
    registry.register("a", "clinical", model_path=str(folder), base="base")
    with registry.lease("a") as lease:
        assert lease.metadata.tasks == ("classify",)
        assert lease.metadata.behaviour.label_scheme is None
    five = lora(tmp_path / "five", base, labels=5)
    registry.register("five", "clinical", model_path=str(five), base="base")
    with pytest.raises(MedVLLMError, match="LABEL_0 to LABEL_4"):
        registry.load_model("five")


def test_a_tokenizer_of_its_own_comes_first(registry: ModelRegistry, tmp_path: Path) -> None:
    """It is the one that the adapter was trained with, also its casing."""
    base, folder = tiny.bert_masked_lm(tmp_path / "base"), tmp_path / "a"
    lora(folder, base)
    own = tiny.bert_masked_lm(tmp_path / "own", do_lower_case=True)
    for name in ("vocab.txt", "tokenizer_config.json"):
        (folder / name).write_bytes((own / name).read_bytes())
    registry.register("base", "clinical", model_path=str(base), do_lower_case=False)
    registry.register("a", "clinical", model_path=str(folder), base="base", id2label=LABELS)
    assert registry.load_tokenizer("a").tokenize("ASPIRIN") == ["aspirin"]
    assert registry.load_tokenizer("base").tokenize("aspirin") == ["aspirin"]
    assert set(registry.lock("a")["a"].files) >= {"vocab.txt", "adapter_config.json", "adapter_model.safetensors"}


def test_an_adapter_of_sentence_transformers_is_pooled_as_its_folder_says(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    base = tiny.bert_masked_lm(tmp_path / "base")
    folder = lora(tmp_path / "a", base, task_type="FEATURE_EXTRACTION", model_class="AutoModel")
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 32, "pooling_mode_cls_token": True})
    )
    registry.register("base", "clinical", model_path=str(base), pooling="max")
    registry.register("a", "clinical", model_path=str(folder), base="base")
    (folder / "2_Normalize").mkdir()
    vectors = registry.runner("a").embed(TEXTS[:1]).vectors
    ids = registry.load_tokenizer("a")(TEXTS[:1], return_tensors="pt")["input_ids"]
    wanted = torch.nn.functional.normalize(peft_answer(base, folder, "AutoModel", ids)[:, 0])
    assert torch.allclose(torch.from_numpy(vectors), wanted, atol=1e-6)
    assert "1_Pooling/config.json" in registry.lock("a")["a"].files


def test_a_runner_runs_the_task_of_an_adapter(ward: ModelRegistry) -> None:
    runner = ModelRunner("one", registry=ward)
    assert runner.task == "ner"
    found = runner.entities(TEXTS, with_receipt=True)
    assert len(found) == 2 and found.receipt is not None
    assert {span.label for entities in found for span in entities.spans} <= {"DRUG"}


# Sharing


def test_adapters_and_callers_of_the_base_share_its_memory(ward: ModelRegistry) -> None:
    one, two, base = (ward.load_model(name) for name in ("one", "two", "base"))
    shared = {tensor.data_ptr() for tensor in base.parameters()}
    for model in (one, two):
        encoder = [weight for name, weight in model.named_parameters() if "lora_" not in name and "bert." in name]
        assert len(encoder) > 20 and {weight.data_ptr() for weight in encoder} <= shared
    listed = {model.name: model for model in ward.loaded_models()}
    assert list(listed) == ["base", "one", "two"]
    assert (listed["one"].base, listed["base"].base) == ("base", None)
    own = 4 * (2 * 2 * (2 * 4 * 32) + 3 * 33)  # two layers with two modules each, and the head
    assert listed["one"].size_bytes == listed["two"].size_bytes == own
    used = ward.statistics().devices["cpu"]
    assert used.cached_bytes == listed["base"].size_bytes + 2 * own
    assert ward.statistics().loaded_by == {"transformers": 1, "adapter": 2}


def test_threads_with_two_adapters_and_the_base_never_get_the_answers_of_another(ward: ModelRegistry) -> None:
    wanted = {name: answer(ward.load_model(name), IDS) for name in ("one", "two", "base")}
    assert not torch.allclose(wanted["one"], wanted["two"], atol=1e-2)
    ward.clear_cache()
    wrong: list[str] = []
    start = threading.Barrier(6)

    def ask(name: str) -> None:
        start.wait()
        for turn in range(15):
            with ward.lease(name) as lease:
                if not torch.equal(answer(lease.model, IDS), wanted[name]):
                    wrong.append(name)
            if turn % 5 == 4:
                ward.evict(name)

    threads = [threading.Thread(target=ask, args=(name,)) for name in (*wanted, *wanted)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    ward.clear_cache()
    assert ward.loaded_models() == []


def test_a_copy_of_your_own_can_be_trained_and_changes_no_other(ward: ModelRegistry) -> None:
    shared, base = ward.load_model("one"), ward.load_model("base")
    before, of_base = answer(shared, IDS), _weights(base)
    own = ward.load_model("one", use_cache=False)
    assert torch.equal(answer(own, IDS), before)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(1)
    assert torch.equal(answer(shared, IDS), before)
    assert all(torch.equal(of_base[name], tensor) for name, tensor in _weights(base).items())


def test_two_threads_that_ask_first_load_base_and_adapter_once(ward: ModelRegistry) -> None:
    start = threading.Barrier(4)
    found: list[Any] = []

    def ask() -> None:
        start.wait()
        found.append(ward.load_model("one"))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(model) for model in found}) == 1
    assert ward.statistics().loads == 2


def test_the_base_has_the_options_of_the_call(ward: ModelRegistry) -> None:
    """Another dtype is another base, and a stated default is the same one."""
    half, whole = ward.load_model("one", dtype="bfloat16"), ward.load_model("one")
    assert whole is ward.load_model("one", dtype="float32", device="cpu")
    assert half.dtype == torch.bfloat16 and half is not whole
    assert [model.dtype for model in ward.loaded_models() if model.base is None] == ["bfloat16", "float32"]


# Memory


def test_a_base_stays_while_an_adapter_of_it_is_in_memory(ward: ModelRegistry) -> None:
    ward.load_model("one")
    assert not ward.offload("base")
    assert [model.name for model in ward.loaded_models()] == ["base", "one"]
    assert ward.evict("one") == 1
    assert [model.name for model in ward.loaded_models()] == ["base"]
    assert ward.evict("base") == 1
    assert ward.statistics().devices == {}


def test_an_evicted_base_takes_its_adapters_along(ward: ModelRegistry) -> None:
    ward.load_model("one")
    ward.load_model("two")
    assert ward.evict("base") == 3
    assert ward.loaded_models() == [] and ward.statistics().devices == {}


def test_a_leased_adapter_keeps_an_evicted_base_until_it_is_released(ward: ModelRegistry) -> None:
    with ward.lease("one") as lease:
        assert ward.evict("base") == 0
        assert [model.name for model in ward.loaded_models()] == ["base", "one"]
        answer(lease.model, IDS)
    assert ward.statistics().devices == {}


def test_an_adapter_that_only_a_caller_holds_counts_with_its_base(ward: ModelRegistry) -> None:
    """Its memory is in use, whatever the cache has evicted."""
    held = ward.load_model("one")
    used = ward.statistics().devices["cpu"]
    ward.clear_cache()
    later = ward.statistics().devices["cpu"]
    assert (later.cached_bytes, later.held_bytes) == (0, used.cached_bytes)
    assert ward.load_model("one") is held
    assert ward.statistics().devices["cpu"] == used
    assert ward.statistics().loads == 2
    ward.clear_cache()
    del held
    assert ward.statistics().devices == {}


def test_room_is_made_from_adapters_and_then_their_base(
    ward: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tiny.bert_masked_lm(tmp_path / "other", seed=5)
    ward.register("other", "clinical", model_path=str(other))
    ward.load_model("one")
    sizes = {model.name: model.size_bytes for model in ward.loaded_models()}
    total = sum(sizes.values())
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={total + 100}B")
    plan = ward.plan("other")
    assert plan.fit == "after eviction" and [leaving.name for leaving in plan.leaving] == ["one", "base"]
    # A second adapter fits in place of the first: its base stays.
    plan = ward.plan("two")
    assert (plan.fit, plan.size_bytes) == ("after eviction", sizes["one"])
    assert [leaving.name for leaving in plan.leaving] == ["one"]
    ward.load_model("two")
    assert [model.name for model in ward.loaded_models()] == ["base", "two"]
    ward.load_model("other")
    assert [model.name for model in ward.loaded_models()] == ["other"]


def test_a_plan_counts_a_base_that_is_not_in_memory(ward: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ward.plan("one")
    ward.load_model("one")
    needed = sum(model.size_bytes for model in ward.loaded_models())
    assert plan.fit == "now" and abs(plan.size_bytes - needed) < 6_000  # the headers have no position ids
    assert ward.plan("one").fit == "loaded"
    ward.clear_cache()
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={needed - 1_000}B")
    assert ward.plan("one").fit == "never"
    with pytest.raises(BudgetError):
        ward.load_model("one")
    assert ward.loaded_models() == []


def test_a_leased_adapter_keeps_its_base_from_eviction(
    ward: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ward.register("other", "clinical", model_path=str(tiny.bert_masked_lm(tmp_path / "other", seed=5)))
    with ward.lease("one"):
        monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", "cpu=150KB")
        monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "0.1")
        assert ward.plan("other").fit == "later"
        with pytest.raises(BudgetError):
            ward.load_model("other")
    ward.load_model("other")


def test_a_pinned_adapter_pins_its_base(ward: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ward.register("other", "clinical", model_path=str(tiny.bert_masked_lm(tmp_path / "other", seed=5)))
    ward.load_model("one", keep_alive=-1)
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", "cpu=150KB")
    monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "0.1")
    with pytest.raises(BudgetError):
        ward.load_model("other")
    assert [model.name for model in ward.loaded_models()] == ["base", "one"]


def test_a_base_of_a_pinned_adapter_never_makes_room(ward: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    ward.load_model("one", keep_alive=-1)
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", "cpu=150KB")
    assert ward.plan("base", dtype="float64").fit == "never"
    assert ward.plan("two").fit == "now"
    monkeypatch.setenv("MEDVLLM_MAX_MODELS", "1")
    assert ward.plan("base", dtype="bfloat16").fit == "never"


def test_adapters_do_not_count_as_models_of_their_own(ward: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLLM_MAX_MODELS", "1")
    ward.load_model("one")
    ward.load_model("two")
    assert [model.name for model in ward.loaded_models()] == ["base", "one", "two"]


def test_a_base_without_keep_alive_leaves_with_its_last_adapter(registry: ModelRegistry, tmp_path: Path) -> None:
    base = tiny.bert_masked_lm(tmp_path / "base")
    registry.register("base", "clinical", model_path=str(base), keep_alive="0")
    for name in ("one", "two"):
        folder = lora(tmp_path / name, base)
        registry.register(name, "clinical", model_path=str(folder), base="base", id2label=LABELS)
        registry.load_model(name)
    registry.evict("one")
    assert [model.name for model in registry.loaded_models()] == ["base", "two"]
    registry.evict("two")
    assert registry.loaded_models() == []


# Files


def test_an_adapter_is_pinned_locked_and_verified_as_any_model(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path
) -> None:
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "base"))
    hub.add("acme/lora", lora(tmp_path / "a", tmp_path / "base", stated_base="acme/bert"))
    registry.register("acme/bert", "clinical")
    registry.register("a", "clinical", model_path="acme/lora", base="acme/bert", id2label=LABELS)
    locked = registry.lock("a", "acme/bert")
    assert locked["a"].commit == hub.commit("acme/lora")
    assert set(locked["a"].files) == {"adapter_config.json", "adapter_model.safetensors"}
    receipt = registry.runner("a").entities(TEXTS, with_receipt=True).receipt
    assert receipt is not None and receipt.base is not None
    assert receipt.snapshot == f"acme/lora@{hub.commit('acme/lora')}"
    assert receipt.base.snapshot == f"acme/bert@{hub.commit('acme/bert')}"
    said = receipt.to_dict()
    assert said["verified"]["locked"] and said["base"]["verified"]["locked"]
    assert said["base"]["verified"]["digest"] == locked["acme/bert"].digest != said["verified"]["digest"]
    assert said["declared"]["base"]["value"] == "acme/bert"
    assert said["verified"]["architecture"] == "bert"
    assert registry.verify("a") == {"a": {}}
    # Nothing but the files of both was asked for.
    asked = {Path(request.path).name for request in hub.requests("/resolve/")}
    assert asked <= {*locked["a"].files, *locked["acme/bert"].files}


def test_changed_bytes_of_adapter_or_base_are_refused(ward: ModelRegistry, tmp_path: Path) -> None:
    ward.lock("one", "base")
    ward.load_model("one")
    for file in ("one/adapter_model.safetensors", "base/model.safetensors"):
        content = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(DigestMismatchError, match=f"model '{file.partition('/')[0]}'"):
            ward.load_model("one")
        (tmp_path / file).write_bytes(content)
        ward.load_model("one")


def test_new_files_of_the_base_are_a_new_model(ward: ModelRegistry, tmp_path: Path) -> None:
    before = answer(ward.load_model("one"), IDS)
    newer = tiny.bert_masked_lm(tmp_path / "newer", seed=7)
    (tmp_path / "base" / "model.safetensors").write_bytes((newer / "model.safetensors").read_bytes())
    found = answer(ward.load_model("one"), IDS)
    assert torch.allclose(found, peft_answer(tmp_path / "base", tmp_path / "one", TAGGER, IDS), atol=1e-6)
    assert not torch.allclose(found, before, atol=1e-3)


def test_only_locked_bases_serve_where_a_lock_is_required(ward: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    ward.lock("one")
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    with pytest.raises(DigestMismatchError, match="'base' is not in"):
        ward.load_model("one")


def test_a_pickled_adapter_is_converted(registry: ModelRegistry, tmp_path: Path) -> None:
    base = tiny.bert_masked_lm(tmp_path / "base")
    folder = lora(tmp_path / "a", base)
    wanted = peft_answer(base, folder, TAGGER, IDS)
    file = folder / "adapter_model.safetensors"
    torch.save(load_file(file), folder / "adapter_model.bin")
    file.unlink()
    convert(folder, adapter=True)
    registry.register("base", "clinical", model_path=str(base))
    registry.register("a", "clinical", model_path=str(folder), base="base", id2label=LABELS)
    assert torch.allclose(answer(registry.load_model("a"), IDS), wanted, atol=1e-6)
    assert set(registry.lock("a")["a"].converted) == {"model.safetensors"}


def test_a_bundle_carries_the_base_too(ward: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = answer(ward.load_model("one"), IDS)
    ward.lock("one", "base")
    exported = ward.export(tmp_path / "one.bundle", "one")
    assert set(exported.models) == {"one@1", "base@1"} or set(exported.models) == {"one", "base"}
    for setting, place in (("HOME", "medvllm"), ("LOCK_FILE", "medvllm.lock")):
        monkeypatch.setenv(f"MEDVLLM_{setting}", str(tmp_path / "site" / place))
    (tmp_path / "site").mkdir()
    there = ModelRegistry()
    there.import_bundle(tmp_path / "one.bundle", lock=True)
    assert torch.equal(answer(there.load_model("one"), IDS), wanted)
    assert there.verify() and not any(there.verify().values())
    there.clear_cache()


def test_a_copied_folder_serves_without_the_first(ward: ModelRegistry, tmp_path: Path) -> None:
    wanted = answer(ward.load_model("one"), IDS)
    facts: dict[str, Any] = {"model_path": str(tmp_path / "one"), "base": "base", "id2label": LABELS}
    ward.register("kept", "clinical", copy=True, **facts)
    (tmp_path / "one" / "adapter_model.safetensors").unlink()
    assert torch.equal(answer(ward.load_model("kept"), IDS), wanted)


def test_the_command_line_registers_and_runs_an_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny.bert_masked_lm(tmp_path / "base")
    folder = lora(tmp_path / "a", base)
    command(monkeypatch, "register", "base", "--type", "clinical", "--path", str(base))
    labels = f"id2label={json.dumps(LABELS)}"
    done = command(
        monkeypatch, "register", "a", "--type", "clinical", "--path", str(folder), "--base", "base", "--fact", labels
    )
    assert done.code == 0, done.err
    assert "base" in command(monkeypatch, "show", "a").out
    row = next(row for row in json.loads(command(monkeypatch, "list", "--json").out) if row["name"] == "a")
    assert row["base"] == "base" and row["task"] == "ner"
    ran = command(monkeypatch, "run", "a", TEXTS[0])
    assert ran.code == 0, ran.err


# Refusals


def test_an_adapter_without_a_base_says_how_to_register_it(registry: ModelRegistry, tmp_path: Path) -> None:
    folder = lora(tmp_path / "a", tiny.bert_masked_lm(tmp_path / "base"))
    advice = f"medvllm register NAME --type TYPE --path {folder} --base BASE"
    with pytest.raises(SourceError, match="holds an adapter, not a model") as error:
        registry.load_model(str(folder))
    assert advice in str(error.value)
    with pytest.raises(SourceError, match="--base BASE"):
        registry.register("a", "clinical", model_path=str(folder))


def test_a_base_must_be_a_registered_model(ward: ModelRegistry, tmp_path: Path) -> None:
    for base, kind, match in (
        ("nonesuch", ModelNotFoundError, "its base 'nonesuch' is not registered"),
        ("one", CatalogError, "an adapter itself"),
    ):
        with pytest.raises(kind, match=match):
            ward.register("a", "clinical", model_path=str(tmp_path / "one"), base=base)
    with pytest.raises(IncompleteSnapshotError, match=r"has no adapter_config.json"):
        ward.register("a", "clinical", model_path=str(tmp_path / "base"), base="base")
    ward.register("gone", "clinical", model_path=str(tmp_path / "base"))
    ward.register("a", "clinical", model_path=str(tmp_path / "one"), base="gone", id2label=LABELS)
    ward.unregister("gone")
    with pytest.raises(ModelNotFoundError, match="its base 'gone' is not registered"):
        ward.load_model("a")


def test_an_adapter_of_another_repository_is_refused(
    registry: ModelRegistry, hub: LoopbackHub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nothing can tell, a warning says so."""
    base = tiny.bert_masked_lm(tmp_path / "base")
    hub.add("acme/bert", base)
    folder = lora(tmp_path / "a", base, stated_base="acme/other-bert")
    registry.register("acme/bert", "clinical")
    registry.register("a", "clinical", model_path=str(folder), base="acme/bert", id2label=LABELS)
    with pytest.raises(LoadError, match="trained on 'acme/other-bert', but its base 'acme/bert'"):
        registry.load_model("a")
    registry.register("same", "clinical", model_path="acme/bert", also_known_as=["acme/other-bert"])
    registry.register("b", "clinical", model_path=str(folder), base="same", id2label=LABELS)
    registry.load_model("b")
    assert "nothing shows" not in caplog.text
    registry.register("folder", "clinical", model_path=str(base))
    registry.register("c", "clinical", model_path=str(folder), base="folder", id2label=LABELS)
    registry.load_model("c")
    assert "nothing shows that its base 'folder' is the same model" in caplog.text


FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "other kind": ({"peft_type": "IA3"}, "kind 'IA3'"),
    "prompts": ({"peft_type": "PREFIX_TUNING"}, "kind 'PREFIX_TUNING'"),
    "no kind": ({"peft_type": None}, "does not say its kind"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "changes the weights of its base"),
    "OLoRA": ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    "LoftQ": ({"init_lora_weights": "loftq"}, "changes the weights of its base"),
    "layers": ({"layer_replication": [[0, 2], [1, 2]]}, "'layer_replication'"),
    "tokens": ({"trainable_token_indices": [3, 4]}, "'trainable_token_indices'"),
    "parameters": ({"target_parameters": ["experts.w"]}, "'target_parameters'"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, "'alora_invocation_tokens'"),
    "later field": ({"from_the_future": 1}, "'from_the_future'"),
    "no modules": ({"target_modules": None}, "names no modules"),
    "absent modules": ({"target_modules": ["nonesuch"]}, "No modules were targeted"),
    "fewer modules": ({"target_modules": ["query"]}, "no place"),
    "more modules": ({"target_modules": ["query", "value", "key"]}, "lacks .*key"),
    "other rank": ({"r": 8}, r"does not fit its base: .*\[4, 32\].*\[8, 32\]"),
    "other task": ({"task_type": "SEQ_2_SEQ_LM"}, "no class for it"),
    "unknown task": ({"task_type": "TELEPATHY"}, "task_type='TELEPATHY'"),
    "DoRA": ({"use_dora": True}, "lacks .*magnitude"),
}


def test_what_is_not_understood_is_refused_by_name(ward: ModelRegistry, tmp_path: Path) -> None:
    for case, (fields, match) in FIELDS.items():
        folder = _edit(tiny.copy(tmp_path / "one", tmp_path / case), **fields)
        ward.register(case, "clinical", model_path=str(folder), base="base", id2label=LABELS)
        with pytest.raises(LoadError, match=match):
            ward.load_model(case)


def _drop(name: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[next(key for key in tensors if name in key)]

    return change


def _add(name: str, *shape: int) -> Callable[[dict[str, torch.Tensor]], None]:
    return lambda tensors: tensors.update({name: torch.zeros(shape)})


WEIGHTS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], None], str]] = {
    "lora_A": (_drop("lora_A"), "lacks .*lora_A"),
    "lora_B": (_drop("lora_B"), "lacks .*lora_B"),
    "head": (_drop("classifier.weight"), "lacks .*classifier.weight"),
    "bias of the head": (_drop("classifier.bias"), "lacks .*classifier.bias"),
    "unknown": (_add("base_model.model.nonesuch.weight", 2), "no place .*nonesuch"),
    "foreign layer": (
        _add("base_model.model.bert.encoder.layer.7.attention.self.query.lora_A.weight", 4, 32),
        "no place",
    ),
    "weight of the base": (_add("base_model.model.bert.encoder.layer.0.output.dense.weight", 32, 64), "no place"),
    "bias of the base": (_add("base_model.model.bert.encoder.layer.0.output.dense.bias", 32), "no place"),
    "twice": (_add("classifier.bias", 3), "twice"),
}


def test_every_weight_is_used_and_none_is_missing(ward: ModelRegistry, tmp_path: Path) -> None:
    """A refused adapter has not touched the base."""
    before = _weights(ward.load_model("base"))
    for case, (change, match) in WEIGHTS.items():
        folder = _edit_weights(tiny.copy(tmp_path / "one", tmp_path / case), change)
        ward.register(case, "clinical", model_path=str(folder), base="base", id2label=LABELS)
        with pytest.raises(LoadError, match=match):
            ward.load_model(case)
    assert all(torch.equal(before[name], tensor) for name, tensor in _weights(ward.load_model("base")).items())


def test_the_number_of_labels_must_fit(ward: ModelRegistry, tmp_path: Path) -> None:
    ward.register("a", "clinical", model_path=str(tmp_path / "one"), base="base", id2label=["O", "B-DRUG"])
    with pytest.raises(WeightsMismatchError, match="2 names .*3 labels"):
        ward.load_model("a")
    ward.register("b", "clinical", model_path=str(tmp_path / "one"), base="base")
    with pytest.raises(WeightsMismatchError, match="LABEL_0 to LABEL_2"):
        ward.load_model("b")


def test_a_base_of_another_size_is_refused(ward: ModelRegistry, tmp_path: Path) -> None:
    wide = tiny.bert(tmp_path / "wide", BertForMaskedLM, config={"hidden_size": 64})
    ward.register("wide", "clinical", model_path=str(wide))
    ward.register("a", "clinical", model_path=str(tmp_path / "one"), base="wide", id2label=LABELS)
    with pytest.raises(LoadError, match="does not fit its base"):
        ward.load_model("a")


def test_a_missing_pooler_is_never_random(registry: ModelRegistry, tmp_path: Path) -> None:
    base = tiny.bert_encoder(tmp_path / "base", pooler=False)
    folder = lora(tmp_path / "a", base, task_type="SEQ_CLS", model_class=CLASSIFIER)
    registry.register("base", "clinical", model_path=str(base))
    registry.register("a", "clinical", model_path=str(folder), base="base")
    with pytest.raises(WeightsMismatchError, match="lacks bert.pooler"):
        registry.load_model("a")


def test_without_peft_an_adapter_says_what_to_install(ward: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its base is loaded. Its tokenizer and its plan need no PEFT."""
    monkeypatch.setitem(sys.modules, "peft", None)
    assert ward.load_tokenizer("one").tokenize("aspirin") == ["aspirin"] and ward.plan("one").fit == "now"
    for use_cache in (True, False):
        with pytest.raises(MissingDependencyError, match=r"pip install 'medvllm\[peft\]'"):
            ward.load_model("one", use_cache=use_cache)
    assert not ward.loaded_models()
    ward.load_model("base")
