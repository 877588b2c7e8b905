"""Engines: they serve only what agrees with torch, from files that are proven, and say so."""

import errno
import importlib.metadata
import json
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.engine_lease import PartOf, lease_for_task
from medvllm.engine.model_runner.inference.queue import queue
from medvllm.engines import (
    EngineModel,
    EngineName,
    Export,
    Job,
    engine_version,
    find_export,
    keep_verdict,
    known_verdict,
    open_model,
)
from medvllm.engines.export import GRAPH
from medvllm.errors import MedVLLMError, MissingDependencyError, RequestError
from medvllm.loading.export.preparer import prepare
from medvllm.model_registry import engine_preparation
from medvllm.model_registry.engine_preparation import Preparation, Preparations
from medvllm.model_registry.known_calls import TRUST_S
from medvllm.options import LoadOptions
from tests.support import tiny
from tests.support.exports import Exports
from tests.support.notes import make_notes
from tests.support.toy_forward import Callers, held
from tests.support.trained import MINILM
from tests.support.work import least_work

NOTES = [note.text for note in make_notes(12, "test")]
TEXTS = ["No fever.", "Given aspirin 75 mg for chest pain. " * 60, "x", NOTES[0], "naïve café 😀 [SEP]"]


def _export_in(engine_home: Path) -> Export:
    """The export in float32."""
    folders = [each for each in (engine_home / "prepared").iterdir() if each.is_dir()]
    [export] = [export for export in map(find_export, folders) if export is not None and export.precision == "float32"]
    return export


def test_vectors_are_those_of_torch(registry: ModelRegistry, shared_exports: Exports, engine_home: Path) -> None:
    """Of long texts, pairs of windows and signs."""
    folder = shared_exports.encoder(engine_home)
    found = registry.runner(folder, engine="onnx").embed(TEXTS, with_receipt=True)
    wanted = registry.runner(folder).embed(TEXTS)
    assert found.coverage == wanted.coverage
    np.testing.assert_allclose(found.vectors, wanted.vectors, atol=2e-6)
    receipt: dict[str, Any] = found.receipt.to_dict() if found.receipt else {}
    engine = receipt["engine"]
    assert (engine["name"], engine["precision"], engine["providers"]) == ("onnx", "float32", ["CPUExecutionProvider"])
    assert engine["agreement"]["largest_difference"] < 1e-4
    assert set(engine["files"]) == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    plain: Any = registry.runner(folder).embed(TEXTS[:1], with_receipt=True).receipt
    for fact in ("tokenizer_sha256", "labels_sha256", "digest", "files", "architecture"):
        assert receipt["verified"][fact] == plain.to_dict()["verified"][fact]


def test_entities_are_those_of_torch(registry: ModelRegistry, shared_exports: Exports, engine_home: Path) -> None:
    """Of texts and of lists of words, with the same scores, and what redaction makes of them."""
    folder = shared_exports.tagger(engine_home)
    given: list[Any] = [*NOTES, "Given aspirin 75 mg for chest pain. " * 60, ["given", "aspirin", "75", "mg"]]
    one, two = registry.runner(folder, engine="onnx"), registry.runner(folder)
    found, wanted = one.entities(given), two.entities(given)
    assert [each.coverage for each in found] == [each.coverage for each in wanted]
    spans = [[(s.start, s.end, s.label, s.text) for s in each.spans] for each in wanted]
    assert [[(s.start, s.end, s.label, s.text) for s in each.spans] for each in found] == spans
    assert sum(map(len, spans)) > 20
    one_s, two_s = (np.array([span.score for each in results for span in each.spans]) for results in (found, wanted))
    np.testing.assert_allclose(one_s, two_s, atol=1e-5)
    redacted = [[each.text for each in runner.redact(NOTES, labels=["DRUG"])] for runner in (one, two)]
    assert redacted[0] == redacted[1] != NOTES


