"""`medvllm serve` and `medvllm key`: processes that start, refuse to start, drain and end."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry
from tests.support import tiny
from tests.support.console import Outcome, command
from tests.support.started import Started
from tests.support.waiting import wait_until

Console = Callable[..., Outcome]
Start = Callable[..., Started]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Started] = []

    def begin(*options: str) -> Started:
        started.append(Started(*options))
        return started[-1]

    yield begin
    for each in started:
        each.end(signal.SIGKILL)


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    return lambda *arguments: command(monkeypatch, *arguments)


@pytest.fixture
def ner(tmp_path: Path) -> None:
    folder = tiny.bert_token_classifier(tmp_path / "ner", ["O", "B-NAME", "I-NAME"])
    ModelRegistry().register("ner", "clinical", model_path=str(folder), task="ner", persist=True)


def test_commands_of_the_user_find_the_server(
    start: Start, ner: None, console: Console, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that requires keys. Once it is killed, they load the model themselves, and its record is removed."""
    monkeypatch.setattr("medvllm.client.resident_connection._ANSWER_S", 60.0)  # this machine may be busy
    console("key", "add", "pacs")
    server = start("--load", "ner")
    server.wait_for(r"Serving at (http\S+),")
    found, local = console("run", "ner", "Seen by Dr. Smith."), console("run", "ner", "Seen by Dr. Smith.", "--local")
    assert "Answered by the server of this user" in found.err and local.err == ""
    assert found.out == local.out and found.code == 0
    server.end(signal.SIGKILL)
    assert console("run", "ner", "Seen by Dr. Smith.") == local
    assert not list((home / "medvllm" / "run" / "servers").iterdir()) and "Smith" not in "".join(server.lines)


