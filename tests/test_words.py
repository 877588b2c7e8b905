"""Words of filters and facts: understood as other tools say them, and refused with a suggestion otherwise."""

from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import RequestError


@pytest.mark.parametrize(
    ("word", "task"),
    [
        ("token-classification", "ner"),
        ("Token_Classification", "ner"),
        ("feature-extraction", "embed"),
        ("sentence-similarity", "embed"),
        ("fill_mask", "fill-mask"),
        ("text-classification", "classify"),
        ("text-generation", "generate"),
        ("text-ranking", "rerank"),
        ("NER", "ner"),
        ("triage", "triage"),
    ],
)
def test_tasks_are_understood_as_pipelines_call_them(registry: ModelRegistry, word: str, task: str) -> None:
    """In an entry, stored or not, and in a filter; a word of one's own stays."""
    registry.register("own", "generic", task=word, tags="x")
    registry.register("kept", "generic", task=word, tags=["x"], persist=True)
    assert registry.get_metadata("own").behaviour.task == registry.get_metadata("kept").behaviour.task == task
    assert registry.list_models(task=word, tags="x").keys() == {"own", "kept"}
    assert registry.list_models(task=task).keys() >= {"own", "kept"}


@pytest.mark.parametrize(
    "word", ["nerr", "embde", "token-classificaton", "fill-maks", "clasify", "tokenclassification"]
)
def test_a_misspelt_task_is_named_with_the_nearest(registry: ModelRegistry, word: str) -> None:
    """To register and to list."""
    for act in (
        lambda: registry.register("m", "generic", task=word),
        lambda: registry.register("m", "generic", task=word, persist=True),
        lambda: registry.list_models(task=word),
    ):
        with pytest.raises(RequestError, match=f"Task '{word}' .*Did you mean: .*\n.*embed"):
            act()
    assert "m" not in registry.list_models()


def test_a_task_that_no_entry_has_is_no_empty_answer(registry: ModelRegistry) -> None:
    """One of ours is, and one that other filters leave nothing of."""
    with pytest.raises(RequestError, match="Task 'xyzzy' does not exist.\nUse one of: embed"):
        registry.list_models(task="xyzzy")
    assert registry.list_models(task="rerank", match="nothing*") == {}
    registry.register("m", "generic", task="triage")
    assert registry.list_models(task="triage", match="nothing*") == {}
    with pytest.raises(RequestError, match="Did you mean: 'triage'"):
        registry.list_models(task="triag")


def test_labels_and_their_scheme_are_taken_as_elsewhere(registry: ModelRegistry) -> None:
    """By id, as a config.json has them, whatever the order; BIOES is BILOU in other letters."""
    for labels in ({0: "O", 1: "B-X"}, {"1": "B-X", "0": "O"}, ["O", "B-X"], ("O", "B-X")):
        entry = registry.register("m", "generic", id2label=labels, replace=True)
        assert entry.behaviour.id2label == ("O", "B-X")
    for scheme, here in (("BIOES", "BILOU"), ("iobes", "BILOU"), ("BILUO", "BILOU"), ("bio", "BIO"), ("IOB2", "BIO")):
        entry = registry.register("m", "generic", label_scheme=scheme, replace=True)
        assert entry.behaviour.label_scheme == here
        assert "m" in registry.list_models(label_scheme=scheme)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"id2label": {0: "O", 2: "B-X"}}, "every class from 0 to 1, but 1 is missing"),
        ({"id2label": {"a": "O", 0: "B"}}, "every class from 0 to 1, but 1 is missing"),
        ({"id2label": {0: "O", "00": "B"}}, "for every class"),
        ({"id2label": {}}, ""),
        ({"id2label": {0: 5}}, "must be a list of texts"),
        ({"id2label": "O"}, "must be a list of texts"),
        ({"label_scheme": "IOB1"}, "must be 'BIO' or 'BILOU' or 'IO'.*not 'IOB1'"),
    ]
    for facts, words in wrong:
        if words:
            with pytest.raises(RequestError, match=words):
                registry.register("n", "generic", **facts)


def test_one_text_stands_for_a_list_of_one(registry: ModelRegistry) -> None:
    """In an entry as in a filter."""
    registry.register("m", "generic", tags="bert", languages="en", also_known_as="acme/m")
    entry = registry.get_metadata("acme/m")
    assert (entry.tags, entry.intended_use.languages) == (["bert"], ("en",))
    assert "m" in registry.list_models(tags="bert", languages="en")


WRONG: list[dict[str, Any]] = [
    {"match": 5},
    {"match": ["a"]},
    {"match": b"a"},
    {"search": 5},
    {"task": 5},
    {"task": ["ner"]},
    {"tags": 5},
    {"tags": [5]},
    {"tags": {"a": 1}},
    {"after": 5},
    {"limit": 0},
    {"limit": True},
    {"limit": "3"},
    {"limit": 2.0},
    {"model_type": 5},
    {"model_type": "clincal"},
    {"license": ["mit"]},
    {"license": 1j},
    {"license": b"mit"},
    {"licence": "mit"},
    {"pooling": "maen"},
    {"gated": "perhaps"},
    {"label_scheme": "BIX"},
    {"license_status": "declard"},
    {"origin": "sotred"},
    {"role": "querry"},
]


@pytest.mark.parametrize("filters", WRONG, ids=repr)
def test_a_filter_of_a_wrong_kind_is_our_error(registry: ModelRegistry, filters: dict[str, Any]) -> None:
    """And not an empty answer, nor an error of Python's own."""
    with pytest.raises(RequestError):
        registry.list_models(**filters)


def test_filters_that_fit_are_taken(registry: ModelRegistry) -> None:
    """Globs on any of them, and None for what is not known."""
    assert registry.list_models(pooling="m?an", license_status="decl*", origin="BUILT-IN", gated=False) is not None
    assert registry.list_models(gated="false").keys() == registry.list_models(gated=False).keys()
    assert registry.list_models(pooling=None) and registry.list_models(tags=()) == registry.list_models()


@pytest.mark.parametrize("glob", ["[" * 100_000, "*a" * 5000, "?" * 50_000, "[a-z]" * 20_000, "*" * 100_000])
def test_a_pattern_is_bounded(registry: ModelRegistry, glob: str) -> None:
    """One that takes minutes to compile is refused; a long text without signs is compared as it is."""
    registry.register("m", "generic", description="a" * 100_000)
    for filters in ({"match": glob}, {"description": glob}):
        with pytest.raises(RequestError, match=r"has \d+,000 characters.*1,000"):
            registry.list_models(**filters)  # type: ignore[arg-type]
    assert registry.list_models(description="a" * 100_000).keys() == {"m"}
    for short in ("[" * 1000, "*a" * 500, "[a-z]" * 200, "*" * 1000):
        registry.list_models(match=short)
        registry.list_models(description=short)
