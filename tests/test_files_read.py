"""What is read is what was approved: the files that a load opens are the files of the lock, both ways."""

import hashlib
import json
import os
import shutil
import sqlite3
import tarfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import BertForMaskedLM

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DigestMismatchError, IncompleteSnapshotError, MedVLLMError, SourceError
from medvllm.loading.replay import templates
from medvllm.options import LoadOptions
from medvllm.sources import Lock
from medvllm.sources.link_folder import make_link_folder
from tests.support import tiny, warm
from tests.support.clock import HurriedClock
from tests.support.conversions import convert
from tests.support.loopback import LoopbackHub
from tests.support.spread import spread
from tests.support.watch import opened

Make = Callable[[Path], Path]


def _renamed_shards(folder: Path, stem: str = "consolidated") -> Path:
    """Shards under names of somebody's own, which only the index tells."""
    tiny.bert_masked_lm(folder, weights="sharded")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-', f'"{stem}-'))
    for shard in folder.glob("model-*.safetensors"):
        shard.rename(folder / shard.name.replace("model-", f"{stem}-", 1))
    return folder


def _renamed_pickles(folder: Path) -> Path:
    tiny.bert_masked_lm(folder, weights="sharded_bin")
    index = folder / "pytorch_model.bin.index.json"
    content = json.loads(index.read_text())
    names = {name: f"layers_{i}.bin" for i, name in enumerate(sorted(set(content["weight_map"].values())))}
    content["weight_map"] = {tensor: names[name] for tensor, name in content["weight_map"].items()}
    index.write_text(json.dumps(content))
    for name, new in names.items():
        (folder / name).rename(folder / new)
    return folder


def _stated_weights(folder: Path) -> Path:
    """A config that names its weights; model.safetensors beside them is another model."""
    tiny.bert_masked_lm(folder, seed=1)
    shutil.copy(folder / "model.safetensors", folder / "ema.safetensors")
    tiny.bert_masked_lm(folder, seed=0)
    tiny.edit_config(folder, transformers_weights="ema.safetensors")
    return folder


def _dotted_index(folder: Path) -> Path:
    tiny.bert_masked_lm(folder, weights="sharded")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model-', '"./model-'))
    return folder


def _byte_pairs(folder: Path) -> Path:
    """A BERTweet, whose tokenizer is written in Python and reads bpe.codes."""
    tiny.roberta_masked_lm(folder)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    (folder / "vocab.txt").write_text("a@@ 5\nb@@ 5\nab 5\nc 5\n")
    (folder / "bpe.codes").write_text("a b</w> 5\n")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertweetTokenizer", "model_max_length": 64}')
    return folder


def _old_sentence_transformer(folder: Path) -> Path:
    """As sentence-transformers wrote them in 2020."""
    tiny.bert_encoder(folder / "0_Transformer")
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 32}')
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        '{"word_embedding_dimension": 32, "pooling_mode_cls_token": false, "pooling_mode_mean_tokens": true}'
    )
    modules = [("0", "0_Transformer", "Transformer"), ("1", "1_Pooling", "Pooling")]
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": int(name), "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
                for name, path, kind in modules
            ]
        )
    )
    return folder


def _added_tokens(folder: Path) -> Path:
    """Tokens of a fine-tuning in the files of older transformers."""
    tiny.bert_masked_lm(folder)
    (folder / "special_tokens_map.json").write_text('{"unk_token": "[UNK]"}')
    (folder / "added_tokens.json").write_text('{"patient": 6}')
    return folder


