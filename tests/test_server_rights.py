"""The right of each route of a server, and who has it."""

import json
from math import inf
from pathlib import Path

import httpx2
import pytest
from fastapi.routing import iter_route_contexts

from medvllm.engine.model_runner import ModelRegistry
from medvllm.quantities import MinimumStay, stay_after
from medvllm.server.app import create_app
from medvllm.server.config import ServerConfig
from medvllm.server.rights import OPEN, right_of
from tests.support import adapters, tiny
from tests.support.console import command
from tests.support.serving import serving

# A new route belongs here. Does it only list and describe, does it take texts, or does it change what others see?
RIGHTS = {
    "none": """
        GET /livez
        GET /readyz
        GET /v2/health/live
        GET /v2/health/ready
        POST /v1/identity
    """,
    "read": """
        GET /
        GET /api/ps
        GET /api/tags
        GET /api/version
        GET /diff
        GET /entry
        GET /favicon.ico
        GET /info
        GET /memory
        GET /metrics
        GET /openapi.json
        GET /presidio/health
        GET /presidio/recognizers
        GET /static/{name}
        GET /try
        GET /v1/memory
        GET /v1/models
        GET /v1/models/{model}
        GET /v2
        GET /v2/models/stats
        GET /v2/models/{model}
        GET /v2/models/{model}/config
        GET /v2/models/{model}/ready
        GET /v2/models/{model}/stats
        GET /v2/models/{model}/versions/{version}
        GET /v2/models/{model}/versions/{version}/ready
        HEAD /openapi.json
        POST /api/show
        POST /v2/repository/index
    """,
    "infer": """
        GET /presidio/supportedentities
        POST /api/embed
        POST /classify
        POST /embed
        POST /models/{model}
        POST /models/{model}/pipeline/{task}
        POST /predict
        POST /presidio/analyze
        POST /presidio/anonymize
        POST /rerank
        POST /score
        POST /similarity
        POST /try
        POST /v1/assertions
        POST /v1/chat/completions
        POST /v1/classify
        POST /v1/completions
        POST /v1/embeddings
        POST /v1/entities
        POST /v1/fill-mask
        POST /v1/redact
        POST /v1/rerank
        POST /v1/run
        POST /v1/score
        POST /v2/models/{model}/infer
        POST /v2/models/{model}/versions/{version}/infer
        POST /v2/rerank
    """,
    "manage": """
        POST /memory/load
        POST /memory/pin
        POST /memory/unload
        POST /memory/unpin
        POST /presidio/deanonymize
        POST /v1/load
        POST /v1/unload
        POST /v2/repository/models/{model}/load
        POST /v2/repository/models/{model}/unload
    """,
}
OF_ROUTE = {line.strip(): right for right, lines in RIGHTS.items() for line in lines.split("\n") if line.strip()}


def test_each_route_has_the_right_that_was_decided() -> None:
    """Also those that the OpenAPI document leaves out."""
    found = {}
    for route in iter_route_contexts(create_app(ModelRegistry()).routes):
        path = route.path_format or ""
        for method in route.methods or ():
            found[f"{method} {path}"] = "none" if path in OPEN else right_of(method, path)
    assert found == OF_ROUTE


def test_a_name_of_a_model_changes_no_right() -> None:
    """Whatever it looks like: a model may be named after a route."""
    for name in ("a", "org/a", "org/load", "load", "infer", "a@1", "pipeline/unload", "a\nb", "repository/index"):
        for line, right in OF_ROUTE.items():
            method, path = line.split()
            given = path.replace("{model}", name).replace("{task}", "load").replace("{version}", "pin")
            assert right == "none" or right_of(method, given) == right, given


def test_what_is_not_known_needs_the_right_to_manage() -> None:
    """Another method, another path, and a path that goes on."""
    for line in OF_ROUTE:
        _, path = line.split()
        for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"):
            assert right_of(method, path) == "manage"
    for path in (
        "/new",
        "/v1/new",
        "/v1/chat",
        "/presidio/new",
        "/presidio/analyze/x",
        "/V1/entities",
    ):
        assert right_of("POST", path) == "manage", path


def test_a_slash_at_the_end_leads_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirection would name an address without TLS, and the client send its text there. No key may do more."""
    monkeypatch.setenv("MEDVLLM_API_KEYS", ",".join(f"{right * 5}:{right}" for right in ("read", "infer", "manage")))
    with serving(ModelRegistry(), ServerConfig(requires_key=True)) as client:
        for line, needed in OF_ROUTE.items():
            method, path = line.split()
            answer = _ask(client, method, f"{path}/", ("read" if needed == "none" else needed) * 5)
            assert not 300 <= answer.status_code < 400 and "location" not in answer.headers, line
            assert answer.status_code == 404 or path == "/" or "{model}" in path, (line, answer.text)


@pytest.mark.parametrize("right", ["read", "infer", "manage"])
def test_a_key_reaches_the_routes_of_its_right(monkeypatch: pytest.MonkeyPatch, right: str) -> None:
    """And is told of the others which right they need."""
    key = "k" * 24
    monkeypatch.setenv("MEDVLLM_API_KEYS", f"{key}:{right}")
    with serving(ModelRegistry(), ServerConfig(requires_key=True)) as client:
        for line, needed in OF_ROUTE.items():
            method, path = line.split()
            answer = _ask(client, method, path, key)
            assert (answer.status_code == 403) is (needed not in ("none", right)), line
            assert answer.status_code != 403 or method == "HEAD" or f"the right to {needed}" in answer.text
            assert (_ask(client, method, path, None).status_code == 401) is (needed != "none"), line


def test_a_key_that_may_infer_is_enough_to_run_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the command line, too, which then does not know the task before the server answers."""
    registry, key = ModelRegistry(), "k" * 24
    folder = tiny.bert_token_classifier(tmp_path / "m", ["O", "B-NAME"])
    registry.register("ner", "clinical", model_path=str(folder), task="ner")
    monkeypatch.setenv("MEDVLLM_API_KEYS", f"{key}:infer")
    monkeypatch.setenv("MEDVLLM_API_KEY", key)
    with serving(registry, ServerConfig(requires_key=True)) as client:
        url = str(client.base_url)
        for more in ((), ("--task", "ner")):
            done = command(monkeypatch, "run", "ner", "Dr. Smith", "--server", url, *more, "--json")
            [found] = json.loads(done.out)["results"]
            assert (
                done.code == 0
                and found["spans"] == registry.runner("ner").entities(["Dr. Smith"]).to_dict()[0]["spans"]
            )
        assert command(monkeypatch, "run", "nre", "Dr. Smith", "--server", url).code == 1


