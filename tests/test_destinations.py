"""Results go where a user asked for them, and what is there is respected: links, devices, pipes, mounts, modes."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from medvllm import destination
from medvllm.errors import OutputError
from tests.support import tiny
from tests.support.users import another_user, reachable

NEW = b"new " * 50_000
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, devices and other users need root")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that others can reach."""
    made = tmp_path / "out"
    made.mkdir()
    return reachable(made)


def _leftovers(folder: Path) -> list[str]:
    return [file.name for file in folder.rglob("*.partial")]


def test_a_new_file_has_the_mode_of_the_umask_and_an_old_one_keeps_its_own(folder: Path) -> None:
    """Nothing else is left in the folder."""
    file = folder / "r.json"
    before = os.umask(0o027)
    try:
        destination.write_output(file, b"old")
        assert stat.S_IMODE(file.stat().st_mode) == 0o640
        file.chmod(0o604)
        destination.write_output(file, NEW)
    finally:
        os.umask(before)
    assert file.read_bytes() == NEW and stat.S_IMODE(file.stat().st_mode) == 0o604
    assert os.listdir(folder) == ["r.json"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "a b'c\n", "-x", "[*?]"])
def test_every_name_that_a_file_may_have_is_written(folder: Path, name: str) -> None:
    """Also the longest, where no longer one has room beside it."""
    destination.write_output(folder / name, b"old")
    destination.write_output(folder / name, NEW)
    assert (folder / name).read_bytes() == NEW and os.listdir(folder) == [name]


def test_links_are_followed(folder: Path) -> None:
    """One, two in a row, one with a relative target, one that leads to nothing yet: the links stay."""
    target = folder / "deep" / "target"
    target.parent.mkdir()
    target.write_bytes(b"old")
    links = {"one": str(target), "two": "one", "relative": "deep/../deep/target", "dangling": "deep/later"}
    for name, to in links.items():
        (folder / name).symlink_to(to)
        destination.check_output(folder / name)
        destination.write_output(folder / name, name.encode())
        assert os.readlink(folder / name) == to and (folder / name).read_bytes() == name.encode()
        assert os.readlink(folder / "one") == links["one"]
    assert (folder / "deep" / "later").read_bytes() == b"dangling" and not _leftovers(folder)


def test_other_names_of_a_file_see_what_is_written(folder: Path) -> None:
    """A hard link stays one; a shorter content leaves nothing of the longer one behind."""
    file, other = folder / "a", folder / "b"
    file.write_bytes(NEW)
    os.link(file, other)
    destination.write_output(file, b"short")
    assert other.read_bytes() == b"short" and file.samefile(other) and not _leftovers(folder)


