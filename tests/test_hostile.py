"""Hostile texts in the stored catalogue: kept exactly and shown harmlessly, or refused with an error of ours."""

import ast
import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvllm.catalog import StoredCatalog, sql
from medvllm.catalog.record import to_record
from medvllm.engine.model_runner import ModelMetadata, ModelRegistry
from medvllm.errors import CatalogError, MedVLLMError, ModelNameError, ModelNotFoundError, RequestError
from medvllm.facts import MUTABLE_FIELDS
from tests.support import warm
from tests.support.spread import spread

SOME, MANY = 60, 600  # steps of each kind: in every run, and in the slow one
_STEPS = 20  # in one run of many
counted = pytest.mark.parametrize(
    "examples",
    [pytest.param(SOME, id="some"), pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)

MARKUP = "[red]x[/red] [/] {0} {x!r} %s %(x)s ${HOME} `id` <b>&amp;"
TEXTS = [
    "'; DROP TABLE catalog_names; --",
    '"; DELETE FROM catalog_versions; --',
    "' OR '1'='1",
    "\\'; --",
    "%",
    "_",
    "a%b_c*[d]?",
    ":name ?1 $1 @name",
    MARKUP,
    "a\0b",
    "\a\b\t\n\v\f\r\x1b\x7f\x85\x9b",
    "\x1b[31mred\x1b[2J\x1b]0;title\x07",
    "\u202eevil\u2066\u200b\ufeff",
    "\u2028\u2029",
    "\U0001f9ec\U0001f468\u200d\u2695\ufe0f",
    "e\u0301 \u00e9 \ufb01 \u0130 \u00df",  # the same to the eye, or in another case
    "\ufffe\uffff\U0010ffff\U000e0001\ue000\u0378",
    "'''\"\"\"\\u0041\\",
    "null",
    "\\ud800",
    "",
    " ",
    "x" * 100_000,
]
HALVES = ["\ud800", "a\udfffb", "\ud83d\ude00", "\udc80"]  # of characters; the third looks like a whole one
_characters = st.one_of(
    st.characters(), st.characters(categories=["Cs", "Cc", "Cf"]), st.sampled_from("'\"\\%_@/:.;-\0 \n\x1b\u202e")
)
texts = st.one_of(st.sampled_from([*TEXTS, *HALVES]), st.text(_characters, max_size=12))
plain = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)


@pytest.fixture
def catalog(catalog_url: str) -> Iterator[StoredCatalog]:
    """A catalogue with an entry that no test touches; afterwards it is as it was, and the history is sound."""
    registry = ModelRegistry()
    registry.register(
        "bystander", "clinical", persist=True, description="d", also_known_as=["acme/b"], do_lower_case=False
    )
    registry.catalog.set_alias("bystander", "production", 1)
    stored = registry.catalog
    before = stored.versions("bystander")
    yield stored
    assert stored.versions("bystander") == before
    assert stored.find("bystander", "production") == stored.find_other("acme/b") == before[1]
    assert stored.check_history()[2] == []


def _entry(name: str = "m", **facts: Any) -> ModelMetadata:
    return ModelMetadata.build(name, "custom", facts)


