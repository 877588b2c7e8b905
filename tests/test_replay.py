"""Reload by replay: a model that is rebuilt is, bit for bit, the one that transformers loaded."""

import copy
import gc
import io
import json
import math
import os
import pickle
import re
import resource
import shutil
import struct
import tempfile
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from benchmarks.checkpoints import bert
from medvllm.engine.model_runner import ModelRegistry
from medvllm.errors import DigestMismatchError, RequestError, SourceError
from medvllm.load_result import LoadResult
from medvllm.loading.memory import mapped_bytes, size_bytes
from medvllm.loading.placement import copy_to_device
from medvllm.loading.replay import NoTemplate, Template, aligned, templates
from medvllm.loading.replay.mapping import map_file
from medvllm.loading.replay.store import TemplateStore
from medvllm.names import parse_name
from medvllm.options import Identity, LoadOptions
from tests.support import tiny, warm
from tests.support.conversions import convert
from tests.support.spread import spread
from tests.support.standins import STANDINS, one_of_each

ROOT = Path(__file__).parents[1]


@pytest.fixture
def load(registry: ModelRegistry) -> Callable[..., LoadResult]:
    """What a load gives, with how it was made; each call loads."""

    def loaded(name: str | Path, **options: Any) -> LoadResult:
        return registry.session.load(registry.session.resolver.resolve(name, LoadOptions.from_kwargs(options)))

    return loaded


def tensors(model: Any) -> dict[str, torch.Tensor]:
    """Every parameter and buffer under every name that it has."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors have the same bytes, also where they are not numbers."""
    octets = [tensor.detach().contiguous().flatten().view(torch.uint8) for tensor in (a, b)]
    return (a.dtype, a.shape) == (b.dtype, b.shape) and torch.equal(*octets)


def outcome(model: Any) -> dict[str, torch.Tensor]:
    """The tensors among a model's outputs, for several tokens and for one, which take other kernels."""
    found: dict[str, torch.Tensor] = {}
    for ids in ([2, 6, 7, 8, 9, 3], [6]):
        with torch.inference_mode():
            result = model(input_ids=torch.tensor([ids]))
        found |= {f"{name} {len(ids)}": value for name, value in result.items() if isinstance(value, torch.Tensor)}
    return found


def assert_same_outcome(first: Any, again: Any) -> None:
    """The two models give the same answers, to the last bit."""
    a, b = outcome(first), outcome(again)
    assert list(a) == list(b) and a
    for name, value in a.items():
        assert equal(b[name], value), name


def misalignment(model: Any) -> list[int]:
    """How far each tensor of a model lies from a place where torch would put it."""
    return [tensor.data_ptr() % 64 for tensor in tensors(model).values()]


def ties(model: Any) -> set[frozenset[str]]:
    """The names that are one tensor."""
    names: dict[int, set[str]] = {}
    for name, tensor in tensors(model).items():
        names.setdefault(id(tensor), set()).add(name)
    return {frozenset(group) for group in names.values()}


def assert_same(first: Any, again: Any) -> None:
    """The two models are equal in everything, their answers included, and share nothing that can be changed."""
    assert_same_model(first, again)
    assert_same_outcome(first, again)


def assert_same_model(first: Any, again: Any) -> None:
    """The two models are equal in everything but where in memory they lie, by which kernels may choose their way."""
    assert again is not first and type(again) is type(first)
    assert list(again.state_dict()) == list(first.state_dict())
    assert list(dict(again.named_modules())) == list(dict(first.named_modules()))
    one, two = tensors(first), tensors(again)
    assert list(two) == list(one)
    for name, tensor in one.items():
        assert equal(two[name], tensor), name
        assert two[name].requires_grad == tensor.requires_grad and type(two[name]) is type(tensor)
        assert two[name].stride() == tensor.stride() and two[name] is not tensor
        assert vars(two[name]) == vars(tensor) and not two[name].is_inference()
    assert ties(again) == ties(first)
    for (_, a), (_, b) in zip(first.named_modules(), again.named_modules(), strict=True):
        assert list(vars(b)) == list(vars(a)) and a.training is b.training is False
        assert a._non_persistent_buffers_set == b._non_persistent_buffers_set
    assert again.config is not first.config and again.config.to_dict() == first.config.to_dict()
    assert again.name_or_path == first.name_or_path == again.config._name_or_path
    generation: list[Any] = [getattr(model, "generation_config", None) for model in (first, again)]
    assert generation[0] is None or generation[0].to_dict() == generation[1].to_dict()


