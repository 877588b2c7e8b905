"""What travels in a bundle stays what it was, and changes nothing that is there."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from medvllm.catalog import stores
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import (
    CatalogError,
    DigestMismatchError,
    MissingDependencyError,
    ModelNotFoundError,
    OutputError,
    RequestError,
    SourceError,
)
from medvllm.sources import Lock
from tests.support import tiny
from tests.support.console import Screen, command
from tests.support.loopback import LoopbackHub
from tests.support.spread import spread


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModelRegistry]:
    """A function that moves the test to another machine, and gives a registry there."""
    from huggingface_hub import constants

    def move(name: str) -> ModelRegistry:
        stores.close_all()
        home = tmp_path / name
        home.mkdir(exist_ok=True)
        monkeypatch.setenv("MEDVLLM_HOME", str(home / "medvllm"))
        monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(home / "medvllm.lock"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        return ModelRegistry()

    return move


@pytest.fixture
def build(site: Callable[[str], ModelRegistry], tmp_path: Path) -> ModelRegistry:
    """A build site with a model in three versions: the first deprecated, the second in production."""
    registry = site("build")
    for seed in range(3):
        folder = tiny.bert_encoder(tmp_path / f"m{seed}", seed=seed)
        registry.register("m", "clinical", model_path=folder, persist=True, replace=True, reason=f"training {seed}")
        registry.lock(f"m@{seed + 1}", reason="reviewed")
    registry.catalog.update("m@1", deprecated="misses abbreviations", successor="m@2", tags=["old"])
    registry.catalog.set_alias("m", "production", 2)
    return registry


def _weights(registry: ModelRegistry, name: str) -> str:
    return hashlib.sha256((registry.pull(name) / "model.safetensors").read_bytes()).hexdigest()


def _tables() -> list[object]:
    """Return all that the catalogue holds."""
    stores.close_all()
    with closing(sqlite3.connect(Path(os.environ["MEDVLLM_HOME"]) / "catalog.db")) as database:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return [database.execute(f"SELECT * FROM {name}").fetchall() for name in sorted(tables)]


@pytest.mark.parametrize("order", [["m@1", "m@2"], ["m@2", "m@1"], ["m@1 m@2"], ["m@production", "m@1"]])
def test_versions_keep_their_numbers_in_any_order(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path, order: list[str]
) -> None:
    """In one bundle or in several, with aliases, marks and what the bare name means."""
    wanted = {name: _weights(build, name) for name in ("m@1", "m@2")}
    for number, names in enumerate(order):
        build.export(tmp_path / f"{number}.tar", *names.split())
    other = site("hospital")
    for number in range(len(order)):
        other.import_bundle(tmp_path / f"{number}.tar", replace=True)
    assert list(other.catalog.versions("m")) == [1, 2]
    assert {name: _weights(other, name) for name in wanted} == wanted
    assert _weights(other, "m") == _weights(other, "m@production") == wanted["m@2"]
    first = other.get_metadata("m@1")
    assert (first.lifecycle.deprecated, first.lifecycle.successor) == ("misses abbreviations", "m@2")
    assert first.tags == ["old"] and other.catalog.check_history()[2] == []
    assert [(alias.alias, alias.version) for alias in other.catalog.aliases("m")] == [("production", 2)]
    assert other.register("m", "custom", persist=True, replace=True).version == 3


def test_importing_again_changes_nothing(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """Not a row, not a file; also at the site that exported. A damaged file is repaired, and that is said."""
    build.export(tmp_path / "b.tar", "m@1", "m@2")
    before = _tables()
    assert not build.import_bundle(tmp_path / "b.tar").is_new and _tables() == before
    other = site("hospital")
    assert other.import_bundle(tmp_path / "b.tar", dry_run=True).models == {"m@1": "new", "m@2": "new"}
    assert not (tmp_path / "hospital" / "medvllm" / "catalog.db").exists()
    assert other.import_bundle(tmp_path / "b.tar").is_new
    before = _tables()
    again = other.import_bundle(tmp_path / "b.tar", reason="to be sure")
    assert not again.is_new and again.models == {"m@1": "here", "m@2": "here"} and _tables() == before
    file = other.pull("m@2") / "config.json"
    content = file.read_text()
    file.unlink()  # the two versions share it
    file.write_text(content + " ")
    assert other.import_bundle(tmp_path / "b.tar").models == {"m@1": "here", "m@2": "repaired"}
    assert other.load_model("m@2")


def test_the_history_tells_where_a_version_came_from(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """Which bundle, who exported it, where that site's history stood, who had approved it there, and why it came."""
    exported = build.export(tmp_path / "b.tar", "m@2")
    events, last_hash, _ = build.catalog.check_history()
    other = site("hospital")
    other.import_bundle(tmp_path / "b.tar", reason="ticket 12")
    registered, aliased, imported = other.catalog.history("m")
    assert [event.action for event in (registered, aliased, imported)] == ["registered", "aliased", "imported"]
    assert {event.reason for event in (registered, aliased, imported)} == {"ticket 12"}
    assert imported.version == 2 and imported.detail["bundle"] == exported.sha256
    assert imported.detail["exported"] == exported.export_record.to_dict()
    assert (exported.export_record.events, exported.export_record.last_hash) == (events, last_hash)
    assert imported.detail["approved"]["reason"] == "reviewed"
    with pytest.raises(RequestError, match="A reason must have 1 to 2,000"):
        other.import_bundle(tmp_path / "b.tar", reason="x" * 2001)


