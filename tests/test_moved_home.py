"""MEDVLLM_HOME is moved: what it keeps is found in the new place."""

from pathlib import Path

import pytest

from medvllm.catalog import stores
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DigestMismatchError, ModelNameError, SnapshotNotFoundError, SourceError
from medvllm.names import parse_name, source_path
from tests.support import tiny


@pytest.fixture
def moved(home: Path, monkeypatch: pytest.MonkeyPatch) -> "Moved":
    """A function that moves the home folder."""
    return Moved(home, monkeypatch)


class Moved:
    """Moves MEDVLLM_HOME, as to another disk or mount point."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._home, self._monkeypatch = home, monkeypatch

    def __call__(self, name: str) -> Path:
        stores.close_all()
        target = self._home / name
        (self._home / "medvllm").rename(target)
        self._monkeypatch.setenv("MEDVLLM_HOME", str(target))
        return target


def test_a_copy_is_found_in_a_moved_home(registry: ModelRegistry, moved: Moved, tmp_path: Path) -> None:
    """By name, version and alias; it is verified, locked and given as metadata as before."""
    folder = tiny.bert_encoder(tmp_path / "m")
    kept = registry.register("m", "clinical", model_path=folder, copy=True, persist=True)
    registry.catalog.set_alias("m", "production", 1)
    registry.lock("m")
    assert kept.source.model_path is not None and kept.source.model_path.startswith("home://models/")
    place = moved("elsewhere")
    (tmp_path / "m").rename(tmp_path / "gone")
    other = ModelRegistry()
    for name in ("m", "m@1", "m@production"):
        assert other.load_model(name) is not None
    assert other.pull("m").parent == place / "models"
    assert other.verify() == {"m": {}} and list(other.lock("m")) == ["m"]
    assert other.register("m", "clinical", model_path=other.pull("m"), persist=True, replace=True).version == 1


def test_an_absolute_path_into_a_former_home_is_found(registry: ModelRegistry, moved: Moved, tmp_path: Path) -> None:
    """The folder's name is the digest of its files, so that it cannot be another's; a changed one is refused."""
    registry.register("m", "clinical", model_path=tiny.bert_encoder(tmp_path / "m"), copy=True)
    path = registry.pull("m")
    moved("elsewhere")
    registry.catalog.apply(f'[models.old]\nmodel_type = "clinical"\nmodel_path = "{path}"\n')
    assert registry.get_metadata("old").source.model_path == str(path)
    found = registry.pull("old")
    assert found != path and registry.load_model("old") is not None
    (found / "config.json").write_text((found / "config.json").read_text() + " ")
    with pytest.raises(DigestMismatchError, match="no longer holds the files that were copied into it"):
        ModelRegistry().load_model("old")
    for file in found.iterdir():
        file.unlink()
    found.rmdir()
    with pytest.raises(SnapshotNotFoundError, match=r"this home does not have it.\nBring it with medvllm export"):
        ModelRegistry().load_model("old")


def test_paths_below_the_home_are_kept_relative_to_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through links too. In a shared catalogue only a folder that is named after its digest is."""
    models = home / "medvllm" / "models"
    digest = "0123456789" * 4
    (tmp_path / "link").symlink_to(home / "medvllm")
    for path in (models / digest, tmp_path / "link" / "models" / digest):
        assert source_path(path) == f"home://models/{digest}"
    assert source_path(models / "ours") == "home://models/ours"
    assert source_path(home / "medvllm") == str(home / "medvllm") and source_path("/srv/m") == "/srv/m"
    assert parse_name(f"home://models/{digest}").name == str(models / digest)
    monkeypatch.setenv("MEDVLLM_CATALOG", str(tmp_path / "shared.db"))
    assert source_path(models / "ours") == str(models / "ours")
    assert source_path(models / digest) == f"home://models/{digest}"
    for bad in ("home://", "home:///etc", "home://../x", "home://models/../../x", "home://a//b"):
        with pytest.raises(ModelNameError, match=r"is not a folder in MEDVLLM_HOME\.\nUse: home://models/NAME"):
            parse_name(bad)


def test_a_link_out_of_a_folder_is_not_copied(registry: ModelRegistry, tmp_path: Path) -> None:
    """Whatever the link is called: a vocabulary may be somebody's token. One within the folder is followed."""
    folder = tiny.bert_encoder(tmp_path / "m")
    (folder / "vocab.txt").rename(folder / "words")
    (folder / "vocab.txt").symlink_to("words")
    registry.register("m", "clinical", model_path=folder, copy=True)
    (folder / "words").rename(tmp_path / "secret")
    (folder / "vocab.txt").unlink()
    (folder / "vocab.txt").symlink_to("../secret")
    with pytest.raises(SourceError, match=r"vocab.txt is a link that leads out of the folder, to .*secret\."):
        registry.register("n", "clinical", model_path=folder, copy=True)
