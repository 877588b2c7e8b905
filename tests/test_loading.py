"""Loading by name: the right class, dtype and identity, and refusals that say what to do."""

import contextlib
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, BertModel, PreTrainedModel

from medvllm.engine.model_runner import ModelRegistry, ModelType
from medvllm.errors import (
    IncompleteSnapshotError,
    LoadError,
    MedVLLMError,
    RequestError,
    SnapshotNotFoundError,
    SourceError,
    UnsafeWeightsError,
    WeightsMismatchError,
)
from medvllm.loading.native_dtypes import is_native
from tests.support import tiny, warm
from tests.support.conversions import convert


@pytest.fixture
def mlm(tmp_path: Path) -> Path:
    """A tiny masked language model in float32."""
    return tiny.bert_masked_lm(tmp_path / "mlm")


@pytest.mark.parametrize(
    ("make", "class_name"),
    [
        (tiny.bert_masked_lm, "BertForMaskedLM"),
        (tiny.bert_encoder, "BertModel"),
        (tiny.bert_sequence_classifier, "BertForSequenceClassification"),
        (tiny.roberta_masked_lm, "RobertaForMaskedLM"),
        (tiny.gpt2_causal_lm, "GPT2LMHeadModel"),
        (tiny.llama_causal_lm, "LlamaForCausalLM"),
    ],
)
def test_a_folder_loads_as_the_class_it_names(
    registry: ModelRegistry, tmp_path: Path, make: Any, class_name: str
) -> None:
    """Without an entry, the checkpoint's architecture decides; the model is in eval mode."""
    model = registry.load_model(make(tmp_path / "m"))
    assert type(model).__name__ == class_name
    assert not model.training
    assert [r.origin for r in registry.loaded_models()] == ["direct"]


@pytest.mark.parametrize("weights", ["safetensors", "sharded", "bin", "sharded_bin", "legacy_bin"])
@pytest.mark.parametrize("legacy", [False, True])
def test_every_form_of_weights_gives_the_same_outputs(
    registry: ModelRegistry, tmp_path: Path, mlm: Path, weights: Any, legacy: bool
) -> None:
    """Pickles, converted once, included; legacy LayerNorm names too."""
    ids = torch.tensor([[2, 6, 7, 8, 3]])
    reference: Any = BertForMaskedLM.from_pretrained(mlm)
    expected = reference.eval()(ids).logits
    model: Any = registry.load_model(
        convert(tiny.bert_masked_lm(tmp_path / "m", weights=weights, legacy_layer_norm=legacy))
    )
    assert torch.equal(model(ids).logits, expected)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_stating_a_default_gives_the_same_object(registry: ModelRegistry, mlm: Path) -> None:
    """Identity is by effective arguments."""
    registry.register("m", ModelType.GENERIC, model_path=str(mlm))
    model = registry.load_model("m")
    assert registry.load_model("m", dtype=torch.float32) is model
    assert registry.load_model("m", torch_dtype=torch.float32) is model
    assert registry.load_model("m", dtype="fp32", device="cpu") is model
    assert registry.load_model("m", device=torch.device("cpu")) is model
    assert registry.load_model("m", dtype="auto", torch_dtype=None) is model
    assert registry.load_model("m@1", model_class=BertForMaskedLM) is model
    assert registry.load_model("m", hidden_size=32, num_labels=2) is model
    assert registry.load_model("m", attn_implementation="sdpa") is model
    assert registry.load_model("m", model_class="transformers:AutoModelForMaskedLM") is model
    assert registry.load_model("m", config=model.config) is model
    assert len(registry.loaded_models()) == 1


