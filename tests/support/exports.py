"""Models that are exported and compared with torch once for a session, and the homes that have them."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from filelock import FileLock
from transformers import BertForTokenClassification

from medvllm.engine.model_runner import ModelRegistry
from medvllm.engine.model_runner.engine_lease import PartOf
from medvllm.engines import Job, export_folder, find_export, keep_verdict
from medvllm.loading.export.preparer import prepare
from medvllm.options import LoadOptions
from tests.support import tiny
from tests.support.notes import CLINICAL
from tests.support.tiny import labelled
from tests.support.trained import MINILM, tagger_labels

_SIZE = {"num_hidden_layers": 1, "intermediate_size": 256}  # few nodes: an export takes seconds for each layer


class Exports:
    """Exports that the workers of a session share. Each one is made when a test first asks for it.

    Args:
        shared: A folder that the workers share.
    """

    def __init__(self, shared: Path) -> None:
        self._shared = shared

    def prepare(
        self, folder: Path, home: Path, task: str, engines: tuple[str, ...] = ("onnx",), *, has_int8: bool = False
    ) -> None:
        """Put the export of a model into a home, with its verdicts.

        It is made in this process, which has imported torch already.

        Args:
            folder: The folder of the model.
            home: What MEDVLLM_HOME is in the test.
            task: The task that needs it.
            engines: The engines.
            has_int8: Whether an export in int8 is made, too.
        """
        own = self._shared / f"{folder.name}-{task}-{len(engines)}"
        with FileLock(f"{own}.lock"):
            if not (own / "done").exists():
                shutil.rmtree(own, ignore_errors=True)
                with _home(own):
                    _export(folder, task, engines, has_int8)
                (own / "done").touch()
        for prepared in (own / "prepared").iterdir():
            if prepared.is_dir():
                shutil.copytree(prepared, home / "prepared" / prepared.name, copy_function=shutil.copy2)
        (home / "prepared").chmod(0o700)
        home.chmod(0o700)
        shutil.copy2(own / "digests.db", home / "digests.db")

    def minilm(self, home: Path) -> Path:
        """The real model, as an encoder."""
        self.prepare(MINILM, home, "embed")
        return MINILM

    def encoder(self, home: Path) -> Path:
        """A tiny encoder, for every engine."""
        folder = self._make("encoder", partial(tiny.bert_encoder, config=_SIZE))
        self.prepare(folder, home, "embed", ("onnx", "openvino"), has_int8=True)
        return folder

    def tagger(self, home: Path) -> Path:
        """A tiny tagger of drugs and problems."""
        labels = tagger_labels("BIO", CLINICAL)
        folder = self._make(
            "tagger", partial(tiny.bert, cls=BertForTokenClassification, config=_SIZE | labelled(labels))
        )
        self.prepare(folder, home, "ner")
        return folder

    def _make(self, name: str, make: Callable[[Path], Path]) -> Path:
        folder = self._shared / name
        with FileLock(f"{folder}.lock"):
            return folder if folder.exists() else make(folder)


def _export(folder: Path, task: str, engines: tuple[str, ...], has_int8: bool) -> None:
    target = ModelRegistry().engine_leases.resolve(folder, LoadOptions(), PartOf(task, has_gap=False))
    given = target.metadata, target.snapshot, target.options, target.part
    jobs = [Job(*given, target.folder, None, engines)]
    if has_int8:
        jobs.append(Job(*given, export_folder(*given, "int8"), target.folder, ("onnx",)))
    for job in jobs:
        outcome = prepare(job)
        export = find_export(job.folder)
        assert export is not None
        for verdict in outcome.verdicts:
            keep_verdict(export, verdict)


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    before = os.environ.get("MEDVLLM_HOME")
    os.environ["MEDVLLM_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["MEDVLLM_HOME"]
        else:
            os.environ["MEDVLLM_HOME"] = before
