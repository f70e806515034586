"""Trace context, always passed on; OpenTelemetry spans, when an OTLP endpoint is set.

Without an endpoint no OpenTelemetry package is imported by us and nothing is wrapped.
"""

import re
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self

from fastapi import FastAPI

from shared.settings import DatabaseSettings, Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_incoming: ContextVar[str | None] = ContextVar("traceparent", default=None)
_traceparent = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}").fullmatch


def remember(headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Keep the request's `traceparent` (W3C Trace Context, version 00), so that its events can carry it."""
    for name, value in headers:
        if name == b"traceparent" and _traceparent(value):
            _incoming.set(value.decode())
            return
    _incoming.set(None)


def current_traceparent() -> str | None:
    """Return the trace context to pass on: the active span's, else the one that came in."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is not None:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            return f"00-{span.trace_id:032x}-{span.span_id:016x}-{span.trace_flags:02x}"
    return _incoming.get()


class Tracer:
    """Traces one service: its requests, its outgoing httpx calls and its SQL, exported over OTLP/HTTP."""

    def __init__(self, provider: "TracerProvider", *, sql: bool) -> None:
        self._sql = sql
        self.provider = provider
        """Where whoever traces more than `instrument` does gets a tracer."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self | None:
        """Return a tracer, or None when no endpoint is set."""
        if settings.otel_exporter_otlp_endpoint is None:
            return None
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        endpoint = settings.otel_exporter_otlp_endpoint.rstrip("/") + "/v1/traces"
        provider = TracerProvider(resource=Resource.create({"service.name": f"tollhouse-{settings.service}"}))
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
        return cls(provider, sql=isinstance(settings, DatabaseSettings))

    def instrument(self, app: FastAPI) -> None:
        """Wrap `app` and the clients it uses. Health probes are not traced."""
        from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
        from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor

        FastAPIInstrumentor.instrument_app(
            app,
            tracer_provider=self.provider,
            excluded_urls="/health",
            exclude_spans=["send", "receive"],
        )
        HTTPXClientInstrumentor().instrument(tracer_provider=self.provider)
        if self._sql:
            from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor

            PsycopgInstrumentor().instrument(tracer_provider=self.provider)

    def close(self) -> None:
        """Export what is left and stop."""
        self.provider.shutdown()
