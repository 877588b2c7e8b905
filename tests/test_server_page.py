"""The page as a browser without JavaScript sees it: forms, links, and texts that are only texts."""

import contextlib
import inspect
import io
import json
import logging
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from medvllm.server.page.highlight import cut
from tests.support.children import held
from tests.support.pages import HOSTILE_NAME, HOSTILE_TEXT, Page, registry_of_pages
from tests.support.served import NOTE
from tests.support.serving import serving

VIEWS = ("/", "/entry?name=deid", "/diff?before=deid&after=cut", "/memory", "/try?name=deid", "/entry?name=nix")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def registry(models: Path) -> ModelRegistry:
    return registry_of_pages(models)


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry) as client:
        yield client


def ask(client: httpx2.Client, name: str, action: str, **fields: str) -> httpx2.Response:
    """Send the form of an action, as a browser does: each line break is CR LF."""
    sent = {field: value.replace("\n", "\r\n") for field, value in fields.items()}
    return client.post("/try", params={"name": name, "action": action}, data=sent)


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_text_and_loads_nothing_from_elsewhere(client: httpx2.Client, view: str) -> None:
    """No inline script or style, which the policy would forbid, and no path of the machine."""
    answer = client.get(view)
    page = Page(answer.text)
    assert answer.status_code == (404 if "nix" in view else 200)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert answer.headers["Cache-Control"] == "no-store"
    assert page.inline == []
    assert all(link.startswith(("/", "#")) for link in page.links)
    for link in filter(lambda link: link.startswith("/static/"), page.links):
        assert client.get(link).status_code == 200


def test_hostile_names_and_texts_are_text(client: httpx2.Client) -> None:
    """In the list, on the entry's own page, in its form, and in what an answer repeats."""
    for answer in (
        client.get("/", params={"mine": "true"}),
        client.get("/entry", params={"name": HOSTILE_NAME}),
        ask(client, HOSTILE_NAME, "redact", text=HOSTILE_TEXT),
        ask(client, "minilm", "embed", sentences=HOSTILE_TEXT),
        ask(client, "rank", "rerank", query=HOSTILE_TEXT, documents=HOSTILE_TEXT),
        ask(client, HOSTILE_TEXT, "redact", text="x"),
        client.get("/", params={"q": HOSTILE_TEXT}),
    ):
        page = Page(answer.text)
        assert page.inline == [] and "<img" not in answer.text
        assert answer.text.count("<script") == 2
    assert HOSTILE_NAME in Page(client.get("/", params={"mine": "true"}).text).text


def test_the_pages_of_the_catalogue_have_each_entry_once(client: httpx2.Client, registry: ModelRegistry) -> None:
    """In the order of names, and nothing follows the last page."""
    seen: list[str] = []
    link: str | None = "/"
    while link is not None:
        page = Page(client.get(link).text)
        names = [each for each in page.links if each.startswith("/entry?name=")]
        seen += [httpx2.URL(f"http://x{each}").params["name"] for each in names]
        link = next((each for each in page.links if "after=" in each), None)
    assert seen == list(registry.list_models())


@pytest.mark.parametrize(
    ("query", "facts"),
    [
        ({"q": "deid"}, {"search": "deid"}),
        ({"type": "biomedical", "task": "embed"}, {"model_type": "biomedical", "task": "embed"}),
        ({"tag": "bert"}, {"tags": "bert"}),
        ({"license": "apache"}, {"license": "*apache*"}),
        ({"mine": "true"}, {"origin": "process"}),
    ],
)
def test_filters_are_those_of_the_registry(
    client: httpx2.Client, registry: ModelRegistry, query: dict[str, str], facts: dict[str, Any]
) -> None:
    """And what was asked is still in the form."""
    page = Page(client.get("/", params=query).text)
    names = [httpx2.URL(f"http://x{each}").params["name"] for each in page.links if each.startswith("/entry?name=")]
    assert names == list(registry.list_models(**facts))[:40] and names


def test_files_that_are_here_can_be_asked_for(client: httpx2.Client) -> None:
    """Only the tests' own models are on the machine."""
    shown = client.get("/", params={"here": "true"}).text
    assert client.get("/", params={"here": "true", "mine": "true"}).text.count("<tr>") == shown.count("<tr>") == 11


