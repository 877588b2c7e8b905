"""Processes that begin at once: forked from one that has imported torch and transformers already.

A fresh interpreter spends five seconds on those imports, more than any command of the tests. Each process here is a
real one, with arguments, environment, working directory and standard streams of its own; what it shares with its parent
are imported modules, which have done nothing yet.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

_ROOT = Path(__file__).parents[2]
# What libraries do not read at their import, or what is set anew in each process, as `child` does. A process that
# differs in anything else is started afresh.
_LATE = (
    "HF_ENDPOINT",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "MEDVLLM_",
    "_MEDVLLM_",
    "PG",
    "PYTEST_",
    "RAY_",
    "HOME",
    "COLUMNS",
    "LINES",
    "TERM",
    "NO_COLOR",
    "FORCE_COLOR",
    "DISABLE_SAFETENSORS_CONVERSION",
    "TORCHINDUCTOR_",
    "PWD",
    "PATH",
    "USER",
)
_PATIENCE_S = 240

_SERVER = """
import gc
gc.disable()
import atexit, importlib, json, os, signal, socket, sys, runpy, threading, traceback, warnings
import alembic.command, alembic.config, huggingface_hub, psycopg, sqlalchemy, typer, rich.console
import torch, tokenizers, safetensors.torch
import medvllm.cli.app, medvllm.engine.model_runner, medvllm.loading, medvllm.sources
import medvllm.catalog.sql.check, medvllm.catalog.sql.transaction, medvllm.server.running
medvllm.cli.app.make_app()
import pydantic, typing_inspection.introspection, medvllm.engine.model_runner.tasks
import transformers.models.bert.tokenization_bert
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM, BertForTokenClassification, BertModel
import transformers.models.auto.modeling_auto
import huggingface_hub.hf_api, medvllm.catalog.announcements
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

# Tables that are made once in a process.
medvllm.catalog.builtin_entries()
get_checkpoint_conversion_mapping("bert")

def child(request):
    os.setsid()
    for key in list(os.environ):
        if key not in request["environment"]:
            del os.environ[key]
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    constants = huggingface_hub.constants
    constants.HF_HUB_CACHE = os.environ.get("HF_HUB_CACHE", constants.HF_HUB_CACHE)
    constants.HF_HUB_OFFLINE = os.environ.get("HF_HUB_OFFLINE") == "1"
    constants.ENDPOINT = huggingface_hub.hf_api.api.endpoint = os.environ["HF_ENDPOINT"]
    constants.HUGGINGFACE_CO_URL_TEMPLATE = constants.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}"
    importlib.reload(medvllm.catalog.announcements)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    torch.set_num_threads(1)
    arguments = request["arguments"]
    if arguments[0] == "-W":
        warnings.simplefilter(arguments[1])
        sys.warnoptions.append(arguments[1])
        arguments = arguments[2:]
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = ["-c", *arguments[2:]]
        import __main__
        exec(compile(arguments[1], "<string>", "exec"), __main__.__dict__)

def end(request):
    # As Py_FinalizeEx does, but for the modules: to take them apart copies every page of memory.
    status = 0
    try:
        child(request)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if not isinstance(error.code, int | None):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):
            status = status or 120
    os._exit(status)

def handle(connection):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    text, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not text.endswith(b"\\n"):
        text += connection.recv(1 << 20)
    pid = os.fork()
    if pid == 0:
        listener.close()
        connection.close()
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        return json.loads(text)
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(f"{pid}\\n".encode())
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.sendall(f"{status}\\n".encode())
    except OSError:
        pass
    os._exit(0)

gc.freeze()
gc.enable()
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print(flush=True)
request = None
while request is None:
    connection, _ = listener.accept()
    if os.fork() == 0:
        request = handle(connection)
    connection.close()
