"""Filters of stored entries: the database leaves rows out, and what a listing returns is what Python alone selects."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from medvllm.catalog import builtin_entries
from medvllm.catalog.selection import Selection
from medvllm.catalog.sql import lookups
from medvllm.catalog.sql.texts import sha256, to_json
from medvllm.engine.model_runner import ModelRegistry, ModelType
from medvllm.errors import RequestError
from medvllm.local_files import local_files
from tests.support.sql import change

# Letters that fold to several or to one of ASCII, with cases beyond ASCII and beyond the first plane, and with none;
# and what JSON, LIKE or a glob reads as something else.
LETTERS = 'aAkKsSiIß\u017f\u212a\ufb01\u1e9e\u0130éÉσΣς\u1fb3\U00010400\U00010428中\U0001f600"\\%_!*?[]-=:/\n\x7f'
WORDS = ["straße", "STRASSE", "\ufb01n", "fin", "mit", "embed", "ward=7", '"license":', "\\u00df", "u00df", "[", "100%"]
NAMES = st.sampled_from(WORDS) | st.text(st.sampled_from(LETTERS), min_size=1, max_size=6)
TEXTS = NAMES | st.text(st.sampled_from(LETTERS + "\0"), max_size=6)
PARTS = TEXTS | st.sampled_from(["*", "?", "[!a]", "[a-z]", "[", "[]", "[!]s]", "[ß]"])
GLOBS = TEXTS | st.lists(PARTS, max_size=4).map("".join)
FACTS = {
    "description": TEXTS,
    "license": TEXTS,
    "task": TEXTS,
    "also_known_as": st.lists(TEXTS, max_size=2),
    "languages": st.lists(TEXTS, max_size=2),
    "gated": st.booleans(),
    "max_length": st.integers(1, 30),
    "pooling": st.sampled_from(["mean", "cls"]) | st.just(["mean", "cls"]),
    "label_scheme": st.sampled_from(["BIO", "IO"]),
}
STORED: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"model_type": st.sampled_from([*map(str, ModelType)])},
    optional={
        **FACTS,
        "tags": st.lists(TEXTS, max_size=3),
        "values": st.dictionaries(TEXTS, TEXTS, max_size=2),
        "provenance": st.dictionaries(st.sampled_from([*FACTS]), TEXTS, max_size=2),
    },
)
_CHANGES: list[Callable[[str], str]] = [
    str,
    str.upper,
    str.lower,
    str.casefold,
    str.swapcase,
    lambda text: f"*{text[1:]}",
]


@st.composite
def _catalogues(draw: st.DrawFn) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Entries, and filters that are often made of what one of them has, in another case."""
    entries = draw(st.dictionaries(NAMES, STORED, min_size=1, max_size=5))
    name, facts = draw(st.sampled_from(sorted(entries.items())))

    def asked(keyword: str, others: st.SearchStrategy[Any]) -> Any:
        known = name if keyword == "name" else facts.get(keyword)
        known = draw(st.sampled_from(known)) if isinstance(known, list) and known else known
        if not isinstance(known, str) or draw(st.integers(0, 3)) == 0:
            return draw(others) if known is None or isinstance(known, list | str) else known
        return draw(st.sampled_from(_CHANGES))(known)

    filters: dict[str, Any] = {}
    for each in draw(st.sets(st.sampled_from(["model_type", "task", "tags", "match", "search", "facts"]), max_size=2)):
        if each == "model_type":
            filters[each] = asked(each, st.sampled_from(ModelType))
        elif each == "task":
            filters[each] = asked(each, TEXTS)
        elif each == "tags":
            pairs = st.sampled_from([f"{key}={value}" for key, value in facts.get("values", {}).items()] or ["a=b"])
            filters[each] = [draw(pairs) if draw(st.booleans()) else asked("tags", TEXTS)]
        elif each == "facts":
            keyword = draw(st.sampled_from([*FACTS, "name", "version", "origin", "successor"]))
            filters[each] = {keyword: asked(keyword, GLOBS | st.none() | st.integers(0, 30) | st.booleans())}
        else:
            known = asked(draw(st.sampled_from(["name", "description", "also_known_as"])), GLOBS)
            filters[each] = draw(st.just(known[1:-1])) if each == "search" and draw(st.booleans()) else known
    return entries, filters


