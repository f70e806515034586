"""A revoked session's tokens are refused everywhere, also by whoever was away when it was revoked."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import time
from typing import ClassVar

import pytest

from shared import revocations as module
from shared.broker import Broker
from shared.errors import InvalidToken
from shared.events import Event, encode
from shared.revocations import RevocationReader, Revocations, RevokedSession, verifying
from shared.settings import Settings
from shared.streams import EVENTS, ensure
from shared.testing import TokenIssuer, eventually
from shared.tokens import TokenVerifier
from stack.testing import NATSServer


class _Settings(Settings):
    service: ClassVar[str] = "users"

    port: int = 1


class SessionRevoked(Event):
    type: ClassVar[str] = "users.session.revoked.v1"

    session_id: str
    tokens_expire_at: int

    def aggregate_id(self) -> str:
        return self.session_id

    def aggregate_version(self) -> int:
        return 1


async def publish(nats_server: NATSServer, session_id: str) -> None:
    """Publish a revocation as users does."""
    outgoing = encode(SessionRevoked(session_id=session_id, tokens_expire_at=int(time()) + 600))
    async with Broker(_Settings(**nats_server.settings("users"))) as broker:
        await broker.connected.wait()
        await ensure(broker.js, EVENTS)
        await broker.js.publish(outgoing.subject, outgoing.payload)


@asynccontextmanager
async def verifier_of(
    nats_server: NATSServer, issuer: TokenIssuer, user: str = "items"
) -> AsyncIterator[tuple[TokenVerifier, Revocations, RevocationReader]]:
    settings = _Settings(token_issuer=issuer.issuer, jwks_url=issuer.jwks_url, **nats_server.settings(user))
    async with Broker(settings) as broker, verifying(settings, broker) as opened:
        yield opened


@pytest.mark.integration
@pytest.mark.parametrize("user", ["gateway", "users", "items", "notifications"])
async def test_a_token_that_was_accepted_is_refused_once_its_session_is_revoked(
    nats_server: NATSServer, token_issuer: TokenIssuer, user: str
) -> None:
    async with verifier_of(nats_server, token_issuer, user) as (verifier, _, _):
        token = token_issuer.token(1, sid="the-session")
        other = token_issuer.token(1, sid="another-session")
        await verifier.verify(token)
        await verifier.verify(other)

        await publish(nats_server, "the-session")
        await eventually(lambda: verifier.cached(token) is None)

        with pytest.raises(InvalidToken, match="ended"):
            await verifier.verify(token)
        assert verifier.cached(other) is not None


@pytest.mark.integration
async def test_a_verifier_that_starts_later_knows_too(
    nats_server: NATSServer, token_issuer: TokenIssuer
) -> None:
    await publish(nats_server, "the-session")

    async with verifier_of(nats_server, token_issuer) as (verifier, known, _):
        await eventually(lambda: "the-session" in known)
        with pytest.raises(InvalidToken, match="ended"):
            await verifier.verify(token_issuer.token(1, sid="the-session"))


@pytest.mark.integration
async def test_without_nats_what_is_known_stays_refused_and_the_rest_follows(
    nats_server: NATSServer, token_issuer: TokenIssuer
) -> None:
    async with verifier_of(nats_server, token_issuer) as (verifier, known, reader):
        await publish(nats_server, "before")
        await eventually(lambda: "before" in known)

        nats_server.stop(signal.SIGKILL)
        await eventually(lambda: not reader.caught_up.is_set())
        with pytest.raises(InvalidToken):
            await verifier.verify(token_issuer.token(1, sid="before"))
        assert await verifier.verify(token_issuer.token(1, sid="after"))

        nats_server.start()
        await publish(nats_server, "after")
        await eventually(lambda: "after" in known)


def revoked(session_id: str, expires_in: int = 600) -> RevokedSession:
    return RevokedSession(session_id=session_id, tokens_expire_at=int(time()) + expires_in)


def test_sessions_are_forgotten_when_their_tokens_have_expired(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Revocations()
    known.add(revoked("old", 10))
    known.add(revoked("expired already", -1))
    assert "expired already" not in known

    now = time()
    monkeypatch.setattr(module, "time", lambda: now + 11)
    known.add(revoked("new"))

    assert "old" not in known
    assert "new" in known


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_SESSIONS", 3)
    known = Revocations()
    for number in range(10):
        known.add(revoked(str(number)))

    assert len(known) == 3
    assert "9" in known


def test_listeners_hear_each_session_once() -> None:
    known = Revocations()
    heard: list[str] = []
    known.on_revoked(heard.append)

    known.add(revoked("one"))
    known.add(revoked("one"))
    known.add(revoked("two"))

    assert heard == ["one", "two"]


async def test_an_unreadable_message_is_passed_over() -> None:
    known = Revocations()
    reader = RevocationReader(Broker(_Settings()), known)

    reader._read(b"nonsense")

    assert len(known) == 0
