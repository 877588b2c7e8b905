"""`medvllm serve --ray`: replicas in a real Ray answer as one server without Ray does."""

import asyncio
import copy
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import yaml
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from medvllm.client import Client
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import MedVLLMError, SettingError
from medvllm.model_registry.handover import hand_over, take_over
from medvllm.server.app import create_app
from medvllm.server.config import ServerConfig
from medvllm.server.replicas.exchange import Exchange
from medvllm.server.replicas.names import find_left, own_name
from medvllm.server.replicas.target import named_in
from tests.support import decoders, tiny
from tests.support.console import command
from tests.support.serving import serving
from tests.support.started import Started
from tests.support.waiting import wait_until

WORD = "xanthopsiacanary"
SECRET = "a-key-that-no-log-has"
NOTE = f"Patient {WORD} Smith was given aspirin."
INFER = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [NOTE]}]}
PROMPT = {"model": "dec", "prompt": NOTE, "max_tokens": 4, "temperature": 0}
DEPLOY = Path(__file__).parents[1] / "deploy" / "ray_serve.yaml"
# A request of each kind: what a replica computes, what it says of the catalogue, and what is refused.
REQUESTS: list[tuple[str, str, Any]] = [
    ("POST", "/v1/entities", {"model": "ner", "input": [NOTE, ""], "receipt": True}),
    ("POST", "/v1/entities", {"model": "ner@production", "input": NOTE, "offset_unit": "utf16"}),
    ("POST", "/v1/entities", {"model": "ner", "input": [NOTE] * 2000}),  # longer than one piece, there and back
    ("POST", "/v1/entities", {"model": "nre", "input": NOTE}),
    ("POST", "/v1/entities", {"model": "ner", "input": 3}),
    ("POST", "/v1/entities", "{"),
    ("POST", "/v2/models/ner/versions/1/infer", INFER),
    ("POST", "/v1/embeddings", {"model": "enc", "input": [NOTE, "a"]}),
    ("POST", "/v1/embeddings", {"model": "ner", "input": NOTE}),
    ("POST", "/v1/completions", PROMPT),
    ("POST", "/v1/completions", {**PROMPT, "stream": True}),
    ("POST", "/v1/run", {"model": "dec", "task": "generate", "texts": [NOTE], "arguments": {"max_new_tokens": 3}}),
    ("POST", "/models/ner", {"inputs": NOTE}),
    ("GET", "/v1/models?limit=3", None),
    ("GET", "/v1/models/ner", None),
    ("GET", "/v2/models/enc/ready", None),
    ("POST", "/v2/repository/index", {}),
    ("GET", "/openapi.json", None),
    ("GET", "/try", None),
    ("GET", "/livez", None),
    ("GET", "/readyz", None),
    ("GET", "/nothing", None),
    ("DELETE", "/v1/models", None),
]
CHANGING = ("id", "created", "load_s", "loaded_at", "last_used")  # with each answer
HEADERS = ("content-type", "cache-control", "content-security-policy", "x-medvllm-version", "retry-after")


@pytest.fixture
def models(tmp_path: Path) -> ModelRegistry:
    registry = ModelRegistry()
    for name, task, folder in (
        ("ner", "ner", tiny.bert_token_classifier(tmp_path / "ner", ["O", "B-NAME", "I-NAME"])),
        ("enc", "embed", tiny.bert_encoder(tmp_path / "enc")),
        ("dec", "generate", decoders.llama(tmp_path / "dec")),
    ):
        registry.register(name, "clinical", model_path=str(folder), task=task, persist=True)
    registry.catalog.set_alias("ner", "production", 1)
    return registry


