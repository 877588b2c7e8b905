"""`medvllm doctor`: what is in force and from where, what is wrong, and that it never fails itself."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from medvllm import __version__, settings
from medvllm.engine.model_runner import registry
from tests.support import tiny
from tests.support.console import command
from tests.support.loopback import LoopbackHub

Doctor = Callable[..., tuple[int, dict[tuple[str, str], dict[str, str]]]]


@pytest.fixture
def doctor(session_hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> Doctor:
    """Run it with some variables; its exit code, and what it found by section and name."""

    def run(**environment: str) -> tuple[int, dict[tuple[str, str], dict[str, str]]]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            done = command(patch, "doctor", "--json")
        report = json.loads(done.out)
        assert report["ok"] is (done.code == 0), done.err
        return done.code, {(check["what"], check["name"]): check for check in report["checks"]}

    return run


def test_a_sound_installation(doctor: Doctor, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions, devices, room in bytes that people read, and each setting as its page writes it."""
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    monkeypatch.chdir(home)
    code, found = doctor()
    assert code == 0 and all(check["state"] == "ok" for check in found.values())
    assert found["version", "medvllm"]["value"] == __version__ and ("device", "cpu") in found
    assert found["memory", "budget of cpu"]["value"].endswith("B, three quarters of the machine's memory")
    assert found["setting", "MEDVLLM_MEMORY_BUDGET"]["value"] == "auto (default)"
    assert found["setting", "MEDVLLM_MAX_MODELS"]["value"] == "none (default)"
    assert found["setting", "MEDVLLM_HOME"]["value"] == f"{home / 'medvllm'} (environment)"
    assert "answers in" in found["network", "Hub"]["value"]
    assert found["catalogue", str(home / "medvllm" / "catalog.db")]["value"] == "does not exist yet"
    assert doctor(MEDVLLM_MEMORY_BUDGET="cpu=18.96GB")[1]["memory", "budget of cpu"]["value"].startswith("18.96 GB")


