"""The connections to one service: how many there may be, who gets which, who waits and for how long."""

import asyncio
import math
from collections import deque
from typing import Final
from urllib.parse import urlsplit

from gateway.addresses import Addresses, Resolve, resolve
from gateway.connection import Consumer, UpstreamConnection
from gateway.errors import UpstreamOverloaded, UpstreamUnavailable
from gateway.resilience import Breaker, RetryBudget
from gateway.routes import UpstreamSettings
from shared.deadlines import NEVER, Sweep
from shared.logs import get_logger

log = get_logger(__name__)

CONNECT_ATTEMPTS: Final = 2
"""Addresses that are tried for one connection, if there are several."""


class Upstream:
    """A service: its pool of connections and the bounded queue before it."""

    def __init__(
        self,
        name: str,
        settings: UpstreamSettings,
        loop: asyncio.AbstractEventLoop,
        *,
        resolve: Resolve = resolve,
    ) -> None:
        url = urlsplit(settings.url)
        self.name = name
        self.settings = settings
        self.loop = loop
        self.port = url.port or 80
        self.addresses = Addresses(url.hostname or "", self.port, resolve=resolve)
        self.authority = url.netloc.encode()
        self.host_line = b" HTTP/1.1\r\nhost: %b\r\n" % self.authority
        """What stands between a request's target and its other fields."""
        self.sweep = Sweep(loop)
        self.deadline = NEVER
        """When the request that has waited longest for a connection has waited too long."""
        self.tunnels = 0
        """WebSockets that are open or being opened."""
        self.breaker = Breaker(
            settings.breaker_failures, settings.breaker_open, settings.breaker_open_longest
        )
        self.retries = RetryBudget()
        self._idle: deque[UpstreamConnection] = deque()
        self._connections: set[UpstreamConnection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._waiting: deque[tuple[float, Consumer]] = deque()
        self.closed = False
        self.connects = 0
        """Connections made so far, tunnels' too."""

    @property
    def idle(self) -> int:
        """Connections that nobody uses."""
        return len(self._idle)

    @property
    def connections(self) -> int:
        """Connections that exist or are being made."""
        return len(self._connections)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection."""
        return len(self._waiting)

    def acquire(self, consumer: Consumer, *, fresh: bool = False) -> None:
        """Call `consumer.connected` with a connection, now or later, or `consumer.failed`.

        `fresh`: not one that was used before, because such a one has just turned out to be closed.
        """
        now = self.loop.time()
        if self.breaker.is_open and not self.breaker.admits(now):
            wait = self.breaker.retry_after(now)
            detail = f"The service {self.name} has not answered lately."
            consumer.failed(UpstreamUnavailable(detail, retry_after=math.ceil(wait)), unseen=False)
            return
        if not fresh:
            self.retries.deposit()
        while self._idle and not fresh:
            # The one used last, so that what a quiet time does not need grows old. Where there are several
            # replicas, the one unused longest, so that all get their share.
            connection = self._idle.popleft() if self.addresses.several else self._idle.pop()
            if connection.usable(now):
                consumer.connected(connection)
                return
            connection.close()
        if self.connections < self.settings.max_connections or self._retire_idle():
            self._connect(consumer)
        elif len(self._waiting) < self.settings.max_queue:
            self._waiting.append((now + self.settings.queue_timeout, consumer))
            self._watch_queue()
        else:
            consumer.failed(UpstreamOverloaded(), unseen=False)

    def withdraw(self, consumer: Consumer) -> None:
        """`consumer` waits no longer, if it did."""
        if not self._waiting:
            return
        self._waiting = deque(entry for entry in self._waiting if entry[1] is not consumer)
        self._watch_queue()

    async def connect(self, protocol: asyncio.BaseProtocol) -> str:
        """Connect `protocol` to the service, outside of the pool; return the address.

        Raises:
            UpstreamUnavailable: it cannot be reached.
        """
        reason: OSError | None = None
        for _ in range(CONNECT_ATTEMPTS):
            address = ""
            try:
                async with asyncio.timeout(self.settings.connect_timeout):
                    address = await self.addresses.take(self.loop.time())
                    await self.loop.create_connection(lambda: protocol, address, self.port)
                    self.connects += 1
                    return address
            except OSError as error:
                reason = error
                if isinstance(error, TimeoutError):
                    self.breaker.failed(self.loop.time())
                if address:
                    self.addresses.avoid(address, self.loop.time())
            if not self.addresses.several:
                break
        log.warning("upstream.unreachable", upstream=self.name, error=str(reason) or type(reason).__name__)
        raise UpstreamUnavailable(f"The service {self.name} cannot be reached.") from reason

    async def aclose(self) -> None:
        """Close every connection."""
        self.closed = True
        connecting = list(self._connecting)
        for task in connecting:
            task.cancel()
        await asyncio.gather(*connecting, return_exceptions=True)
        for connection in list(self._connections):
            connection.close()
        for _, consumer in self._waiting:
            consumer.failed(UpstreamUnavailable(), unseen=False)
        self._waiting.clear()
        self._watch_queue()

    def expire(self, now: float) -> None:
        """Refuse those who have waited too long."""
        while self._waiting and self._waiting[0][0] <= now:
            self._waiting.popleft()[1].failed(UpstreamOverloaded(), unseen=False)
        self._watch_queue()

    def _watch_queue(self) -> None:
        if self._waiting:
            self.deadline = self._waiting[0][0]
            self.sweep.add(self)
        else:
            self.deadline = NEVER
            self.sweep.discard(self)

    def _retire_idle(self) -> bool:
        if not self._idle:
            return False
        self._idle.popleft().close()  # the one unused longest
        return True

    def _connect(self, consumer: Consumer) -> None:
        connection = UpstreamConnection(self)
        self._connections.add(connection)  # it takes a place from now on
        task = self.loop.create_task(self._open(connection, consumer), name=f"connect-{self.name}")
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _open(self, connection: UpstreamConnection, consumer: Consumer) -> None:
        try:
            connection.address = await self.connect(connection)
        except asyncio.CancelledError:
            self._connections.discard(connection)
            raise
        except UpstreamUnavailable as problem:
            self._connections.discard(connection)
            consumer.failed(problem, unseen=False)
            self._serve_waiting()
        else:
            self.sweep.add(connection)
            consumer.connected(connection)

    # Called by connections

    def lost(self, connection: UpstreamConnection) -> None:
        """A connection is no more."""
        self.sweep.discard(connection)
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._serve_waiting()

    def released(self, connection: UpstreamConnection) -> None:
        """A connection can serve again, if it is still good (who takes it from the idle ones looks, too)."""
        if not self._waiting:
            self._idle.append(connection)
        elif connection.usable(self.loop.time()):
            _, consumer = self._waiting.popleft()
            self._watch_queue()
            consumer.connected(connection)
        else:
            connection.close()

    def _serve_waiting(self) -> None:
        if self._waiting and not self.closed and self.connections < self.settings.max_connections:
            _, consumer = self._waiting.popleft()
            self._watch_queue()
            self._connect(consumer)
