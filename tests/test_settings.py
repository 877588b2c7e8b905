"""The settings: read when used, refused by name."""

from pathlib import Path

import pytest

from medvllm import settings
from medvllm.errors import SettingError


def test_a_setting_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """No restart, and nothing read at import."""
    assert settings.DIRECT() is True
    monkeypatch.setenv("MEDVLLM_DIRECT", "off")
    assert settings.DIRECT() is False
    monkeypatch.setenv("MEDVLLM_HOME", "~/elsewhere")
    assert settings.HOME() == Path.home() / "elsewhere"


@pytest.mark.parametrize(("name", "value"), [("DIRECT", "maybe"), ("HUB_TIMEOUT", "soon"), ("HUB_TIMEOUT", "-1")])
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
