"""OpenAI's and Ollama's API: what their clients, unpatched, get from a server, and what raw requests are told."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertModel

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.server.config import ServerConfig
from tests.support import decoders, tiny
from tests.support.serving import serving
from tests.support.tool_environment import run_client
from tests.support.waiting import wait_until

TEXTS = ["the patient denies chest pain", "aspirin 😀"]
CHAT = [{"role": "user", "content": "fever?"}]
# A chat template that leaves out what the system says.
DEAF = decoders.CHATML.replace("in messages %}", "in messages if message['role'] != 'system' %}")
ENDLESS = {"model": "endless", "messages": CHAT, "max_tokens": 900_000, "stream": True}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRegistry]:
    folder = tmp_path_factory.mktemp("m")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDVLLM_MEMORY_BUDGET", "cpu=3MB")
        registry = ModelRegistry()
        for name, path in (
            ("org/chat", decoders.llama(folder / "chat")),
            ("deaf", decoders.llama(folder / "deaf", DEAF)),
            ("endless", _endless_decoder(folder / "endless")),
            ("broken", _breaking_decoder(folder / "broken")),
        ):
            registry.register(name, "clinical", model_path=str(path), task="generate")
        encoders = {"enc": tiny.bert_encoder(folder / "enc"), "large": _large_encoder(folder / "large")}
        for name, path in encoders.items():
            registry.register(name, "clinical", model_path=str(path), task="embed", pooling="mean")
        yield registry


def _endless_decoder(folder: Path) -> Path:
    """A decoder that never ends an answer: another token is always likelier than the end."""
    decoders.llama(folder, length=1_000_000)
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][2] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _breaking_decoder(folder: Path) -> Path:
    """A decoder that computes NaN from its 40th token on."""
    tiny.gpt2_causal_lm(folder)
    weights = load_file(folder / "model.safetensors")
    weights["transformer.wpe.weight"][40:] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _large_encoder(folder: Path) -> Path:
    """An encoder that no budget of the test has room for."""
    return tiny.bert(folder, BertModel, config={"intermediate_size": 20_000})


@pytest.fixture(scope="module")
def client(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    with serving(registry) as client:
        yield client


@pytest.fixture(scope="module")
def full(registry: ModelRegistry) -> Iterator[httpx2.Client]:
    """A server without a free place."""
    with serving(registry, ServerConfig(max_calls=1, max_waiting=-1)) as client:
        yield client


def _run_client(script: str, *servers: httpx2.Client) -> Any:
    return run_client(script, *(str(each.base_url) for each in servers))


def test_openai_gets_what_the_library_answers(
    client: httpx2.Client, full: httpx2.Client, registry: ModelRegistry
) -> None:
    """Vectors and texts, whole and streamed, sync and async; errors have a code, and final ones are not retried."""
    found = _run_client("openai_client.py", client, full)
    assert {"org/chat", "enc"} < set(found["models"])
    assert len(found["models"]) == len(registry)
    assert (
        found["model"] | {"id": "org/chat@1", "name": "org/chat", "version": 1, "tasks": ["generate"]} == found["model"]
    )

    made = ModelRunner("enc", registry=registry).embed(TEXTS)
    expected = made.vectors.tolist()
    assert found["base64"] == found["float"] == found["async"]["vectors"] == expected
    assert found["async"]["statuses"] == [404, 429, 507]
    assert found["tokens"] == sum(coverage.tokens for coverage in made.coverage)
    short = made.vectors[:, :4] / np.linalg.norm(made.vectors[:, :4], axis=1, keepdims=True)
    assert np.allclose(found["short"], short, atol=1e-6)

    decoder = ModelRunner("org/chat", registry=registry)
    [answer] = decoder.generate([CHAT], max_new_tokens=16)
    total = answer.prompt_tokens + answer.completion_tokens
    assert found["text"] == found["neutral"] == found["async"]["text"] == answer.text
    assert (found["reason"], found["usage"], found["again"]) == (answer.finish_reason, total, 1)
    assert found["streamed"] == {
        "text": answer.text,
        "roles": ["assistant"],
        "reasons": [answer.finish_reason],
        "usage": total,
        "ids": 1,
    }
    assert found["completed"] == [each.text for each in decoder.generate(TEXTS, max_new_tokens=8)]
    assert decoder.generate(["fever"], max_new_tokens=8)[0].text[:2] == found["stopped"]
    assert found["sampled"][0] == found["sampled"][1]

    errors = found["errors"]
    seen = {name: (error["type"], error["code"], error["param"]) for name, error in errors.items()}
    assert seen == {
        "wrong model": ("NotFoundError", "model_not_found", None),
        "wrong model, streamed": ("NotFoundError", "model_not_found", None),
        "full": ("RateLimitError", "overloaded", None),
        "full, streamed": ("RateLimitError", "overloaded", None),
        "final": ("InternalServerError", "model_too_large", None),
        "final, streamed": ("InternalServerError", "model_too_large", None),
        "broken": ("APIError", "model_unusable", None),
        "ids": ("BadRequestError", "token_ids_not_accepted", "input"),
        "tools": ("BadRequestError", "unsupported_parameter", "tools"),
        "several": ("BadRequestError", "unsupported_parameter", "n"),
        "logprobs": ("BadRequestError", "unsupported_parameter", "logprobs"),
        "format": ("BadRequestError", "unsupported_parameter", "response_format"),
        "image": ("BadRequestError", "unsupported_message", "messages.0.content.0"),
        "too long": ("UnprocessableEntityError", "input_too_long", None),
        "encoder": ("UnprocessableEntityError", "invalid_request", None),
        "too many dimensions": ("UnprocessableEntityError", "too_many_dimensions", "dimensions"),
    }
    assert "check_embedding_ctx_length=False" in errors["ids"]["message"]
    assert "Did you mean: 'org/chat'?" in errors["wrong model"]["message"]
    assert '"max_tokens"' in errors["too long"]["message"]
    assert errors["full"]["retry_after"] == errors["full, streamed"]["retry_after"] == "1"
    # The counting client would retry twice.
    assert {errors[name]["requests"] for name in ("final", "final, streamed", "too long", "ids")} == {1}


def test_ollama_gets_what_the_library_answers(
    client: httpx2.Client, full: httpx2.Client, registry: ModelRegistry
) -> None:
    """Lists, vectors of length 1, and models that stay in memory as long as `keep_alive` says."""
    registry.evict("enc")
    found = _run_client("ollama_client.py", client, full)
    assert "enc" not in found["none"] and len(found["names"]) == len(registry)
    vectors = ModelRunner("enc", registry=registry).embed(["fever", "no pain"]).vectors[:, :4]
    assert np.allclose(found["vectors"], vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-6)
    until = datetime.fromisoformat(found["minutes"]["enc"][0])
    assert timedelta(0) < until - datetime.now(UTC) <= timedelta(minutes=10)
    assert found["minutes"]["enc"][1] == 0 < found["minutes"]["enc"][2] and found["minutes"]["enc"][3] == 64
    assert datetime.fromisoformat(found["pinned"]["enc"][0]) - until > timedelta(days=20 * 366)
    assert "enc" not in found["left"]
    assert found["shown"]["general.architecture"] == "bert" and found["capabilities"] == ["embedding"]
    errors = found["errors"]
    statuses = {name: error["status"] for name, error in errors.items()}
    assert statuses == {
        "wrong model": 404,
        "wrong model, shown": 404,
        "full": 429,
        "final": 507,
        "keep_alive": 422,
    }
    assert errors["wrong model"]["message"].startswith("Model 'ecn' is not registered. Did you mean: 'enc'?")


@pytest.mark.slow
def test_frameworks_embed_by_their_openai_classes(
    client: httpx2.Client, full: httpx2.Client, registry: ModelRegistry
) -> None:
    """LangChain's default sends ids of tokens, and the refusal says what to set."""
    found = _run_client("embedders.py", client, full)
    texts = ["the patient denies chest pain", "aspirin"]
    expected = ModelRunner("enc", registry=registry).embed(texts).vectors
    for vectors in (*found["vectors"].values(), found["documents"]):
        assert np.allclose(vectors, expected, atol=1e-6)
    assert (found["ids"]["status"], found["ids"]["code"]) == (400, "token_ids_not_accepted")
    assert "check_embedding_ctx_length=False" in found["ids"]["message"]
    for errors in found["errors"].values():
        assert {name: error["status"] for name, error in errors.items()} == {
            "wrong model": 404,
            "full": 429,
            "final": 507,
        }