def test_another_option_is_another_object(registry: ModelRegistry, mlm: Path) -> None:
    """They coexist, and an earlier caller never changes what a later one gets."""
    registry.register("m", ModelType.GENERIC, model_path=str(mlm))
    plain = registry.load_model("m")
    half = registry.load_model("m", dtype=torch.bfloat16)
    wide = registry.load_model("m", output_hidden_states=True)
    eager = registry.load_model("m", attn_implementation="eager")
    encoder = registry.load_model("m", model_class=BertModel)
    assert len({id(m) for m in (plain, half, wide, eager, encoder)}) == 5
    assert (plain.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert wide.config.output_hidden_states and not plain.config.output_hidden_states
    assert type(encoder) is BertModel
    assert registry.load_model("m") is plain


def test_a_model_of_ones_own(registry: ModelRegistry, mlm: Path) -> None:
    """use_cache=False gives a private copy that nobody else gets."""
    shared, own = registry.load_model(mlm), registry.load_model(mlm, use_cache=False)
    assert own is not shared
    assert registry.load_model(mlm) is shared
    assert [loaded.evicted for loaded in registry.loaded_models()] == [False, True]  # it counts while it is held


def test_what_is_not_stated_comes_from_the_entry_then_the_settings(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Caller, entry, settings, checkpoint: in this order."""
    own = torch.bfloat16 if is_native("bfloat16") else torch.float32
    folder = tiny.bert_masked_lm(tmp_path / "m", dtype="bfloat16")
    registry.register("plain", "generic", model_path=str(folder))
    registry.register("stated", "generic", model_path=str(folder), parameters={"dtype": "float64"})
    assert registry.load_model("plain").dtype is own
    monkeypatch.setenv("MEDVLLM_DTYPE", "float16")
    assert registry.load_model("plain").dtype is torch.float16
    assert registry.load_model("stated").dtype is torch.float64
    assert registry.load_model("stated", dtype="bf16").dtype is torch.bfloat16
    assert registry.load_model("stated", dtype="auto").dtype is own


def test_a_config_may_be_given_as_an_object_or_a_dict(registry: ModelRegistry, mlm: Path) -> None:
    """Unhashable as it is; equal configs are one identity."""
    config = BertConfig.from_pretrained(mlm)
    config.hidden_dropout_prob = 0.3
    model = registry.load_model(mlm, config=config)
    assert model.config.hidden_dropout_prob == 0.3
    assert registry.load_model(mlm, config=config.to_dict()) is model
    assert registry.load_model(mlm).config.hidden_dropout_prob != 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtpye": "float32"}, "Unknown option 'dtpye'. Did you mean: 'dtype'"),
        ({"hidden_sise": 3}, "Unknown option 'hidden_sise'. Did you mean: 'hidden_size'"),
        ({"dtype": "float31"}, "dtype 'float31' is not one of"),
        ({"dtype": 3}, "dtype '3' is not one of"),
        ({"dtype": "fp16", "torch_dtype": "fp32"}, "are different"),
        ({"device": "gpu"}, "Device 'gpu' is not one of"),
        ({"device": -1}, "Device '-1' is not one of"),
        ({"device": ["cpu"]}, "Device .* is not one of"),
        ({"device_map": "auto"}, "'device_map' is not supported: use device="),
        ({"revision": 3}, "'revision' must be text, not 3"),
        ({"revision": "main"}, "has no revisions"),
        ({"model_class": 3}, "'model_class' must be a class"),
        ({"model_class": dict}, "'dict' cannot load a model"),
        ({"config": 3}, "Option 'config' must be a config or a dict, not int"),
        ({"config": {"model_type": ["bert"]}}, "Option 'config' has the model_type .*, which does not fit"),
        ({"config": {"model_type": "bert", "hidden_size": "wide"}}, "option 'config' cannot be used"),
        ({"hidden_size": "wide"}, "Option 'hidden_size' cannot be"),
        ({"to_dict": 1}, "Unknown option 'to_dict'"),
        ({"id2label": {0: "a"}}, "register the entry with id2label"),
        ({"use_return_dict": False}, "Unknown option 'use_return_dict'"),
        ({"model_class": "BertModel"}, "must be a class or 'module:Class'"),
        ({"model_class": ""}, "must be a class or 'module:Class'"),
        ({"num_labels": {1, 2}}, "'num_labels' must be a JSON value, not set"),
        ({"ignore_mismatched_sizes": True}, "expected_missing_keys"),
    ],
)
def test_bad_options_are_refused_by_name(
    registry: ModelRegistry, mlm: Path, options: dict[str, Any], message: str
) -> None:
    """And the registry works on unharmed."""
    with pytest.raises(RequestError, match=message):
        registry.load_model(mlm, **options)
    assert registry.loaded_models() == []
    assert registry.load_model(mlm)


@pytest.mark.parametrize("options", [{"trust_remote_code": True}, {"use_safetensors": False}, {"weights_only": False}])
def test_unsafe_options_are_refused(registry: ModelRegistry, mlm: Path, options: dict[str, Any]) -> None:
    """Code and pickles are never on by an argument; the safe values are accepted."""
    with pytest.raises(UnsafeWeightsError):
        registry.load_model(mlm, **options)
    safe: dict[str, Any] = {key: not value for key, value in options.items()}
    assert registry.load_model(mlm, **safe)


def test_a_device_that_is_not_here_is_a_clear_error(registry: ModelRegistry) -> None:
    """Before anything is fetched, and not a bare assertion."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(
        LoadError, match=r"Device 'cuda:0' is not available here \(torch .* without CUDA\). Available: cpu"
    ):
        registry.load_model("biobert-base-cased-v1.2", device="cuda")


def test_a_head_is_never_random(registry: ModelRegistry, tmp_path: Path) -> None:
    """Refused, with the keys and the way out; allowed by name in the entry."""
    folder = tiny.bert_encoder(tmp_path / "m")
    for task in ("transformers:AutoModelForMaskedLM", "transformers:AutoModelForTokenClassification"):
        with pytest.raises(
            WeightsMismatchError, match=r"lacks (cls|classifier)\..*partly random.\n.*expected_missing_keys"
        ):
            registry.load_model(folder, model_class=task)
    registry.register(
        "untrained",
        "generic",
        model_path=str(folder),
        model_class="transformers:AutoModelForTokenClassification",
        expected_missing_keys=["classifier.*"],
        id2label=["O", "B-DISEASE", "I-DISEASE"],
    )
    model: Any = registry.load_model("untrained")
    assert model.config.id2label == {0: "O", 1: "B-DISEASE", 2: "I-DISEASE"}
    assert model.classifier.out_features == 3


def test_a_missing_pooler_is_absent_rather_than_random(registry: ModelRegistry, tmp_path: Path) -> None:
    """pooler_output is None; with the weights there, it is not."""
    ids = torch.tensor([[2, 6, 3]])
    without = registry.load_model(tiny.bert_encoder(tmp_path / "a", pooler=False))
    assert without(ids).pooler_output is None
    assert registry.load_model(tiny.bert_encoder(tmp_path / "b"))(ids).pooler_output is not None
    # The pooler that an MLM checkpoint lacks, too.
    encoder = registry.load_model(tiny.bert_masked_lm(tmp_path / "c"), model_class=BertModel)
    assert encoder(ids).pooler_output is None


def test_labels_without_a_meaning_are_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """LABEL_0 on a tagger; the entry's own labels, or the checkpoint's, are used."""
    nameless = tiny.bert_token_classifier(tmp_path / "a")
    with pytest.raises(WeightsMismatchError, match="LABEL_0 to LABEL_1.*\n.*id2label"):
        registry.load_model(nameless)
    registry.register("named", "generic", model_path=str(nameless), id2label=["O", "PHI"])
    assert registry.load_model("named").config.id2label == {0: "O", 1: "PHI"}
    bilou = tiny.bert_token_classifier(tmp_path / "b", ["O", "B-AGE", "I-AGE", "L-AGE", "U-AGE"])
    labels: Any = registry.load_model(bilou).config.label2id
    assert labels["U-AGE"] == 4


def test_a_bert_as_a_causal_model_loads_with_one_warning(
    registry: ModelRegistry, mlm: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The specification's example: the checkpoint has the head, but it is no decoder."""
    model = registry.load_model(mlm, model_class=AutoModelForCausalLM)
    assert type(model).__name__ == "BertLMHeadModel"
    assert [r.getMessage() for r in caplog.records if "but not generate it" in r.getMessage()] != []


def test_a_config_without_model_type(registry: ModelRegistry, tmp_path: Path) -> None:
    """Refused with the keyword to give; with it, loaded."""
    folder = tiny.bert_masked_lm(tmp_path / "m", model_type=False)
    registry.register("m", "generic", model_path=str(folder), model_class="transformers:AutoModelForMaskedLM")
    with pytest.raises(LoadError, match="has no model_type.*\n.*architecture='bert'"):
        registry.load_model("m")
    with pytest.raises(LoadError, match="has no model_type"):
        registry.load_tokenizer("m")
    registry.register(
        "m",
        "generic",
        model_path=str(folder),
        architecture="bert",
        model_class="transformers:AutoModelForMaskedLM",
        replace=True,
    )
    assert type(registry.load_model("m")) is BertForMaskedLM
    assert registry.load_tokenizer("m").tokenize("fever") == ["fever"]


def test_unknown_architectures_are_named(registry: ModelRegistry, tmp_path: Path) -> None:
    """Neither a KeyError nor a guess."""
    folder = tiny.bert_encoder(tmp_path / "m")
    tiny.edit_config(folder, architectures=["NoSuchModel"])
    with pytest.raises(LoadError, match="'NoSuchModel', which transformers .* does not have"):
        registry.load_model(folder)
    tiny.edit_config(folder, architectures=None, model_type="no-such-type")
    with pytest.raises(LoadError, match="'no-such-type', which transformers .* does not have"):
        registry.load_model(folder)


def test_remote_code_is_refused_and_never_asked_about(tmp_path: Path) -> None:
    """In a process whose standard input would answer yes."""
    marker = tmp_path / "ran"
    folder = tiny.remote_code(tmp_path / "m", marker)
    code = f"from medvllm.engine.model_runner import registry; registry.load_model({str(folder)!r})"
    run = warm.run("-c", code, stdin="y\ny\n")
    assert "UnsafeWeightsError" in run.stderr and "AutoModel" in run.stderr
    assert not marker.exists() and run.stdout == ""


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _longer(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes() + b"x")


def _header(text: bytes) -> Any:
    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)

    return write


def _huge_header(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 60) + b"{}")


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, r"is cut short: it has [\d,]+ bytes, but its header describes"),
        (_longer, r"is too long"),
        (_empty, "header cannot be read"),
        (_huge_header, "header cannot be read"),
        (_header(b"{not json"), "header cannot be read"),
        (_header(b"[1]"), "header cannot be read"),
        (_header(b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'), "header cannot be read"),
        (_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[4,0]}}'), "header cannot be read"),
        (_header(b"[" * 5000), "header cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold an object"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
    ],
)
def test_damaged_folders_are_refused(registry: ModelRegistry, mlm: Path, damage: Any, message: str) -> None:
    """Before transformers sees them, with the file's name; another model loads as before."""
    healthy = tiny.copy(mlm, mlm.with_name("healthy"))
    damage(mlm)
    with pytest.raises(SourceError, match=message) as caught:
        registry.load_model(mlm)
    assert str(mlm) in str(caught.value)
    assert registry.load_model(healthy)


