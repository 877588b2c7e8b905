"""What a process takes from itself, for good, before it opens a file that nobody vouches for."""

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
_SPARE_BYTES = 1 << 30  # memory beside what is loaded already and what the weights account for
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Events of Python's audit, by how they begin: those that are never due, and those once everything is imported.
_NEVER = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
_SEALED = (
    *("ctypes.dlopen", "shutil.", "os.kill", "os.putenv", "os.chmod", "os.chown", "os.mkdir", "os.rmdir"),
    *("os.remove", "os.rename", "os.link", "os.symlink", "os.truncate"),
)


def isolate() -> Network:
    """Take the network and other programs from this process; return what keeps the network away.

    Called before another thread starts, so before torch is imported: a process of several enters no user namespace.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    network: Network = "namespace" if sys.platform == "linux" and _enter_namespaces() else "audit hook"
    sys.addaudithook(_refuse_programs)
    return network


def seal(target: Path, weight_bytes: int, reads: Sequence[Path] = ()) -> list[str]:
    """Bound memory, time and files by the bytes of the weights, and refuse every change outside of `target`.

    Where the kernel can, it refuses native code the same, and all reading but of `reads` and of libraries. Called once
    everything that is needed is imported. Returns what of the kernel's is in force.
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
    """Have the kernel confine this process's files and calls; return the names of what it has for that."""
    own = Path(__file__).resolve().parents[2]  # the package medvllm
    libraries = {Path(os.path.realpath(sys.prefix)), Path(os.path.realpath(sys.base_prefix)), own}
    libraries |= {Path(os.path.realpath(path)) for path in sys.path if Path(path).name.endswith("-packages")}
    libraries |= {Path(path) for path in ("/usr/lib", "/lib", "/lib64", "/proc/self", "/dev/null", "/dev/urandom")}
    files = [Path(os.path.realpath(path)) for path in reads]
    is_landlocked = confine_files(files, {path for path in libraries if path != Path("/")}, target)
    kinds = {"landlock": is_landlocked, "seccomp": confine_calls()}
    return [kind for kind, is_in_force in kinds.items() if is_in_force]


def cpu_seconds(weight_bytes: int) -> int:
    """Return the seconds that weights of that size may take: many times what they do."""
    return 60 + weight_bytes // 4_000_000


def converted_bytes(weight_bytes: int) -> int:
    """Return the bytes that weights of that size may become: tied tensors are written once for each name."""
    return (64 << 20) + 4 * weight_bytes


def _enter_namespaces() -> bool:
    """Enter a network of this process's own, without as much as a loopback; return whether the kernel permits it."""
    # Should memory run out, this process goes, and not the one that waits for it.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    libc = ctypes.CDLL(None)
    entered: int = libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return entered == 0


def _limit(kind: int, value: int, *, more: int = 0) -> None:
    """Lower a limit, never beyond the one that is set already; `more` may be used after the first warning."""
    hard = resource.getrlimit(kind)[1]
    soft, last = (x if hard == resource.RLIM_INFINITY else min(x, hard) for x in (value, value + more))
    resource.setrlimit(kind, (soft, last))


def _refuse_programs(event: str, _: object) -> None:
    if event.startswith(_NEVER):
        raise PermissionError(f"a confined process may not use {event}")
