"""sentence-transformers folders: the vectors of sentence-transformers 6.2.0, or a refusal by name."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from medvllm.catalog import from_toml, to_toml
from medvllm.engine.model_runner import ModelRegistry, ModelRunner
from medvllm.engine.model_runner.reading.windows import split_into_windows
from medvllm.errors import (
    IncompleteSnapshotError,
    InputTooLongError,
    LoadError,
    MedVLLMError,
    RequestError,
    SourceError,
    WeightsMismatchError,
)
from medvllm.facts import PoolingMode
from tests.support import sentence, tiny
from tests.support.spread import spread

VECTORS = load_file(sentence.DATA / "vectors.safetensors")
CASES = [case for case in sentence.cases() if not case.startswith("refused-")]
ROLES = {"query": "encode_query", "document": "encode_document"}
PROMPTED = [
    "prompts",
    "prompts-default-old",
    "prompts-passage",
    "prompts-passage-old",
    "bert-mean-without-prompt",
    "dense",
]


def texts_of(case: str) -> list[str]:
    """The texts that a case's vectors are of: a GPT-2 has no token for an empty one."""
    return [text for text in sentence.TEXTS if text or "gpt2" not in case]


def vectors(registry: ModelRegistry, folder: Path, texts: list[str], **facts: Any) -> torch.Tensor:
    """What a folder's entry makes of texts; like sentence-transformers, it cuts long ones and reads [SEP]."""
    registry.register("m", "generic", model_path=str(folder), replace=True, **{"long_input": "truncate"} | facts)
    return torch.from_numpy(ModelRunner("m", registry=registry).embed(texts, allow_special_tokens=True).vectors)


def edit(folder: Path, file: str, **changes: Any) -> Path:
    """A folder with keys of a JSON file changed; None removes one."""
    path = folder / file
    content = (json.loads(path.read_text()) if path.is_file() else {}) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def same(got: Any, expected: Any) -> bool:
    """Whether vectors are equal to 1e-5."""
    return bool(got.shape == expected.shape and np.allclose(got, expected, atol=1e-5, rtol=0))


@pytest.mark.parametrize("case", spread(CASES, 5))
def test_vectors_are_those_of_sentence_transformers(registry: ModelRegistry, tmp_path: Path, case: str) -> None:
    """A folder gives the vectors that sentence-transformers gives, for empty, long and odd texts too."""
    folder = sentence.assembled(case, tmp_path / "m")
    assert same(vectors(registry, folder, texts_of(case)), VECTORS[f"{case}/encode"])


@pytest.mark.parametrize("case", PROMPTED)
@pytest.mark.parametrize("role", spread(ROLES, 2))
def test_a_role_chooses_its_prompt(registry: ModelRegistry, tmp_path: Path, case: str, role: str) -> None:
    """The role of an entry gives the vectors of encode_query or encode_document, and so does the prompt's name."""
    folder = sentence.assembled(case, tmp_path / "m")
    expected = VECTORS.get(f"{case}/{ROLES[role]}", VECTORS[f"{case}/encode"])
    assert same(vectors(registry, folder, texts_of(case), role=role), expected)
    named = ModelRunner(folder, registry=registry).embed(sentence.TEXTS[:3], prompt_name=role).vectors
    assert same(named, expected[:3])


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_declaration_changed_at_random_is_honoured_or_refused(
    registry: ModelRegistry, tmp_path: Path, every: int
) -> None:
    """Whatever is changed in a declaration, the vectors are those of sentence-transformers, or there are none."""
    changes: list[dict[str, Any]] = json.loads((sentence.DATA / "changes.json").read_text())
    outcomes = {"equal": 0, "refused by both": 0, "refused here": 0}
    for i, change in list(enumerate(changes))[::every]:
        folder = sentence.assembled(change["case"], tmp_path / str(i))
        (folder / change["file"]).write_text(json.dumps(change["content"]))
        theirs = VECTORS.get(f"changes/{i}")
        try:
            ours = ModelRunner(folder, registry=registry).embed(sentence.TEXTS[:2]).vectors
        except MedVLLMError:
            outcomes["refused by both" if theirs is None else "refused here"] += 1
            continue
        if theirs is None:
            theirs = VECTORS[f"{change['case']}/encode"][:2]
        assert same(ours, theirs), change
        outcomes["equal"] += 1
    assert min(outcomes["equal"], outcomes["refused by both"]) > 15 // every, outcomes


