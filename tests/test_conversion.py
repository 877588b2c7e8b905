"""Pickled weights become safetensors once, bit for bit, in a process that can reach nothing; or an error of ours."""

import contextlib
import ctypes
import hashlib
import itertools
import json
import logging
import os
import pickle
import platform
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import IncompleteSnapshotError, SourceError, UnsafeWeightsError
from medvllm.sources.conversion import as_safetensors, converter
from medvllm.sources.folder import resolve_snapshot
from tests.support import tiny
from tests.support.conversions import convert
from tests.support.spread import spread

BASE = torch.arange(100.0).reshape(10, 10)
NANS = torch.tensor([0x7FC00001, 0x7F800001, -1, -(2**31), 0x7F800000], dtype=torch.int32).view(torch.float32)

STATES: dict[str, dict[str, torch.Tensor]] = {
    "nan payloads": {"single": NANS, "half": torch.tensor([0x7E01, -1], dtype=torch.int16).view(torch.float16)},
    "layouts": {"transposed": BASE.t(), "strided": BASE[2:4, ::2], "expanded": BASE[0].expand(3, 10)},
    "small": {"empty": torch.zeros(0, 3), "none": torch.zeros(0), "scalar": torch.tensor(3.0)},
    "tied": {"a": BASE, "b": BASE, "row": BASE[1], "tail": BASE[5:]},
    "parameters": {"a": torch.nn.Parameter(BASE)},
    "dtypes": {
        str(dtype): torch.tensor([0, 1, 1]).to(dtype)
        for dtype in (
            *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
            *(torch.float16, torch.bfloat16, torch.float64, torch.complex64),
        )
    },
    "conjugated": {
        "a": torch.tensor([1j, 2 + 1j], dtype=torch.complex64).conj(),
        "b": torch.tensor([1j, 2j]).conj().imag,
        "c": torch.tensor([1j]).conj().imag,
    },
}
# Older pickles cannot hold these.
NEW_STATES = {
    "new dtypes": {
        "unsigned": torch.tensor([65535], dtype=torch.uint16),
        "float8": torch.tensor([0.5]).to(torch.float8_e4m3fn),
    }
}
UNFIT: dict[str, tuple[Any, str]] = {
    "nested": ({"model": {"a": BASE}}, "its 'model' is a dict, not a tensor"),
    "checkpoint": ({"state_dict": {"a": BASE}, "epoch": 3}, "its 'state_dict' is a dict, not a tensor"),
    "listed": ({"a": BASE, "epoch": [3]}, "its 'epoch' is a list, not a tensor"),
    "nothing": ({"bias": None, "epoch": 3}, "it holds an empty dict"),
    "list": ([BASE], "it holds a list"),
    "tensor": (BASE, "it holds a Tensor"),
    "empty": ({}, "it holds an empty dict"),
    "numbered": ({3: BASE}, "one of its names is a int"),
    "sparse": ({"a": BASE.to_sparse()}, r"its 'a' is a tensor that safetensors cannot hold \(torch.sparse_coo\)"),
    "meta": ({"a": torch.zeros(3, device="meta")}, r"cannot hold \(without data\)"),
    "complex128": ({"a": torch.zeros(2, dtype=torch.complex128)}, "safetensors has no dtype for torch.complex128"),
}

PICKLE = ["pytorch_model.bin"]


