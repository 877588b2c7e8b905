"""What the CPU of this machine can compute."""

import hashlib
import platform
from functools import cache
from pathlib import Path

_X86 = "x86_64", "AMD64", "i686"


@cache
def cpu_capability() -> str:
    """Return a name for what this CPU can compute: the architecture and a digest of its flags."""
    digest = hashlib.sha256(" ".join(sorted(_read_flags())).encode()).hexdigest()[:12]
    return f"{platform.machine()}-{digest}"


def cpu_flags() -> str:
    """Return what of this CPU decides how fast models run: the flags for vectors and for matrices."""
    known = [flag for flag in _read_flags() if flag.startswith(("avx", "amx", "sve", "asimd"))]
    return " ".join([platform.machine(), *sorted(known)])


def saturates_int8() -> bool:
    """Return whether the CPU may cut off the sum of two products of bytes: an x86 one without instructions for it."""
    return platform.machine() in _X86 and not any("vnni" in flag or flag == "amx_int8" for flag in _read_flags())


def _read_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    return next((line.partition(":")[2] for line in lines if line.startswith(("flags", "Features"))), "").split()