@pytest.mark.parametrize(
    ("kind", "what"), [("splade", "SpladePooling"), ("colbert", "MultiVectorMask"), ("router", "Router")]
)
def test_what_makes_no_vector_a_text_is_refused_by_name(
    registry: ModelRegistry, tmp_path: Path, kind: str, what: str
) -> None:
    """SPLADE, ColBERT and routed folders are refused when vectors are asked for; their transformer still loads."""
    folder = sentence.assembled(f"refused-{kind}", tmp_path / "m")
    assert registry.load_model(folder).config.model_type == "bert"
    with pytest.raises(LoadError, match=rf"cannot be used for vectors: its folder has the module '.*{what}'") as caught:
        ModelRunner(folder, registry=registry).embed(["fever"])
    assert (
        str(caught.value).splitlines()[-1]
        == f"You can load its transformer alone with: registry.load_model({str(folder)!r})"
    )


OLD = "sentence_transformers.models"
UNKNOWN = [f"{OLD}.{kind}" for kind in ("Asym", "Router", "StaticEmbedding", "WordEmbeddings", "CNN", "LSTM", "BoW")]
UNKNOWN += [f"{OLD}.{kind}" for kind in ("WordWeights", "WeightedLayerPooling", "CLIPModel", "BERT", "Pooling2")]
UNKNOWN += ["sentence_transformers.sparse_encoder.modules.Transformer", "own.Pooling", "own.modules.Dense", "Dense", ""]


