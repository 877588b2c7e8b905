"""The process that prepares an engine: ``python -m medvllm.loading.export.preparer``.

It reads a pickled `Job` from standard input, and writes its `Outcome` as JSON to standard output. It gives up the
network and other programs before it imports torch.
"""

import json
import os
import pickle
import shutil
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvllm.sources.conversion.confinement import isolate

if TYPE_CHECKING:
    from medvllm.engines.export import Export
    from medvllm.engines.job import Job, Outcome


def main() -> None:
    """Do the job on standard input."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print
    isolate()
    job: Job = pickle.load(sys.stdin.buffer)
    import torch

    torch.set_num_threads(1)
    with answer:
        json.dump(asdict(prepare(job)), answer)


def prepare(job: "Job") -> "Outcome":
    """Make the export unless it exists, and compare each engine with torch."""
    from medvllm.engines.export import find_export, record_export
    from medvllm.engines.job import Outcome
    from medvllm.engines.model import open_model
    from medvllm.loading.export.agreement import compare, measure
    from medvllm.loading.export.parts import NoSuchPart

    source = _Source(job)

    def fill(work: Path) -> tuple[str | None, dict[str, Any]]:
        from medvllm.loading.export.graph import NotExportable

        try:
            return None, source.write(work)
        except (NotExportable, NoSuchPart) as reason:
            return str(reason), {}

    def find(folder: Path) -> "Export":
        if (found := find_export(folder)) is None:
            raise OSError(f"{folder} changed while it was checked")
        return found

    record_export(job.source or job.folder, job.snapshot, job.snapshot.size_bytes("float32"), fill)
    export = find(job.source or job.folder)
    if export.rejection is None and job.source is not None:
        record_export(job.folder, job.snapshot, export.size_bytes, partial(_fill_int8, export))
        export = find(job.folder)
    if export.rejection is not None:
        return Outcome(export.rejection)
    if not source.is_described_by(export):  # somebody has changed the record
        for folder in filter(None, (job.folder, job.source)):
            shutil.rmtree(folder)
        return Outcome(failure="the record of its export described another model, and was removed")
    part, verdicts = source.reference(), []
    torch_s = measure(lambda ids: part.compute(ids), part, source.longest)
    for engine in job.engines:
        model = open_model(export, engine, threads=1)
        verdict = compare(part, model, source.longest, source.special)
        if verdict.refusal is None:
            own_s = measure(lambda ids, model=model: model.compute_rows(ids), part, source.longest)  # type: ignore[misc]
            verdict = replace(verdict, cpu_s=own_s, torch_cpu_s=torch_s)
        verdicts.append(verdict)
    return Outcome(None, tuple(verdicts))


def _fill_int8(source: "Export", work: Path) -> tuple[str | None, dict[str, Any]]:
    """Write the files of an export in int8, made of one in float32."""
    from medvllm.engines.export import TOKENIZER
    from medvllm.loading.export.graph import NotExportable
    from medvllm.loading.export.quantized import write_int8_graph

    try:
        write_int8_graph(source.folder, work)
    except NotExportable as reason:
        return str(reason), {}
    shutil.copyfile(source.folder / TOKENIZER, work / TOKENIZER)
    return None, {**source.facts, "precision": "int8"}


class _Source:
    """The model and the tokenizer of a job, as torch and transformers read them."""

    def __init__(self, job: "Job") -> None:
        from medvllm import loading

        self._job = job
        self._options = loading.with_defaults(job.metadata, replace(job.options, device="cpu", dtype="float32"))
        self._options = replace(self._options, attn_implementation=None)
        self.tokenizer: Any = loading.load_tokenizer(job.metadata, job.snapshot)
        self.longest: int = self.tokenizer.model_max_length
        self.special = self.tokenizer("", verbose=False)["input_ids"]

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the export into a folder, and return its facts."""
        from medvllm.loading.export.graph import NotExportable, write_graph
        from medvllm.loading.export.tokenizer_file import write_tokenizer

        write_tokenizer(self.tokenizer, folder)
        model, identity = self._load(None)
        if not type(model).__module__.startswith("transformers."):
            raise NotExportable(f"its class {type(model).__name__} is not one of transformers")
        part = self._part(model)
        write_graph(part, folder)
        return self._describe(model, identity)

    def is_described_by(self, export: "Export") -> bool:
        """Return whether the record of an export describes this model."""
        model, identity = self._load(None)
        described = self._describe(model, identity) | {"precision": export.precision}
        return bool(export.facts == described)

    def reference(self) -> Any:
        """Return the part of the model with plain attention."""
        return self._part(self._load("eager")[0])

    def _part(self, model: Any) -> Any:
        from medvllm.loading.export.parts import Part

        return Part.of(model, self._job.part, self.tokenizer.pad_token_id)

    def _load(self, attention: str | None) -> tuple[Any, Any]:
        from medvllm import loading

        options = replace(self._options, attn_implementation=attention)
        identity, config = loading.identify(self._job.metadata, options, self._job.snapshot)
        loaded = loading.load_model(self._job.metadata, identity, config, self._job.snapshot)
        return loaded.model, identity

    def _describe(self, model: Any, identity: Any) -> dict[str, Any]:
        from medvllm.loading.export.facts import describe_model

        return describe_model(model, self._part(model), identity, self.tokenizer)


if __name__ == "__main__":
    main()
