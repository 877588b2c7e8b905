"""A catalogue that was named and is not there is an error of every look and every change, and never an empty one."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from medvllm.catalog import stores
from medvllm.cli import doctor
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import CatalogError
from tests.support import tiny
from tests.support.console import command

BUILTIN = "biobert-base-cased-v1.2"


def _set(name: str, value: Path) -> Callable[[Path, pytest.MonkeyPatch], None]:
    return lambda home, monkeypatch: monkeypatch.setenv(name, str(home / value))


def _linked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default file is a link to a share that is not mounted."""
    (home / "medvllm").mkdir()
    (home / "medvllm" / "catalog.db").symlink_to(home / "share" / "catalog.db")


def _linked_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "medvllm").symlink_to(home / "share")


def _file_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "medvllm").write_text("")


def _file_above(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "plain").write_text("")
    monkeypatch.setenv("MEDVLLM_CATALOG", str(home / "plain" / "deep" / "catalog.db"))


def _empty(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "catalog.db").touch()
    monkeypatch.setenv("MEDVLLM_CATALOG", str(home / "catalog.db"))


def _folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLLM_CATALOG", str(home))


def _fifo(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(home / "catalog.db")
    monkeypatch.setenv("MEDVLLM_CATALOG", str(home / "catalog.db"))


def _url(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDVLLM_CATALOG", f"sqlite:///{home}/nowhere/catalog.db")


PLACES = {
    "file": (_set("MEDVLLM_CATALOG", Path("catalog.db")), "there is no file.\nIf it is on a disk or share"),
    "folder-above": (_set("MEDVLLM_CATALOG", Path("share/x/catalog.db")), "there is no folder .*share.\nIf"),
    "url": (_url, "there is no folder .*nowhere.\nIf"),
    "link": (_linked, "catalog.db is a link to .*share/catalog.db, which does not exist.\n.*: medvllm catalog init$"),
    "link-home": (_linked_home, "medvllm is a link to .*share, which does not exist.\n.*: medvllm catalog init$"),
    "file-home": (_file_home, "medvllm is a file, not a folder.\nUse a folder: export MEDVLLM_HOME="),
    "file-above": (_file_above, "plain is a file, not a folder.\nUse a file in a folder: export MEDVLLM_CATALOG="),
    "empty": (_empty, "the file is empty.\n.*: medvllm catalog init$"),
    "folder": (_folder, "it is a folder.\nSet a SQLite file"),
    "fifo": (_fifo, "it is not a regular file.\nSet a SQLite file"),
}


@pytest.mark.parametrize("place", PLACES)
def test_nothing_answers_in_its_place(
    registry: ModelRegistry, home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Neither the Hub, a built-in model nor an empty list; and nothing is made by looking or by storing an entry."""
    make, match = PLACES[place]
    make(home, monkeypatch)
    before = sorted(home.rglob("*"))
    listed = command(monkeypatch, "ps")
    assert listed.code == 1 and listed.err.startswith("Error: Catalogue "), listed
    looks: tuple[Callable[[], object], ...] = (
        lambda: registry.load_model("acme/enc"),
        lambda: registry.load_model(BUILTIN),
        lambda: registry.get_metadata(BUILTIN),
        lambda: registry.get_metadata("acme/enc@1"),
        registry.list_models,
        registry.catalog.names,
        registry.catalog.is_there,
        registry.catalog.history,
        registry.catalog.check_history,
        registry.catalog.export,
        lambda: registry.catalog.versions("m"),
        lambda: registry.catalog.aliases(),
        lambda: registry.catalog.plan("[models]\n"),
        lambda: registry.catalog.apply("[models]\n"),
        lambda: registry.register("m", "generic", persist=True),
        lambda: registry.catalog.set_alias("m", "production", 1),
        registry.catalog.migrate,
    )
    for look in looks:
        with pytest.raises(CatalogError, match=f"(?s)Catalogue .* (does not exist|cannot be read): .*{match}"):
            look()
    assert [*doctor._catalogue()]  # a report, not an error
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize("place", ["file", "folder-above", "empty"])
def test_it_is_made_by_the_step_that_the_error_names(
    registry: ModelRegistry, home: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Once; what is there stays as it is."""
    PLACES[place][0](home, monkeypatch)
    assert registry.catalog.create() and registry.get_metadata(BUILTIN).origin == "built-in"
    assert registry.register("m", "generic", persist=True).version == 1
    assert not registry.catalog.create() and registry.catalog.names() == ["m"]


def test_one_that_goes_while_a_process_runs_is_missed(
    registry: ModelRegistry, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share that is unmounted: no other model of the name answers, and it is back when the share is."""
    share = home / "share"
    monkeypatch.setenv("MEDVLLM_CATALOG", str(share / "catalog.db"))
    registry.catalog.create()
    registry.register(BUILTIN, "clinical", model_path=str(tiny.bert_encoder(home / "m")), persist=True, replace=True)
    registry.load_tokenizer(BUILTIN)
    registry.register("own", "generic", model_path=str(home / "m"))
    stores.close_all()
    share.rename(home / "unmounted")
    share.mkdir()
    for look in (lambda: registry.get_metadata(BUILTIN), lambda: registry.load_tokenizer(BUILTIN)):
        with pytest.raises(CatalogError, match="does not exist: there is no file"):
            look()
    assert registry.get_metadata("own").origin == "process"
    with pytest.raises(CatalogError, match="does not exist"):
        registry.register("n", "generic", persist=True)
    assert list(share.iterdir()) == []
    shutil.rmtree(share)
    (home / "unmounted").rename(share)
    assert registry.get_metadata(BUILTIN).origin == "stored"


def test_a_home_that_is_not_there_yet_is_no_error(registry: ModelRegistry, home: Path) -> None:
    """Its catalogue is made by the first entry that is stored; looking makes nothing."""
    assert registry.catalog.names() == [] and registry.get_metadata(BUILTIN).origin == "built-in"
    assert not (home / "medvllm").exists()
    (home / "medvllm").mkdir()
    (home / "medvllm" / "catalog.db").touch()  # what a full disk left of a first attempt
    assert registry.catalog.names() == [] and BUILTIN in registry.list_models()
    assert registry.register("m", "generic", persist=True).version == 1
