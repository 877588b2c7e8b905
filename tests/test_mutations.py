"""Whatever happens to a file, the outcome is an error of ours or what the file rightly says, for every input tried."""

import hashlib
import io
import json
import math
import resource
import shutil
import struct
import tarfile
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM

from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DeviceMemoryError, MedVLLMError, SourceError, WeightsMismatchError
from medvllm.sources import Lock
from tests.support import tiny
from tests.support.loopback import LoopbackHub
from tests.support.mutations import changed, changes, edited, edits, hostile, to_json, to_toml

SOME, MANY = 100, 2000  # inputs of each kind: in every run, and in the slow one; docs/reliability.md says so
counted = pytest.mark.parametrize(
    "examples",
    [pytest.param(SOME, id="some"), pytest.param(MANY, id="many", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)

Tensors = Mapping[str, torch.Tensor]


class _Input(bytes):
    """A file's content; a failing one is shown by its beginning."""

    def __repr__(self) -> str:
        return f"{bytes(self[:4000])!r} and so on, {len(self):,} bytes"


def _each(examples: int, inputs: st.SearchStrategy[bytes], outcome: Callable[[bytes], bool]) -> None:
    """Try that many inputs; `outcome` says whether one was taken. Some are, and some are not."""
    taken: Counter[bool] = Counter()

    @settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs.map(_Input))
    def check(content: bytes) -> None:
        taken[outcome(content)] += 1

    check()
    assert taken.total() >= examples and taken[True] and taken[False], taken


def _or_error(call: Callable[[], Any]) -> Any:
    """Return the call's result, or None when it ends in an error of ours; not one for want of memory."""
    try:
        return call()
    except MedVLLMError as error:
        assert not isinstance(error, DeviceMemoryError), error
        return None


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """Nothing that a file says makes the process ask for gigabytes, or use one."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (8 << 30), before[1]))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 1 << 20  # kilobytes


def _holds(model: Any, tensors: Tensors) -> bool:
    """Return whether every weight of a model is, to the bit, the one of its name; a tied one has another's."""
    tied = getattr(model, "all_tied_weights_keys", {})
    for name, weight in model.state_dict().items():
        own = [n for n in (name, str(tied.get(name)), f"bert.{name}") if n in tensors]
        if not own or not _same(weight, tensors[own[0]].to(weight.dtype)):
            return False
    return True


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)))


# Headers of safetensors

_TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_TORCH |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
_DTYPES = st.sampled_from([*_TORCH, "F4", "f32", "BOOL", "F8_E4M3"])


def _spec(content: bytes) -> dict[str, torch.Tensor] | None:
    """Read a safetensors file by the letter of the format, apart from the code under test; None: it is none."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        assert len(found) == len(pairs)
        return found

    try:
        (length,) = struct.unpack_from("<Q", content)
        body = content[8 + length :]
        header = json.loads(content[8 : 8 + length].decode(), object_pairs_hook=once)
        noted = header.pop("__metadata__", None) or {}
        assert all(type(text) is str for text in (*noted.values(), *noted))
        reached, found = 0, {}
        for name, row in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (begin, end), shape, dtype = row["data_offsets"], row["shape"], _TORCH[row["dtype"]]
            assert {type(number) for number in (begin, end, *shape)} == {int} and min(shape, default=0) >= 0
            assert begin == reached and end - begin == math.prod(shape) * dtype.itemsize
            reached = end
            raw = bytearray(body[begin:end])
            found[name] = torch.frombuffer(raw, dtype=dtype).reshape(shape) if raw else torch.empty(shape, dtype=dtype)
        assert reached == len(body)
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error):
        return None
    return found


def _headers(content: bytes) -> st.SearchStrategy[bytes]:
    """Files whose header was changed: its bytes, its structure, its length, its layout."""
    (length,) = struct.unpack_from("<Q", content)
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]

    def file(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text + body

    def spaced(amounts: tuple[int, int]) -> bytes:
        return file(json.dumps(header, indent=amounts[0]).encode() + b" " * amounts[1])

    return st.one_of(
        st.builds(edited, st.just(content[: 8 + length]), edits).map(lambda start: start + body),
        st.builds(edited, st.just(content), edits),
        st.builds(changed, st.just(header), changes(st.one_of(hostile, _DTYPES))).map(to_json).map(file),
        st.integers(0, 2**64 - 1).map(lambda wrong: struct.pack("<Q", wrong) + content[8:]),
        st.sampled_from(["utf-16", "utf-32", "utf-8-sig"]).map(lambda code: file(json.dumps(header).encode(code))),
        st.tuples(st.integers(0, 3), st.integers(0, 9)).map(spaced),
    )


@counted
def test_headers_of_safetensors(registry: ModelRegistry, tmp_path: Path, examples: int) -> None:
    """A file that the format allows gives the tensors that it describes; any other is refused, and so is a locked
    model whose file is not the approved one."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    file = folder / "model.safetensors"
    original = file.read_bytes()
    registry.lock(folder)

    def outcome(content: bytes) -> bool:
        file.write_bytes(content)
        assert content == original or not _or_error(lambda: registry.load_model(folder, use_cache=False))
        (tmp_path / "home" / "medvllm.lock").rename(tmp_path / "aside")
        try:
            model = _or_error(lambda: registry.load_model(folder, use_cache=False))
        finally:
            (tmp_path / "aside").rename(tmp_path / "home" / "medvllm.lock")
        if model is not None:
            described = _spec(content)
            assert described is not None and _holds(model, described)
        return model is not None

    _each(examples, _headers(original), outcome)