@pytest.mark.parametrize("name", spread(one_of_each(STANDINS), 4))
def test_every_built_in_model_is_rebuilt_as_it_was_loaded(
    load: Callable[..., LoadResult], registry: ModelRegistry, tmp_path: Path, name: str
) -> None:
    """As its entry says: weights that were converted, legacy names, ties, shards, rotary positions, labels."""
    folder = convert(STANDINS[name](tmp_path / "m"))
    entry = registry.get_metadata(name)
    behaviour = {key: value for key, value in entry.behaviour._asdict().items() if value not in (None, ())}
    behaviour = {key: list(value) if isinstance(value, tuple) else value for key, value in behaviour.items()}
    classes: dict[str, Any] = {"model_class": entry.class_paths[0], "config_class": entry.class_paths[1]}
    registry.register("m", "generic", model_path=str(folder), **classes, **behaviour)
    first, again, third = load("m"), load("m"), load("m")
    assert [loaded.loaded_by for loaded in (first, again, third)] == ["transformers", "replay", "replay"], (
        first.reload_fallback_reason
    )
    assert first.size_bytes == again.size_bytes
    assert_same(first.model, again.model)
    assert_same(first.model, third.model)
    # The truth of the first load: what the class itself makes of the folder.
    snapshot = registry.session.resolver.resolve("m", LoadOptions()).snapshot
    plain = type(first.model).from_pretrained(
        snapshot.loader_folder, config=first.model.config, dtype=first.model.dtype
    )
    if getattr(first.model.base_model, "pooler", None) is None and getattr(plain.base_model, "pooler", None):
        plain.base_model.pooler = None
    for key, tensor in tensors(plain).items():
        assert equal(tensor, tensors(first.model)[key]), key
    assert_same_outcome(plain, first.model)
    if plain.can_generate():
        assert plain.generation_config.to_dict() == first.model.generation_config.to_dict()


Load = Callable[..., LoadResult]


@pytest.mark.parametrize(
    ("make", "options"),
    spread(
        [
            (lambda folder: tiny.bert_masked_lm(folder), {"model_class": BertModel}),  # a prefix, and no pooler
            (lambda folder: tiny.bert_masked_lm(folder, weights="sharded", legacy_layer_norm=True), {}),
            (lambda folder: convert(tiny.bert_masked_lm(folder, weights="sharded_bin")), {}),
            (
                lambda folder: tiny.bert_masked_lm(folder),
                {"output_hidden_states": True, "attn_implementation": "eager"},
            ),
            (lambda folder: tiny.bert_masked_lm(folder), {"dtype": "bfloat16"}),
            (lambda folder: tiny.llama_causal_lm(folder, tied=True), {}),
            (lambda folder: tiny.llama_causal_lm(folder, dtype="bfloat16"), {}),
            (lambda folder: tiny.gpt2_causal_lm(folder), {"dtype": "float16"}),
        ],
        2,
    ),
)
def test_every_shape_of_trouble_is_rebuilt(load: Load, tmp_path: Path, make: Any, options: dict[str, Any]) -> None:
    """A prefix, legacy names, shards, a pickle, another config, another dtype, ties."""
    folder = make(tmp_path / "m")
    first, again = load(folder, **options), load(folder, **options)
    assert (first.loaded_by, again.loaded_by, again.reload_fallback_reason) == ("transformers", "replay", None), (
        first.reload_fallback_reason
    )
    assert_same(first.model, again.model)


def lengthened(folder: Path, by: int) -> Path:
    """The checkpoint with a header that is longer, so that all tensors lie elsewhere in the file."""
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length] + b" " * by
    file.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    return folder


@pytest.mark.parametrize("by", spread([0, 4, 8, 20, 48], 2))
@pytest.mark.parametrize("make", [tiny.bert_masked_lm, tiny.llama_causal_lm])
def test_a_model_lies_where_the_class_itself_would_have_it(load: Load, tmp_path: Path, make: Any, by: int) -> None:
    """In the dtype of its file: as askew as the file has it, so that the answers are those of `from_pretrained`."""
    folder = lengthened(make(tmp_path / "m"), by)
    first, again = load(folder), load(folder)
    plain = type(first.model).from_pretrained(folder)
    assert again.loaded_by == "replay" and prepared() == []
    assert misalignment(first.model) == misalignment(again.model) == misalignment(plain)
    assert_same(first.model, again.model)
    assert_same(plain, _unnamed(first.model, plain))


