"""Confinement by the kernel, which holds for native code too: Landlock for files, and seccomp for system calls.

Neither can be undone. The rest of the confinement does not depend on them, as some kernels have neither.
"""

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterable
from pathlib import Path

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
# Write, remove a folder or file, create a folder or file.
_CHANGE = (1 << 1) | (1 << 4) | (1 << 5) | (1 << 7) | (1 << 8)
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # version of Landlock -> the number of its rights for files
_TRUNCATE = 1 << 14
_TCP = 0b11  # bind and connect
_SCOPES = 0b11  # abstract Unix sockets and signals of other processes

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_SECCOMP, _SET_FILTER, _ALL_THREADS = {"x86_64": 317, "aarch64": 277}, 1, 1
# The numbers of system calls for sockets, programs, other processes, permissions, mounts, keys and shared memory.
_REFUSED = {
    "x86_64": (
        *(41, 42, 43, 44, 46, 49, 50, 53, 288),  # sockets
        *(57, 58, 59, 322),  # fork, vfork, execve, execveat
        *(101, 129, 200, 297, 310, 311),  # ptrace, signals with data, tkill, another's memory
        *(90, 91, 92, 93, 94, 132, 235, 260, 261, 268, 280, 188, 189, 190, 197, 198, 199),  # permissions, times
        *(133, 259, 155, 161, 165, 166, 167, 169, 272, 304, 308),  # devices, mounts, namespaces, handles
        *(175, 176, 313, 320, 298, 300, 321, 323),  # modules, tracing, userfaultfd
        *(29, 30, 64, 68, 240, 248, 249, 250),  # System V and POSIX queues, keys
        *(141, 142, 144, 203, 251, 256, 279, 314),  # another's priority, affinity and pages
    ),
    "aarch64": (
        *(198, 199, 200, 201, 202, 203, 206, 211, 242),
        *(221, 281),
        *(117, 138, 130, 240, 270, 271),
        *(52, 53, 54, 55, 88, 5, 6, 7, 14, 15, 16),
        *(33, 41, 51, 40, 39, 224, 142, 97, 265, 268),
        *(105, 106, 273, 294, 241, 262, 280, 282),
        *(194, 196, 190, 186, 180, 217, 218, 219),
        *(140, 118, 119, 122, 30, 238, 239, 274),
    ),
}
# io_uring, pidfd, the newer calls for mounts, and fchmodat2. Their numbers are the same on all architectures.
_REFUSED_EVERYWHERE = (424, 425, 428, 429, 430, 432, 434, 438, 440, 442, 452)
_OWN_PROCESS = {"x86_64": (62, 234), "aarch64": (129, 131)}  # kill and tgkill: only to itself, as abort() does
_LIMITS, _CLONE, _CLONE3, _CLONE_THREAD = {"x86_64": 302, "aarch64": 261}, {"x86_64": 56, "aarch64": 220}, 435, 0x10000
_X32 = 0x40000000  # a second set of numbers on x86_64


def confine_files(reads: Iterable[Path], libraries: Iterable[Path], writes: Path) -> bool:
    """Restrict this process to some files to read, its libraries, and one folder to write to.

    Newer kernels also forbid TCP connections, abstract Unix sockets, and signals to other processes.

    Args:
        reads: The files that may be read.
        libraries: The files and folders of the libraries.
        writes: The folder that may be written.

    Returns:
        Whether the kernel supports it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    handled = (1 << _RIGHTS.get(version, 16)) - 1
    attributes = struct.pack("=QQQ", handled, _TCP if version >= 4 else 0, _SCOPES if version >= 6 else 0)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        return False
    change = _CHANGE | (_TRUNCATE if version >= 3 else 0)
    rules = {
        **dict.fromkeys(libraries, _READ_FILE | _READ_DIR),
        **dict.fromkeys(reads, _READ_FILE),
        writes: _READ_FILE | _READ_DIR | change,
    }
    try:
        for path, rights in rules.items():
            try:
                handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
            except FileNotFoundError:
                continue
            try:
                allowed = rights if path.is_dir() else rights & ~_READ_DIR
                if libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", allowed, handle), 0):
                    return False
            finally:
                os.close(handle)
        return bool(libc.syscall(_RESTRICT_SELF, ruleset, 0) == 0)
    finally:
        os.close(ruleset)


def confine_calls() -> bool:
    """Forbid system calls for sockets, programs, forks, signals to others and the like, in all threads.

    Returns:
        Whether the kernel supports it.
    """
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        return False
    program = b"".join(struct.pack("=HBBI", *step) for step in _program(machine))
    buffer = ctypes.create_string_buffer(program, len(program))
    filters = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(_SECCOMP[machine], _SET_FILTER, _ALL_THREADS, filters) == 0)


def _program(machine: str) -> list[tuple[int, int, int, int]]:
    """Return a seccomp filter. Each step has a code, the jumps if true and if false, and a value."""
    load, equal, at_least, any_bit, end = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, refuse, absent = 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    argument = 16  # the offset of the low half of the first argument
    steps = [(load, 0, 0, 4), (equal, 1, 0, _ARCHITECTURES[machine]), (end, 0, 0, refuse), (load, 0, 0, 0)]
    if machine == "x86_64":
        steps += [(at_least, 0, 1, _X32), (end, 0, 0, refuse)]
    for number in (*_REFUSED[machine], *_REFUSED_EVERYWHERE):
        steps += [(equal, 0, 1, number), (end, 0, 0, refuse)]
    steps += [
        (equal, 0, 1, _CLONE3),
        (end, 0, 0, absent),
    ]  # the C library then uses clone, whose flags a filter can read
    for number in _OWN_PROCESS[machine]:
        steps += [(equal, 0, 4, number), (load, 0, 0, argument), (equal, 1, 0, os.getpid())]
        steps += [(end, 0, 0, refuse), (end, 0, 0, allow)]
    steps += [(equal, 0, 5, _LIMITS[machine]), (load, 0, 0, argument), (equal, 2, 0, 0), (equal, 1, 0, os.getpid())]
    steps += [(end, 0, 0, refuse), (end, 0, 0, allow)]
    steps += [(equal, 0, 3, _CLONE[machine]), (load, 0, 0, argument), (any_bit, 1, 0, _CLONE_THREAD)]
    return [*steps, (end, 0, 0, refuse), (end, 0, 0, allow)]
