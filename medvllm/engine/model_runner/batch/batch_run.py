"""Runs a task over a corpus in parts, and goes on where an earlier run was stopped."""

import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medvllm.corpora.reading.corpus import FORMATS
from medvllm.engine.model_runner.batch import part_file
from medvllm.engine.model_runner.batch.conditions import Conditions, faker_of
from medvllm.engine.model_runner.batch.first_rows import FirstRows
from medvllm.engine.model_runner.batch.folder import BatchFolder, translated
from medvllm.engine.model_runner.batch.manifest import Manifest, PartRecord
from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.part_file import OutputFormat
from medvllm.engine.model_runner.batch.plan import Plan, make_plan
from medvllm.engine.model_runner.batch.secrets import check_operators, secret_of
from medvllm.engine.model_runner.batch.source import Source
from medvllm.engine.model_runner.batch.summary import BatchSummary, summarize
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job, Runner, placeholders
from medvllm.engine.model_runner.batch.workers import ThisProcess, Workers
from medvllm.engine.model_runner.option_checks import check_choice, check_count
from medvllm.engine.model_runner.tasks import check_task
from medvllm.errors import MissingDependencyError, RequestError
from medvllm.progress import track_texts

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchRun:
    """Runs a task over a corpus in parts.

    Args:
        runner: The model.
        source: The corpus.
        out: The folder for the parts.
        task: The task.
        arguments: The options of the task.
        rows_per_part: How many rows a part has.
        output: The format of the parts.
        workers: How many processes answer; with 1, this one does.
        ray: The address of a Ray cluster, whose actors answer, or "local"; None for no Ray.
        device: The device that was asked for.
    """

    runner: Runner
    source: Source
    out: Path
    task: str
    arguments: Mapping[str, Any]
    rows_per_part: int
    output: OutputFormat
    workers: int
    ray: str | None
    device: str | None

    def __post_init__(self) -> None:
        check_count("rows_per_part", self.rows_per_part)
        check_count("workers", self.workers)
        part_file.check_format(self.output)
        if self.source.format is not None:
            check_choice("format", self.source.format, FORMATS)
        if self.task == "rerank":
            raise RequestError(
                "Task 'rerank' puts all texts into one order, and a batch answers part by part.\n"
                "Use: medvllm run NAME --task rerank",
                task=self.task,
            )
        check_task(self.task, {**self.arguments, **placeholders(self.task)})
        if self.arguments.get("temperature") and self.arguments.get("seed") is None:
            raise RequestError(
                "Without a seed, sampling draws other random numbers in each run, so a part that is made again would "
                "have other answers.\nGive one: --seed 1",
                argument="seed",
            )

    def run(self, *, restart: bool = False) -> BatchSummary:
        """Answer what is missing, and return the summary.

        Args:
            restart: Whether to remove what an earlier batch has written to the folder, and begin anew.
        """
        has_documents = keeps_documents = False
        if self.task == "redact":
            operators = check_operators(
                self.arguments.get("operators"), in_one_process=self.workers == 1 and self.ray is None
            )
            has_documents, keeps_documents = operators.use_documents, operators.need_whole_documents
        folder = BatchFolder(self.out)
        with ExitStack() as stack:
            stack.enter_context(folder.locked())
            manifest = Manifest(self.out, is_new=restart)
            plan = make_plan(
                self.source, self.rows_per_part, has_documents=has_documents, keeps_documents=keeps_documents
            )
            changed = [number for number, record in manifest.parts.items() if not folder.is_whole(record)]
            missing = len(plan.digests) - len(manifest.parts) + len(changed)
            workers = self._choose_workers(missing)
            stack.callback(workers.stop)
            self._prepare(folder, manifest, plan, workers)
            for number in sorted(changed):  # not before the conditions are the same: else they would be removed
                _LOG.warning("The file of part %d is missing or was changed, so it is made again.", number)
                del manifest.parts[number]
            if missing:
                self._answer(folder, manifest, plan, workers)
            folder.write_bad_rows(manifest)
            return summarize(self.out, manifest, is_running=False)

    def _choose_workers(self, parts: int) -> Workers:
        """Return who answers so many parts. Without any, one loads the model all the same, to compare it."""
        count = max(1, min(self.workers, parts))
        if self.ray is not None:  # also for none: the model of this machine may be loaded on another device
            try:
                from medvllm.engine.model_runner.batch.ray_actors import RayActors
            except ImportError as error:
                raise MissingDependencyError(
                    "Ray is not installed.\nInstall it with: pip install 'medvllm[ray]'", package="ray"
                ) from error
            return RayActors(self.ray, count)
        if count > 1:
            from medvllm.engine.model_runner.batch.processes import LocalProcesses

            return LocalProcesses(count)
        return ThisProcess()

    def _prepare(self, folder: BatchFolder, manifest: Manifest, plan: Plan, workers: Workers) -> None:
        """Load the model, and compare with the earlier runs, or begin the first one."""
        secret = secret_of(self.arguments)
        job = Job(
            self.runner.pinned(),
            self.task,
            self.arguments,
            self.output,
            has_ids=plan.has_ids,
            has_number_ids=plan.has_number_ids,
            is_pair=self.source.columns.is_pair,
            secret=secret,
            device=self.device,
            faker=faker_of(self.arguments),
        )
        receipt = workers.start(job)
        now = Conditions.of(plan, self.task, self.arguments, self.output, receipt, secret)
        different = [] if manifest.conditions is None else manifest.conditions.differences(now)
        if different and manifest.parts:
            listed = "\n".join(f"  {line}" for line in different)
            raise RequestError(
                f"The batch in '{self.out}' was begun under other conditions:\n{listed}\n"
                "Give what it was begun with, or another folder; or remove its parts and begin anew: --restart"
            )
        if different or manifest.conditions is None:  # there is no part, or --restart gives them up
            folder.clear()
            with translated(self.out):
                manifest.begin(now)
        with translated(self.out):
            manifest.add_run(time.time(), workers.words)

    def _answer(self, folder: BatchFolder, manifest: Manifest, plan: Plan, workers: Workers) -> None:
        """Answer the parts that are missing. Each is on the disk before its line is in the manifest."""
        assert manifest.conditions is not None
        done = sum(record.rows for record in manifest.parts.values())
        first_rows = FirstRows({record.part: record.answered for record in manifest.parts.values()})
        held: list[tuple[Part, AnsweredPart]] = []  # without an answer, until it is clear that others have one
        finished = 0
        parts = (part for part in plan.parts() if part.number not in manifest.parts)
        with (
            track_texts("Running", plan.rows - done) as advance,
            closing(workers.answer(parts, manifest.conditions.receipt)) as answered_parts,
        ):
            for part, answered in answered_parts:
                first_rows.add(answered)
                if answered.failure is None:
                    self._keep(folder, manifest, plan, part, answered)
                else:
                    held.append((part, answered))
                while held and first_rows.have_answer:
                    self._keep(folder, manifest, plan, *held.pop())
                finished += len(part.rows)
                advance(finished, finished)
        first_rows.check()

    def _keep(self, folder: BatchFolder, manifest: Manifest, plan: Plan, part: Part, answered: AnsweredPart) -> None:
        assert manifest.conditions is not None
        digits = max(5, len(str(len(plan.digests) - 1)))  # so that the order of the names is that of the parts
        record = PartRecord(
            part=part.number,
            file=f"part-{part.number:0{digits}}.{self.output}",
            first_row=part.first,
            rows=len(part.rows),
            answered=answered.answered,
            tokens=answered.tokens,
            input_sha256=plan.digests[part.number],
            output_sha256=answered.digest,
            size=len(answered.content),
            receipt_sha256=manifest.conditions.receipt_digest,
            seconds=round(answered.seconds, 3),
            finished=time.time(),
        )
        folder.write_part(record.file, answered.content)
        with translated(folder.path):
            manifest.add_part(record, list(answered.bad))
