"""A server whose requests an engine computes."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from medvllm.engine.model_runner import ModelRegistry
from medvllm.server.config import ServerConfig
from tests.support import tiny
from tests.support.console import command
from tests.support.exports import Exports
from tests.support.serving import serving


def test_a_server_with_a_prepared_engine_imports_no_torch(shared_exports: Exports, engine_home: Path) -> None:
    """Neither torch nor transformers, in any protocol."""
    folder = shared_exports.tagger(engine_home)
    code = textwrap.dedent(
        f"""
        import json, sys
        from medvllm.engine.model_runner import ModelRegistry
        from medvllm.server.config import ServerConfig
        from tests.support.serving import serving

        registry = ModelRegistry()
        registry.register("tagger", "clinical", model_path={str(folder)!r})
        text = {{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["No fever."]}}
        asked = {{
            "/v1/load": {{"model": "tagger", "keep_alive": -1}},
            "/v2/repository/models/tagger/load": {{}},
            "/v2/models/tagger/infer": {{"inputs": [text]}},
            "/v1/entities": {{"model": "tagger", "input": ["No fever."]}},
            "/v1/run": {{"model": "tagger", "texts": ["No fever."], "receipt": True}},
        }}
        with serving(registry, ServerConfig(engine="onnx")) as http:
            statuses = {{route: http.post(route, json=body).status_code for route, body in asked.items()}}
            answered = http.post("/v1/run", json=asked["/v1/run"]).json()["receipt"]["engine"]["name"]
            loaded = [model.engine for model in registry.loaded_models()]
            imported = sorted({{"torch", "transformers"}} & set(sys.modules))
        print(json.dumps([statuses, answered, loaded, imported]))
        """
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    statuses, answered, loaded, imported = json.loads(run.stdout)
    assert set(statuses.values()) == {200}, statuses
    assert (answered, loaded, imported) == ("onnx", ["onnx"], [])


def test_a_request_that_asks_for_torch_gets_it(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """From a server that has another engine."""
    registry.register("tagger", "clinical", model_path=str(shared_exports.tagger(engine_home)))
    asked = {"model": "tagger", "texts": ["No fever."], "receipt": True}
    with serving(registry, ServerConfig(engine="onnx")) as http:
        assert http.post("/v1/run", json=asked).json()["receipt"]["engine"]["name"] == "onnx"
        assert "engine" not in http.post("/v1/run", json=asked | {"engine": "torch"}).json()["receipt"]


def test_the_page_loads_and_pins_what_the_engine_computes(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """By the engine of the server, or that of the model beside which the button stands."""
    registry.register("tagger", "clinical", model_path=str(shared_exports.tagger(engine_home)))

    def pinned() -> dict[str, bool]:
        return {each.engine: each.keep_alive == float("inf") for each in registry.loaded_models()}

    with serving(registry, ServerConfig(engine="onnx")) as http:
        http.post("/memory/load", data={"model": "tagger"})
        assert pinned() == {"onnx": False}
    with serving(registry) as http:
        http.post("/memory/load", data={"model": "tagger"})
        assert pinned() == {"onnx": False, "torch": False}
        for action, stays in (("pin", True), ("unpin", False)):
            forms = re.findall(rf'action="/memory/{action}">(.*?)</form>', http.get("/memory").text)
            fields = [dict(re.findall(r'name="(\w+)" value="([^"]*)"', form)) for form in forms]
            [form] = [each for each in fields if each["engine"] == "onnx"]
            assert http.post(f"/memory/{action}", data=form).status_code == 303
            assert pinned() == {"onnx": stays, "torch": False}
        assert http.post("/memory/pin", data={"model": "tagger", "engine": "onx"}).status_code == 422


def test_what_an_engine_cannot_compute_is_computed_by_torch(
    registry: ModelRegistry, tmp_path: Path, home: Path
) -> None:
    """A decoder is, without an error."""
    folder = tiny.gpt2_causal_lm(tmp_path / "decoder")
    registry.register("decoder", "clinical", model_path=str(folder), task="generate")
    with serving(registry, ServerConfig(engine="onnx")) as http:
        asked = {"model": "decoder", "prompt": "No", "max_tokens": 2}
        assert http.post("/v1/completions", json=asked).status_code == 200


def test_an_unknown_engine_is_refused_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names those that there are."""
    refused = command(monkeypatch, "serve", "--port", "0", "--engine", "onx")
    assert refused.code == 2 and "'onx'" in refused.err and "torch, onnx, openvino, auto" in refused.err