def _folder(path: Path, state: Any, *, legacy: bool = False) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text("{}")
    torch.save(state, path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    return path


def _convert(folder: Path) -> Path:
    """Convert a folder as a load does, in a process of its own; return the folder with the result."""
    made = as_safetensors(resolve_snapshot(folder, None)).converted_at
    assert made is not None
    return made


def _convert_here(folder: Path) -> Path:
    """Convert a folder in this process; return the folder with the result, which a load takes for its own."""
    made = as_safetensors(resolve_snapshot(convert(folder), None)).converted_at
    assert made is not None
    return made


def _same(stored: dict[str, torch.Tensor], original: dict[str, torch.Tensor]) -> bool:
    assert stored.keys() == original.keys()
    return all(
        stored[name].dtype == tensor.dtype
        and stored[name].shape == tensor.shape
        and _bytes(stored[name]) == _bytes(tensor)
        for name, tensor in original.items()
    )


def _bytes(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return bytes(plain.reshape(-1).view(torch.uint8).tolist())


def _leftovers(home: Path) -> list[str]:
    """Return what a failed conversion left: nothing but locks and the digest cache is right."""
    return [f.name for f in (home / "medvllm").rglob("*") if f.is_file() and f.suffix not in (".db", ".lock")]


# torch cannot write or read the newer dtypes in its older format.
@pytest.mark.parametrize(
    ("name", "legacy"), [*itertools.product([*STATES, *NEW_STATES], [False]), *itertools.product(STATES, [True])]
)
def test_every_tensor_keeps_its_bytes(tmp_path: Path, name: str, legacy: bool) -> None:
    """Whatever its layout, dtype or ties; a NaN keeps its payload."""
    state = (STATES | NEW_STATES)[name]
    (tmp_path / "out").mkdir()
    converter.convert(_folder(tmp_path / "m", state, legacy=legacy), tmp_path / "out", PICKLE, "namespace")
    assert _same(load_file(tmp_path / "out" / "model.safetensors"), state)


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_no_dict_of_tensors_is_refused_by_name(tmp_path: Path, name: str) -> None:
    """With what was found in it, and how to write one."""
    content, message = UNFIT[name]
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match=rf"pytorch_model.bin cannot be converted.*{message}.*\n.*model.state_dict"):
        converter.convert(_folder(tmp_path / "m", content), tmp_path / "out", PICKLE, "namespace")


def test_what_is_no_weight_is_left_out(tmp_path: Path) -> None:
    """A step count, or a bias that a layer does not have: transformers does not look at it either."""
    state = {"a": BASE, "bias": None, "epoch": 3, "best": 0.5, "is_best": True, "name": "run 7"}
    (tmp_path / "out").mkdir()
    converter.convert(_folder(tmp_path / "m", state), tmp_path / "out", PICKLE, "namespace")
    assert _same(load_file(tmp_path / "out" / "model.safetensors"), {"a": BASE})


def test_the_record_holds_both_digests_and_how_the_process_was_confined(tmp_path: Path) -> None:
    """For each file; all have the mode of the others, which only their user may read."""
    folder = tiny.bert_masked_lm(tmp_path / "m", weights="sharded_bin")
    target = _convert(folder)
    record = json.loads((target / "conversion.json").read_text())
    kernel = [kind for kind, is_there in (("landlock", _has_landlock()), ("seccomp", _has_seccomp())) if is_there]
    network = "namespace" if _namespaces_permitted() else "audit hook"
    assert record["confinement"] == ", ".join((network, *kernel))
    assert [file["name"] for file in record["originals"]] == [
        *("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json")
    ]
    assert [file["name"] for file in record["converted"]] == [
        *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json")
    ]
    for place, group in ((folder, "originals"), (target, "converted")):
        for file in record[group]:
            content = (place / file["name"]).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file["size"], file["sha256"])
    assert {file.stat().st_mode & 0o777 for file in target.iterdir()} == {0o600}


def test_a_generator_finds_its_generation_config(registry: ModelRegistry, tmp_path: Path) -> None:
    """Beside converted weights too: the checkpoint's own, else the one that follows from its config."""
    folder = convert(tiny.gpt2_causal_lm(tmp_path / "m", weights="bin"))
    model: Any = registry.load_model(folder)
    assert model.generation_config.eos_token_id == 0
    (folder / "generation_config.json").write_text('{"eos_token_id": 2, "max_length": 17}')
    (folder / "pytorch_model.bin").touch()  # another model from now on
    again: Any = registry.load_model(folder)
    assert (again.generation_config.eos_token_id, again.generation_config.max_length) == (2, 17)


