"""`medvllm run` with a server of this user: the same bytes, sooner; and never a server that may mean another model."""

import json
import os
import re
import shlex
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from medvllm import settings
from medvllm.api_keys import prove
from medvllm.catalog import stores
from medvllm.client.conditions import current_conditions
from medvllm.client.resident import find_resident
from medvllm.client.server_record import ServerRecord, read_records
from medvllm.engine.model_runner import ModelRegistry
from medvllm.engine.model_runner import registry as shared_registry
from medvllm.errors import ServerError
from medvllm.files import make_own, make_own_file
from medvllm.processes.process import Process
from medvllm.server.config import ServerConfig
from tests.support import decoders
from tests.support.console import Outcome, Screen, command
from tests.support.scripted import HUNG_UP, Reply, Sent, scripted
from tests.support.served import NOTE, registry_of_all_tasks
from tests.support.serving import serving
from tests.support.spread import spread
from tests.support.users import NOBODY
from tests.support.waiting import wait_until

Run = Callable[..., Outcome]

KEY = "k" * 40
CANARY = "Zyxwvutcanary"
LINE = "Answered by the server of this user at "
NAMES = ("deid", "cls", "assert", "mlm", "rank", "minilm", "chat")


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the entries of a model for each task are registered with."""
    folder = tmp_path_factory.mktemp("models")
    made = registry_of_all_tasks(folder)
    made.register("chat", "clinical", model_path=str(decoders.llama(folder / "chat")), task="generate")
    found = []
    for name in NAMES:
        entry = made.get_metadata(name)
        markers = {"entity_markers": list(entry.behaviour.entity_markers)} if name == "assert" else {}
        found.append({"name": name, "model_path": entry.location, "task": entry.tasks[0], **markers})
    return found


@pytest.fixture(scope="module")
def catalogue(entries: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The file of a catalogue with the entries."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVLLM_HOME", str(folder))
        for entry in entries:
            ModelRegistry().register(model_type="clinical", persist=True, **entry)
        stores.close_all()  # so that the log beside the file is gone
    return (folder / "catalog.db").read_bytes()


@pytest.fixture
def stored(catalogue: bytes, home: Path) -> None:
    file = home / "medvllm" / "catalog.db"
    make_own(file.parent)
    make_own_file(file)
    file.write_bytes(catalogue)


@pytest.fixture
def served(stored: None) -> ModelRegistry:
    """The registry of the server."""
    return ModelRegistry()


@pytest.fixture
def resident(served: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerRecord]:
    """A server of this user, with its record. Its models are those of another registry."""
    monkeypatch.setattr("medvllm.client.resident_connection._ANSWER_S", 60.0)  # this machine may be busy
    with serving(served, ServerConfig(own_key=KEY, requires_key=True)) as http:
        url = str(http.base_url).rstrip("/")
        record = ServerRecord(url, KEY, current_conditions(), Process.current())
        record.publish()
        yield record
    served.clear_cache()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    return lambda *words, **streams: command(monkeypatch, "run", *words, **streams)


def _same(run: Run, *words: str, **streams: Any) -> Outcome:
    """Run a command with the server and without, and return what both wrote to standard output."""
    found, expected = run(*words, **streams), run(*words, "--local", **streams)
    assert LINE in found.err and LINE not in expected.err
    assert (found.code, found.out) == (expected.code, expected.out) and found.code == 0
    assert [line for line in found.err.splitlines() if LINE not in line] == expected.err.splitlines()
    return found


def test_each_task_prints_the_same_bytes(resident: ServerRecord, run: Run, tmp_path: Path) -> None:
    """As a table, as JSON with a receipt, and with the options of the task."""
    spans = tmp_path / "spans.jsonl"
    spans.write_text(json.dumps({"id": "a", "text": "no fever", "spans": [{"start": 3, "end": 8}]}) + "\n")
    for words in (
        ("deid", NOTE, ""),
        ("deid", NOTE, "--task", "redact"),
        ("deid", NOTE, "--task", "redact", "--operators", '{"DEFAULT": {"type": "replace"}}'),
        ("deid", NOTE, "--task", "ner", "--labels", "NAME", "--threshold", "0.5", "--aggregation", "max"),
        ("cls", "no fever", "pain", "--top-k", "2"),
        ("assert", "--file", str(spans)),
        ("mlm", "a [MASK]", "--targets", "fever"),
        ("rank", "no fever", "pain", "--query", "fever", "--top-k", "1"),
        ("minilm", "no fever"),
        ("minilm", "no fever", "--task", "embed", "--prompt", "query: "),
        ("chat", "no fever", "--max-new-tokens", "5"),
    ):
        _same(run, *words)
        assert json.loads(_same(run, *words, "--json").out)["receipt"]["verified"]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet", "npy", "txt"])
def test_each_format_has_the_same_bytes(resident: ServerRecord, run: Run, tmp_path: Path, ending: str) -> None:
    """Results in a file, with the receipt in another one; the ids and places of a corpus, too."""
    corpus = tmp_path / "notes.csv"
    corpus.write_text(f"id,text\na,{NOTE}\nb,Jones\n")
    name = {"npy": "minilm", "txt": "chat"}.get(ending, "deid")
    options = ("--max-new-tokens", "4") if name == "chat" else ()
    written = []
    for place in ((), ("--local",)):
        file, receipt = tmp_path / f"{len(place)}.{ending}", tmp_path / f"{len(place)}.receipt"
        done = run(name, "--file", str(corpus), "-o", str(file), "--receipt", str(receipt), *options, *place)
        assert done.code == 0 and (LINE in done.err) is not bool(place)
        written.append((file.read_bytes(), receipt.read_bytes()))
    assert written[0] == written[1] and written[0][0]


def test_a_terminal_sees_the_same(resident: ServerRecord, run: Run) -> None:
    """A text as it is generated, and entities in their colours."""
    for words in (("chat", "a", "b", "--max-new-tokens", "5"), ("deid", NOTE)):
        first, second = Screen(), Screen()
        assert LINE in run(*words, stdout=first).err
        run(*words, "--local", stdout=second)
        assert first.getvalue() == second.getvalue() != ""


@pytest.mark.parametrize(
    "words",
    [
        ("cls", f"{CANARY} " * 90),
        ("deid", CANARY, "--labels", "DRUG"),
        ("deid", CANARY, "--top-k", "2"),
        ("deid", CANARY, "--task", "nosuch"),
        ("chat", CANARY, "--top-k", "2"),
        ("mlm", CANARY),
        ("nosuch", CANARY),
        ("deid", CANARY, "--task", "redact", "--operators", '{"DEFAULT": {"type": "hash"}}'),
    ],
)
def test_errors_and_exit_codes_are_the_same(resident: ServerRecord, run: Run, words: tuple[str, ...]) -> None:
    """The model that is loaded here says what is wrong, in its own words."""
    found, expected = run(*words), run(*words, "--local")
    assert found == expected and found.code > 0 and CANARY not in found.err


def _use_another_version(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("medvllm.__version__", "0.0.9")


def _use_another_dtype(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MEDVLLM_DTYPE", "float32")


def _use_another_cache(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_HUB_OFFLINE", "1")


def _use_another_lock(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("MEDVLLM_LOCK_FILE", str(settings.HOME() / "other.lock"))


def _use_another_catalogue(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    file = settings.HOME() / "catalog.db"
    copy = file.with_name("copy.db")
    copy.write_bytes(file.read_bytes())
    patch.setenv("MEDVLLM_CATALOG", str(copy))


def _replace_the_catalogue(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    file = settings.HOME() / "catalog.db"
    copy = file.with_name("copy.db")
    copy.write_bytes(file.read_bytes())
    copy.replace(file)


def _give_it_to_another_user(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    [file] = (settings.HOME() / "run" / "servers").iterdir()
    os.chown(file, NOBODY, NOBODY)


def _break_the_record(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    [file] = (settings.HOME() / "run" / "servers").iterdir()
    file.write_text(file.read_text().replace('"pid": ', '"pid": -'))


def _let_it_be_gone(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    [file] = (settings.HOME() / "run" / "servers").iterdir()
    content = json.loads(file.read_text())
    content["process"]["started"] = "1"
    file.write_text(json.dumps(content))


def _lose_the_key(record: ServerRecord, patch: pytest.MonkeyPatch) -> None:
    [file] = (settings.HOME() / "run" / "servers").iterdir()
    file.write_text(file.read_text().replace(KEY, "x" * 40))


@pytest.mark.parametrize(
    "change",
    [
        _use_another_version,
        _use_another_dtype,
        _use_another_cache,
        _use_another_lock,
        _use_another_catalogue,
        _replace_the_catalogue,
        _give_it_to_another_user,
        _break_the_record,
        _let_it_be_gone,
        _lose_the_key,
    ],
)
def test_a_server_that_is_not_the_same_is_not_used(
    resident: ServerRecord, monkeypatch: pytest.MonkeyPatch, change: Callable[[ServerRecord, Any], None]
) -> None:
    """Of another version, setting, lock or catalogue; another user's; one that is gone, or is not the one it says."""
    before = find_resident()
    assert before is not None
    before.close()
    change(resident, monkeypatch)
    assert find_resident() is None


