"""`medvllm doctor`: checks of the installation, the settings, memory, disk and network."""

import os
import platform
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import typer

from medvllm import settings
from medvllm.cli.output import print_json, print_table
from medvllm.cli.parameters import Json
from medvllm.errors import HubUnreachableError, MedVLLMError
from medvllm.local_files import hub_cache
from medvllm.model_cache import default_cpu_budget
from medvllm.model_registry import registry
from medvllm.near_names import did_you_mean
from medvllm.options import LoadOptions
from medvllm.quantities import shown_size
from medvllm.receipt import library_versions

_MAX_NAMES = 8  # of a lock's models
_THE = {"environment": "the environment"}


@dataclass(frozen=True)
class Finding:
    """The result of one check. A finding that is `wrong` makes the command fail."""

    what: str
    name: str
    value: str
    state: Literal["ok", "wrong"] = "ok"


def doctor(as_json: Json = False) -> None:
    """Check versions, devices, memory, disk, lock, catalogue, Hub and settings. Exit code 1 if something is wrong."""
    found = [finding for what, check in _CHECKS.items() for finding in _run_check(what, check)]
    is_well = all(finding.state == "ok" for finding in found)
    if as_json:
        print_json({"ok": is_well, "checks": [vars(finding) for finding in found]})
    else:
        print_table(
            ("WHAT", "NAME", "STATE", "VALUE"),
            [(f.what, f.name, f.state, " ".join(f.value.split("\n"))) for f in found],
        )
    if not is_well:
        raise typer.Exit(1)