def test_a_pipe_is_written_through(folder: Path) -> None:
    """Its reader gets all of it; a check beforehand shows it nothing."""
    fifo, got = folder / "fifo", []
    os.mkfifo(fifo)
    destination.check_output(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    destination.write_output(fifo, NEW)
    reader.join(30)
    assert got == [NEW] and stat.S_ISFIFO(fifo.lstat().st_mode)


@needs_root
def test_a_device_stays_a_device(folder: Path) -> None:
    """Also by a link, and the machine's own /dev/null in a mount namespace."""
    null = folder / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (folder / "link").symlink_to("null")
    for path in (null, folder / "link"):
        destination.check_output(path)
        destination.write_output(path, NEW)
    assert stat.S_ISCHR(null.lstat().st_mode) and sorted(os.listdir(folder)) == ["link", "null"]
    code = (
        "import os, stat; from pathlib import Path; from medvllm import destination\n"
        "destination.write_output(Path('/dev/null'), b'x'); destination.write_output(Path('/dev/stdout'), b'result')\n"
        "assert stat.S_ISCHR(os.lstat('/dev/null').st_mode) and stat.S_ISLNK(os.lstat('/dev/stdout').st_mode)"
    )
    run = subprocess.run(["unshare", "-m", sys.executable, "-c", code], capture_output=True)
    if run.returncode and b"unshare" in run.stderr:
        pytest.skip("there are no mount namespaces here")
    assert (run.returncode, run.stdout) == (0, b"result"), run.stderr


@pytest.mark.parametrize("kind", ["file", "pipe", "socket"])
def test_what_was_printed_stays_in_front(folder: Path, kind: str) -> None:
    """Standard output and open descriptors are written through, wherever they lead: a file too is not replaced."""
    (folder / "link").symlink_to("/dev/stdout")
    names = ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/thread-self/fd/1", "/dev/fd/7", "link"]
    code = (
        "import os; from pathlib import Path; from medvllm import destination\nos.dup2(1, 7)\n"
        f"for name in {names}:\n"
        "    print(name); destination.check_output(Path(name)); destination.write_output(Path(name), b'written\\n')\n"
        "print('last')"
    )
    mine, theirs = socket.socketpair()
    with (folder / "out").open("w+b") as file, mine:
        places: dict[str, Any] = {"file": file, "pipe": subprocess.PIPE, "socket": theirs}
        run = subprocess.run([sys.executable, "-c", code], stdout=places[kind], stderr=subprocess.PIPE, cwd=folder)
        theirs.close()
        file.seek(0)
        got = file.read() if kind == "file" else run.stdout if kind == "pipe" else mine.recv(10_000)
    assert run.returncode == 0, run.stderr
    assert got.decode().split() == [line for name in names for line in (name, "written")] + ["last"]
    assert sorted(os.listdir(folder)) == ["link", "out"]


@needs_root
def test_a_file_that_is_mounted_by_itself_is_written_in_place(folder: Path) -> None:
    """As a container has it: on a writable folder, and where the folder around it takes no new file."""
    outside, inside = folder / "outside", folder / "root"
    file = inside / "file"
    inside.mkdir()
    for is_read_only in (False, True):
        outside.write_bytes(NEW + b"old")
        if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", inside], capture_output=True).returncode:
            pytest.skip("nothing can be mounted here")
        try:
            file.touch()
            subprocess.run(["mount", "--bind", outside, file], check=True)
            if is_read_only:
                subprocess.run(["mount", "-o", "remount,ro", inside], check=True)
            destination.check_output(file)
            destination.write_output(file, NEW)
            assert outside.read_bytes() == file.read_bytes() == NEW and os.listdir(inside) == ["file"]
        finally:
            subprocess.run(["umount", "-l", file], check=True)
            subprocess.run(["umount", "-l", inside], check=True)


@needs_root
def test_the_owner_and_the_access_list_of_a_file_stay(folder: Path) -> None:
    """Root writes a file of another user's, and a user one of root's that it may write, in a folder that it may not."""
    file = folder / "r.json"
    file.write_bytes(b"old")
    os.chown(file, 65534, 65534)
    file.chmod(0o620)
    os.setxattr(file, "user.note", b"kept")
    destination.write_output(file, NEW)
    status = file.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (65534, 65534, 0o620)
    assert os.getxattr(file, "user.note") == b"kept"
    roots = folder / "roots"
    roots.write_bytes(b"old")
    roots.chmod(0o666)
    for mode in (0o755, 0o777, 0o1777):
        folder.chmod(mode)
        with another_user():
            destination.check_output(roots)
            destination.write_output(roots, str(mode).encode())
        assert (roots.read_bytes(), roots.stat().st_uid) == (str(mode).encode(), 0)
    assert not _leftovers(folder)


@needs_root
def test_a_strangers_link_in_a_common_folder_is_not_followed(folder: Path) -> None:
    """It would lead where the stranger wants; the victim's file stays."""
    victim, common = folder / "victim", folder / "common"
    common.mkdir()
    common.chmod(0o1777)
    victim.write_bytes(b"mine")
    with another_user():
        (common / "link").symlink_to(victim)
        (common / "dangling").symlink_to(folder / "other")
    for name in ("link", "dangling"):
        for call in (destination.check_output, lambda path: destination.write_output(path, NEW)):
            with pytest.raises(OutputError, match="another user's link"):
                call(common / name)
    assert victim.read_bytes() == b"mine" and not (folder / "other").exists()


def test_what_takes_no_result_is_refused_before_any_work(folder: Path) -> None:
    """A folder, a missing one, a file in a folder's place, a loop of links, a socket, a name with a NUL."""
    (folder / "file").touch()
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    (folder / "into").symlink_to("nowhere/file")
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    cases = {
        "": "Use the path of a file",
        "nowhere/file": f"there is no folder '{folder}/nowhere'.\nCreate its folder first: mkdir -p {folder}/nowhere",
        "into": f"mkdir -p {folder}/nowhere",
        "file/x": f"{folder}/file",
        "a": "symbolic links",
        "socket": "it is a socket",
        "x\0y": "null",
        "x" * 256: "too long",
    }
    held = sorted(os.listdir(folder))
    for name, reason in cases.items():
        for call in (destination.check_output, lambda path: destination.write_output(path, NEW)):
            with pytest.raises(OutputError) as caught:
                call(folder / name)
            assert reason in str(caught.value), name
    assert sorted(os.listdir(folder)) == held


@needs_root
def test_a_file_that_may_not_be_written_is_refused_before_any_work(folder: Path) -> None:
    """It is not replaced either, though the folder would let it be; nor is anything put where nothing may be."""
    for name in ("mine", "roots"):
        (folder / name).write_bytes(b"old")
        (folder / name).chmod(0o444)
    os.chown(folder / "mine", 65534, 65534)
    folder.chmod(0o777)
    closed = folder / "closed"
    closed.mkdir(mode=0o755)
    with another_user():
        for path in (folder / "mine", folder / "roots", closed / "new"):
            for call in (destination.check_output, lambda path: destination.write_output(path, NEW)):
                with pytest.raises(OutputError, match="(?s)Permission denied.*ls -ld"):
                    call(path)
    assert (folder / "mine").read_bytes() == b"old" and not _leftovers(folder)


def test_a_result_that_is_not_finished_is_not_there(folder: Path) -> None:
    """What was there stays, when the writing block fails."""
    file = folder / "b.tar"
    file.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), destination.open_output(file) as stream:
        stream.write(NEW)
        raise ZeroDivisionError
    assert file.read_bytes() == b"old" and os.listdir(folder) == ["b.tar"]


