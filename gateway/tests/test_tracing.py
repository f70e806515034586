"""W3C Trace Context through the gateway, and its spans."""

import re
from contextlib import AsyncExitStack
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.testing import Gateway, GatewayFactory, Peer
from gateway.tracing import Traces
from shared.testing import eventually, serving
from shared.testing_wire import RawConnection

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"


def get(*fields: str) -> bytes:
    return "\r\n".join(["GET /open/x HTTP/1.1", "Host: a", *fields, "", ""]).encode()


async def forwarded(gateway: Gateway, raw: RawConnection, *fields: str) -> tuple[str | None, str | None]:
    """Send a request and return the trace context that the service got."""
    await raw.send(get(*fields))
    assert (await raw.response()).status == 200
    received = gateway.upstream.requests[-1]
    return received.field("traceparent"), received.field("tracestate")


@pytest.mark.parametrize("flags", ["00", "01", "03"])
async def test_valid_context_passes_as_it_came(gateway: Gateway, raw: RawConnection, flags: str) -> None:
    parent = f"{PARENT[:-2]}{flags}"
    fields = (f"traceparent: {parent}", "tracestate: a=1", "TraceState: b=2")
    assert await forwarded(gateway, raw, *fields) == (parent, "a=1,b=2")


async def test_context_of_a_later_version_is_read_as_far_as_it_is_known(
    gateway: Gateway, raw: RawConnection
) -> None:
    later = f"cc{PARENT[2:]}-what-comes-later"
    assert await forwarded(gateway, raw, f"traceparent: {later}") == (PARENT, None)


@pytest.mark.parametrize(
    "fields",
    [
        (),
        (f"traceparent: {PARENT.upper()}",),
        (f"traceparent: ff{PARENT[2:]}",),
        (f"traceparent: {PARENT}-more",),
        (f"traceparent: 00-{'0' * 32}-b7ad6b7169203331-01",),
        (f"traceparent: 00-{TRACE_ID}-{'0' * 16}-01",),
        (f"traceparent: {PARENT[:-1]}",),
        (f"traceparent: {PARENT}", f"traceparent: {PARENT}"),
        ("traceparent: ",),
    ],
)
async def test_context_that_is_not_valid_is_replaced_and_its_state_dropped(
    gateway: Gateway, raw: RawConnection, fields: tuple[str, ...]
) -> None:
    parent, state = await forwarded(gateway, raw, *fields, "tracestate: a=1")
    assert parent is not None
    assert re.fullmatch("00-[0-9a-f]{32}-[0-9a-f]{16}-01", parent)
    assert TRACE_ID not in parent
    assert state is None
    assert (await forwarded(gateway, raw, *fields))[0] != parent


async def test_whether_new_traces_are_recorded_is_a_setting(start: GatewayFactory) -> None:
    gateway = await start(trace_ratio=0.0)
    async with gateway.connect() as raw:
        parent, _ = await forwarded(gateway, raw)
        assert parent is not None
        assert parent.endswith("-00")
        assert (await forwarded(gateway, raw, f"traceparent: {PARENT}"))[0] == PARENT


async def test_tunnels_pass_the_context_on(start: GatewayFactory) -> None:
    gateway = await start()
    handshake = (
        "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: eA==\r\n"
        f"Sec-WebSocket-Version: 13\r\ntraceparent: {PARENT}\r\n\r\n"
    )
    async with gateway.connect() as raw:
        await raw.send(handshake.encode())
        assert (await raw.response()).status == 200
    assert gateway.upstream.requests[-1].field("traceparent") == PARENT


async def test_access_log_names_the_trace(gateway: Gateway, raw: RawConnection) -> None:
    lines: list[dict[str, Any]] = []

    def request(event: bytes, **fields: Any) -> None:
        lines.append({"event": event, **fields})

    gateway.app.state.proxy.access_log.request = request
    await forwarded(gateway, raw, f"traceparent: {PARENT}")
    assert lines[0]["trace_id"] == TRACE_ID.encode()


async def answers_500(peer: Peer) -> None:
    while True:
        await peer.request()
        await peer.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")


async def test_spans_continue_the_clients_trace_and_the_service_continues_theirs(
    start: GatewayFactory,
) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    gateway = await start(answers_500)
    gateway.app.state.proxy.traces = Traces(1.0, provider)
    async with gateway.connect() as raw:
        await raw.send(get(f"traceparent: {PARENT}", "tracestate: a=1"))
        assert (await raw.response()).status == 500
    (span,) = await eventually(exporter.get_finished_spans)
    assert (span.name, span.kind, span.status.status_code) == ("GET /open", SpanKind.SERVER, StatusCode.ERROR)
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert dict(span.attributes or {}) == {
        "http.request.method": "GET",
        "http.route": "/open",
        "http.response.status_code": 500,
    }
    received = gateway.upstream.requests[-1]
    assert received.field("traceparent") == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"
    assert received.field("tracestate") == "a=1"
    provider.shutdown()


async def test_spans_are_exported_where_an_endpoint_is_set(
    start: GatewayFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    posted = b""

    async def collect(request: Request) -> Response:
        nonlocal posted
        posted += await request.body()
        return Response(b"", media_type="application/x-protobuf")

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
    async with AsyncExitStack() as stack:
        collector = Starlette(routes=[Route("/v1/traces", collect, methods=["POST"])])
        url = await stack.enter_async_context(serving(collector))
        gateway = await start(stack=stack, otel_exporter_otlp_endpoint=url)
        async with gateway.connect() as raw:
            await forwarded(gateway, raw, f"traceparent: {PARENT}")
    # At the latest when the process ends; the same provider exports what FastAPI served.
    assert b"GET /open" in posted
    assert bytes.fromhex(TRACE_ID) in posted
    assert b"tollhouse-gateway" in posted