def test_shards_of_any_name_become_shards(tmp_path: Path) -> None:
    """Two that differ in their endings alone do not overwrite each other; an index of one shard is one file."""
    states = {"x.bin": {"a": BASE}, "x.pt": {"b": BASE + 1}}
    folder = tmp_path / "m"
    for file, state in states.items():
        torch.save(state, _folder(folder, {}) / file)
    (folder / "pytorch_model.bin").unlink()
    index = folder / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x.bin", "b": "x.pt"}}))
    target = _convert_here(folder)
    mapped = json.loads((target / "model.safetensors.index.json").read_text())["weight_map"]
    assert mapped == {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    assert _same(load_file(target / mapped["b"]), states["x.pt"])
    index.write_text(json.dumps({"weight_map": {"a": "x.bin"}}))
    assert (_convert_here(folder) / "model.safetensors").is_file()


def test_a_pickle_that_would_run_code_is_not_opened(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """Its bytes are read by a confined process that takes tensors alone."""
    folder = tiny.malicious_bin(tmp_path / "m", tmp_path / "ran")
    with pytest.raises(UnsafeWeightsError, match=r"pytorch_model.bin is not opened.*\n.*model.safetensors"):
        registry.load_model(folder)
    assert not (tmp_path / "ran").exists()
    assert _leftovers(home) == []


def test_converted_weights_are_made_once(
    registry: ModelRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The second process, or registry, finds them; a changed file is converted anew."""
    caplog.set_level(logging.INFO)
    folder = convert(tiny.bert_masked_lm(tmp_path / "m", weights="bin"))
    first: Any = registry.load_model(folder)
    assert ModelRegistry().load_model(folder) is not first
    assert "converting pytorch_model.bin" not in caplog.text
    tiny.bert_masked_lm(folder, weights="bin", seed=1)
    other: Any = ModelRegistry().load_model(folder)
    assert caplog.text.count("converting pytorch_model.bin") == 1
    assert not torch.equal(other.bert.embeddings.word_embeddings.weight, first.bert.embeddings.word_embeddings.weight)


@pytest.mark.slow
def test_a_converted_file_that_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    """A copy is taken for whole only with every file in its recorded size."""
    folder = _folder(tmp_path / "m", {"a": BASE})
    file = _convert_here(folder) / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    assert (_convert(folder) / "model.safetensors").read_bytes() == content


# Confinement

CONFINED = """
import json, sys
from pathlib import Path
from medvllm.errors import MedVLLMError
from medvllm.sources.conversion import converter
from medvllm.sources.conversion.confinement import isolate, seal
network = isolate()
import ctypes, os, safetensors.torch, socket, subprocess, torch
torch.set_num_threads(1)
libc = ctypes.CDLL(None, use_errno=True)
own = Path(sys.argv[1])
seal(own, 1_000_000)

def attempt(name, call):
    try:
        result = call()
    except Exception as error:
        print(name, type(error).__name__)
    else:
        print(name, "done" if result in (None, 0) or not isinstance(result, int) or result > 0 else "failed")

print(network, flush=True)
for line in sys.stdin:
    exec(json.loads(line), globals())
    print("that is all", flush=True)
"""


class Confined:
    """A process that has confined itself to the folder `own`, and runs code for the tests."""

    def __init__(self, own: Path) -> None:
        self.own = own
        self._process = subprocess.Popen(
            [sys.executable, "-c", CONFINED, str(own)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.network = self._line()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the confined process has ended"
        return line.rstrip("\n")

    def run(self, code: str) -> list[str]:
        """Run code; return the lines that it printed."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(textwrap.dedent(code)) + "\n")
        self._process.stdin.flush()
        return list(iter(self._line, "that is all"))

    def stop(self) -> int:
        """End it, and return its exit status."""
        self._process.communicate(timeout=60)
        return self._process.returncode


@pytest.fixture(scope="module")
def confined(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Confined]:
    """One for all tests: it imports torch for seconds."""
    own = tmp_path_factory.mktemp("confined") / "own"
    own.mkdir()
    process = Confined(own)
    yield process
    assert process.stop() == 0


def _has_landlock() -> bool:
    """Return whether this kernel has Landlock switched on."""
    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1)) > 0


def _has_seccomp() -> bool:
    """Return whether this kernel filters system calls, and the filter is written for this architecture."""
    return "Seccomp:" in Path("/proc/self/status").read_text() and platform.machine() in ("x86_64", "aarch64")


def _namespaces_permitted() -> bool:
    probe = "import ctypes, sys; sys.exit(ctypes.CDLL(None).unshare(0x50000000) != 0)"
    return subprocess.run([sys.executable, "-c", probe]).returncode == 0


@contextlib.contextmanager
def _listener() -> Iterator[tuple[int, list[Any]]]:
    """A loopback port, and the connections that it got."""
    seen: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.05)
        done = threading.Event()

        def accept() -> None:
            while not done.is_set():
                with contextlib.suppress(TimeoutError):
                    connection, address = server.accept()
                    connection.close()
                    seen.append(address)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield server.getsockname()[1], seen
        finally:
            done.set()
            thread.join()