def test_an_entry_shows_its_versions_and_who_made_them(
    client: httpx2.Client, registry: ModelRegistry, models: Path
) -> None:
    """With certainty of each fact, aliases, lock and history, but no path of the machine."""
    facts: dict[str, Any] = {"model_path": str(models / "deid"), "task": "deid", "persist": True}
    registry.register("ward", "clinical", license="mit", provenance={"license": "seen: the card"}, reason="v1", **facts)
    registry.register("ward", "clinical", license="apache-2.0", replace=True, reason="other terms", **facts)
    registry.catalog.set_alias("ward", "production", 1)
    registry.catalog.protect("ward", "stable", reason="patients depend on it")
    registry.lock("ward@1", reason="the board agreed")
    page = Page(client.get("/entry?name=ward@1").text)
    for text in (
        "The alias stable is protected, and not set yet.",
        "mit",
        "the card",
        "production",
        "other terms",
        "the board agreed",
        "locked ward@1",
        "a folder of the",
    ):
        assert text in page.text, text
    assert str(models) not in page.text
    differences = Page(client.get("/diff?before=ward@1&after=ward@2").text)
    assert "license" in differences.text and "apache-2.0" in differences.text


def test_the_memory_is_changed_by_forms(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Load, pin, unpin and unload."""

    def resident() -> list[float | None]:
        return [each.keep_alive for each in registry.loaded_models() if each.name == "mlm" and not each.evicted]

    stays = []
    for action in ("load", "pin", "unpin"):
        answer = client.post(f"/memory/{action}", data={"model": "mlm"}, follow_redirects=True)
        assert answer.url.path == "/memory" and "/entry?name=mlm" in answer.text
        [keep_alive] = resident()
        stays.append(keep_alive == float("inf"))
    assert stays == [False, True, False]
    assert "/entry?name=mlm" not in client.post("/memory/unload", data={"model": "mlm"}, follow_redirects=True).text
    assert resident() == []


_OTHER_PROCESS = """
import sys
from medvllm import settings
from medvllm.processes import ProcessRecord, RecordFolder
from medvllm.processes.process import Process
model = dict(name="ward", version=3, origin="stored", snapshot="s", device="cpu", dtype="float32", model_class="a:B",
             size_bytes=5_000_000, mapped_bytes=0, leases=1, hits=0, load_s=0.1, loaded_at=1.0, last_used=1.0,
             keep_alive=None, evicted=False, offloaded=False)
folder = {**model, "name": "/secret/folder", "origin": "direct", "leases": 0}
record = ProcessRecord(Process.current(), "train.py", (model, folder))
RecordFolder(settings.HOME() / "run").write("0" * 32, record.to_json())
print("written", flush=True)
sys.stdin.readline()
"""


def test_the_memory_of_other_processes_is_shown(client: httpx2.Client) -> None:
    """As `medvllm ps` has it, but without the folders of models that have no entry."""
    assert "Other processes" not in client.get("/memory").text
    with held(_OTHER_PROCESS) as process:
        assert process.stdout.readline() == "written\n"
        shown = Page(client.get("/memory").text).text
        for text in (
            "Other processes",
            "10.0 MB",
            "ward",
            "in use: 1",
            f"process {process.pid}",
            "train.py",
            "a folder",
        ):
            assert text in shown, text
        assert "/secret" not in shown
    assert "Other processes" not in client.get("/memory").text


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "same-site"}]
)
def test_other_sites_cannot_send_the_forms(
    client: httpx2.Client, registry: ModelRegistry, headers: dict[str, str]
) -> None:
    """Neither to change the memory, nor to ask a model."""
    for path in ("/memory/load", "/try?name=rank&action=rerank"):
        answer = client.post(path, data={"model": "rank"}, headers=headers)
        assert answer.status_code == 403 and "Pages of other sites" in Page(answer.text).text


def test_a_key_sees_only_the_forms_that_it_may_send(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """A browser is asked for the key as a password."""
    monkeypatch.setenv("MEDVLLM_API_KEYS", f"{'r' * 30}:read")
    with serving(registry, ServerConfig(requires_key=True)) as client:
        unknown = client.get("/")
        assert unknown.status_code == 401 and "Basic" in unknown.headers["WWW-Authenticate"]
        assert "text/html" in unknown.headers["Content-Type"]
        client.auth = ("", "r" * 30)
        for view in ("/", "/memory", "/try?name=deid", "/entry?name=deid"):
            assert 'method="post"' not in client.get(view).text
        refused = ask(client, "deid", "redact", text="secret-canary")
        assert refused.status_code == 403 and "needs the right to infer" in refused.text
        assert client.post("/memory/load", data={"model": "deid"}).status_code == 403


def test_places_count_what_is_in_the_field(client: httpx2.Client, registry: ModelRegistry) -> None:
    """A line break, which browsers send as two characters, is one; an emoji is one, too."""
    text = f"😀a\n\n{NOTE}"
    [expected] = ModelRunner("deid", registry=registry).entities([text])
    shown = ask(client, "deid", "entities", text=text).text
    assert expected.spans and all(f"{span.start}–{span.end}<" in shown for span in expected.spans)
    assert "<textarea" in shown and f">\n{text}</textarea>" in shown


def test_what_was_not_read_is_marked(client: httpx2.Client) -> None:
    """And said at once."""
    text = "Dr. Smith saw Jones, and more was said afterwards."
    shown = ask(client, "cut", "entities", text=text).text
    assert "Not all of the text was read." in shown and '<span class="unread">' in shown
    [record] = client.post("/v1/entities", json={"model": "cut", "input": text}).json()["data"]
    [[_, end]] = record["coverage"]["read"]
    assert f"[not read: </span>{text[end:]}<span" in shown.replace("&#39;", "'")


@pytest.mark.parametrize(
    ("name", "action", "fields", "expected"),
    [
        ("deid", "entities", {"text": f"{NOTE} it's\n'END'\nEND $(id)", "threshold": "0.1"}, "from deid, version 1"),
        ("nli", "classify", {"text": "no fever", "second": "fever"}, "PRESENT"),
        ("deid", "redact", {"text": NOTE}, "Original"),
        ("cls", "classify", {"text": "no fever"}, "PRESENT"),
        ("assert", "assertions", {"text": "no fever", "phrase": "fever"}, "3–8"),
        ("mlm", "fill-mask", {"text": "no [MASK] now", "top_k": "3"}, "Gap 1"),
        ("rank", "rerank", {"query": "fever", "documents": "no fever\npain\n"}, "2 documents"),
        ("minilm", "embed", {"sentences": "no fever\npain"}, "Cosine of each pair. 384 numbers"),
        ("writer", "complete", {"text": "Aspirin is", "max_tokens": "4"}, "4 tokens. The answer stops there"),
        ("writer", "chat", {"text": "What is it?", "max_tokens": "4"}, "4 tokens. The answer stops there"),
    ],
)
def test_each_task_can_be_tried_and_copied(
    client: httpx2.Client, name: str, action: str, fields: dict[str, str], expected: str
) -> None:
    """The commands do what the page just did."""
    answer = ask(client, name, action, **fields)
    assert answer.status_code == 200 and expected in Page(answer.text).text, answer.text
    curl, python = (
        Page(answer.text.partition(f'<code id="{word}">')[2].partition("</code>")[0]).text
        for word in ("curl", "python")
    )
    done = subprocess.run(["sh", "-c", curl], capture_output=True, text=True, check=True)
    numbers = _numbers(json.loads(done.stdout))
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(python, "copied", "exec"), {})
    assert numbers and printed.getvalue().strip()
    for number in re.findall(r"-?\d\.\d{4,}(?:e[+-]\d+)?", printed.getvalue()):
        assert min(abs(float(number) - other) for other in numbers) < 1e-6
    if action in ("chat", "complete", "redact"):
        assert json.dumps(printed.getvalue().rstrip("\n"), ensure_ascii=False)[1:-1] in json.dumps(
            json.loads(done.stdout), ensure_ascii=False
        )


def _numbers(value: Any) -> list[float]:
    if isinstance(value, dict | list):
        return [each for item in (value.values() if isinstance(value, dict) else value) for each in _numbers(item)]
    return [float(value)] if isinstance(value, int | float) else []


@pytest.mark.parametrize(
    ("name", "action", "fields", "default"),
    [
        ("deid", "redact", {"text": NOTE}, {"threshold": inspect.signature(ModelRunner.redact)}),
        ("deid", "entities", {"text": NOTE}, {"threshold": inspect.signature(ModelRunner.entities)}),
        ("mlm", "fill-mask", {"text": "no [MASK] now"}, {"top_k": 5}),
    ],
)
def test_an_empty_field_means_what_it_means_to_the_library(
    client: httpx2.Client, name: str, action: str, fields: dict[str, str], default: dict[str, Any]
) -> None:
    """The page redacts no less than a program does. What applies stands in the field."""
    [(field, given)] = default.items()
    expected = given.parameters[field].default if isinstance(given, inspect.Signature) else given
    shown = client.get("/try", params={"name": name, "action": action}).text
    answer = ask(client, name, action, **fields, **{field: " "})
    for html in (shown, answer.text):
        [value] = re.findall(rf'<input name="{field}" [^>]*value="([^"]*)"', html)
        assert float(value) == expected
    [sent] = re.findall(rf"{field}=([\d.]+)", answer.text.partition('id="python"')[2])
    assert answer.status_code == 200 and float(sent) == expected


def test_each_choice_of_a_form_can_be_chosen(client: httpx2.Client) -> None:
    """Of what to write instead of a name, and of the filters of the catalogue."""
    choices = _choices(client.get("/try", params={"name": "deid", "action": "redact"}).text)
    assert len(choices["operator"]) == 3
    for operator in choices["operator"]:
        answer = ask(client, "deid", "redact", text=NOTE, operator=operator)
        written = answer.text.partition('aria-label="Redacted"')[2].partition("</section>")[0]
        assert answer.status_code == 200 and "saw" in written and "Jones" not in written, (operator, answer.text)
        assert f'<option value="{operator}" selected>' in answer.text
    filters = _choices(client.get("/").text)
    assert filters.keys() == {"type", "task"}
    for name, values in filters.items():
        assert values and all(client.get("/", params={name: value}).is_success for value in values)


def _choices(html: str) -> dict[str, list[str]]:
    """What the menus of a page offer, by the name of the menu."""
    found = {}
    for name, options in re.findall(r'<select name="(\w+)">(.*?)</select>', html, re.DOTALL):
        given = re.findall(r'<option(?: value="([^"]*)")?[^>]*>([^<]*)', options)
        found[name] = [value or title for value, title in given if title != "Any"]
    return found


@pytest.mark.parametrize(
    ("name", "action", "fields", "status", "message"),
    [
        ("deid", "entities", {"text": "secret-canary", "threshold": "much"}, 422, "must be a number"),
        ("deid", "entities", {"text": "secret-canary", "threshold": "2"}, 422, "threshold"),
        ("assert", "assertions", {"text": "secret-canary", "phrase": "fever"}, 422, "does not have the words"),
        ("cls", "classify", {"text": "secret-canary " * 600}, 422, "token"),
        ("writer", "chat", {"text": "secret-canary", "max_tokens": "0"}, 422, "max_tokens"),
    ],
)
def test_without_an_answer_the_text_is_still_in_its_field(
    client: httpx2.Client,
    caplog: pytest.LogCaptureFixture,
    name: str,
    action: str,
    fields: dict[str, str],
    status: int,
    message: str,
) -> None:
    """And nowhere else: neither in the message, nor in the log."""
    with caplog.at_level(logging.DEBUG):
        answer = ask(client, name, action, **fields)
    notice = answer.text.partition('role="alert"')[2].partition("</div>")[0]
    assert answer.status_code == status and message in notice and "secret-canary" not in notice
    assert "secret-canary" in answer.text.partition("<textarea")[2].partition("</textarea>")[0]
    assert "secret-canary" not in caplog.text


def test_the_page_of_a_decoder_has_the_whole_answer(client: httpx2.Client) -> None:
    """It is sent piece by piece; what the model writes is text."""
    body = {"model": "writer", "prompt": "Aspirin is", "max_tokens": 24}
    text = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
    page = Page(ask(client, "writer", "complete", text="Aspirin is", max_tokens="24").text)
    assert text in page.text and page.inline == []


def test_overlapping_spans_are_all_marked() -> None:
    """Each part knows all of its spans, and the parts are the text."""
    spans = [{"start": 2, "end": 6}, {"start": 0, "end": 4}, {"start": 2, "end": 3}, {"start": 8, "end": 8}]
    parts = cut("abcdefghij", spans, [(0, 5), (7, 10)])
    assert "".join(part.text for part in parts) == "abcdefghij"
    assert [(part.text, len(part.spans), len(part.ending), part.is_read) for part in parts] == [
        ("ab", 1, 0, True),
        ("c", 3, 1, True),
        ("d", 2, 1, True),
        ("e", 1, 0, True),
        ("f", 1, 1, False),
        ("g", 0, 0, False),
        ("h", 0, 0, True),
        ("ij", 0, 0, True),
    ]
