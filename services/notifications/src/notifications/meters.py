"""What the live stream counts (docs/live.md lists it); shared.metrics says how."""

from collections.abc import Callable

from notifications.connections import Connections
from notifications.hub import Hub
from shared.metrics import Metrics


class LiveMeters:
    """The numbers of one process."""

    def __init__(self, metrics: Metrics, hub: Hub, connections: Connections) -> None:
        self._metrics = metrics
        self._observe("gauge", "connections", "Clients of the live stream.", lambda: len(connections))
        self._observe(
            "gauge",
            "unauthenticated",
            "Sockets that have yet to authenticate.",
            lambda: connections.anonymous,
        )
        self._observe("gauge", "listeners", "Clients that follow some topic.", lambda: hub.listeners)
        self._observe("counter", "events_total", "Events of the stream seen.", lambda: hub.events)
        self._observe("counter", "deliveries_total", "Events written to clients.", lambda: hub.deliveries)
        self._observe(
            "counter", "bytes_total", "Bytes of events written to clients.", lambda: hub.bytes_written
        )
        self._replayed = metrics.counter(
            "notifications_live_replayed_total", "Events written to clients that came back with a cursor."
        )

    def replayed(self, events: int) -> None:
        """A client got what it had missed."""
        self._metrics.cells[self._replayed] += events

    def refused(self, code: str) -> None:
        """A client was not let in."""
        self._metrics.count(
            "notifications_live_refused_total", "Connections refused, by problem code.", code=code
        )

    def ended(self, code: int, reason: str) -> None:
        """This side ended a connection."""
        self._metrics.count(
            "notifications_live_ended_total",
            "Connections that the service ended, by close code and reason.",
            code=str(code),
            reason=reason,
        )

    def _observe(self, kind: str, name: str, text: str, read: Callable[[], float]) -> None:
        register = self._metrics.counter if kind == "counter" else self._metrics.gauge
        self._metrics.observe(register(f"notifications_live_{name}", text), read)