def _medvllm(*arguments: str) -> str:
    done = warm.medvllm(*arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _harmless(shown: str) -> bool:
    """Return whether a text moves no cursor and turns no line around: it controls lines and columns alone."""
    return not any(
        unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp") and c not in "\n\t" for c in shown
    )


def _facts(text: str) -> dict[str, Any]:
    """Return facts that all hold a text."""
    return {
        "description": text,
        "tags": [text, text],
        "values": {text: text, "b": text},
        "parameters": {text: [text, {text: text}]},
        "revision": text,
        "license": text,
        "intended_use": text,
        "languages": (text,),
        "deprecated": text,
        "successor": text,
        "provenance": {"license": text},
        "baseline": [{"inputs": [text], text: text}],
    }


@pytest.mark.parametrize("text", spread(TEXTS, 3), ids=lambda text: ascii(text[:20]))
def test_a_text_in_any_fact_is_read_back_as_it_was_given(catalog: StoredCatalog, text: str) -> None:
    """By this process, from the history, and from the file that another catalogue would take."""
    facts = _facts(text if len(text) < 1000 else text[:20_000])
    given = _entry(**facts)
    kept = catalog.add(given, replace=False, reason=text[:1000] or None)
    assert kept.facts() == given.facts()
    assert StoredCatalog().find("m") == kept == catalog.find("m", "1")
    event = catalog.history("m")[-1]
    assert (event.detail["facts"], event.reason) == (given.facts(), text[:1000] or None)
    exported = catalog.export()
    assert catalog.apply(exported) == []
    catalog.remove("m")
    assert [event.action for event in catalog.apply(exported.replace('"m@1"', '"m@2"'))] == ["registered"]
    again = catalog.find("m")
    assert again is not None and again.facts() == given.facts()


@pytest.mark.parametrize("text", spread(TEXTS, 3), ids=lambda text: ascii(text[:20]))
def test_marks_and_tags_take_any_text(catalog: StoredCatalog, text: str) -> None:
    """One at a time, and leave the other facts as they are."""
    first = catalog.add(_entry(do_lower_case=False, gated=False, description="d"), replace=False)
    marked = catalog.update("m", deprecated=text, values={text: text}, reason="r")[0]
    tagged = catalog.tag("m", add={text: None, f"{text}k": text})
    assert marked.values == {text: text} and (marked.lifecycle.deprecated or "") == text
    assert (tagged.tags, tagged.values) == ([text], {text: text, f"{text}k": text})
    assert (tagged.behaviour, tagged.license, tagged.description) == (first.behaviour, first.license, "d")
    assert list(ModelRegistry().list_models(tags=[text])) == ["m"]
    bare = catalog.tag("m", add={}, remove=(text, f"{text}k"))
    assert (bare.tags, bare.values) == ([], {})


def test_listing_and_showing_print_no_control_character(catalog: StoredCatalog) -> None:
    """A row stays a row, whatever is in its description."""
    shown = [text for text in TEXTS if len(text) < 1000]
    for i, text in enumerate(shown):
        catalog.add(_entry(f"m{i:03}", **_facts(text)), replace=False)
    name = "'; DROP TABLE catalog_names; -- [red]"
    catalog.add(_entry(name, **_facts("\x1b[2J" + MARKUP)), replace=False)
    listed = _medvllm("list")
    assert _harmless(listed)
    assert sum(line.startswith("m0") for line in listed.split("\n")) == len(shown)
    assert sum(line.startswith(f"{name}\t") for line in listed.split("\n")) == 1
    as_json = _medvllm("list", "--json")
    assert _harmless(as_json)
    entries = {entry["name"]: entry for entry in json.loads(as_json)}
    assert [entries[f"m{i:03}"]["description"] for i in range(len(shown))] == shown
    for of in (name, f"m{shown.index(TEXTS[10]):03}", f"m{shown.index(TEXTS[12]):03}"):
        page = _medvllm("show", of)
        assert _harmless(page) and "\\u" in page


@pytest.mark.parametrize("half", HALVES, ids=ascii)
def test_half_a_character_is_refused(catalog: StoredCatalog, half: str) -> None:
    """No file takes it, two of them are read back as one character, and a terminal breaks off at it."""
    catalog.add(_entry("kept"), replace=False)
    before = catalog.database.change_token()
    facts = _facts(half)
    del facts["parameters"]  # as JSON has them, which makes one of two, before they come here
    for fact, value in facts.items():
        with pytest.raises(RequestError, match=r"cannot be stored: a fact contains half of a surrogate pair"):
            catalog.add(_entry(**{fact: value}), replace=False)
    steps: list[Callable[[], object]] = [
        lambda: catalog.add(_entry(half), replace=False),
        lambda: catalog.add(_entry(also_known_as=[half]), replace=False),
        lambda: catalog.add(_entry(), replace=False, reason=half),
        lambda: catalog.update("kept", successor=half),
        lambda: catalog.update("kept", tags=["a"], reason=half),
        lambda: catalog.tag("kept", add={half: None}),
        lambda: catalog.tag("kept", add={"k": half}),
        lambda: catalog.set_alias("kept", half, 1),
        lambda: catalog.set_alias("kept", "a", half),
        lambda: catalog.set_alias(half, "a", 1),
        lambda: catalog.protect(half, "a"),
        lambda: catalog.remove_alias(half, "a"),
        lambda: catalog.remove_alias("kept", half),
        lambda: catalog.remove(half),
        lambda: catalog.remove("kept", reason=half),
        lambda: catalog.find(half),
        lambda: catalog.find("kept", half),
        lambda: catalog.find_other(half),
        lambda: catalog.versions(half),
        lambda: catalog.aliases(half),
        lambda: catalog.history(half),
        lambda: catalog.history(since=half),
        lambda: list(catalog.rows(half)),
        lambda: ModelRegistry().list_models(after=half),
        lambda: ModelRegistry().get_metadata(half),
    ]
    for step in steps:
        with pytest.raises(MedVLLMError):
            step()
    assert StoredCatalog().names() == ["bystander", "kept"] and catalog.database.change_token() == before


@pytest.mark.parametrize("text", spread([text for text in TEXTS if text], 3), ids=lambda text: ascii(text[:20]))
def test_a_name_or_another_name_is_kept_exactly_or_refused(catalog: StoredCatalog, text: str) -> None:
    """Whichever way it comes in: it is then found by it, and by nothing else."""
    for name, other in ((text, "acme/other"), ("own", text)):
        entry = _entry(name, also_known_as=[other])
        toml = "\n".join(("[models.{}]", 'model_type = "custom"', "also_known_as = [{}]"))
        toml = toml.format(*(_toml(word) for word in (name, other)))
        try:
            kept = catalog.add(entry, replace=False)
        except ModelNameError as error:
            assert _harmless(str(error)) and len(str(error)) < 1000
            with pytest.raises(MedVLLMError):
                ModelRegistry().register(name, "custom", also_known_as=[other], persist=True)
            with pytest.raises(MedVLLMError):
                catalog.apply(f"{catalog.export()}\n{toml}")
            assert catalog.names() == ["bystander"]
        else:
            assert catalog.names() == sorted(["bystander", name])
            assert catalog.find(name) == catalog.find_other(other) == kept
            assert ModelRegistry().get_metadata(other).name == ModelRegistry().get_metadata(f"{name}@1").name == name
            assert [event.name for event in catalog.history(name)] == [name]
            assert catalog.apply(catalog.export()) == []
            assert catalog.remove(name) == [1] and catalog.find_other(other) is None


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


@pytest.mark.parametrize(
    "text", [*spread(TEXTS, 3), "1", "a" * 65, "a" * 40, "-a", "a b", "ä"], ids=lambda text: ascii(text[:20])
)
def test_an_alias_is_letters_and_digits(catalog: StoredCatalog, text: str) -> None:
    """Everything else is refused where it would be made, and unknown where it is looked up."""
    catalog.add(_entry(), replace=False)
    if text not in ("null", "a" * 40):
        for step in (lambda: catalog.set_alias("m", text, 1), lambda: catalog.protect("m", text)):
            with pytest.raises(ModelNameError, match="cannot be used") as refused:
                step()
            assert _harmless(str(refused.value)) and len(str(refused.value)) < 1000
        with pytest.raises(MedVLLMError):
            catalog.apply(f"{catalog.export()}\n[aliases.m]\n{_toml(text)} = 1")
    with pytest.raises(ModelNotFoundError, match="has no alias"):
        catalog.remove_alias("m", text)
    with pytest.raises(MedVLLMError) as missing:
        catalog.set_alias("m", "production", text if text != "1" else "2")
    assert _harmless(str(missing.value))
    assert [alias.alias for alias in catalog.aliases()] == ["production"]


def test_numbers_that_no_version_has_are_not_found(catalog: StoredCatalog) -> None:
    """Also those with more digits than Python reads; the last number is the last."""
    catalog.add(_entry(), replace=False)
    for number in ("0", "00", "2", "9" * 19, "9" * 5000, str(2**31), str(2**63)):
        assert catalog.find("m", number) is None
        with pytest.raises(ModelNotFoundError, match="has no version or alias"):
            catalog.set_alias("m", "a", number)
    assert catalog.find("m", "٠١") == catalog.find("m", "01") == catalog.find("m", "1") is not None  # digits too
    catalog.apply(catalog.export() + '\n[models."m@2147483647"]\nmodel_type = "custom"\ndescription = "last"')
    with pytest.raises(CatalogError, match="cannot have another version"):
        catalog.add(_entry(description="one more"), replace=True)
    assert list(catalog.versions("m")) == [1, 2**31 - 1]


def test_facts_of_another_kind_are_refused(catalog: StoredCatalog) -> None:
    """What would be read back otherwise, or could not be exported; what is inside facts is looked at too."""
    catalog.add(_entry("kept"), replace=False)
    wrong: list[dict[str, Any]] = [
        {"values": {"a": 5}},
        {"values": {"a": None}},
        {"values": {1: "a"}},
        {"values": {"a": ["b"]}},
        {"parameters": {"a": [{"b": None}]}},
        {"parameters": {"a": float("nan")}},
        {"parameters": {"a": float("inf")}},
        {"baseline": [{"a": b"x"}]},
        {"baseline": [{"a": None}]},
        {"tags": [1]},
        {"tags": ["a" * 1_000_000]},
        {"description": "x" * (1 << 20)},
        {"description": "\U0001f9ec" * 100_000},
    ]
    for facts in wrong:
        with pytest.raises(RequestError) as refused:
            catalog.add(_entry(**facts), replace=False)
        assert len(str(refused.value)) < 1000
    tags: list[dict[Any, Any]] = [{1: None}, {"k": 1}, {None: None}, {"k": b"v"}, {"x" * (1 << 20): None}]
    for tag in tags:
        with pytest.raises(RequestError):
            catalog.tag("kept", add=tag)
    for reason in ("", "x" * 2001, "x" * (1 << 20)):
        with pytest.raises(RequestError, match="A reason must have 1 to 2,000 characters"):
            catalog.update("kept", tags=["a"], reason=reason)
    for moment in ("yesterday", "0001-01-01T00:00+23:59", "9999-12-31T23:59-23:59", "", "a\0", "x" * 5000):
        with pytest.raises(RequestError, match="is not a date or a time"):
            catalog.history(since=moment)
    assert catalog.names() == ["bystander", "kept"] and catalog.versions("kept")[1].tags == []


def test_thousands_of_tags_values_and_other_names(catalog: StoredCatalog) -> None:
    """All are kept, and each is found."""
    words = [f"{i}-\U0001f9ec'%" for i in range(5000)]
    kept = catalog.add(
        _entry(tags=words, values=dict.fromkeys(words, "\x1b"), also_known_as=[f"acme/n{i}" for i in range(5000)]),
        replace=False,
    )
    assert (kept.tags, list(kept.values)) == (words, sorted(words))
    assert catalog.find_other("acme/n4999") == kept and catalog.find_other("acme/n5000") is None
    assert list(ModelRegistry().list_models(tags=words)) == ["m"]
    assert catalog.tag("m", add={}, remove=tuple(words)).tags == []


@counted
def test_whatever_is_given_is_kept_exactly_or_refused(catalog: StoredCatalog, examples: int) -> None:
    """Runs of steps with texts of every kind: what is read back is what a plain dict holds after the same steps."""
    expected: dict[str, dict[str, Any]] = {}
    taken: Counter[bool] = Counter()

    def take(step: Callable[[], object]) -> bool:
        try:
            step()
        except MedVLLMError as error:
            assert len(str(error)) < 2000
            taken[False] += 1
            return False
        taken[True] += 1
        return True

    def register(name: str, other: str, key: str, text: str) -> None:
        entry = _entry(name, also_known_as=[other], values={key: text}, description=text, parameters={key: [text]})
        facts = entry.facts()
        if take(lambda: catalog.add(entry, replace=True, reason=text or None)):
            kept = {fact: value for fact, value in expected.get(name, {}).items() if fact in MUTABLE_FIELDS}
            same = _content(facts) == _content(expected.get(name, {}))
            expected[name] = {**kept, **facts} if same else facts

    def tag(name: str, other: str, key: str, text: str) -> None:
        if take(lambda: catalog.tag(name, add={key: text, text: None})):
            facts = expected[name]
            facts["values"] = {**facts.get("values", {}), key: text}
            facts["tags"] = list(dict.fromkeys([*facts.get("tags", []), text]))

    def remove(name: str, other: str, key: str, text: str) -> None:
        if take(lambda: catalog.remove(name)):
            del expected[name]

    def alias(name: str, other: str, key: str, text: str) -> None:
        if take(lambda: catalog.set_alias(name, other, 1)):
            take(lambda: catalog.remove_alias(name, other, reason="r"))

    def look(name: str, other: str, key: str, text: str) -> None:
        for step in (
            lambda: catalog.find(name, other),
            lambda: catalog.find_other(name),
            lambda: catalog.history(name),
            lambda: list(catalog.rows(name)),
            lambda: ModelRegistry().list_models(match=name, tags=[text], license=other),
        ):
            take(step)

    actions = st.sampled_from([register, register, tag, tag, remove, alias, look])
    name = st.one_of(st.sampled_from(["m", "n'", "%"]), plain, texts)
    step = st.tuples(actions, name, st.one_of(plain, texts), texts, texts)

    @settings(
        max_examples=max(examples // _STEPS, 3),
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(step, min_size=_STEPS, max_size=_STEPS))
    def check(steps: list[tuple[Callable[..., None], str, str, str, str]]) -> None:
        expected.clear()
        for name in catalog.names():
            if name != "bystander":
                catalog.remove(name)
        for action, *words in steps:
            action(*words)
        found = {name: entry for name in catalog.names() if (entry := catalog.find(name)) is not None}
        found.pop("bystander")
        assert {name: to_record(entry) for name, entry in found.items()} == expected
        assert all(entry.name == name for name, entry in found.items())
        assert catalog.apply(catalog.export()) == []

    check()
    assert min(taken[True], taken[False]) >= examples / 8, taken


def _content(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a version: registered again, it stays, and keeps the marks that are not stated."""
    return {fact: value for fact, value in facts.items() if fact not in MUTABLE_FIELDS}


# The text of SQL

_SQL_WORDS = ("SELECT ", "INSERT ", "UPDATE ", "DELETE ", "DROP ", "CREATE ", "ALTER ", "PRAGMA ", "SET ", "BEGIN")
_TAKES_SQL = ("text", "literal_column", "exec_driver_sql", "execute", "executemany", "executescript")


def _built_sql(source: str) -> list[int]:
    """Return the lines on which a text of SQL is built from something else than constants of its module."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    constants: set[str] = set()
    stated: list[str] = []  # each name as often as it is set to a constant
    for node in nodes:
        target = node.target if isinstance(node, ast.For) else None
        if isinstance(node, ast.Assign) and node in tree.body and _constant(node.value, constants):
            (target,) = node.targets
        elif isinstance(node, ast.For) and not _constant(node.iter, constants):
            continue
        if isinstance(target, ast.Name):
            constants.add(target.id)
            stated.append(target.id)
    assigned = [node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    assigned += [node.arg for node in nodes if isinstance(node, ast.arg)]
    constants = {name for name in constants if assigned.count(name) == stated.count(name)}
    calls = [node for node in nodes if isinstance(node, ast.Call) and _name_of(node.func) in _TAKES_SQL]
    given = [call.args[0] for call in calls if call.args]
    texts = [
        node for node in nodes if isinstance(node, ast.expr) and (_is_sql(node) or (node in given and _builds(node)))
    ]
    return sorted({node.lineno for node in texts if not _constant(node, constants)})


def _constant(node: ast.AST, constants: set[str]) -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.Name):
        return node.id in constants
    if isinstance(node, ast.Tuple | ast.List):
        return all(_constant(item, constants) for item in node.elts)
    if isinstance(node, ast.JoinedStr):
        return all(_constant(part, constants) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _constant(node.value, constants)
    if isinstance(node, ast.BinOp):
        return _constant(node.left, constants) and _constant(node.right, constants)
    if isinstance(node, ast.Call) and _name_of(node.func) in ("format", "join", "replace"):
        parts = (getattr(node.func, "value", None), *node.args, *(keyword.value for keyword in node.keywords))
        return all(part is not None and _constant(part, constants) for part in parts)
    return False


def _builds(node: ast.AST) -> bool:
    """Return whether an expression makes a text of others."""
    joins = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Mod)
    return joins or isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Call) and _name_of(node.func) == "format")


def _is_sql(node: ast.AST) -> bool:
    """Return whether an expression makes a text of others that begins as SQL does."""
    begins = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant) and isinstance(part.value, str))
    return _builds(node) and any(text.lstrip().upper().startswith(_SQL_WORDS) for text in begins)