@pytest.mark.parametrize("by", [1, 2, 3])
def test_weights_that_begin_within_a_number_are_copied_to_where_they_may_lie(
    load: Load, tmp_path: Path, by: int
) -> None:
    """The weights are those of the file, and the answers the same each time."""
    folder = lengthened(tiny.bert_masked_lm(tmp_path / "m"), by)
    first, again = load(folder), load(folder)
    assert again.loaded_by == "replay" and not any(misalignment(first.model) + misalignment(again.model))
    assert_same(first.model, again.model)
    plain = BertForMaskedLM.from_pretrained(folder)
    assert_same_model(plain, _unnamed(first.model, plain))


def test_a_head_that_no_file_holds_stays_the_one_of_the_first_load(
    load: Load, registry: ModelRegistry, tmp_path: Path
) -> None:
    """It is random, and allowed by name; the labels are the entry's."""
    registry.register(
        "m",
        "generic",
        model_path=str(tiny.bert_encoder(tmp_path / "m")),
        model_class="transformers:AutoModelForTokenClassification",
        expected_missing_keys=["classifier.*"],
        id2label=["O", "B-DISEASE", "I-DISEASE"],
    )
    first, again = load("m"), load("m")
    assert again.loaded_by == "replay" and again.model.config.id2label[1] == "B-DISEASE"
    assert_same(first.model, again.model)


class PlainConfig(BertConfig):  # type: ignore[no-untyped-call]
    """A config of the user's own."""

    model_type = "plain-bert"


class PlainModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A class of the user's own, which transformers loads."""

    config_class = PlainConfig
    base_model_prefix = "encoder"
    scale: torch.Tensor

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.register_buffer("scale", torch.tensor([2.0, math.nan]), persistent=False)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: torch.Tensor) -> Any:
        return {"out": self.encoder(input_ids).last_hidden_state * self.scale[0]}


class HookedModel(PlainModel):  # type: ignore[no-untyped-call]
    """It has a hook."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.encoder.register_forward_hook(print)


class LambdaModel(PlainModel):  # type: ignore[no-untyped-call]
    """It holds what cannot be pickled."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.after = lambda tensor: tensor


class LockedModel(PlainModel):  # type: ignore[no-untyped-call]
    """It is pickled in a way of its own."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class WritingModel(PlainModel):  # type: ignore[no-untyped-call]
    """It changes what was loaded, where no version counter shows it."""

    def tie_weights(self, *arguments: Any, **options: Any) -> None:
        self.encoder.embeddings.word_embeddings.weight.data[1, 1] = 7.0


class OwnWayModel(PlainModel):  # type: ignore[no-untyped-call]
    """It loads itself."""

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        return super().from_pretrained(*arguments, **options)


class BigModel(PlainModel):  # type: ignore[no-untyped-call]
    """It computes more than a template keeps."""

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.register_buffer("table", torch.ones(5_000_000), persistent=False)


def plain(folder: Path) -> Path:
    """A checkpoint for the classes above."""
    size = tiny.SMALL | {"vocab_size": 40, "num_hidden_layers": 1}
    PlainModel(PlainConfig(**size)).save_pretrained(folder)
    return folder


def test_a_class_of_ones_own_is_rebuilt_without_running_its_code(load: Load, tmp_path: Path) -> None:
    """Buffers that no file holds included, of which one value is not a number."""
    folder = plain(tmp_path / "m")
    first, again = load(folder, model_class=PlainModel), load(folder, model_class=PlainModel)
    assert again.loaded_by == "replay"
    assert_same(first.model, again.model)


@pytest.mark.parametrize(
    ("model_class", "reason"),
    [
        (HookedModel, "its BertModel has hooks"),
        (LambdaModel, "it cannot be pickled: .*lambda.*"),
        (LockedModel, "LockedModel defines how it is pickled"),
        (WritingModel, "its class has written to the weights of model.safetensors"),
        (OwnWayModel, "OwnWayModel has a from_pretrained of its own"),
        (BigModel, "20,00.,... bytes of its tensors are in no file"),
    ],
)
def test_any_doubt_means_a_plain_load_with_the_reason(
    load: Load, tmp_path: Path, model_class: Any, reason: str
) -> None:
    """Every time, and the reason stays known."""
    folder = plain(tmp_path / "m")
    first, again = load(folder, model_class=model_class), load(folder, model_class=model_class)
    assert (first.loaded_by, again.loaded_by) == ("transformers", "transformers")
    for loaded in (first, again):
        assert loaded.reload_fallback_reason is not None and re.fullmatch(reason, loaded.reload_fallback_reason)


def test_without_the_system_s_word_the_bytes_tell_whether_they_were_written(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no /proc, a class that writes to its weights is found out all the same."""
    monkeypatch.setattr("medvllm.loading.replay.mapping._PAGEMAP", str(tmp_path / "none"))
    folder = plain(tmp_path / "m")
    assert load(folder, model_class=PlainModel).reload_fallback_reason is None
    assert "has written" in str(load(folder, model_class=WritingModel).reload_fallback_reason)