# struct sockaddr_in of 127.0.0.1
_BY_LIBC = """
import struct
address = struct.pack("=HHI8x", socket.AF_INET, socket.htons({port}), int.from_bytes(bytes([127, 0, 0, 1]), "little"))
attempt("libc", lambda: libc.connect(libc.socket(2, 1, 0), address, len(address)))
"""


def test_no_socket_of_python_opens_in_a_confined_process(confined: Confined) -> None:
    """Nor does a look-up of a name; an unconfined one reaches the same port."""
    with _listener() as (port, seen):
        lines = confined.run(
            f"""
            attempt("connect", lambda: socket.create_connection(("127.0.0.1", {port}), 2))
            attempt("socket", lambda: socket.socket())
            attempt("look-up", lambda: socket.getaddrinfo("localhost", 80))
            """,
        )
        assert lines == ["connect PermissionError", "socket PermissionError", "look-up PermissionError"]
        assert seen == []
        socket.create_connection(("127.0.0.1", port), 5).close()
        _wait_for(lambda: len(seen) == 1)


def test_not_even_native_code_reaches_the_network_of_a_confined_process(confined: Confined) -> None:
    """libc's own connect, which no hook of Python's sees: the namespace has no way out, not even a loopback."""
    if not _namespaces_permitted():
        pytest.skip("this kernel permits no user namespaces here")
    with _listener() as (port, seen):
        assert confined.network == "namespace"
        assert confined.run(_BY_LIBC.format(port=port)) == ["libc failed"]
        assert seen == []
        prelude = "import ctypes, socket\nlibc = ctypes.CDLL(None)\nattempt = lambda name, call: print(name, call())\n"
        run = subprocess.run(
            [sys.executable, "-c", prelude + _BY_LIBC.format(port=port)], capture_output=True, text=True, timeout=60
        )
        assert run.stdout == "libc 0\n"
        _wait_for(lambda: len(seen) == 1)


def test_a_confined_process_starts_nothing_and_writes_nothing_elsewhere(confined: Confined) -> None:
    """Programs, forks, libraries and files outside of its folder are refused; its own folder is not."""
    parent = confined.own.parent
    (parent / "link").symlink_to(parent)
    (parent / "there").write_text("kept")
    before = sorted(parent.iterdir())
    lines = confined.run(
        """
        attempt("system", lambda: os.system("true"))
        attempt("subprocess", lambda: subprocess.run(["true"]))
        attempt("fork", os.fork)
        attempt("exec", lambda: os.execv("/bin/true", ["true"]))
        attempt("library", lambda: ctypes.CDLL("libm.so.6"))
        attempt("write", lambda: (own.parent / "x").write_text("x"))
        attempt("append", lambda: open(own.parent / "there", "a"))
        attempt("os.open", lambda: os.open(own.parent / "x", os.O_CREAT | os.O_WRONLY))
        attempt("through a link", lambda: (own.parent / "link" / "x").write_text("x"))
        attempt("upwards", lambda: (own / ".." / "x").write_text("x"))
        attempt("remove", lambda: (own.parent / "there").unlink())
        attempt("rename", lambda: (own.parent / "there").rename(own / "there"))
        attempt("own", lambda: (own / "x").write_text("x"))
        """,
    )
    refused = ["system", "subprocess", "fork", "exec", "library", "write", "append", "os.open", "through a link"]
    refused += ["upwards", "remove", "rename"]
    assert lines == [f"{name} PermissionError" for name in refused] + ["own done"]
    assert sorted(parent.iterdir()) == before
    assert (parent / "there").read_text() == "kept"