def test_the_lock_that_is_in_force(doctor: Doctor, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file, what says so, what it covers, and whether it is required; one that is required must be there."""
    lock = str(home / "medvllm.lock")
    code, found = doctor()
    assert code == 1 and found["lock", "file"]["value"] == f"none at {lock} (MEDVLLM_LOCK_FILE in the environment)"
    registry.register("locked", "generic", model_path=tiny.bert_masked_lm(tmp_path / "m"), persist=True)
    registry.lock("locked")
    code, found = doctor()
    assert code == 0 and found["lock", "covers"]["value"] == "locked"
    assert found["lock", "is required"]["value"].startswith("no: ")
    (home / "medvllm" / "config.toml").write_text(f'require_lock = true\nlock_file = "{lock}"\n')
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    code, found = doctor()
    assert code == 0 and found["lock", "is required"]["value"].startswith("yes: ")
    assert f"MEDVLLM_LOCK_FILE in {home / 'medvllm' / 'config.toml'}" in found["lock", "file"]["value"]
    assert found["catalogue", str(home / "medvllm" / "catalog.db")]["value"] == "stored names: 1"
    Path(lock).write_text("nonsense = [")
    code, found = doctor()
    assert code == 1 and found["lock", "error"]["state"] == "wrong"
    Path(lock).unlink()
    assert doctor()[0] == 1


@pytest.mark.parametrize(
    ("environment", "what", "words"),
    [
        ({"MEDVLLM_DEVICE": "gpu"}, ("setting", "MEDVLLM_DEVICE"), "Device 'gpu'"),
        ({"MEDVLLM_HUB_TIMEOUT": "x"}, ("setting", "MEDVLLM_HUB_TIMEOUT"), "MEDVLLM_HUB_TIMEOUT is 'x'"),
        ({"MEDVLLM_MEMORY_BUDGET": "lots"}, ("memory", "error"), "MEDVLLM_MEMORY_BUDGET is 'lots'"),
        ({"MEDVLLM_REQUIRELOCK": "1"}, ("setting", "MEDVLLM_REQUIRELOCK"), "Did you mean: 'MEDVLLM_REQUIRE_LOCK'"),
        ({"MEDVLLM_CATALOG": "nonsense"}, ("setting", "MEDVLLM_CATALOG"), "nonsense"),
        ({"MEDVLLM_CATALOG": "/nothing/such.db"}, ("catalogue", "/nothing/such.db"), "does not exist"),
        ({"MEDVLLM_CATALOG": "postgresql://me:secret@127.0.0.1:9/x"}, None, ""),
        ({"MEDVLLM_HOME": "/etc/passwd"}, ("disk", "MEDVLLM_HOME"), "is a file, not a folder"),
        ({"MEDVLLM_HOME": "/dev/null/x"}, ("disk", "error"), ""),
        ({"MEDVLLM_HOME": "$NOTHING/x"}, ("setting", "MEDVLLM_HOME"), "NOTHING is not set"),
        ({"MEDVLLM_LOCK_FILE": "/proc/self/mem"}, ("lock", "error"), "cannot be read"),
        ({"MEDVLLM_DEBUG": "perhaps"}, ("setting", "MEDVLLM_DEBUG"), "neither on nor off"),
    ],
)
def test_what_is_wrong_is_said_and_fails(
    doctor: Doctor, environment: dict[str, str], what: tuple[str, str] | None, words: str
) -> None:
    """Exit code 1; the rest of the report is there all the same, without passwords."""
    code, found = doctor(**environment)
    wrong = {key: check["value"] for key, check in found.items() if check["state"] == "wrong"}
    assert code == 1 and wrong and ("version", "medvllm") in found and "secret" not in str(found)
    if what is not None and what != ("disk", "error"):
        assert words in wrong[what], wrong


def test_a_hub_that_does_not_answer(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """It is wrong, unless one is offline on purpose."""
    (home / "medvllm.lock").write_text("version = 1\n")
    monkeypatch.setattr(constants, "ENDPOINT", "http://svc:S3CRET@127.0.0.1:9")
    code, found = doctor()
    assert code == 1 and "does not answer" in found["network", "Hub"]["value"] and "S3CRET" not in str(found)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    _, found = doctor()
    assert found["network", "Hub"]["state"] == "ok" and "S3CRET" not in str(found)


def test_who_may_write_to_the_home_and_what_it_holds(doctor: Doctor, home: Path, tmp_path: Path) -> None:
    """Everybody is wrong; sizes are by folder."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    registry.register("kept", "generic", model_path=folder, persist=True, copy=True)
    place = home / "medvllm"
    _, found = doctor()
    assert found["disk", "MEDVLLM_HOME models contains"]["value"].endswith("KB")
    for mode, words, state in ((0o700, "its user", "ok"), (0o770, "group", "ok"), (0o777, "everybody", "wrong")):
        os.chmod(place, mode)
        check = doctor()[1]["disk", "MEDVLLM_HOME"]
        assert words in check["value"] and check["state"] == state


def test_a_settings_file_that_is_wrong_is_reported(doctor: Doctor, home: Path) -> None:
    """Once, and not by every setting that it may state."""
    (home / "medvllm").mkdir()
    (home / "medvllm" / "config.toml").write_text("requirelock = true\n")
    code, found = doctor()
    assert code == 1 and "Did you mean: 'require_lock'" in found["setting", "file"]["value"]
    assert found["setting", "MEDVLLM_HOME"]["state"] == "ok"


def test_doctor_never_fails_itself(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a look meets is one of its findings."""

    def broken() -> Any:
        raise RuntimeError("of no kind")

    monkeypatch.setattr(settings, "find_unknown", broken)
    code, found = doctor()
    assert code == 1 and found["setting", "error"]["value"] == "RuntimeError: of no kind"


def test_a_broken_settings_file_is_reported_once(doctor: Doctor, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for every setting; the catalogue's row says what is wrong, and the Hub's does not blame the network."""
    (home / "config.toml").write_text("allow_unregistered = maybe\n")
    monkeypatch.setattr(settings, "SYSTEM", home / "config.toml")
    code, found = doctor()
    assert code == 1 and "not valid TOML" in found["setting", "file"]["value"]
    assert not [name for what, name in found if what == "setting" and name.startswith("MEDVLLM_DEVICE")]
    assert "AttributeError" not in json.dumps(list(found.values()))
    assert "HF_HUB_OFFLINE" not in found["network", "Hub"]["value"]
    assert registry.catalog.where == "MEDVLLM_CATALOG"