@pytest.mark.timeout(600)
def test_replicas_answer_as_one_server(
    models: ModelRegistry, ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request stays where its model is; a moved alias reaches all; a killed one loses nothing; nothing is left."""
    key = command(monkeypatch, "key", "add", "pacs", "--right", "infer", "--right", "read", "--right", "manage").out
    headers = {"Authorization": f"Bearer {key.strip()}"}
    monkeypatch.setenv("MEDVLLM_API_KEYS", SECRET)
    server = Started("--ray", "--replicas", "2")
    try:
        url = server.wait_for(r"Serving at (http\S+), with API keys, by 2 replicas")
        processes = psutil.Process(server.pid).children(recursive=True)
        with httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
            _answers_are_equal(client, headers, models)
            _requests_stay_where_their_model_is(client)
            _all_replicas_are_asked_for_their_memory(client)
            _keys_are_asked_for_before_a_body_is_read(url)
            _a_moved_alias_reaches_each_replica(client, models, tmp_path)
            _a_killed_replica_loses_nothing(url, key.strip(), _replicas(psutil.Process(server.pid)))
        processes += psutil.Process(server.pid).children(recursive=True)
    finally:
        server.end(signal.SIGTERM)
    assert server.wait() == -signal.SIGTERM
    assert not [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]
    logs = [file for file in ray_folder.rglob("*") if file.is_file()]
    assert any("replica_" in file.name for file in logs)
    for word in (WORD, SECRET, key.strip()):
        assert word not in "".join(server.lines)
        assert not [file for file in logs if word.encode() in file.read_bytes()]


# of ray.serve itself
quiet = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20")


@quiet
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["127.0.0.1:6379"], 2, "'127.0.0.1:6379' is an address of Ray, so give --ray, too"),
        (["--replicas", "2"], 2, "replicas are processes in Ray, so give --ray, too"),
        (["--ray", "ray://127.0.0.1:10001"], 1, "with: --ray auto"),
        (
            ["--ray", "head"],
            1,
            "'head' is no address of a Ray cluster.\nWrite host and port",
        ),
        (["--ray", "127.0.0.1:CLOSED"], 1, "Start one here: ray start --head"),
    ],
)
def test_what_ray_cannot_do_is_refused_at_once(
    words: list[str], code: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word.replace("CLOSED", str(_free_port())) for word in words]
    refused = command(monkeypatch, "serve", "--port", "0", *words)
    assert refused.code == code and message in refused.err, refused.err


def test_a_store_of_objects_fits_into_memory() -> None:
    """Ray would put a larger one on a disk. Docker gives a container 64 MiB, which is too little."""
    from medvllm.ray_cluster import fit_into_memory

    assert fit_into_memory(100 * 2**20, room=2**30) == 100 * 2**20
    assert fit_into_memory(2**30, room=100 * 2**20) == 90 * 2**20
    with pytest.raises(SettingError, match=r"the 64 MiB that are free in /dev/shm(.|\n)*docker run --shm-size 1g"):
        fit_into_memory(100 * 2**20, room=64 * 2**20)


def test_a_handler_of_sigterm_is_put_back_where_it_can_be() -> None:
    """In the main thread. In others, Ray sets none."""
    from medvllm.ray_cluster import keep_sigterm

    before = signal.getsignal(signal.SIGTERM)
    put_back = keep_sigterm()
    try:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with ThreadPoolExecutor() as threads:
            threads.submit(put_back).result()
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        put_back()
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_front_ends_what_killed_ones_left_at_its_address() -> None:
    """And nothing of one that still completes its requests, or of a server at another address."""
    here = "10.0.0.7", "0.0.0.0:8000"
    own, other = own_name(*here), own_name("10.0.0.7", "0.0.0.0:80001")
    prefix, started, pid = own.rsplit("-", 2)
    left = [f"{prefix}-{int(started) - 1}-{pid}", f"{prefix}-{started}-{2**22 + 1}"]  # no process has such an id
    assert int(pid) == os.getpid()
    assert find_left([own, other, *left, other.replace(pid, "9"), prefix, f"{prefix}-x-1", "medvllm"], *here) == left


def test_ray_is_only_needed_for_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, the advice says what to install."""
    for name in [name for name in sys.modules if name.startswith("medvllm.server.replicas")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    refused = command(monkeypatch, "serve", "--ray", "--port", "0")
    assert refused.code == 1 and refused.err.endswith("Install it with: pip install 'medvllm[ray]'\n")


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/v2/models/ner/infer", "ner"),
        ("/v2/models/acme/ner@3/infer", "acme/ner@3"),
        ("/v2/models/acme/ner/versions/production/infer", "acme/ner@production"),
        ("/v2/models/ner/versions/2", "ner@2"),
        ("/v2/models/ner/ready", "ner"),
        ("/v2/models/ner", "ner"),
        ("/v2/repository/models/acme/ner/load", "acme/ner"),
        ("/v1/models/acme/ner", "acme/ner"),
        ("/models/acme/ner", "acme/ner"),
        ("/models/acme/ner/pipeline/token-classification", "acme/ner"),
        ("/v2/repository/index", None),
        ("/v1/entities", None),
    ],
)
def test_a_path_names_the_model_as_its_protocol_does(path: str, name: str | None) -> None:
    assert named_in(path) == name


