"""Make tests/data/sentence with the real sentence-transformers, of whose vectors ours are to be.

Run it in an environment of its own, from the top of the repository:

    python -m venv /tmp/st && /tmp/st/bin/pip install sentence-transformers==6.2.0
    HF_HUB_OFFLINE=1 PYTHONPATH=. /tmp/st/bin/python tests/support/make_sentence_folders.py

Each case is a folder that the library wrote or, for the older formats, one rewritten as older releases wrote it, and
the vectors that its `encode`, `encode_query` and `encode_document` give for TEXTS. Files that several cases share are
kept once, by their digest.
"""

# mypy: ignore-errors
# pyright: reportMissingImports=false, reportArgumentType=false, reportAttributeAccessIssue=false
# The library is not among those that this project is checked with.

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from sentence_transformers import MultiVectorEncoder, SentenceTransformer, SparseEncoder
from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling
from sentence_transformers.sparse_encoder.modules import SpladePooling
from tokenizers import processors
from torch import nn

from tests.support import tiny
from tests.support.sentence import DATA, TEXTS

MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
FLAGS = {mode: f"pooling_mode_{mode}_tokens" for mode in MODES} | {
    "cls": "pooling_mode_cls_token",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
PROMPTS = {"query": "the query : ", "document": "Passage of the ", "odd": "for fever and"}
SIZE: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 16}


def bases(work: Path) -> dict[str, Path]:
    """A cased BERT, a byte-level RoBERTa, and a GPT-2 whose tokenizer adds no special token."""
    size = tiny.SMALL | SIZE
    byte = {"vocab_size": tiny.BYTES, "pad_token_id": 1}
    roberta = transformers.RobertaConfig(**size | byte | {"max_position_embeddings": 66})
    gpt2 = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=64, n_inner=16, **byte)
    bare = tiny.byte_tokenizer()
    bare.backend_tokenizer.post_processor = processors.ByteLevel()
    tiny.bert(work / "bert", transformers.BertModel, config=SIZE)
    tiny.write(work / "roberta", transformers.RobertaModel, roberta, tiny.byte_tokenizer())
    tiny.write(work / "gpt2", transformers.GPT2Model, gpt2, bare)
    return {name: work / name for name in ("bert", "roberta", "gpt2")}


def drawn(module: nn.Module) -> Any:
    """A module with weights that are not those of a fresh one."""
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return module


def dense(taken: int, given: int, activation: Any = None, **options: Any) -> Dense:
    """A Dense with weights of its own; Tanh without another activation."""
    return drawn(Dense(taken, given, activation_function=activation or nn.Tanh(), **options))


def listed() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give a name, a base and the parts of each case that is written out."""
    for base, modes in {"bert": MODES, "roberta": MODES, "gpt2": MODES[4:]}.items():
        for mode in modes:
            yield f"{base}-{mode}", base, {"pooling": mode}
            prompted = {"prompts": PROMPTS, "default_prompt_name": "odd", "include_prompt": False}
            yield f"{base}-{mode}-without-prompt", base, {"pooling": mode} | prompted
        yield f"{base}-lower", base, {"do_lower_case": True}
        yield f"{base}-short", base, {"max_seq_length": 9}
    yield "joined", "bert", {"pooling": ["mean", "max"]}
    yield "joined-all", "bert", {"pooling": ["lasttoken", "cls", "weightedmean", "mean", "mean_sqrt_len_tokens", "max"]}
    yield "prompts", "bert", {"prompts": PROMPTS}
    yield "prompts-default", "bert", {"prompts": PROMPTS, "default_prompt_name": "query"}
    yield "prompts-passage", "bert", {"prompts": {"query": "the ", "passage": "of "}, "default_prompt_name": "passage"}
    yield "truncated", "bert", {"truncate_dim": 5}
    yield "truncated-normalized", "bert", {"truncate_dim": 5, "modules": [Normalize()]}
    yield "truncated-beyond", "bert", {"truncate_dim": 500}
    yield "normalized", "roberta", {"modules": [Normalize()]}
    yield "normalized-first", "bert", {"modules": [Normalize(), dense(16, 8)]}
    yield "dense", "bert", {"modules": [dense(16, 8), Normalize()]}
    yield "dense-joined", "bert", {"pooling": ["cls", "mean"], "modules": [dense(32, 6)]}
    yield "dense-plain", "bert", {"modules": [dense(16, 16, nn.Identity(), bias=False)]}
    yield "dense-gelu", "bert", {"modules": [dense(16, 20, nn.GELU()), dense(20, 4, nn.Sigmoid())]}
    yield "dense-learnt", "bert", {"modules": [dense(16, 8, nn.PReLU())]}
    yield "dense-residual", "bert", {"modules": [dense(16, 16, use_residual=True)]}
    yield "dense-projected", "bert", {"modules": [dense(16, 8, nn.ReLU(), use_residual=True)]}
    yield "layer-norm", "bert", {"modules": [drawn(LayerNorm(16)), Dropout(0.5)]}
    changed: dict[str, Any] = {"prompts": {"query": "for fever "}, "default_prompt_name": "query"}
    yield "changed", "bert", changed | {"include_prompt": False, "modules": [dense(16, 8), Normalize()]}
    yield "dropped", "bert", {"modules": [Dropout(0.9), Normalize(), Dropout(0.5)]}


def combined(count: int) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Give cases of parts drawn at random."""
    draw = random.Random(1)
    for number in range(count):
        modes = draw.sample(MODES, draw.choice([1, 1, 2, 3]))
        width, modules = 16 * len(modes), []
        for _ in range(draw.choice([0, 1, 2, 3])):
            kind = draw.choice(["dense", "norm", "unit", "drop"])
            given = draw.choice([4, 12, 24])
            activation = draw.choice([nn.Tanh(), nn.ReLU(), nn.SiLU(), nn.LeakyReLU(), nn.Identity()])
            made = {
                "dense": lambda a=activation, w=width, g=given: dense(w, g, a, bias=draw.random() < 0.7),
                "norm": lambda w=width: drawn(LayerNorm(w)),
                "unit": Normalize,
                "drop": Dropout,
            }[kind]()
            width = given if kind == "dense" else width
            modules.append(made)
        parts: dict[str, Any] = {"pooling": modes if len(modes) > 1 else modes[0], "modules": modules}
        if draw.random() < 0.6:
            chosen = dict(draw.sample(sorted(PROMPTS.items()), draw.choice([1, 2, 3])))
            parts |= {"prompts": chosen, "include_prompt": draw.random() < 0.5}
            parts |= {"default_prompt_name": draw.choice(sorted(chosen))} if draw.random() < 0.7 else {}
        parts |= {"truncate_dim": draw.choice([1, 3, 4])} if draw.random() < 0.3 else {}
        parts |= {"max_seq_length": draw.choice([20, 24, 33])} if draw.random() < 0.4 else {}
        parts |= {"do_lower_case": True} if draw.random() < 0.3 else {}
        yield f"combined-{number}", draw.choice(["bert", "roberta"]), parts


