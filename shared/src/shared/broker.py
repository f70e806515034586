"""The connection of one process to NATS: made in the background, kept for ever, never waited for at start."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from shared.logs import get_logger
from shared.settings import Settings
from shared.tasks import end, stop_if_failed

log = get_logger(__name__)

RECONNECT_WAIT = 0.5
"""Seconds between two attempts to connect."""
PING_INTERVAL = 5
MAX_OUTSTANDING_PINGS = 2
CONNECT_TIMEOUT = 3
REQUEST_TIMEOUT = 5.0
DRAIN_TIMEOUT = 3.0


class Broker:
    """NATS and JetStream. Without NATS the process serves on; whoever needs it waits for `connected`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._user = settings.nats_user or settings.service
        self._client = Client()
        self._connecting: asyncio.Task[None] | None = None
        self.connected = asyncio.Event()
        self.js: JetStreamContext = self._client.jetstream(timeout=REQUEST_TIMEOUT)

    async def __aenter__(self) -> Self:
        self.connect()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def client(self) -> Client:
        """The connection itself, for core NATS."""
        return self._client

    def connect(self) -> None:
        """Start connecting in the background."""
        self._connecting = asyncio.create_task(self._connect(), name="nats-connect")
        self._connecting.add_done_callback(stop_if_failed)

    async def _connect(self) -> None:
        await self._client.connect(
            servers=[server.strip() for server in self._settings.nats_url.split(",")],
            name=f"tollhouse-{self._settings.service}",
            user=self._user,
            password=self._settings.nats_password.get_secret_value(),
            # Each user has a reply subject of its own, so that no service can read another's replies.
            inbox_prefix=f"_INBOX_{self._user}",
            max_reconnect_attempts=-1,
            reconnect_time_wait=RECONNECT_WAIT,  # type: ignore[arg-type]  # any number of seconds works
            connect_timeout=CONNECT_TIMEOUT,
            ping_interval=PING_INTERVAL,
            max_outstanding_pings=MAX_OUTSTANDING_PINGS,
            drain_timeout=DRAIN_TIMEOUT,  # type: ignore[arg-type]
            error_cb=self._on_error,
            disconnected_cb=self._on_disconnected,
            reconnected_cb=self._on_connected,
        )
        await self._on_connected()

    async def close(self) -> None:
        """Stop connecting, or flush and close the connection."""
        if self._connecting is not None:
            await end(self._connecting)
        if self.connected.is_set():
            self.connected.clear()
            with suppress(Exception):  # NATS may go away just now: then there is nothing to flush to
                async with asyncio.timeout(DRAIN_TIMEOUT):
                    await self._client.flush()
        await self._client.close()

    async def publish(self, subject: str, payload: bytes = b"") -> None:
        """Publish on core NATS if there is a connection; a hint that may be lost, never the only way."""
        if self.connected.is_set():
            await self._client.publish(subject, payload)

    async def on_message(self, subject: str, notice: Callable[[], None]) -> None:
        """Call `notice` at each message on `subject`, once connected and for as long as the connection lives."""
        await self.connected.wait()

        async def receive(_message: Msg) -> None:
            notice()

        await self._client.subscribe(subject, cb=receive)

    async def _on_connected(self) -> None:
        self.connected.set()
        log.info("nats.connected")

    async def _on_disconnected(self) -> None:
        if self.connected.is_set():
            self.connected.clear()
            log.warning("nats.disconnected")

    async def _on_error(self, error: Exception) -> None:
        log.warning("nats.error", error=str(error) or type(error).__name__)
