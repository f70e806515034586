"""W3C Trace Context on the data path, and OpenTelemetry spans where an endpoint is set (shared.telemetry).

Without an endpoint a valid context passes as it came and a missing one is made; no OpenTelemetry package is imported.
"""

import re
from collections.abc import Iterator, Mapping
from os import urandom
from random import random
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

# Version 00 ends with the flags; of later versions the same beginning is read (W3C Trace Context, section 3.2.2).
_traceparent = re.compile(
    rb"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?"
).fullmatch

_NAME: Final = b"traceparent: "

Trace = tuple[bytes, bytes, "Span | None"]
"""The id of the trace that a request belongs to, the fields that tell the service, and its span if there are any."""


class Traces:
    """Continues or starts a trace for each request."""

    def __init__(self, ratio: float, provider: "TracerProvider | None" = None) -> None:
        """`ratio`: the share of the traces started here that are to be recorded; without a `provider` there are no spans."""
        self._new = _new_traces(ratio)
        self._tracer = provider.get_tracer("gateway") if provider is not None else None

    def begin(self, noted: Mapping[bytes, bytes], method: bytes, route: bytes) -> Trace:
        """Return the trace of a request whose noted fields are given.

        A context that is not valid counts as none, and its state with it.
        """
        given = noted.get(b"traceparent")
        if given is None and self._tracer is None:
            return next(self._new)
        match = _traceparent(given) if given is not None else None
        if match is None or (match[1] == b"00" and match[5] is not None):
            trace = next(self._new)
            if self._tracer is None:
                return trace
            match = _traceparent(trace[1].removeprefix(_NAME)[:-2])
            assert match is not None  # noqa: S101  # we have just made it
            state = None
        else:
            state = noted.get(b"tracestate")
        trace_id, parent_id, flags = match.group(2, 3, 4)
        span = None
        if self._tracer is not None:
            names = {"http.request.method": method.decode(), "http.route": route.decode()}
            span = _open_span(
                self._tracer, " ".join(names.values()), names, (trace_id, parent_id, flags), state
            )
            context = span.get_span_context()
            parent_id, flags = b"%016x" % context.span_id, b"%02x" % context.trace_flags
        lines = b"%b00-%b-%b-%b\r\n" % (_NAME, trace_id, parent_id, flags)
        if state is not None:
            lines += b"tracestate: %b\r\n" % state
        return trace_id, lines, span


def end_span(span: "Span", status: int) -> None:
    """Say that the request was answered with `status`, or with nothing (0)."""
    from opentelemetry.trace import StatusCode

    if status:
        span.set_attribute("http.response.status_code", status)
    if not status or status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


def _new_traces(ratio: float) -> Iterator[Trace]:
    """Yield traces that begin here. Their ids are made in blocks: one by one they cost 1 µs."""
    while True:
        block = urandom(24 * 256).hex().encode()
        for start in range(0, len(block), 48):
            trace_id = block[start : start + 32]
            recorded = ratio >= 1 or random() < ratio  # noqa: S311  # nobody gains by guessing it
            flags = b"01" if recorded else b"00"
            yield (
                trace_id,
                b"%b00-%b-%b-%b\r\n" % (_NAME, trace_id, block[start + 32 : start + 48], flags),
                None,
            )


def _open_span(
    tracer: "Tracer",
    name: str,
    attributes: dict[str, str],
    parent_ids: tuple[bytes, bytes, bytes],
    state: bytes | None,
) -> "Span":
    """Open the server span below a context, given as trace id, parent id and flags."""
    from opentelemetry.trace import (
        NonRecordingSpan,
        SpanContext,
        SpanKind,
        TraceFlags,
        TraceState,
        set_span_in_context,
    )

    trace_id, parent_id, flags = (int(number, 16) for number in parent_ids)
    parent = SpanContext(
        trace_id,
        parent_id,
        is_remote=True,
        trace_flags=TraceFlags(flags),
        trace_state=TraceState.from_header([state.decode("latin-1")]) if state is not None else None,
    )
    return tracer.start_span(
        name,
        context=set_span_in_context(NonRecordingSpan(parent)),
        kind=SpanKind.SERVER,
        attributes=attributes,
    )
