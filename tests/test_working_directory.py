"""The working directory is no setting: one that is gone, or that may not be searched, changes nothing."""

import os
import shutil
from pathlib import Path

import pytest

from tests.support import tiny
from tests.support.children import python

# Each command in turn, in this process; what it wrote to standard error comes with a code that is not 0.
_COMMANDS = """
import io, os, sys
from medvllm.cli import main

def run(*arguments):
    sys.argv = ["medvllm", *arguments]
    said, sys.stderr = sys.stderr, io.StringIO()
    out, sys.stdout = sys.stdout, io.StringIO()
    try:
        main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        (error, sys.stderr), (shown, sys.stdout) = (sys.stderr, said), (sys.stdout, out)
    assert code == 0, (arguments, error.getvalue(), shown.getvalue())

def all():
    run("list")
    run("show", "biobert-base-cased-v1.2")
    run("register", "own", "--type", "generic", "--path", {folder!r})
    run("run", "own", "aspirin")
    run("run", {folder!r}, "aspirin")
    run("catalog", "export")
    run("doctor")

{enter}
all()
"""


def _place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return str(tiny.bert_token_classifier(tmp_path / "own", ["O", "B-X"]))


def test_a_working_directory_that_is_gone(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole paths and names work; it is no place for a lock."""
    folder = _place(home, tmp_path, monkeypatch)
    enter = f"os.mkdir({str(tmp_path / 'gone')!r}); os.chdir({str(tmp_path / 'gone')!r}); os.rmdir(os.getcwd())"
    run = python(_COMMANDS.format(enter=enter, folder=folder))
    assert run.returncode == 0, run.stderr


def test_a_working_directory_that_may_not_be_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service that runs as another user where root has started it."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user in a folder of root's")
    # Below a folder that everybody may search, as pytest's own are private.
    place = Path("/var/tmp") / f"medvllm-{os.getpid()}"
    place.mkdir()
    try:
        (place / "secret").mkdir(mode=0o700)
        folder = tiny.bert_token_classifier(place / "own", ["O", "B-X"])
        (place / "home").mkdir()
        for path in (place, *place.rglob("*")):
            if path.name != "secret":
                os.chown(path, 54321, 54321)
        monkeypatch.delenv("MEDVLLM_LOCK_FILE")
        monkeypatch.setenv("HOME", str(place / "home"))
        monkeypatch.setenv("HF_HUB_CACHE", str(place / "hf"))
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        # What is imported late may lie where the other user may not read: all of it runs once before.
        own, other = str(tmp_path / "m"), str(place / "home" / "m")
        enter = (
            f"os.environ['MEDVLLM_HOME'] = {own!r}; all(); os.environ['MEDVLLM_HOME'] = {other!r}\n"
            f"os.chdir({str(place / 'secret')!r}); os.setgid(54321); os.setuid(54321)"
        )
        run = python(_COMMANDS.format(enter=enter, folder=str(folder)))
        assert run.returncode == 0, run.stderr
    finally:
        shutil.rmtree(place)