SHAPES: dict[str, Make] = {
    "bert": tiny.bert_masked_lm,
    "vocabulary only": lambda folder: tiny.bert_masked_lm(folder, tokenizer_files="vocab_only"),
    "shards": lambda folder: tiny.bert_masked_lm(folder, weights="sharded"),
    "pickle": lambda folder: tiny.bert_masked_lm(folder, weights="bin"),
    "old pickle": lambda folder: tiny.bert_masked_lm(folder, weights="legacy_bin"),
    "pickled shards": lambda folder: tiny.bert_masked_lm(folder, weights="sharded_bin"),
    "encoder": tiny.bert_encoder,
    "tagger": lambda folder: tiny.distilbert_token_classifier(folder, ["O", "B-X", "I-X"]),
    "byte-level": tiny.roberta_masked_lm,
    "gpt2": tiny.gpt2_causal_lm,
    "llama": tiny.llama_causal_lm,
    "renamed shards": _renamed_shards,
    "shards with the name of pickles": lambda folder: _renamed_shards(folder, "pytorch_model"),
    "renamed pickles": _renamed_pickles,
    "stated weights": _stated_weights,
    "dotted index": _dotted_index,
    "byte pairs": _byte_pairs,
    "0_Transformer": _old_sentence_transformer,
    "added tokens": _added_tokens,
}