_NATIVE = """
import ctypes, errno, mmap, sqlite3, struct
from safetensors.torch import save_file
parent, secret = os.getppid(), str(own.parent / "secret")
calls = {
    "read": lambda: libc.open(secret.encode(), 0),
    "write": lambda: libc.open(secret.encode(), 1),
    "make": lambda: libc.open((secret + "2").encode(), 0o101, 0o600),
    "a pipe": lambda: libc.mkfifo((secret + "3").encode(), 0o600),
    "a pipe of its own": lambda: libc.mkfifo(str(own / "pipe").encode(), 0o600),
    "a link": lambda: libc.symlink(b"/etc/passwd", str(own / "link").encode()),
    "a second name": lambda: libc.link(secret.encode(), str(own / "name").encode()),
    "unlink": lambda: libc.unlink(secret.encode()),
    "chmod": lambda: libc.chmod(secret.encode(), 0o777),
    "chown": lambda: libc.chown(secret.encode(), 0, 0),
    "truncate": lambda: libc.truncate(secret.encode(), 0),
    "list": lambda: -1 if not libc.opendir(str(Path(secret).parent).encode()) else 0,
    "unix socket": lambda: libc.socket(1, 1, 0),
    "network": lambda: libc.socket(2, 1, 0),
    "pair": lambda: libc.socketpair(1, 1, 0, ctypes.create_string_buffer(8)),
    "fork": lambda: libc.fork(),
    "vfork": lambda: libc.syscall(58),
    "clone": lambda: libc.syscall(56, 17, 0, 0, 0, 0),
    "exec": lambda: libc.execv(b"/bin/true", (ctypes.c_char_p * 2)(b"true", None)),
    "signal": lambda: libc.kill(parent, 0),
    "signal to all": lambda: libc.kill(-1, 0),
    "thread's signal": lambda: libc.syscall(234, parent, parent, 0),
    "trace": lambda: libc.ptrace(16, parent, 0, 0),
    "memory": lambda: libc.process_vm_readv(parent, 0, 0, 0, 0, 0),
    "pidfd": lambda: libc.syscall(434, parent, 0),
    "limits": lambda: libc.prlimit(parent, 7, 0, ctypes.create_string_buffer(16)),
    "priority": lambda: libc.setpriority(0, parent, 5),
    "io_uring": lambda: libc.syscall(425, 1, ctypes.create_string_buffer(200)),
    "mount": lambda: libc.mount(b"none", b"/", b"tmpfs", 0, None),
    "key": lambda: libc.syscall(248, b"user", b"x", b"y", 1, -4),
    "shared memory": lambda: libc.shmget(0, 4096, 0o1600),
    "namespace": lambda: libc.unshare(0x10000000),
    "another set of calls": lambda: libc.syscall(0x40000000 + 39),
}
libc.opendir.restype = ctypes.c_void_p
for name, call in calls.items():
    is_refused = call() == -1 and ctypes.get_errno() in (errno.EPERM, errno.EACCES, errno.EXDEV)
    print(name, "refused" if is_refused else "DONE")
for name, call in {
    "torch": lambda: torch._C.PyTorchFileWriter(secret),
    "mapping": lambda: torch.from_file(secret, shared=True, size=4, dtype=torch.uint8),
    "safetensors": lambda: save_file({"a": torch.zeros(1)}, secret),
    "sqlite": lambda: sqlite3.connect(secret).execute("create table a (b)"),
}.items():
    try:
        call()
        print(name, "DONE")
    except Exception:
        print(name, "refused")
torch.save({"a": torch.zeros(1)}, own / "torch")
save_file({"a": torch.zeros(1)}, own / "safetensors")
libc.raise_(0) if hasattr(libc, "raise_") else libc.kill(os.getpid(), 0)
import threading
thread = threading.Thread(target=print, args=("a thread of its own done",))
thread.start() if os.geteuid() == 0 else print("a thread of its own done")
thread.join() if os.geteuid() == 0 else None
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers of system calls are those of x86_64")
def test_native_code_of_a_confined_process_is_refused_the_same(confined: Confined) -> None:
    """By the kernel: secrets, files, sockets, programs, other processes, devices; its own folder stays its own."""
    if not (_has_landlock() and _has_seccomp()):
        pytest.skip("this kernel has no Landlock or no seccomp")
    secret, before = confined.own.parent / "secret", set(os.listdir(confined.own))
    secret.write_text("token")
    lines = confined.run(_NATIVE)
    assert [line for line in lines if not line.endswith(("refused", "own done"))] == []
    assert len(lines) > 34 and lines[-1] == "a thread of its own done"
    assert secret.read_text() == "token" and set(os.listdir(confined.own)) - before == {"safetensors", "torch"}


def test_a_confined_process_has_bounded_memory_time_and_output(confined: Confined) -> None:
    """By the size of the weights; it dumps no core, and goes first when memory runs out."""
    lines = confined.run(
        """
        import resource
        attempt("memory", lambda: bytearray(3 << 30))
        print(resource.getrlimit(resource.RLIMIT_CPU)[0], resource.getrlimit(resource.RLIMIT_CORE)[1])
        print(resource.getrlimit(resource.RLIMIT_FSIZE)[1] < 2 << 30, resource.getrlimit(resource.RLIMIT_NPROC)[1])
        print(Path("/proc/self/oom_score_adj").read_text().strip())
        """,
    )
    assert lines == ["memory MemoryError", "60 0", "True 0", "1000"]


def test_the_converting_process_sees_no_token_proxy_or_home(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its environment, read from outside while it runs."""
    for name in ("HF_TOKEN", "HTTPS_PROXY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "secret-value")
    folder = _folder(tmp_path / "m", {"a": BASE})
    with ThreadPoolExecutor(1) as pool:
        converting = pool.submit(_convert, folder)
        pid = _wait_for(_converter_of(os.getpid()))
        environment = _wait_for(lambda: _environment(pid))
        assert converting.result(60)
    assert "secret-value" not in environment.values()
    assert environment["HOME"].startswith(str(home / "medvllm"))
    assert not {"HF_HOME", "HF_ENDPOINT", "MEDVLLM_HOME"} & environment.keys()


def _environment(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _converter_of(parent: int) -> Any:
    """Return a function that gives the pid of the converting process that `parent` has started, or None."""

    def find() -> int | None:
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                started = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                if started == parent and b"medvllm.sources.conversion.converter" in (process / "cmdline").read_bytes():
                    return int(process.name)
        return None

    return find


def _wait_for(condition: Any, timeout_s: float = 60.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return found


# Damage and malice


def _zip_with(folder: Path, *, compress: bool = False, pickled: bytes | None = None) -> Path:
    """A checkpoint whose archive is written anew, its entries compressed or its pickle replaced."""
    _folder(folder, {"a": torch.zeros(1000, 1000)})
    file = folder / "pytorch_model.bin"
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    kind = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, pickled if pickled is not None and name.endswith("data.pkl") else content)
    return folder


class _Call:
    """Pickled as a call of a function that weights_only allows."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def _flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 0x40
    file.write_bytes(content)


def _bomb_by_strides(folder: Path) -> Path:
    """A tensor of 4 TB over the memory of one number."""
    return _folder(folder, {"a": torch.zeros(1).expand(10**6, 10**6)})


def _bomb_by_allocation(folder: Path) -> Path:
    """A few bytes that ask for 1 TB when they are read."""
    _folder(folder, {})
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": _Call(bytearray, 10**12)}, protocol=2))
    return folder


def _bomb_in_legacy_storage(folder: Path) -> Path:
    """An older pickle whose storage says that it has 10**12 numbers, and brings 10."""
    _folder(folder, {"a": torch.zeros(10**5)}, legacy=True)
    file = folder / "pytorch_model.bin"
    size = pickle.dumps(10**5, protocol=2)[2:-1]
    assert file.read_bytes().count(size) > 1
    file.write_bytes(file.read_bytes().replace(size, pickle.dumps(10**12, protocol=2)[2:-1]))
    return folder


def _bomb_by_compression(folder: Path) -> Path:
    """4 MB of zeros in 4 kB."""
    return _zip_with(folder, compress=True)


def _truncated(folder: Path) -> Path:
    file = _folder(folder, {"a": BASE}) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


def _legacy_truncated(folder: Path) -> Path:
    file = _folder(folder, {"a": BASE}, legacy=True) / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-100])
    return folder


def _flipped(folder: Path) -> Path:
    file = _folder(folder, {"a": torch.full((1000,), 7.0)}) / "pytorch_model.bin"
    _flip(file, file.read_bytes().index(torch.full((9,), 7.0).numpy().tobytes()) + 5)
    return folder


def _no_bytes(folder: Path) -> Path:
    (_folder(folder, {"a": BASE}) / "pytorch_model.bin").write_bytes(b"")
    return folder


def _text(folder: Path) -> Path:
    (_folder(folder, {"a": BASE}) / "pytorch_model.bin").write_text("<html>404</html>")
    return folder


@pytest.mark.parametrize(
    ("make", "message"),
    spread(
        [
            (_bomb_by_allocation, "is not (opened|converted)"),
            (_bomb_in_legacy_storage, "asks for more memory than its [0-9,]+ bytes account for"),
        ],
        2,
    ),
)
def test_a_bomb_that_goes_off_ends_in_an_error_of_ours(tmp_path: Path, home: Path, make: Any, message: str) -> None:
    """With the file's name, and nothing left behind. One that went on would run into the time limit of all tests."""
    folder = make(tmp_path / "m")
    with pytest.raises(UnsafeWeightsError, match=message) as caught:
        _convert(folder)
    assert str(folder / "pytorch_model.bin") in str(caught.value)
    assert _leftovers(home) == []


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (_truncated, IncompleteSnapshotError, "is damaged.*\n.*Fetch it again"),
        (_legacy_truncated, IncompleteSnapshotError, "is damaged"),
        (_flipped, IncompleteSnapshotError, "checksum of its entry '.*/data/0' is wrong"),
        (_no_bytes, IncompleteSnapshotError, "is damaged"),
        (_text, UnsafeWeightsError, "is not opened"),
        (_bomb_by_strides, UnsafeWeightsError, "would become 4,000,000,000,000"),
        (_bomb_by_compression, UnsafeWeightsError, "is compressed"),
    ],
)
def test_damage_and_bombs_that_can_be_seen_are_errors_of_ours(
    tmp_path: Path, make: Any, kind: type[Exception], message: str
) -> None:
    """With the file's name and the way out."""
    folder = make(tmp_path / "m")
    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match=message) as caught:
        converter.convert(folder, tmp_path / "out", PICKLE, "namespace")
    assert type(caught.value) is kind and str(folder / "pytorch_model.bin") in str(caught.value)


