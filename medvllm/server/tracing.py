"""OpenTelemetry: a span for each request, if an endpoint is configured as OpenTelemetry's own variables say."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from medvllm.errors import MissingDependencyError

if TYPE_CHECKING:
    from opentelemetry.trace import Span, TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class Tracing:
    """Makes spans. They have the route, the status and the entry of a request, and no text of it.

    Args:
        provider: Where the spans go.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        self._tracer = provider.get_tracer("medvllm")

    def span(self, method: str, headers: Mapping[str, str]) -> "AbstractContextManager[Span]":
        """Return the span of a request, as a child of the client's own one."""
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # An exception may have a text in its message, so it is not recorded.
        return self._tracer.start_as_current_span(
            method,
            TraceContextTextMapPropagator().extract(dict(headers)),
            SpanKind.SERVER,
            record_exception=False,
            set_status_on_exception=False,
        )

    def note(self, span: "Span", method: str, route: str, status: int, model: str | None) -> None:
        """Say how a request ended."""
        from opentelemetry.trace import Status, StatusCode

        span.update_name(f"{method} {route}")
        span.set_attributes({"http.request.method": method, "http.route": route, "http.response.status_code": status})
        if model is not None:
            span.set_attribute("medvllm.model", model)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))


def tracing_of_environment() -> Tracing | None:
    """Return where the environment says that spans go; None if it does not.

    Raises:
        MissingDependencyError: It does, and OpenTelemetry is not installed.
    """
    stated = next((name for name in _ENDPOINTS if os.environ.get(name)), None)
    if stated is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.resources import Resource  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.trace import TracerProvider  # pyright: ignore[reportMissingImports]
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise MissingDependencyError(
            f"{stated} is set, and the packages that send traces are not installed.\n"
            "Install them: pip install 'medvllm[tracing]'",
            package="opentelemetry-sdk",
        ) from error
    provider = TracerProvider(resource=Resource.create({"service.name": "medvllm"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)
