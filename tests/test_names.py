"""What may be typed for a model."""

from pathlib import Path
from typing import Any

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError, ModelExistsError, ModelNameError, ModelNotFoundError, RequestError
from medvllm.facts import known_facts
from medvllm.names import parse_name, valid_name
from medvllm.near_names import near_keys
from tests.support.loopback import LoopbackHub


@pytest.mark.parametrize(
    ("text", "kind", "name", "suffix"),
    [
        ("biobert", "name", "biobert", None),
        ("biobert@3", "name", "biobert", "3"),
        ("biobert@production", "name", "biobert", "production"),
        ("models:/biobert/3", "name", "biobert", "3"),
        ("models:/biobert@production", "name", "biobert", "production"),
        ("models:/acme/biobert/3", "name", "acme/biobert", "3"),
        ("acme/biobert", "name", "acme/biobert", None),
        ("acme/biobert@v1.0", "name", "acme/biobert", "v1.0"),
        ("hf://acme/biobert", "hub", "acme/biobert", None),
        ("hf://acme/biobert@main", "hub", "acme/biobert", "main"),
        ("/models/biobert", "folder", "/models/biobert", None),
        ("/models/a@b", "folder", "/models/a@b", None),
        ("file:///models/my%20bert", "folder", "/models/my bert", None),
    ],
)
def test_each_way_to_say_a_model(text: str, kind: str, name: str, suffix: str | None) -> None:
    """The grammar, one row a form."""
    ref = parse_name(text)
    assert (ref.kind, ref.name, ref.suffix) == (kind, name, suffix)


