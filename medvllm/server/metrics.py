"""`GET /metrics`: counts of requests, and the models in memory, as Prometheus reads them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from medvllm.server.context import ServerOf
from medvllm.server.receipts import hide_paths

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from medvllm.model_registry import ModelRegistry

router = APIRouter(tags=["Operation"])

_MAX_MODELS = 1000  # names of models among the labels; the others are counted together
_COUNTS = {
    "hits": "Requests that found their model in memory.",
    "misses": "Requests that began a load.",
    "shared_waits": "Requests that waited for a load of another one.",
    "loads": "Loads that succeeded.",
    "failed_loads": "Loads that failed.",
    "reloads": "Loads of models that had just been evicted.",
}
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The metrics of one server. Labels are patterns of routes, and names of entries.

    Args:
        registry: The models.
    """

    def __init__(self, registry: "ModelRegistry") -> None:
        self.collectors = CollectorRegistry()
        self._requests = Counter(
            "medvllm_requests", "Requests by route.", ("method", "route", "status"), registry=self.collectors
        )
        self._seconds = Histogram(
            "medvllm_request_seconds",
            "Seconds until an answer was complete.",
            ("route",),
            registry=self.collectors,
            buckets=_BUCKETS,
        )
        self._of_models = Counter(
            "medvllm_model_requests", "Requests by entry.", ("model", "status"), registry=self.collectors
        )
        self._open = Gauge("medvllm_open_requests", "Requests without a complete answer.", registry=self.collectors)
        self._models: set[str] = set()
        ProcessCollector(registry=self.collectors)  # its memory, CPU time and files
        self.collectors.register(_Memory(registry))

    def open(self) -> AbstractContextManager[object]:
        """Return a context manager for the time in which a request is open."""
        return self._open.track_inprogress()

    def note(self, method: str, route: str, status: int, model: str | None, seconds: float) -> None:
        """Count a request that is over."""
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)
        if model is not None:
            if len(self._models) < _MAX_MODELS:
                self._models.add(model)
            self._of_models.labels(model if model in self._models else "other", str(status)).inc()


class _Memory(Collector):
    """What is in memory, read from the registry when somebody asks."""

    def __init__(self, registry: "ModelRegistry") -> None:
        self._registry = registry

    def describe(self) -> "Iterator[Metric]":
        return iter(())

    def collect(self) -> "Iterator[Metric]":
        size = GaugeMetricFamily("medvllm_model_bytes", "Bytes of a model in memory.", labels=("model", "device"))
        leases = GaugeMetricFamily("medvllm_model_leases", "Calls that use a model now.", labels=("model", "device"))
        totals: dict[tuple[str, str], tuple[int, int]] = {}
        for model in self._registry.loaded_models():
            one = hide_paths(model.name), model.device
            bytes_, count = totals.get(one, (0, 0))
            totals[one] = bytes_ + model.size_bytes, count + model.leases
        for one, (bytes_, count) in totals.items():
            size.add_metric(one, bytes_)
            leases.add_metric(one, count)
        yield from (size, leases)
        statistics = self._registry.statistics()
        for name, help in _COUNTS.items():
            yield CounterMetricFamily(f"medvllm_cache_{name}", help, value=getattr(statistics, name))
        evictions = CounterMetricFamily("medvllm_cache_evictions", "Evictions by reason.", labels=("reason",))
        for reason, number in statistics.evictions.items():
            evictions.add_metric((reason,), number)
        used = GaugeMetricFamily("medvllm_memory_bytes", "Bytes of models.", labels=("device", "kind"))
        budget = GaugeMetricFamily("medvllm_memory_budget_bytes", "The budget for models.", labels=("device",))
        for device, use in statistics.devices.items():
            for kind in ("cached", "held", "reserved"):
                used.add_metric((device, kind), getattr(use, f"{kind}_bytes"))
            if use.budget_bytes is not None:
                budget.add_metric((device,), use.budget_bytes)
        waiting = GaugeMetricFamily("medvllm_waiting_loads", "Loads that wait for memory.", value=statistics.waiting)
        yield from (evictions, used, budget, waiting)


@router.get("/metrics", response_class=PlainTextResponse)
async def read_metrics(http: Request, server: ServerOf) -> Response:
    """Return the metrics as text."""
    metrics: Metrics = http.app.state.metrics
    text = await server.look(http, lambda: generate_latest(metrics.collectors))
    return Response(text, media_type=CONTENT_TYPE_LATEST)
