"""Traces: no cost without an endpoint, real spans at a real receiver with one."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.testing import serving

PROBE = """
import asyncio, sys
from urllib.request import Request, urlopen
from fastapi import APIRouter
from shared.app import create_app
from shared.settings import Settings
from shared.telemetry import current_traceparent
from shared.testing import serving

class ProbeSettings(Settings):
    service = "items"
    port: int = 1

router = APIRouter()

@router.get("/trace")
async def trace() -> str | None:
    return current_traceparent()

async def main() -> None:
    app = create_app(ProbeSettings.load(), title="Probe", summary="A probe.", routers=(router,))
    async with serving(app) as url:  # urllib: the instrumented httpx would begin a trace of its own
        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        await asyncio.to_thread(lambda: urlopen(url + "/health").read())
        print(await asyncio.to_thread(lambda: urlopen(Request(url + "/trace", headers=headers)).read().decode()))
    print("opentelemetry.sdk" in sys.modules)

asyncio.run(main())
"""
INCOMING = "4bf92f3577b34da6a3ce929d0e0e4736"


async def _probe(**environment: str) -> list[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROBE,
        env={**os.environ, "LOG_LEVEL": "error", **environment},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    lines = [line.strip('"') for line in output.decode().splitlines()]
    return [line for line in lines if line.startswith(("00-", "True", "False"))]


async def test_without_an_endpoint_nothing_is_loaded_and_the_context_passes_on() -> None:
    traceparent, loaded = await _probe()

    assert traceparent == f"00-{INCOMING}-00f067aa0ba902b7-01"
    assert loaded == "False"


@asynccontextmanager
async def _receiver(bodies: list[bytes]) -> AsyncIterator[str]:
    async def traces(request: Request) -> Response:
        bodies.append(await request.body())
        return Response(b"", media_type="application/x-protobuf")

    async with serving(Starlette(routes=[Route("/v1/traces", traces, methods=["POST"])])) as url:
        yield url


@pytest.mark.parametrize("slash", ["", "/"])
async def test_with_an_endpoint_a_span_of_the_same_trace_arrives(slash: str) -> None:
    bodies: list[bytes] = []
    async with _receiver(bodies) as url:
        traceparent, loaded = await _probe(
            OTEL_EXPORTER_OTLP_ENDPOINT=url + slash, OTEL_EXPORTER_OTLP_COMPRESSION="none"
        )

    assert loaded == "True"
    version, trace_id, span_id, _ = traceparent.split("-")
    assert (version, trace_id) == ("00", INCOMING)
    received = b"".join(bodies)
    assert bytes.fromhex(trace_id) in received
    assert bytes.fromhex(span_id) in received
    assert b"tollhouse-items" in received
    assert b"GET /trace" in received
    assert b"/health" not in received
