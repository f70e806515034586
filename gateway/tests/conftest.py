"""A gateway on a real socket, before a service that does exactly what a test says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import uvloop

from gateway.testing import Gateway, GatewayFactory
from shared.testing import TokenIssuer
from shared.testing_wire import RawConnection


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The gateway runs on uvloop; its transports differ from asyncio's where it hurts."""
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def issuer() -> AsyncIterator[TokenIssuer]:
    async with TokenIssuer().serving() as issuer:
        yield issuer


@pytest.fixture
async def start(tmp_path: Path, issuer: TokenIssuer) -> AsyncIterator[GatewayFactory]:
    async with AsyncExitStack() as stack:
        yield GatewayFactory(tmp_path, stack, issuer)


@pytest.fixture
async def gateway(start: GatewayFactory) -> Gateway:
    """A gateway whose service answers 200."""
    return await start()


@pytest.fixture
async def raw(gateway: Gateway) -> AsyncIterator[RawConnection]:
    async with gateway.connect() as raw:
        yield raw
