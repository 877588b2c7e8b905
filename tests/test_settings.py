"""The settings: read when used, refused by name."""

import os
from pathlib import Path

import pytest

from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import LoadError, MedVLLMError, SettingError, SourceError
from tests.support import tiny
from tests.support.children import python
from tests.support.console import command


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's settings file, in a folder of the test's own."""
    monkeypatch.setattr(settings, "SYSTEM", tmp_path / "etc" / "config.toml")
    (tmp_path / "etc").mkdir()
    return tmp_path / "etc" / "config.toml"


@pytest.fixture
def own(home: Path) -> Path:
    """The settings file in MEDVLLM_HOME."""
    (home / "medvllm").mkdir()
    return home / "medvllm" / "config.toml"


def test_a_setting_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """No restart, and nothing read at import."""
    assert settings.ALLOW_UNREGISTERED() is True
    monkeypatch.setenv("MEDVLLM_ALLOW_UNREGISTERED", "off")
    assert settings.ALLOW_UNREGISTERED() is False
    monkeypatch.setenv("MEDVLLM_HOME", "~/elsewhere")
    assert settings.HOME() == Path.home() / "elsewhere"


@pytest.mark.parametrize(
    ("name", "value"), [("ALLOW_UNREGISTERED", "maybe"), ("HUB_TIMEOUT", "soon"), ("HUB_TIMEOUT", "-1")]
)
def test_a_bad_value_is_refused_with_the_variables_name(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """The message names the variable, the value, and a line to paste."""
    setting = getattr(settings, name)
    monkeypatch.setenv(setting.name, value)
    with pytest.raises(SettingError, match=rf"{setting.name} is '{value}'.*\n.*export {setting.name}="):
        setting()


def test_every_setting_is_in_the_table() -> None:
    """The table feeds doctor and the documentation."""
    declared = {value for value in vars(settings).values() if isinstance(value, settings.Setting)}
    assert declared == set(settings.SETTINGS)
    assert all(setting.help.endswith(".") for setting in settings.SETTINGS)


def test_the_environment_wins_over_the_homes_file_over_the_machines(
    system: Path, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each with its own value, as TOML has it; a variable that is empty is not set."""
    system.write_text('require_lock = true\nhub_timeout = 7\nmax_models = 3\nkeep_alive = "10m"\n')
    own.write_text("\ufeffhub_timeout = 2.5\n", encoding="utf-8")
    assert settings.REQUIRE_LOCK() is True and settings.REQUIRE_LOCK.read_text() == ("on", str(system))
    assert settings.HUB_TIMEOUT() == 2.5 and settings.HUB_TIMEOUT.read_text() == ("2.5", str(own))
    assert settings.MAX_MODELS() == 3 and settings.KEEP_ALIVE() == 600
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "off")
    monkeypatch.setenv("MEDVLLM_HUB_TIMEOUT", " ")
    assert settings.REQUIRE_LOCK() is False and settings.HUB_TIMEOUT() == 2.5
    assert settings.ALLOW_UNREGISTERED.read_text() == ("on", "default")