def test_instances_are_independent(load: Load, tmp_path: Path) -> None:
    """Training and in-place edits reach neither the file, nor another instance, nor the next one, nor its config."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    before = (folder / "model.safetensors").read_bytes()
    first, again = load(folder).model, load(folder).model
    expected = {name: tensor.clone() for name, tensor in tensors(first).items()}
    again.train()
    again(input_ids=torch.tensor([[2, 6, 3]]), labels=torch.tensor([[2, 6, 3]])).loss.backward()
    torch.optim.SGD(again.parameters(), lr=1.0).step()
    with torch.no_grad():
        again.bert.embeddings.position_ids.add_(1)
    again.config.hidden_dropout_prob = 0.9
    again.config.id2label[0] = "changed"
    assert not equal(again.bert.embeddings.word_embeddings.weight, expected["bert.embeddings.word_embeddings.weight"])
    third = load(folder)
    assert third.loaded_by == "replay" and not third.model.training
    for model in (first, third.model):
        assert all(equal(tensor, expected[name]) for name, tensor in tensors(model).items())
        assert model.config.hidden_dropout_prob == 0.1 and model.config.id2label[0] == "LABEL_0"
    assert (folder / "model.safetensors").read_bytes() == before
    with torch.no_grad():  # the first instance, too, is a mapping of its own
        first.bert.embeddings.word_embeddings.weight.zero_()
    assert all(equal(tensor, expected[name]) for name, tensor in tensors(load(folder).model).items())
    assert (folder / "model.safetensors").read_bytes() == before


def test_another_process_is_not_reached(load: Load, tmp_path: Path) -> None:
    """A process that is forked after the load, and edits in place, changes its own pages alone."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    load(folder)
    model = load(folder).model
    before = model.bert.embeddings.word_embeddings.weight.detach().clone()
    child = os.fork()
    if not child:
        try:
            with torch.no_grad():
                model.bert.embeddings.word_embeddings.weight.zero_()
            os._exit(int(model.bert.embeddings.word_embeddings.weight.abs().sum().item() != 0))
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert equal(model.bert.embeddings.word_embeddings.weight, before)
    assert equal(load(folder).model.bert.embeddings.word_embeddings.weight, before)


def test_a_file_that_is_replaced_is_loaded_anew_and_disturbs_nobody(load: Load, tmp_path: Path) -> None:
    """New file, then rename, as every tool that saves a checkpoint does: who holds the old one keeps it."""
    folder = tiny.bert_encoder(tmp_path / "m")
    load(folder)
    old = load(folder)
    before = outcome(old.model)
    tiny.bert_encoder(tmp_path / "other", seed=1)
    os.replace(tmp_path / "other" / "model.safetensors", folder / "model.safetensors")
    new = load(folder)
    assert (old.loaded_by, new.loaded_by) == ("replay", "transformers")
    assert all(equal(value, before[name]) for name, value in outcome(old.model).items())
    assert not equal(outcome(new.model)["last_hidden_state 6"], before["last_hidden_state 6"])
    assert load(folder).loaded_by == "replay"


def test_a_template_whose_file_changed_under_it_is_not_followed(registry: ModelRegistry, tmp_path: Path) -> None:
    """Also when whoever asks does not know it yet: the stamp of the file is compared at each reload."""
    folder = tiny.bert_encoder(tmp_path / "m")
    target = registry.session.resolver.resolve(folder, LoadOptions())
    registry.session.load(target)
    os.utime(folder / "model.safetensors")
    with pytest.raises(DigestMismatchError, match="changed after it was verified"):
        registry.session.load(target)
    target = registry.session.resolver.resolve(folder, LoadOptions())
    assert registry.session.load(target).loaded_by == "transformers"
    assert registry.session.load(target).loaded_by == "replay"
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="has no model.safetensors"):
        registry.session.load(target)


def test_the_facts_of_an_entry_are_part_of_the_template(load: Load, tmp_path: Path) -> None:
    """Another registry's entry of that name and version may say other things of the same files."""
    folder = tiny.bert_token_classifier(tmp_path / "m")
    labels = []
    for names in (["O", "X"], ["O", "Y"]):
        other = ModelRegistry()
        other.register("m", "generic", model_path=str(folder), id2label=names)
        labels.append(other.load_model("m").config.id2label)
    assert labels == [{0: "O", 1: "X"}, {0: "O", 1: "Y"}]