@pytest.mark.slow
def test_labels_are_those_of_torch(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """Of single texts, long ones too, and the task of its own. A process of its own exports the model."""
    folder = tmp_path / "classifier"
    config = tiny.labelled(["HISTORY", "EXAM", "PLAN"]) | {"num_hidden_layers": 1}
    tiny.bert_sequence_classifier(folder, config=config)
    given = ["Seen for chest pain.", "History of asthma; stable.", "No change in insulin. " * 80]
    runner = registry.runner(folder, engine="onnx")
    found = runner.run(None, given, windows="mean", with_receipt=True)
    assert found.receipt.engine["name"] == "onnx"
    wanted = registry.runner(folder).classify(given, windows="mean")
    assert [[label.label for label in each] for each in found] == [[label.label for label in each] for each in wanted]
    one, two = (np.array([label.score for each in results for label in each]) for results in (found, wanted))
    np.testing.assert_allclose(one, two, atol=1e-5)
    assert [each.name for each in (home / "medvllm" / "prepared").glob("*.*") if not each.name.endswith(".lock")] == []


def test_int8_serves_where_the_answers_stay(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same neighbours stay the nearest ones, and an answer never depends on the texts beside it."""
    folder = shared_exports.encoder(engine_home)
    runner = registry.runner(folder, engine="onnx", precision="int8")
    found = runner.embed(TEXTS, with_receipt=True)
    wanted = registry.runner(folder, engine="onnx").embed(TEXTS)
    assert found.receipt and found.receipt.engine
    assert (found.receipt.engine["name"], found.receipt.engine["precision"]) == ("onnx", "int8")
    cosines = (found.vectors * wanted.vectors).sum(1)
    assert cosines.min() > 0.97
    assert not np.allclose(found.vectors, wanted.vectors, atol=2e-6)
    for text, vector in zip(TEXTS, found.vectors, strict=True):
        np.testing.assert_array_equal(runner.embed([text]).vectors[0], vector)
    by_dtype = {loaded.dtype: loaded for loaded in registry.loaded_models()}
    assert by_dtype["int8"].size_bytes < by_dtype["float32"].size_bytes
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert pickle.loads(pickle.dumps(ModelRunner("x", engine="onnx", precision="int8")))._precision == "int8"


def test_int8_keeps_the_baseline_of_the_entry(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """Or float32 serves, and int8 takes no memory. What was found is remembered."""
    folder = str(shared_exports.encoder(engine_home))
    registry.register("recorded", "clinical", model_path=folder)
    cases = registry.runner("recorded").record_baseline().baseline
    moved = [case | {"projections": [number * 2 for number in case["projections"]]} for case in cases]
    for baseline, computes in ((cases, "int8"), (moved, "float32")):
        registry.register("recorded", "clinical", replace=True, model_path=folder, baseline=baseline)
        for _ in range(2):
            named = registry.runner("recorded", engine="onnx", precision="int8")
            receipt: Any = named.embed(["no fever"], with_receipt=True).receipt
            assert receipt.engine.get("precision") == (computes if computes == "int8" else None)
        dtypes = {each.dtype for each in registry.loaded_models() if each.name == "recorded"}
        assert ("int8" in dtypes) == (computes == "int8")
    assert receipt.engine["asked_precision"] == "int8"
    assert "baseline of its entry" in receipt.engine["reason"]


@pytest.mark.slow
def test_the_real_model_in_an_engine(registry: ModelRegistry, shared_exports: Exports, engine_home: Path) -> None:
    """It has the vectors of torch and, in int8, the nearest neighbours of float32 in less memory."""
    folder = shared_exports.minilm(engine_home)
    plain, onnx = registry.runner(folder), registry.runner(folder, engine="onnx")
    int8 = registry.runner(folder, engine="onnx", precision="int8")
    texts = [*TEXTS, *NOTES]
    wanted, found = plain.embed(texts), onnx.embed(texts, with_receipt=True)
    np.testing.assert_allclose(found.vectors, wanted.vectors, atol=2e-6)
    rounded = int8.embed(texts, with_receipt=True)
    computed: Any = [each.receipt.engine for each in (found, rounded) if each.receipt]
    assert [(each["name"], each["precision"]) for each in computed] == [("onnx", "float32"), ("onnx", "int8")]
    assert 0.97 < (rounded.vectors * wanted.vectors).sum(1).min() < 0.99999
    by_dtype = {loaded.dtype: loaded for loaded in registry.loaded_models() if loaded.engine == "onnx"}
    assert by_dtype["int8"].size_bytes < 0.8 * by_dtype["float32"].size_bytes


@pytest.mark.slow
def test_int8_is_refused_where_a_label_changes(
    registry: ModelRegistry,
    shared_exports: Exports,
    trained: Path,
    engine_home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Then the engine computes in float32; the log says so once, and the receipt always. The entities are torch's."""
    folder = trained / "tagger-bio"
    shared_exports.prepare(folder, engine_home, "ner")
    runner = registry.runner(folder, engine="onnx", precision="int8")
    for _ in range(2):
        found = runner.entities(NOTES, with_receipt=True)
        assert found.receipt and found.receipt.engine
        assert (found.receipt.engine["name"], found.receipt.engine["precision"]) == ("onnx", "float32")
        assert "tokens of synthetic texts have another label" in found.receipt.engine["reason"]
    assert caplog.text.count("is computed in float32, not in int8") == 1
    assert {loaded.dtype for loaded in registry.loaded_models()} == {"float32"}


def test_a_precision_that_no_engine_has_is_refused_at_once(registry: ModelRegistry) -> None:
    """With what to use: torch and OpenVINO do not compute in int8, and there is no int4."""
    for engine, precision, message in (
        ("torch", "int8", "engine='onnx', precision='int8'"),
        ("openvino", "int8", "engine='onnx', precision='int8'"),
        ("onnx", "int4", "float32, int8"),
        ("onnx", "INT8", "Did you mean 'int8'|float32, int8"),
        ("onnx", None, "float32, int8"),
    ):
        with pytest.raises(RequestError, match=message):
            registry.runner("x", engine=engine, precision=precision)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"registry\.runner"):
        registry.load_model(str(MINILM), precision="int8")


@pytest.mark.parametrize("changed", ["model.onnx", "model.onnx.data", "tokenizer.json", "prepared.json"])
def test_a_changed_file_is_not_used(
    registry: ModelRegistry,
    shared_exports: Exports,
    engine_home: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    changed: str,
) -> None:
    """Its digest or its verdict is another one. Where it cannot be made again, torch computes, and says so."""
    folder = shared_exports.encoder(engine_home)
    export = _export_in(engine_home)
    file = export.folder / changed
    if changed == "prepared.json":
        record = json.loads(file.read_text())
        record["engine"]["tokenizer"]["model_max_length"] = 8
        file.write_text(json.dumps(record))
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # nothing can be prepared
    result = registry.runner(folder, engine="onnx").embed(["no fever"], with_receipt=True)
    assert result.receipt and result.receipt.engine is not None
    assert (result.receipt.engine["name"], result.receipt.engine["asked"]) == ("torch", "onnx")
    assert "is computed by torch, not by engine 'onnx'" in caplog.text
    if changed != "prepared.json":
        assert "is not as it was recorded, and is made again" in caplog.text


def test_a_file_that_changes_later_is_seen(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next call, and what was opened from it leaves the memory."""
    runner = registry.runner(shared_exports.encoder(engine_home), engine="onnx")
    first: Any = runner.embed(["no fever"], with_receipt=True).receipt
    assert first.engine["name"] == "onnx"
    (_export_in(engine_home).folder / "model.onnx").write_bytes(b"another")
    monkeypatch.setattr(sys, "executable", "/bin/false")
    second: Any = runner.embed(["no fever"], with_receipt=True).receipt
    assert second.engine["name"] == "torch"
    assert [each.engine for each in registry.loaded_models()] == ["torch"]


@pytest.mark.parametrize("as_name", [str, Path])
@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_model_of_changed_files_leaves_the_memory(
    registry: ModelRegistry,
    shared_exports: Exports,
    engine_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    engine: EngineName,
    as_name: Callable[[Path], str | Path],
) -> None:
    """With the first call that sees the change, whatever computes from then on. Another model stays."""
    source = shared_exports.encoder(engine_home)
    folder, other = tmp_path / "copy", tmp_path / "other"
    shutil.copytree(source, folder)
    shutil.copytree(source, other)
    registry.runner(other).embed(["no fever"])
    runner = registry.runner(as_name(folder), engine=engine)
    runner.embed(["no fever"])
    assert [each.engine for each in registry.loaded_models()] == ["torch", engine]
    tiny.edit_config(folder, layer_norm_eps=1e-5)
    monkeypatch.setattr(sys, "executable", "/bin/false")  # nothing can be prepared
    runner.embed(["no fever"])
    assert [each.name for each in registry.loaded_models()] == [str(other), str(folder)]
    assert [each.engine for each in registry.loaded_models()] == ["torch", "torch"]


@pytest.mark.parametrize("failure", ["kill -9 $$", "echo 'OSError: no room' >&2; exit 1", "exec sleep 600"])
def test_a_preparation_that_failed_is_tried_again(
    registry: ModelRegistry,
    shared_exports: Exports,
    engine_home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
) -> None:
    """By the next call. Meanwhile torch computes, and the receipt says what happened."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{failure}\n")
    program.chmod(0o700)
    folder = shared_exports.tagger(tmp_path / "other")
    monkeypatch.setattr(sys, "executable", str(program))
    if "sleep" in failure:
        monkeypatch.setattr(engine_preparation, "_TIMEOUT_S", 0.2)
    runner = registry.runner(folder, engine="onnx")
    first: Any = runner.entities(["no fever"], with_receipt=True).receipt
    assert first.engine["name"] == "torch"
    assert re.search("ended by SIGKILL|OSError: no room|took more than", first.engine["reason"])
    shared_exports.tagger(engine_home)
    second: Any = runner.entities(["no fever"], with_receipt=True).receipt
    assert second.engine["name"] == "onnx"


def test_a_home_that_cannot_be_written_is_told_at_once(
    registry: ModelRegistry, tmp_path: Path, engine_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No process is started for it, and the next call looks again."""
    folder = tiny.bert_encoder(tmp_path / "encoder")
    runner = registry.runner(folder, engine="onnx")
    prepared = engine_home / "prepared"
    prepared.write_text("in the way")
    marker = tmp_path / "started"
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\ntouch {marker}\nkill -9 $$\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    for reason, was_started in ((str(prepared), False), ("SIGKILL", True)):
        receipt: Any = runner.embed(["no fever"], with_receipt=True).receipt
        assert receipt.engine["name"] == "torch"
        assert reason in receipt.engine["reason"]
        assert marker.exists() == was_started
        if not was_started:
            prepared.unlink()


def test_what_fails_again_waits_before_the_next_try() -> None:
    """For a time that grows with what the tries took. A verdict is kept."""
    now, tries = 0.0, 0
    outcomes = [Preparation(None, failure="killed")] * 3 + [Preparation(None, rejection="no such part")]

    def make() -> Preparation:
        nonlocal now, tries
        now, tries = now + 10, tries + 1
        return outcomes[tries - 1]

    preparations = Preparations(clock=lambda: now)

    def ask(wanted: int) -> str:
        found = preparations.get(Path("folder"), ("onnx",), make).refusal
        assert tries == wanted
        return found

    ask(1)
    ask(2)  # at once
    now += 9
    ask(2)
    now += 2
    ask(3)
    now += 29
    ask(3)
    now += 2
    for _ in range(3):
        assert ask(4) == "no such part"


def test_a_shortage_is_no_verdict_on_a_model() -> None:
    """Errors of the disk and of memory, also those that led to another error, and those that only words tell apart."""
    from medvllm.loading.export.shortage import is_shortage

    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("the export failed") from error
    except RuntimeError as error:
        wrapped = error
    no_memory = RuntimeError("[enforce fail] can't allocate memory: you tried 8 bytes")
    half_written = OSError("problem writing element 1024 to file")
    assert all(map(is_shortage, (wrapped, no_memory, half_written, MemoryError())))
    assert not any(map(is_shortage, (OSError("could not get source code"), ValueError("unsupported operator"))))


@pytest.mark.slow
def test_an_export_without_room_is_not_recorded(
    registry: ModelRegistry, tmp_path: Path, engine_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And leaves nothing behind. With room, the next one succeeds."""
    import resource

    folder = tiny.bert_encoder(tmp_path / "encoder", config={"num_hidden_layers": 1})
    target = registry.engine_leases.resolve(folder, LoadOptions(), PartOf("embed", has_gap=False))
    job = Job(target.metadata, target.snapshot, target.options, target.part, target.folder, None, ("onnx",))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match="writing"):
            prepare(job)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [each.name for each in target.folder.parent.iterdir() if each.is_dir()] == []
    assert prepare(job).rejection is None


class _Tampered:
    """A copy of the tagger's export to change, and its comparison with torch."""

    def __init__(self, registry: ModelRegistry, exports: Exports, engine_home: Path, copy: Path) -> None:
        from medvllm.loading.export.parts import Part

        self._source = exports.tagger(engine_home)
        export = _export_in(engine_home)
        shutil.copytree(export.folder, copy)
        self._export = replace(export, folder=copy)
        model = registry.load_model(self._source, attn_implementation="eager")
        self._part = Part.of(model, "head_tokens", 0)
        self.graph = copy / GRAPH

    def change(self, edit: Callable[[Any], None]) -> None:
        import onnx

        model = onnx.load(self.graph)
        edit(model)
        onnx.save(model, self.graph)

    def refusal(self) -> str | None:
        from medvllm.loading.export.agreement import compare

        return compare(self._part, open_model(self._export, "onnx", 1), 64, (101, 102)).refusal


def test_a_graph_that_differs_is_refused(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path, tmp_path: Path
) -> None:
    """A weight that was changed, labels in another order, padding that is read, NaN, and another shape."""
    from onnx import helper, numpy_helper

    tampered = _Tampered(registry, shared_exports, engine_home, tmp_path / "copy")
    assert tampered.refusal() is None
    original = tampered.graph.read_bytes()

    def head(model: Any) -> Any:
        return next(each for each in model.graph.initializer if each.name.endswith("classifier.bias"))

    def put(model: Any, array: Any) -> None:
        held = head(model)
        held.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), held.name))

    def reverse_labels(model: Any) -> None:
        output = model.graph.output[0].name
        node = next(each for each in model.graph.node if output in each.output)
        node.output[list(node.output).index(output)] = "forward"
        put_order = numpy_helper.from_array(np.arange(5)[::-1].copy(), "order")
        model.graph.initializer.append(put_order)
        model.graph.node.append(helper.make_node("Gather", ["forward", "order"], [output], axis=2))

    def read_padding(model: Any) -> None:
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == "attention_mask":
                    node.input[place] = "all_read"
        model.graph.node.insert(0, helper.make_node("Sign", ["mask_or_one"], ["all_read"]))
        one = numpy_helper.from_array(np.array(1, dtype=np.int64), "one")
        model.graph.initializer.append(one)
        model.graph.node.insert(0, helper.make_node("Add", ["attention_mask", "one"], ["mask_or_one"]))

    edits: dict[str, Callable[[Any], None]] = {
        "numbers differ": lambda model: put(model, numpy_helper.to_array(head(model)) + 0.5),
        "numbers differ by .* for 3 x 7 tokens": read_padding,
        "NaN or infinity": lambda model: put(model, numpy_helper.to_array(head(model)) * np.float32("nan")),
        "differ": reverse_labels,
    }
    for message, edit in edits.items():
        tampered.graph.write_bytes(original)
        tampered.change(edit)
        found = tampered.refusal()
        assert found is not None
        assert re.search(message, found), (message, found)