def test_a_generation_ends_when_its_client_goes_away(client: httpx2.Client, registry: ModelRegistry) -> None:
    """The lease is released, so that the model can leave."""
    with client.stream("POST", "/v1/chat/completions", json=ENDLESS) as stream:
        lines = stream.iter_lines()  # once it is collected, the stream is closed
        assert next(lines).startswith("data: ") and _leases(registry) == 1
    deadline = time.monotonic() + 60
    while _leases(registry):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_body_of_a_stream_counts_until_it_ends(registry: ModelRegistry) -> None:
    """Its texts are in memory so long."""
    long: Any = {"content": f"{json.dumps(ENDLESS)}{' ' * 100_000}", "headers": {"content-type": "application/json"}}
    with serving(registry, ServerConfig(max_open_bytes=150_000)) as client:

        def status_of_next() -> int:
            with client.stream("POST", "/v1/chat/completions", **long) as other:
                return other.status_code

        with client.stream("POST", "/v1/chat/completions", **long) as stream:
            lines = stream.iter_lines()  # once it is collected, the stream is closed
            assert next(lines).startswith("data: ") and status_of_next() == 429
        wait_until(lambda: status_of_next() == 200, step_s=0.02)


def _leases(registry: ModelRegistry) -> int:
    return sum(each.leases for each in registry.loaded_models() if each.name == "endless")