def test_writers_of_one_file_do_not_remove_each_others_work(folder: Path) -> None:
    """Only what a dead writer has left goes."""
    file = folder / "r.json"
    dead = folder / ".r.json.0123456789abcdef.partial"
    dead.write_bytes(b"half")
    with destination.open_output(file) as first:
        first.write(b"first")
        destination.write_output(file, b"second")
        assert file.read_bytes() == b"second" and not dead.exists()
    assert file.read_bytes() == b"first" and os.listdir(folder) == ["r.json"]


def test_a_full_disk_is_told_and_costs_nothing_that_was_there(folder: Path) -> None:
    """/dev/full answers as a full disk does."""
    with pytest.raises(OutputError, match="'/dev/full' cannot be written: No space left on device"):
        destination.write_output(Path("/dev/full"), NEW)


def test_the_result_of_a_run_is_not_lost_with_its_receipt(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The receipt's place is looked at before the model runs; what fails later costs the receipt alone."""
    from medvllm.cli import main

    model = str(tiny.bert_encoder(tmp_path / "m"))

    def run(receipt: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["medvllm", "run", model, "aspirin", "--json", "--receipt", receipt])
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code
        shown = capsys.readouterr()
        return int(str(code or 0)), shown.out, shown.err

    code, out, err = run(str(tmp_path / "none" / "r.json"))
    assert code == 1 and out == "" and f"mkdir -p {tmp_path}/none" in err
    code, out, err = run("/dev/full")
    assert code == 1 and json.loads(out)["results"] and "No space left on device" in err
    code, out, err = run(str(tmp_path / "r.json"))
    assert code == 0 and json.loads((tmp_path / "r.json").read_text()) == json.loads(out)["receipt"]