def test_replicas_get_the_settings_with_absolute_paths(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have another working directory. Settings of the cluster that the server does not have go."""
    monkeypatch.chdir(home)
    monkeypatch.delenv("MEDVLLM_LOCK_FILE")
    monkeypatch.setenv("MEDVLLM_HOME", "./own")
    monkeypatch.setenv("MEDVLLM_MAX_MODELS", "3")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = {"MEDVLLM_DEVICE": "cuda", "PATH": "/bin"}
    take_over(hand_over(), given)
    assert {name: text for name, text in given.items() if not name.startswith("HF_")} == {
        "MEDVLLM_HOME": str(home / "own"),
        "MEDVLLM_LOCK_FILE": str(home / "medvllm.lock"),
        "MEDVLLM_MAX_MODELS": "3",
        "PATH": "/bin",
    }
    assert given["HF_HUB_OFFLINE"] == "1"


def test_an_answer_leaves_in_pieces_that_ray_keeps_out_of_its_object_store() -> None:
    """That is, of less than 100 KiB, whether it is sent at once or in many short messages."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for body in (b"a" * 2_000_000, *[b"b" * 700] * 1000, b"c" * 100_000):
            await send({"type": "http.response.body", "body": body, "more_body": body[:1] != b"c"})

    async def collect() -> list[list[Message]]:
        scope = {"type": "http", "path": "/", "state": {"about": {}}}
        return [found async for found in Exchange(app, scope, b"").messages()]

    found = asyncio.run(collect())
    assert max(len(pickle.dumps(each)) for each in found) < 100 * 1024
    bodies = [message["body"] for each in found for message in each if message["type"] == "http.response.body"]
    assert b"".join(bodies) == b"a" * 2_000_000 + b"b" * 700_000 + b"c" * 100_000
    assert len(found) < 100  # short messages travel together


class _Replicas:
    """What the front gets from Ray Serve: the answers of all replicas, or the errors in their place."""

    def __init__(self, *answers: Any) -> None:
        self._answers = answers

    def broadcast(self, method: str, *given: Any) -> "_Replicas":
        return self

    async def results_async(self, **options: Any) -> list[Any]:
        return list(self._answers)


@quiet
def test_a_replica_that_was_killed_for_memory_has_nothing_in_it() -> None:
    """So the memory of all is that of the others; without any other, the request is to be sent again."""
    from ray import exceptions

    from medvllm.server.replicas.front import create_front

    head = {"type": "http.response.start", "status": 200, "headers": [], "known": {"about": {}, "route": "/v1/memory"}}
    answer = "a", [head, {"type": "http.response.body", "body": b'{"models": [1]}', "more_body": False}]
    errors: Any = exceptions  # they have no types
    killed = errors.OutOfMemoryError("killed")
    for answers, status in (([answer, killed], 200), ([killed], 503), ([answer, errors.NodeDiedError("gone")], 503)):
        replicas: Any = _Replicas(*copy.deepcopy(answers))
        app = create_front(ModelRegistry(), ServerConfig(requires_key=False), replicas)
        with TestClient(app, base_url="http://127.0.0.1") as client:
            assert client.get("/v1/memory").status_code == status, client.get("/v1/memory").text


class _OneReplica:
    """A replica in this process, with the models for which it was chosen."""

    def __init__(self, models: ModelRegistry, config: ServerConfig) -> None:
        self._app = create_app(models, config)
        self.chosen: list[str] = []

    def options(self, *, multiplexed_model_id: str, **others: Any) -> "_OneReplica":
        self.chosen.append(multiplexed_model_id)
        return self

    def remote(self, scope: Scope, *body: bytes) -> AsyncGenerator[list[Message]]:
        return Exchange(self._app, scope, b"".join(body)).messages()

    def broadcast(self, method: str, *given: Any) -> "_OneReplica":
        self._asked = self.remote(*given)
        return self

    async def results_async(self, **options: Any) -> list[tuple[str, list[Message]]]:
        return [("a", [message async for found in self._asked for message in found])]


@quiet
def test_a_server_below_a_prefix_answers_as_one_at_the_root(
    models: ModelRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `route_prefix: /med`, Ray's proxies leave the prefix in the path. Rights and models depend on the path."""
    from medvllm.server.replicas.front import create_front

    key = command(monkeypatch, "key", "add", "pacs", "--right", "infer", "--right", "read").out.strip()
    headers = {"Authorization": f"Bearer {key}"}
    config = ServerConfig(requires_key=True)
    asked: list[tuple[str, str, Any, dict[str, str]]] = [
        *((method, path, body, headers) for method, path, body in REQUESTS),
        ("GET", "/livez", None, {}),
        ("GET", "/v1/memory", None, {}),
        ("POST", "/v1/unload", {"model": "ner"}, headers),  # the key may not
        ("POST", "/medical", None, headers),
    ]
    found: dict[str, list[Any]] = {}
    chosen: dict[str, list[str]] = {}
    for prefix in ("", "/med", "/v1"):
        replica: Any = _OneReplica(models, config)
        app = create_front(models, config, replica)
        with TestClient(app, base_url="http://127.0.0.1", root_path=prefix) as client:
            found[prefix] = [
                _shown(client.request(method, prefix + path, content=_content(body), headers=own))
                for method, path, body, own in asked
            ]
        chosen[prefix] = replica.chosen
    assert found["/med"] == found["/v1"] == found[""]
    assert chosen["/med"] == chosen["/v1"] == chosen[""] and {"ner@1", "dec@1"} <= set(chosen[""])


@quiet
def test_the_file_for_a_cluster_is_one_that_ray_and_medvllm_accept() -> None:
    """And without an API key, nothing is deployed: Ray decides who can reach it. Nor with what no replica could use."""
    from ray.serve.schema import ServeDeploySchema

    from medvllm.server.ray_app import Arguments, app
    from medvllm.server.replicas.deployments import ingress, models

    [application] = ServeDeploySchema.model_validate(yaml.safe_load(DEPLOY.read_text())).applications
    assert application.import_path == "medvllm.server.ray_app:app"
    assert {each.name for each in application.deployments} == {models().name, ingress().name}
    arguments = Arguments.model_validate(application.args)
    with pytest.raises(SettingError, match="Make one: medvllm key add NAME"):
        app(arguments)
    app(arguments.model_copy(update={"insecure": True}))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"load": ["nobody"]}, "'nobody' is not registered"),
        ({"redaction_keys": {"trial": Path("trial.key")}}, f"redaction_keys: {{trial: {Path.cwd()}/trial.key}}"),
        ({"redaction_keys": {"trial": Path("/nowhere/trial.key")}}, "cannot be read"),
    ]
    for given, what in wrong:
        with pytest.raises(MedVLLMError) as refused:
            app(arguments.model_copy(update={"insecure": True, **given}))
        assert what in str(refused.value)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_cluster_serves_the_file_and_a_server_of_its_own(
    models: ModelRegistry, ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`serve` deploys the file of the documentation. A server with --ray ADDRESS comes and goes beside it.

    It takes the place of one that was killed, or still completes a request. The deployed one is below a prefix.
    """
    key = command(monkeypatch, "key", "add", "pacs", "--right", "infer", "--right", "read", "--right", "manage").out
    headers = {"Authorization": f"Bearer {key.strip()}"}
    address, url = f"127.0.0.1:{_free_port()}", f"http://127.0.0.1:{(port := _free_port())}/med"
    config = yaml.safe_load(DEPLOY.read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["route_prefix"] = "/med"
    config["applications"][0]["deployments"][1] |= {"ray_actor_options": {"num_cpus": 0.5}}
    config["applications"][0]["deployments"][1]["autoscaling_config"] |= {"initial_replicas": 1}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    with _cluster(address) as ray, httpx2.Client(base_url=url, headers=headers, timeout=120) as client:
        run = [sys.executable, "-m", "ray.serve.scripts", "run", "--non-blocking", "--address", address, "serve.yaml"]
        subprocess.run(run, cwd=tmp_path, check=True, timeout=200)
        wait_until(lambda: _is_there(client), step_s=0.2)
        _answers_are_equal(client, headers, models)
        assert httpx2.get(f"{url}/v1/models", timeout=60).status_code == 401
        killed = Started("--ray", address, "--replicas", "1")
        own = killed.wait_for(r"Serving at (http\S+), with API keys, by 1 replica in Ray")
        killed.end(signal.SIGKILL)
        assert len(_replicas(ray)) == 3  # its replica runs on
        server = Started("--ray", address, "--replicas", "1", "--port", own.rpartition(":")[2])
        later: Started | None = None
        try:
            server.wait_for("(An earlier server at this address was killed)")
            own = server.wait_for(r"Serving at (http\S+), with API keys, by 1 replica in Ray")
            assert len(_replicas(ray)) == 3
            asked = {"model": "ner", "input": NOTE}
            found = [
                httpx2.post(f"{each}/v1/entities", json=asked, headers=headers, timeout=120).json()["data"]
                for each in (own, url)
            ]
            assert found[0] == found[1]
            with _request_that_stays(own, headers):
                os.kill(server.pid, signal.SIGTERM)
                wait_until(lambda: not _accepts(own))
                later = Started("--ray", address, "--replicas", "1", "--port", own.rpartition(":")[2])
                later.wait_for(r"Serving at (http\S+), with API keys, by 1 replica in Ray")
            assert server.wait() == -signal.SIGTERM
            answer = httpx2.post(f"{own}/v1/entities", json=asked, headers=headers, timeout=120)
            assert answer.status_code == 200 and len(_replicas(ray)) == 3
        finally:
            server.end(signal.SIGTERM)
            if later is not None:
                later.end(signal.SIGTERM)
        assert later.wait() == -signal.SIGTERM
        assert not [line for line in later.lines if "was killed" in line]
        assert client.post("/v1/entities", json=asked).status_code == 200  # the other one stays
        assert len(_replicas(ray)) == 2  # the ingress, and one with models
    logs = [file for file in ray_folder.rglob("*") if file.is_file()]
    assert not [file for file in logs if WORD.encode() in file.read_bytes()]


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def _cluster(address: str) -> Iterator[psutil.Process]:
    """A Ray that others started."""
    host, port = address.split(":")
    options = ["--head", "--block", "--node-ip-address", host, "--port", port, "--num-cpus", "4"]
    options += ["--include-dashboard", "false", "--disable-usage-stats", "--object-store-memory", str(100 * 2**20)]
    with subprocess.Popen([sys.executable, "-m", "ray.scripts.scripts", "start", *options], stdout=-3) as ray:
        started = psutil.Process(ray.pid)
        try:
            yield started
        finally:
            for each in [*started.children(recursive=True), started]:
                each.kill()


def _is_there(client: httpx2.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def _request_that_stays(url: str, headers: dict[str, str]) -> Iterator[None]:
    """A request whose body does not come to an end."""
    host, port = url.removeprefix("http://").split(":")
    lines = ["POST /v1/entities HTTP/1.1", f"Host: {host}:{port}", "Content-Length: 1000", "Expect: 100-continue"]
    head = "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "", ""])
    with socket.create_connection((host, int(port)), 60) as client:
        client.sendall(head.encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 100")  # the server reads the body
        yield


def _accepts(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), 60).close()
    except ConnectionRefusedError:
        return False
    return True


def _answers_are_equal(client: httpx2.Client, headers: dict[str, str], models: ModelRegistry) -> None:
    with serving(models, ServerConfig(requires_key=True)) as alone:
        alone.headers.update(headers)
        for method, path, body in REQUESTS:
            found, wanted = (each.request(method, path, content=_content(body)) for each in (client, alone))
            assert _shown(found) == _shown(wanted), (method, path)
            assert len(found.headers.get_list("x-request-id")[0]) == 32  # Ray's proxies add one of their own


def _content(body: Any) -> str | None:
    return body if isinstance(body, str) or body is None else json.dumps(body)


def _shown(answer: httpx2.Response) -> tuple[Any, ...]:
    text = answer.text
    if answer.headers["content-type"].startswith("application/json"):
        text = json.dumps(_without(json.loads(text)))
    elif "event-stream" in answer.headers["content-type"]:
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        text = json.dumps([_without(json.loads(event)) for event in events[:-1]]) + events[-1]
    return answer.status_code, {name: answer.headers.get(name) for name in HEADERS}, text


def _without(content: Any) -> Any:
    """The content without what changes with each answer."""
    if isinstance(content, dict):
        return {name: _without(value) for name, value in content.items() if name not in CHANGING}
    return [_without(each) for each in content] if isinstance(content, list) else content


def _counts(client: httpx2.Client, name: str) -> dict[str, Counter[str]]:
    """How many requests each replica has answered, for each model."""
    found: dict[str, Counter[str]] = {}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith(name + "{"):
            labels = dict(part.split("=", 1) for part in line[len(name) + 1 : line.index("}")].split(","))
            model, replica = (labels[each].strip('"') for each in ("model", "replica"))
            found.setdefault(model, Counter())[replica] += int(float(line.rpartition(" ")[2]))
    return found


def _answered(client: httpx2.Client) -> dict[str, Counter[str]]:
    return _counts(client, "medvllm_model_requests_total")


def _requests_stay_where_their_model_is(client: httpx2.Client) -> None:
    """Also by other names of the same version."""
    before = _answered(client)
    for number in range(6):
        name = ("ner", "ner@production", "ner:1")[number % 3]
        assert client.post("/v1/entities", json={"model": name, "input": NOTE}).status_code == 200
        assert client.post("/v2/models/ner@1/infer", json=INFER).status_code == 200
        assert client.post("/v1/embeddings", json={"model": "enc", "input": NOTE}).status_code == 200
    after = _answered(client)
    for model, count in (("ner", 12), ("enc", 6)):
        assert sorted((after[model] - before[model]).values()) == [count]
    assert set(after["ner"]) != set(after["enc"])  # the second model went where there was none


def _all_replicas_are_asked_for_their_memory(client: httpx2.Client) -> None:
    names = [model["name"] for model in client.get("/v1/memory").json()["models"]]
    assert sorted(names) == ["dec", "enc", "ner"]
    ready = client.post("/v2/repository/index", json={"ready": True}).json()
    assert [state["name"] for state in ready] == ["dec", "enc", "ner"]
    assert client.post("/v1/unload", json={"model": "dec"}).json() == {"model": "dec", "models": 1}
    assert client.post("/v1/unload", json={"model": "none"}).status_code == 404
    assert sorted(model["model"] for model in client.get("/api/ps").json()["models"]) == ["enc", "ner"]


def _keys_are_asked_for_before_a_body_is_read(url: str) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b" " * 1000

    assert httpx2.get(f"{url}/v1/models", headers={"X-API-Key": SECRET}, timeout=60).status_code == 200
    refused = httpx2.post(f"{url}/v1/entities", content=endless(), timeout=60)
    assert refused.status_code == 401 and "Bearer" in refused.headers["www-authenticate"]


def _a_moved_alias_reaches_each_replica(client: httpx2.Client, models: ModelRegistry, folder: Path) -> None:
    """Of a model that is so busy that both replicas have it."""
    other = tiny.bert_token_classifier(folder / "other", ["O", "B-DRUG", "I-DRUG"])
    models.register("ner", "clinical", model_path=str(other), task="ner", persist=True, replace=True)

    def versions() -> set[str]:
        ask = partial(client.post, "/v1/entities", json={"model": "ner@production", "input": NOTE})
        with ThreadPoolExecutor(32) as threads:
            answers = [each.result() for each in [threads.submit(ask) for _ in range(64)]]
        assert {answer.status_code for answer in answers} == {200}
        return {answer.headers["x-medvllm-version"] for answer in answers}

    def ask_both(version: str) -> None:
        before = _answered(client)["ner"]
        wait_until(lambda: versions() == {version} and len(_answered(client)["ner"] - before) == 2, step_s=0)

    ask_both("1")
    models.catalog.set_alias("ner", "production", 2)
    assert versions() == {"2"}
    ask_both("2")


def _replicas(ray: psutil.Process) -> list[psutil.Process]:
    return [each for each in ray.children(recursive=True) if "ServeReplica" in "".join(each.cmdline())]


def _a_killed_replica_loses_nothing(url: str, key: str, replicas: list[psutil.Process]) -> None:
    assert len(replicas) == 2
    with Client(url, api_key=key) as client, ThreadPoolExecutor(16) as threads:
        wanted = client.entities("ner", [NOTE]).to_dict()
        answers = [threads.submit(client.entities, "ner", [NOTE]) for _ in range(200)]
        wait_until(lambda: sum(each.done() for each in answers) > 20)
        replicas[0].send_signal(signal.SIGKILL)
        assert all(each.result().to_dict() == wanted for each in answers)
