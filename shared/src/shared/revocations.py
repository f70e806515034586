"""Sessions that ended before their tokens did (SECURITY T6).

Tokens stay stateless: users publishes the ids of revoked sessions, every process that verifies tokens keeps them in
memory until the tokens would have expired anyway. A reader replays the stream when it starts and after every break, so a
process that was away knows at once. While NATS is away, revocation fails open: what is known stays refused.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import time

import httpx
from nats.errors import Error as NATSError
from pydantic import BaseModel, ConfigDict, ValidationError

from shared.broker import Broker
from shared.events import Envelope
from shared.logs import get_logger
from shared.pull import following
from shared.settings import Settings
from shared.streams import EVENTS, REVOCATIONS, ensure
from shared.tasks import running
from shared.tokens import TokenVerifier, issuers

log = get_logger(__name__)

MAX_SESSIONS = 1_000_000
"""Revoked sessions kept in memory; beyond it the oldest are forgotten, and the log says so."""
BATCH = 500
RETRY_INTERVAL = 0.5


class RevokedSession(BaseModel):
    """What is read of `users.session.revoked.v1`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    session_id: str
    tokens_expire_at: int
    """Unix time in seconds after which no token of the session can be valid."""


class Revocations:
    """The revoked sessions that this process knows of."""

    def __init__(self) -> None:
        self._sessions: set[str] = set()
        self._by_expiry: deque[tuple[int, str]] = deque()
        self._listeners: list[Callable[[str], None]] = []

    def __contains__(self, session_id: object) -> bool:
        return session_id in self._sessions

    def __len__(self) -> int:
        return len(self._sessions)

    def on_revoked(self, listener: Callable[[str], None]) -> None:
        """Call `listener` with each session that is revoked from now on, to end what it has open."""
        self._listeners.append(listener)

    def add(self, revoked: RevokedSession) -> None:
        """Refuse a session's tokens from now on."""
        now = time()
        while self._by_expiry and (self._by_expiry[0][0] <= now or len(self._by_expiry) >= MAX_SESSIONS):
            expires_at, forgotten = self._by_expiry.popleft()
            self._sessions.discard(forgotten)
            if expires_at > now:
                log.error("revocations.full", kept=MAX_SESSIONS)
        if revoked.tokens_expire_at <= now or revoked.session_id in self._sessions:
            return
        self._sessions.add(revoked.session_id)
        self._by_expiry.append((revoked.tokens_expire_at, revoked.session_id))
        for listener in self._listeners:
            listener(revoked.session_id)


class RevocationReader:
    """Keeps Revocations up to date from NATS."""

    def __init__(self, broker: Broker, revocations: Revocations) -> None:
        self._broker = broker
        self._revocations = revocations
        self.caught_up = asyncio.Event()
        """Set while everything that was published is known; cleared while NATS is away."""

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            await self._broker.connected.wait()
            try:
                await self._follow()
            except (NATSError, OSError, TimeoutError) as error:
                self.caught_up.clear()
                log.warning("revocations.interrupted", error=str(error) or type(error).__name__)
                await asyncio.sleep(RETRY_INTERVAL)

    async def _follow(self) -> None:
        await ensure(self._broker.js, EVENTS)
        await ensure(self._broker.js, REVOCATIONS)
        # From the beginning each time: to add what is known already changes nothing.
        async with following(self._broker, REVOCATIONS, start=1, batch=BATCH) as (messages, pending):
            if not pending:
                self.caught_up.set()
            async for message in messages:
                self._read(message.data)
                if message.metadata.num_pending == 0:
                    self.caught_up.set()

    def _read(self, payload: bytes) -> None:
        try:
            self._revocations.add(RevokedSession.model_validate(Envelope.model_validate_json(payload).data))
        except ValidationError as error:
            log.warning("revocations.unreadable", errors=error.error_count())


@asynccontextmanager
async def verifying(
    settings: Settings, broker: Broker, *, http: httpx.AsyncClient | None = None
) -> AsyncIterator[tuple[TokenVerifier, Revocations, RevocationReader]]:
    """Open a verifier that knows keys and revocations and keeps both fresh while the block runs."""
    revocations = Revocations()
    reader = RevocationReader(broker, revocations)
    async with (
        TokenVerifier(issuers(settings), http=http, revoked=revocations) as verifier,
        running(reader.run()),
    ):
        yield verifier, revocations, reader