def test_private_copies_and_threads_get_instances_of_their_own(registry: ModelRegistry, tmp_path: Path) -> None:
    """Eight threads rebuild at once."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    shared: Any = registry.load_model(folder)
    with ThreadPoolExecutor(8) as pool:
        models: list[Any] = list(pool.map(lambda _: registry.load_model(folder, use_cache=False), range(64)))
    assert len({id(model) for model in models} | {id(shared)}) == 65
    assert len({model.bert.embeddings.word_embeddings.weight.data_ptr() for model in [*models, shared]}) == 65
    assert len({id(model.config) for model in models}) == 64
    for model in models[::16]:
        assert_same(shared, model)


class SlowModel(PlainModel):  # type: ignore[no-untyped-call]
    """Its construction waits, deep inside from_pretrained."""

    inside, go_on = threading.Event(), threading.Event()

    def __init__(self, config: PlainConfig) -> None:
        super().__init__(config)
        self.inside.set()
        assert self.go_on.wait(60)


def test_rebuilding_waits_for_no_load_and_takes_nothing_from_it(
    load: Load, registry: ModelRegistry, tmp_path: Path
) -> None:
    """Another thread holds the lock of loads, with float16 as default dtype, and tie_weights swapped."""
    folder, slow = tiny.bert_masked_lm(tmp_path / "m"), plain(tmp_path / "slow")
    first = load(folder)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(load, slow, model_class=SlowModel, dtype="float16")
        try:
            assert SlowModel.inside.wait(60)
            assert torch.get_default_dtype() is torch.float16
            again = load(folder)
            with torch.device("meta"), torch.inference_mode():
                inside = load(folder)
        finally:
            SlowModel.go_on.set()
        assert other.result(60).model.dtype is torch.float16
    assert again.loaded_by == inside.loaded_by == "replay"
    assert_same(first.model, again.model)
    assert_same(first.model, inside.model)


def test_templates_are_bounded_by_number_and_bytes() -> None:
    """The least recently used go first."""

    def template(size: int) -> Template:
        return Template(b"", (), (), (), size_bytes=size, model_bytes=0, mapped_bytes=0, is_converted=False)

    def identity(number: int) -> Identity:
        return Identity(f"m{number}", 1, "process", "s", LoadOptions())

    kept = TemplateStore(max_templates=3, max_bytes=100)
    for number in range(4):
        kept.store(identity(number), (), template(10))
    assert len(kept) == 3 and kept.find(identity(0), ()) is None
    kept.store(identity(1), (), template(20))
    assert kept.find(identity(2), ()) is not None
    kept.store(identity(5), (), template(75))
    assert kept.find(identity(3), ()) is None and kept.find(identity(5), ()) is not None
    assert kept.find(identity(5), ("other",)) is None and kept.find(identity(5), ()) is None
    kept.store(identity(2), (), NoTemplate("why"))
    assert len(kept) == 0
    kept.store(identity(7), (), template(101))
    assert len(kept) == 0


TYPES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(TYPES)), st.lists(st.integers(0, 4), max_size=3)), min_size=1, max_size=8
    ),
    st.integers(0, 7),
)
def test_views_are_what_safetensors_reads(shapes: list[tuple[str, list[int]]], padding: int) -> None:
    """Whatever the order, the shapes and the alignment; only what lies askew is a copy."""
    header: dict[str, Any] = {}
    end = 0
    for number, (kind, shape) in enumerate(shapes):
        begin, end = end, end + TYPES[kind] * math.prod(shape)
        header[f"t{number}"] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode() + b" " * padding
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        file.write_bytes(struct.pack("<Q", len(text)) + text + bytes(i % 2 for i in range(end)))
        views, expected = map_file(file).tensors(header), load_file(file)
    assert views is not None and views.keys() == expected.keys()
    for name, tensor in expected.items():
        assert equal(views[name], tensor) and views[name].stride() == tensor.stride()


def test_a_device_gets_each_piece_of_memory_once(load: Load, tmp_path: Path) -> None:
    """Ties hold, and what was mapped is a copy; shown on the CPU, which takes the same way when it is told to."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    first = load(folder).model
    again = load(folder).model
    file = again.bert.embeddings.word_embeddings.weight.untyped_storage().data_ptr()
    copy_to_device(again, torch.device("cpu"))
    assert_same_model(first, again)
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors(again).values()]
    assert file not in storages
    assert len(set(storages)) == len(ties(again))


def prepared() -> list[Path]:
    """The converted copies that are kept."""
    return sorted((Path(os.environ["MEDVLLM_HOME"]) / "prepared").glob("*/model.safetensors"))


def mapped_share(model: Any) -> float:
    """The part of a model's bytes that lie in a file."""
    return mapped_bytes(model) / size_bytes(model)