def test_a_model_without_an_engine_is_computed_by_torch(
    registry: ModelRegistry, tmp_path: Path, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says why, once, and the receipt always. Nothing is exported for what can be told before."""
    caplog.set_level(logging.WARNING)
    decoder = tiny.llama_causal_lm(tmp_path / "decoder")
    tagger, other = (tiny.bert_token_classifier(tmp_path / name, ["O", "B-X"]) for name in ("tagger", "other"))
    cases: list[tuple[Path, dict[str, Any], Callable[[Any], Any], str]] = [
        (decoder, {}, lambda runner: runner.generate(["no"], max_new_tokens=1, with_receipt=True), "this task"),
        (tagger, {"dtype": "bfloat16"}, lambda runner: runner.entities(["no"], with_receipt=True), "float32"),
        (other, {"device": "auto"}, lambda runner: runner.entities(["no"], with_receipt=True), "device='cpu'"),
    ]
    for folder, options, run, reason in cases:
        runner = registry.runner(folder, engine="onnx", **options)
        for _ in range(2):
            receipt = run(runner).receipt
            assert receipt.engine["name"] == "torch"
            assert reason in receipt.engine["reason"]
        assert caplog.text.count(f"{str(folder)!r} is computed by torch, not by engine 'onnx'") == 1
    assert not list(home.rglob("model.onnx"))


def test_an_unknown_engine_is_refused_at_once(registry: ModelRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the nearest name; and one that is not installed, with the command that installs it."""
    with pytest.raises(RequestError, match="There is no engine 'onx'.*'onnx'"):
        registry.runner("x", engine="onx")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="registry.runner"):
        registry.load_model(str(MINILM), engine="onnx")
    engine_version.cache_clear()
    monkeypatch.setattr(importlib.metadata, "version", _not_installed)
    with pytest.raises(MissingDependencyError, match=r"pip install 'medvllm\[openvino\]'"):
        ModelRunner("x", registry=registry, engine="openvino")
    engine_version.cache_clear()


