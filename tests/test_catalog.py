"""Registering, listing and removing entries."""

import copy
import dataclasses
import pickle
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from medvllm.catalog import Catalog, StoredCatalog, stores
from medvllm.engine.model_runner import ModelRegistry, ModelType
from medvllm.errors import (
    CatalogError,
    MissingDependencyError,
    ModelExistsError,
    ModelNameError,
    ModelNotFoundError,
    RequestError,
    UnsafeWeightsError,
)


def test_metadata_has_the_seven_specified_attributes(registry: ModelRegistry) -> None:
    """As the specification's API reference lists them."""
    registry.register(
        "m",
        ModelType.BIOMEDICAL,
        model_class="collections:OrderedDict",
        config_class=dict,
        description="d",
        tags=["a", "b"],
        parameters={"num_labels": 3},
    )
    m = registry.get_metadata("m")
    assert (m.name, m.model_type, m.description, m.tags, m.parameters) == (
        "m",
        ModelType.BIOMEDICAL,
        "d",
        ["a", "b"],
        {"num_labels": 3},
    )
    assert m.model_class is __import__("collections").OrderedDict
    assert m.config_class is dict
    assert dataclasses.is_dataclass(m)


def test_nobody_can_edit_the_registry_through_what_it_returned(registry: ModelRegistry) -> None:
    """Metadata is frozen, and its lists and dicts are copies."""
    given = {"rope": {"a": "b"}}
    registry.register("m", "generic", tags=["a"], parameters=given, id2label=["O"])
    given["rope"]["a"] = "changed"
    m = registry.get_metadata("m")
    m.tags.append("b")
    m.parameters["x"] = 1
    m.parameters["rope"]["a"] = "changed"
    registry.list_models().clear()
    with pytest.raises(dataclasses.FrozenInstanceError):
        m.description = "changed"  # type: ignore[misc]
    again = registry.get_metadata("m")
    assert (again.tags, again.parameters, again.behaviour.id2label) == (["a"], {"rope": {"a": "b"}}, ("O",))


def test_metadata_travels(registry: ModelRegistry) -> None:
    """Through pickle and copy, without importing the class it names."""
    m = registry.register("m", "clinical", model_class="no_such_module:Model", pooling="mean")
    assert pickle.loads(pickle.dumps(m)) == m == copy.deepcopy(m)
    assert m.to_dict()["model_class"] == "no_such_module:Model"
    with pytest.raises(MissingDependencyError, match="'no_such_module:Model' cannot be imported"):
        _ = m.model_class


@pytest.mark.parametrize("reference", ["json:NoSuch", "json:dumps"])
def test_a_reference_to_no_class_says_so_when_it_is_used(registry: ModelRegistry, reference: str) -> None:
    """Not at registration: what it names may come later."""
    m = registry.register("m", "generic", model_class=reference)
    with pytest.raises(CatalogError, match=reference):
        _ = m.model_class


def test_a_taken_name_needs_replace_and_versions_are_never_reused(registry: ModelRegistry) -> None:
    """Replacing makes the next version; so does registering again after unregister."""
    assert registry.register("m", "generic").version == 1
    with pytest.raises(ModelExistsError, match=r"'m' is already registered \(process, version 1\)"):
        registry.register("m", "clinical")
    assert registry.register("m", "clinical", replace=True).version == 2
    registry.unregister("m")
    assert registry.register("m", "custom").version == 3
    assert registry.get_metadata("m@3").model_type is ModelType.CUSTOM
    with pytest.raises(ModelNotFoundError, match="'m' has no version or alias '1'. It has: 3"):
        registry.get_metadata("m@1")


def test_a_builtin_can_be_shadowed_and_hidden(registry: ModelRegistry) -> None:
    """This process's entry comes first; unregistering it shows the built-in again, then hides that."""
    name = "biobert-base-cased-v1.2"
    with pytest.raises(ModelExistsError):
        registry.register(name, "generic")
    assert registry.register(name, "generic", replace=True).version == 2
    assert registry.get_metadata(name).origin == "process"
    registry.unregister(name)
    assert registry.get_metadata(name).origin == "built-in"
    registry.unregister(name)
    with pytest.raises(ModelNotFoundError):
        registry.get_metadata(name)
    assert name not in registry.list_models()


