"""What all requests and WebSockets of a process share."""

import asyncio
from collections.abc import Callable, Coroutine
from email.utils import formatdate
from time import time
from typing import Any

from gateway.accesslog import AccessLog
from gateway.cors import Cors
from gateway.meters import Meters
from gateway.proxies import TrustedProxies
from gateway.routes import Routes
from gateway.tracing import Traces
from gateway.upstream import Upstream
from shared.errors import InternalError, Problem
from shared.logs import get_logger
from shared.tokens import Principal, TokenVerifier
from shared.wire import Headers, RequestHead

log = get_logger(__name__)


def _unknown(_path: bytes) -> None:
    """Know no path's methods."""


class Proxy:
    """What all exchanges of a process share."""

    def __init__(
        self,
        routes: Routes,
        upstreams: dict[str, Upstream],
        verifier: TokenVerifier,
        *,
        cors: Cors,
        headers: Headers,
        access_log: AccessLog,
        meters: Meters,
        traces: Traces,
        trusted_proxies: TrustedProxies,
        allow_of: Callable[[bytes], str | None] = _unknown,
    ) -> None:
        self.routes = routes
        self.upstreams = upstreams
        self.verifier = verifier
        self.cors = cors
        self.trusted_proxies = trusted_proxies
        self.access_log = access_log
        self.meters = meters
        self.traces = traces
        self.own_headers = headers
        """Fields of every response."""
        self.allow_of = allow_of
        """Tells the methods of a path, as an Allow field, where a service's document does."""
        self.own_lines = b"".join(b"%b: %b\r\n" % field for field in headers)
        self._date = b""
        self._date_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def date_line(self) -> bytes:
        """Return a Date field, which a proxy adds where the service did not (RFC 9110 section 6.6.1)."""
        now = time()
        if now >= self._date_until:
            self._date = b"date: %b\r\n" % formatdate(now, usegmt=True).encode()
            self._date_until = now // 1 + 1
        return self._date

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run what cannot be done in a callback; the proxy owns it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def verified(self, token: str) -> Principal:
        """Return whose token it is, of one that is not in the cache.

        Raises:
            InvalidToken: anything is wrong with it.
            KeysUnavailable: its issuer's keys are not known yet.
            InternalError: we failed; the log says how.
        """
        try:
            principal = await self.verifier.verify(token)
        except Problem:
            self.meters.token_checked(good=False)
            raise
        except Exception as error:
            # Whoever waits for the verdict must get one, whatever happens.
            log.exception("token.unjudged")
            raise InternalError from error
        self.meters.token_checked(good=True)
        return principal

    def headers_for(self, head: RequestHead) -> Headers:
        """Return the fields of a response that FastAPI makes."""
        lines = self.cors.lines(head.noted.get(b"origin")).splitlines()
        return [
            *self.own_headers,
            *((name, value) for name, _, value in (line.partition(b": ") for line in lines)),
        ]

    async def aclose(self) -> None:
        """Cancel what is under way and close the pools."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for upstream in self.upstreams.values():
            await upstream.aclose()
        self.access_log.flush()
