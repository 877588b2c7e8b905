"""Actors of Ray that answer parts: on this machine, or in a cluster."""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.actor import ActorHandle
from ray.exceptions import ObjectStoreFullError, OutOfMemoryError

from medvllm import settings
from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.team import Team, WorkerEndedError
from medvllm.engine.model_runner.batch.warnings import ToldOnce, Warned, Warnings
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job, Worker, without_text
from medvllm.errors import LoadError, MedVLLMError, SettingError
from medvllm.model_registry.handover import hand_over, take_over
from medvllm.ray_cluster import ENDED, find_lack, has_gpus, keep_sigterm, logs_folder, start_or_connect
from medvllm.receipt import Receipt

_LOG = logging.getLogger(__name__)
S = TypeVar("S")
LOCAL = "local"
_OBJECTS, _OBJECTS_EACH = 128 * 2**20, 64 * 2**20  # bytes for Ray's object store, and more of them for each actor
_END_S = 30.0  # for actors to end


class RayActors(Team["_Actor"]):
    """Actors, each with its own registry and lease. Those that find no room in the cluster begin when there is some.

    Args:
        address: The address of a cluster, or "local" to start a Ray on this machine.
        count: How many actors.
    """

    def __init__(self, address: str, count: int) -> None:
        super().__init__(count)
        self.words = f"{count} actors of Ray"
        self._address = address
        self._is_ours = False
        self._told = ToldOnce()

    def start(self, job: Job) -> Receipt:
        """Start the actors, which load the model, and return what answers."""
        self._environment = hand_over()
        self._connect()
        self._options: dict[str, float] = {"num_cpus": settings.THREADS() or 1}
        if (job.device or settings.DEVICE()) != "cpu" and has_gpus():
            self._options["num_gpus"] = 1
        if (lack := find_lack(self._count, self._options, is_own=self._is_ours and self._address == LOCAL)) is not None:
            _LOG.warning("%s Those that find none wait for it.", lack)
        return super().start(job)

    def stop(self) -> None:
        """End the actors, and a Ray that was started for them."""
        if not ray.is_initialized():
            return
        for member in self._members:
            member.stop()
        if busy := [member.waits_for for member in self._members if member.waits_for is not None]:
            # A Ray that ends sooner would leave the process of an actor that has just begun, until it notices.
            ray.wait(busy, num_returns=len(busy), timeout=_END_S, fetch_local=False)
        self._members = []
        if self._is_ours:
            ray.shutdown()
            self._put_back()

    def _connect(self) -> None:
        """Start Ray, or connect to a cluster, unless this program has done so."""
        if ray.is_initialized():
            present = ray.get_runtime_context().gcs_address
            if self._address not in ("auto", present):
                raise SettingError(
                    f"This program uses the Ray at {present!r} already, and not {self._address!r}.\n"
                    "To use that one: ray='auto'. To leave it first: ray.shutdown()",
                    value=self._address,
                )
            return
        self._put_back = keep_sigterm()
        start_or_connect(
            None if self._address == LOCAL else self._address,
            cpus=self._count * (settings.THREADS() or 1),
            objects=_OBJECTS + self._count * _OBJECTS_EACH,
            advice="To start a Ray for this batch: --ray local",
        )
        self._is_ours = True

    def _new(self) -> "_Actor":
        remote: Any = ray.remote(RayWorker)  # its types are those of a function
        return _Actor(remote.options(**self._options).remote(self._job, self._environment), self._told)

    def _wait(self) -> "Sequence[_Actor]":
        waiting = {member.waits_for: member for member in self._members if member.waits_for is not None}
        ready, _ = ray.wait(list(waiting), num_returns=1, fetch_local=False)
        return [waiting[each] for each in ready]

    def _explain(self, ended: WorkerEndedError) -> tuple[str, str]:
        return (
            f"Actors of Ray end before they are ready: {ended}.",
            f"Ray's log says why, on the machine of the actor, in: {logs_folder()}\n"
            "medvllm must be installed on each machine of the cluster.",
        )


class _Actor:
    """An actor.

    Args:
        actor: The actor.
        told: Logs its warnings.

    Attributes:
        actor: The actor.
        is_ready: Whether it has loaded the model.
        part: What it answers now.
        waits_for: What it does now: it begins, or answers. None if it waits for a part.
    """

    def __init__(self, actor: "ActorHandle[Any]", told: ToldOnce) -> None:
        self.actor, self._told = actor, told
        self.is_ready = False
        self.part: Part | None = None
        self.waits_for: Any = actor.open.remote()

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        """Give it a part. If it has ended, `receive` says so."""
        try:
            self.waits_for = self.actor.answer.remote(part, dict(receipt))
        except ObjectStoreFullError as error:
            raise _store_is_full() from error

    def receive(self) -> Any:
        """Return what it says. WorkerEndedError: it has ended. MedVLLMError: it could not do what it should."""
        waits_for, self.waits_for = self.waits_for, None
        try:
            said, warnings = ray.get(waits_for)
        except ENDED as error:
            was_killed = isinstance(error, OutOfMemoryError)
            raise WorkerEndedError(type(error).__name__, was_killed=was_killed) from error
        except ObjectStoreFullError as error:
            raise _store_is_full() from error
        self._told.log(warnings)
        if isinstance(said, MedVLLMError):
            raise said
        return said

    def stop(self) -> None:
        """End it."""
        ray.kill(self.actor)


class RayWorker:
    """Answers parts in an actor. An error is returned: Ray would write its traceback to a log. So are warnings.

    Args:
        job: What to do.
        environment: The settings of the process that started the batch.
    """

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self._job = job
        take_over(environment, os.environ)
        self._warnings = Warnings()

    def open(self) -> tuple[Receipt | MedVLLMError, Sequence[Warned]]:
        """Load the model, and return what answers, and what it warns of."""
        return self._say(self._open)

    def answer(self, part: Part, receipt: Mapping[str, Any]) -> tuple[AnsweredPart | MedVLLMError, Sequence[Warned]]:
        """Return the answers for a part, and what they warn of."""
        return self._say(lambda: self._worker.answer(part, receipt))

    def _open(self) -> Receipt:
        self._worker = Worker(self._job)
        return self._worker.open()

    def _say(self, do: Callable[[], S]) -> tuple[S | MedVLLMError, Sequence[Warned]]:
        try:
            said: S | MedVLLMError = do()
        except Exception as error:
            said = without_text(error)
        return said, self._warnings.take()


def _store_is_full() -> LoadError:
    return LoadError(
        "The object store of Ray has no room for a part.\n"
        "Use fewer workers, or give the cluster more: ray start --object-store-memory BYTES"
    )
