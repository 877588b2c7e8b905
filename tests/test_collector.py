"""Python's garbage collector looks at all that is imported: it runs for what lingers, and never inside a rebuild."""

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.loading.replay import templates
from tests.support import tiny


@contextmanager
def _runs() -> Iterator[list[int]]:
    """Yield the generations that the collector looks at meanwhile."""
    runs: list[int] = []

    def note(phase: str, facts: dict[str, int]) -> None:
        if phase == "start":
            runs.append(facts["generation"])

    gc.callbacks.append(note)
    try:
        yield runs
    finally:
        gc.callbacks.remove(note)


@contextmanager
def _only_when_asked() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def names(registry: ModelRegistry, tmp_path: Path) -> list[str]:
    """Three models, each of which has been loaded once."""
    found = []
    for number in range(3):
        name = f"m{number}"
        registry.register(name, "generic", model_path=str(tiny.bert_encoder(tmp_path / name)))
        registry.load_model(name)
        found.append(name)
    registry.clear_cache()
    return found


def test_nothing_is_collected_where_nothing_lingers(
    registry: ModelRegistry, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loads, evictions of all kinds, and loads that take the place of another model."""
    with _only_when_asked(), _runs() as runs:
        for name in names:
            registry.load_model(name)
        assert registry.evict(names[0]) == 1
        registry.clear_cache()
        registry.load_model(names[0])
        assert registry.offload(names[0])
        monkeypatch.setenv("MEDVLLM_MAX_MODELS", "1")
        for name in (*names, *names):
            registry.load_model(name)
        registry.register(names[2], "generic", model_path=registry.get_metadata(names[0]).location, replace=True)
        assert registry.loaded_models() == []
    assert runs == []


@pytest.mark.parametrize("way", ["evict", "clear_cache", "offload"])
def test_what_lingers_is_collected(registry: ModelRegistry, names: list[str], way: str) -> None:
    """A model that refers to itself goes with its eviction."""
    model: Any = registry.load_model(names[0])
    model.__dict__["itself"] = [model]
    kept = weakref.ref(model)
    del model
    with _only_when_asked(), _runs() as runs:
        if way == "clear_cache":
            registry.clear_cache()
        else:
            getattr(registry, way)(names[0])
        assert kept() is None and runs == [2]


def test_no_collection_inside_a_rebuild(registry: ModelRegistry, names: list[str]) -> None:
    """Also where the collector would look after every second object. What the caller has set stays."""
    *_, template = templates
    thresholds = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        with _runs() as runs:
            model: Any = template.rebuild()
    finally:
        gc.set_threshold(*thresholds)
    assert model is not None and len(runs) < len(list(model.modules()))  # what is left is before and after it
    assert gc.isenabled()
    with _only_when_asked():
        template.rebuild()
        assert not gc.isenabled()


def test_a_rebuilt_model_is_no_work_for_the_next_collection(registry: ModelRegistry, names: list[str]) -> None:
    """Its objects are old at once. Objects that the program has frozen stay frozen."""
    *_, template = templates
    frozen = gc.get_freeze_count()
    assert frozen > 0  # by tests/conftest.py
    template.rebuild()
    assert gc.get_freeze_count() > frozen / 2  # some of them have gone meanwhile
    gc.unfreeze()
    try:
        model: Any = template.rebuild()
        old = {id(found) for found in gc.get_objects(generation=2)}
        assert id(model) in old and all(id(vars(module)) in old for module in model.modules())
    finally:
        gc.freeze()