def test_only_the_user_can_read_the_record(resident: ServerRecord) -> None:
    """It has the server's key, which its representation does not show. Records of servers that are gone are removed."""
    folder = settings.HOME() / "run" / "servers"
    [file] = folder.iterdir()
    assert (folder.stat().st_mode & 0o777, file.stat().st_mode & 0o777) == (0o700, 0o600)
    assert KEY in file.read_text() and KEY not in repr(resident)
    replace(resident, process=replace(resident.process, started="1")).publish()
    assert list(read_records()) == [resident] and list(folder.iterdir()) == [file]


@pytest.mark.parametrize("status", [200, 404, 500, None])
def test_a_process_that_took_the_port_learns_nothing(stored: None, run: Run, status: int | None) -> None:
    """Neither the key nor a text is sent before the server has shown that it has the key. One that hangs is left."""
    script = Reply(status, json.dumps({"proof": "0" * 64}).encode()) if status else None
    with scripted(lambda sent: script) as server:
        ServerRecord(server.url, KEY, current_conditions(), Process.current()).publish()
        done = run("deid", CANARY)
        assert done.code == 0 and LINE not in done.err and server.sent
        for sent in server.sent:
            assert sent.path == "/v1/identity" and "authorization" not in sent.headers
            assert CANARY.encode() not in sent.body and KEY.encode() not in sent.body