def _not_installed(package: str) -> str:
    raise importlib.metadata.PackageNotFoundError(package)


def test_an_engine_counts_in_memory_and_on_the_disk(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """As a model in memory that can be evicted, and as a folder that `prune` removes once nobody uses it."""
    from medvllm.sources.disk_usage import list_items, prune
    from medvllm.sources.disk_users import Users

    folder = shared_exports.tagger(engine_home)
    registry.register("tagger", "clinical", model_path=str(folder))
    registry.runner(folder, engine="onnx").entities(["no fever"])
    [loaded] = registry.loaded_models()
    assert loaded.engine == "onnx"
    assert loaded.model_class.endswith(":BertForTokenClassification")
    assert loaded.size_bytes >= _export_in(engine_home).size_bytes
    assert registry.evict(folder) == 1
    assert registry.loaded_models() == []
    users = Users({"tagger": registry.get_metadata("tagger")}, [])
    assert [item.used_by for item in list_items(users) if item.kind == "prepared"] == [("tagger",)]
    assert [item for item in prune(users) if item.kind == "prepared"] == []
    assert [item.kind for item in prune(Users({}, [])) if item.kind == "prepared"] == ["prepared"]


def test_a_run_with_an_engine_imports_no_torch(shared_exports: Exports, engine_home: Path) -> None:
    """Neither torch nor transformers, from the first import to the answer and its receipt."""
    folder = shared_exports.encoder(engine_home)
    code = textwrap.dedent(
        f"""
        import sys
        from medvllm.cli import main
        sys.argv = ["medvllm", "run", {str(folder)!r}, "No fever.", "--engine", "onnx", "--json"]
        try:
            main()
        finally:
            found = sorted({{"torch", "transformers"}} & set(sys.modules))
            print(found, file=sys.stderr)
        """
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.stderr.splitlines()[-1] == "[]", run.stderr
    assert json.loads(run.stdout)["receipt"]["engine"]["name"] == "onnx"


def test_an_engine_stays_as_long_as_the_call_says(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """From the first call on, and from each later one."""
    folder = shared_exports.tagger(engine_home)
    for keep_alive, expected in (("10m", [600.0]), (60, [60.0]), (None, [60.0]), (0, [])):
        ModelRunner(folder, registry=registry, engine="onnx", keep_alive=keep_alive).entities(["no fever"])
        assert [model.keep_alive for model in registry.loaded_models()] == expected


@pytest.mark.slow
def test_processes_that_need_one_export_share_it(tmp_path: Path, home: Path) -> None:
    """It is made once, and each of them answers by it."""
    command = [sys.executable, "-m", "medvllm", "run", str(tiny.bert_encoder(tmp_path / "m")), "No fever."]
    command += ["--engine", "onnx", "--json"]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [json.loads(each.communicate()[0]) for each in running]
    assert [each.returncode for each in running] == [0] * 3
    assert len({json.dumps(answer["receipt"]["engine"], sort_keys=True) for answer in answers}) == 1
    assert answers[0]["receipt"]["engine"]["name"] == "onnx"
    assert len([each for each in (home / "medvllm" / "prepared").iterdir() if each.is_dir()]) == 1


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_threads_share_an_engine(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path, home: Path, engine: EngineName
) -> None:
    """Each gets the answer for its own text, and no library leaves files in the user's home or tells of its use."""
    runner = registry.runner(shared_exports.encoder(engine_home), engine=engine)
    texts = [text * (number % 5 + 1) for number, text in enumerate(NOTES)]
    wanted = runner.embed(texts).vectors
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda text: runner.embed([text]).vectors[0], texts * 4))
    np.testing.assert_allclose(found, np.concatenate([wanted] * 4), atol=2e-6)
    receipt: Any = runner.embed(NOTES[:1], with_receipt=True).receipt
    assert (receipt.engine["name"], receipt.engine["precision"]) == (engine, "float32")
    assert not (home / "intel").exists()
    assert "openvino_telemetry" not in sys.modules


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
def test_texts_of_several_callers_run_together(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path, engine: EngineName
) -> None:
    """In one batch of an engine, and each caller gets its own answer. Those of torch are not among them."""
    folder = shared_exports.encoder(engine_home)
    runner, other = registry.runner(folder, engine=engine), registry.runner(folder)

    def embed(text: str, runner: ModelRunner = runner) -> Any:
        return runner.embed([text]).vectors

    alone = {text: embed(text) for text in NOTES[:6]}
    embed(NOTES[0], other)
    before, callers = queue.statistics(), Callers(queue)
    with held(queue):
        for text in alone:
            callers.start(text, partial(embed, text))
        callers.start("torch", partial(embed, NOTES[0], other))
    results = callers.join()
    for text, vectors in alone.items():
        np.testing.assert_allclose(results[text], vectors, atol=2e-6)
    np.testing.assert_allclose(results["torch"], alone[NOTES[0]], atol=2e-6)
    assert queue.statistics().shared_batches > before.shared_batches


def test_an_engine_stays_in_memory_as_long_as_a_call_asks(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """`keep_alive` is no option of the model itself, for which torch would compute it."""
    folder = shared_exports.tagger(engine_home)
    for keep_alive, kept in ((None, None), ("1m", 60.0), (5, 5.0)):
        registry.runner(folder, engine="onnx", keep_alive=keep_alive).entities(["no fever"])
        assert [(each.engine, each.keep_alive) for each in registry.loaded_models()] == [("onnx", kept)]
    registry.runner(folder, engine="onnx", keep_alive=0).entities(["no fever"])
    assert registry.loaded_models() == []


def test_a_hit_of_an_engine_sees_what_has_changed(
    registry: ModelRegistry,
    shared_exports: Exports,
    engine_home: Path,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At once what this process did, and within TRUST_S what others did. In between, it asks the system nothing."""
    folder = str(shared_exports.encoder(engine_home))
    registry.register("m", "generic", model_path=folder)
    leasing = partial(lease_for_task, registry, "m", {}, "onnx", "float32", "embed")

    def engine(*, later: bool = False) -> str:
        if later:
            time.sleep(TRUST_S)
        with leasing() as lease:
            return getattr(lease.model, "engine", "torch")

    def hit() -> None:
        with leasing():
            pass

    assert {engine() for _ in range(3)} == {"onnx"}
    assert least_work(hit)[1] == []
    assert registry.statistics().loads == 1
    monkeypatch.setenv("MEDVLLM_DTYPE", "bfloat16")
    assert engine() == "torch"
    monkeypatch.delenv("MEDVLLM_DTYPE")
    assert engine() == "onnx"
    settings_file = engine_home / "config.toml"
    settings_file.write_text('dtype = "bfloat16"')
    assert engine(later=True) == "torch"
    settings_file.unlink()
    assert engine(later=True) == "onnx"
    registry.register("m", "generic", model_path=folder, replace=True, parameters={"dtype": "bfloat16"})
    assert engine() == "torch"
    registry.register("m", "generic", model_path=folder, replace=True)
    assert {engine() for _ in range(3)} == {"onnx"}
    (home / "medvllm.lock").write_text("no lock")
    time.sleep(TRUST_S)
    with pytest.raises(MedVLLMError, match=r"medvllm\.lock"):
        engine()
    (home / "medvllm.lock").unlink()
    assert engine(later=True) == "onnx"
    monkeypatch.setattr(sys, "executable", "/bin/false")  # nothing can be prepared
    with leasing() as lease:
        (lease.model.export.folder / GRAPH).write_bytes(b"another")
    assert engine(later=True) == "torch"


def test_auto_takes_the_fastest(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the engines that agree and of torch, by what the comparison measured. Torch is no cause for a warning."""
    folder = shared_exports.encoder(engine_home)
    export = _export_in(engine_home)
    verdicts = {name: verdict for name in ("onnx", "openvino") if (verdict := known_verdict(export, name))}
    assert set(verdicts) == {"onnx", "openvino"}
    for fastest in ("torch", "onnx", "openvino"):
        for name, verdict in verdicts.items():
            keep_verdict(export, replace(verdict, cpu_s=1.0 if name == fastest else 3.0, torch_cpu_s=2.0))
        own = ModelRegistry()
        receipt: Any = own.runner(folder, engine="auto").embed(["no fever"], with_receipt=True).receipt
        own.clear_cache()
        assert receipt.engine["name"] == fastest
        assert ("asked" in receipt.engine) == (fastest == "torch")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_a_child_process_opens_its_own_session(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """A forked child has none of the library's threads, and would wait for them."""
    runner = registry.runner(shared_exports.encoder(engine_home), engine="onnx")
    wanted = runner.embed(NOTES).vectors
    file = engine_home / "vectors.npy"
    if (child := os.fork()) == 0:
        try:
            np.save(file, runner.embed(NOTES).vectors)
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    np.testing.assert_allclose(np.load(file), wanted, atol=2e-6)


def test_a_verdict_is_for_one_cpu_and_version(shared_exports: Exports, engine_home: Path) -> None:
    """Another kind of CPU, or another version of the library, is compared again."""
    shared_exports.encoder(engine_home)
    export = _export_in(engine_home)
    assert known_verdict(export, "onnx") is not None
    assert known_verdict(replace(export, facts={**export.facts, "padding_id": 7}), "onnx") is None
    assert isinstance(open_model(export, "onnx", 1), EngineModel)


def test_the_page_on_engines_runs(
    shared_exports: Exports, engine_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a folder of the name that it has there."""
    (tmp_path / "my-encoder").symlink_to(shared_exports.encoder(engine_home))
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "engines.md").read_text()
    [block] = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(block, "engines.md", "exec"), namespace)
    assert namespace["engine"]["name"] == "onnx"


def test_an_engine_keeps_the_baseline_of_the_entry(
    registry: ModelRegistry, shared_exports: Exports, engine_home: Path
) -> None:
    """Or torch computes, and the receipt names the case that deviates."""
    folder = str(shared_exports.encoder(engine_home))
    registry.register("recorded", "clinical", model_path=folder)
    cases = registry.runner("recorded").record_baseline().baseline
    moved = [case | {"projections": [number * 1.1 for number in case["projections"]]} for case in cases]
    for baseline, computes in ((cases, "onnx"), (moved, "torch")):
        registry.register("recorded", "clinical", replace=True, model_path=folder, baseline=baseline)
        for _ in range(2):
            receipt: Any = registry.runner("recorded", engine="onnx").embed(["no fever"], with_receipt=True).receipt
            assert receipt.engine["name"] == computes
    assert "baseline of its entry in case 1: output changed" in receipt.engine["reason"]