@pytest.mark.slow
def test_a_pickle_that_only_burns_time_is_stopped(tmp_path: Path) -> None:
    """A tuple that holds its forerunner twice, 200 times over: the hash of such a key would take for ever."""
    pairs = b"".join(b"h%ch%c\x86q%c" % (i, i, i + 1) for i in range(200))
    folder = _zip_with(tmp_path / "m", pickled=b"\x80\x02}()q\x00" + pairs + b"K\x01u.")
    with pytest.raises(SourceError, match="ended by SIGXCPU for taking too long"):
        _convert(folder)


MUTATION = """
(own / {name!r} / "pytorch_model.bin").write_bytes(bytes.fromhex({content!r}))
try:
    converter.convert(own / {name!r}, own / {name!r}, ["pytorch_model.bin"], "")
    print("converted")
except MedVLLMError as error:
    print(type(error).__name__)
"""


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_any_change_of_bytes_gives_the_same_tensors_or_an_error_of_ours(confined: Confined, legacy: bool) -> None:
    """Bytes replaced and cut: one process takes them all and survives. An archive never gives other tensors; an older
    pickle, which has no checksum, gives what it says, with its own digest in the record."""
    state = {"a": BASE, "b": torch.tensor([1.5, 2.5]), "c": BASE}
    folder = _folder(confined.own / f"changed-{legacy}", state, legacy=legacy)
    original = (folder / "pytorch_model.bin").read_bytes()
    outcomes: Counter[str] = Counter()

    @settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(
        cut=st.one_of(st.just(0), st.integers(0, len(original) - 1)),
        flips=st.lists(st.tuples(st.integers(0, len(original) - 1), st.integers(0, 255)), max_size=4),
    )
    def check(cut: int, flips: list[tuple[int, int]]) -> None:
        content = bytearray(original[: len(original) - cut])
        for position, value in flips:
            content[position % len(content)] = value
        (outcome,) = confined.run(MUTATION.format(name=folder.name, content=content.hex()))
        outcomes[outcome] += 1
        assert outcome in {"converted", "UnsafeWeightsError", "IncompleteSnapshotError", "SourceError"}
        if outcome == "converted" and not legacy:
            assert _same(load_file(folder / "model.safetensors"), state)

    check()
    assert outcomes["converted"] and outcomes["IncompleteSnapshotError"]