@pytest.mark.parametrize("is_taken", [False, True])
def test_the_server_shows_its_key_on_each_connection(stored: None, is_taken: bool) -> None:
    """One connection is enough while it lasts. Behind a new one, there may be another program."""
    replies = [Reply(200, b'{"models": []}')] * 2 + [HUNG_UP] + [Reply(200, b'{"models": []}')]

    def script(sent: Sent) -> Reply:
        if sent.path != "/v1/identity":
            return replies.pop(0)
        has_key = len(replies) == 4 or not is_taken
        return Reply(
            200, json.dumps({"proof": prove(KEY if has_key else "x", json.loads(sent.body)["nonce"])}).encode()
        )

    with scripted(script) as server:
        ServerRecord(server.url, KEY, current_conditions(), Process.current()).publish()
        client = find_resident()
        assert client is not None and client.loaded() == client.loaded() == []
        if is_taken:
            with pytest.raises(ServerError, match="Another program has the port"):
                client.loaded()
        else:
            assert client.loaded() == []
        client.close()
    paths = ["/v1/identity", *["/v1/memory"] * 3, "/v1/identity", *([] if is_taken else ["/v1/memory"])]
    assert [sent.path for sent in server.sent] == paths
    assert all(("authorization" in sent.headers) is (sent.path == "/v1/memory") for sent in server.sent)


@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, b'{"error": {"message": "It failed.", "code": "internal_error"}}'),
        Reply(429, b'{"error": {"message": "It is full.", "code": "overloaded"}}'),
        Reply(200, b'{"model": "deid", "version": 1, "task": "ner"', length=1000),
        Reply(200, b'{"model": "deid", "version": 7, "task": "deid", "records": [], "classes": []}'),
    ],
)
@pytest.mark.parametrize("name", spread(["deid", "chat"], 2))
def test_a_server_that_fails_is_no_error(stored: None, run: Run, reply: Reply, name: str) -> None:
    """The model is loaded here instead; so it is if the server has another version of it."""

    def script(sent: Sent) -> Reply:
        if sent.path == "/v1/identity":
            return Reply(200, json.dumps({"proof": prove(KEY, json.loads(sent.body)["nonce"])}).encode())
        return reply

    words = (name, "Jones", *(("--max-new-tokens", "3") if name == "chat" else ()))
    with scripted(script) as server:
        ServerRecord(server.url, KEY, current_conditions(), Process.current()).publish()
        found, screen, local = run(*words), Screen(), Screen()
        assert [sent.path for sent in server.sent] == ["/v1/identity", "/v1/run"]
        assert server.sent[1].headers["authorization"] == f"Bearer {KEY}"
        assert found == run(*words, "--local") and found.code == 0
        assert run(*words, stdout=screen).code == run(*words, "--local", stdout=local).code == 0
        assert screen.getvalue() == local.getvalue() != "" and len(server.sent) == 4