@pytest.mark.parametrize("dtype", spread(["bfloat16", "float16", "float64"], 2))
@pytest.mark.parametrize(
    "make",
    [tiny.bert_masked_lm, tiny.llama_causal_lm, tiny.gpt2_causal_lm, lambda f: tiny.bert_encoder(f, pooler=False)],
)
def test_another_dtype_is_converted_once_and_mapped(
    load: Load, registry: ModelRegistry, tmp_path: Path, make: Any, dtype: str
) -> None:
    """Bit-equal to what the class itself gives, answers included; the first load of the next process maps the copy."""
    folder = make(tmp_path / "m")
    first = load(folder, dtype=dtype)
    (copy,) = prepared()
    stamp = copy.stat().st_mtime_ns
    again = load(folder, dtype=dtype)
    assert (first.loaded_by, again.loaded_by, first.reload_fallback_reason) == ("transformers", "replay", None)
    templates.clear()  # as a new process begins
    second = load(folder, dtype=dtype)
    assert second.loaded_by == "transformers" and prepared() == [copy] and copy.stat().st_mtime_ns == stamp
    plain = type(first.model).from_pretrained(folder, dtype=getattr(torch, dtype))
    if getattr(first.model, "pooler", True) is None:
        plain.pooler = None
    for loaded in (first, again, second):
        assert mapped_share(loaded.model) > 0.95 and not any(misalignment(loaded.model))
        assert_same(plain, _unnamed(loaded.model, plain))


def _unnamed(model: Any, like: Any) -> Any:
    """The model with the incidental names of another one, which the class gives in its own way."""
    model.config._name_or_path = model.name_or_path = like.config._name_or_path = like.name_or_path = ""
    return model


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("size", [{"hidden_size": 36}, {"hidden_size": 36, "intermediate_size": 0}])
def test_a_converted_model_of_odd_sizes_lies_as_torch_would_have_it(
    load: Load, tmp_path: Path, size: dict[str, int], dtype: str
) -> None:
    """Each weight, also those that follow one whose size is no multiple of 64 bytes; empty ones are no trouble."""
    config = LlamaConfig(**tiny.SMALL | {"num_key_value_heads": 2, "vocab_size": 101} | size)
    folder = tmp_path / "m"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch's, of an empty tensor
        LlamaForCausalLM(config).save_pretrained(folder)
        first, again = load(folder, dtype=dtype), load(folder, dtype=dtype)
        plain = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    assert len(prepared()) == 1 and (first.loaded_by, again.loaded_by) == ("transformers", "replay")
    for loaded in (first, again):
        assert not any(misalignment(loaded.model))
        assert_same(plain, _unnamed(loaded.model, plain))


def test_modules_that_stay_in_float32_do(load: Load, tmp_path: Path) -> None:
    """As the class of a T5 says of one of its layers, in float16."""
    size: dict[str, Any] = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    model = T5ForConditionalGeneration(T5Config(**size))
    model.save_pretrained(tmp_path / "m")
    first, again = (load(tmp_path / "m", dtype="float16").model for _ in range(2))
    assert len(prepared()) == 1
    plain: Any = T5ForConditionalGeneration.from_pretrained(tmp_path / "m", dtype=torch.float16)
    assert plain.encoder.block[0].layer[1].DenseReluDense.wo.weight.dtype is torch.float32
    for loaded in (first, again):
        assert all(equal(tensor, tensors(loaded)[name]) for name, tensor in tensors(plain).items())


