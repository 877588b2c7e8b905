"""`medvllm register`, `unregister`, `tag`, `deprecate`, `alias`, `history` and `catalog`, as typed."""

import io
import json
import shutil
import sqlite3
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from jsonschema import Draft202012Validator

from medvllm import cli
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError
from tests.support import sentence, tiny


@dataclass(frozen=True)
class Said:
    """What a command has said."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


class Medvllm(Protocol):
    """Run a command with its arguments."""

    def __call__(self, *arguments: str, stdin: bytes = b"") -> Said: ...


@pytest.fixture
def medvllm(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: Path) -> Medvllm:
    """The program, run here; its working directory is the test's home."""
    monkeypatch.chdir(home)

    def run(*arguments: str, stdin: bytes = b"") -> Said:
        monkeypatch.setattr(sys, "argv", ["medvllm", *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main()
            raise SystemExit(0)
        out, err = capsys.readouterr()
        return Said(int(end.value.code or 0), out, err)

    return run


@pytest.fixture
def ner(medvllm: Medvllm, home: Path) -> Path:
    """A folder with a tagger, registered as `ner` in two versions."""
    folder = tiny.bert_token_classifier(home / "ner", ["O", "B-X"])
    for length in ("64", "32"):
        assert medvllm("register", "ner", "--type", "clinical", "--path", "./ner", "--max-length", length).code == 0
    return folder


def test_register_makes_versions_or_says_that_nothing_is_new(medvllm: Medvllm, ner: Path) -> None:
    """Equal facts make none, other tags mark the version, other facts make the next."""
    again = ("register", "ner", "--type", "CLINICAL", "--path", "./ner", "--max-length", "32")
    assert medvllm(*again).out == "Nothing changed: the latest version of 'ner' is 2.\n"
    assert medvllm(*again, "--tag", "a", "--tag", "owner=radiology").out == "Updated 'ner', version 2.\n"
    assert medvllm(*again).out == "Nothing changed: the latest version of 'ner' is 2.\n"
    facts = ("--cased", "--fact", "gated=false", "--fact", "languages=en,de", "--fact", 'id2label=["O", "B-X"]')
    assert medvllm(*again, *facts).out == "Registered 'ner', version 3.\n"
    shown = json.loads(medvllm("show", "ner", "--json").out)
    assert (shown["do_lower_case"], shown["gated"], shown["languages"]) == (False, False, ["en", "de"])
    assert shown["id2label"] == ["O", "B-X"] and shown["versions"] == [1, 2, 3] and shown["model_path"] == str(ner)
    assert "values\towner=radiology\t" in medvllm("show", "ner@2").lines
    assert medvllm("list", "--tag", "a").out == ""  # the bare name means version 3, which has no tags
    medvllm("alias", "set", "ner", "default", "2")
    assert [line.split("\t")[0] for line in medvllm("list", "--tag", "a").lines] == ["ner"]
    said = medvllm("register", "ner", "--type", "clinical", "--path", "./ner", "--max-length", "16")
    assert said.out == "Registered 'ner', version 4.\n" and "still means version 2" in said.err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["register", "x", "--type", "medical"], 2, "medical"),
        (["register", "x", "--type", "clinical", "--path", "./nope"], 2, "there is no folder './nope'"),
        (["register", "x", "--type", "clinical", "--fact", "licens=mit"], 2, "Did you mean: 'license'"),
        (["register", "x", "--type", "clinical", "--fact", "gated=perhaps"], 2, "must be True or False"),
        (["register", "x", "--type", "clinical", "--fact", "license"], 2, "FACT=VALUE"),
        (["register", "x", "--type", "clinical", "--reason", ""], 2, "A reason must have 1 to 2,000 characters"),
        (["register", "a@b", "--type", "clinical"], 2, "looks like a folder, a link or a version"),
        (["register", "biobert-base-cased-v1.2", "--type", "clinical"], 1, "already registered (built-in, version 1)"),
        (["unregister", "ner@7"], 1, "Model 'ner' has no version or alias '7'. It has: 1, 2."),
        (["unregister", "nerr"], 1, "Model 'nerr' is not stored. Did you mean: 'ner'"),
        (["unregister", "./ner"], 2, "is not the name of a stored model"),
        (["alias", "set", "ner", "2", "1"], 2, "Alias '2' cannot be used"),
        (["alias", "set", "ner", "a b", "1"], 2, "Alias 'a b' cannot be used"),
        (["alias", "set", "ner", "production", "3"], 1, "no version or alias '3'"),
        (["alias", "remove", "ner", "production"], 1, "Model 'ner' has no alias 'production'"),
        (["deprecate", "ner"], 2, "pass --successor, --reason or --off"),
        (["deprecate", "ner", "--successor", "biobret-v1.2"], 1, "Did you mean: 'biobert-base-cased-v1.2'"),
        (["history", "--since", "yesterday"], 2, "'yesterday' is not a date or a time"),
        (["catalog", "apply", "nope.toml"], 2, "nope.toml"),
        (["catalog", "migrate", "--to", "0007"], 1, "'0007' is not known. Known are: 0001, 0002, 0003, 0004."),
    ],
)
def test_what_is_refused_says_why(medvllm: Medvllm, ner: Path, arguments: list[str], code: int, words: str) -> None:
    """And changes nothing."""
    before = ModelRegistry().catalog.history()
    said = medvllm(*arguments)
    assert (said.code, said.out) == (code, "") and words in said.err
    assert ModelRegistry().catalog.history() == before