def _ask(client: httpx2.Client, method: str, path: str, key: str | None) -> httpx2.Response:
    """Ask without a body, which every route with one refuses."""
    return client.request(method, path, headers={} if key is None else {"X-API-Key": key})


def test_a_model_is_pinned_or_unloaded_only_with_the_right_to_manage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its time in memory, too. A time without an end is cut to one that programs can show."""
    registry = ModelRegistry()
    folder = tiny.bert_token_classifier(tmp_path / "ner", ["O", "B-NAME", "I-NAME"])
    registry.register("ner", "clinical", model_path=str(folder), task="ner")
    keys = {right: registry.catalog.keys.add(right, rights=("read", right)) for right in ("infer", "manage")}
    manager = registry.catalog.keys.add("both", rights=("read", "infer", "manage"))
    with serving(registry, ServerConfig(requires_key=True)) as client:

        def ask(key: str, stays: object) -> int:
            body = {"model": "ner", "input": "No fever.", "keep_alive": stays}
            return client.post("/v1/entities", json=body, headers={"Authorization": f"Bearer {key}"}).status_code

        assert [ask(keys["infer"], stays) for stays in (-1, 0, "-1m", 0.001)] == [403] * 4
        assert [ask(keys["infer"], stays) for stays in ("59s", "1m", "10m", 1e12)] == [403, 200, 200, 200]
        shown = client.get("/api/ps", headers={"Authorization": f"Bearer {manager}"})
        assert shown.status_code == 200 and len(shown.json()["models"]) == 1
        assert [ask(manager, stays) for stays in (-1, 0)] == [200, 200]

        def stays_after(key: str, asked: object) -> float | None:
            assert ask(key, asked) == 200
            return registry.loaded_models()[0].keep_alive

        assert [stays_after(manager, -1), stays_after(keys["infer"], "1m")] == [inf, inf]
        assert [stays_after(manager, 600), stays_after(keys["infer"], "1m")] == [600, 600]
        assert [stays_after(keys["infer"], "20m"), stays_after(manager, 60)] == [1200, 60]
        monkeypatch.setenv("MEDVLLM_KEEP_ALIVE", "10m")  # for what is loaded from now on
        for asked, stays in (("1m", 600), ("20m", 1200)):
            registry.clear_cache()
            assert stays_after(keys["infer"], asked) == stays


def test_two_limited_keys_that_share_a_load_shorten_no_stay() -> None:
    """What both ask for is compared with the time of the entry once the model is there."""
    asked = stay_after(MinimumStay(60), MinimumStay(120))
    assert asked == 120 and stay_after(600, asked) == 600 and stay_after(None, asked) is None


def test_the_right_to_read_loads_no_model(tmp_path: Path) -> None:
    """Also where only a load would tell the tensors of a model."""
    registry = ModelRegistry()
    folder = tiny.bert_token_classifier(tmp_path / "ner", ["O", "B-NAME", "I-NAME"])
    registry.register("ner", "clinical", model_path=str(folder), task="ner")
    base = tiny.bert_masked_lm(tmp_path / "base")
    registry.register("base", "clinical", model_path=str(base))
    adapter = adapters.lora(tmp_path / "adapter", base)
    registry.register("adapter", "clinical", model_path=str(adapter), base="base", id2label=["O", "B-A", "I-A"])
    key = registry.catalog.keys.add("reader", rights=("read",))
    with serving(registry, ServerConfig(requires_key=True)) as client:
        for line in (line for line, right in OF_ROUTE.items() if right == "read"):
            method, path = line.split()
            for name in ("ner", "adapter"):
                _ask(client, method, path.replace("{model}", name).replace("{version}", "1"), key)
                _ask(client, method, f"{path}?name={name}&before={name}&after={name}", key)
        assert _ask(client, "GET", "/v2/models/ner", key).status_code == 200
        refused = _ask(client, "GET", "/v2/models/adapter", key)
        assert refused.status_code == 403 and "register the entry with: task=" in refused.text
    assert registry.loaded_models() == []


def test_a_request_without_a_key_has_a_small_body() -> None:
    """There is one route that has a body and is open to everybody."""
    with serving(ModelRegistry(), ServerConfig(requires_key=True)) as client:
        assert client.post("/v1/identity", json={"nonce": "n" * 32}).status_code in (200, 404)
        assert client.post("/v1/identity", json={"nonce": "n" * 32, "more": "x" * 2000}).status_code == 413