def test_a_list_has_every_model_and_pages_if_asked(client: httpx2.Client, registry: ModelRegistry) -> None:
    """Pages joined are the list, and a page says whether there are more. No answer has a path of the machine."""
    whole = client.get("/v1/models").json()
    assert [each["id"] for each in whole["data"]] == list(registry) and not whole["has_more"]
    pages, after = [], ""
    while True:
        page = client.get("/v1/models", params={"limit": 20, "after": after}).json()
        pages += page["data"]
        if not page["has_more"]:
            break
        after = page["data"][-1]["id"]
    assert pages == whole["data"]
    texts = [client.get(path).text for path in ("/v1/models", "/v1/models/enc", "/api/tags", "/api/ps")]
    seen = {"max_length": f"seen: {registry['enc'].location}/config.json"}
    registry.register("told", "generic", model_path=registry["enc"].location, provenance=seen)
    texts += [client.get("/v1/models/told").text]
    texts += [client.post("/api/show", json={"model": name}).text for name in ("enc", "told")]
    registry.unregister("told")
    assert str(Path(registry["enc"].location).parent) not in "".join(texts)


@pytest.mark.parametrize("limit", ["0", "-1", "3.0", "1e1", " 3", "1_000", "٣", ""])
def test_the_size_of_a_page_is_a_whole_number(client: httpx2.Client, limit: str) -> None:
    """As it is written in the document of the API."""
    answer = client.get("/v1/models", params={"limit": limit})
    assert answer.status_code == 422 and answer.json()["error"]["message"].startswith("limit: it ")


@pytest.mark.parametrize("name", ["org/chat", "org/chat@1", "org/chat:1", "org/chat:latest", "models:/org/chat/1"])
def test_names_of_other_programs_mean_the_same_model(client: httpx2.Client, name: str) -> None:
    assert client.get(f"/v1/models/{name}").json()["name"] == "org/chat"


@pytest.mark.parametrize(
    "name", ["org/chat@main", "org/chat:refs/pr/1", "org/chat@refs/pr/1", "org/chat:2", "hf://org/chat", "/etc"]
)
def test_only_the_catalogue_is_served(client: httpx2.Client, name: str) -> None:
    """Neither a branch of a repository, which anybody may have written, nor a folder."""
    for answer in (
        client.get(f"/v1/models/{name}"),
        client.post("/v1/completions", json={"model": name, "prompt": "a", "stream": True}),
    ):
        assert answer.status_code == 404 and answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"n": 2}, 400, "n"),
        ({"logprobs": 0}, 400, "logprobs"),
        ({"logit_bias": {"50256": -100}}, 400, "logit_bias"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"min_p": 0.1}, 400, "min_p"),
        ({"include_stop_str_in_output": True}, 400, "include_stop_str_in_output"),
        ({"skip_special_tokens": False}, 400, "skip_special_tokens"),
        ({"typical_p": 0.5}, 400, "typical_p"),
        ({"regex": "[ab]"}, 400, "regex"),
        ({"max_new_tokens": 3}, 400, "max_new_tokens"),
        ({"guided_json": {"type": "object"}}, 400, "guided_json"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, 422, "max_tokens"),
        ({"verbosity": "low"}, 400, "verbosity"),
        ({"do_sample": True}, 400, "do_sample"),
        ({"do_sample": False, "temperature": 1}, 400, "do_sample"),
        ({"random_seed": 3}, 400, "random_seed"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"temperature": -1}, 422, "temperature"),
        ({"temperature": True}, 422, "temperature"),
        ({"seed": 2**63}, 422, "seed"),
        ({"stream": "secret-canary"}, 422, "stream"),
        ({"stop": ["secret-canary"] * 65}, 422, None),
        ({"stop": [""]}, 422, "stop"),
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "tool", "content": "secret-canary"}]}, 400, "messages.0.role"),
        ({"messages": [*CHAT, {"role": "user", "name": "secret-canary", "content": "a"}]}, 400, "messages.1.name"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, 400, "messages.0.tool_calls"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "text": "secret-canary"}]}]}, 400, None),
        ({"messages": [{"role": "secret canary", "content": "secret-canary"}]}, 422, None),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_what_the_server_cannot_do_is_refused(
    client: httpx2.Client, more: dict[str, Any], status: int, param: str | None
) -> None:
    """Nothing is ignored that would change the answer, and no error has a text of the request."""
    answer = client.post("/v1/chat/completions", json={"model": "org/chat", "messages": CHAT} | more)
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert param is None or error["param"] == param
    assert "canary" not in answer.text and answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    "more",
    [
        {"n": 1, "tools": [], "tool_choice": "auto", "logit_bias": {}, "user": "u", "metadata": {"a": "b"}},
        {"temperature": 0, "top_p": 0.5, "top_k": 5},  # at 0, the likeliest token comes in any case
        {"temperature": 1.5, "top_p": 0, "do_sample": False},
        {"stream": None, "stream_options": {"include_usage": None}, "seed": None, "max_completion_tokens": None},
        {"logprobs": False, "top_logprobs": None, "frequency_penalty": 0.0, "store": False, "stop": None},
        {"allow_special_tokens": None, "stream": None, "verbosity": "medium", "max_completion_tokens": 4},
        {"skip_special_tokens": True, "include_stop_str_in_output": False, "repeat_penalty": 1.0, "mirostat": 0},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "fever?"}], "name": None}]},
    ],
    ids=str,
)
def test_what_asks_for_nothing_is_accepted(
    client: httpx2.Client, registry: ModelRegistry, more: dict[str, Any]
) -> None:
    body = {"model": "org/chat", "messages": CHAT, "max_tokens": 4} | more
    answer = client.post("/v1/chat/completions", json=body).json()
    [expected] = ModelRunner("org/chat", registry=registry).generate([CHAT], max_new_tokens=4)
    assert answer["choices"][0]["message"]["content"] == expected.text