def test_a_bundle_changes_no_name_without_leave(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """What the bare name means, where an alias points to, what is marked: refused together, and nothing is done."""
    build.export(tmp_path / "1.tar", "m@1", "m@2")
    other = site("hospital")
    other.import_bundle(tmp_path / "1.tar")
    site("build")
    build.catalog.set_alias("m", "production", 3)
    build.catalog.update("m@2", tags=["checked"])
    build.export(tmp_path / "2.tar", "m@2", "m@3")
    site("hospital")
    before = _tables()
    with pytest.raises(CatalogError) as error:
        other.import_bundle(tmp_path / "2.tar")
    assert str(error.value).splitlines() == [
        "The bundle would change models on this machine:",
        "  m@2 would have another tags",
        "  alias 'production' of 'm' points to 2, and would to 3",
        "  'm' means m@2, and would mean m@3",
        "To make these changes: medvllm import BUNDLE --replace",
    ]
    assert _tables() == before
    plan = other.import_bundle(tmp_path / "2.tar", replace=True, dry_run=True)
    assert [event.action for event in plan.changes] == ["changed", "registered", "aliased"] and _tables() == before
    other.import_bundle(tmp_path / "2.tar", replace=True)
    assert other.get_metadata("m@production").version == 3 and other.get_metadata("m@2").tags == ["checked"]


def test_a_number_never_means_two_things(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """Taken by another model, or once given to one that is gone: refused, with or without leave."""
    build.export(tmp_path / "b.tar", "m@1")
    other = site("hospital")
    other.register("m", "clinical", model_path=tiny.bert_encoder(tmp_path / "own", seed=9), persist=True)
    other.register("m", "custom", model_path=tmp_path / "own", persist=True, replace=True)
    for gone in (False, True):
        with pytest.raises(CatalogError, match=r"m@1 is another model .*(, which was unregistered)?: it differs in"):
            other.import_bundle(tmp_path / "b.tar", replace=True)
        if not gone:
            other.unregister("m@1", persist=True)
    with pytest.raises(ModelNotFoundError):
        other.get_metadata("m@1")


def test_a_removed_version_comes_back_as_itself(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """Its number then means what it always did."""
    build.export(tmp_path / "b.tar", "m@1", "m@2")
    other = site("hospital")
    other.import_bundle(tmp_path / "b.tar")
    other.unregister("m@1", persist=True)
    other.import_bundle(tmp_path / "b.tar")
    assert list(other.catalog.versions("m")) == [1, 2] and other.catalog.check_history()[2] == []


@pytest.mark.parametrize(
    ("name", "facts"),
    spread(
        [
            ("obi/deid_bert_i2b2", {}),  # a built-in's
            ("deid_bert_i2b2", {}),  # another name of it
            ("ours", {"also_known_as": ["deid_bert_i2b2"]}),
            ("ours", {"also_known_as": ["site-own"]}),
            ("site-own", {}),
            ("other-of-own", {}),
            ("acme/bert", {}),  # a repository that is loaded by its name
            ("acme/pinned", {}),  # one of which a commit is
            ("ours", {"also_known_as": ["acme/bert"]}),
        ],
        2,
    ),
)
def test_a_bundle_takes_no_name_over(
    hub: LoopbackHub, site: Callable[[str], ModelRegistry], tmp_path: Path, name: str, facts: dict[str, Any]
) -> None:
    """A built-in's, one of the site's own, another name of either, or one that a repository is loaded by."""
    commit = [hub.add(repo, tiny.bert_masked_lm(tmp_path / "acme")) for repo in ("acme/bert", "acme/pinned")][1]
    build = site("elsewhere")
    folder = tiny.bert_encoder(tmp_path / "x", seed=5)
    build.register(name, "clinical", model_path=folder, persist=True, replace=True, **facts)
    build.export(tmp_path / "b.tar", name, unlocked=True)
    other = site("hospital")
    own = tiny.bert_encoder(tmp_path / "own")
    other.register("site-own", "clinical", model_path=own, persist=True, also_known_as=["other-of-own"])
    other.pull("acme/bert")
    other.pull(f"acme/pinned@{commit}")
    before = _tables()
    with pytest.raises(CatalogError, match=r"would (be|mean)|is (the built-in|another) model on this machine"):
        other.import_bundle(tmp_path / "b.tar")
    assert _tables() == before


def test_a_protected_alias_stays_until_it_is_moved(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """The import says how to move it, which asks for approval and a reason; the protection itself travels."""
    for name in ("m@2", "m@3"):
        build.catalog.update(name, baseline=[{"task": "embed"}], baseline_digest=Lock.current().models[name].digest)
    build.export(tmp_path / "1.tar", "m@1", "m@2")
    other = site("hospital")
    other.import_bundle(tmp_path / "1.tar", lock=True)
    other.catalog.protect("m", "production")
    site("build")
    build.catalog.set_alias("m", "production", 3)
    build.catalog.protect("m", "production")
    build.export(tmp_path / "2.tar", "m@3")
    site("hospital")
    imported = other.import_bundle(tmp_path / "2.tar", replace=True)
    assert imported.notes == (
        "alias 'production' of 'm' is protected and stays at 2; to move it: "
        "medvllm alias set m production 3 --reason 'why'",
    )
    assert other.get_metadata("m@production").version == 2
    third = site("third")
    third.import_bundle(tmp_path / "2.tar")
    assert [(alias.alias, alias.version, alias.protected) for alias in third.catalog.aliases("m")] == [
        ("production", 3, True)
    ]


def test_importing_is_no_approval(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lock is required the load is refused, and says what to do; with `lock` it is said by whom and why."""
    build.export(tmp_path / "b.tar", "m@2")
    other = site("hospital")
    other.import_bundle(tmp_path / "b.tar")
    assert not Lock.current_path().exists()
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    with pytest.raises(DigestMismatchError, match="To approve it: medvllm lock m@2$"):
        other.load_model("m")
    imported = other.import_bundle(tmp_path / "b.tar", lock=True)
    approval = Lock.current().models["m@2"].approval
    assert imported.locked == ("m@2",) and approval is not None and imported.sha256 in str(approval.reason)
    assert other.load_model("m") and other.catalog.history("m")[-1].action == "locked"


def test_a_bundle_is_held_against_what_came_another_way(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """A lock file, or a digest that came by phone: anything else is refused, and nothing of it is taken."""
    exported = build.export(tmp_path / "b.tar", "m@2")
    other_lock = tmp_path / "other.lock"
    shutil.copy(Lock.current_path(), tmp_path / "approved.lock")
    Lock(other_lock, {}).approve({"m@2": Lock.current().models["m@1"]})
    other = site("hospital")
    with pytest.raises(DigestMismatchError, match="The files of model 'm@2' are not the locked ones"):
        other.import_bundle(tmp_path / "b.tar", against=other_lock)
    with pytest.raises(SourceError, match="Lock file .*none.lock. does not exist"):
        other.import_bundle(tmp_path / "b.tar", against=tmp_path / "none.lock")
    with pytest.raises(DigestMismatchError, match=f"is not the expected one: .*SHA-256 is {exported.sha256}"):
        other.import_bundle(tmp_path / "b.tar", sha256="0" * 64)
    assert not (tmp_path / "hospital" / "medvllm" / "models").exists() and not other.catalog.is_there()
    for digest in (exported.sha256, exported.contents.upper()):
        assert other.import_bundle(tmp_path / "b.tar", against=tmp_path / "approved.lock", sha256=digest)


def test_a_receipt_tells_a_commit_that_only_a_bundle_states(
    hub: LoopbackHub, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """It is declared, by the bundle's SHA-256, and not verified: no Hub has shown it to this machine."""
    commit = hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    build = site("build")
    build.lock("acme/bert")
    exported = build.export(tmp_path / "b.tar", "acme/bert")
    other = site("hospital")
    assert other.import_bundle(tmp_path / "b.tar", lock=True).models == {"acme/bert": "new"}
    with other.lease("acme/bert") as lease:
        receipt = lease.receipt.to_dict()
    assert receipt["verified"]["commit"] is None and receipt["verified"]["locked"] is True
    assert receipt["declared"]["commit"] == {
        "value": commit,
        "provenance": f"the bundle {exported.sha256} that it was imported from",
    }


def test_a_branch_that_is_known_stays_where_it_is(
    hub: LoopbackHub, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """A bundle with another commit of it is refused without leave."""
    first = hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    other = site("hospital")
    other.pull("acme/bert")
    second = hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "new", seed=1))
    build = site("build")
    build.export(tmp_path / "b.tar", "acme/bert", unlocked=True)
    site("hospital")
    with pytest.raises(CatalogError, match=f"'acme/bert' at 'main' is commit {first[:7]}, and would be {second[:7]}"):
        other.import_bundle(tmp_path / "b.tar")
    assert other.pull("acme/bert").name == first
    other.import_bundle(tmp_path / "b.tar", replace=True)
    assert other.pull("acme/bert").name == second


def test_what_nobody_locked_is_not_exported(
    site: Callable[[str], ModelRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless that is asked for; a link out of the folder is never."""
    build = site("build")
    folder = tiny.bert_encoder(tmp_path / "m")
    build.register("m", "clinical", model_path=folder, persist=True)
    with pytest.raises(DigestMismatchError, match=r"nobody has approved its files.\n.*medvllm lock m@1\n.*--unlocked"):
        build.export(tmp_path / "b.tar", "m")
    assert not (tmp_path / "b.tar").exists()
    build.export(tmp_path / "b.tar", "m", unlocked=True)
    (tmp_path / "token").write_text((folder / "vocab.txt").read_text())
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to(tmp_path / "token")
    with pytest.raises(SourceError, match="vocab.txt is a link that leads out of the folder"):
        build.export(tmp_path / "c.tar", "m", unlocked=True)
    assert not (tmp_path / "c.tar").exists()


def test_a_bundle_replaces_no_file_unasked(
    build: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is a folder made, a terminal filled, or a model looked for before the place is known to be good."""
    target = tmp_path / "b.tar"
    target.write_text("another bundle")
    with pytest.raises(OutputError, match=r"b.tar' exists already.\n.*--replace"):
        build.export(target, "not-a-model")
    assert target.read_text() == "another bundle"
    with pytest.raises(OutputError, match="File name too long"):
        build.export(tmp_path / ("b" * 300), "not-a-model")
    with pytest.raises(OutputError, match="Create its folder first: mkdir -p"):
        build.export(tmp_path / "absent" / "b.tar", "not-a-model")
    (tmp_path / "link.tar").symlink_to("b.tar")
    exported = build.export(tmp_path / "link.tar", "m@2", replace=True)
    assert (tmp_path / "link.tar").is_symlink() and exported.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    build.export(Path("/dev/null"), "m@2")
    assert Path("/dev/null").is_char_device()
    on_screen = command(monkeypatch, "export", "m@2", "-o", "-", stdout=Screen())
    assert on_screen.code == 2 and "a bundle is not text" in on_screen.err


def test_export_and_import_as_typed(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What went, the digests, what came, what is left to do, and that nothing was."""
    out = command(monkeypatch, "export", "m@production", "-o", str(tmp_path / "b.tar")).out.splitlines()
    digest = hashlib.sha256((tmp_path / "b.tar").read_bytes()).hexdigest()
    assert out[0].startswith(f"Exported m@2, m@production -> 2 to {tmp_path / 'b.tar'}: ")
    assert out[1] == f"SHA-256   {digest}" and out[2].startswith("contents  ")
    site("hospital")
    bundle = str(tmp_path / "b.tar")
    dry = command(monkeypatch, "import", bundle, "--dry-run", "--sha256", digest).out.splitlines()
    assert dry[0] == f"Bundle {bundle}, SHA-256 {digest}" and "exported it at" in dry[1]
    assert dry[2:] == [
        "  m@2  would be new",
        "  + m@2",
        "  + m@production -> 2",
        "Nothing changed: this was a dry run.",
    ]
    done = command(monkeypatch, "import", bundle, "--reason", "ticket 12").out.splitlines()
    assert done[2] == "  m@2  new" and done[-1].endswith("After a review, run: medvllm lock m@2")
    again = command(monkeypatch, "import", bundle).out.splitlines()
    assert again[2:] == ["  m@2  already here", "Nothing changed: everything was here already."]
    history = command(monkeypatch, "history", "m").out
    assert f"imported m@2: bundle {digest[:12]}" in history and "ticket 12" in history
    locked = command(monkeypatch, "lock", "m@2", "--reason", "read by two").out
    assert locked.startswith("Locked 'm@2': 4 files") and "approved by" in locked
    assert command(monkeypatch, "lock", "m@2").out.startswith("Already locked: 'm@2'")


def test_a_bundle_goes_through_a_pipe(build: ModelRegistry, tmp_path: Path) -> None:
    """Its bytes to standard output, what is said of it to standard error."""
    program = [sys.executable, "-m", "medvllm.cli", "export", "m@2", "-o", "-"]
    run = subprocess.run(program, capture_output=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert f"SHA-256   {hashlib.sha256(run.stdout).hexdigest()}".encode() in run.stderr.splitlines()


def _key(folder: Path, name: str) -> tuple[Path, Path]:
    """Make a key, and return its private and its public half."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    subprocess.run(["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private], check=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


def test_a_signature_needs_a_package(build: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is named before anything is written."""
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'medvllm\[signing\]'"):
        build.export(tmp_path / "b.tar", "m@2", sign=tmp_path / "key.pem")
    assert not (tmp_path / "b.tar").exists()


def test_a_signed_bundle_is_told_from_any_other(
    build: ModelRegistry, site: Callable[[str], ModelRegistry], tmp_path: Path
) -> None:
    """By the public key: another key, other bytes, no signature, or that of another bundle are refused."""
    pytest.importorskip("model_signing", reason="model-signing is not installed: pip install 'medvllm[signing]'")
    (private, public), (_, another) = _key(tmp_path, "ours"), _key(tmp_path, "another")
    signed = build.export(tmp_path / "b.tar", "m@2", sign=private)
    assert signed.signature == str(tmp_path / "b.tar.sig")
    build.export(tmp_path / "other.tar", "m@1", sign=private)
    build.export(tmp_path / "none.tar", "m@2")
    for bad in (tmp_path / "none.pem", public, another):
        with pytest.raises(RequestError, match=r"(?s)Key '.*' cannot be used: .*openssl ecparam"):
            build.export(tmp_path / "c.tar", "m@2", sign=bad)
    assert not (tmp_path / "c.tar").exists()
    other = site("hospital")
    with pytest.raises(DigestMismatchError, match="was not made by the key"):
        other.import_bundle(tmp_path / "b.tar", verify_key=another)
    with pytest.raises(DigestMismatchError, match="has no signature"):
        other.import_bundle(tmp_path / "none.tar", verify_key=public)
    with pytest.raises(RequestError, match="cannot be used"):
        other.import_bundle(tmp_path / "b.tar", verify_key=tmp_path / "absent.pub")
    content = (tmp_path / "b.tar").read_bytes()
    for changed in ((tmp_path / "other.tar").read_bytes(), content[:-1] + b"x", content + b"\0"):
        (tmp_path / "b.tar").write_bytes(changed)
        with pytest.raises(DigestMismatchError, match="is for other bytes"):
            other.import_bundle(tmp_path / "b.tar", verify_key=public)
    assert not (tmp_path / "hospital" / "medvllm" / "models").exists()
    (tmp_path / "b.tar").write_bytes(content)
    assert other.import_bundle(tmp_path / "b.tar", verify_key=public).models == {"m@2": "new"}