def test_aliases_and_what_they_keep(medvllm: Medvllm, ner: Path) -> None:
    """Set, moved by another alias, listed, removed; a version that one points to stays."""
    assert medvllm("alias", "set", "ner", "staging", "2").out == "ner@staging is version 2.\n"
    assert medvllm("alias", "set", "ner", "production", "staging").out == "ner@production is version 2.\n"
    assert medvllm("alias", "list", "ner").lines == ["ner\tproduction\t2\t-", "ner\tstaging\t2\t-"]
    said = medvllm("unregister", "ner@2")
    assert said.code == 1 and "an alias points to it: production, staging" in said.err
    assert medvllm("alias", "remove", "ner", "staging").code == 0
    assert medvllm("unregister", "ner@2", "--force", "--reason", "wrong").out == "Unregistered 'ner', version 2.\n"
    assert medvllm("alias", "list").out == "" and json.loads(medvllm("alias", "list", "--json").out) == []
    assert medvllm("unregister", "ner").out == "Unregistered 'ner', version 1.\n"
    again = medvllm("register", "ner", "--type", "clinical", "--path", "./ner", "--max-length", "32")
    assert again.out == "Registered 'ner', version 3.\n"


def test_a_protected_alias_lists_what_is_missing(medvllm: Medvllm, ner: Path) -> None:
    """A lock, a baseline of the same files, a reason; then it moves, and stays protected."""
    said = medvllm("alias", "protect", "ner", "production")
    assert said.out == "ner@production is protected.\n" and "It points to no version yet" in said.err
    said = medvllm("alias", "set", "ner", "production", "2")
    assert said.code == 1 and [line.strip().partition(":")[0] for line in said.err.splitlines()[1:]] == [
        f"a lock in {ner.parent / 'medvllm.lock'}",
        "a baseline",
        "a reason",
    ]
    assert medvllm("baseline", "record", "ner@2").out.startswith("Recorded a baseline of 'ner', version 2: 3 cases.\n")
    tiny.bert_token_classifier(ner, ["O", "B-X"], seed=1)
    assert medvllm("lock", "ner@2").code == 0
    move = ("alias", "set", "ner", "production", "2", "--reason", "reviewed")
    assert "a baseline of the locked files: medvllm baseline record ner@2" in medvllm(*move).err
    assert medvllm("baseline", "record", "ner@2").code == 0
    file = ner / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "files that are locked; see: medvllm verify ner@2" in medvllm(*move).err
    file.write_bytes(content)
    assert medvllm(*move).out == "ner@production is version 2.\n"
    assert medvllm("verify", "ner@2").lines == ["ner@2\teverything\tok"]
    assert medvllm("alias", "unprotect", "ner", "production").code == 1
    assert medvllm("alias", "remove", "ner", "production").code == 1
    assert medvllm("alias", "remove", "ner", "production", "--reason", "over").code == 0
    assert medvllm("alias", "list", "ner").lines == ["ner\tproduction\t-\tprotected"]


