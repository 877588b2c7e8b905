"""The settings that workers on other machines share with the process that starts them."""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from medvllm import settings
from medvllm.settings_files import PREFIX
from medvllm.sources.lock_path import lock_path

_OTHERS = ("HF_", "HUGGINGFACE_", "OTEL_", "TRANSFORMERS_")  # variables of the libraries that a worker uses


def hand_over() -> dict[str, str]:
    """Return the variables for workers. Paths are absolute, because workers have another working directory.

    Raises:
        SettingError: A setting cannot be used.
    """
    found = {name: text for name, text in os.environ.items() if name.startswith(_OTHERS)}
    for setting in settings.SETTINGS:
        text, origin = setting.read_text()
        if origin == "environment":
            value = setting()
            found[setting.name] = str(value) if isinstance(value, Path) else text
    return found | {settings.HOME.name: str(settings.HOME()), settings.LOCK_FILE.name: str(lock_path())}


def take_over(given: Mapping[str, str], environment: MutableMapping[str, str]) -> None:
    """Put the variables of `hand_over` in the place of an environment's own.

    Args:
        given: The variables.
        environment: Where they go.
    """
    for name in [name for name in environment if name.startswith(PREFIX)]:
        del environment[name]
    environment.update(given)