def test_a_missing_shard_is_named(registry: ModelRegistry, tmp_path: Path) -> None:
    """And an index that points outside the folder is none."""
    folder = tiny.bert_masked_lm(tmp_path / "m", weights="sharded")
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(IncompleteSnapshotError, match="model-00002-of-00002.safetensors is missing") as caught:
        registry.load_model(folder)
    assert caught.value.missing == ("model-00002-of-00002.safetensors",)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../../etc/passwd"}}')
    with pytest.raises(SourceError, match="does not list the shards"):
        registry.load_model(folder)


def test_folders_that_are_none(registry: ModelRegistry, tmp_path: Path) -> None:
    """Not there, a file, empty, an adapter."""
    with pytest.raises(SnapshotNotFoundError, match="does not exist"):
        registry.load_model(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(SnapshotNotFoundError, match="is a file, not a folder"):
        registry.load_model(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    with pytest.raises(IncompleteSnapshotError, match="It is empty"):
        registry.load_model(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="holds an adapter, not a model"):
        registry.load_model(tmp_path / "empty")


def test_shapes_that_do_not_fit_are_refused(registry: ModelRegistry, mlm: Path) -> None:
    """A config that disagrees with the weights."""
    tiny.edit_config(mlm, intermediate_size=48)
    with pytest.raises(LoadError):
        registry.load_model(mlm)
    assert registry.loaded_models() == []


class OwnConfig(BertConfig):  # type: ignore[no-untyped-call]
    """A config that transformers has never heard of."""

    model_type = "own-bert"


class OwnModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A class of the user's own, around a BERT."""

    config_class = OwnConfig
    base_model_prefix = "encoder"

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.encoder = BertModel(config, add_pooling_layer=False)
        self.head = torch.nn.Linear(config.hidden_size, 2)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(input_ids).last_hidden_state[:, 0])  # type: ignore[no-any-return]


def test_a_custom_class_loads_what_it_saved(registry: ModelRegistry, tmp_path: Path) -> None:
    """Given as a class or by its reference."""
    own = OwnModel(
        OwnConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=40)
    )
    own.train(False).save_pretrained(tmp_path / "own")
    ids = torch.tensor([[1, 2, 3]])
    registry.register("own", ModelType.CUSTOM, model_class=OwnModel, model_path=str(tmp_path / "own"))
    registry.register(
        "own-by-reference", ModelType.CUSTOM, model_class=f"{__name__}:OwnModel", model_path=str(tmp_path / "own")
    )
    for name in ("own", "own-by-reference"):
        model = registry.load_model(name, model_class=OwnModel)
        assert torch.equal(model(ids), own(ids))