# Death, company and full disks

LOAD = """
import sys
from pathlib import Path
from medvllm.sources.conversion import as_safetensors
from medvllm.sources.folder import resolve_snapshot
import logging
logging.basicConfig(level=logging.INFO)
folder = Path(sys.argv[1])
print(as_safetensors(resolve_snapshot(folder, None)).converted_at)
"""


def _start(folder: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_processes_that_need_one_conversion_share_it(tmp_path: Path) -> None:
    """One converts, the others wait for it and find its result."""
    folder = tiny.bert_masked_lm(tmp_path / "m", weights="bin")
    processes = [_start(folder) for _ in range(3)]
    ends = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], ends
    assert len({out for out, _ in ends}) == 1
    assert sum(log.count("converting pytorch_model.bin") for _, log in ends) == 1


@pytest.mark.slow
def test_threads_that_need_one_conversion_share_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same within a process."""
    caplog.set_level(logging.INFO)
    folder = _folder(tmp_path / "m", {"a": BASE})
    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(_convert, [folder] * 4))) == 1
    assert caplog.text.count("converting pytorch_model.bin") == 1


def test_a_killed_converting_process_is_a_clear_error_and_the_next_call_succeeds(tmp_path: Path, home: Path) -> None:
    """As the kernel does when memory runs out."""
    folder = _folder(tmp_path / "m", {"a": BASE})
    with ThreadPoolExecutor(1) as pool:
        converting = pool.submit(_convert, folder)
        os.kill(_wait_for(_converter_of(os.getpid())), signal.SIGKILL)
        with pytest.raises(SourceError, match="ended by SIGKILL, probably because memory ran out"):
            converting.result(60)
    assert _leftovers(home) == []
    assert _same(load_file(_convert(folder) / "model.safetensors"), {"a": BASE})


def test_nothing_half_made_is_seen_after_a_kill_and_the_next_call_sweeps(tmp_path: Path, home: Path) -> None:
    """The calling process dies: its converting process goes with it, and what they left goes with the next call."""
    folder = _folder(tmp_path / "m", {"a": BASE})
    process = _start(folder)
    converting = _wait_for(_converter_of(process.pid))
    _wait_for(lambda: b"libtorch" in Path(f"/proc/{converting}/maps").read_bytes())
    process.kill()
    process.communicate()
    _wait_for(lambda: not Path(f"/proc/{converting}").exists() or _is_dead(converting))
    converted = home / "medvllm" / "converted"
    assert [path.suffix for path in converted.iterdir() if path.is_dir()] != [""]
    target = _convert(folder)
    assert [path for path in converted.iterdir() if path.is_dir()] == [target]


def _is_dead(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.fixture
def small_disk(home: Path) -> Iterator[Path]:
    """A file system of 1 MB at MEDVLLM_HOME."""
    folder = home / "medvllm"
    folder.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"tmpfs", str(folder).encode(), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"no file system may be mounted here: {os.strerror(ctypes.get_errno())}")
    yield folder
    assert libc.umount2(str(folder).encode(), 2) == 0


@pytest.mark.slow
def test_a_full_disk_is_a_clear_error_that_leaves_nothing(tmp_path: Path, home: Path, small_disk: Path) -> None:
    """And a smaller model still fits."""
    with pytest.raises(SourceError, match="could not be converted to safetensors: .*No space left on device"):
        _convert(_folder(tmp_path / "large", {"a": torch.zeros(1000, 1000)}))
    assert _leftovers(home) == []
    assert _convert_here(_folder(tmp_path / "small", {"a": BASE}))


@pytest.mark.slow
def test_a_home_that_cannot_be_written_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here because a file is in the way."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MEDVLLM_HOME", str(tmp_path / "file"))
    with pytest.raises(SourceError, match="could not be converted to safetensors"):
        _convert(_folder(tmp_path / "m", {"a": BASE}))


@pytest.mark.slow
def test_the_home_folder_is_ones_own_whatever_the_umask(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """Where new files are writable for the group, as many systems have it, what is kept there still counts."""
    folder = tiny.bert_encoder(tmp_path / "m", weights="bin")
    before = os.umask(0o002)
    try:
        registry.register("m", "custom", model_path=str(folder), persist=True)  # the first to need the home folder
        registry.load_model("m")
        (record,) = (home / "medvllm" / "converted").glob("*/conversion.json")
        made = record.stat().st_ino
        registry.clear_cache()
        ModelRegistry().load_model(folder)
    finally:
        os.umask(before)
    assert (home / "medvllm").stat().st_mode & 0o022 == 0
    assert record.stat().st_ino == made
