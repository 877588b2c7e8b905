"""A protected alias: what does not meet its conditions is said, and not loaded; and the ways around it are closed."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from medvllm.catalog import StoredCatalog
from medvllm.cli.alias import _state
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import CatalogError, DigestMismatchError, MedVLLMError
from tests.support import tiny


@pytest.fixture
def folders(registry: ModelRegistry, tmp_path: Path) -> list[Path]:
    """Two versions of a model: the first is locked and has a baseline, and the protected alias points to it."""
    found = [tiny.bert_masked_lm(tmp_path / f"m{i}", seed=i) for i in range(2)]
    for folder in found:
        _put(registry, folder)
    registry.lock("m@1")
    ModelRunner("m@1", registry=registry).record_baseline()
    registry.catalog.set_alias("m", "production", 1)
    registry.catalog.protect("m", "production")
    registry.load_tokenizer("m@production")
    return found


def _put(registry: ModelRegistry, folder: Path, **facts: Any) -> None:
    registry.register("m", "clinical", model_path=str(folder), task="fill-mask", persist=True, replace=True, **facts)


def _said(registry: ModelRegistry) -> str | None:
    (alias,) = (alias for alias in registry.catalog.aliases("m") if alias.alias == "production")
    return _state(alias, registry.catalog.unmet_requirements(alias))


def test_a_version_without_a_baseline_is_not_loaded(registry: ModelRegistry, folders: list[Path]) -> None:
    """By any name of the version; the commands of the error lead out."""
    assert _said(registry) == "protected"
    registry.catalog.update("m@1", baseline=None, baseline_digest=None, reason="made with the wrong texts")
    assert _said(registry) == "protected, not met: a baseline"
    for name in ("m@production", "m@1", "models:/m@production"):
        for load in (registry.load_model, registry.load_tokenizer, registry.pull):
            with pytest.raises(CatalogError, match="'m@1' was not loaded: the protected alias 'production'"):
                load(name)
    registry.load_tokenizer("m@2")
    registry.catalog.protect("m", "production", False, reason="why")
    registry.lock("m@1")
    ModelRunner("m@1", registry=registry).record_baseline()
    registry.catalog.protect("m", "production")
    assert registry.load_model("m@production") is registry.load_model("m@1") and _said(registry) == "protected"


def test_files_that_are_others_are_said_and_not_loaded(registry: ModelRegistry, folders: list[Path]) -> None:
    """Of a folder; also in a version that never had a baseline, which a file of entries may point to."""
    text = registry.catalog.export()
    (folders[0] / "vocab.txt").write_text((folders[0] / "vocab.txt").read_text().replace("heart\n", "kidney\n"))
    assert _said(registry) == "protected, not met: the files of its baseline"
    with pytest.raises(DigestMismatchError):
        registry.load_model("m@production")
    (folders[0] / "config.json").unlink()
    said = _said(registry)
    assert said is not None and said.startswith("protected, not met: its files: ")
    other = StoredCatalog(folders[0].parent / "other.db")
    other.create()
    aliases = "[aliases.m.production]\nversion = 2\nprotected = true\n"
    other.apply(text.partition("[aliases")[0] + "[aliases]\n" + aliases)
    theirs = ModelRegistry()
    theirs._catalog._stored = other
    with pytest.raises(CatalogError, match="'m@2' was not loaded"):
        theirs.load_model("m@production")


def test_the_ways_around_it_are_closed(registry: ModelRegistry, folders: list[Path], home: Path) -> None:
    """Going back to an earlier schema, removing and registering anew, a file of entries, an other name."""
    catalog = registry.catalog
    with pytest.raises(MedVLLMError, match="protected aliases"):
        catalog.migrate("0001")
    text = catalog.export()
    for without in (
        text.replace("protected = true", "protected = false"),
        text.partition("[aliases")[0] + "[aliases]\n",
        text.replace("version = 1", "version = 2"),
        "[models]\n",
    ):
        assert without != text
        with pytest.raises(CatalogError, match="is protected"):
            catalog.apply(without)
        assert catalog.plan(without)[1], without
    for force in (False, True):
        with pytest.raises(CatalogError):
            registry.unregister("m", persist=True, force=force)
    assert registry.get_metadata("m@production").version == 1
    registry.unregister("m", persist=True, force=True, reason="a new beginning")
    _put(registry, folders[1])
    with pytest.raises(CatalogError, match="is protected, and version 3 lacks"):
        catalog.set_alias("m", "production", 3, reason="r")
    registry.unregister("m", persist=True)
    with pytest.raises(CatalogError, match="'n' cannot also be known as 'm', .* 'production'"):
        registry.register("n", "clinical", also_known_as=["m"], persist=True)
    with pytest.raises(CatalogError, match="cannot also be known as 'm'"):
        catalog.apply('[models.n]\nmodel_type = "generic"\nalso_known_as = ["m"]\n')
    assert catalog.check_history()[2] == []
    assert not list(home.rglob("*.backup"))


def test_the_meaning_of_the_bare_name_is_kept_too(registry: ModelRegistry, folders: list[Path]) -> None:
    """Once `default` is protected: it cannot be taken away, so that the newest version would be meant."""
    catalog = registry.catalog
    catalog.set_alias("m", "default", 1)
    catalog.protect("m", "default")
    for act in (
        lambda: catalog.remove_alias("m", "default", reason="r"),
        lambda: registry.unregister("m@1", persist=True, force=True, reason="r"),
        lambda: catalog.set_alias("m", "default", 2, reason="r"),
    ):
        with pytest.raises(CatalogError, match="'default' of model 'm' is protected"):
            act()
    _put(registry, folders[1], description="newer")
    assert registry.get_metadata("m").version == 1
    catalog.protect("m", "default", False, reason="r")
    assert registry.get_metadata("m").version == 1
    catalog.remove_alias("m", "default")
    assert registry.get_metadata("m").version == 3


def test_a_database_that_was_taken_back_by_hand_is_noticed(registry: ModelRegistry, folders: list[Path]) -> None:
    """The history knows what was protected."""
    with sqlite3.connect(registry.catalog.where) as file:
        file.execute("UPDATE catalog_aliases SET guarded = 0")
    file.close()
    assert registry.catalog.check_history()[2] == ["alias 'production' of 'm' is not what its events say"]