def _store(url: str, entries: dict[str, dict[str, Any]]) -> None:
    """Put entries in place of all others, as they may be stored by any version of the program."""
    added = []
    for number, (name, facts) in enumerate(entries.items(), start=1):
        added.append(("catalog_names", {"name": name, "newest": number, "current": number}))
        for version in {1, number}:  # an older version has no facts
            text = to_json(facts if version == number else {"model_type": "generic"})
            row = {"name": name, "number": version, "type": facts["model_type"], "facts": text, "sha256": sha256(text)}
            added.append(("catalog_versions", row))
    change(url, "DELETE FROM catalog_versions", "DELETE FROM catalog_names", *added)


@pytest.mark.parametrize("few", [20_000, 1])
def test_a_database_leaves_out_nothing_that_fits(
    few: int, catalog_url: str, registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever facts, names and filters have in them: the rows that Python selects are among those that it gives."""
    monkeypatch.setattr(lookups, "FEW", few)
    catalog = registry.catalog
    catalog.create()
    selected = 0

    @settings(max_examples=30, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(_catalogues())
    def check(drawn: tuple[dict[str, dict[str, Any]], dict[str, Any]]) -> None:
        nonlocal selected
        entries, filters = drawn
        wanted: dict[str, Any] = {"task": None, "tags": (), "match": None, "search": None, "facts": None, **filters}
        try:
            selection = Selection.of(wanted.pop("model_type", None), **wanted)
        except RequestError:
            assume(False)
        _store(catalog_url, entries)
        expected = [row.name for row in selection.filter(catalog.rows())]
        assert [row.name for row in selection.filter(catalog.rows(None, selection))] == expected, (entries, filters)
        kept = {row.name for row in catalog.rows(None, selection, ["mit", "absent"])}
        assert {*expected, *entries.keys() & {"mit"}} <= kept <= entries.keys()
        selected += len(expected)

    check()
    assert selected > 10


def test_every_character_is_found_in_any_case(registry: ModelRegistry, home: Path) -> None:
    """Of all of Unicode: what a character becomes when case is folded finds it, in a name and in a fact."""
    folded = {c: c.casefold() for c in map(chr, range(sys.maxunicode + 1)) if c.casefold() != c}
    plain = [c for c, text in folded.items() if len(text) == 1 and (c.isascii() or not text.isascii())]
    for character in {*plain} - {*plain[::20]}:  # they are alike
        del folded[character]
    registry.catalog.create()
    _store(f"sqlite:///{home / 'medvllm' / 'catalog.db'}", {c: {"model_type": "generic", "license": c} for c in folded})
    for character, text in folded.items():
        by_name = Selection.of(None, task=None, tags=(), match=f"*{text}*", search=None, facts=None)
        by_fact = Selection.of(None, task=None, tags=(), match=None, search=None, facts={"license": text})
        for selection in (by_name, by_fact):
            assert character in {row.name for row in registry.catalog.rows(None, selection)}, ascii(character)


def test_a_stored_entry_hides_a_shipped_one_that_fits(registry: ModelRegistry) -> None:
    """The database may leave out the stored entry of a name, but the built-in entry does not appear in its place."""
    name, entry = next((name, entry) for name, entry in builtin_entries().items() if entry.license.license == "mit")
    assert name in registry.list_models(license="mit")
    registry.register(name, "custom", license="gpl-3.0", persist=True, replace=True)
    for filters in ({"license": "mit"}, {"model_type": entry.model_type}, {"origin": "built-in"}, {"version": 1}):
        assert name not in registry.list_models(**filters)
    assert registry.list_models(license="gpl*")[name].origin == "stored"


def test_what_is_here_is_found_from_the_disk(
    catalog_url: str, registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders and repositories of the Hub's cache, page by page, beside other filters, and as the disk changes."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    registry.catalog.create()

    def put(folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "config.json").write_text('{"model_type": "bert"}')
        (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")

    def here(**filters: Any) -> list[str]:
        found = list(registry.list_models(here=True, **filters))
        assert found == [name for name, entry in registry.list_models(**filters).items() if local_files(entry)]
        return found

    for number in range(12):  # more than are asked for one by one
        put(folder := tmp_path / "models" / f"m{number}")
        registry.register(f"m{number}", "clinical", model_path=str(folder), task="ner", persist=number % 2 == 0)
        if number not in (2, 3, 7):
            shutil.rmtree(folder)
    (tmp_path / "models" / "m5").mkdir()  # without a model
    assert here() == ["m2", "m3", "m7"] and here(search="m3") == ["m3"] and here(task="embed") == []
    put(tmp_path / "models" / "m8")
    assert here() == ["m2", "m3", "m7", "m8"]
    assert list(registry.list_models(here=True, limit=2, after="m2")) == ["m3", "m7"]
    commit, hub = "0" * 40, tmp_path / "hub"
    put(hub / "models--a--plain" / "snapshots" / commit)
    put(hub / "models--a--linked" / "snapshots" / commit)
    registry.register("a/plain", "clinical", persist=True)
    registry.register("linked", "clinical", model_path=f"hf://a/linked@{commit}", persist=True)
    registry.register("a/other", "clinical", persist=True)
    registry.register("odd", "clinical", description="\0", model_path=str(tmp_path / "models" / "m2"), persist=True)
    assert here() == ["a/plain", "linked", "m2", "m3", "m7", "m8", "odd"]
    put(tmp_path / "below" / "m9")
    registry.register("m9", "clinical", model_path=str(tmp_path / "below" / "m9"), replace=True)
    assert here(match="m*") == ["m2", "m3", "m7", "m8", "m9"]


@pytest.mark.parametrize("text", ["\0", "\ud800", "%", "_", "!", "\\", "'", '"', "[" * 1000, "x" * 100_000, ":name"])
def test_any_text_can_be_looked_for(text: str, catalog_url: str, registry: ModelRegistry) -> None:
    """No text is too long or too odd for a database, and none is read as anything but a text."""
    registry.register("m", "generic", description="50_%! of 'all' \"it\" is \\ :name x", license="b\0", persist=True)
    registry.register("n", "generic", persist=True)
    found = {"m"} if text in "%_!\\'\":name" else set()
    assert {*registry.list_models(search=text, origin="stored")} == found
    assert {*registry.list_models(match=text, origin="stored")} == set()
    assert {*registry.list_models(tags=[text], origin="stored")} == set()
    assert {*registry.list_models(license=None, origin="stored")} == {"n"}


_LISTING = """
import sys
from medvllm.engine.model_runner import registry
from medvllm.cli.app import make_app
run = lambda *words: make_app([*words])([*words], standalone_mode=False)
assert "m" in registry and registry.get_metadata("m@production").version == 1
assert [*registry.list_models(origin="stored", license="mit")] == ["m"] == registry.catalog.names()
run("list", "--mine")
assert [*registry.catalog.versions("m")] == [1] and not registry.catalog.was_removed("m")
assert registry.catalog.export()
loaded = {"sqlalchemy", "alembic"} & {*sys.modules}
assert not loaded, loaded
"""


def test_looking_into_a_file_needs_no_sqlalchemy(registry: ModelRegistry) -> None:
    """Listing, looking up and exporting stored entries, in a process that writes nothing."""
    registry.register("m", "generic", license="mit", persist=True)
    registry.catalog.set_alias("m", "production", 1)
    run = subprocess.run([sys.executable, "-c", _LISTING], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
