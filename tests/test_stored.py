"""The stored catalogue through the registry, on SQLite and PostgreSQL: versions, aliases, protection, exchange."""

import socket
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import pytest

from medvllm.catalog import StoredCatalog
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import (
    CatalogError,
    DigestMismatchError,
    MissingDependencyError,
    ModelExistsError,
    ModelNameError,
    ModelNotFoundError,
    RequestError,
)
from medvllm.metadata import ModelMetadata
from tests.support import tiny
from tests.support.children import asked, held, out
from tests.support.postgres import Postgres
from tests.support.spread import spread
from tests.support.sql import change

pytestmark = pytest.mark.usefixtures("catalog_url")


def _put(registry: ModelRegistry, name: str = "m", **facts: Any) -> int:
    """Store the next version of a name, and return its number."""
    return registry.register(name, "clinical", persist=True, replace=True, **facts).version


def _actions(registry: ModelRegistry, name: str | None = None) -> list[str]:
    return [event.action for event in registry.catalog.history(name)]


def _sound(registry: ModelRegistry) -> bool:
    return registry.catalog.check_history()[2] == []


def test_versions_are_kept_and_never_given_again(registry: ModelRegistry) -> None:
    """Not after one is removed, nor after the whole name is."""
    assert [_put(registry, description=text) for text in ("a", "b", "c")] == [1, 2, 3]
    with pytest.raises(ModelExistsError, match="'m' is already registered"):
        registry.register("m", "clinical", persist=True)
    assert {number: entry.description for number, entry in registry.catalog.versions("m").items()} == {
        1: "a",
        2: "b",
        3: "c",
    }
    registry.unregister("m@3", persist=True)
    assert registry.get_metadata("m").version == 2
    assert _put(registry, description="d") == 4
    registry.unregister("m", persist=True, reason="the end")
    assert registry.catalog.names() == [] and "m" not in registry.list_models()
    with pytest.raises(ModelNotFoundError):
        registry.get_metadata("m")
    assert registry.register("m", "clinical", persist=True).version == 5
    assert _sound(registry)


def test_what_is_known_makes_no_version(registry: ModelRegistry) -> None:
    """Again the same says nothing new; other marks change in place; other content is the next version."""
    assert _put(registry, tags=["a"], pooling="cls") == 1
    before = registry.catalog.history()
    assert _put(registry, tags=["a"], pooling="cls") == 1 and registry.catalog.history() == before
    assert _put(registry, tags=["b"], pooling="cls") == 1
    assert registry.get_metadata("m@1").tags == ["b"]
    assert _put(registry, pooling="cls") == 1 and registry.get_metadata("m").tags == ["b"]
    assert _put(registry, tags=["b"], pooling="mean") == 2
    assert _actions(registry, "m") == ["registered", "changed", "registered"]
    assert _sound(registry)


def test_marks_and_tags_change_in_place(registry: ModelRegistry) -> None:
    """Of one version or of all; None takes one away; what is content is refused with what to do."""
    _put(registry, description="a", tags=["x", "y"])
    _put(registry, description="b")
    both = registry.catalog.update("m", deprecated="old", reason="r")
    assert [entry.lifecycle.deprecated for entry in both] == ["old", "old"]
    assert registry.catalog.update("m@1", deprecated=None)[0].lifecycle.deprecated is None
    assert registry.get_metadata("m").lifecycle.deprecated == "old"
    tagged = registry.catalog.tag("m@1", add={"z": None, "team": "icu"}, remove=("x",))
    assert (tagged.tags, tagged.values) == (["y", "z"], {"team": "icu"})
    assert registry.catalog.tag("m@1", add={}, remove=("team",)).values == {}
    with pytest.raises(RequestError, match="'pooling' of a version cannot be changed.\nRegister a new version"):
        registry.catalog.update("m", pooling="cls")
    with pytest.raises(ModelNotFoundError, match="'m' has no version or alias '9'. It has: 1, 2"):
        registry.catalog.update("m@9", deprecated="x")
    with pytest.raises(RequestError, match="A reason must have 1 to 2,000 characters"):
        registry.catalog.update("m", deprecated="x", reason="r" * 2001)
    assert _sound(registry)


