"""What happens under a server: a catalogue that goes away, a full disk, files that change, aliases that move."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from medvllm.catalog import stores
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.errors import CatalogError
from tests.support import tiny
from tests.support.disks import mounted_disk
from tests.support.postgres import Postgres
from tests.support.serving import serving

CANARY = "secret-canary"
LABELS = ["O", "B-NAME", "I-NAME"]
# A request for the tagger in each protocol, and the key that each error of it has.
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [CANARY]}
REQUESTS: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/entities", {"model": "ner", "input": CANARY}, "error"),
    ("/v1/run", {"model": "ner", "texts": [CANARY]}, "error"),
    ("/v1/embeddings", {"model": "ner", "input": CANARY}, "error"),
    ("/v1/chat/completions", {"model": "ner", "messages": [{"role": "user", "content": CANARY}]}, "error"),
    ("/v2/rerank", {"model": "ner", "query": CANARY, "documents": ["a"]}, "message"),
    ("/v2/models/ner/infer", {"inputs": [TENSOR]}, "error"),
    ("/api/embed", {"model": "ner", "input": CANARY}, "error"),
    ("/embed", {"model": "ner", "inputs": CANARY}, "error_type"),
    ("/classify", {"model": "ner", "input": CANARY}, "error"),
    ("/models/ner", {"inputs": CANARY}, "error"),
    ("/presidio/analyze?model=ner", {"text": CANARY}, "error"),
]


def _write(folder: Path, **facts: Any) -> Path:
    return tiny.bert_token_classifier(folder, LABELS, **facts)


def _entities(client: httpx2.Client, name: str = "ner") -> Any:
    answer = client.post("/v1/entities", json={"model": name, "input": "Seen by Dr. Smith."})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]


def _check_refused(client: httpx2.Client, statuses: set[int], home: Path) -> None:
    """Each protocol refuses in its shape, without a text or a path, and says whether to come again."""
    for path, body, key in REQUESTS:
        answer = client.post(path, json=body)
        assert answer.status_code in statuses, (path, answer.status_code, answer.text)
        if answer.status_code == 200:
            continue
        assert key in answer.json() and CANARY not in answer.text and str(home.parent) not in answer.text
        is_final = answer.headers.get("x-should-retry") == "false"
        assert is_final or 0 < int(answer.headers["retry-after"]) <= 30, path


@contextmanager
def _taken_away(home: Path, request: pytest.FixtureRequest, url: str) -> Iterator[None]:
    """A while without the catalogue's database."""
    if url.startswith("postgresql"):
        postgres: Postgres = request.getfixturevalue("postgres")
        with postgres.stopped():
            yield
        return
    away = home / "away"
    away.mkdir()
    files = list((home / "medvllm").glob("catalog.db*"))
    for file in files:
        file.rename(away / file.name)
    try:
        yield
    finally:
        for file in files:
            (away / file.name).rename(file)


def test_a_catalogue_that_goes_away_and_comes_back(
    catalog_url: str, home: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No model is served under a name that nobody can look up, and afterwards all goes on by itself.

    While PostgreSQL does not answer, what was read from it is still used, and said in the log.
    """
    monkeypatch.setenv("MEDVLLM_CATALOG", catalog_url)  # it is named, so it must be there
    registry = ModelRegistry()
    registry.register("ner", "clinical", model_path=str(_write(tmp_path / "ner")), task="ner", persist=True)
    with serving(registry) as client:
        before = _entities(client)
        with _taken_away(home, request, catalog_url):
            statuses = {200, 422, 503} if catalog_url.startswith("postgresql") else {503}
            _check_refused(client, statuses, home)
            assert client.post("/v1/entities", json={"model": "other", "input": CANARY}).status_code == 503
            assert client.get("/livez").status_code == 200 and client.get("/readyz").status_code == 503
            assert client.get("/v1/models").status_code == 503 and client.get("/metrics").status_code == 200
        assert client.get("/readyz").status_code == 200 and _entities(client) == before
    stores.close_all()


def test_a_file_that_flips_is_noticed_and_nothing_wrong_is_served(
    registry: ModelRegistry, home: Path, tmp_path: Path
) -> None:
    """Also while the model is in memory. Once the file is right again, it answers as before."""
    folder = _write(tmp_path / "ner")
    registry.register("ner", "clinical", model_path=str(folder), task="ner", persist=True)
    registry.lock("ner")
    with serving(registry) as client:
        before = _entities(client)
        for name in ("model.safetensors", "vocab.txt", "config.json"):
            file = folder / name
            content = file.read_bytes()
            with file.open("r+b") as opened:
                opened.seek(len(content) // 2)
                opened.write(bytes([content[len(content) // 2] ^ 1]))
            _check_refused(client, {500, 422}, home)
            assert client.get("/readyz").status_code == 200
            file.write_bytes(content)
            assert _entities(client) == before, name


def test_an_alias_that_moves_takes_its_requests_with_it(registry: ModelRegistry, tmp_path: Path) -> None:
    """Without an error or a gap, and each answer says which version it is of. A protected one moves only as it may."""
    for seed in range(2):
        folder = str(_write(tmp_path / f"ner{seed}", seed=seed))
        registry.register("ner", "clinical", model_path=folder, task="ner", persist=True, replace=True)
    catalog = registry.catalog
    catalog.set_alias("ner", "production", 1)
    with serving(registry) as client, ThreadPoolExecutor(4) as pool:
        expected = {str(number): _entities(client, f"ner@{number}") for number in (1, 2)}
        assert expected["1"] != expected["2"]
        moving = [True]

        def ask() -> set[str]:
            seen = set()
            while moving[0]:
                body = {"model": "ner@production", "input": "Seen by Dr. Smith."}
                answer = client.post("/v1/entities", json=body)
                assert answer.status_code == 200, answer.text
                found = answer.json()
                assert found["data"] == expected[found["version"]]
                seen.add(found["version"])
            return seen

        asking = [pool.submit(ask) for _ in range(4)]
        try:
            for version in (2, 1, 2, 1, 2):
                catalog.set_alias("ner", "production", version)
                assert _entities(client, "ner@production") == expected[str(version)]
        finally:
            moving[0] = False
        assert set().union(*(each.result() for each in asking)) == {"1", "2"}
        registry.lock("ner@2")
        ModelRunner("ner@2", registry=registry).record_baseline()
        catalog.protect("ner", "production")
        with pytest.raises(CatalogError, match="protected"):
            catalog.set_alias("ner", "production", 1)
        assert _entities(client, "ner@production") == expected["2"]
        catalog.update("ner@2", baseline=None, baseline_digest=None, reason="made with the wrong texts")
        refused = client.post("/v1/entities", json={"model": "ner@production", "input": CANARY})
        assert refused.status_code == 503 and CANARY not in refused.text, refused.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    with mounted_disk(tmp_path / "disk", "1m") as disk:
        yield disk
        stores.close_all()


def test_a_full_disk_keeps_no_request_from_its_answer(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model in memory, and of one that is loaded now: what cannot be kept is computed again."""
    monkeypatch.setenv("MEDVLLM_HOME", str(small_disk / "medvllm"))
    registry = ModelRegistry()
    for name in ("ner", "other"):
        registry.register(name, "clinical", model_path=str(_write(tmp_path / name)), task="ner", persist=True)
    with serving(registry) as client:
        before = _entities(client)
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        assert _entities(client) == before and _entities(client, "other") == before
        _check_refused(client, {200, 422}, small_disk)
        assert client.get("/readyz").status_code == 200
        filler.unlink()
        assert _entities(client, "other") == before
    registry.clear_cache()