end(request)
"""


class Process:
    """A process of a server's."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._answers = connection, connection.makefile("r")
        self.pid = int(self._answers.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit status; TimeoutExpired after so many seconds."""
        self._connection.settimeout(timeout)
        try:
            return int(self._answers.readline())
        except TimeoutError:
            self.kill()
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0) from None
        finally:
            self._answers.close()
            self._connection.close()

    def kill(self) -> None:
        """End it and its children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class Server:
    """Forks processes that share an environment, as far as libraries read it at their import."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self.address = f"{self._folder.name}/socket"
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, self.address],
            env={name: value for name, value in environment.items() if not name.startswith(("MEDVLLM_", "_MEDVLLM_"))},
            cwd=_ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the server has ended"

    def start(self, arguments: Sequence[str], environment: Mapping[str, str], streams: Sequence[int]) -> Process:
        """Start what ``python ARGUMENTS`` would; `streams` are descriptors for stdin, stdout and stderr."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self.address)
        request = {"arguments": [*arguments], "environment": dict(environment), "folder": os.getcwd()}
        text = f"{json.dumps(request)}\n".encode()
        sent = socket.send_fds(connection, [text], streams)
        connection.sendall(text[sent:])
        return Process(connection)

    def stop(self) -> None:
        """End the server; what it has forked goes on."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


_servers: dict[tuple[tuple[str, str], ...], Server] = {}
_lock = threading.Lock()  # threads of a test that start processes at once share one server


def stop() -> None:
    """End the servers."""
    while _servers:
        _servers.popitem()[1].stop()


def _server(environment: Mapping[str, str]) -> Server | None:
    early = tuple(sorted(item for item in environment.items() if not item[0].startswith(_LATE)))
    own = {key: value for key, value in os.environ.items() if not key.startswith(_LATE)}
    # One for the tests' own environment: others are seldom asked for twice.
    with _lock:
        if early not in _servers and dict(early) == own:
            _servers[early] = Server(environment)
        return _servers.get(early)


def run(*arguments: str, stdin: str | bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run ``python ARGUMENTS`` and return how it went."""
    whole = {**os.environ, **environment}
    text = stdin if isinstance(stdin, bytes) else stdin.encode()
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        given.write(text)
        given.seek(0)
        if server := _server(whole):
            streams = given.fileno(), out.fileno(), err.fileno()
            status = server.start(arguments, whole, streams).wait(_PATIENCE_S)
        else:
            command = [sys.executable, *arguments]
            status = subprocess.run(
                command, env=whole, stdin=given, stdout=out, stderr=err, timeout=_PATIENCE_S
            ).returncode
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess([*arguments], status, out.read().decode(), err.read().decode())


def medvllm(*arguments: str, stdin: str | bytes = b"", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    return run("-m", "medvllm.cli", *arguments, stdin=stdin, **environment)


def start(*arguments: str, stderr: int) -> Process:
    """Start ``python ARGUMENTS``, whose standard error is a descriptor."""
    server = _server(os.environ)
    assert server is not None
    with open(os.devnull, "r+b") as nothing:
        return server.start(arguments, os.environ, (nothing.fileno(), nothing.fileno(), stderr))


_CLIENT = """#!{python} -SE
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
request = {{"arguments": ["-m", "medvllm.cli", *sys.argv[1:]], "environment": dict(os.environ), "folder": os.getcwd()}}
text = (json.dumps(request) + "\\n").encode()
connection.sendall(text[socket.send_fds(connection, [text], [0, 1, 2]):])
answers = connection.makefile("r")
answers.readline()
sys.exit(int(answers.readline()))
"""


def program(folder: Path) -> Path:
    """Write a program `medvllm` for shells, and return it."""
    server = _server(os.environ)
    assert server is not None
    file = folder / "medvllm"
    file.write_text(_CLIENT.format(python=sys.executable, address=server.address))
    file.chmod(0o755)
    return file


class Conversation:
    """A program that is told lines and answers with lines."""

    def __init__(self, code: str) -> None:
        server = _server(os.environ)
        assert server is not None
        (its_input, self._input), (self._output, its_output) = os.pipe(), os.pipe()
        streams = its_input, its_output, sys.__stderr__.fileno() if sys.__stderr__ else 2
        self._process = server.start(("-W", "error", "-c", code), os.environ, streams)
        os.close(its_input)
        os.close(its_output)
        self.stdin, self.stdout = os.fdopen(self._input, "w"), os.fdopen(self._output)
        self.pid = self._process.pid

    def ask(self, line: str) -> str:
        """Tell it a line and return its answer."""
        self.stdin.write(f"{line}\n")
        self.stdin.flush()
        return self.stdout.readline().rstrip("\n")

    def kill(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(60)
        self.stdout.close()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
