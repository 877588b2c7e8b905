"""Which replica gets a request: one that has its model, and others once those are busy."""

import random
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ray.serve.request_router import MultiplexMixin, PendingRequest, ReplicaID, RequestRouter, RunningReplica

BUSY = 16  # open requests of a replica, from which on another one loads the model, too
_MAX_REMEMBERED = 10_000  # models


class ModelRouter(MultiplexMixin, RequestRouter):
    """Sends the requests for a model to the replicas that have it.

    Ray's own router leaves a model on one replica until that is full, while others have nothing to do. This one lets
    another replica load the model as soon as all that have it are busy.
    """

    def initialize_state(self, *, busy: int = BUSY, **others: Any) -> None:
        """Take the settings of the deployment.

        Args:
            busy: From how many open requests on a replica is busy.
            **others: There are none.
        """
        self._busy = busy
        # Replicas say what they have with a delay, in which more requests for a new model may come.
        self._last: OrderedDict[str, ReplicaID] = OrderedDict()

    async def choose_replicas(
        self, candidate_replicas: Sequence[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return the replica to ask first, and those to ask if that one refuses."""
        present = list(candidate_replicas)
        if pending_request is None or not present:
            return [present]
        pending_request.routing_context.should_backoff = True
        model = pending_request.metadata.multiplexed_model_id
        chosen = self._best(present) if not model else self._choose(model, present)
        return [[chosen], present]

    def _choose(self, model: str, present: list[RunningReplica]) -> RunningReplica:
        having, fewest, _ = self.rank_replicas_via_multiplex(present, model)
        last = self._last.get(model)
        having += [each for each in present if each.replica_id == last and each not in having]
        best = self._best(having or fewest or present)
        # If all are busy, no model moves: loads would keep them busy.
        if having and self._open(best) >= self._busy > self._open(other := self._best(present)):
            best = other
        self._last[model] = best.replica_id
        self._last.move_to_end(model)
        if len(self._last) > _MAX_REMEMBERED:
            self._last.popitem(last=False)
        return best

    def _best(self, replicas: list[RunningReplica]) -> RunningReplica:
        """Return the one with the fewest open requests, any of several."""
        return min(replicas, key=lambda each: (self._open(each), random.random()))

    def _open(self, replica: RunningReplica) -> int:
        found: Any = self.replica_queue_len_cache.get(replica.replica_id)
        return found or 0
