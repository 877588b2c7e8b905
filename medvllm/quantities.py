"""Sizes, budgets and durations as people write them."""

import math
import re

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 1e3,
    "mb": 1e6,
    "gb": 1e9,
    "tb": 1e12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
# Patterns are texts, not compiled, so that importing this module is fast. `re` compiles and caches them.
_SIZE = r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)"
_TIME = r"(\d+(?:\.\d+)?)(ms|s|m|h)"
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
PINNED = math.inf
LONGEST_S = 100 * 365 * 24 * 3600.0  # that a model which is not pinned stays: until its memory is needed


class MinimumStay(float):
    """Seconds that a model stays at least: they never shorten the time that another caller has set."""


def stay_after(present: float | None, asked: float | None) -> float | None:
    """Return how many seconds an idle model stays after a call has asked for some.

    Args:
        present: The seconds until now; None for until its memory is needed, which is the longest but for pinned.
        asked: Those that the call asks for; None to leave them as they are.
    """
    if asked is None:
        return present
    if isinstance(asked, MinimumStay) and (present is None or present >= asked):
        return present
    return asked


def parse_size(text: str) -> int:
    """Return the number of bytes for a size such as "8GB" or "512 MiB".

    Raises:
        ValueError: The text is not a size.
    """
    match = re.fullmatch(_SIZE, text.strip().lower(), re.ASCII)
    if match is None or (match[2] not in _UNITS and f"{match[2]}b" not in _UNITS):
        raise ValueError("not a size such as 8GB")
    unit = match[2] if match[2] in _UNITS else f"{match[2]}b"
    return int(float(match[1]) * _UNITS[unit])


def shown_size(size_bytes: int) -> str:
    """Return a number of bytes as text, such as "1.52 GB", with at least three digits. `parse_size` reads it."""
    size, units = float(size_bytes), ("B", "KB", "MB", "GB", "TB")
    power = min(int(math.log10(size) // 3), len(units) - 1) if size >= 1 else 0
    scaled = size / 1000**power
    if round(scaled) >= 1000 and power + 1 < len(units):
        scaled, power = scaled / 1000, power + 1
    digits = 0 if power == 0 else 2 if power > 2 or scaled < 10 else 1 if scaled < 100 else 0
    return f"{scaled:.{digits}f} {units[power]}"


def parse_budget(text: str) -> dict[str, int]:
    """Return the bytes for each device in a text such as "cpu=8GB,cuda:0=20GB". "auto" gives an empty dict.

    Raises:
        ValueError: The text does not have this form.
    """
    budgets: dict[str, int] = {}
    form = "not a budget such as cpu=8GB,cuda:0=20GB"
    for part in text.split(",") if text.strip().lower() != "auto" else ():
        typed, equals, size = (piece.strip() for piece in part.partition("="))
        device = typed.lower()
        kind, _, index = device.partition(":")
        if not equals:
            raise ValueError(f"{form}: {typed[:40]!r} is not DEVICE=SIZE")
        if kind not in ("cpu", "cuda", "mps", "xpu") or not (index.isdecimal() or device == kind):
            raise ValueError(f"{form}: {typed[:40]!r} is not a device")
        try:
            budgets[f"{kind}:0" if device in ("cuda", "xpu") else device] = parse_size(size)
        except ValueError:
            raise ValueError(f"{form}: {size[:40]!r} is not a size") from None
    return budgets


def parse_duration(value: object) -> float:
    """Return the seconds of a duration, as Ollama writes `keep_alive`.

    Args:
        value: "10m", "1h30m", or seconds as a number or text. A negative duration means forever: PINNED.

    Raises:
        ValueError: The value is not a duration.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        seconds = float(value)
    else:
        text = str(value).strip().lower()
        parts = re.findall(_TIME, text.removeprefix("-"), re.ASCII)
        if parts and "".join(map("".join, parts)) == text.removeprefix("-"):
            seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts) * (-1 if text[0] == "-" else 1)
        else:
            try:
                seconds = float(text)
            except ValueError:
                raise ValueError("not a duration such as 10m") from None
    if math.isnan(seconds):
        raise ValueError("not a duration such as 10m")
    return PINNED if seconds < 0 else seconds
