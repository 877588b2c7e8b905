"""File systems that lack what others have: links, modes, owners, folder sync, file locks, or the right to write."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from medvllm.engine.model_runner import ModelRegistry
from tests.support import tiny
from tests.support.loopback import LoopbackHub

# Takes a call away from a process, or what of it the file systems of shares lack; ODD_CALLS names those of the moment.
_ODD = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
static int lacks(const char *call) { const char *all = getenv("ODD_CALLS"); return all && strstr(all, call); }
#define NEXT(name) ((int (*)()) dlsym(RTLD_NEXT, name))
int fsync(int fd) {
    struct stat status;
    if (lacks("fsync_folder") && !fstat(fd, &status) && S_ISDIR(status.st_mode)) { errno = EINVAL; return -1; }
    if (lacks("fsync_all")) { errno = ENOSYS; return -1; }
    return NEXT("fsync")(fd);
}
#define LACK(what, name, parameters, ...) \
    int name parameters { if (lacks(what)) { errno = EPERM; return -1; } return NEXT(#name)(__VA_ARGS__); }
LACK("symlink", symlink, (const char *to, const char *at), to, at)
LACK("link_hard", link, (const char *from, const char *to), from, to)
LACK("chmod", fchmod, (int fd, mode_t mode), fd, mode)
LACK("chmod", chmod, (const char *path, mode_t mode), path, mode)
int flock(int fd, int how) {
    if (lacks("no_locks")) { errno = ENOLCK; return -1; }
    if (lacks("no_flock")) { errno = ENOSYS; return -1; }
    return NEXT("flock")(fd, how);
}
"""
_CASES = r"""
import os, sys, warnings
from pathlib import Path
from medvllm import destination, files
from medvllm.engine.model_runner.batch.folder import BatchFolder
from medvllm.errors import SourceError
from medvllm.file_lock import file_lock
warnings.simplefilter("ignore")  # filelock's, of a lock that is a file's name
where = Path(sys.argv[1])
for calls in ("fsync_folder", "fsync_all", "symlink", "link_hard", "chmod", "no_flock", "no_locks",
              "fsync_folder symlink link_hard chmod"):
    os.environ["ODD_CALLS"] = calls
    room = where / calls.replace(" ", "-")
    files.make_own(room / "deep")
    for content in (b"old", b"new"):
        destination.write_output(room / "result", content)
        files.write_whole(room / "own", content, private=True)
    files.link_or_copy(room / "own", room / "second")
    assert files.replace_with_symlink(room / "pointer", "own") is ("symlink" not in calls)
    for name in ("result", "own", "second"):
        assert (room / name).read_bytes() == b"new", (calls, name)
    assert not list(room.glob("*.partial")) and not list(room.glob(".*.partial")), calls
    try:
        with file_lock(room / "turn.lock"):
            assert calls != "no_locks"
    except SourceError as error:
        assert calls == "no_locks" and "export MEDVLLM_HOME=" in str(error), error
    try:
        with BatchFolder(room / "batch").locked():
            assert calls != "no_locks"
            assert BatchFolder(room / "batch").is_locked()
    except SourceError as error:
        assert calls == "no_locks" and str(error).startswith(f"{room / 'batch'} is on a file system without"), error
    assert not BatchFolder(room / "batch").is_locked()
print("all")
"""


def test_what_a_file_system_lacks_is_done_without_or_named(tmp_path: Path) -> None:
    """Each call in turn, and all that a USB disk lacks at once: what was done is not reported as failed."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler on this machine; install it as root: make system")
    (tmp_path / "odd.c").write_text(_ODD)
    subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", "odd.so", "odd.c", "-ldl"], cwd=tmp_path, check=True)
    environment = os.environ | {"LD_PRELOAD": str(tmp_path / "odd.so")}
    run = subprocess.run(
        [sys.executable, "-c", _CASES, tmp_path / "out"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (run.returncode, run.stdout) == (0, "all\n"), run.stderr


@pytest.fixture
def usb(tmp_path: Path) -> Iterator[Path]:
    """A disk with exFAT: no links, no modes, no owners."""
    if shutil.which("mkfs.exfat") is None or shutil.which("mount.exfat-fuse") is None:
        pytest.skip("there is no exFAT on this machine; install it as root: make system")
    image, disk = tmp_path / "usb.img", tmp_path / "usb"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    looped = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if looped.returncode:
        pytest.skip(f"no disk can be made here: {looped.stderr.strip()}")
    device = looped.stdout.strip()
    try:
        if (reason := _mounted(disk, device)) is not None:
            pytest.skip(f"no disk can be mounted here: {reason}")
        yield disk
        subprocess.run(["umount", "-l", disk], check=True)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def _mounted(disk: Path, device: str) -> str | None:
    """Mount a device, and return why it cannot be."""
    run = subprocess.run(["mount.exfat-fuse", "-o", "umask=022", device, disk], capture_output=True, text=True)
    return None if run.returncode == 0 else run.stderr.strip()


@pytest.mark.filterwarnings("ignore:.*cache-system uses symlinks")
def test_everything_works_on_a_usb_disk(
    usb: Path, hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub's cache and MEDVLLM_HOME on it: pull, run, copy, lock, another dtype, export, and an import from it."""
    from huggingface_hub import constants

    hub.add("acme/m", tiny.bert_masked_lm(tmp_path / "m"))
    weights = load_file(tmp_path / "m" / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(usb / "hub"))
    monkeypatch.setenv("MEDVLLM_HOME", str(usb / "medvllm"))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(usb / "medvllm.lock"))

    def check(name: str, **options: Any) -> None:
        model = ModelRegistry().load_model(name, **options)
        state = model.state_dict()
        assert all((state[key].float() == value.to(state[key].dtype).float()).all() for key, value in weights.items())

    registry = ModelRegistry()
    registry.register("own", "custom", model_path=str(tmp_path / "m"), copy=True, persist=True)
    registry.lock("own", "acme/m")
    for name in ("own", "acme/m"):
        check(name)
        check(name, dtype="bfloat16")
    assert list((usb / "medvllm" / "prepared").glob("*/model.safetensors"))
    registry.export(usb / "b.tar", "own", "acme/m")
    site = usb / "site"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(site / "hub"))
    monkeypatch.setenv("MEDVLLM_HOME", str(site / "medvllm"))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(site / "medvllm.lock"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ModelRegistry().import_bundle(usb / "b.tar")
    for name in ("own", "acme/m"):
        check(name)
    assert not list(usb.rglob("*.partial"))


@pytest.mark.skipif(os.geteuid() != 0, reason="a read-only mount needs root")
@pytest.mark.parametrize("is_listed", [False, True])
def test_a_read_only_cache_and_home_load(
    hub: LoopbackHub, home: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, is_listed: bool
) -> None:
    """As in an image; without the commit's list there is no place for it, and the warning says so."""
    from huggingface_hub import hf_hub_download, snapshot_download

    commit = hub.add("acme/m", tiny.bert_masked_lm(tmp_path / "m"))
    if is_listed:
        snapshot_download("acme/m")
    else:
        for name in ("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"):
            hf_hub_download("acme/m", name)
    (home / "medvllm").mkdir()
    subprocess.run(["mount", "--bind", home, home], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", home], check=True)
        assert ModelRegistry().load_model(f"acme/m@{commit}") is not None
    finally:
        subprocess.run(["umount", "-l", home], check=True)
    warned = "is not checked against its commit" in caplog.text
    assert warned is not is_listed and ("Read-only file system" in caplog.text) is warned