def can_be_old(base: str, parts: dict[str, Any]) -> bool:
    """Whether the older format can say it; of the modes of other bases, one is enough."""
    modes = parts.get("pooling", "mean")
    if isinstance(modes, str):
        return base == "bert" or len(parts) > 1
    return sorted(modes, key=MODES.index) == modes


def saved(base: Path, folder: Path, parts: dict[str, Any]) -> None:
    """Have the library write a folder."""
    options = {key: parts[key] for key in ("max_seq_length", "do_lower_case") if key in parts}
    modules = [
        Transformer(str(base), **options),
        Pooling(16, parts.get("pooling", "mean"), include_prompt=parts.get("include_prompt", True)),
        *parts.get("modules", ()),
    ]
    whole = {key: parts[key] for key in ("prompts", "default_prompt_name", "truncate_dim") if key in parts}
    SentenceTransformer(modules=modules, device="cpu", **whole).save(str(folder), create_model_card=False)


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def aged(base: Path, folder: Path, parts: dict[str, Any], *, transformer: str = "") -> None:
    """Rewrite a folder as a release before 5.4 wrote it; with `transformer`, as one of 2020 did."""
    modules = json.loads((folder / "modules.json").read_text())
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        if kind == "Normalize":
            shutil.rmtree(folder / module["path"])
        if kind == "Dense":
            edit(folder / module["path"] / "config.json", module_input_name=None, module_output_name=None)
    modes = parts.get("pooling", "mean")
    flags = {flag: mode == modes or mode in (modes if isinstance(modes, list) else ()) for mode, flag in FLAGS.items()}
    included = {"include_prompt": parts["include_prompt"]} if "include_prompt" in parts else {}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **flags, **included}))
    # The tokenizer was saved as it is: length and casing stood beside it.
    for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        (folder / file).unlink(missing_ok=True)
        if (base / file).is_file():
            shutil.copy(base / file, folder / file)
    stated = {"max_seq_length": parts.get("max_seq_length", 64), "do_lower_case": parts.get("do_lower_case", False)}
    (folder / "sentence_bert_config.json").write_text(json.dumps(stated))
    edit(folder / "config_sentence_transformers.json", model_type=None)
    if transformer:
        (folder / "config_sentence_transformers.json").unlink()
        modules[0]["path"] = transformer
        (folder / transformer).mkdir()
        for moved in [file for file in folder.iterdir() if file.is_file() and file.name != "modules.json"]:
            moved.rename(folder / transformer / moved.name)
        (folder / transformer / "sentence_bert_config.json").rename(
            folder / transformer / "sentence_roberta_config.json"
        )
    (folder / "modules.json").write_text(json.dumps(modules))


