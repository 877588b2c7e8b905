"""Confinement of the converter: a process gives up the network, other programs and most files before it opens a pickle.

None of this can be undone.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from medvllm.sources.conversion.kernel import confine_calls, confine_files

Network = Literal["namespace", "audit hook"]

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_SPARE_BYTES = 1 << 30  # of memory, in addition to what is loaded already and what the weights account for
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Prefixes of Python's audit events: those that are never allowed, and those that are not once everything is imported.
_NEVER = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
_SEALED = (
    *("ctypes.dlopen", "shutil.", "os.kill", "os.putenv", "os.chmod", "os.chown", "os.mkdir", "os.rmdir"),
    *("os.remove", "os.rename", "os.link", "os.symlink", "os.truncate"),
)


def isolate() -> Network:
    """Give up the network and other programs. Return what blocks the network.

    Call it before torch is imported, because a process with several threads cannot enter a user namespace.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    network: Network = "namespace" if sys.platform == "linux" and _enter_namespaces() else "audit hook"
    sys.addaudithook(_refuse_programs)
    return network


def seal(target: Path, weight_bytes: int, reads: Sequence[Path] = ()) -> list[str]:
    """Limit memory, time and file sizes, and forbid every change outside of one folder.

    Call it once everything is imported. A kernel with Landlock and seccomp also stops native code, and forbids to read
    anything but `reads` and the libraries.

    Args:
        target: The only folder that may be written.
        weight_bytes: The size of the weights, from which the limits follow.
        reads: The files that may be read.

    Returns:
        The names of the kernel's mechanisms that are active.
    """
    kernel = _confine(target, reads) if sys.platform == "linux" else []
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + _SPARE_BYTES + 4 * weight_bytes)
        _limit(resource.RLIMIT_NPROC, 0)
    _limit(resource.RLIMIT_CPU, cpu_seconds(weight_bytes), more=5)  # SIGXCPU, which says why, before SIGKILL
    _limit(resource.RLIMIT_FSIZE, converted_bytes(weight_bytes) + _SPARE_BYTES)
    inside = os.path.realpath(target)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_SEALED):
            raise PermissionError(f"a confined process may not use {event}")
        if event == "open" and arguments[2] & _WRITING and not isinstance(arguments[0], int):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if os.path.commonpath((path, inside)) != inside:
                raise PermissionError("a confined process may not write outside of its folder")

    sys.addaudithook(refuse)
    return kernel


def _confine(target: Path, reads: Sequence[Path]) -> list[str]:
    """Let the kernel confine files and system calls. Return the names of its mechanisms that are active."""
    own = Path(__file__).resolve().parents[2]  # the package medvllm
    libraries = {Path(os.path.realpath(sys.prefix)), Path(os.path.realpath(sys.base_prefix)), own}
    libraries |= {Path(os.path.realpath(path)) for path in sys.path if Path(path).name.endswith("-packages")}
    libraries |= {Path(path) for path in ("/usr/lib", "/lib", "/lib64", "/proc/self", "/dev/null", "/dev/urandom")}
    files = [Path(os.path.realpath(path)) for path in reads]
    is_landlocked = confine_files(files, {path for path in libraries if path != Path("/")}, target)
    kinds = {"landlock": is_landlocked, "seccomp": confine_calls()}
    return [kind for kind, is_in_force in kinds.items() if is_in_force]


def cpu_seconds(weight_bytes: int) -> int:
    """Return the seconds that weights of this size may take, which is many times what they need."""
    return 60 + weight_bytes // 4_000_000


def converted_bytes(weight_bytes: int) -> int:
    """Return the size that weights of this size may grow to. Tied tensors are written once for each name."""
    return (64 << 20) + 4 * weight_bytes


def _enter_namespaces() -> bool:
    """Enter a network namespace without any interface. Return whether the kernel permits it."""
    # If memory runs out, the kernel should end this process, not the one that waits for it.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    libc = ctypes.CDLL(None)
    entered: int = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return entered == 0


def _limit(kind: int, value: int, *, more: int = 0) -> None:
    """Lower a limit, unless it is lower already. The hard limit is `more` above the soft one."""
    hard = resource.getrlimit(kind)[1]
    soft, last = (x if hard == resource.RLIM_INFINITY else min(x, hard) for x in (value, value + more))
    resource.setrlimit(kind, (soft, last))


def _refuse_programs(event: str, _: object) -> None:
    if event.startswith(_NEVER):
        raise PermissionError(f"a confined process may not use {event}")
