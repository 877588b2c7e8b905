"""What is on this machine loads: whoever filled the Hub's cache, whoever owns it, and whether the Hub answers."""

import errno
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from medvllm.catalog import Catalog, StoredCatalog
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DigestMismatchError, HubUnreachableError, SourceError
from medvllm.sources.digest_cache import digest_cache
from tests.support import tiny
from tests.support.loopback import LoopbackHub
from tests.support.users import NOBODY, another_user, reachable

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's files need root")
FILES = ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json")
CLOSED = "http://127.0.0.1:9"


@pytest.fixture(scope="module", autouse=True)
def _imported(session_hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Have in memory what another user may not be able to import."""
    import importlib.readers

    folder = tiny.bert_masked_lm(tmp_path_factory.mktemp("imported") / "m")
    registry = ModelRegistry(Catalog(StoredCatalog(f"sqlite:///{folder}/catalog.db")))
    assert importlib.readers and registry.load_model(folder) and registry.load_tokenizer(folder)


@pytest.fixture
def acme(hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A Hub with one tiny model, and no token; its commit."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    return hub.add("acme/m", tiny.bert_masked_lm(tmp_path / "m"))


def _fill(home: Path, commit: str, *, is_listed: bool) -> Path:
    """Fill the cache as `from_pretrained` does, file by file, or as `hf download` does; return the snapshot."""
    from huggingface_hub import hf_hub_download, snapshot_download

    if is_listed:
        snapshot = Path(snapshot_download("acme/m"))
        next((home / "hub").rglob("trees/*.json")).chmod(0o644)  # its owner's alone, as huggingface_hub leaves it
        return snapshot
    for name in FILES:
        hf_hub_download("acme/m", name)
    assert not list((home / "hub").rglob("trees/*.json"))
    return home / "hub" / "models--acme--m" / "snapshots" / commit


def _links(snapshot: Path) -> None:
    """As the cache has it."""


def _plain(snapshot: Path) -> None:
    """As `cp -L` and `rsync -L` leave it."""
    for link in snapshot.iterdir():
        content = link.read_bytes()
        link.unlink()
        link.write_bytes(content)


def _elsewhere(snapshot: Path) -> None:
    """As a deduplicating store leaves it."""
    store = snapshot.parents[3] / "store" / "blobs"
    store.mkdir(parents=True)
    for link in snapshot.iterdir():
        moved = link.resolve().rename(store / f"{link.name}.{'0' * 40}")
        link.unlink()
        link.symlink_to(moved)


def _state(folder: Path) -> set[tuple[str, int]]:
    return {(str(path), path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@needs_root
@pytest.mark.parametrize("is_listed", [False, True], ids=["from_pretrained", "hf download"])
@pytest.mark.parametrize("shape", [_links, _plain, _elsewhere])
def test_a_cache_loads_whoever_filled_it(
    acme: str,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    is_listed: bool,
    shape: Any,
) -> None:
    """Own or another user's, with the Hub there, gone or not to be asked; a warning names what was not checked."""
    from huggingface_hub import constants

    snapshot = _fill(home, acme, is_listed=is_listed)
    shape(snapshot)
    reachable(home)
    here = constants.ENDPOINT
    cases = [(hub, owner) for hub in ("offline", "gone", "answers", "gone again") for owner in ("another's", "own")]
    for hub, owner in cases:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", hub == "offline")
        monkeypatch.setattr(constants, "ENDPOINT", here if hub == "answers" else CLOSED)
        caplog.clear()
        before = _state(home / "hub")
        if owner == "own":
            assert ModelRegistry().pull("acme/m") == snapshot
        else:
            own = home / "nobody"
            own.mkdir(exist_ok=True)
            os.chown(own, NOBODY, NOBODY)
            with monkeypatch.context() as context, another_user():
                context.setenv("MEDVLLM_HOME", str(own))
                assert ModelRegistry().pull("acme/m") == snapshot
            assert _state(home / "hub") == before
        warned = "is not checked against its commit" in caplog.text
        assert warned == (not is_listed and hub in ("offline", "gone")), (hub, owner, caplog.text)
        if warned:
            assert ("config.json" in caplog.text) == (shape is not _links)


@needs_root
def test_a_model_of_another_users_cache_is_loaded_and_its_receipt_says_how_far_it_was_checked(
    acme: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a lock everything is checked, whatever the cache lacks: no warning is due."""
    from huggingface_hub import constants

    _fill(home, acme, is_listed=False)
    reachable(home)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    own = home / "nobody"
    own.mkdir()
    os.chown(own, NOBODY, NOBODY)
    monkeypatch.setenv("MEDVLLM_HOME", str(own))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(own / "medvllm.lock"))
    with another_user():
        with ModelRegistry().lease("acme/m") as lease:
            assert lease.receipt.proof.commit is None and not lease.receipt.proof.locked
        ModelRegistry().lock("acme/m")
        caplog.clear()
        with ModelRegistry().lease("acme/m") as lease:
            assert lease.receipt.proof.locked
    assert "is not checked" not in caplog.text


@pytest.mark.slow  # huggingface_hub tries for 23 s, twice
def test_what_is_here_loads_while_the_hub_fails(acme: str, hub: LoopbackHub, home: Path) -> None:
    """A branch is what the cache remembers of it."""
    _fill(home, acme, is_listed=False)
    hub.fault("/api/*", "status", 503)
    assert ModelRegistry().pull("acme/m").name == acme


def test_a_hub_that_refuses_is_a_hub_that_is_gone(
    acme: str, hub: LoopbackHub, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusals, a repository that was taken down: what is here loads by its commit, and the log says why."""
    _fill(home, acme, is_listed=False)
    for status in (403, 401, 404):
        hub.heal()
        hub.fault("/api/*", "status", status)
        caplog.clear()
        assert ModelRegistry().pull(f"acme/m@{acme}").name == acme
        assert f"It answered {status}." in caplog.text


def test_what_is_damaged_does_not_load(acme: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A blob is named after its content, also where no list tells of it; nor does half of a model."""
    from huggingface_hub import constants

    snapshot = _fill(home, acme, is_listed=False)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    blob = (snapshot / "model.safetensors").resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DigestMismatchError, match="model.safetensors"):
        ModelRegistry().load_model("acme/m")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(HubUnreachableError, match="is not on this machine"):
        ModelRegistry().load_model("acme/m")


@needs_root
def test_what_has_to_be_fetched_into_another_users_cache_is_an_error_with_a_way_out(acme: str, home: Path) -> None:
    """The cache as it is lacks a file."""
    snapshot = _fill(home, acme, is_listed=True)
    (snapshot / "model.safetensors").unlink()
    reachable(home)
    with another_user(), pytest.raises(SourceError) as caught:
        ModelRegistry().load_model("acme/m")
    said = str(caught.value)
    assert "could not be stored in the Hub's cache" in said and "export HF_HOME=" in said, said


@needs_root
@pytest.mark.parametrize("closed", [*FILES[:3], "", "model.safetensors.index.json"])
def test_another_users_files_are_an_error_that_names_them(tmp_path: Path, home: Path, closed: str) -> None:
    """0600 as safetensors writes them, and folders of 0700: for a load, a copy, a lock and a verification."""
    folder = tiny.bert_masked_lm(
        reachable(tmp_path) / "m", weights="sharded" if closed.endswith("index.json") else "safetensors"
    )
    registry = ModelRegistry()
    registry.lock(folder)
    reachable(home)
    for file in (home, *home.rglob("*")):
        os.chown(file, NOBODY, NOBODY)
    for file in folder.iterdir():
        file.chmod(0o644)
    (folder / closed).chmod(0o700 if not closed else 0o600)
    calls: list[Callable[[], Any]] = [
        lambda: ModelRegistry().load_model(folder),
        lambda: ModelRegistry().load_tokenizer(folder),
        lambda: ModelRegistry().register("own", "generic", model_path=str(folder), copy=True),
        lambda: ModelRegistry().lock(folder),
        lambda: ModelRegistry().verify(),
    ]
    with another_user():
        for call in calls:
            with pytest.raises(SourceError) as caught:
                call()
            said = str(caught.value)
            assert str(folder / closed) in said and "ls -ld" in said, said
            assert isinstance(caught.value.__cause__, OSError) and caught.value.__cause__.errno == errno.EACCES


@needs_root
def test_a_listing_of_a_shared_cache_can_be_read_by_its_other_users(acme: str, home: Path) -> None:
    """huggingface_hub gives it to nobody else."""
    ModelRegistry().pull("acme/m")
    (listing,) = (home / "hub").rglob("trees/*.json")
    assert listing.stat().st_mode & 0o777 == 0o666 & ~_umask()
    shutil.rmtree(home / "hub")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_secrets_of_the_hubs_address_are_neither_shown_nor_kept(
    acme: str, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A password or token in HF_ENDPOINT: not in errors, warnings, the digest cache or doctor."""
    from huggingface_hub import constants

    from medvllm.cli import doctor

    caplog.set_level(logging.DEBUG)
    said = []
    for secret in ("http://svc:S3CRET@127.0.0.1:9", "http://S3CRET@127.0.0.1:9", f"{CLOSED}/hub?token=S3CRET"):
        monkeypatch.setattr(constants, "ENDPOINT", secret)
        with pytest.raises(HubUnreachableError) as caught:
            ModelRegistry().load_model("acme/absent")
        said.append(f"{caught.value} {[*doctor._network()]}")
        digest_cache().keep_commit(__import__("medvllm.sources.hub").sources.hub.endpoint(), "acme/m", "main", acme)
    kept = b"".join(file.read_bytes() for file in (home / "medvllm").rglob("*") if file.is_file())
    assert "S3CRET" not in "".join(said) + caplog.text and b"S3CRET" not in kept and b"127.0.0.1" in kept