# Indexes and configs


def _json(file: Path, values: st.SearchStrategy[Any] = hostile) -> st.SearchStrategy[bytes]:
    content = file.read_bytes()
    return st.one_of(
        st.builds(edited, st.just(content), edits),
        st.builds(changed, st.just(json.loads(content)), changes(values)).map(to_json),
    )


@counted
def test_indexes_of_shards(registry: ModelRegistry, tmp_path: Path, examples: int) -> None:
    """Names that climb, shards that are not there, tensors that are said to be in another one: an error, or the
    same weights."""
    folder = tiny.bert_masked_lm(tmp_path / "m", weights="sharded")
    (tmp_path / "model-x.safetensors").write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    tensors: dict[str, torch.Tensor] = {}
    for shard in folder.glob("*.safetensors"):
        tensors |= load_file(shard)
    index = folder / "model.safetensors.index.json"

    def outcome(content: bytes) -> bool:
        index.write_bytes(content)
        model = _or_error(lambda: registry.load_model(folder, use_cache=False))
        assert model is None or _holds(model, tensors)
        return model is not None

    shards = st.sampled_from([*(f.name for f in folder.glob("*.safetensors")), "../model-x.safetensors", "config.json"])
    _each(examples, _json(index, st.one_of(hostile, shards)), outcome)


_WORDS = st.sampled_from(
    ["bert", "roberta", "gpt2", "llama", "BertModel", "BertForTokenClassification", "T5Model", "int8", "float16"]
)


def _fields(config: dict[str, Any]) -> st.SearchStrategy[bytes]:
    """Configs with hostile values in the fields that decide how large a model is, and which."""
    names = [*config, "num_labels", "id2label", "torch_dtype", "auto_map", "quantization_config", "rope_scaling"]
    names += ["num_layers", "layer_types", "attention_types", "text_config", "pad_token_id", "tie_word_embeddings"]
    edits = st.dictionaries(st.sampled_from(names), st.one_of(hostile, _WORDS, st.lists(_WORDS, max_size=2)))
    return edits.map(lambda fields: to_json(config | fields))