def test_listing_filters(registry: ModelRegistry) -> None:
    """By type, task, every tag, and glob in any case; together they narrow."""
    registry.register("our-a", ModelType.BIOMEDICAL, task="ner", tags=["x", "y"])
    registry.register("Our-b", ModelType.CLINICAL, task="embed", tags=["x"])
    registry.register("ours", ModelType.CLINICAL, task="ner", pooling="mean")
    assert {"emilyalsentzer/Bio_ClinicalBERT", "Our-b"} <= set(registry.list_models(ModelType.CLINICAL))
    assert "our-a" not in registry.list_models("clinical")
    assert set(registry.list_models("clinical", match="our-*")) == {"Our-b"}
    assert set(registry.list_models(match="OUR*")) == {"our-a", "Our-b", "ours"}
    assert set(registry.list_models(task="ner", match="our*")) == {"our-a", "ours"}
    assert set(registry.list_models(task="embed", match="our*")) == {"Our-b", "ours"}
    assert set(registry.list_models(tags=["x", "y"])) == {"our-a"}
    assert set(registry.list_models(tags="x")) == {"our-a", "Our-b"}
    assert registry.list_models(task="ner", tags=["x"], match="*b") == {}
    with pytest.raises(RequestError, match="one of: generic, biomedical, clinical, custom"):
        registry.list_models("medical")


def test_every_fact_is_a_filter(registry: ModelRegistry) -> None:
    """A glob in any case, on a list's items too; None asks for what is not known."""
    everything = set(registry.list_models())
    registry.register("ours", "clinical", license="MIT", gated=False, languages=["en", "de"], max_length=64)
    assert set(registry.list_models(license="mit", languages="de")) == {"ours"}
    assert set(registry.list_models(max_length=64)) == {"ours", "ncbi/MedCPT-Query-Encoder"}
    assert set(registry.list_models(gated=True)) == {"epfl-llm/meditron-7b", "google/medgemma-27b-text-it"}
    mimic = registry.list_models("clinical", data_restrictions="mimic*")
    assert "emilyalsentzer/Bio_ClinicalBERT" in mimic and "ours" not in mimic
    assert set(registry.list_models(license=None)) | set(registry.list_models(license="*")) == everything | {"ours"}
    assert set(registry.list_models(role="query", pooling="CLS")) == {"ncbi/MedCPT-Query-Encoder"}
    assert set(registry.list_models(model_class="*AutoModelForTokenClassification", match="obi/*")) == {
        *("obi/deid_roberta_i2b2", "obi/deid_bert_i2b2")
    }
    with pytest.raises(RequestError, match=r"Unknown fact 'licence' to filter by. Did you mean: 'license'"):
        registry.list_models(licence="mit")
    with pytest.raises(RequestError, match=r"Unknown fact 'provenance'"):
        registry.list_models(provenance="S*")


def test_unknown_names_come_with_near_ones(registry: ModelRegistry) -> None:
    """The error carries the candidates as a fact, too."""
    with pytest.raises(ModelNotFoundError) as caught:
        registry.get_metadata("biobret-v1.2")
    assert str(caught.value) == (
        "Model 'biobret-v1.2' is not registered. Did you mean: 'biobert-base-cased-v1.2'?\nList them with: medvllm list"
    )
    assert caught.value.candidates == ("biobert-base-cased-v1.2",)
    with pytest.raises(ModelNotFoundError, match="'nothing-like-it' is not registered.\n"):
        registry.unregister("nothing-like-it")