def test_a_file_that_has_changed_is_read_again(own: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that comes, one that goes, and that of another home."""
    texts = settings.Texts(settings.DTYPE)
    assert settings.DTYPE() == "auto"
    before = texts()
    own.write_text('dtype = "bfloat16"\n')
    assert settings.DTYPE() == "bfloat16" and texts() != before
    own.write_text('dtype = "float16"\n')
    assert settings.DTYPE() == "float16"
    monkeypatch.setenv("MEDVLLM_HOME", str(home / "other"))
    assert settings.DTYPE() == "auto"
    monkeypatch.setenv("MEDVLLM_HOME", str(own.parent))
    assert settings.DTYPE() == "float16"
    own.unlink()
    assert settings.DTYPE() == "auto"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("requirelock = true", "'requirelock', which is not a setting. Did you mean: 'require_lock'"),
        ("MEDVLLM_REQUIRE_LOCK = true", "Did you mean: 'require_lock'"),
        ('home = "/srv"', "'home', which is not a setting"),
        ("[require_lock]\non = 1", "'require_lock' in .* must be text, a number, true or false"),
        ("require_lock = [true]", "must be text, a number, true or false"),
        ('device = ""', "must be text, a number, true or false"),
        ("require_lock = ", "is not valid TOML"),
        ("require_lock = true\nrequire_lock = false", "is not valid TOML"),
        ("\x00", "is not valid TOML"),
    ],
)
def test_a_file_that_is_not_understood_is_an_error(own: Path, text: str, words: str) -> None:
    """Whatever is asked for: it may have been meant to forbid something."""
    own.write_text(text)
    for setting in (settings.DEVICE, settings.REQUIRE_LOCK):
        with pytest.raises(SettingError, match=words) as refused:
            setting()
        assert str(own) in str(refused.value)


@pytest.mark.parametrize("text", ['require_lock = "maybe"', "require_lock = 2", "require_lock = 1.0"])
def test_a_wrong_value_is_named_with_its_file(own: Path, text: str) -> None:
    """Only where it is used."""
    own.write_text(text)
    assert settings.DEVICE() == "cpu"
    with pytest.raises(SettingError, match=rf"Setting 'require_lock' in '{own}' is '.*', which is neither on nor off"):
        settings.REQUIRE_LOCK()


def test_a_file_has_whole_paths(own: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative one would mean another file in another working directory."""
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    for key, setting in (("lock_file", settings.LOCK_FILE), ("catalog", settings.CATALOG)):
        for relative in ("./x", "../x", *(("x",) if key == "lock" else ("sqlite:///x",))):
            own.write_text(f"{key} = {relative!r}")
            with pytest.raises(SettingError, match="needs an absolute one"):
                setting()
        for whole in ("~/x", "$HOME/x", str(home / "x")):
            own.write_text(f"{key} = {whole!r}")
            assert setting() == home / "x"


def test_a_file_that_cannot_be_read_is_an_error(own: Path) -> None:
    """It may forbid something; a folder in its place, say."""
    own.mkdir()
    with pytest.raises(SettingError, match="cannot be read: Is a directory"):
        settings.REQUIRE_LOCK()


def test_a_variable_is_compared_without_the_prefix_that_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a short name would be offered whatever else is short."""
    monkeypatch.setenv("MEDVLLM_DIRECT", "off")
    monkeypatch.setenv("MEDVLLM_BUDGET", "cpu=1GB")
    assert settings.find_unknown() == {"MEDVLLM_DIRECT": [], "MEDVLLM_BUDGET": ["MEDVLLM_MEMORY_BUDGET"]}


def test_the_air_gapped_profile_holds(system: Path, registry: ModelRegistry, tmp_path: Path) -> None:
    """Two lines in the machine's file: nothing loads that is neither locked nor registered."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    assert registry.load_model(str(folder))
    system.write_text("require_lock = true\nallow_unregistered = false\n")
    settings.ALLOW_UNREGISTERED()  # whoever asks for a setting first notices
    with pytest.raises(MedVLLMError, match="switched off"):
        registry.load_model(str(folder))
    registry.register("m", "generic", model_path=folder)
    with pytest.raises((SourceError, LoadError), match="lock"):
        registry.load_model("m")


def test_paths_expand_variables_and_refuse_quotes(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """As HF_HOME does; a unit file or .env passes both on as they stand."""
    for text in ("$HOME/mv", "${HOME}/mv", "~/mv"):
        monkeypatch.setenv("MEDVLLM_HOME", text)
        assert settings.HOME() == home / "mv"
    for text, words in {
        '"/srv/mv"': "in quotes",
        "'/srv/mv'": "in quotes",
        "$NOTHING_SUCH/mv": "NOTHING_SUCH is not set",
        "${NOTHING_SUCH}/mv": "NOTHING_SUCH is not set",
    }.items():
        for name in ("MEDVLLM_HOME", "MEDVLLM_LOCK_FILE"):
            monkeypatch.setenv(name, text)
            with pytest.raises(SettingError, match=words):
                (settings.HOME if name == "MEDVLLM_HOME" else settings.LOCK_FILE)()
            monkeypatch.setenv(name, str(home))


def test_the_advice_for_a_home_that_cannot_be_found_leads_out() -> None:
    """No HOME, and a user that the system does not know."""
    code = """
import os, sys
os.environ.pop("HOME"); os.environ.pop("MEDVLLM_HOME")
from medvllm import settings
os.setuid(54321)
try:
    settings.HOME()
except Exception as error:
    assert "export MEDVLLM_HOME=/" in str(error) and "~/.medvllm\\n" not in str(error), error
    os.environ["MEDVLLM_HOME"] = "/tmp/some-home"
    settings.HOME()
else:
    raise AssertionError
"""
    if os.geteuid() != 0:
        pytest.skip("only root can become a user that the system does not know")
    run = python(code)
    assert run.returncode == 0, run.stderr


def test_a_variable_that_is_no_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, by a command and by the library, with the setting that is most similar."""
    settings.warn_of_unknown.cache_clear()
    monkeypatch.setenv("MEDVLLM_REQUIRELOCK", "1")
    words = "MEDVLLM_REQUIRELOCK is not a setting of medvllm and has no effect. Did you mean: 'MEDVLLM_REQUIRE_LOCK'?"
    assert list(ModelRegistry()) == list(ModelRegistry())  # a listing is the first use
    assert caplog.messages == [words]
    settings.warn_of_unknown.cache_clear()
    assert command(monkeypatch, "list").code == 0
    assert caplog.messages == [words, words]


def test_commands_say_what_is_wrong_with_a_file(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but help, the version and doctor, which reports it."""
    own.write_text("requirelock = true")
    done = command(monkeypatch, "show", "biobert-base-cased-v1.2")
    assert done.code == 1 and "Did you mean: 'require_lock'" in done.err
    assert command(monkeypatch, "--version").code == 0


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_settings_file_that_cannot_be_read_is_not_passed_over(own: Path, kind: str) -> None:
    """A link whose disk is not mounted may hold that only locked models load; a pipe would be waited for."""
    own.symlink_to(own.parent / "share" / "config.toml") if kind == "link" else os.mkfifo(own)
    with pytest.raises(SettingError, match=rf"{own}' cannot be read: (No such file|it is not a file)"):
        settings.REQUIRE_LOCK()


@pytest.mark.parametrize(
    ("budget", "wrong"),
    [
        ("8GB", "'8GB' is not DEVICE=SIZE"),
        ("gpu=8GB", "'gpu' is not a device"),
        ("cpu=1GB,mps=8XB", "'8XB' is not a size"),
    ],
)
def test_a_wrong_budget_names_the_wrong_part(monkeypatch: pytest.MonkeyPatch, budget: str, wrong: str) -> None:
    """As it was typed."""
    monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", budget)
    with pytest.raises(SettingError, match=f"is '{budget}', which is not a budget such as .*: {wrong}\\.\n"):
        settings.MEMORY_BUDGET()