def test_relative_folders_and_paths_are_folders(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./dir, ~/dir and a pathlib path."""
    monkeypatch.chdir(home)
    assert parse_name("./bert").name == str(home / "bert")
    assert parse_name("~/bert").name == str(home / "bert")
    assert parse_name(Path("bert")).name == str(home / "bert")
    assert parse_name(home / "bert").kind == "folder"


BAD = [
    "",
    "  ",
    " biobert",
    "biobert ",
    "a\x00b",
    "a\nb",
    "a\u202eb",
    "a\u200bb",
    "\ud800",
    "x" * 10_000,
    "@3",
    "a@",
    "a@b@c",
]
LINKS = [
    "http://example.org/x",
    "s3://b/x",
    "hf://",
    "hf://a b/c",
    "hf://a/b/c",
    "models:/x",
    "models:/",
    "file://host/x",
]


@pytest.mark.parametrize("text", [*BAD, *LINKS, 3, None, b"biobert", ["biobert"], "/" + "x" * 5000])
def test_what_is_no_name_is_refused(text: object) -> None:
    """With our error, whatever it is, and without echoing ten thousand characters."""
    with pytest.raises(ModelNameError) as caught:
        parse_name(text)
    message = str(caught.value)
    assert 0 < len(message) < 400
    assert message.isprintable() or message.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", [*BAD, "./x", "/x", "~/x", "hf://a/b", "models:/a/1", "a@3", "a\\b", 3, None])
def test_what_cannot_be_registered(text: object) -> None:
    """A registered name never reads as a folder, a link or a version."""
    with pytest.raises(ModelNameError):
        valid_name(text)


@pytest.mark.parametrize("text", ["biobert", "acme/biobert", "my model (v2)", "Modèle-médical", "a.b_c-d:e", "x" * 200])
def test_what_can_be_registered(text: str) -> None:
    """Letters of any script, and the usual signs."""
    assert valid_name(text) == text


TWINS = [
    ("cafe\u0301", "contains|composed form"),
    ("my  model", "contains two spaces in a row.*\nUse: 'my model'"),
    ("my\u00a0model", "contains U\\+00A0, a blank.*\nUse: 'my model'"),
    ("my\u3000model", "contains U\\+3000"),
    ("m\ufe0fodel", "contains U\\+FE0F"),
    ("m\u3164odel", "contains U\\+3164"),
    ("m\u2800odel", "contains U\\+2800"),
    ("m\u115fodel", "contains U\\+115F"),
    ("m\u034fodel", "contains U\\+034F"),
    ("\uff4dodel", "contains U\\+FF4D, which looks like 'm'.*\nUse: 'model'"),
    ("\ufb01ne", "contains U\\+FB01, which looks like 'fi'"),
    ("m\u00b2", "contains U\\+00B2, which looks like '2'"),
    ("m\u043edel", "mixes Latin and Cyrillic letters in one word, 'm\u043edel'"),
    ("3", "looks like a version"),
    ("v2", "looks like a version"),
    ("V1.0", "looks like a version"),
    ("acme/3", "looks like a version: models:/name/3 means version 3"),
    ("\u0663", "looks like a version"),
]


@pytest.mark.parametrize(("text", "words"), TWINS)
def test_what_looks_like_another_name_is_not_registered(text: str, words: str) -> None:
    """Nor what looks like a version."""
    with pytest.raises(ModelNameError, match=f"(?s){words}"):
        valid_name(text)


@pytest.mark.parametrize(
    "text",
    ["модель-BERT", "TNF-α tagger", "模型", "naïve", "ner-v2", "acme/v2-ner", "Ångström", "한국어 모델", "हिन्दी"],
)
def test_scripts_stand_beside_each_other(text: str) -> None:
    """As people write them."""
    assert valid_name(text) == text


def test_a_name_is_found_however_its_accents_were_typed(registry: ModelRegistry) -> None:
    """As one character, or as a letter and a mark: by whoever registers it, and whoever asks for it."""
    one, two = "caf\u00e9", "cafe\u0301"
    assert registry.register(two, "generic", persist=True).name == one
    registry.catalog.set_alias(two, "production", 1)
    assert registry.get_metadata(two).name == registry.get_metadata(f"{two}@production").name == one
    assert registry.catalog.tag(two, add={"t": None}).tags == ["t"]
    with pytest.raises(ModelExistsError):
        registry.register(two, "generic")
    with pytest.raises(ModelNameError, match="composed form"):
        registry.register("other", "generic", also_known_as=[two])
    registry.catalog.remove_alias(two, "production")
    assert len(registry.catalog.history(two)) == 4 and list(registry.catalog.versions(two)) == [1]
    registry.unregister(two, persist=True)
    assert registry.catalog.names() == []


@pytest.mark.parametrize(
    "alias", ["v2", "V2", "v1.0", "v1_2", "latest", "Latest", "Default", "DEFAULT", "2", "٣", "", 3]
)
def test_an_alias_does_not_read_as_something_else(registry: ModelRegistry, alias: Any) -> None:
    """A version, the newest one, or the alias of the bare name: to be set, protected, or applied."""
    registry.register("m", "generic", persist=True)
    for act in (
        lambda: registry.catalog.set_alias("m", alias, 1),
        lambda: registry.catalog.protect("m", alias),
        lambda: registry.catalog.apply(f'[models.m]\nmodel_type = "generic"\n[aliases.m]\n"{alias}" = 1\n'),
    ):
        with pytest.raises(ModelNameError, match="Alias .* (cannot be used|differs from)"):
            act()


def test_aliases_that_differ_by_case_are_one(registry: ModelRegistry) -> None:
    """A protected one has no unprotected twin."""
    registry.register("m", "generic", persist=True)
    registry.catalog.protect("m", "production")
    for act in (
        lambda: registry.catalog.set_alias("m", "Production", 1),
        lambda: registry.catalog.protect("m", "PRODUCTION"),
        lambda: registry.catalog.apply(registry.catalog.export().replace("[aliases.m]", "[aliases.m]\nProduction = 1")),
    ):
        with pytest.raises(CatalogError, match="'m' has the alias 'production', which differs from .* only by case"):
            act()
    assert [alias.alias for alias in registry.catalog.aliases("m")] == ["production"]


def test_a_name_that_was_this_processes_is_no_repository(registry: ModelRegistry, hub: LoopbackHub) -> None:
    """Once it is unregistered: nor are its other names, nor a built-in one. Registered again, it is found."""
    registry.register("n4", "generic", also_known_as=["acme/n4"])
    registry.unregister("n4")
    registry.unregister("emilyalsentzer/Bio_ClinicalBERT")
    hub.log.clear()
    for name in ("n4", "acme/n4", "n4@2", "emilyalsentzer/Bio_ClinicalBERT"):
        with pytest.raises(ModelNotFoundError, match="is not registered any more: it was unregistered in this process"):
            registry.load_model(name)
    assert hub.log == []
    registry.register("n4", "generic", description="again")
    assert registry.get_metadata("n4").description == "again"


def test_a_folder_has_no_revision(registry: ModelRegistry, tmp_path: Path) -> None:
    """It would be ignored. Only a repository has revisions."""
    with pytest.raises(RequestError, match=r"'ner'.* no revision 'main'"):
        registry.register("ner", "clinical", model_path=tmp_path, revision="main")
    assert "ner" not in registry
    file = f'[models.ner]\nmodel_type = "clinical"\nmodel_path = "{tmp_path}"\nrevision = "main"\n'
    with pytest.raises(RequestError, match=r"'ner'.* no revision 'main'"):
        registry.catalog.apply(file)


def test_a_misspelt_name_may_be_a_folder_here(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error offers the folder, even if a registered name is similar."""
    registry.register("ner1", "clinical")
    monkeypatch.chdir(tmp_path)
    Path("ner").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"Did you mean: 'ner1'\?(?s:.*)\./ner"):
        registry.load_model("ner")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("path", ["model_path"]), ("class", ["model_class", "config_class"]), ("licence", ["license"]), ("xyz", [])],
)
def test_part_of_a_keyword_finds_it(typed: str, meant: list[str]) -> None:
    """Keywords that have all the words come before those that are written alike."""
    assert near_keys(typed, known_facts()) == meant