def test_aliases_lead_to_the_entry(registry: ModelRegistry) -> None:
    """A repository's id is the built-in entry for it; an alias of one's own works the same."""
    assert registry.get_metadata("dmis-lab/biobert-base-cased-v1.2").name == "biobert-base-cased-v1.2"
    claimed = ["former-name", "dmis-lab/biobert-base-cased-v1.2"]
    registry.register("m", "generic", also_known_as=claimed, replace=True)
    assert registry.get_metadata("former-name").name == "m"
    assert registry.get_metadata("dmis-lab/biobert-base-cased-v1.2").name == "m"
    registry.unregister("m")
    assert registry.get_metadata("dmis-lab/biobert-base-cased-v1.2").name == "biobert-base-cased-v1.2"
    with pytest.raises(ModelNotFoundError):
        registry.get_metadata("former-name")
    with pytest.raises(ModelNameError):
        registry.register("m", "generic", also_known_as=["./former"])


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("owner", ["built-in", "process", "stored"])
def test_another_name_of_an_entry_is_not_taken_in_silence(registry: ModelRegistry, owner: str, persist: bool) -> None:
    """Neither as the name of a new entry nor as one of its other names, unless that is asked for."""
    name, other = "biobert-base-cased-v1.2", "dmis-lab/biobert-base-cased-v1.2"
    if owner != "built-in":
        name, other = "mine", "acme/mine"
        registry.register(name, "generic", also_known_as=[other], persist=owner == "stored")
    claims: list[tuple[str, dict[str, Any]]] = [(other, {}), ("n", {"also_known_as": ["free", other]})]
    for new, facts in claims:
        refusal = f"^'{other}' is another name of model '{name}' \\({owner}, version 1\\).\n.*--replace$"
        with pytest.raises(ModelExistsError, match=refusal):
            registry.register(new, "generic", persist=persist, **facts)
        assert registry.get_metadata(other).name == name and "n" not in registry
    registry.register(name, "generic", also_known_as=[other], persist=persist, replace=True)  # it is its own
    registry.register("n", "generic", also_known_as=[name], persist=persist)  # the name goes before it
    assert registry.get_metadata(name).name == registry.get_metadata(other).name == name
    registry.register(other, "generic", persist=persist, replace=True)
    assert registry.get_metadata(other).name == other


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"do_lowercase": False}, r"Unknown keyword 'do_lowercase' for model 'm'. Did you mean: 'do_lower_case'"),
        ({"do_lower_case": "no"}, r"'do_lower_case' of model 'm' must be True or False or None, not 'no'"),
        ({"max_length": 0}, r"must be a whole number of at least 1"),
        ({"max_length": True}, r"must be a whole number of at least 1"),
        ({"pooling": "sum"}, r"must be 'mean' or 'cls' or .* or a list of these or None, not 'sum'"),
        ({"pooling": []}, r"must be 'mean' or .* or a list of these"),
        ({"pooling": ["cls", "sum"]}, r"must be 'mean' or .* or a list of these"),
        (
            {"prompts": {"query": 5, "secret": "ssh"}},
            r"'prompts' of model 'm' must be a dict of texts or None, not dict.$",
        ),
        ({"prompts": "query: "}, r"must be a dict of texts"),
        ({"truncate_dim": 0}, r"must be a whole number of at least 1"),
        ({"include_prompt": "no"}, r"must be True or False"),
        ({"tags": 5}, r"must be a list of texts"),
        ({"tags": [1]}, r"must be a list of texts"),
        ({"model_class": "BertModel"}, r"must be a class or 'module:Class'"),
        ({"model_class": 3}, r"must be a class or 'module:Class'"),
        ({"parameters": [1]}, r"must be a dict with text keys"),
        ({"parameters": {"device_map": "auto"}}, r"'device_map' is not supported: use device="),
        ({"parameters": {"revision": "main"}}, r"'revision' is a fact, not a parameter"),
        ({"parameters": {1: 2}}, r"The name of an option must be text, not 1"),
        ({"parameters": {"id2label": {}}}, r"'id2label' is not supported: register the entry with id2label="),
        ({"model_class": "a:"}, r"must be a class or 'module:Class'"),
        ({"parameters": {"num_labels": {1, 2}}}, r"'num_labels' must be a JSON value, not set"),
    ],
)
def test_bad_facts_are_refused_by_name(registry: ModelRegistry, facts: dict[str, object], message: str) -> None:
    """And nothing is registered."""
    with pytest.raises(RequestError, match=message):
        registry.register("m", "generic", **facts)  # type: ignore[arg-type]
    assert "m" not in registry.list_models()


def test_other_bad_registrations(registry: ModelRegistry) -> None:
    """A type that is none, a name that is none, remote code, a catalogue that is not there."""
    with pytest.raises(RequestError, match="one of: generic"):
        registry.register("m", 3)  # type: ignore[arg-type]
    with pytest.raises(ModelNameError):
        registry.register("./m", "generic")
    with pytest.raises(UnsafeWeightsError):
        registry.register("m", "generic", parameters={"trust_remote_code": True})
    with pytest.raises(ModelNameError, match=r"not the id of a repository.\nFor a folder, use: ./a/b/c"):
        registry.register("m", "generic", model_path="a/b/c")
    with pytest.raises(CatalogError, match="no stored catalogue"):
        ModelRegistry(Catalog()).register("m", "generic", persist=True)
    assert "m" not in registry.list_models()


