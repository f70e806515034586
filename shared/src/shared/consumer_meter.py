"""What a durable consumer counts, and how far it is behind (docs/events.md lists it)."""

from bisect import bisect_left
from typing import Literal

from nats.js.api import ConsumerInfo

from shared.metrics import LATENCY_BOUNDS, Metrics


class ConsumerMeter:
    """Counts what one consumer does, and shows how far it is behind."""

    def __init__(self, metrics: Metrics, consumer: str) -> None:
        self._metrics = metrics
        self._results = {
            result: metrics.counter(
                "consumer_events_total", "Events dealt with.", consumer=consumer, result=result
            )
            for result in ("applied", "repeated", "ignored", "failed", "dead")
        }
        self._redelivered = metrics.counter(
            "consumer_redeliveries_total", "Events that came again.", consumer=consumer
        )
        self._first_bucket, self._seconds = metrics.histogram(
            "consumer_delay_seconds", "From an event's time to its effect.", consumer=consumer
        )
        self._pending, self._ack_pending = (
            metrics.level(f"consumer_{name}", meaning, consumer=consumer)
            for name, meaning in (
                ("pending", "Events in the stream that were not delivered yet."),
                ("ack_pending", "Events delivered and not acknowledged yet."),
            )
        )

    def count(self, result: Literal["applied", "repeated", "ignored", "failed", "dead"]) -> None:
        """Count an event."""
        self._metrics.cells[self._results[result]] += 1

    def redelivered(self) -> None:
        """Count an event that came again."""
        self._metrics.cells[self._redelivered] += 1

    def delay(self, seconds: float) -> None:
        """Note how long an event took to its effect."""
        self._metrics.cells[self._first_bucket + bisect_left(LATENCY_BOUNDS, seconds)] += 1
        self._metrics.cells[self._seconds] += seconds

    def show(self, info: ConsumerInfo) -> None:
        """Show how far the consumer is behind."""
        self._metrics.cells[self._pending] = info.num_pending or 0
        self._metrics.cells[self._ack_pending] = info.num_ack_pending or 0