def _run_check(what: str, check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Return what a check finds. Its failure is a finding, too."""
    found: list[Finding] = []
    try:
        found.extend(check())
    except MedVLLMError as error:
        found.append(Finding(what, "error", str(error), "wrong"))
    except Exception as error:  # a report is more useful than a traceback
        found.append(Finding(what, "error", f"{type(error).__name__}: {error}", "wrong"))
    return found


def _versions() -> Iterator[Finding]:
    for name, version in {"python": platform.python_version(), **library_versions()}.items():
        yield Finding("version", name, str(version))


def _devices() -> Iterator[Finding]:
    if find_spec("torch"):
        from medvllm.loading.device import list_devices

        for name, device in list_devices().items():
            yield Finding("device", name, device)


def _memory() -> Iterator[Finding]:
    free = next((line.split()[1] for line in _meminfo() if line.startswith("MemAvailable")), None)
    if free is not None:
        yield Finding("memory", "free", shown_size(int(free) * 1024))
    stated = settings.MEMORY_BUDGET()
    for device in sorted({"cpu", *stated, *_gpus()}):
        budget = stated.get(device)
        if budget is not None:
            yield Finding("memory", f"budget of {device}", f"{shown_size(budget)}, from {settings.MEMORY_BUDGET.name}")
        elif device == "cpu":
            yield Finding(
                "memory", "budget of cpu", f"{shown_size(default_cpu_budget())}, three quarters of the machine's memory"
            )
        else:
            from medvllm.loading.device import default_budget

            most = default_budget(device)
            yield Finding("memory", f"budget of {device}", "no limit" if most is None else shown_size(most))


def _gpus() -> list[str]:
    if not find_spec("torch"):
        return []
    from medvllm.loading.device import list_devices

    return [name for name in list_devices() if name != "cpu"]


def _meminfo() -> list[str]:
    try:
        return Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return []


def _folders() -> Iterator[Finding]:
    home = settings.HOME()
    yield from _folder(settings.HOME.name, home, parts=True)
    yield from _folder("Hub cache", hub_cache(), parts=False)


def _folder(name: str, path: Path, *, parts: bool) -> Iterator[Finding]:
    """Yield where a folder is, who can write to it, what it contains, and how much space its disk has."""
    if os.path.exists(path) and not os.path.isdir(path):
        yield Finding("disk", name, f"{path} is a file, not a folder", "wrong")
        return
    there = next(folder for folder in (path, *path.parents) if os.path.exists(folder))
    if path != there:
        is_writable = os.access(there, os.W_OK)
        value = f"{path} does not exist yet" if is_writable else f"{path} cannot be created: {there} is read-only"
        yield Finding("disk", name, value, "ok" if is_writable else "wrong")
    else:
        mode = stat.S_IMODE(path.stat().st_mode)
        writers = (
            "everybody can write"
            if mode & 0o002
            else "its group can write"
            if mode & 0o020
            else "only its user can write"
        )
        own = "" if os.access(path, os.W_OK) else ", read-only here"
        yield Finding("disk", name, f"{path} ({writers}{own})", "wrong" if mode & 0o002 else "ok")
        held = (
            {each.name: _size(each) for each in sorted(path.iterdir()) if each.is_dir()} if parts else {"": _size(path)}
        )
        for part, size in held.items():
            if size:
                yield Finding("disk", f"{name} {part}".strip() + " contains", shown_size(size))
    yield Finding("disk", f"{name} free", shown_size(shutil.disk_usage(there).free))


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files. The targets of links do not count."""
    total = 0
    for root, _, files in os.walk(folder):
        for file in files:
            try:
                total += os.lstat(os.path.join(root, file)).st_size
            except OSError:
                continue
    return total


def _lock() -> Iterator[Finding]:
    from medvllm.sources import Lock

    origin = settings.LOCK_FILE.read_text()[1]
    where = "the default path" if origin == "default" else f"{settings.LOCK_FILE.name} in {_THE.get(origin, origin)}"
    is_required = settings.REQUIRE_LOCK()
    lock = Lock.current()
    if not os.path.isfile(lock.file):  # Path.is_file fails if the folder is not searchable
        state: Literal["ok", "wrong"] = "wrong" if is_required or origin != "default" else "ok"
        yield Finding("lock", "file", f"none at {lock.file} ({where})", state)
    else:
        yield Finding("lock", "file", f"{lock.file} ({where})")
        names = sorted(lock.models)
        more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        yield Finding("lock", "covers", f"{', '.join(names[:_MAX_NAMES])}{more}" if names else "no model")
    rule = "only locked models load" if is_required else "models that are not locked load, too"
    yield Finding("lock", "is required", f"{'yes' if is_required else 'no'}: {rule}")


def _catalogue() -> Iterator[Finding]:
    try:
        count = (
            f"stored names: {len(registry.catalog.names()):,}" if registry.catalog.is_there() else "does not exist yet"
        )
        yield Finding("catalogue", registry.catalog.where, count)
    except MedVLLMError as error:
        yield Finding("catalogue", registry.catalog.where, str(error), "wrong")


def _network() -> Iterator[Finding]:
    if not find_spec("huggingface_hub"):
        return
    from huggingface_hub import constants

    from medvllm.sources import hub

    where = hub.endpoint()
    if constants.HF_HUB_OFFLINE:
        yield Finding("network", "Hub", f"offline: HF_HUB_OFFLINE is set, so {where} is not used")
        return
    try:
        yield Finding("network", "Hub", f"{where} answers in {hub.check_reachable() * 1000:.0f} ms")
    except MedVLLMError as error:  # including a wrong MEDVLLM_HUB_TIMEOUT
        is_away = isinstance(error, HubUnreachableError)
        advice = "\nOn a machine without a network, set: export HF_HUB_OFFLINE=1" if is_away else ""
        yield Finding("network", "Hub", f"{settings.without_password(str(error))}{advice}", "wrong")


def _settings() -> Iterator[Finding]:
    try:
        for file in settings.files():
            yield Finding("setting", "file", f"{file}{'' if os.path.exists(file) else ' (does not exist)'}")
    except (MedVLLMError, OSError):
        pass  # each setting reports the error
    found = [_setting(setting) for setting in settings.SETTINGS]
    times = Counter(each.value for each in found if each.state == "wrong")
    shared = {value for value in times if times[value] > 1}  # an error of a settings file or of its folder
    yield from (Finding("setting", "file", value, "wrong") for value in sorted(shared - {found[0].value}))
    yield from (each for each in found if each.value not in shared or each is found[0])
    for name, near in settings.find_unknown().items():
        yield Finding("setting", name, f"is not a setting of medvllm.{did_you_mean(near)}", "wrong")


def _setting(setting: settings.Setting[Any]) -> Finding:
    try:
        text, origin = setting.read_text()
        value = setting()
        if setting is settings.DEVICE or setting is settings.DTYPE:
            LoadOptions.from_kwargs({"device" if setting is settings.DEVICE else "dtype": text})
        shown = str(value) if isinstance(value, Path) else setting.shown(text)
        return Finding("setting", setting.name, f"{shown} ({origin})")
    except MedVLLMError as error:
        return Finding("setting", setting.name, str(error), "wrong")


_CHECKS: dict[str, Callable[[], Iterator[Finding]]] = {
    "version": _versions,
    "device": _devices,
    "memory": _memory,
    "disk": _folders,
    "lock": _lock,
    "catalogue": _catalogue,
    "network": _network,
    "setting": _settings,
}