def _cluttered(folder: Path) -> Path:
    """What lies beside models: other checkpoints, patients' text, what a library might pick up."""
    tiny.bert_masked_lm(folder / "checkpoint-60", seed=7)
    for name in ("train.json", "predictions.txt", "notes.txt", "all_results.json", "trainer_state.json"):
        (folder / name).write_text('{"text": "Mr. Doe has HIV"}')
    (folder / "data").mkdir()
    (folder / "data" / "notes.txt").write_text("Mr. Doe has HIV")
    (folder / "README.md").write_text("# A model")
    (folder / "training_args.bin").write_bytes(b"\x80\x04.")
    (folder / "modeling_evil.py").write_text("raise SystemExit\n")
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text("raise SystemExit\n")
    save_file({"weight": torch.zeros(1)}, folder / "zz.safetensors")
    save_file({"weight": torch.zeros(1)}, folder / "shard-00001-model-00001-of-00001.safetensors")
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each shape, in `cluttered` and in `plain`."""
    root = tmp_path_factory.mktemp("shapes")
    for name, make in SHAPES.items():
        make(root / "plain" / name)
        _cluttered(tiny.copy(root / "plain" / name, root / "cluttered" / name))
    return root


@pytest.fixture
def shapes(root: Path, home: Path, monkeypatch: pytest.MonkeyPatch, hurried: HurriedClock) -> dict[str, Path]:
    """A folder of each shape, with clutter; each pickle is converted. The tests share a home.

    The files are old enough for their digests to be remembered.
    """
    hurried.sleep(2.1)
    monkeypatch.setenv("MEDVLLM_HOME", str(root / "home"))
    if not (root / "home").exists():
        for name in SHAPES:
            convert(root / "plain" / name)
    return {name: root / "cluttered" / name for name in SHAPES}


@pytest.mark.parametrize("name", spread(SHAPES, 3))
def test_what_a_load_opens_is_what_its_lock_holds(shapes: dict[str, Path], name: str, root: Path) -> None:
    """Both ways, for model and tokenizer: no file is opened that was not hashed, none is locked that is not read."""
    folder = shapes[name]
    registry = ModelRegistry()
    locked = registry.lock(folder)[str(folder)]
    registry.clear_cache()
    other = ModelRegistry()
    converted = root / "home" / "converted"
    with opened([folder, *([converted] if converted.exists() else [])]) as found:
        other.load_model(folder)
        other.load_tokenizer(folder)
    read = {str(file.relative_to(folder)) for file in found if file.is_relative_to(folder)}
    read |= {file.name for file in found if file.is_relative_to(converted) and file.suffix == ".safetensors"}
    pickles = {file for file in locked.files if file.endswith(".bin")}
    indexes = {file for file in (*locked.files, *locked.converted) if file.endswith(".index.json") and pickles}
    assert read - indexes == {*locked.files, *locked.converted} - pickles - indexes


@pytest.mark.parametrize("name", SHAPES)
def test_a_lock_holds_no_more_than_the_model(shapes: dict[str, Path], name: str, root: Path) -> None:
    """No checkpoint beside it, no notes, no other weights, no code: it is the lock of the same model without them."""
    plain = root / "plain" / name
    registry = ModelRegistry()
    assert registry.lock(plain)[str(plain)].files == registry.lock(shapes[name])[str(shapes[name])].files


def _model(registry: ModelRegistry, folder: Path | str) -> tuple[str, list[int]]:
    """Return what tells a model: its weights to the bit, and the ids of a text."""
    with registry.lease(folder) as lease:
        weights = hashlib.sha256()
        for name, tensor in sorted(lease.model.state_dict().items()):
            weights.update(name.encode() + tensor.numpy().tobytes())
        return weights.hexdigest(), lease.tokenizer("the patient ab c")["input_ids"]


# One of each kind that a lock tells apart; the others are tried in the slow run.
IN_EVERY_RUN = ("bert", "pickle")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in IN_EVERY_RUN else pytest.mark.slow) for name in SHAPES]
)
def test_a_file_that_changes_under_a_lock_is_refused_or_changes_nothing(
    shapes: dict[str, Path], name: str, tmp_path: Path
) -> None:
    """Each file of the folder in turn, of the model or not, removed and altered, in a process that has it in memory."""
    folder = tiny.copy(shapes[name], tmp_path / "m")
    registry = ModelRegistry()
    right = _model(registry, folder)
    locked = registry.lock(folder)[str(folder)]
    refused = set()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content, times = file.read_bytes(), file.stat()
        altered = bytearray(content)
        altered[len(altered) // 2] ^= 1
        file.write_bytes(altered)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time are as they were
        for asked in (registry, ModelRegistry()):
            try:
                assert _model(asked, folder) == right, file
            except DigestMismatchError:
                refused.add(file.relative_to(folder).as_posix())
        file.unlink()
        try:
            assert _model(registry, folder) == right, file
        except MedVLLMError:
            refused.add(file.relative_to(folder).as_posix())
        file.write_bytes(content)
    assert refused == set(locked.files)
    assert _model(registry, folder) == right


def _replaced(file: Path, content: bytes) -> None:
    other = file.with_name("new")
    other.write_bytes(content)
    other.rename(file)


def _written(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def _set_back(file: Path, content: bytes) -> None:
    times = file.stat()
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def _linked(file: Path, content: bytes) -> None:
    other = file.parent.with_name(f"{file.name}-elsewhere")
    other.write_bytes(content)
    file.unlink()
    file.symlink_to(other)


@pytest.mark.parametrize("change", spread([_set_back, _written, _replaced, _linked], 2))
@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer_config.json", "config.json", "model.safetensors"])
def test_a_change_of_any_file_is_noticed_by_the_next_call(
    registry: ModelRegistry, tmp_path: Path, name: str, change: Callable[[Path, bytes], None]
) -> None:
    """Model, tokenizer and receipt are then those of the new files: however the change was made, and of equal size."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    new = {
        "vocab.txt": (folder / "vocab.txt").read_bytes().replace(b"fever\n", b"").replace(b"the\n", b"the\nfever\n"),
        "tokenizer_config.json": (folder / "tokenizer_config.json").read_bytes().replace(b"64", b"32"),
        "config.json": (folder / "config.json").read_bytes().replace(b"1e-12", b"1e-11"),
        "model.safetensors": (tiny.bert_masked_lm(tmp_path / "other", seed=1) / "model.safetensors").read_bytes(),
    }[name]
    assert new != (folder / name).read_bytes() and len(new) == (folder / name).stat().st_size
    before = _facts(registry, folder)
    change(folder / name, new)
    after = _facts(registry, folder)
    assert after == _facts(registry, folder) == _facts(ModelRegistry(), folder)
    files, old = after[0], before[0]
    assert {file for file in files if files[file] != old[file]} == {name}
    assert after[1:] != before[1:]