@counted
def test_configs(registry: ModelRegistry, tmp_path: Path, examples: int) -> None:
    """Of any type or size, and never at the price of the memory that they ask for: an error, or the weights of the
    file."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    file = folder / "config.json"

    def outcome(content: bytes) -> bool:
        file.write_bytes(content)
        model = _or_error(lambda: registry.load_model(folder, use_cache=False))
        _or_error(lambda: registry.load_tokenizer(folder))
        assert model is None or _holds(model, tensors)
        return model is not None

    _each(examples, st.one_of(_json(file), _fields(json.loads(file.read_text()))), outcome)


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 10**9},
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 180},
        {"vocab_size": 10**9},
        {"vocab_size": 3 * 10**7},
        {"hidden_size": 10**6},
        {"intermediate_size": 10**9},
        {"max_position_embeddings": 10**8},
        {"type_vocab_size": 10**8},
        {"model_type": "gpt_neo", "architectures": ["GPTNeoModel"], "attention_types": [[["global"], 10**9]]},
    ],
    ids=str,
)
def test_a_config_alone_takes_no_memory(registry: ModelRegistry, tmp_path: Path, fields: dict[str, Any]) -> None:
    """Sizes that the weights do not account for are refused before anything of that size is made."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    tiny.edit_config(folder, **fields)
    with pytest.raises(MedVLLMError, match="account for|far more weights than its checkpoint has"):
        registry.load_model(folder)


class _Larger(BertForMaskedLM):  # type: ignore[no-untyped-call]
    """Its loader makes more than the checkpoint has."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        torch.nn.Linear(10**5, 10**5, device="meta")
        return super().from_pretrained(*arguments, **options)


def test_a_loader_of_ones_own_may_make_more(registry: ModelRegistry, tmp_path: Path) -> None:
    """As it may take parts from elsewhere."""
    assert registry.load_model(tiny.bert_masked_lm(tmp_path / "m"), model_class=_Larger)


def _in_header(file: Path, **changes: Any) -> None:
    """Change the row of one tensor in a header, and leave the rest of the file as it is."""
    content = file.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    header["bert.embeddings.LayerNorm.bias"] |= changes
    text = to_json(header)
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    "row",
    [
        {"data_offsets": [0.0, 128.0]},
        {"data_offsets": [False, 128]},
        {"data_offsets": [0, float("inf")], "dtype": "F4"},
        {"data_offsets": [64, 192]},
        {"shape": [32.0]},
        {"shape": [-32, -1]},
        {"dtype\x01": "F32"},
    ],
    ids=str,
)
def test_a_header_is_read_by_the_letter(registry: ModelRegistry, tmp_path: Path, row: dict[str, Any]) -> None:
    """Whole numbers only, no overlap, nothing twice: refused when the files are, before anything loads them."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    _in_header(folder / "model.safetensors", **row)
    with pytest.raises(SourceError, match="its header cannot be read"):
        registry.pull(folder)


def test_whole_numbers_are_no_weights(registry: ModelRegistry, tmp_path: Path) -> None:
    """They would be converted in silence, and be other numbers."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    _in_header(folder / "model.safetensors", dtype="I32")
    with pytest.raises(WeightsMismatchError, match="integers for bert.embeddings.LayerNorm.bias"):
        registry.load_model(folder)


def test_a_tensor_in_two_shards_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Which of the two would be loaded is not said anywhere."""
    folder = tiny.bert_masked_lm(tmp_path / "m", weights="sharded")
    first, second = sorted(folder.glob("*.safetensors"))
    save_file(load_file(second) | {"bert.embeddings.LayerNorm.bias": torch.zeros(32)}, second, {"format": "pt"})
    assert first != second
    with pytest.raises(SourceError, match="the tensor 'bert.embeddings.LayerNorm.bias' in two files"):
        registry.load_model(folder)


@pytest.mark.parametrize("path", ["../outside", "/etc", "a/b", ["x"]])
def test_modules_are_folders_of_the_model(registry: ModelRegistry, tmp_path: Path, path: Any) -> None:
    """The pooling is not taken from a file that nobody has checked."""
    folder = tiny.bert_encoder(tmp_path / "m")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling", "path": path}]))
    with pytest.raises(SourceError, match="modules.json names a folder outside of the model's"):
        registry.load_model(folder)


# Locks, entries and listings


def _toml(file: Path) -> st.SearchStrategy[bytes]:
    content = file.read_bytes()
    return st.one_of(
        st.builds(edited, st.just(content), edits),
        st.builds(changed, st.just(tomllib.loads(content.decode())), changes()).map(to_toml),
    )


