"""The live stream as its clients meet it: everything that a connection of either kind needs, in one place."""

from collections.abc import Sequence
from dataclasses import dataclass

from notifications.connections import Connections, Member
from notifications.history import History
from notifications.hub import Hub
from notifications.live import LiveReader
from notifications.meters import LiveMeters
from notifications.settings import NotificationsSettings
from shared.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LiveStream:
    """The parts of one process's live stream."""

    settings: NotificationsSettings
    hub: Hub
    history: History
    reader: LiveReader
    connections: Connections
    meters: LiveMeters

    def ended(self, member: Member, code: int, reason: str, *, topics: Sequence[str]) -> None:
        """Count and log a connection that this side has ended, and whose it was."""
        self.meters.ended(code, reason)
        log.info(
            "live.ended",
            code=code,
            reason=reason,
            user_id=member.principal.id if member.principal else None,
            address=member.address,
            topics=topics[:10],
        )