def test_the_stored_catalogue_stands_between_the_process_and_the_builtins(home: Path) -> None:
    """persist=True goes to it; two registries on one database see each other's entries at the next look-up."""
    StoredCatalog(home / "catalog.db").create()
    one, other = (ModelRegistry(Catalog(StoredCatalog(home / "catalog.db"))) for _ in range(2))
    one.register("kept", "clinical", persist=True)
    assert other.get_metadata("kept").model_type is ModelType.CLINICAL
    other.register("kept", "custom", replace=True)
    assert other.get_metadata("kept").model_type is ModelType.CUSTOM
    assert one.get_metadata("kept").model_type is ModelType.CLINICAL
    one.unregister("kept", persist=True)
    assert "kept" not in one.list_models() and "kept" in other.list_models()
    other.register("kept", "generic", persist=True, replace=True)  # takes the place of the process's own
    assert other.get_metadata("kept").origin == one.get_metadata("kept").origin == "stored"


def test_a_persistent_entry_is_there_in_the_next_process(home: Path) -> None:
    """With every fact; its version is never given again, also after it was removed."""
    facts = {"model_path": "acme/bert", "do_lower_case": False, "id2label": ["O", "B-X"], "tags": ["a"]}
    given: dict[str, Any] = {**facts, "parameters": {"dtype": "float32"}, "model_class": "transformers:BertModel"}
    first = ModelRegistry().register("kept", "clinical", persist=True, **given)
    assert (first.origin, first.version) == ("stored", 1)
    again = ModelRegistry().get_metadata("kept").to_dict()
    assert again == first.to_dict() and again["id2label"] == ["O", "B-X"]
    with pytest.raises(ModelExistsError, match=r"already registered \(stored, version 1\)"):
        ModelRegistry().register("kept", "clinical", persist=True)
    assert ModelRegistry().register("kept", "clinical", persist=True, replace=True).version == 2
    assert ModelRegistry().register("kept", "clinical", persist=True, replace=True).version == 2  # it is so already
    one, other = ModelRegistry(), ModelRegistry()
    other.unregister("kept", persist=True)
    assert "kept" not in one.list_models()
    assert one.register("kept", "clinical", persist=True).version == 3


def test_a_database_that_cannot_be_read_is_an_error(home: Path) -> None:
    """Never taken for none, and left as it is."""
    (home / "medvllm").mkdir()
    file = home / "medvllm" / "catalog.db"
    for content in (b"nonsense", b"SQLite format 3\0 and nothing of it" * 100):
        file.write_bytes(content)
        for call in (ModelRegistry().list_models, lambda: ModelRegistry().register("m", "generic", persist=True)):
            with pytest.raises(CatalogError, match=r"catalog.db cannot be read: file is not a database"):
                call()
        assert file.read_bytes() == content


def test_what_the_error_of_a_damaged_database_says_leads_out(home: Path) -> None:
    """A backup takes its place, though the log of the damaged one is still there."""
    registry = ModelRegistry()
    registry.register("kept", "generic", persist=True)
    file, backup = home / "medvllm" / "catalog.db", home / "medvllm" / "catalog.db.7-1.backup"
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("VACUUM INTO ?", (str(backup),))
    registry.register("lost", "generic", persist=True)
    log = file.with_name("catalog.db-wal").read_bytes()
    assert log
    stores.close_all()
    file.write_bytes(b"damaged" * 1000)
    file.with_name("catalog.db-wal").write_bytes(log)
    with pytest.raises(CatalogError) as error:
        ModelRegistry().list_models()
    listed, placed = (line.partition(": ")[2] for line in str(error.value).splitlines()[1:])
    found = subprocess.run(listed, shell=True, check=True, capture_output=True, text=True).stdout.strip()
    assert found == str(backup)
    subprocess.run(placed.replace("BACKUP", found), shell=True, check=True)
    assert {"kept"} == set(ModelRegistry().list_models(origin="stored"))


def test_a_page_after_another_lists_everything(registry: ModelRegistry) -> None:
    """This process's, stored and built-in entries, sorted; each name once, by what it means."""
    registry.register("biobert-base-cased-v1.2", "custom", persist=True, replace=True)
    for name in ("a", "m", "é"):
        registry.register(name, "generic", persist=name != "m")
    pages: list[str] = []
    while page := registry.list_models(limit=5, after=pages[-1] if pages else None):
        pages += page
    assert pages == list(registry.list_models()) == sorted(pages) and len(pages) == 45
    assert list(registry.list_models("custom")) == ["biobert-base-cased-v1.2"]
    assert list(registry.list_models("generic", limit=2, after="a")) == ["m", "é"]
    with pytest.raises(RequestError, match="limit must be at least 1, not 0"):
        registry.list_models(limit=0)


def test_eight_threads_store_entries_at_once(home: Path) -> None:
    """None is lost."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ModelRegistry().register(f"m{i}", "generic", persist=True), range(16)))
    assert {f"m{i}" for i in range(16)} <= set(ModelRegistry().list_models())