def test_a_server_completes_its_requests_before_it_ends(
    start: Start, ner: None, tmp_path: Path, console: Console
) -> None:
    """And a second one on its port names it. Models, keys and lines are as asked."""
    (tmp_path / "study.key").write_text("0123456789abcdef")
    server = start("--load", "ner", "--redaction-key", f"study={tmp_path / 'study.key'}")
    url = server.wait_for(r"Serving at (http\S+),")
    assert server.lines[0] == "Loaded ner.\n"
    assert httpx2.post(f"{url}/v2/repository/index", json={"ready": True}).json()[0]["name"] == "ner"
    assert httpx2.get(f"{url}/info").json()["model_id"] == "ner"  # the only one that it loaded
    hashed = {"anonymizers": {"NAME": {"type": "hash", "key": "study"}}}
    found = {"text": "ab", "analyzer_results": [{"start": 0, "end": 2, "entity_type": "NAME"}]}
    assert len(httpx2.post(f"{url}/presidio/anonymize", json=found | hashed).json()["text"]) == 64
    second = console("serve", "--port", url.rpartition(":")[2])
    assert second.code == 1 and f"is taken by process {server.pid} (" in second.err
    assert ").\nTo use another one: --port" in second.err
    body = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["Seen by Dr. Smith."]}]}
    sent = json.dumps(body).encode()
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST /v2/models/ner/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(sent)}\r\n\r\n"
        connection.sendall(head.encode() + sent[:10])
        with httpx2.Client(base_url=url, timeout=60) as client:
            wait_until(lambda: "medvllm_open_requests 2.0" in client.get("/metrics").text, step_s=0.01)
        os.kill(server.pid, signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            while True:
                socket.create_connection((host, int(port))).close()
                time.sleep(0.01)
        connection.sendall(sent[10:])
        assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
    assert server.wait() == -signal.SIGTERM
    last = json.loads(server.lines[-1])
    assert (last["route"], last["status"], last["model"]) == ("/v2/models/{model:path}/infer", 200, "ner")
    assert "Smith" not in "".join(server.lines)


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_a_server_that_has_the_port_is_called_by_its_name(tmp_path: Path, console: Console) -> None:
    """And not as the interpreter that runs it."""
    program = tmp_path / "medvllm"
    program.write_text("import socket\nport = socket.create_server(('127.0.0.1', 0))\n")
    with program.open("a") as code:
        code.write("print(port.getsockname()[1], flush=True)\nopen(0).read()")
    with subprocess.Popen([sys.executable, program, "serve"], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None
        refused = console("serve", "--port", other.stdout.readline().strip())
    assert refused.code == 1 and f"is taken by process {other.pid} (medvllm serve).\n" in refused.err


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="needs /proc")
def test_a_server_that_others_can_reach_needs_a_key(start: Start, console: Console) -> None:
    """Or the word of who starts it. Keys that exist are also asked for on this machine."""
    refused = console("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.code == 1 and "Make one: medvllm key add NAME" in refused.err
    insecure = start("--host", "0.0.0.0", "--insecure")
    assert insecure.wait_for("Serving at .*, (without API keys)")
    insecure.wait_for("(Anybody on the way can read texts and keys)")
    key = console("key", "add", "pacs", "--expires", "90d", "--max-texts", "3").out.strip()
    server = start()
    url = server.wait_for(r"Serving at (http\S+), with API keys")
    assert httpx2.get(f"{url}/v2").status_code == 401
    assert httpx2.get(f"{url}/v2", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    console("key", "revoke", "pacs")
    closed = start()
    closed.wait_for("(No API key is valid any more)")
    url = closed.wait_for(r"Serving at (http\S+), with API keys")
    assert httpx2.get(f"{url}/v2").status_code == 401


def test_a_certificate_makes_it_https(start: Start, console: Console, tmp_path: Path) -> None:
    """A file that is none is named, and nothing starts."""
    certificate = tmp_path / "server.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(tmp_path / "key.pem"), "-out"]
    subprocess.run([*command, str(certificate)], check=True, capture_output=True)
    server = start("--certificate", str(certificate), "--certificate-key", str(tmp_path / "key.pem"))
    url = server.wait_for(r"Serving at (https\S+),")
    trust = ssl.create_default_context(cafile=str(certificate))
    assert httpx2.get(f"{url}/livez", verify=trust).json() == {"status": "ok"}
    for wrong in (certificate, tmp_path / "none.pem"):  # the key is missing, or both
        refused = console("serve", "--port", "0", "--certificate", str(wrong))
        assert refused.code == 1 and f"Certificate {str(wrong)!r} cannot be used: " in refused.err


def test_keys_are_made_listed_and_revoked(console: Console, catalog_url: str) -> None:
    """In either database. The key itself is printed once, and alone on standard output."""
    key = console("key", "add", "pacs", "--right", "infer", "--max-concurrent", "2", "--expires", "12h").out.strip()
    assert re.fullmatch(r"mvk_[\w-]{43}", key)
    listed = console("key", "list", "--json").out
    [record] = json.loads(listed)
    assert (record["name"], record["rights"], record["limits"]) == ("pacs", ["infer"], {"max_concurrent": 2})
    assert key not in listed and "digest" not in record
    assert "\tinfer\tconcurrent=2\t" in console("key", "list").out
    taken = console("key", "add", "pacs")
    assert taken.code == 2 and taken.err.startswith("Error: There is a key 'pacs' already")
    for options, message in (
        (("--right", "write"), "'write' is none of read, infer, manage"),
        (("--expires", "-1"), "is no duration"),
        (("--expires", "nand"), "is no duration"),
        (("--expires", "99999999d"), "is no duration"),
    ):
        wrong = console("key", "add", "other", *options)
        assert wrong.code == 2 and message in wrong.err
    missing = console("key", "revoke", "pac")
    assert missing.code == 1 and "There is no key 'pac'. Did you mean: 'pacs'?" in missing.err
    assert console("key", "revoke", "pacs").out == "Revoked pacs.\n"
    assert "\trevoked 2" in console("key", "list").out
    assert console("key", "revoke", "pacs").err.startswith("Error: Key 'pacs' is revoked already.")


def test_a_redaction_key_that_cannot_be_used_ends_the_start(console: Console, tmp_path: Path) -> None:
    """Before the port is taken; and so does a name without a file."""
    key = tmp_path / "study.key"
    key.write_text("short")
    for given, code, message in (
        (f"study={key}", 1, "has 5 bytes; it needs 16 or more"),
        (f"study={tmp_path / 'none'}", 1, "cannot be read: No such file"),
        ("study", 2, "NAME=FILE"),
    ):
        said = console("serve", "--port", "0", "--redaction-key", given)
        assert said.code == code and message in said.err, given
