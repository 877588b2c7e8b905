"""The public types: mypy reads this file in `make lint`; here its assertions hold at run time too."""

from pathlib import Path
from typing import Any, assert_type

from transformers import BertForMaskedLM, PreTrainedModel

from medvllm.catalog import StoredCatalog
from medvllm.catalog.events import Alias, Event
from medvllm.engine.model_runner import ModelMetadata, ModelRegistry, ModelType
from tests.support import tiny


def test_what_the_methods_return(registry: ModelRegistry, tmp_path: Path) -> None:
    """A model class given by the caller is the type of the result."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    metadata = registry.register("m", ModelType.CUSTOM, model_path=str(folder))
    assert_type(metadata, ModelMetadata)
    assert_type(registry.list_models(), dict[str, ModelMetadata])
    assert_type(registry.get_metadata("m"), ModelMetadata)
    typed = registry.load_model("m", model_class=BertForMaskedLM)
    assert_type(typed, BertForMaskedLM)
    assert type(typed) is BertForMaskedLM
    assert_type(registry.load_model("m"), PreTrainedModel)
    assert_type(registry.load_model("m", model_class="transformers:BertForMaskedLM"), PreTrainedModel)
    assert_type(registry.evict("m"), int)
    assert_type("m" in registry._model_cache, bool)
    with registry.lease("m") as lease:
        assert_type(lease.model, Any)
        assert_type(lease.metadata, ModelMetadata)
        assert_type(lease.size_bytes, int)


def test_what_the_catalogue_returns(registry: ModelRegistry) -> None:
    """Entries, aliases and events."""
    registry.register("m", "custom", persist=True, reason="a test")
    catalog = registry.catalog
    assert_type(catalog, StoredCatalog)
    assert_type(catalog.set_alias("m", "production", 1), Alias)
    assert_type(catalog.aliases(), list[Alias])
    assert_type(catalog.versions("m"), dict[int, ModelMetadata])
    assert_type(catalog.tag("m", add={"reviewed": None, "owner": "radiology"}), ModelMetadata)
    assert_type(catalog.update("m", deprecated="old"), list[ModelMetadata])
    assert_type(catalog.history("m", since="2026-01-01"), list[Event])
    assert_type(catalog.check_history(), tuple[int, str, list[str]])
    assert_type(catalog.export(), str)
    assert_type(catalog.plan(catalog.export())[0], list[Event])
    assert_type(catalog.remove("m", force=True), list[int])