def test_what_the_server_cannot_do_is_done_here(
    resident: ServerRecord, run: Run, entries: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of a load, folders, entries of this process, secrets, files for surrogates, and a larger corpus."""
    keyed = {"DEFAULT": {"type": "hash", "key": CANARY * 3}}
    kept = {"DEFAULT": {"type": "surrogate", "key": CANARY * 3, "vault": str(tmp_path / "vault.db")}}
    shared_registry.register("own", "clinical", model_path=entries[0]["model_path"], task="deid")
    try:
        for words in (
            ("deid", NOTE, "--device", "cpu"),
            ("deid", NOTE, "--dtype", "float32"),
            (entries[0]["model_path"], NOTE, "--task", "ner"),
            ("own", NOTE),
            ("deid", NOTE, "--task", "redact", "--operators", json.dumps(keyed)),
            ("deid", NOTE, "--task", "redact", "--operators", json.dumps(kept)),
        ):
            done = run(*words)
            assert done.code == 0 and LINE not in done.err and done.out
        monkeypatch.setattr("medvllm.corpora.rows._CHUNK_ROWS", 2)
        assert LINE in run("deid", "a", "Jones").err
        done = run("deid", "Jones", "b", "Jones")
        assert LINE not in done.err and [line.split("\t")[0] for line in done.out.splitlines()] == ["1", "3"]
    finally:
        shared_registry.unregister("own")


def test_a_server_can_be_named(resident: ServerRecord, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answers have the same bytes; in several chunks, too. Its errors are those of the command."""
    monkeypatch.setenv("MEDVLLM_API_KEY", KEY)
    server = ("--server", resident.url)
    for words in (("deid", NOTE, "Jones"), ("rank", "pain", "no fever", "fever", "--query", "fever"), ("cls", "a")):
        expected = run(*words, "--local")
        assert run(*words, *server) == expected and expected.code == 0
        with monkeypatch.context() as patched:
            patched.setattr("medvllm.corpora.rows._CHUNK_ROWS", 1)
            assert run(*words, *server) == run(*words, "--local")
    refused = run("cls", "a", f"{CANARY} " * 90, *server)
    assert refused.code == 2 and "text 2 is longer than the" in refused.err.lower() and CANARY not in refused.err
    assert "Model 'nosuch' is not registered" in (unknown := run("nosuch", "a", *server)).err and unknown.code == 1
    assert run("deid", "a", *server, "--local").code == run("deid", "a", *server, "--device", "cpu").code == 2
    monkeypatch.setenv("MEDVLLM_API_KEY", "x" * 40)
    assert "API key" in (denied := run("deid", "a", *server)).err and denied.code == 1


def test_the_commands_of_the_page_run(
    resident: ServerRecord, entries: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the server of this user, and with one that is named."""
    monkeypatch.setenv("MEDVLLM_API_KEY", KEY)
    shared_registry.register("my-tagger", "clinical", model_path=entries[0]["model_path"], task="deid", persist=True)
    page = (
        (Path(__file__).parents[1] / "docs" / "client.md").read_text().replace("https://med.example.org", resident.url)
    )
    lines = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL)).splitlines()
    commands = [shlex.split(line)[1:] for line in lines if not line.endswith("&")]
    found = [command(monkeypatch, *words) for words in commands]
    assert [done.code for done in found] == [0] * 5 and LINE in found[0].err and found[0].out == found[1].out


def test_models_of_a_server_are_listed_loaded_and_unloaded(
    resident: ServerRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the user's own one, or of one that is named."""
    monkeypatch.setenv("MEDVLLM_API_KEY", KEY)

    def console(*words: str) -> Outcome:
        return command(monkeypatch, *words)

    assert "deid@1 in memory" in console("load", "deid", "--keep-alive", "-1").err
    assert console("ps", "--server", resident.url).out.split("\t")[::7] == ["deid@1", "pinned\n"]
    assert json.loads(console("ps", "--server", resident.url, "--json").out)[0]["keep_alive"] == -1
    assert "1 model left" in console("unload", "deid", "--server", resident.url).err
    assert "no model" in console("ps", "--server", resident.url).err
    assert console("load", "nosuch").code == 1 and console("load", "deid", "--keep-alive", "soon").code == 2
    monkeypatch.setenv("MEDVLLM_DTYPE", "float32")
    without = console("load", "deid")
    assert without.code == 1 and "Start one: medvllm serve" in without.err


@pytest.mark.usefixtures("interrupts")
def test_ctrl_c_ends_the_call_on_the_server(
    resident: ServerRecord, served: ModelRegistry, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command ends with its exit code, and the server no longer loads the model for it."""

    def interrupt() -> None:
        wait_until(lambda: served.statistics().waiting == 1, step_s=0.01)
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setenv("MEDVLLM_API_KEY", KEY)
    with served.lease("minilm") as lease:  # so that there is no room, and the call waits
        monkeypatch.setenv("MEDVLLM_MEMORY_BUDGET", f"cpu={lease.size_bytes + 1000}B")
        monkeypatch.setenv("MEDVLLM_MEMORY_TIMEOUT", "600")
        thread = threading.Thread(target=interrupt)
        thread.start()
        assert run("deid", "Dr. Smith saw Jones.", "--server", resident.url).code == 130
        thread.join()
        wait_until(lambda: not served.statistics().waiting, step_s=0.01)
    assert [model.name for model in served.loaded_models()] == ["minilm"]
