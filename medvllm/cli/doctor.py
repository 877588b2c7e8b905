"""`medvllm doctor`: what is installed, which devices there are, where files go, what can be reached."""

import os
import platform
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medvllm import settings
from medvllm.cli.models import Json
from medvllm.cli.output import print_json, print_table
from medvllm.errors import MedVLLMError, nearest
from medvllm.options import LoadOptions
from medvllm.receipt import library_versions
from medvllm.registry import registry


def doctor(as_json: Json = False) -> None:
    """Check this installation: versions, devices, folders, and whether the Hub answers."""
    report = _report()
    if as_json:
        print_json(report)
        return
    rows = ((section, key, value) for section, facts in report.items() for key, value in facts.items())
    print_table(("WHAT", "NAME", "STATE"), rows)


def _report() -> dict[str, dict[str, Any]]:
    installed = library_versions()
    report: dict[str, dict[str, Any]] = {"version": {"python": platform.python_version(), **installed}}
    if find_spec("torch"):
        from medvllm.loading.device import available

        report["device"] = dict(available())
    if find_spec("huggingface_hub"):
        from huggingface_hub import constants

        report["folder"] = {
            "Hub cache (HF_HUB_CACHE)": _folder(Path(constants.HF_HUB_CACHE)),
            f"medvllm ({settings.HOME.name})": _folder(settings.HOME()),
        }
        report["network"] = {"Hub": _hub(bool(constants.HF_HUB_OFFLINE))}
    report["catalogue"] = {registry.catalog.where: _catalogue()}
    report["setting"] = {setting.name: _setting(setting) for setting in settings.SETTINGS}
    for name in sorted(set(os.environ) - set(report["setting"])):
        if name.startswith("MEDVLLM_"):
            near = nearest(name, report["setting"])
            report["setting"][name] = f"not a setting of medvllm{f'; nearest: {near[0]}' if near else ''}"
    return report


def _setting(setting: settings.Setting[Any]) -> str:
    try:
        if setting is settings.DEVICE or setting is settings.DTYPE:
            LoadOptions.stated({"device" if setting is settings.DEVICE else "dtype": setting()})
        return settings.without_password(str(setting()))
    except MedVLLMError as error:
        return f"wrong: {error}"


def _catalogue() -> str:
    try:
        return f"stored names: {len(registry.catalog.names()):,}" if registry.catalog.is_there() else "not there yet"
    except MedVLLMError as error:
        return str(error)


def _folder(path: Path) -> str:
    if not path.exists():
        return f"{path} (not there yet)"
    return f"{path} ({'writable' if os.access(path, os.W_OK) else 'read-only'})"


def _hub(offline: bool) -> str:
    from medvllm.sources import hub

    if offline:
        return f"{hub.endpoint()} is not asked: HF_HUB_OFFLINE is set"
    try:
        return f"{hub.endpoint()} answers in {hub.check_reachable() * 1000:.0f} ms"
    except MedVLLMError as error:  # also a wrong MEDVLLM_HUB_TIMEOUT
        return str(error)