def test_a_class_that_the_checkpoint_is_not_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Typed as that class, and checked at run time."""
    with pytest.raises(MedVLLMError):
        registry.load_model(tiny.gpt2_causal_lm(tmp_path / "m"), model_class=BertForMaskedLM)


def test_replacing_an_entry_replaces_its_model(registry: ModelRegistry, tmp_path: Path) -> None:
    """A new version is never answered from the old one's cache; unregister lets the model go."""
    registry.register("m", "generic", model_path=str(tiny.bert_encoder(tmp_path / "a")))
    first = registry.load_model("m")
    registry.register("m", "generic", model_path=str(tiny.bert_encoder(tmp_path / "b", seed=1)), replace=True)
    second = registry.load_model("m")
    assert second is not first
    assert [(r.name, r.version, r.evicted) for r in registry.loaded_models()] == [("m", 2, False), ("m", 1, True)]
    registry.unregister("m")
    assert "m" not in registry._model_cache


def test_lease_evict_and_clear(registry: ModelRegistry, mlm: Path) -> None:
    """A leased model stays; its facts are at hand."""
    registry.register("m", "clinical", model_path=str(mlm), pooling="cls")
    with registry.lease("m", dtype="bfloat16") as lease:
        parameters = sum(p.numel() for p in lease.model.parameters())
        assert lease.size_bytes == 2 * parameters + 64 * 8 * 2  # position and token type ids are int64 buffers
        assert lease.metadata.behaviour.pooling == "cls"
        assert lease.tokenizer is registry.load_tokenizer("m")
        assert lease.receipt.options["dtype"] == "bfloat16"
        assert lease.receipt.libraries["torch"] == torch.__version__
        registry.clear_cache()
        assert registry.evict("m") == 0
        assert "m" in registry._model_cache
        assert [r.leases for r in registry.loaded_models()] == [1]
    assert "m" not in registry._model_cache
    assert "mlm" not in registry._model_cache
    del lease
    registry.load_model("m")
    assert registry.evict("m") == 1
    assert registry.loaded_models() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "wide"},
        {"max_position_embeddings": [1]},
        {"id2label": {"a": "b"}},
        {"dtype": "nope"},
        {"auto_map": 5},
        {"model_type": "roberta"},
        {"num_hidden_layers": 1},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_strange_configs_never_escape_as_foreign_errors(
    registry: ModelRegistry, mlm: Path, changes: dict[str, Any]
) -> None:
    """Each is refused with an error of ours, or harmless; a config with a layer too few loses none in silence."""
    tiny.edit_config(mlm, **changes)
    if "auto_map" in changes or "dtype" in changes:
        with contextlib.suppress(MedVLLMError):
            assert registry.load_model(mlm).dtype is torch.float32
        return
    with pytest.raises(LoadError) as caught:
        registry.load_model(mlm)
    assert str(mlm) in str(caught.value)
    if changes == {"num_hidden_layers": 1}:
        assert "encoder.layer.1" in str(caught.value)


