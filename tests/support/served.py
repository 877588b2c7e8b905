"""A registry with a tiny model for each task, for servers."""

from pathlib import Path

from medvllm.engine.model_runner import ModelRegistry
from tests.support import cross_encoders, decoders, taggers, tiny

NOTE = "Dr. Müller 😀 saw Jones on 03/14/2019."
LABELS = ["PRESENT", "ABSENT", "POSSIBLE"]
_DOCUMENTED = {
    "my-tagger": "deid",
    "my-deid": "deid",
    "my-classifier": "cls",
    "my-judge": "assert",
    "my-bert": "mlm",
    "my-reranker": "rank",
    "my-encoder": "minilm",
}
_IDENTIFIERS = {"Müller": "B-NAME", "Jones": "B-NAME", "03/14/2019": "B-DATE"}


def registry_of_all_tasks(folder: Path) -> ModelRegistry:
    """A registry with the models deid, cut (a tagger that cuts long texts), cls, assert, mlm, rank and minilm."""
    registry = ModelRegistry()
    deid = taggers.mark(folder / "deid", "wordpiece", NOTE, _IDENTIFIERS, ["O", "B-NAME", "B-DATE"])
    cut = tiny.bert_token_classifier(folder / "cut", ["O", "B-NAME", "I-NAME"])
    cls = tiny.bert_sequence_classifier(folder / "cls", config=tiny.labelled(LABELS))
    minilm, rank = cross_encoders.MINILM, cross_encoders.write(folder / "rank")
    mlm = tiny.bert_masked_lm(folder / "mlm")
    markers = ["[entity] ", " [entity]"]
    registry.register("deid", "clinical", model_path=str(deid), task="deid", languages=["en"])
    registry.register("cut", "clinical", model_path=str(cut), task="ner", max_length=8, long_input="truncate")
    registry.register("cls", "clinical", model_path=str(cls), task="classify")
    registry.register("assert", "clinical", model_path=str(cls), task="assertions", entity_markers=markers)
    registry.register("mlm", "clinical", model_path=str(mlm), task="fill-mask")
    registry.register("rank", "clinical", model_path=str(rank), task="rerank")
    registry.register("minilm", "clinical", model_path=str(minilm), task="embed")
    return registry


def registry_of_documentation(folder: Path) -> ModelRegistry:
    """A registry with a model for each name that the documentation of the server has in its examples."""
    registry = registry_of_all_tasks(folder)
    decoder = decoders.llama(folder / "decoder")
    registry.register("my-decoder", "clinical", model_path=str(decoder), task="generate")
    for name, other in _DOCUMENTED.items():
        entry = registry.get_metadata(other)
        facts = {"languages": ["en"]} if other == "deid" else {}
        markers = {"entity_markers": list(entry.behaviour.entity_markers)} if other == "assert" else {}
        registry.register(name, "clinical", model_path=entry.location, task=entry.behaviour.task, **facts, **markers)
    return registry