def test_tags_and_deprecation(medvllm: Medvllm, ner: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Added, given values, removed; a deprecated version says so when it is loaded, until it is no more."""
    assert medvllm("tag", "ner", "a", "b", "owner=x").out == "ner@2: a, b, owner=x\n"
    assert medvllm("tag", "ner@2", "owner=y", "--remove", "a").out == "ner@2: b, owner=y\n"
    assert medvllm("tag", "ner", "--remove", "b", "--remove", "owner").out == "ner@2: no tags\n"
    said = medvllm("deprecate", "ner@1", "--successor", "ner@2", "--reason", "misses names")
    assert said.out == "Deprecated: ner@1\n"
    registry = ModelRegistry()
    registry.load_model("ner@2")
    assert not caplog.records
    for _ in range(2):
        registry.load_model("ner@1")
    (record,) = caplog.records
    assert "'ner@1' is deprecated: misses names" in record.message and "Use 'ner@2'" in record.message
    assert medvllm("deprecate", "ner", "--off").code == 0
    assert ModelRegistry().get_metadata("ner@1").lifecycle.deprecated is None


def test_history(medvllm: Medvllm, ner: Path, home: Path) -> None:
    """By name and time, as JSON; the check ends with 1 once a row was edited."""
    medvllm("register", "other", "--type", "generic", "--path", "./ner", "--reason", "why not")
    medvllm("alias", "set", "other", "production", "1")
    rows = [line.split("\t") for line in medvllm("history", "other").lines]
    assert [row[3:] for row in rows] == [["+ other@1", "why not"], ["+ other@production -> 1", "-"]]
    events = json.loads(medvllm("history", "--json").out)
    assert [event["action"] for event in events] == ["created", "registered", "registered", "registered", "aliased"]
    assert events[1]["detail"]["facts"]["max_length"] == 64 and events[3]["reason"] == "why not"
    assert len(medvllm("history", "--since", events[3]["at"]).lines) == 2
    assert medvllm("history", "--since", "2100-01-01").out == ""
    said = medvllm("history", "verify")
    assert (said.code, said.lines) == (0, ["ok\t5 events"]) and "The last hash is " in said.err
    with sqlite3.connect(home / "medvllm" / "catalog.db") as database:
        database.execute("UPDATE catalog_aliases SET number = NULL")
    database.close()
    said = medvllm("history", "verify", "--json")
    flaws = json.loads(said.out)["flaws"]
    assert said.code == 1 and flaws == ["alias 'production' of 'other' is not what its events say"]


def test_a_name_may_be_a_word_of_the_command(medvllm: Medvllm, ner: Path) -> None:
    """A model that is named as a command of `history`; and a name that is not known, which offers those that are."""
    medvllm("register", "verify", "--type", "generic", "--path", "./ner")
    for command in (["list", "verify"], ["--", "verify"], ["--since", "2020-01-01", "verify"]):
        assert [line.split("\t")[3] for line in medvllm("history", *command).lines] == ["+ verify@1"]
    medvllm("unregister", "verify")
    assert len(medvllm("history", "list", "verify").lines) == 2
    for command in (["history"], ["history", "list"], ["alias", "list"]):
        said = medvllm(*command, "nre")
        assert said.code == 1 and "'nre'" in said.err and "'ner'" in said.err
    assert medvllm("alias", "list", "ner").code == 0


def test_export_and_apply(medvllm: Medvllm, ner: Path) -> None:
    """A plan that is what happens; applied again, nothing; from standard input too."""
    medvllm("alias", "set", "ner", "production", "1")
    text = medvllm("catalog", "export").out
    assert medvllm("catalog", "apply", "-", stdin=text.encode()).err == "0 changes.\n"
    wanted = text.replace("production = 1", "production = 2").replace(
        "max_length = 64", 'max_length = 64\ntags = ["old"]'
    )
    wanted += '\n[models.new]\nmodel_type = "generic"\nmodel_path = "acme/bert"\n'
    expected = ["~ ner@1: tags old", "+ new@1", "~ ner@production -> 2 (was 1)"]
    plan = medvllm("catalog", "apply", "-", "--dry-run", stdin=wanted.encode())
    assert plan.lines == expected and plan.err == "3 changes would be made.\n"
    assert medvllm("catalog", "export").out == text
    assert medvllm("catalog", "apply", "-", "--reason", "review 7", stdin=wanted.encode()).lines == expected
    assert medvllm("catalog", "apply", "-", stdin=wanted.encode()).err == "0 changes.\n"
    assert (
        json.loads(medvllm("catalog", "apply", "-", "--json", stdin=text.encode()).out)[-1]["action"] == "unregistered"
    )
    other = text.replace("max_length = 64", "max_length = 63")
    assert (
        "'max_length' of version 1 of model 'ner' is 63 in the file but 64 in the catalogue"
        in medvllm("catalog", "apply", "-", stdin=other.encode()).err
    )
    assert medvllm("catalog", "apply", "-", stdin=b"\xff").err.startswith("Error: File '-' is not UTF-8: byte 1")
    assert medvllm("catalog", "export").out == text and medvllm("history", "verify").code == 0


def test_editors_can_check_what_is_exported(medvllm: Medvllm, ner: Path) -> None:
    """By the JSON Schema: versions, tags, values, aliases, protections; and it finds what is wrong."""
    medvllm("tag", "ner@1", "old", "owner=radiology")
    medvllm("alias", "set", "ner", "production", "1")
    medvllm("lock", "ner@1"), medvllm("baseline", "record", "ner@1")
    assert medvllm("alias", "protect", "ner", "production").code == 0
    medvllm("alias", "protect", "ner", "staging")
    medvllm("alias", "set", "ner", "default", "2")
    schema = Draft202012Validator(json.loads(medvllm("catalog", "schema").out))
    content = tomllib.loads(medvllm("catalog", "export").out)
    assert [error.message for error in schema.iter_errors(content)] == []
    for wrong in ({"production": 0}, {"production": {"version": 1, "gaurded": True}}, {"production": "1"}):
        assert list(schema.iter_errors(content | {"aliases": {"ner": wrong}}))
    assert list(schema.iter_errors({"models": {"ner@0": content["models"]["ner@1"]}}))


def test_migrate_and_doctor(medvllm: Medvllm, ner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What schema there is; a password is nowhere shown."""
    assert medvllm("catalog", "migrate").out == "The schema is already 0004.\n"
    said = medvllm("catalog", "migrate", "--to", "0001")
    assert said.out == "Schema 0004 -> 0001.\n" and ".0004-" in said.err
    assert [line.split("\t")[0] for line in medvllm("list", "ne[r]").lines] == ["ner"]  # migrated by itself again
    monkeypatch.setenv("MEDVLLM_CATALOG", "postgresql://me:secret@127.0.0.1:9/x")
    for arguments in (("doctor",), ("list",), ("catalog", "migrate")):
        said = medvllm(*arguments)
        assert "secret" not in said.out + said.err and "me:***@127.0.0.1:9" in said.out + said.err
    monkeypatch.setenv("MEDVLLM_CATALOG", "mysql://me:secret@127.0.0.1/x")
    said = medvllm("list")
    assert said.code == 1 and "neither postgresql://" in said.err and "secret" not in said.err


def test_a_slip_is_noticed_when_it_is_typed(medvllm: Medvllm, ner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the model is loaded: a folder without ./, a task, a relative folder in a file, a database's URL."""
    said = medvllm("register", "ner", "--type", "clinical", "--path", "ner")
    assert said.code == 2 and "Use ./ner for the folder" in said.err
    shutil.copytree("ner", "acme/ner")  # as a repository would be written
    said = medvllm("register", "ner", "--type", "clinical", "--path", "acme/ner")
    assert said.code == 2 and "Use ./acme/ner for the folder, or hf://acme/ner for the repository" in said.err
    said = medvllm("register", "ner", "--type", "clinical", "--path", "./ner", "--task", "nre")
    assert said.code == 2 and "'ner'" in said.err
    assert medvllm("register", "ner", "--type", "clinical", "--path", "./ner", "--fact", "task=nre").code == 2
    assert medvllm("register", "ner", "--type", "clinical", "--path", "./ner", "--fact", "task=triage").code == 0
    text = '[models.m]\nmodel_type = "generic"\nmodel_path = "./ner"\n'
    said = medvllm("catalog", "apply", "-", "--dry-run", stdin=text.encode())
    assert said.code == 2 and f"Use an absolute path: {ner}" in said.err
    for wrong, words in {
        b"": "the table 'models' is missing",
        b"[models.new.thing]\n": "model 'new' has no model_type",
        b"[model.x]\n": "unknown table 'model'",
    }.items():
        told = medvllm("catalog", "apply", "-", stdin=wrong).err
        assert words in told and "Standard input cannot be read" in told
    bom = b"\xef\xbb\xbf" + medvllm("catalog", "export").out.encode()
    assert medvllm("catalog", "apply", "-", stdin=bom).err == "0 changes.\n"
    for url in ("postgresql//me@127.0.0.1/x", "off", "postgresql://me@127.0.0.1:port/x", "catalog.db"):
        monkeypatch.setenv("MEDVLLM_CATALOG", url)
        said = medvllm("list")
        assert said.code == 1 and "MEDVLLM_CATALOG" in said.err
    monkeypatch.setenv("MEDVLLM_CATALOG", str(ner.parent / "team.db"))
    assert medvllm("catalog", "init").out == f"Created catalogue {ner.parent / 'team.db'}.\n"
    assert len(medvllm("history").lines) == 1
    assert medvllm("catalog", "apply", "-", "--dry-run", stdin=bom).err.endswith(" changes would be made.\n")
    assert medvllm("catalog", "init").out == f"Catalogue {ner.parent / 'team.db'} already exists.\n"


def test_a_name_that_was_unregistered_is_no_repository(medvllm: Medvllm, ner: Path) -> None:
    """Whoever asks for it is told, and not sent to the Hub, where a stranger may have a model of that name."""
    assert medvllm("unregister", "ner").out == "Unregistered 'ner', versions 1, 2.\n"
    for name in ("ner", "ner@production", "ner@1"):
        said = medvllm("pull", name)
        assert said.code == 1 and "is not registered any more: it was unregistered" in said.err
        assert said.err.endswith("medvllm history ner\n")


def test_what_a_protected_alias_stands_for_stays(medvllm: Medvllm, ner: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the files, whatever lock file there is; not the baseline, without a reason; `default` once it is set."""
    said = medvllm("alias", "protect", "ner", "default")
    assert said.code == 1 and said.err.endswith("medvllm alias set ner default 2\n")
    medvllm("alias", "set", "ner", "production", "2")
    said = medvllm("alias", "protect", "ner", "production")
    assert said.code == 1 and "cannot be protected: it points to version 2, which lacks:\n  a lock in " in said.err
    assert medvllm("alias", "list", "ner").lines == ["ner\tproduction\t2\t-"]
    medvllm("lock", "ner@2"), medvllm("baseline", "record", "ner@2", "--reason", "first tests")
    assert medvllm("alias", "protect", "ner", "production").code == 0
    assert medvllm("alias", "list", "ner").lines == ["ner\tproduction\t2\tprotected"]
    with pytest.raises(CatalogError, match="is protected; changing it requires a reason.\n.*--reason 'why'"):
        ModelRegistry().catalog.update("ner@2", baseline_digest=None)
    assert medvllm("history", "ner").lines[-2].split("\t")[3:] == ["~ ner@2: baseline; baseline_digest", "first tests"]
    assert medvllm("run", "ner@production", "Seen.").code == 0
    tiny.bert_token_classifier(ner, ["O", "B-Y"], seed=2)
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(ner.parent / "none.lock"))
    for name in ("ner@production", "ner@2", "ner"):
        said = medvllm("run", name, "Seen.")
        assert said.code == 1 and "the protected alias 'production'" in said.err
    assert medvllm("run", "ner@1", "Seen.").code == 0


def test_a_key_and_its_value_find_what_has_them(medvllm: Medvllm, ner: Path) -> None:
    """As they were given."""
    medvllm("tag", "ner", "owner=radiology")
    assert [line.split("\t")[0] for line in medvllm("list", "--tag", "owner=radiology").lines] == ["ner"]
    assert medvllm("list", "--tag", "owner=cardiology").out == medvllm("list", "--tag", "owner").out == ""


def test_prompts_and_poolings_are_given_as_typed(medvllm: Medvllm, home: Path) -> None:
    """`run --prompt-name` names a prompt and --prompt gives one; `register --pooling` takes several modes."""
    sentence.assembled("prompts", home / "m")
    assert medvllm("register", "m", "--type", "generic", "--path", "./m", "--pooling", "mean,max").code == 0
    assert json.loads(medvllm("show", "m", "--json").out)["pooling"] == ["mean", "max"]
    plain = json.loads(medvllm("run", "./m", "ALS", "--json").out)["results"]
    named = json.loads(medvllm("run", "./m", "ALS", "--prompt-name", "query", "--json").out)["results"]
    given = json.loads(medvllm("run", "./m", "ALS", "--prompt", "the query : ", "--json").out)["results"]
    assert (
        plain != named == given
        and len(json.loads(medvllm("run", "m", "ALS", "--json").out)["results"][0]["vector"]) == 32
    )
    wrong = medvllm("run", "./m", "ALS", "--prompt-name", "queri")
    assert (wrong.code, wrong.err.splitlines()[-1]) == (2, "It has the prompts 'document', 'odd', 'query'.")


def test_versions_are_told_apart(medvllm: Medvllm, ner: Path) -> None:
    """When each was made, by whom and why, whether it is locked and has a baseline; and what differs, fact by fact."""
    medvllm("register", "ner", "--type", "clinical", "--path", "./ner", "--cased", "--tag", "new", "--reason", "cased")
    medvllm("lock", "ner@2"), medvllm("baseline", "record", "ner@2"), medvllm("alias", "set", "ner", "staging", "2")
    first, second, third = ModelRegistry().catalog.version_log("ner")
    assert [record.version for record in (first, second, third)] == [1, 2, 3]
    assert (first.reason, third.reason, third.is_meant, second.aliases) == (None, "cased", True, ("staging",))
    assert first.at and third.at and first.at < third.at and first.who and first.machine
    assert (first.locked, first.baseline_digest) == (None, None) and second.locked == second.baseline_digest is not None
    assert second.baseline_at is not None and second.baseline_at > third.at and third.baseline_at is None
    assert ModelRegistry().catalog.version_log("nobody") == []
    said = medvllm("diff", "ner@2", "ner@3")
    assert [line.split("\t")[0] for line in said.lines] == [
        "baseline",
        "baseline_digest",
        "do_lower_case",
        "max_length",
        "tags",
    ]
    assert said.lines[2:] == ["do_lower_case\t-\tFalse", "max_length\t32\t-", "tags\t-\tnew"]
    assert said.lines[0].split("\t")[1].startswith("3 tests (") and said.code == 0
    assert json.loads(medvllm("diff", "ner@1", "ner@staging", "--json").out)[-1] == {
        "what": "max_length",
        "before": 64,
        "after": 32,
    }
    assert medvllm("diff", "ner@1", "ner@1").err == "There are no differences.\n"
    assert medvllm("diff", "ner@1", "ner@9").code == 1
    tiny.bert_token_classifier(ner, ["O", "B-X"], seed=1)
    medvllm("lock", "ner@3")
    said = medvllm("diff", "ner@staging", "ner")
    assert [line.split("\t")[0] for line in said.lines][-1] == "file model.safetensors" and len(said.lines) == 6


def test_a_plan_is_shown_whatever_is_protected(medvllm: Medvllm, ner: Path) -> None:
    """With what would refuse it as it stands; nothing is changed, and the errors name options that there are."""
    medvllm("alias", "protect", "ner", "production")
    text = medvllm("catalog", "export").out
    moved = text.replace("production = {protected = true}", "production = {version = 2, protected = true}")
    assert moved != text
    said = medvllm("catalog", "apply", "-", "--dry-run", stdin=moved.encode())
    assert said.code == 0 and said.lines == ["+ ner@production -> 2"]
    assert [line.strip().partition(":")[0] for line in said.err.splitlines()] == [
        "1 change would be made.",
        "The file would be refused",
        f"ner@production -> 2 lacks a lock in {ner.parent / 'medvllm.lock'}",
        "ner@production -> 2 lacks a baseline",
        "changing a protected alias requires a reason",
    ]
    refused = medvllm("catalog", "apply", "-", stdin=moved.encode())
    assert refused.code == 1 and "lacks:\n" in refused.err and "--reason 'why'" in refused.err
    medvllm("alias", "set", "ner", "staging", "1")
    without = "\n".join(line for line in text.splitlines() if "aliases" not in line and "production" not in line)
    without = without.partition('[models."ner@2"]')[2]
    gone = medvllm("catalog", "apply", "-", stdin=('[models."ner@2"]' + without).encode())
    assert gone.code == 1 and "Or remove both: medvllm unregister ner@1 --force" in gone.err
    assert json.loads(medvllm("alias", "list", "--json").out)[0]["unmet"] == []