def test_a_version_is_asked_for_by_number_or_alias(registry: ModelRegistry) -> None:
    """`x`, `x@2`, `x@production`, `x@default`, and as MLflow writes them."""
    for text in ("a", "b", "c"):
        _put(registry, "x", description=text)
    registry.catalog.set_alias("x", "production", 1)
    assert registry.get_metadata("x").version == 3
    registry.catalog.set_alias("x", "default", 2, reason="until it is tested")
    registry.catalog.set_alias("x", "newest", "3")
    asked = ("x", "x@2", "x@production", "x@default", "x@newest", "models:/x/1", "models:/x@production")
    assert [registry.get_metadata(name).version for name in asked] == [2, 2, 1, 2, 3, 1, 1]
    assert registry.list_models(match="x")["x"].version == 2
    assert _put(registry, "x", description="d") == 4 and registry.get_metadata("x").version == 2
    registry.catalog.remove_alias("x", "default")
    assert registry.get_metadata("x").version == 4
    with pytest.raises(ModelNotFoundError, match="It has: 1, 2, 3, 4, newest, production"):
        registry.get_metadata("x@9")
    with pytest.raises(ModelNotFoundError, match="no version or alias 'staging'"):
        registry.get_metadata("x@staging")
    with pytest.raises(ModelNotFoundError, match="no alias 'default'"):
        registry.catalog.remove_alias("x", "default")
    with pytest.raises(ModelNameError, match="Alias '3rd' cannot be used"):
        registry.catalog.set_alias("x", "3rd", 3)
    with pytest.raises(ModelNotFoundError, match="has no version or alias"):
        registry.catalog.set_alias("x", "production", 99)
    huge = "9" * 40
    with pytest.raises(ModelNotFoundError):
        registry.get_metadata(f"x@{huge}")
    assert _sound(registry)


def test_an_entry_answers_to_its_other_names(registry: ModelRegistry) -> None:
    """With a version or an alias too; those of the version that the name means, not of an older one."""
    _put(registry, "ward", also_known_as=["acme/ward", "acme/old"])
    assert registry.get_metadata("acme/ward").name == registry.get_metadata("acme/old@1").name == "ward"
    _put(registry, "ward", also_known_as=["acme/ward"])
    registry.catalog.set_alias("ward", "production", 1)
    assert registry.get_metadata("acme/ward").version == 2
    assert registry.get_metadata("acme/ward@production").version == 1
    with pytest.raises(ModelNotFoundError):
        registry.get_metadata("acme/old")
    registry.unregister("ward", persist=True, force=True)
    with pytest.raises(ModelNotFoundError):
        registry.get_metadata("acme/ward")
    assert _sound(registry)


def test_names_are_sorted_by_code_point_and_listed_in_pages(registry: ModelRegistry) -> None:
    """On each database as Python sorts them, among the built-in ones."""
    names = ["Zeta", "alpha", "a-b", "aB", "éclair", "_x", "B/c"]
    for name in names:
        _put(registry, name)
    assert registry.catalog.names() == sorted(names)
    assert [row.name for row in registry.catalog.rows(after="Zeta")] == [n for n in sorted(names) if n > "Zeta"]
    listed, last = list(registry.list_models()), None
    assert listed == sorted(listed) and set(names) < set(listed)
    paged: list[str] = []
    while page := list(registry.list_models(limit=3, after=last)):
        paged, last = [*paged, *page], page[-1]
    assert paged == listed


def test_what_an_alias_points_to_stays(registry: ModelRegistry) -> None:
    """Unless it is forced: then the alias goes too."""
    _put(registry, description="a")
    _put(registry, description="b")
    registry.catalog.set_alias("m", "production", 1)
    for name in ("m@1", "m", "m@production"):
        with pytest.raises(CatalogError, match="Version 1 of model 'm' cannot be removed, .*: production"):
            registry.unregister(name, persist=True)
    assert sorted(registry.catalog.versions("m")) == [1, 2]
    registry.unregister("m@1", persist=True, force=True)
    assert registry.catalog.aliases("m") == [] and sorted(registry.catalog.versions("m")) == [2]
    assert _actions(registry, "m")[-2:] == ["unaliased", "unregistered"]
    assert _sound(registry)


def test_what_another_process_has_leased_stays(registry: ModelRegistry, tmp_path: Path) -> None:
    """Until it lets go, or unless it is forced."""
    _put(registry, "ward", model_path=str(tiny.bert_encoder(tmp_path / "m")))
    code = (
        "from medvllm.engine.model_runner import registry\n"
        "import sys\n"
        "with registry.lease('ward'):\n"
        "    print('leased', flush=True); sys.stdin.readline()\n"
    )
    with held(code) as process:
        assert process.stdout is not None and process.stdout.readline() == "leased\n"
        deadline = time.monotonic() + 60
        while process.pid not in {note.process.pid for note in registry.list_processes()}:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for name in ("ward", "ward@1"):
            with pytest.raises(CatalogError, match=f"Version 1 of model 'ward' is in use by process {process.pid}"):
                registry.unregister(name, persist=True)
        with pytest.raises(CatalogError, match="is in use by process"):
            registry.catalog.apply("[models]\n[aliases]\n")
        assert registry.catalog.names() == ["ward"]
        registry.unregister("ward", persist=True, force=True, reason="it must go")
    _put(registry, "ward", description="back")
    registry.unregister("ward", persist=True)
    assert registry.catalog.history("ward")[-1].action == "unregistered" and _sound(registry)