def test_a_copy_that_was_changed_is_not_parsed(load: Load, tmp_path: Path) -> None:
    """It is made again of the source; so is one whose record is gone, or that its class cannot load any more."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    expected = load(folder, dtype="bfloat16").model
    (copy,) = prepared()
    whole = copy.read_bytes()

    def replaced(content: bytes) -> None:
        (tmp_path / "new").write_bytes(content)
        (tmp_path / "new").replace(copy)

    for damage in (
        lambda: replaced(whole[:-1] + bytes([whole[-1] ^ 1])),
        lambda: replaced(b"no safetensors at all"),
        lambda: (copy.parent / "prepared.json").unlink(),
        lambda: (copy.parent / "prepared.json").write_text("[]"),
    ):
        damage()
        templates.clear()
        loaded = load(folder, dtype="bfloat16")
        assert loaded.loaded_by == "transformers" and loaded.reload_fallback_reason is None
        assert_same(expected, loaded.model)
        assert copy.read_bytes() == whole


def test_without_room_the_load_goes_on_without_a_copy(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small model is rebuilt by copying; for a large one the reason is told."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    first, again = load(folder, dtype="bfloat16"), load(folder, dtype="bfloat16")
    assert (first.loaded_by, again.loaded_by) == ("transformers", "replay") and prepared() == []
    assert_same(first.model, again.model)
    monkeypatch.setattr("medvllm.loading.replay.template._PRIVATE_BYTES", 10_000)
    large = load(folder, dtype="float16")
    assert re.search(
        "tensors are in no file: the disk of .* has too little free space",
        str(large.reload_fallback_reason),
    )


def test_a_disk_that_fills_up_meanwhile_ends_the_copy_and_not_the_load(load: Load, tmp_path: Path) -> None:
    """Nothing of it is left; a later load tries again."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    size = (folder / "model.safetensors").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 4, limits[1]))
    try:
        first = load(folder, dtype="bfloat16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert first.loaded_by == "transformers" and prepared() == []
    assert [path for path in (Path(os.environ["MEDVLLM_HOME"]) / "prepared").iterdir() if path.is_dir()] == []
    templates.clear()
    assert_same(first.model, load(folder, dtype="bfloat16").model)
    assert len(prepared()) == 1


def test_a_copy_that_would_load_as_another_model_is_not_kept(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found out before it has its name, and remembered, so that it is not tried again by every process."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    written = 0

    def damaging(state: dict[str, torch.Tensor], file: Path) -> None:
        nonlocal written
        written += 1
        name = next(iter(state))
        aligned.save_aligned(state | {name: state[name] + 1}, file)

    monkeypatch.setattr("medvllm.loading.prepared.save_aligned", damaging)
    monkeypatch.setattr("medvllm.loading.replay.template._PRIVATE_BYTES", 10_000)
    for _ in range(2):
        templates.clear()
        loaded = load(folder, dtype="bfloat16")
        assert "differs from what transformers makes: " in str(loaded.reload_fallback_reason) and prepared() == []
        plain = BertForMaskedLM.from_pretrained(folder, dtype=torch.bfloat16)
        assert all(equal(tensor, tensors(loaded.model)[name]) for name, tensor in tensors(plain).items())
    assert written == 1


def test_a_class_of_ones_own_gets_no_converted_copy(load: Load, tmp_path: Path) -> None:
    """Its code may be another tomorrow, under the same name; while it is small, it is rebuilt all the same."""
    folder = plain(tmp_path / "m")
    first, again = (
        load(folder, model_class=PlainModel, dtype="bfloat16"),
        load(folder, model_class=PlainModel, dtype="bfloat16"),
    )
    assert again.loaded_by == "replay" and prepared() == []
    assert_same(first.model, again.model)


def test_processes_and_threads_that_convert_at_once_make_one_copy(tmp_path: Path, load: Load) -> None:
    """Two processes of four threads each; all models are equal."""
    folder = tiny.bert_masked_lm(tmp_path / "m")
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor as Pool\n"
        "from medvllm.engine.model_runner import registry\n"
        "load = lambda _: registry.load_model(sys.argv[1], dtype='bfloat16', use_cache=False)\n"
        "models = list(Pool(4).map(load, range(4)))\n"
        "print(*{m.bert.embeddings.word_embeddings.weight.double().sum().item() for m in models})"
    )
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: warm.run("-c", code, str(folder)), range(2)))
    printed = {run.stdout for run in runs}
    (copy,) = prepared()
    assert [run.returncode for run in runs] == [0, 0] and len(printed) == 1
    assert [file.name for file in copy.parent.parent.iterdir() if file.is_dir()] == [copy.parent.name]
    model = load(folder, dtype="bfloat16").model
    assert printed == {f"{model.bert.embeddings.word_embeddings.weight.double().sum().item()}\n"}


def test_a_folder_can_be_taken_where_nobody_writes(registry: ModelRegistry, tmp_path: Path) -> None:
    """A copy, not a link: cutting a file of the folder short reaches no mapping of the model."""
    folder = tiny.bert_encoder(tmp_path / "m")
    entry = registry.register("m", "generic", model_path=str(folder), copy=True)
    taken = Path(parse_name(entry.location).name)
    assert taken.parent == Path(os.environ["MEDVLLM_HOME"]) / "models"
    model: Any = registry.load_model("m")
    expected = outcome(model)
    with (folder / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert all(equal(value, expected[name]) for name, value in outcome(model).items())
    assert registry.register("again", "generic", model_path=str(taken), copy=True).location == entry.location
    assert registry.load_model("again") is not model
    with pytest.raises(RequestError, match="copy=True needs a folder on this machine"):
        registry.register("hub", "generic", model_path="acme/model", copy=True)
    with pytest.raises(SourceError, match="does not exist"):
        registry.register("none", "generic", model_path=str(tmp_path / "nowhere"), copy=True)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="only Linux tells what is shared")