@pytest.mark.parametrize(
    ("kind", "place"), spread([*((kind, 1) for kind in UNKNOWN), (UNKNOWN[0], 0), (UNKNOWN[0], 3)], 3)
)
def test_a_module_that_is_not_known_is_refused_by_name(
    registry: ModelRegistry, tmp_path: Path, kind: str, place: int
) -> None:
    """A module of another kind, or of one's own, is never left out, wherever it stands."""
    folder = sentence.assembled("dense-old", tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text())
    modules.insert(place, {"idx": 9, "name": "9", "path": "9_Own", "type": kind})
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(LoadError, match=rf"its folder has the module '{kind}', which medvllm does not support"):
        ModelRunner(folder, registry=registry).embed(["fever"])


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    spread(
        [
            (
                "1_Pooling/config.json",
                {"pooling_mode": "attention"},
                'has pooling_mode "attention" in 1_Pooling/config.json',
            ),
            ("1_Pooling/config.json", {"pooling_mode": ["mean", 3]}, r'has pooling_mode \["mean", 3\]'),
            (
                "1_Pooling/config.json",
                {"pooling_mode_cls_token": True},
                r'has both pooling_mode "mean" and the flags of \["cls"\]',
            ),
            (
                "1_Pooling/config.json",
                {"pooling_mode_median": True},
                "has 'pooling_mode_median' in 1_Pooling/config.json",
            ),
            ("1_Pooling/config.json", {"include_prompt": "no"}, 'has include_prompt "no"'),
            (
                "2_Dense/config.json",
                {"module_input_name": "token_embeddings"},
                'has module_input_name "token_embeddings"',
            ),
            ("2_Dense/config.json", {"module_output_name": "other"}, 'has module_output_name "other"'),
            ("2_Dense/config.json", {"activation_function": "own.Act"}, 'has activation_function "own.Act"'),
            (
                "2_Dense/config.json",
                {"activation_function": "torch.nn.Softmax"},
                "has the activation 'torch.nn.Softmax'",
            ),
            ("2_Dense/config.json", {"activation_function": "torch.nn.Linear"}, "has the activation 'torch.nn.Linear'"),
            ("2_Dense/config.json", {"scale": 2}, "has 'scale' in 2_Dense/config.json, which medvllm does not know"),
            ("2_Dense/config.json", {"in_features": None}, "has no in_features in 2_Dense/config.json"),
            (
                "3_Normalize/config.json",
                {"module_input_name": "x"},
                'has module_input_name "x" in 3_Normalize/config.json',
            ),
            ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, 'has transformer_task "fill-mask"'),
            ("sentence_bert_config.json", {"modality_config": {"image": {}}}, "has modality_config"),
            ("sentence_bert_config.json", {"module_output_name": "sentence_embedding"}, "has module_output_name"),
            ("sentence_bert_config.json", {"max_seq_length": "long"}, 'has max_seq_length "long"'),
            ("sentence_bert_config.json", {"query_length": 8}, "has query_length 8"),
            ("sentence_bert_config.json", {"query_expansion": {"strategy": "min"}}, "has query_expansion"),
            ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": False}}}, "has processing_kwargs"),
            ("sentence_bert_config.json", {"model_args": {"num_labels": 3}}, "has model_args"),
            ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, 'has model_type "CrossEncoder"'),
            ("config_sentence_transformers.json", {"truncate_dim": -1}, "has truncate_dim -1"),
            ("config_sentence_transformers.json", {"prompts": {"secret": 3}}, "has prompts that are not texts"),
            ("config_sentence_transformers.json", {"default_prompt_name": "s2p"}, "has the default prompt 's2p'"),
            ("config_sentence_transformers.json", {"requirements": {"torch": ">99"}}, "requires 'torch' \">99\""),
            ("config_sentence_transformers.json", {"requirements": {"sentence-transformers": ">=7"}}, "requires 'sent"),
            ("config_sentence_transformers.json", {"pooler": "x"}, "has 'pooler' in config_sentence_transformers.json"),
        ],
        2,
    ),
)
def test_a_declaration_that_is_not_understood_is_refused(
    registry: ModelRegistry, tmp_path: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    """The error names the file, the key and its value."""
    folder = edit(sentence.assembled("dense", tmp_path / "m"), file, **changes)
    with pytest.raises(LoadError, match=f"cannot be used for vectors: its folder {message}"):
        ModelRunner(folder, registry=registry).embed(["fever"])


def test_requirements_that_are_met_are_no_obstacle(registry: ModelRegistry, tmp_path: Path) -> None:
    """A folder may ask for versions of packages; sentence-transformers counts as the one that is followed here."""
    wanted = {"torch": ">=2", "python": ">3", "sentence-transformers": {"specifier": ">=5.4,<7", "reason": "new"}}
    folder = sentence.assembled("dense", tmp_path / "m")
    edit(folder, "config_sentence_transformers.json", requirements=wanted)
    assert same(vectors(registry, folder, sentence.TEXTS), VECTORS["dense/encode"])


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([], "begins with nothing"),
        (["0"], "begins with Transformer in"),
        (["1", "0"], "begins with Pooling and Transformer"),
        (["0", "2", "1"], "begins with Transformer and Dense"),
        (["0", "3"], "begins with Transformer and Normalize"),
        (["0", "1", "2", "1"], "two modules with the same name"),
    ],
)
def test_modules_in_another_order_are_refused(
    registry: ModelRegistry, tmp_path: Path, modules: list[str], message: str
) -> None:
    """Vectors are made of a Transformer, then a Pooling, then what works on vectors."""
    folder = sentence.assembled("dense", tmp_path / "m")
    listed = {module["name"]: module for module in json.loads((folder / "modules.json").read_text())}
    (folder / "modules.json").write_text(json.dumps([listed[name] for name in modules]))
    with pytest.raises(LoadError, match=f"cannot be used for vectors: its folder (has )?{message}"):
        ModelRunner(folder, registry=registry).embed(["fever"])


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ("[]", "begins with nothing"),
        ('["x"]', "lists a module without a type"),
        ('[{"idx": 0, "name": "0", "path": "", "kind": "Transformer"}]', "lists a module without a type"),
    ],
)
def test_a_list_of_modules_that_names_none_is_refused(
    registry: ModelRegistry, tmp_path: Path, listed: str, message: str
) -> None:
    """Vectors are refused, and the model itself loads."""
    folder = sentence.assembled("dense", tmp_path / "m")
    (folder / "modules.json").write_text(listed)
    assert registry.load_model(folder)
    with pytest.raises(LoadError, match=f"cannot be used for vectors: its folder {message}"):
        ModelRunner(folder, registry=registry).embed(["fever"])


def test_a_second_pooling_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Under a name of its own it would take the place of the first one's vectors."""
    folder = sentence.assembled("dense", tmp_path / "m")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps([*modules, modules[1] | {"name": "again"}]))
    with pytest.raises(LoadError, match="has a second Pooling"):
        ModelRunner(folder, registry=registry).embed(["fever"])