def test_a_head_that_stands_on_a_pooler_needs_it(registry: ModelRegistry, mlm: Path) -> None:
    """Allowing the classifier allows no random pooler under it, and never takes the pooler away."""
    facts: dict[str, Any] = {"model_path": str(mlm), "model_class": "transformers:AutoModelForSequenceClassification"}
    registry.register("m", "generic", **facts, expected_missing_keys=["classifier.*"])
    with pytest.raises(WeightsMismatchError, match="lacks bert.pooler"):
        registry.load_model("m")
    registry.register("m", "generic", **facts, expected_missing_keys=["classifier.*", "bert.pooler.*"], replace=True)
    assert registry.load_model("m")(torch.tensor([[2, 6, 3]])).logits.shape == (1, 2)


def test_a_folder_that_changes_is_another_model(
    registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retrained in place, reached by another working directory, or forbidden meanwhile."""
    for place, seed in (("a", 0), ("b", 1)):
        (tmp_path / place).mkdir()
        tiny.bert_encoder(tmp_path / place / "m", seed=seed)
    registry.register("entry", "generic", model_path=str(tmp_path / "a" / "m"))
    before: Any = registry.load_model("entry")
    monkeypatch.chdir(tmp_path / "a")
    here: Any = registry.load_model("./m")
    monkeypatch.chdir(tmp_path / "b")
    there: Any = registry.load_model("./m")
    monkeypatch.setenv("MEDVLLM_ALLOW_UNREGISTERED", "off")
    with pytest.raises(MedVLLMError, match="switched off"):
        registry.load_model("./m")
    tiny.bert_encoder(tmp_path / "a" / "m", seed=2)
    after: Any = registry.load_model("entry")
    assert [r.evicted for r in registry.loaded_models() if r.name == "entry"] == [False, True]
    words = [m.embeddings.word_embeddings.weight for m in (before, here, there, after)]
    assert torch.equal(words[0], words[1])
    assert not torch.equal(words[0], words[2]) and not torch.equal(words[0], words[3])


def test_folders_that_no_file_system_has(registry: ModelRegistry, tmp_path: Path) -> None:
    """A name that is too long; weights that are still a pointer of Git LFS; another tool's modules.json."""
    with pytest.raises(SnapshotNotFoundError, match="File name too long"):
        registry.load_model("./" + "a" * 300)
    folder = tiny.bert_encoder(tmp_path / "m")
    (folder / "modules.json").write_text('["x"]')
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": "abc"}')
    assert registry.load_tokenizer(folder).model_max_length == 64
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(IncompleteSnapshotError, match="pointer of Git LFS.*\n.*git lfs pull"):
        registry.load_model(folder)


class PartsModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """A class whose from_pretrained loads a part through a registry, while another thread loads that part."""

    registry: ModelRegistry
    part: str
    inside = threading.Event()
    part_under_way = threading.Event()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        cls.inside.set()
        cls.part_under_way.wait(10)
        cls.registry.load_model(cls.part)
        return BertModel.from_pretrained(*arguments, **options)


def test_a_load_inside_a_load_waits_for_nobody(registry: ModelRegistry, tmp_path: Path) -> None:
    """Thread 1 holds the lock of loads and asks for the part that thread 2 is about to load: both end."""
    registry.register("part", "generic", model_path=str(tiny.bert_encoder(tmp_path / "part")))
    registry.register("whole", "generic", model_path=str(tiny.bert_encoder(tmp_path / "whole")))
    PartsModel.registry, PartsModel.part = registry, "part"
    PartsModel.config_class = BertConfig
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(registry.load_model, "whole", model_class=PartsModel)
        assert PartsModel.inside.wait(30)
        part = pool.submit(registry.load_model, "part")
        deadline = time.monotonic() + 30
        while "part" not in {identity.name for identity in list(registry._model_cache._flights)}:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        PartsModel.part_under_way.set()
        assert part.result(60)
        with pytest.raises(LoadError, match="PartsModel.from_pretrained returned a BertModel"):
            whole.result(60)
