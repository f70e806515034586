"""Who is connected: counted against the caps, found again when a session is revoked, told when the process stops."""

import asyncio
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address
from typing import Protocol

from starlette.types import Scope

from notifications.errors import TooManyConnections
from notifications.settings import NotificationsSettings
from shared.addresses import address_key
from shared.revocations import Revocations
from shared.tokens import Principal

POLICY_VIOLATION = 1008
INTERNAL_ERROR = 1011
SERVICE_RESTART = 1012
TRY_AGAIN_LATER = 1013
TOKEN_EXPIRED = 4401


class Member(Protocol):
    """A client that is connected."""

    address: str
    principal: Principal | None

    def end(self, code: int, reason: str) -> None:
        """End the connection now; the code is that of a WebSocket's close frame."""


class Connections:
    """The clients of this process that follow the live stream."""

    def __init__(self, settings: NotificationsSettings, revocations: Revocations) -> None:
        self._settings = settings
        self._revocations = revocations
        self._members: dict[Member, None] = {}
        self._by_address: Counter[str] = Counter()
        self._anonymous: Counter[str] = Counter()
        self._by_user: Counter[int] = Counter()
        self._by_session: dict[str, dict[Member, None]] = {}
        revocations.on_revoked(self._end_session)

    def __len__(self) -> int:
        return len(self._members)

    @property
    def anonymous(self) -> int:
        """Connections that have yet to authenticate."""
        return self._anonymous.total()

    def enter(self, member: Member) -> None:
        """Count a client that has connected, with or without a principal.

        Raises:
            TooManyConnections: some cap is reached.
        """
        settings = self._settings
        if len(self._members) >= settings.max_connections:
            raise TooManyConnections("This process has as many connections as it may have.")
        if self._by_address[member.address] >= settings.max_connections_per_address:
            raise TooManyConnections("Your address has as many connections as it may have.")
        if member.principal is None:
            if self._anonymous[member.address] >= settings.max_unauthenticated_per_address:
                raise TooManyConnections("Your address has too many connections that have not authenticated.")
            self._anonymous[member.address] += 1
        else:
            self._identify(member, member.principal)
        self._members[member] = None
        self._by_address[member.address] += 1

    def identify(self, member: Member, principal: Principal) -> None:
        """Give a client its principal, or a newer one.

        Raises:
            TooManyConnections: the user has as many as there may be.
        """
        if member.principal is None:
            self._identify(member, principal)
            _uncount(self._anonymous, member.address)
        elif principal.session_id != member.principal.session_id:
            self._leave_session(member)
            self._join_session(member, principal)
        member.principal = principal

    def _identify(self, member: Member, principal: Principal) -> None:
        if self._by_user[principal.id] >= self._settings.max_connections_per_user:
            raise TooManyConnections("You have as many connections as you may have.")
        self._by_user[principal.id] += 1
        self._join_session(member, principal)

    def leave(self, member: Member) -> None:
        """Forget a client; nothing happens where it was not counted."""
        if member not in self._members:
            return
        del self._members[member]
        _uncount(self._by_address, member.address)
        if member.principal is None:
            _uncount(self._anonymous, member.address)
        else:
            _uncount(self._by_user, member.principal.id)
            self._leave_session(member)

    def is_revoked(self, principal: Principal) -> bool:
        """Whether the session has ended meanwhile."""
        return principal.session_id in self._revocations

    def _join_session(self, member: Member, principal: Principal) -> None:
        if principal.session_id:
            self._by_session.setdefault(principal.session_id, {})[member] = None

    def _leave_session(self, member: Member) -> None:
        session_id = member.principal.session_id if member.principal else ""
        members = self._by_session.get(session_id)
        if members is not None:
            members.pop(member, None)
            if not members:
                del self._by_session[session_id]

    def _end_session(self, session_id: str) -> None:
        for member in list(self._by_session.get(session_id, ())):
            member.end(POLICY_VIOLATION, "session ended")

    async def end_when(self, draining: asyncio.Event) -> None:
        """Wait for the process to be stopped, then end everybody: the server waits for them before it stops."""
        await draining.wait()
        for member in list(self._members):
            member.end(SERVICE_RESTART, "restart")


def _uncount(counter: Counter[str] | Counter[int], key: str | int) -> None:
    counts: Counter[str | int] = counter  # type: ignore[assignment]
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


def address_of(scope: Scope, proxies: Sequence[IPv4Network | IPv6Network]) -> str:
    """Return what a connection counts against: the client's address, as a trusted gateway names it, else the peer's."""
    peer: str = (scope.get("client") or ("",))[0]
    if _within(peer, proxies):
        for name, value in scope["headers"]:
            if name == b"x-forwarded-for":
                peer = value.decode("latin-1").rpartition(",")[2].strip()
    return address_key(peer)


def _within(text: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return any(address in network for network in networks)