def _name_of(function: ast.AST) -> str:
    return str(getattr(function, "attr", getattr(function, "id", "")))


def test_no_text_of_sql_is_built_from_values() -> None:
    """Values travel beside the statement, as parameters."""
    files = sorted(Path(next(iter(sql.__path__))).rglob("*.py"))
    assert len(files) >= 10
    built = chain.from_iterable(((file.name, line) for line in _built_sql(file.read_text())) for file in files)
    assert list(built) == []


@pytest.mark.parametrize(
    "source",
    [
        'connection.exec_driver_sql(f"SELECT {name}")',
        'connection.execute(text("SELECT " + name))',
        'op.execute("DROP TABLE %s" % name)',
        'op.execute("{}".format(name))',
        'def f(name):\n    query = f"DELETE FROM {name}"',
        'NAME = "a"\ndef f(NAME):\n    text(f"SELECT {NAME}")',
        'NAME = "a"\ndef f():\n    global NAME\n    NAME = input()\n    text(f"SELECT {NAME}")',
        'for name in names:\n    text(f"{name}")',
        'text("SELECT " + ", ".join(names))',
    ],
)
def test_sql_built_from_values_is_seen(source: str) -> None:
    """By the test above."""
    assert _built_sql(source)


def test_sql_of_constants_is_let_through() -> None:
    """It changes with the program alone."""
    source = 'TABLE = "a"\ntext(f"SELECT * FROM {TABLE}")\nfor event in ("x", "y"):\n    op.execute(f"DROP {event}")\n'
    assert _built_sql(source + 'error(f"cannot be read: {name}")\nconnection.execute(query)') == []