def _facts(registry: ModelRegistry, folder: Path) -> tuple[Any, ...]:
    """Return what answers to a registered name: the receipt's files, and what model and tokenizer do."""
    registry.register("m", "custom", model_path=str(folder), replace=True)
    with registry.lease("m") as lease, torch.inference_mode():
        ids = lease.tokenizer("the patient was given fever")["input_ids"]
        length, eps = lease.tokenizer.model_max_length, lease.model.config.layer_norm_eps
        return lease.receipt.proof.files, ids, length, eps, lease.model(torch.tensor([ids]))[0].sum().item()


@pytest.mark.parametrize("content", ["added", "removed"])
def test_a_file_that_comes_or_goes_is_noticed_by_the_next_call(
    registry: ModelRegistry, tmp_path: Path, content: str
) -> None:
    """The set of files is decided anew: a file that was not there may decide what the others mean."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    registry.register("m", "custom", model_path=str(folder))
    file, text = folder / "added_tokens.json", '{"patient": 6}'  # a token of its own, inside of a word too
    if content == "removed":
        file.write_text(text)
    before = registry.load_tokenizer("m")("impatient")["input_ids"]
    if content == "removed":
        file.unlink()
    else:
        file.write_text(text)
    after = registry.load_tokenizer("m")("impatient")["input_ids"]
    assert (6 in after, 6 in before) == (content == "added", content == "removed")
    with registry.lease("m") as lease:
        assert lease.tokenizer("impatient")["input_ids"] == after
        assert (file.name in lease.receipt.proof.files) == (content == "added")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json", "vocab.txt"])
def test_a_link_that_leads_nowhere_is_a_file_that_is_missing(
    registry: ModelRegistry, tmp_path: Path, name: str
) -> None:
    """Not one that the model never had: a half copied cache has the names of all files. What no load reads may lack."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    shutil.copy(folder / "model.safetensors", folder / "pytorch_model.bin")
    (folder / "notes.txt").symlink_to("nowhere")
    assert registry.load_tokenizer(folder).tokenize("ALS") == ["ALS"]
    (folder / name).unlink()
    (folder / name).symlink_to(f"../blobs/{name}")
    with pytest.raises(IncompleteSnapshotError, match=f"{name}: it is a broken link"):
        registry.load_tokenizer(folder)