@pytest.fixture
def acme(hub: LoopbackHub, tmp_path: Path) -> LoopbackHub:
    """A Hub with one tiny model, acme/bert."""
    hub.add("acme/bert", tiny.bert_masked_lm(tmp_path / "acme"))
    return hub


@counted
def test_locks(
    registry: ModelRegistry,
    acme: LoopbackHub,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    examples: int,
) -> None:
    """What a damaged lock lets through where only locked models may be loaded is what was approved; it is not
    overwritten."""
    monkeypatch.setenv("MEDVLLM_REQUIRE_LOCK", "1")
    folder = tiny.bert_masked_lm(tmp_path / "m", seed=1)
    registry.lock("acme/bert", folder)
    file = home / "medvllm.lock"
    approved = Lock.read(file).models
    tensors = {name: load_file(path / "model.safetensors") for name, path in (("acme/bert", tmp_path / "acme"),)}
    tensors[str(folder)] = load_file(folder / "model.safetensors")

    def outcome(content: bytes) -> bool:
        file.write_bytes(content)
        proven = _or_error(registry.verify)
        for name, flaws in (proven or {}).items():
            assert flaws or approved[Lock.current().key_of(name)] == Lock.current().models[Lock.current().key_of(name)]
        loaded = 0
        for name, own in tensors.items():
            model = _or_error(partial(registry.load_model, name, use_cache=False))
            assert model is None or _holds(model, own)
            loaded += model is not None
        if _or_error(Lock.current) is None:
            assert not loaded and _or_error(lambda: registry.lock(folder)) is None
        assert file.read_bytes() == content or proven is not None
        return loaded == 2

    _each(examples, _toml(file), outcome)