@pytest.mark.parametrize("file", ["1_Pooling/config.json", "2_Dense/config.json"])
def test_a_module_without_its_config_is_refused(registry: ModelRegistry, tmp_path: Path, file: str) -> None:
    """What a module does is not guessed."""
    folder = sentence.assembled("dense", tmp_path / "m")
    (folder / file).unlink()
    with pytest.raises(LoadError, match=f"its folder has no {file}"):
        ModelRunner(folder, registry=registry).embed(["fever"])


def test_the_weights_of_a_module_are_checked(registry: ModelRegistry, tmp_path: Path) -> None:
    """Weights that are not there, misshapen, left over or damaged are never made up or left out."""
    folder = sentence.assembled("dense", tmp_path / "m")
    file = folder / "2_Dense" / "model.safetensors"
    weights = load_file(file)
    bias, weight = weights["linear.bias"], weights["linear.weight"]
    for changed, message in (
        ({"linear.weight": weight}, "Module '2_Dense' of model .* lacks 'linear.bias'"),
        (weights | {"linear.scale": bias.clone()}, "has 'linear.scale', which it does not use"),
        (
            weights | {"linear.weight": weight.T.contiguous()},
            r"\[16, 8\], but its config requires floats \[8, 16\]",
        ),
        (weights | {"linear.bias": bias.to(torch.int8)}, r"as int8 \[8\]"),
    ):
        save_file(changed, file)
        with pytest.raises(WeightsMismatchError, match=message):
            ModelRunner(folder, registry=registry).embed(["fever"])
    save_file({name: tensor.half() for name, tensor in weights.items()}, file)
    half = torch.from_numpy(ModelRunner(folder, registry=registry).embed(sentence.TEXTS[:2]).vectors)
    assert torch.allclose(half, VECTORS["dense/encode"][:2], atol=1e-2)
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(SourceError):
        ModelRunner(folder, registry=registry).embed(["fever"])
    file.unlink()
    with pytest.raises(IncompleteSnapshotError, match=r"has no 2_Dense/model\.safetensors"):
        ModelRunner(folder, registry=registry).embed(["fever"])


def test_a_pooling_that_a_module_was_not_made_for_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """An entry may say another pooling, but not one whose vectors the next module cannot take."""
    folder = sentence.assembled("dense", tmp_path / "m")
    with pytest.raises(LoadError, match="Module '2_Dense' of model 'm' takes vectors of 16 numbers, but gets 32"):
        vectors(registry, folder, ["fever"], pooling=["mean", "max"])


def test_an_entrys_own_facts_win(registry: ModelRegistry, tmp_path: Path) -> None:
    """Pooling, length, casing, scaling, prompts and truncation are the entry's where it states them."""
    folder = sentence.assembled("bert-mean", tmp_path / "mean")
    texts = sentence.TEXTS
    for modes in ("max", ["lasttoken", "cls", "weightedmean", "mean", "mean_sqrt_len_tokens", "max"]):
        case = "bert-max" if modes == "max" else "joined-all"
        assert same(vectors(registry, folder, texts, pooling=modes), VECTORS[f"{case}/encode"])
    assert same(vectors(registry, folder, texts, pooling=["cls"]), VECTORS["bert-cls/encode"])
    facts: dict[str, Any] = {"pooling": "max", "prompts": {"odd": "for fever and"}, "default_prompt_name": "odd"}
    without = vectors(registry, folder, texts, include_prompt=False, **facts)
    assert same(without, VECTORS["bert-max-without-prompt/encode"])
    assert not same(vectors(registry, folder, texts, **facts), without)
    assert same(vectors(registry, folder, texts, truncate_dim=5), VECTORS["truncated/encode"])
    cut = vectors(registry, sentence.assembled("dropped", tmp_path / "whole"), texts, truncate_dim=5)
    assert same(cut, VECTORS["truncated-normalized/encode"])
    unit = sentence.assembled("truncated-normalized", tmp_path / "unit")
    assert same(vectors(registry, unit, texts), VECTORS["truncated-normalized/encode"])
    assert same(vectors(registry, unit, texts, normalize=False), VECTORS["truncated/encode"])
    scaled = vectors(registry, unit, texts, normalize=True)
    assert torch.allclose(scaled.norm(dim=1), torch.ones(len(texts)), atol=1e-6)
    lower = sentence.assembled("bert-lower-old", tmp_path / "lower")
    assert same(vectors(registry, lower, texts, do_lower_case=False), VECTORS["bert-mean/encode"])
    short = sentence.assembled("bert-short-old", tmp_path / "short")
    assert same(vectors(registry, short, texts, max_length=64), VECTORS["bert-mean/encode"])


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"])
def test_the_transformer_may_be_described_under_another_name(
    registry: ModelRegistry, tmp_path: Path, kind: str
) -> None:
    """Of the names that older releases gave the file, the first one with content holds."""
    folder = sentence.assembled("bert-short-old", tmp_path / "m")
    (folder / "sentence_bert_config.json").rename(folder / f"sentence_{kind}_config.json")
    (folder / "sentence_bert_config.json").write_text("{}")
    assert same(vectors(registry, folder, sentence.TEXTS), VECTORS["bert-short-old/encode"])