def refused(bases: dict[str, Path], work: Path) -> Iterator[tuple[str, Path]]:
    """Give folders of kinds that make no vector a text."""
    masked = tiny.bert(work / "masked", transformers.BertForMaskedLM, config=SIZE)
    parts = [Transformer(str(masked), transformer_task="fill-mask"), SpladePooling("max")]
    SparseEncoder(modules=parts, device="cpu").save(str(work / "splade"), create_model_card=False)
    MultiVectorEncoder(str(bases["bert"]), device="cpu").save(str(work / "colbert"), create_model_card=False)
    routes = {"query": [dense(16, 8)], "document": [dense(16, 8)]}
    asymmetric = [Transformer(str(bases["bert"])), Pooling(16), Router(routes, default_route="query")]
    SentenceTransformer(modules=asymmetric, device="cpu").save(str(work / "router"), create_model_card=False)
    for name in ("splade", "colbert", "router"):
        yield name, work / name


def kept(folder: Path) -> dict[str, str]:
    """Copy a folder's files to where they are kept by their digest, and return the name of each by its path."""
    names = {}
    for file in sorted(file for file in folder.rglob("*") if file.is_file() and file.name != "README.md"):
        content = file.read_bytes()
        name = f"{hashlib.sha256(content).hexdigest()[:12]}{file.suffix}"
        (DATA / "files" / name).write_bytes(content)
        names[file.relative_to(folder).as_posix()] = name
    return names


def vectors_of(folder: Path) -> dict[str, torch.Tensor]:
    """What the library makes of TEXTS; one result under several names is kept once."""
    model = SentenceTransformer(str(folder), device="cpu")
    texts = [text for text in TEXTS if text] if "gpt2" in folder.name else TEXTS
    made = {
        call: torch.tensor(getattr(model, call)(texts, batch_size=4)).contiguous()
        for call in ("encode", "encode_query", "encode_document")
    }
    return {call: v for call, v in made.items() if call == "encode" or not torch.equal(v, made["encode"])}


VALUES: list[Any] = [None, True, False, 0, 1, -1, 3, 8, 16, 32, 0.5, "", "x", [], {}, ["mean"], ["cls", "max"], *MODES]
VALUES += ["torch.nn.modules.activation.ReLU", "torch.nn.modules.linear.Identity", "torch.sigmoid", "own.Activation"]
VALUES += ["sentence_embedding", "token_embeddings", "fill-mask", "query", "SparseEncoder", {"query": "of the "}]


def changed(work: Path) -> Iterator[tuple[dict[str, Any], torch.Tensor | None]]:
    """Give declarations changed at random, each with the vectors that the library makes then; None: it refuses."""
    draw = random.Random(2)
    for number in range(120):
        case = draw.choice(["changed", "changed-old"])
        folder = shutil.copytree(work / case, work / f"{case}-{number}")
        names = ["modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"]
        file = draw.choice([*names, "1_Pooling/config.json", "1_Pooling/config.json", "2_Dense/config.json"])
        content = mutated(draw, json.loads((folder / file).read_text()))
        (folder / file).write_text(json.dumps(content))
        try:
            made = torch.tensor(SentenceTransformer(str(folder), device="cpu").encode(TEXTS[:2])).contiguous()
        except Exception:  # whatever it says
            made = None
        yield {"case": case, "file": file, "content": content}, made


def mutated(draw: random.Random, content: Any) -> Any:
    """A JSON value with one thing in it changed: a key or item of it, or of one of its own."""
    content = json.loads(json.dumps(content))
    place = draw.choice([content, *(content if isinstance(content, list) else content.values())])
    place = place if isinstance(place, (dict, list)) and place else content
    if isinstance(place, list):
        draw.choice([lambda: draw.shuffle(place), lambda: place.pop(), lambda: place.append(draw.choice(place))])()
    else:
        key = draw.choice([*place, "surprise"])
        if draw.random() < 0.15 and key in place:
            del place[key]
        else:
            place[key] = draw.choice(VALUES)
    return content


def main() -> None:
    """Write the cases anew."""
    torch.manual_seed(0)
    shutil.rmtree(DATA, ignore_errors=True)
    (DATA / "files").mkdir(parents=True)
    cases: dict[str, dict[str, str]] = {}
    vectors: dict[str, torch.Tensor] = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        models = bases(work)
        for name, base, parts in [*listed(), *combined(24)]:
            saved(models[base], work / name, parts)
            variants = {name: None} | ({f"{name}-old": ""} if can_be_old(base, parts) else {})
            variants |= {f"{name}-2020": "0_Transformer"} if name in ("bert-cls", "dense", "roberta-lower") else {}
            for variant, transformer in variants.items():
                folder = work / variant
                if transformer is not None:
                    shutil.copytree(work / name, folder)
                    aged(models[base], folder, parts, transformer=transformer)
                cases[variant] = kept(folder)
                vectors |= {f"{variant}/{call}": made for call, made in vectors_of(folder).items()}
        for name, folder in refused(models, work):
            cases[f"refused-{name}"] = kept(folder)
        changes = list(changed(work))
    (DATA / "changes.json").write_text(json.dumps([change for change, _ in changes]) + "\n")
    vectors |= {f"changes/{i}": made for i, (_, made) in enumerate(changes) if made is not None}
    save_file(vectors, DATA / "vectors.safetensors")
    (DATA / "cases.json").write_text(json.dumps(cases) + "\n")


if __name__ == "__main__":
    main()