@counted
def test_files_of_entries(home: Path, tmp_path: Path, examples: int) -> None:
    """One that cannot be read changes nothing; one that can makes entries that load what they name, or say why not."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    registry = ModelRegistry()
    facts: dict[str, Any] = {"model_path": folder, "do_lower_case": False, "max_length": 32, "tags": ["a", "b"]}
    registry.register("one", "clinical", persist=True, parameters={"dtype": "float32"}, **facts)
    registry.register("two", "generic", persist=True, model_path=folder, task="fill-mask", id2label=["O", "B"])
    registry.catalog.set_alias("two", "production", 1)
    registry.catalog.protect("two", "staging")
    before = registry.catalog.export()
    (tmp_path / "catalog.toml").write_text(before)

    def outcome(content: bytes) -> bool:
        text = content.decode(errors="replace")
        planned = _or_error(lambda: registry.catalog.plan(text, reason="a test")[0])
        assert registry.catalog.export() == before
        if planned is None:
            assert _or_error(lambda: registry.catalog.apply(text, reason="a test")) is None
            assert registry.catalog.export() == before
            return False
        for event in planned:
            if event.action == "registered" and event.detail["facts"].get("model_path") == str(folder):
                facts = event.detail["facts"]
                registry.register("m", facts.pop("model_type"), replace=True, **facts)
                model = _or_error(partial(registry.load_model, "m", use_cache=False))
                assert model is None or _holds(model, tensors)
        return True

    _each(examples, _toml(tmp_path / "catalog.toml"), outcome)
    assert registry.catalog.check_history()[2] == []


@counted
def test_listings_of_the_cache(
    registry: ModelRegistry, acme: LoopbackHub, home: Path, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    """A damaged listing is asked for anew and never believed; without a Hub, a locked model is whole or refused."""
    from huggingface_hub import _tree_cache, constants

    folder = registry.pull("acme/bert")
    registry.lock("acme/bert")
    files = {file.name: file.read_bytes() for file in folder.iterdir()}
    listing = folder.parents[1] / "trees" / f"{folder.name}.json"
    sound = listing.read_bytes()

    def outcome(content: bytes) -> bool:
        listing.write_bytes(content)
        _tree_cache._IN_MEMORY_TREE_CACHE.clear()  # as in a process of its own
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        offline = _or_error(lambda: registry.pull("acme/bert"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        assert registry.pull("acme/bert") == folder
        assert {file.name: file.read_bytes() for file in folder.iterdir()} == files
        return offline is not None

    _each(examples, _json(listing), outcome)
    assert listing.read_bytes() == sound or registry.load_model("acme/bert")


# Bundles


def _repacked(members: list[tuple[str, bytes]], texts: dict[str, Any]) -> bytes:
    """Write a bundle with other texts or listings, and a manifest that has their digests right."""
    (_, manifest), *rest = members
    content = json.loads(manifest)
    renamed = {name: f"blobs/{_sha256(new)}" for name, new in texts.items() if name.startswith("blobs/")}
    rest = [(renamed.get(name, name), texts.get(name, old)) for name, old in rest]
    content["members"] = [{"name": n, "size": len(new), "sha256": _sha256(new)} for n, new in rest]
    content["listings"] = {
        model: renamed.get(f"blobs/{sha256}", f"blobs/{sha256}").removeprefix("blobs/")
        for model, sha256 in content["listings"].items()
    }
    first = texts.get("manifest.json", json.dumps(content).encode())
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, new in [("manifest.json", first), *rest]:
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(new), 0o644
            tar.addfile(member, io.BytesIO(new))
    return out.getvalue()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _bundles(content: bytes) -> st.SearchStrategy[bytes]:
    """Bundles whose bytes were changed, mostly in headers; or a text in them, with the digests put right."""
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        offsets = [member.offset for member in tar.getmembers()]
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]  # type: ignore[union-attr]
    texts = dict(members)
    manifest = json.loads(texts["manifest.json"])
    listing = f"blobs/{next(iter(manifest['listings'].values()))}"

    def in_header(at: int, edits: Any) -> bytes:
        header = edited(content[at : at + 512], edits).ljust(512, b"\0")[:512]
        fields = header[:148] + b" " * 8 + header[156:]
        return content[:at] + header[:148] + b"%06o\0 " % sum(fields) + header[156:] + content[at + 512 :]

    def with_text(name: str, write: Callable[[Any], bytes], structure: Any) -> st.SearchStrategy[bytes]:
        return st.builds(changed, st.just(structure), changes()).map(lambda new: _repacked(members, {name: write(new)}))

    return st.one_of(
        st.builds(edited, st.just(content), edits),
        st.builds(in_header, st.sampled_from(offsets), edits),
        with_text("manifest.json", to_json, manifest),
        with_text("medvllm.lock", to_toml, tomllib.loads(texts["medvllm.lock"].decode())),
        with_text("entries.toml", to_toml, tomllib.loads(texts["entries.toml"].decode())),
        with_text(listing, to_json, json.loads(texts[listing])),
    )


@counted
def test_bundles(
    registry: ModelRegistry, acme: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, examples: int
) -> None:
    """One that is taken gives a site where every model is proven and every file is one that was exported; one that
    is refused leaves no lock and no entry."""
    from huggingface_hub import constants

    registry.register("tagger", "clinical", model_path=tiny.bert_token_classifier(tmp_path / "t", ["O", "B-X"]))
    registry.export(tmp_path / "b.tar", "acme/bert", "tagger", unlocked=True)
    exported = {_sha256(file.read_bytes()) for name in ("acme", "t") for file in (tmp_path / name).iterdir()}
    site, bad = tmp_path / "site", tmp_path / "bad.tar"
    monkeypatch.setenv("MEDVLLM_HOME", str(site / "medvllm"))
    monkeypatch.setenv("MEDVLLM_LOCK_FILE", str(site / "medvllm.lock"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(site / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def outcome(content: bytes) -> bool:
        shutil.rmtree(site, ignore_errors=True)
        site.mkdir()
        bad.write_bytes(content)
        other = ModelRegistry()
        imported = _or_error(lambda: other.import_bundle(bad, lock=True))
        if imported is None:
            assert not (site / "medvllm.lock").exists() and other.catalog.names() == []
            return False
        assert not any(other.verify().values())
        for name in imported.models:
            folder = other.pull(name)
            assert {_sha256(file.read_bytes()) for file in folder.rglob("*") if file.is_file()} <= exported
        return True

    _each(examples, _bundles((tmp_path / "b.tar").read_bytes()), outcome)