def test_a_prompt_of_an_entry_joins_those_of_the_folder(registry: ModelRegistry, tmp_path: Path) -> None:
    """An entry's prompt takes the place of the folder's of the same name, and an empty one switches it off."""
    folder = sentence.assembled("prompts-default", tmp_path / "m")
    texts = sentence.TEXTS
    registry.register("m", "generic", model_path=str(folder), prompts={"new": "the query : "}, long_input="truncate")
    runner = ModelRunner("m", registry=registry)
    expected = VECTORS["prompts-default/encode"]
    assert same(runner.embed(texts, prompt_name="new", allow_special_tokens=True).vectors, expected)
    assert same(runner.embed(texts, allow_special_tokens=True).vectors, expected)
    off = vectors(registry, folder, texts, prompts={"query": ""})
    assert same(off, VECTORS["bert-mean/encode"])


def test_prompts_are_named_or_given(registry: ModelRegistry, tmp_path: Path) -> None:
    """A prompt that is not known is an error that lists those there are, and never shows a prompt's text."""
    folder = sentence.assembled("prompts", tmp_path / "m")
    runner, texts = ModelRunner(folder, registry=registry), ["fever", "ALS"]
    given = runner.embed([f"the query : {text}" for text in texts]).vectors
    assert same(runner.embed(texts, prompt="the query : ").vectors, given)
    assert same(runner.embed(texts, prompt_name="query").vectors, given)
    assert same(runner.embed(texts, prompt="").vectors, runner.embed(texts, allow_special_tokens=True).vectors)
    with pytest.raises(RequestError, match="no prompt 'queri'. .*'query'.*\nIt has the prompts 'document'"):
        runner.embed(texts, prompt_name="queri")
    with pytest.raises(RequestError, match="Both 'prompt' and 'prompt_name' are given"):
        runner.embed(texts, prompt_name="query", prompt="secret")
    for prompt in (5, b"secret", "secret\udcff"):
        with pytest.raises(RequestError, match="The prompt ") as caught:
            runner.embed(texts, prompt=prompt)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)
    plain = ModelRunner(tiny.bert_encoder(tmp_path / "plain"), registry=registry)
    with pytest.raises(RequestError, match="has no prompt 'query'.\nIt has no prompts"):
        plain.embed(texts, prompt_name="query")
    with pytest.raises(RequestError, match="Task 'fill-mask' takes no argument 'prompt'"):
        ModelRunner(tiny.bert_masked_lm(tmp_path / "mlm"), registry=registry).run("fill-mask", ["a [MASK]"], prompt="x")


def test_facts_that_have_no_effect_are_errors(registry: ModelRegistry, tmp_path: Path) -> None:
    """A default prompt that is none, and a vector shorter than what is to be kept of it, are refused."""
    folder = tiny.bert_encoder(tmp_path / "m")
    with pytest.raises(RequestError, match="has truncate_dim=64, but its vectors have only 32 numbers"):
        vectors(registry, folder, ["fever"], truncate_dim=64)
    with pytest.raises(RequestError, match="The default prompt of model 'm' is 's2p', but it has no prompts"):
        vectors(registry, folder, ["fever"], default_prompt_name="s2p")
    with pytest.raises(RequestError, match="is 's2p', but it has the prompts 'document', 'query', 's2s'"):
        vectors(registry, folder, ["fever"], default_prompt_name="s2p", prompts={"s2s": "x"})