@pytest.mark.parametrize(
    ("method", "number", "dtype"),
    [
        ("fork", 8, "float32"),
        ("fork", 3, "bfloat16"),
        pytest.param("spawn", 8, "float32", marks=pytest.mark.slow),
        pytest.param("spawn", 8, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_processes_hold_one_copy(load: Load, tmp_path: Path, method: str, number: int, dtype: str) -> None:
    """Each loads the model by itself and reads all of it; in another dtype than the file's too."""
    size: dict[str, Any] = {
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 10_000,
    }
    folder = bert(tmp_path / "m", BertConfig(**size, num_hidden_layers=6 if dtype == "bfloat16" else 3))
    size_bytes = (folder / "model.safetensors").stat().st_size // (2 if dtype == "bfloat16" else 1)
    if dtype == "bfloat16":
        load(folder, dtype=dtype)  # converted once; the others find the copy
    run = warm.run("-m", "benchmarks.sharing", method, str(number), str(folder), dtype)
    assert run.returncode == 0, run.stderr
    held = json.loads(run.stdout)
    assert 0.9 * size_bytes < held["shared"] < 1.5 * size_bytes  # pages of libraries are in it
    assert held["private"] / number < size_bytes / 2  # Python's objects; a copy would be twice that


def _written(way: str, model: Any, target: Path) -> int:
    """Return the bytes that one way to keep or send a model takes."""
    if way == "joblib":
        joblib.dump(model, target)
    elif way == "torch.save":
        torch.save(model.state_dict(), target)
    else:
        dumps = cloudpickle.dumps if way == "cloudpickle" else pickle.dumps
        target.write_bytes(dumps(model.state_dict() if way == "state_dict" else copy.deepcopy(model)))
    return target.stat().st_size


@pytest.mark.parametrize("make", [tiny.bert_masked_lm, tiny.gpt2_causal_lm])
def test_a_model_takes_no_more_than_its_file_when_it_is_sent(
    registry: ModelRegistry, tmp_path: Path, make: Any
) -> None:
    """Pickled, dumped by joblib, saved; also one's own copy, and one that was loaded again."""
    folder = make(tmp_path / "m")
    first = registry.load_model(folder)
    own = registry.load_model(folder, use_cache=False)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.add_(1)
    for model in (first, own):
        plain = len(pickle.dumps(type(model).from_pretrained(folder)))
        for way in ("pickle", "cloudpickle", "joblib", "state_dict", "torch.save"):
            assert _written(way, model, tmp_path / "out") < 1.3 * plain + 100_000
        back = pickle.loads(pickle.dumps(model)).state_dict()
        assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())
        for parameter in model.parameters():
            parts = io.BytesIO()
            torch.save(parameter, parts)
            assert len(parts.getvalue()) < parameter.nbytes + 5_000


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux's /proc")
def test_a_tensor_that_is_kept_keeps_no_more_than_itself(tmp_path: Path) -> None:
    """What was written to the rest of a model is free once nobody has it; the one that is kept stays as it was."""
    config = BertConfig(
        vocab_size=20_000, hidden_size=256, num_hidden_layers=1, num_attention_heads=4, intermediate_size=512
    )
    BertModel(config).save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    whole = map_file(file)
    tensors = whole.tensors(read_header(file))
    assert tensors is not None
    for tensor in tensors.values():
        tensor.fill_(7)
    kept = tensors["embeddings.LayerNorm.bias"], tensors["encoder.layer.0.intermediate.dense.weight"]
    before = _private_bytes(file)
    del tensors, tensor, whole
    gc.collect()
    assert before > 0.9 * file.stat().st_size and _private_bytes(file) < sum(t.nbytes for t in kept) + (1 << 18)
    assert all(bool((tensor == 7).all()) for tensor in kept)
    del kept
    gc.collect()
    assert _private_bytes(file) == 0 and str(file) not in Path("/proc/self/maps").read_text()


def _private_bytes(file: Path) -> int:
    """Return the bytes of memory that are this process's own in its mappings of a file."""
    found, is_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if not line.partition(" ")[0].endswith(":"):
            is_file = line.endswith(str(file))
        elif is_file and line.startswith("Anonymous:"):
            found += int(line.split()[1]) * 1024
    return found


def read_header(file: Path) -> dict[str, Any]:
    """Return a safetensors header without its metadata."""
    content = file.read_bytes()
    header: dict[str, Any] = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    header.pop("__metadata__", None)
    return header