def test_files_that_change_between_being_hashed_and_being_read_are_refused(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    """A load that waited for room, a tokenizer that is read an hour later: never bytes that nobody checked."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    other = tiny.bert_masked_lm(tmp_path / "other", seed=1)
    target = registry.session.resolver.resolve(str(folder), LoadOptions())
    (other / "model.safetensors").rename(folder / "model.safetensors")
    with pytest.raises(DigestMismatchError, match="changed after it was verified"):
        registry.session.load(target)
    with registry.lease(folder) as lease:
        vocabulary = folder / "vocab.txt"
        vocabulary.write_text(vocabulary.read_text().replace("aspirin\n", "cancer\n", 1))
        with pytest.raises(DigestMismatchError, match="vocab.txt changed after it was verified"):
            _ = lease.tokenizer
        proof = lease.receipt.proof
        assert proof.changed == ["vocab.txt"] and proof.tokenizer_sha256 is None


def test_a_receipt_made_later_says_what_is_true_later(registry: ModelRegistry, tmp_path: Path, home: Path) -> None:
    """A file that was edited, or a lock that was withdrawn, since the model was loaded: it is no longer `locked`."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    registry.lock(folder)
    with registry.lease(folder) as lease:
        assert lease.receipt.proof.locked and lease.receipt.proof.changed == []
    with registry.lease(folder) as lease:
        with (folder / "model.safetensors").open("r+b") as stream:
            stream.seek(-4, os.SEEK_END)
            stream.write(b"\0\0\0\0")
        assert not lease.receipt.proof.locked and lease.receipt.proof.changed == ["model.safetensors"]
    other = tiny.bert_masked_lm(tmp_path / "other")
    registry.lock(other)
    with registry.lease(other) as lease:
        Lock.current().file.unlink()
        assert not lease.receipt.proof.locked and lease.receipt.proof.changed == []


def test_a_lock_that_is_withdrawn_or_damaged_holds_for_what_is_in_memory_too(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a lock is required, the next call is refused, not only the next load."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    registry.register("m", "custom", model_path=str(folder))
    registry.lock("m")
    registry.load_model("m")
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    registry.load_model("m")
    file = Lock.current().file
    content = file.read_text()
    file.write_text("garbage")
    with pytest.raises(SourceError, match="Lock .* cannot be read"):
        registry.load_model("m")
    file.unlink()
    with pytest.raises(DigestMismatchError, match="only locked models may be loaded"):
        registry.load_model("m")
    file.write_text(content)
    registry.load_model("m")


def test_an_adapter_beside_a_whole_model_is_refused_or_left_out_by_name(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    """Whether it would be applied depends on what else is installed."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    plain = registry.load_model(folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert registry.load_model(folder) is plain  # nothing to apply
    save_file({"weight": torch.zeros(1)}, folder / "adapter_model.safetensors")
    with pytest.raises(SourceError, match="an adapter beside them, adapter_model.safetensors"):
        registry.load_model(folder)
    registry.register("m", "custom", model_path=str(folder), unused_weights=["adapter_model.safetensors"])
    assert registry.load_model("m").state_dict().keys() == plain.state_dict().keys()
    assert "adapter_model.safetensors" not in registry.lock("m")["m"].files


def test_a_pickle_of_equal_size_and_time_is_another_model(registry: ModelRegistry, tmp_path: Path) -> None:
    """Reproducible images and copies that keep times: the conversion goes by content."""
    folder = convert(tiny.bert_masked_lm(tmp_path / "m", weights="bin"))
    other = convert(tiny.bert_masked_lm(tmp_path / "other", weights="bin", seed=1))
    file, times = folder / "pytorch_model.bin", (folder / "pytorch_model.bin").stat()
    first = registry.load_model(folder).state_dict()
    file.write_bytes((other / "pytorch_model.bin").read_bytes())
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert file.stat().st_size == times.st_size
    second = registry.load_model(folder).state_dict()
    true = ModelRegistry().load_model(other).state_dict()
    name = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(second[name], true[name]) and not torch.equal(second[name], first[name])


def test_a_file_of_a_class_of_ones_own_is_read_when_the_entry_lists_it(registry: ModelRegistry, tmp_path: Path) -> None:
    """It is locked and exported like the others; one that is not there is an error."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    (folder / "scale.txt").write_text("2")
    reads = f"{__name__}:ReadsScale"
    registry.register("without", "custom", model_path=str(folder), model_class=reads)
    with pytest.raises(MedVLLMError, match="FileNotFoundError"):
        registry.load_model("without")
    registry.register("with", "custom", model_path=str(folder), model_class=reads, extra_files=["scale.txt"])
    model: Any = registry.load_model("with")
    assert model.scale == "2"
    assert "scale.txt" in registry.lock("with")["with"].files
    (folder / "scale.txt").unlink()
    with pytest.raises(SourceError, match="scale.txt is missing"):
        registry.load_model("with")
    with pytest.raises(SourceError, match="has no file 'gone.txt'"):
        registry.register("gone", "custom", model_path=str(folder), model_class=reads, extra_files=["gone.txt"])


@pytest.mark.parametrize("name", spread(SHAPES, 4))
def test_from_a_hub_and_in_a_bundle_goes_what_the_model_is(
    shapes: dict[str, Path], name: str, hub: LoopbackHub, tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of the lock, and no byte beside them; what arrives is the same model."""
    repo = f"acme/{name.replace(' ', '-')}"  # what a branch points to is remembered
    commit = hub.add(repo, shapes[name])
    registry = ModelRegistry()
    there, here = _model(registry, f"{repo}@{commit}"), _model(registry, shapes[name])
    locked = registry.lock(repo)[repo].files
    asked = {request.path.partition(f"/resolve/{commit}/")[2] for request in hub.requests("/resolve/")}
    assert there == here
    assert asked == locked.keys() == registry.lock(shapes[name])[str(shapes[name])].files.keys()
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    registry.register("folder", "custom", model_path=str(shapes[name]))
    registry.lock("folder")
    registry.export(tmp_path / "b.tar", "folder")
    with tarfile.open(tmp_path / "b.tar") as bundle:
        blobs = {Path(member).name for member in bundle.getnames() if member.startswith("blobs/")}
    assert blobs == {digest.sha256 for digest in locked.values()}
    if (root / "home" / "converted").exists():  # to convert again takes seconds
        shutil.copytree(root / "home" / "converted", tmp_path / "site" / "converted")
    monkeypatch.setenv("MEDVLLM_HOME", str(tmp_path / "site"))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(tmp_path / "site.lock"))
    other = ModelRegistry()
    other.import_bundle(tmp_path / "b.tar", lock=True)
    assert _model(other, "folder") == here


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["adapter_config.json", "adapter_model.safetensors", "README.md"], "holds an adapter, not a model"),
        (["adapter_config.json", "adapter_model.safetensors", "tokenizer.json"], "holds an adapter, not a model"),
        (["model.gguf", "README.md"], r"has no config\.json(.|\n)*It holds: README.md, model.gguf$"),
        (["config.json", "onnx/model.onnx"], r"has no weights(.|\n)*It holds: config.json, onnx$"),
    ],
)
def test_a_repository_without_a_model_is_told_by_what_it_holds(
    hub: LoopbackHub, tmp_path: Path, files: list[str], said: str
) -> None:
    """As a folder is, whatever of it is fetched."""
    for name in files:
        (tmp_path / "m" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "m" / name).write_text("{}")
    hub.add("acme/m", tmp_path / "m")
    for model in ("acme/m", tmp_path / "m"):
        with pytest.raises(SourceError, match=said):
            ModelRegistry().load_model(model)


def test_a_commit_is_proven_by_the_hub_and_declared_by_a_cache(
    hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache that another tool filled, or that was carried here, only says so; without a listing that is a warning."""
    from huggingface_hub import constants, snapshot_download

    commit = hub.add("acme/m", tiny.bert_masked_lm(tmp_path / "m"))

    def proof() -> tuple[str | None, Any]:
        with ModelRegistry().lease(f"acme/m@{commit}") as lease:
            return lease.receipt.proof.commit, lease.receipt.declared.get("commit")

    snapshot_download("acme/m", revision=commit)
    said = {"value": commit, "provenance": "the Hub's cache on this machine"}
    assert proof() == (None, said)
    shutil.rmtree(home / "hub")
    assert proof() == (commit, None)
    next((home / "hub").rglob("trees/*.json")).unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    caplog.clear()
    assert proof() == (None, said)
    assert "is not checked against its commit" in caplog.text


@pytest.mark.parametrize(
    ("name", "old", "new"), [("config.json", '"eps": 1', '"eps": 2'), ("vocab.txt", "patient", "tneitap")]
)
def test_a_commit_that_nothing_lists_is_another_model_once_a_file_of_it_changes(
    hub: LoopbackHub, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: str, new: str
) -> None:
    """In a cache without links, as on a disk that has none: model and tokenizer in memory are not what is there."""
    from huggingface_hub import constants, snapshot_download

    folder = tiny.bert_masked_lm(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text()) | {"eps": 1}
    (folder / "config.json").write_text(json.dumps(config))
    commit = hub.add("acme/m", folder)
    cached = Path(snapshot_download("acme/m", revision=commit))
    next((home / "hub").rglob("trees/*.json")).unlink()
    for file in cached.iterdir():
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    registry = ModelRegistry()
    before = registry.load_model(f"acme/m@{commit}"), registry.load_tokenizer(f"acme/m@{commit}")
    text = (cached / name).read_text()
    assert old in text
    (cached / name).write_text(text.replace(old, new))
    after = registry.load_model(f"acme/m@{commit}"), registry.load_tokenizer(f"acme/m@{commit}")
    if name == "config.json":
        assert (before[0].config.eps, after[0].config.eps) == (1, 2)
    else:
        assert "patient" in before[1].get_vocab() and "patient" not in after[1].get_vocab()


def test_a_listing_that_is_not_the_hubs_is_asked_for_anew_or_refused(
    hub: LoopbackHub, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing and a blob that were changed together fit each other, and not what the Hub gave."""
    from huggingface_hub import constants

    folder, other = tiny.bert_masked_lm(tmp_path / "m"), tiny.bert_masked_lm(tmp_path / "other", seed=1)
    commit = hub.add("acme/m", folder)
    name = f"acme/m@{commit}"
    right = _model(ModelRegistry(), name)
    listing = next((home / "hub").rglob("trees/*.json"))
    blob = (ModelRegistry().pull(name) / "model.safetensors").resolve()
    forged = (other / "model.safetensors").read_bytes()
    listing.write_text(listing.read_text().replace(blob.name, hashlib.sha256(forged).hexdigest()))
    blob.write_bytes(forged)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DigestMismatchError, match="is not the list of files that the Hub gave"):
        ModelRegistry().load_model(name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    assert _model(ModelRegistry(), name) == right


def test_what_was_taken_into_the_home_folder_stays_what_it_was(
    registry: ModelRegistry, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the working directory and whether there is a lock: a file changed, added or removed is refused."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    registry.register("m", "custom", model_path=str(folder), copy=True)
    registry.load_model("m")
    kept = next((home / "medvllm" / "models").glob("*/"))
    monkeypatch.chdir(tmp_path)
    for change in (
        lambda: (kept / "config.json").write_text((kept / "config.json").read_text().replace("1e-12", "1e-11")),
        lambda: (kept / "added_tokens.json").write_text("{}"),
        lambda: (kept / "vocab.txt").unlink(),
    ):
        backup = shutil.copytree(kept, tmp_path / "backup", dirs_exist_ok=True)
        change()
        for asked in (registry, ModelRegistry()):
            with pytest.raises(DigestMismatchError, match="no longer holds the files that were copied into it"):
                asked.load_model("m" if asked is registry else str(kept))
        shutil.rmtree(kept)
        shutil.copytree(backup, kept)
        shutil.rmtree(backup)
    assert registry.load_model("m")


def _poisoned(folder: Path) -> None:
    """Other weights in a prepared copy, with the record that fits them."""
    file, record = folder / "model.safetensors", folder / "prepared.json"
    header = file.read_bytes()
    size = 8 + int.from_bytes(header[:8], "little")
    file.write_bytes(header[:size] + b"\x3f" * (len(header) - size))
    content = json.loads(record.read_text())
    content["files"][file.name]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    record.write_text(json.dumps(content))


def test_a_copy_in_another_dtype_is_held_to_the_weights_that_it_was_made_of(tmp_path: Path, home: Path) -> None:
    """Not to its own record: `verify` names it, and a load makes it anew."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    registry = ModelRegistry()
    registry.lock(folder)
    right = {name: t.clone() for name, t in registry.load_model(folder, dtype="float64").state_dict().items()}
    assert registry.verify() == {str(folder): {}}
    registry.clear_cache()
    templates.clear()  # as a new process has it
    copy = next((home / "medvllm" / "prepared").glob("*/"))
    _poisoned(copy)
    assert [file for flaws in registry.verify().values() for file in flaws] == [str(copy)]
    again = ModelRegistry().load_model(folder, dtype="float64").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in right.items())
    assert registry.verify() == {str(folder): {}}


def test_what_others_may_write_saves_no_work(
    registry: ModelRegistry, tmp_path: Path, home: Path, hurried: HurriedClock
) -> None:
    """A digest beside other bytes in a home folder of a group: the files are hashed all the same."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    digests = home / "medvllm" / "digests.db"
    hurried.sleep(2.1)
    registry.pull(folder)
    with sqlite3.connect(digests) as connection:
        assert connection.execute("UPDATE digests SET sha256 = ?", ("0" * 64,)).rowcount
    connection.close()
    code = "import sys; from medvllm.engine.model_runner import registry; print(registry.lock(sys.argv[1]))"

    def locked() -> str:
        return warm.run("-c", code, str(folder)).stdout

    assert "0" * 64 in locked()  # its owner is believed
    for path, mode in ((digests, 0o660), (digests.parent, 0o770)):
        before = path.stat().st_mode
        path.chmod(mode)
        assert "0" * 64 not in locked()
        path.chmod(before)


@pytest.mark.parametrize("link", ["../outside.json", "/etc/hostname", "sub/../../outside.json", "a\\b.json"])
@pytest.mark.parametrize(
    ("file", "field", "many"),
    [
        ("config.json", "transformers_weights", False),
        ("config.json", "configuration_files", True),
        ("tokenizer_config.json", "fast_tokenizer_files", True),
    ],
)
def test_no_file_leads_out_of_the_folder(
    registry: ModelRegistry, tmp_path: Path, link: str, file: str, field: str, many: bool
) -> None:
    """By whatever field of whatever config."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    content = json.loads((folder / file).read_text()) | {field: [link] if many else link}
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(SourceError, match="outside of"):
        registry.load_model(folder)


class ReadsScale(BertForMaskedLM):  # type: ignore[no-untyped-call]
    """A class that reads a file of its own."""

    scale: str

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        outcome: Any = super().from_pretrained(*arguments, **options)
        outcome[0].scale = (Path(arguments[0]) / "scale.txt").read_text()
        return outcome


def test_a_folder_of_links_that_another_thread_has_just_made_stays(tmp_path: Path) -> None:
    """Whoever makes the same one at the same time takes it, so that what reads it meanwhile finds its files."""
    (tmp_path / "file").write_text("content")
    start = threading.Barrier(4)

    def read(_: int) -> list[str]:
        found = []
        for number in range(25):
            start.wait(timeout=60)  # a thread that failed never comes
            folder = make_link_folder({f"{number}": tmp_path / "file", "a/b": tmp_path / "file"})
            found += [(folder / name).read_text() for name in (f"{number}", "a/b") for _ in range(20)]
        return found

    with ThreadPoolExecutor(4) as pool:
        assert {content for found in pool.map(read, range(4)) for content in found} == {"content"}


def test_a_folder_of_links_that_others_may_write_to_is_not_used(tmp_path: Path, home: Path) -> None:
    """Who can exchange a link would have another file read than the one that was hashed."""
    (tmp_path / "file").write_text("content")
    views = home / "medvllm" / "views"
    assert make_link_folder({"name": tmp_path / "file"}).parent == views
    views.chmod(0o770)
    folder = make_link_folder({"name": tmp_path / "file"})
    assert folder.parent != views and (folder / "name").read_text() == "content"


def test_links_whose_files_are_gone_are_removed_once_nobody_can_be_using_them(tmp_path: Path) -> None:
    """The files may be there for another container that shares the home folder."""
    for name in ("one", "two"):
        (tmp_path / name).write_text("content")
    gone, lately = make_link_folder({"a": tmp_path / "one"}), make_link_folder({"b": tmp_path / "two"})
    for name in ("one", "two"):
        (tmp_path / name).unlink()
    (tmp_path / "file").write_text("content")
    os.utime(gone, (0, time.time() - 7200))
    make_link_folder({"c": tmp_path / "file"})
    assert not gone.exists() and lately.exists()
