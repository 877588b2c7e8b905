"""Actors of Ray that answer parts: on this machine, or in a cluster."""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from medvllm import settings
from medvllm.engine.model_runner.batch.part import Part
from medvllm.engine.model_runner.batch.same_model import SameModel
from medvllm.engine.model_runner.batch.worker import AnsweredPart, Job, Worker
from medvllm.engine.model_runner.batch.workers import Answered, share
from medvllm.errors import LoadError, MedVLLMError
from medvllm.model_registry.handover import hand_over, take_over
from medvllm.ray_cluster import start_or_connect
from medvllm.receipt import Receipt

LOCAL = "local"
_OBJECTS = 256 * 2**20  # bytes for Ray's object store
_END_S = 30.0  # for actors to end
_STARTS = 3  # of actors that end before they are ready, one after the other


class RayActors:
    """Actors, each with its own registry and lease. Those that find no room in the cluster begin when there is some.

    Args:
        address: The address of a cluster, or "local" to start a Ray on this machine.
        count: How many actors.
    """

    def __init__(self, address: str, count: int) -> None:
        self.words = f"{count} actors of Ray"
        self._address, self._count = address, count
        self._members: list[_Member] = []
        self._is_ours = False
        self._failed_starts = 0

    def start(self, job: Job) -> Receipt:
        """Start the actors, which load the model, and return what answers."""
        self._job, self._environment, self._same = job, hand_over(), SameModel()
        self._connect()
        self._members = [self._new() for _ in range(self._count)]
        receipt: Receipt | None = None
        while receipt is None:
            for member in self._ready_members():
                receipt = self._begin(member) or receipt
        return receipt

    def answer(self, parts: Iterator[Part], receipt: Mapping[str, Any]) -> Iterator[Answered]:
        """Yield the parts as they are answered."""
        return share(self, parts, receipt)

    def stop(self) -> None:
        """End the actors, and a Ray that was started for them."""
        if not ray.is_initialized():
            return
        for member in self._members:
            ray.kill(member.actor)
        if busy := [member.waits_for for member in self._members if member.waits_for is not None]:
            # A Ray that ends sooner would leave the process of an actor that has just begun, until it notices.
            ray.wait(busy, num_returns=len(busy), timeout=_END_S, fetch_local=False)
        self._members = []
        if self._is_ours:
            ray.shutdown()
            signal.signal(signal.SIGTERM, self._on_terminated)

    @property
    def has_room(self) -> bool:
        """Whether an actor waits for a part."""
        return any(member.waits_for is None for member in self._members)

    def send(self, part: Part, receipt: Mapping[str, Any]) -> None:
        """Give a part to an actor that waits."""
        member = next(member for member in self._members if member.waits_for is None)
        member.part, member.waits_for = part, member.actor.answer.remote(part, dict(receipt))

    def wait(self) -> Sequence[tuple[Part, AnsweredPart | None]]:
        """Return what is new: parts with their answers, or with None if their actor has ended."""
        found: list[tuple[Part, AnsweredPart | None]] = []
        for member in self._ready_members():
            part = member.part
            if part is None:
                self._begin(member)
                continue
            try:
                answered: AnsweredPart = _take(member.waits_for)
            except RayActorError:
                self._replace(member)
                found.append((part, None))
            else:
                member.part = member.waits_for = None
                found.append((part, answered))
        return found

    def _connect(self) -> None:
        """Start Ray, or connect to a cluster, unless this program has done so."""
        if ray.is_initialized():
            return
        self._on_terminated = signal.getsignal(signal.SIGTERM)  # Ray puts its own handler there
        start_or_connect(
            None if self._address == LOCAL else self._address,
            count=self._count,
            objects=_OBJECTS,
            advice="To start a Ray for this batch: --ray local",
        )
        self._is_ours = True

    def _new(self) -> "_Member":
        options: dict[str, Any] = {"num_cpus": settings.THREADS() or 1}
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0  # type: ignore[no-untyped-call]
        if has_gpus and (self._job.device or settings.DEVICE()) != "cpu":
            options["num_gpus"] = 1
        remote: Any = ray.remote(RayWorker)  # its types are those of a function
        return _Member(remote.options(**options).remote(self._job, self._environment))

    def _ready_members(self) -> "list[_Member]":
        """Wait, and return the members that have done something, or have ended."""
        waiting = {member.waits_for: member for member in self._members if member.waits_for is not None}
        ready, _ = ray.wait(list(waiting), num_returns=1, fetch_local=False)
        return [waiting[each] for each in ready]

    def _begin(self, member: "_Member") -> Receipt | None:
        """Return the receipt of a member that is ready; None if it has ended before, and another one begins."""
        try:
            receipt: Receipt = _take(member.waits_for)
        except RayActorError as error:
            self._failed_starts += 1
            if self._failed_starts == _STARTS:
                raise LoadError(
                    f"Actors of Ray end before they are ready: {type(error).__name__}.\nRay's log says why. medvllm "
                    "must be installed on each machine of the cluster."
                ) from error
            self._replace(member)
            return None
        self._failed_starts, member.waits_for = 0, None
        self._same.check(receipt)
        return receipt

    def _replace(self, member: "_Member") -> None:
        """Put a new actor in the place of one that has ended."""
        self._members[self._members.index(member)] = self._new()


class _Member:
    """An actor.

    Attributes:
        actor: The actor.
        part: What it answers now.
        waits_for: What it does now: it begins, or answers. None if it waits for a part.
    """

    def __init__(self, actor: "ActorHandle[Any]") -> None:
        self.actor = actor
        self.part: Part | None = None
        self.waits_for: Any = actor.open.remote()


class RayWorker:
    """Answers parts in an actor. An error is returned: Ray would write its traceback to a log.

    Args:
        job: What to do.
        environment: The settings of the process that started the batch.
    """

    def __init__(self, job: Job, environment: Mapping[str, str]) -> None:
        self._job = job
        take_over(environment, os.environ)

    def open(self) -> Receipt | MedVLLMError:
        """Load the model, and return what answers."""
        try:
            self._worker = Worker(self._job)
            return self._worker.open()
        except Exception as error:
            return _without_text(error)

    def answer(self, part: Part, receipt: Mapping[str, Any]) -> AnsweredPart | MedVLLMError:
        """Return the answers for a part."""
        try:
            return self._worker.answer(part, receipt)
        except Exception as error:
            return _without_text(error)


def _without_text(error: Exception) -> MedVLLMError:
    if isinstance(error, MedVLLMError):
        return error
    return LoadError(f"A worker could not answer: {type(error).__name__}.")


def _take(reference: Any) -> Any:
    """Return what an actor has returned. MedVLLMError: that is an error. RayActorError: it has ended."""
    said = ray.get(reference)
    if isinstance(said, MedVLLMError):
        raise said
    return said