def test_both_names_of_the_longest_answer_are_known(client: httpx2.Client) -> None:
    """In both routes."""
    for name in ("max_tokens", "max_completion_tokens"):
        for route, asked in (("completions", {"prompt": "fever?"}), ("chat/completions", {"messages": CHAT})):
            answer = client.post(f"/v1/{route}", json={"model": "endless", name: 3, **asked})
            assert answer.json()["usage"]["completion_tokens"] == 3


def test_embeddings_ignore_what_changes_nothing(client: httpx2.Client) -> None:
    """And refuse what would make other vectors. Clients send null for what they leave out."""
    body = {"model": "enc", "input": "secret-canary"}
    expected = client.post("/v1/embeddings", json=body).json()
    for more in (
        {"encoding_format": None, "dimensions": None, "user": None},
        {"user": "u", "add_special_tokens": True, "truncate": "NONE", "embed_dtype": "float32", "priority": 1},
        {"output_dimension": None, "output_dtype": "float", "truncation": True, "modality": "text"},
    ):
        assert client.post("/v1/embeddings", json=body | more).json() == expected
    for key, value in (
        ("input_type", "query"),
        ("normalize", False),
        ("truncate_prompt_tokens", 4),
        ("truncate", "END"),
        ("output_dimension", 64),
        ("output_dtype", "int8"),
        ("prompt", "query: "),
        ("normalized", True),
    ):
        answer = client.post("/v1/embeddings", json=body | {key: value})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == key
        assert "canary" not in answer.text and answer.headers["x-should-retry"] == "false"


def test_a_message_that_the_template_leaves_out_is_reported(client: httpx2.Client) -> None:
    """Whole and streamed: the model has read only the ranges that the answer lists."""
    messages = [{"role": "system", "content": "Be brief."}, *CHAT]
    for model, coverage in (("deaf", {"complete": False, "read": [[9, 15]]}), ("org/chat", None)):
        body = {"model": model, "messages": messages, "max_tokens": 2}
        [choice] = client.post("/v1/chat/completions", json=body).json()["choices"]
        *_, last, end, _ = client.post("/v1/chat/completions", json=body | {"stream": True}).text.split("\n\n")
        [streamed] = json.loads(last.removeprefix("data: "))["choices"]
        assert choice.get("coverage") == streamed.get("coverage") == coverage and end == "data: [DONE]"


def test_a_body_needs_no_content_type(client: httpx2.Client) -> None:
    """curl calls a body a form, unless it is told otherwise."""
    body = json.dumps({"model": "enc", "input": "a"})
    for kind in ("application/x-www-form-urlencoded", "text/plain", "application/octet-stream"):
        assert client.post("/v1/embeddings", content=body, headers={"Content-Type": kind}).status_code == 200


def test_a_model_is_loaded_and_leaves_without_a_text(client: httpx2.Client, registry: ModelRegistry) -> None:
    """As Ollama's programs ask for it."""
    for keep_alive, is_there in (("5m", True), (0, False)):
        answer = client.post("/api/embed", json={"model": "enc", "keep_alive": keep_alive})
        assert answer.json()["embeddings"] == []
        assert ("enc" in [each["name"] for each in client.get("/api/ps").json()["models"]]) is is_there