def test_a_deprecated_model_says_so_once_at_its_load(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the reason and what takes its place."""
    _put(registry, model_path=str(tiny.bert_encoder(tmp_path / "m")))
    registry.load_model("m")
    assert "deprecated" not in caplog.text
    registry.catalog.update("m", deprecated="misses names", successor="m2")
    for _ in range(2):
        registry.load_model("m")
    assert caplog.messages.count("Model 'm@1' is deprecated: misses names. Use 'm2' instead") == 1


def _with_baseline(registry: ModelRegistry, name: str, folder: Path, **facts: Any) -> int:
    """Store a version that is locked and has a baseline."""
    number = _put(registry, name, model_path=str(folder), task="fill-mask", **facts)
    registry.lock(f"{name}@{number}")
    ModelRunner(f"{name}@{number}", registry=registry).record_baseline()
    return number


def test_a_protected_alias_moves_to_what_is_locked_and_has_a_baseline(registry: ModelRegistry, tmp_path: Path) -> None:
    """And with a reason; all that is missing is named at once, by each way to move it."""
    folders = [tiny.bert_masked_lm(tmp_path / f"m{i}", seed=i) for i in range(3)]
    _with_baseline(registry, "m", folders[0])
    assert _put(registry, model_path=str(folders[1]), task="fill-mask") == 2
    catalog = registry.catalog
    catalog.set_alias("m", "production", 1)
    catalog.protect("m", "production")
    catalog.set_alias("m", "staging", 2)
    lacking = "(?s)cannot be protected: .*version 2, which lacks:\n  a lock in .*: medvllm baseline record m@2$"
    with pytest.raises(CatalogError, match=lacking):
        catalog.protect("m", "staging")
    catalog.remove_alias("m", "staging")
    with pytest.raises(CatalogError) as caught:
        catalog.set_alias("m", "production", 2)
    missing = ("a lock in", "a baseline: medvllm baseline record m@2", "a reason: --reason 'why'")
    assert str(caught.value).startswith("Alias 'production' of model 'm' is protected, and version 2 lacks:\n  ")
    assert all(part in str(caught.value) for part in missing) and len(caught.value.missing) == 3
    registry.lock("m@2")
    with pytest.raises(CatalogError, match="lacks:\n  a baseline: medvllm baseline record m@2$"):
        catalog.set_alias("m", "production", 2, reason="r")
    text = catalog.export().replace("production = {version = 1,", "production = {version = 2,")
    with pytest.raises(CatalogError, match="a baseline: medvllm baseline record m@2$"):
        catalog.apply(text, reason="r")
    ModelRunner("m@2", registry=registry).record_baseline()
    with pytest.raises(CatalogError, match="lacks:\n  a reason"):
        catalog.set_alias("m", "production", 2)
    with pytest.raises(CatalogError, match="the check of a registry"):
        StoredCatalog().set_alias("m", "production", 2, reason="r")
    assert registry.get_metadata("m@production").version == 1
    assert catalog.set_alias("m", "production", 2, reason="better").protected
    assert registry.get_metadata("m@production").version == 2
    with pytest.raises(CatalogError, match="is protected; changing it requires a reason"):
        catalog.remove_alias("m", "production")
    with pytest.raises(CatalogError, match="is protected"):
        catalog.protect("m", "production", False)
    with pytest.raises(CatalogError, match="is protected"):
        registry.unregister("m", persist=True, force=True)
    assert sorted(catalog.versions("m")) == [1, 2]
    catalog.remove_alias("m", "production", reason="pause")
    assert [(alias.alias, alias.version, alias.protected) for alias in catalog.aliases("m")] == [
        ("production", None, True)
    ]
    with pytest.raises(CatalogError, match="files that are locked"):
        (folders[1] / "vocab.txt").write_text("x")
        catalog.set_alias("m", "production", 2, reason="r")
    assert _sound(registry)


@pytest.mark.parametrize("overtaking", ["a version is added", "the baseline is removed"])
def test_a_protected_alias_does_not_move_to_what_changed_meanwhile(overtaking: str) -> None:
    """What another process does between approval and move was approved by nobody."""

    class Overtaken(StoredCatalog):
        def find(self, name: str, suffix: str | None = None) -> ModelMetadata | None:
            found = super().find(name, suffix)
            if overtaking == "a version is added" and found is None:
                StoredCatalog().add(_entry(description="c"), replace=True)
            return found

    class Overtaking:
        def missing_requirements(self, entry: ModelMetadata) -> list[str]:
            if overtaking == "the baseline is removed" and entry.version == 2:
                StoredCatalog().update("m@2", baseline_digest=None)
            return []

        def unmet_requirements(self, entry: ModelMetadata) -> list[str]:
            return []

        def get_locked(self, entry: ModelMetadata) -> None:
            return None

    catalog = Overtaken(protection=Overtaking())
    catalog.add(_entry(description="a"), replace=True)
    catalog.add(_entry(description="b", baseline_digest="f" * 64), replace=True)
    catalog.set_alias("m", "production", 1)
    catalog.protect("m", "production")
    with pytest.raises(CatalogError, match="Alias 'production' of model 'm' is protected"):
        catalog.set_alias("m", "production", 3 if overtaking == "a version is added" else 2, reason="r")
    assert catalog.aliases("m")[0].version == 1


def _entry(**facts: Any) -> ModelMetadata:
    return ModelMetadata.build("m", "clinical", facts)


def test_a_protection_set_before_the_alias_holds(registry: ModelRegistry, tmp_path: Path) -> None:
    """It moves by a file of entries too, when all is there."""
    _put(registry, model_path=str(tiny.bert_masked_lm(tmp_path / "m")), task="fill-mask")
    registry.catalog.protect("m", "production")
    registry.catalog.protect("m", "production")
    with pytest.raises(CatalogError, match="version 1 lacks"):
        registry.catalog.set_alias("m", "production", 1, reason="r")
    _with_baseline(registry, "m", tmp_path / "m")
    text = registry.catalog.export().replace("production = {protected", "production = {version = 1, protected")
    with pytest.raises(CatalogError, match="lacks:\n  a reason"):
        registry.catalog.apply(text)
    assert registry.catalog.plan(text)[1] == ["changing a protected alias requires a reason: --reason 'why'"]
    assert [event.action for event in registry.catalog.plan(text)[0]] == ["aliased"]
    assert [event.action for event in registry.catalog.apply(text, reason="r")] == ["aliased"]
    assert registry.catalog.apply(text, reason="r") == [] and _sound(registry)


def test_other_processes_see_a_change_at_their_next_look(registry: ModelRegistry) -> None:
    """Without a restart: versions, aliases, marks and removals."""
    code = (
        "from medvllm.engine.model_runner import registry\n"
        "import sys\n"
        "for line in sys.stdin:\n"
        "    try:\n"
        "        entry = registry.get_metadata(line.strip())\n"
        "        print(entry.version, entry.description, entry.tags, flush=True)\n"
        "    except Exception as error: print(type(error).__name__, flush=True)\n"
    )
    with held(code) as process:
        assert asked(process, "ward") == "ModelNotFoundError"
        _put(registry, "ward", description="a")
        assert asked(process, "ward") == "1 a []"
        _put(registry, "ward", description="b")
        assert asked(process, "ward") == "2 b []"
        registry.catalog.set_alias("ward", "production", 1)
        assert asked(process, "ward@production") == "1 a []"
        registry.catalog.tag("ward@1", add={"x": None})
        assert asked(process, "ward@production") == "1 a ['x']"
        registry.unregister("ward", persist=True, force=True)
        assert asked(process, "ward") == asked(process, "ward@production") == "ModelNotFoundError"
    out("from medvllm.engine.model_runner import registry as r; r.register('more', 'generic', persist=True)")
    assert registry.get_metadata("more").origin == "stored"


def test_a_stored_class_is_imported_when_it_is_used(registry: ModelRegistry, tmp_path: Path) -> None:
    """In each process; one that cannot be imported is an error of the load, and says why."""
    folder = tiny.bert_encoder(tmp_path / "m")
    _put(registry, "good", model_class="fractions:Fraction")
    _put(registry, "bad", model_path=str(folder), model_class="no_such_module:Model")
    code = "from medvllm.engine.model_runner import registry; print(registry.get_metadata('good').model_class(1, 2))"
    assert out(code) == "1/2"
    assert ModelRegistry().get_metadata("bad").class_paths[0] == "no_such_module:Model"
    with pytest.raises(MissingDependencyError, match="'no_such_module:Model' cannot be imported"):
        registry.load_model("bad")


class Outer:
    """A class in a class is found by its path."""

    class Inner(dict[str, int]):
        """It is."""


def test_a_class_that_others_cannot_import_is_not_stored(registry: ModelRegistry) -> None:
    """That of a script, or of a function; nothing is kept then."""

    class Local(dict[str, int]):
        pass

    main = type("Main", (dict,), {"__module__": "__main__"})
    for kind in (Local, main):
        with pytest.raises(RequestError, match="cannot be stored, because another process could not"):
            _put(registry, model_class=kind)
    assert registry.catalog.names() == []
    _put(registry, model_class=Outer.Inner)
    assert registry.get_metadata("m").model_class is Outer.Inner


def test_loads_are_in_the_history_when_that_is_asked(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was loaded and its receipt, once a load; nothing of what the model is given."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    _put(registry, model_path=str(folder), task="fill-mask")
    registry.load_model("m")
    assert "loaded" not in _actions(registry)
    registry.clear_cache()
    monkeypatch.setenv("MEDVLLM_AUDIT_LOADS", "on")
    runner = ModelRunner("m", registry=registry)
    runner.run("fill-mask", ["the patient denies [MASK]"])
    registry.load_model("m")
    (event,) = (event for event in registry.catalog.history("m") if event.action == "loaded")
    with registry.lease("m") as lease:
        assert event.detail["receipt"] == lease.receipt.digest
    assert (event.version, event.detail["origin"]) == (1, "stored")
    assert event.detail["snapshot"] and event.detail["options"]["dtype"]
    registry.load_model(folder)
    assert registry.catalog.history()[-1].detail["origin"] == "direct"
    assert "denies" not in "".join(str(event.to_dict()) for event in registry.catalog.history())
    assert _sound(registry)


def test_events_say_who_when_where_and_why(registry: ModelRegistry) -> None:
    """And are selected by name and by moment."""
    import getpass
    from datetime import UTC, datetime, timedelta

    _put(registry, "a", reason="the first: \u2028 naïve ☃ 𝕏")
    between = datetime.now(UTC)
    _put(registry, "b", reason="the second")
    first, second = registry.catalog.history("a")[0], registry.catalog.history("b")[0]
    assert first.reason == "the first: \u2028 naïve ☃ 𝕏" and first.machine == socket.gethostname()
    assert first.who == getpass.getuser() and datetime.fromisoformat(first.at).utcoffset() == timedelta(0)
    assert [event.name for event in registry.catalog.history(since=between)] == ["b"]
    assert registry.catalog.history(since=second.at) == [second]
    assert registry.catalog.history("a", since="2020-01-01") == [first]
    with pytest.raises(RequestError, match="'yesterday' is not a date or a time"):
        registry.catalog.history(since="yesterday")


TEXT = """
[models.x]
model_type = "clinical"
description = "from a file"
tags = ["a"]

[models."y@1"]
model_type = "generic"

[models."y@4"]
model_type = "generic"
pooling = "cls"

[aliases.y]
production = {version = 1, protected = true}
"""


def test_applying_a_file_makes_the_catalogue_what_it_says(registry: ModelRegistry) -> None:
    """The plan is what is done; done again, nothing changes; what the file lacks is removed."""
    catalog = registry.catalog
    _put(registry, "gone")
    catalog.set_alias("gone", "production", 1)
    before = catalog.history()
    plan = catalog.plan(TEXT)[0]
    assert catalog.history() == before and catalog.names() == ["gone"]
    done = catalog.apply(TEXT, reason="r")
    assert [(e.action, e.name, e.version, e.alias) for e in done] == [
        (e.action, e.name, e.version, e.alias) for e in plan
    ]
    assert [(e.action, e.name, e.version) for e in done] == [
        ("registered", "x", 1),
        ("registered", "y", 1),
        ("registered", "y", 4),
        ("aliased", "y", 1),
        ("protected", "y", None),
        ("unaliased", "gone", None),
        ("unregistered", "gone", 1),
    ]
    assert catalog.apply(TEXT) == [] and catalog.apply(catalog.export()) == []
    assert _put(registry, "y", pooling="mean") == 5 and _put(registry, "gone") == 2
    assert _sound(registry)


@pytest.mark.parametrize(
    ("edit", "error", "match"),
    spread(
        [
            (
                ('pooling = "cls"', 'pooling = "mean"'),
                CatalogError,
                "'pooling' of version 4 of model 'y' is 'mean' in the file but 'cls' in the catalogue",
            ),
            (("version = 1,", "version = 3,"), ModelNotFoundError, "'y' has no version or alias '3'"),
            (('"y@4"', '"y@3"'), CatalogError, "Version 3 of model 'y' existed before"),
            (("[aliases.y]", "[aliases.z]\nproduction = 1\n[aliases.y]"), CatalogError, "model 'z', but no version"),
            (('[models."y@1"]', '[models."y@9"]'), CatalogError, "an alias points to it: production"),
            (("protected = true", "protected = false"), CatalogError, "'production' of model 'y' is protected"),
            (("[models.x]", '[models."x@0"]'), CatalogError, "must be a whole number of at least 1"),
            (("production =", '"3" ='), ModelNameError, "Alias '3' cannot be used"),
            (('description = "from a file"', 'descripton = "x"'), CatalogError, "descripton"),
            (("[models.x]", "[models.x"), CatalogError, "The entries cannot be read"),
        ],
        2,
    ),
)
def test_a_refused_step_changes_nothing(
    registry: ModelRegistry, edit: tuple[str, str], error: type[Exception], match: str
) -> None:
    """Whatever stands before it in the file."""
    registry.catalog.apply(TEXT)
    before = registry.catalog.export(), registry.catalog.history()
    text = TEXT.replace(*edit) + '\n[models."new@1"]\nmodel_type = "generic"\n'
    with pytest.raises(error, match=match):
        registry.catalog.apply(text)
    assert (registry.catalog.export(), registry.catalog.history()) == before and _sound(registry)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"a": None}, "a fact contains None.\nOmit the value"),
        ({"a": [{"b": [1, None]}]}, "a fact contains None"),
        ({"a": float("nan")}, "Out of range float values"),
        ({"a": "\ud800"}, "a fact contains half of a surrogate pair"),
        ({"a": "x" * 1_000_001}, r"take 1,000,\d\d\d bytes. At most 1,000,000 are allowed"),
    ],
    ids=["none", "none-within", "no-number", "half", "too-long"],
)
def test_what_could_not_be_exported_is_not_stored(
    registry: ModelRegistry, parameters: dict[str, Any], match: str
) -> None:
    """What is stored can be written to a file, and read again from it as it was."""
    with pytest.raises(RequestError, match=f"(?s)model 'm'.*{match}|Model 'm' cannot be stored: {match}"):
        _put(registry, parameters=parameters)
    hostile = {"a.b": {"": 2, "c d": [{"x": 1}, 2.5]}, "nul": "x\0y", "big": 2**70, "empty": {}}
    _put(registry, parameters=hostile)
    assert registry.get_metadata("m").parameters == hostile
    text = registry.catalog.export()
    assert registry.catalog.apply(text) == [] and _sound(registry)


@pytest.fixture
def other(catalog_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[StoredCatalog]:
    """An empty catalogue of the other kind."""
    if catalog_url.startswith("postgresql"):
        catalog = StoredCatalog(tmp_path / "other.db")
        catalog.create()
        yield catalog
        return
    server: Postgres = request.getfixturevalue("postgres")
    with server.database() as url:
        catalog = StoredCatalog(url)
        catalog.migrate()
        yield catalog


def test_a_catalogue_travels_to_the_other_kind_of_database(
    registry: ModelRegistry, other: StoredCatalog, tmp_path: Path
) -> None:
    """An export, applied there, gives an equal export; back again, nothing changes."""
    assert tomllib.loads(registry.catalog.export()) == tomllib.loads(other.export())
    _put(registry, "zeta é", description="naïve \"quotes\" 'and' \\ \n lines", tags=["x"], also_known_as=["acme/z"])
    _put(registry, "zeta é", id2label=["O", "B-X"], parameters={"a": {"b": [1, 2.5, True]}})
    _put(registry, "Alpha")
    _put(registry, "lost")
    registry.catalog.protect("lost", "production")
    registry.unregister("lost", persist=True)
    registry.catalog.tag("Alpha", add={"key": "value"})
    registry.catalog.update("zeta é@1", deprecated="old", successor="Alpha")
    registry.catalog.set_alias("zeta é", "production", 1)
    StoredCatalog().protect("zeta é", "production")  # nobody asks what it lacks
    registry.catalog.protect("Alpha", "later")
    text = registry.catalog.export()
    assert other.apply(text) and other.export() == text
    assert other.apply(text) == [] and registry.catalog.apply(other.export()) == []
    registry.catalog.protect("zeta é", "production", False, reason="r")
    registry.catalog.remove_alias("zeta é", "production")
    registry.catalog.protect("Alpha", "later", False, reason="r")
    assert other.apply(registry.catalog.export(), reason="r") and other.export() == registry.catalog.export()
    assert other.check_history()[2] == [] and _sound(registry)


def test_a_look_sees_one_moment(registry: ModelRegistry) -> None:
    """An export fits itself, and the history its entries, while another process changes both all the time."""
    code = (
        "from medvllm.engine.model_runner import registry as r\n"
        "import sys; print('ready', flush=True)\n"
        "for i in range(10_000):\n"
        "    n = r.register('m', 'generic', description=str(i), persist=True, replace=True).version\n"
        "    r.catalog.set_alias('m', 'production', n)\n"
        "    if n > 1: r.catalog.remove(f'm@{n - 1}')\n"
    )
    with held(code) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        while len(registry.catalog.history()) < 100:
            assert registry.catalog.check_history()[2] == []
            content = tomllib.loads(registry.catalog.export())
            for alias in content.get("aliases", {}).get("m", {}).values():
                assert f"m@{alias}" in content["models"]
        assert Path(f"/proc/{process.pid}").exists()


def test_a_child_after_a_fork_goes_on_with_its_own_connections(registry: ModelRegistry, catalog_url: str) -> None:
    """It sees what others write, writes itself, and leaves the parent's connections as they are."""
    code = (
        "from medvllm.engine.model_runner import registry as r\n"
        "import os, sys, subprocess\n"
        "r.register('m', 'generic', description='parent', persist=True)\n"
        "assert r.get_metadata('m').description == 'parent'\n"
        'change = "from medvllm.model_registry import registry as r; '
        "r.register('m', 'generic', description='other', persist=True, replace=True)\"\n"
        "subprocess.run([sys.executable, '-c', change], check=True)\n"
        "for child in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        assert r.get_metadata('m').description == ('other' if child == 0 else f'child {child - 1}')\n"
        "        r.register('m', 'generic', description=f'child {child}', persist=True, replace=True)\n"
        "        assert r.catalog.check_history()[2] == []\n"
        "        sys.exit(0)\n"  # with all that Python does at its end
        "    assert os.waitpid(pid, 0)[1] == 0\n"
        "    assert r.get_metadata('m').description == f'child {child}'\n"
        "r.register('m', 'generic', description='parent again', persist=True, replace=True)\n"
        "assert r.catalog.check_history()[2] == []\n"
        "print(r.get_metadata('m').version)\n"
    )
    assert out(code) == "6" and registry.get_metadata("m").description == "parent again"


def test_facts_that_python_takes_for_equal_are_told_apart(registry: ModelRegistry) -> None:
    """True, 1 and 1.0 make three versions; and a file that says another than the catalogue is refused."""
    assert [_put(registry, parameters={"x": x}) for x in (True, 1, 1.0, 1.0)] == [1, 2, 3, 3]
    assert repr([entry.parameters["x"] for entry in registry.catalog.versions("m").values()]) == "[True, 1, 1.0]"
    text = registry.catalog.export()
    assert registry.catalog.apply(text) == []
    with pytest.raises(CatalogError, match="'parameters' of version 1 of model 'm' is .* in the catalogue"):
        registry.catalog.apply(text.replace("x = true", "x = 1"))


def test_a_version_is_locked_under_the_name_that_an_error_says(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever version the bare name means; and a version that is locked by itself stays so."""
    folders = [tiny.bert_masked_lm(tmp_path / f"m{i}", seed=i) for i in range(2)]
    for folder in folders:
        _put(registry, model_path=str(folder))
    assert registry.lock("m").keys() == {"m"}
    with pytest.raises(DigestMismatchError, match="(?s)The files of model 'm@1' are not .*: medvllm verify m@1$"):
        registry.load_tokenizer("m@1")
    assert registry.verify("m@1")["m"].keys() == {"model.safetensors"} and registry.verify("m") == {"m": {}}
    assert registry.lock("m@1").keys() == {"m@1"}
    registry.load_tokenizer("m@1")
    registry.lock("m@2")
    (folders[1] / "vocab.txt").write_text((folders[1] / "vocab.txt").read_text().replace("heart\n", "kidney\n"))
    with pytest.raises(DigestMismatchError, match="verify m@2$"):
        registry.load_tokenizer("m")
    assert registry.lock("m").keys() == {"m@2"}
    registry.load_tokenizer("m")
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(tmp_path / "none.lock"))
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "on")
    with pytest.raises(DigestMismatchError, match="To approve it: medvllm lock m@1$"):
        registry.load_tokenizer("m@1")


def test_a_bundle_has_versions_side_by_side(registry: ModelRegistry, tmp_path: Path) -> None:
    """The same one named twice is one; two folders of one name are refused."""
    for i in range(2):
        _put(registry, model_path=str(tiny.bert_masked_lm(tmp_path / f"m{i}" / "x", seed=i)))
    assert registry.export(tmp_path / "b.tar", "m@2", "m", "m@1", unlocked=True).models == ("m@2", "m@1")
    with pytest.raises(RequestError, match="one model of each name, but 'x' means two"):
        registry.export(tmp_path / "c.tar", tmp_path / "m0" / "x", tmp_path / "m1" / "x", unlocked=True)
    assert not (tmp_path / "c.tar").exists()


def test_what_is_not_known_fits_no_glob(registry: ModelRegistry) -> None:
    """The same, whether an entry is stored or this process's."""
    _put(registry, "my-stored")
    registry.register("my-own", "clinical")
    assert registry.list_models(match="my-*", description="*") == {}
    assert registry.list_models(match="my-*", description=None).keys() == {"my-own", "my-stored"}


def test_a_protection_that_outlasts_its_name_is_no_version(registry: ModelRegistry) -> None:
    """Nor is one that points nowhere yet."""
    _put(registry)
    registry.catalog.protect("m", "production")
    with pytest.raises(ModelNotFoundError, match=r"has no version or alias 'production'\. It has: 1\.\n"):
        registry.catalog.set_alias("m", "staging", "production")
    registry.unregister("m", persist=True)
    with pytest.raises(ModelNotFoundError, match="Model 'm' is not stored"):
        registry.catalog.update("m", tags=["a"])


def test_what_a_child_stores_outlives_its_parent(registry: ModelRegistry, catalog_url: str) -> None:
    """Also when the parent closes the catalogue, or ends, before the child writes."""
    code = (
        "from medvllm.catalog import stores\n"
        "from medvllm.engine.model_runner import registry as r\n"
        "import os\n"
        "r.register('parent', 'generic', persist=True)\n"
        "(closed, close), (written, write) = os.pipe(), os.pipe()\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    assert r.catalog.names() == ['parent']\n"
        "    os.write(write, b'.'), os.read(closed, 1)\n"
        "    r.register('child', 'generic', persist=True)\n"
        "    os.write(write, b'.'), os.read(closed, 1)\n"
        "    os._exit(0)\n"
        "os.read(written, 1)\n"
        "stores.close_all()\n"
        "os.write(close, b'.'), os.read(written, 1)\n"
        "print(r.catalog.names())\n"
        "os.write(close, b'.')\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    assert out(code) == "['child', 'parent']"
    assert registry.catalog.names() == ["child", "parent"] and _sound(registry)


def test_a_fork_beside_threads_that_look_up_leaves_no_child_waiting(catalog_url: str) -> None:
    """Twenty children look up what the parent's threads are looking up all the time."""
    code = (
        "from medvllm.engine.model_runner import registry as r\n"
        "import os, signal, threading, warnings\n"
        "warnings.simplefilter('ignore')  # Python's own, of a fork beside threads\n"
        "r.register('m', 'generic', persist=True)\n"
        "def look():\n"
        "    while True:\n"
        "        r.get_metadata('m')\n"
        "for _ in range(2):\n"
        "    threading.Thread(target=look, daemon=True).start()\n"
        "ended = []\n"
        "for _ in range(20):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        signal.alarm(20)\n"
        "        r.get_metadata('m'), r.catalog.names()\n"
        "        os._exit(0)\n"
        "    ended.append(os.waitpid(pid, 0)[1])\n"
        "print(sum(ended), flush=True)\n"
        "os._exit(0)\n"
    )
    assert out(code) == "0"


def test_threads_share_one_catalogue(registry: ModelRegistry) -> None:
    """Twelve that write and read at once: gapless versions, and no error."""
    barrier, numbers, errors = Barrier(12), [], []

    def work(i: int) -> None:
        barrier.wait()
        try:
            for k in range(3):
                numbers.append(_put(registry, description=f"{i} {k}"))
                registry.get_metadata("m")
                list(registry.list_models())
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == [] and sorted(numbers) == list(range(1, 37)) and _sound(registry)


def test_a_copy_with_versions_of_its_own_goes_on_from_the_builtin(registry: ModelRegistry) -> None:
    """A stored entry of a built-in's name stands before it, and removed, shows it again."""
    name = "biobert-base-cased-v1.2"
    assert _put(registry, name, description="ours") == 2
    assert registry.get_metadata(name).origin == "stored"
    assert registry.get_metadata(f"{name}@1").origin == "built-in"
    registry.unregister(name, persist=True)
    assert registry.get_metadata(name).origin == "built-in"
    assert _put(registry, name, description="ours again") == 3


@pytest.mark.parametrize("shown", ["m:secret@", "m:s%40cret@"])
def test_a_password_is_shown_nowhere(shown: str) -> None:
    """Neither in an error, nor by the catalogue itself."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for url in (f"postgresql://{shown}127.0.0.1:{port}/db", f"postgresql://127.0.0.1:{port}/db?user=m&password=secret"):
        catalog = StoredCatalog(url)
        with pytest.raises(CatalogError, match=f"127.0.0.1:{port}/db.* cannot be read: ") as caught:
            catalog.names()
        seen = f"{caught.value}{caught.value.__dict__}{catalog!r}{catalog.where}"
        assert "secret" not in seen and "s%40cret" not in seen and "s@cret" not in seen


def test_what_is_damaged_is_not_handed_out(registry: ModelRegistry, catalog_url: str) -> None:
    """Facts that were changed in the database are an error of that model, not of others."""
    _put(registry, "m", pooling="cls")
    _put(registry, "n")
    change(catalog_url, "UPDATE catalog_versions SET facts = replace(facts, 'cls', 'mean') WHERE name = 'm'")
    with pytest.raises(CatalogError, match="version 1 of model 'm' is not what was written"):
        ModelRegistry().get_metadata("m")
    assert registry.get_metadata("n").version == 1