def test_a_width_that_is_not_the_models_does_not_keep_numbers_from_being_cut(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    """sentence-transformers cuts what there is, whatever the pooling says of its width."""
    folder = sentence.assembled("bert-mean", tmp_path / "m")
    whole = vectors(registry, folder, ["fever"])
    for file, change in (
        ("1_Pooling/config.json", {"embedding_dimension": 16}),
        ("config_sentence_transformers.json", {"truncate_dim": 20}),
    ):
        content = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
        (folder / file).write_text(json.dumps(content | change))
    assert same(vectors(registry, folder, ["fever"]), whole[:, :20])


def test_a_prompt_that_fills_a_window_is_refused(registry: ModelRegistry, tmp_path: Path) -> None:
    """Where its tokens are left out of the vector, the prompt has to fit beside the text."""
    folder = sentence.assembled("bert-mean-without-prompt", tmp_path / "m")
    runner = ModelRunner(folder, registry=registry)
    with pytest.raises(InputTooLongError, match="The prompt has 102 tokens; the model takes 64"):
        runner.embed(["ALS"], prompt="fever " * 100)
    with pytest.raises(InputTooLongError, match="The prompt of 61 tokens leaves no room in a window for text 2"):
        runner.embed(["ALS", "fever " * 30], prompt="fever " * 60)


@pytest.mark.parametrize("skipped", [False, True])
def test_a_long_text_is_pooled_whole(registry: ModelRegistry, tmp_path: Path, skipped: bool) -> None:
    """In windows, each token that counts is pooled once, in its place in the text."""
    folder = sentence.assembled("bert-mean", tmp_path / "m")
    modes: list[PoolingMode] = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
    registry.register("m", "generic", model_path=str(folder), pooling=modes, include_prompt=not skipped)
    prompt, text = "the query : ", "no history of diabetes and shortness of breath " * 20
    result = ModelRunner("m", registry=registry).embed(["ALS", text, "fever"], prompt=prompt)
    assert result.coverage[1].windows > 2
    with registry.lease("m") as lease, torch.inference_mode():
        windows = split_into_windows(lease.tokenizer, [prompt + text], "window")[0]
        states = [lease.model(torch.tensor([window.input_ids])).last_hidden_state[0] for window in windows]
        beyond = len(lease.tokenizer(prompt)["input_ids"]) - 1 if skipped else 0
    counted = [state[torch.tensor(window.counted) == 1] for state, window in zip(states, windows, strict=True)]
    tokens, places = torch.cat(counted)[beyond:], torch.arange(1, sum(map(len, counted)) + 1)[beyond:].unsqueeze(1)
    expected = [
        torch.stack([states[0][beyond], *(state[0] for state in states[1:])]).mean(0),
        tokens.amax(0),
        tokens.mean(0),
        tokens.sum(0) / len(tokens) ** 0.5,
        (tokens * places).sum(0) / places.sum(),
        states[-1][-1],
    ]
    assert same(result.vectors[1], torch.cat(expected))


def test_the_facts_of_vectors_are_stored_and_travel(registry: ModelRegistry, tmp_path: Path) -> None:
    """Pooling, prompts and the rest come back from the catalogue, its file and the command line as they were."""
    facts: dict[str, Any] = {
        "pooling": ["mean", "max"],
        "prompts": {"query": "the query : ", "dotted.name": "é \"'\n"},
        "default_prompt_name": "query",
        "include_prompt": False,
        "truncate_dim": 8,
    }
    stored = registry.register("m", "generic", model_path="acme/m", persist=True, **facts)
    assert {fact: stored.to_dict()[fact] for fact in facts} == facts
    assert stored.behaviour.pooling == ("mean", "max") and "embed" in stored.tasks
    other = ModelRegistry()
    assert other.get_metadata("m").facts() == stored.facts() and hash(other.get_metadata("m").behaviour)
    assert registry.register("m", "generic", model_path="acme/m", persist=True, replace=True, **facts).version == 1
    assert from_toml(to_toml([stored]), "stored")["m"].facts() == stored.facts()
    copied = pickle.loads(pickle.dumps(stored.behaviour))
    assert copied == stored.behaviour and hash(copied) == hash(stored.behaviour)
    with pytest.raises(TypeError):
        stored.behaviour.prompts["query"] = "another"  # type: ignore[index]
    assert set(registry.list_models(default_prompt_name="que*")) == {"m"}
    assert set(registry.list_models(pooling="max")) == {"m"}
