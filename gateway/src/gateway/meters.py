"""What the gateway counts (docs/gateway.md lists it); shared.metrics says how."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Final

from gateway.limits import RateLimit
from gateway.routes import Routes
from gateway.upstream import Upstream
from shared.errors import Problem
from shared.metrics import LATENCY_BOUNDS, Metrics

Read = Callable[[], float]

_METHODS: Final = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})
"""Methods that have a name of their own in the metrics: clients may invent others."""


class RouteMeter:
    """Counts the requests of one route."""

    __slots__ = ("_broken", "_first_bucket", "_metrics", "_requests", "_route", "_seconds")

    def __init__(self, metrics: Metrics, route: str) -> None:
        self._metrics = metrics
        self._route = route
        self._requests: dict[tuple[bytes, int], int] = {}
        self._first_bucket, self._seconds = metrics.histogram(
            "gateway_request_seconds", "From a request's first byte to its response's last.", route=route
        )
        self._broken = metrics.counter(
            "gateway_requests_broken_total", "Requests that ended before their response did.", route=route
        )

    def served(self, method: bytes, status: int, seconds: float) -> None:
        """A response was written. In the hot path: 0.5 µs."""
        cells = self._metrics.cells
        index = self._requests.get((method, status))
        if index is None:
            index = self._index(method, status)
        cells[index] += 1
        cells[self._first_bucket + bisect_left(LATENCY_BOUNDS, seconds)] += 1
        cells[self._seconds] += seconds

    def broken(self) -> None:
        """The client left, or the service broke off what it had begun."""
        self._metrics.cells[self._broken] += 1

    def _index(self, method: bytes, status: int) -> int:
        known = method in _METHODS
        index = self._metrics.counter(
            "gateway_requests_total",
            "Requests answered.",
            route=self._route,
            method=method.decode() if known else "other",
            status=str(status),
        )
        if known:
            self._requests[method, status] = index
        return index


class Meters:
    """All that one process counts."""

    def __init__(self, metrics: Metrics, routes: Routes, upstreams: Mapping[str, Upstream]) -> None:
        self.metrics = metrics
        self.routes = {route.prefix: RouteMeter(metrics, route.prefix.decode()) for route in routes}
        self.tokens_cached = 0
        """Requests whose token was in the cache."""
        self.clients = 0
        """Connections of clients that are open, WebSockets too."""
        self._observe("gauge", "processes", "Processes that serve.", lambda: 1)
        self._observe("gauge", "client_connections", "Connections of clients.", lambda: self.clients)
        self._observe(
            "counter",
            "token_checks_total",
            "Tokens looked at, by what came of it.",
            lambda: self.tokens_cached,
            result="cached",
        )
        for limit in routes.limits.values():
            self._observe_limit(limit)
        for upstream in upstreams.values():
            self._observe_upstream(upstream)

    def show(self, name: str, text: str, read: Read, **labels: str) -> None:
        """Show something that rises and falls, as it is when it is asked for."""
        self._observe("gauge", name, text, read, **labels)

    def token_checked(self, *, good: bool) -> None:
        """A token that was not in the cache was verified, or was not."""
        self.metrics.count(
            "gateway_token_checks_total",
            "Tokens looked at, by what came of it.",
            result="verified" if good else "refused",
        )

    def problem(self, problem: Problem) -> None:
        """The gateway itself answered."""
        self.metrics.count("gateway_problems_total", "Problems that the gateway answered.", code=problem.code)

    def tunnel_ended(self, upstream: str, *, opened: bool) -> None:
        """A WebSocket is closed, or was never opened."""
        self.metrics.count(
            "gateway_tunnels_ended_total",
            "WebSockets that have ended.",
            upstream=upstream,
            result="served" if opened else "refused",
        )

    def _observe_limit(self, limit: RateLimit) -> None:
        self._observe(
            "counter",
            "limited_total",
            "Requests over a limit, refused or (shadow) not.",
            lambda: limit.refused,
            limit=limit.name,
        )

    def _observe_upstream(self, upstream: Upstream) -> None:
        name = upstream.name
        gauges: dict[str, tuple[str, Read]] = {
            "upstream_connections": ("Connections in the pool.", lambda: upstream.connections),
            "upstream_connections_idle": ("Those that nobody uses.", lambda: upstream.idle),
            "upstream_waiting": ("Requests that wait for a connection.", lambda: upstream.waiting),
            "tunnels": ("WebSockets that are open or being opened.", lambda: upstream.tunnels),
            "upstream_breaker_open": (
                "Processes that leave the service alone.",
                lambda: upstream.breaker.is_open,
            ),
        }
        for gauge, (text, read) in gauges.items():
            self._observe("gauge", gauge, text, read, upstream=name)
        self._observe(
            "counter",
            "upstream_connects_total",
            "Connections made.",
            lambda: upstream.connects,
            upstream=name,
        )
        self._observe(
            "counter",
            "upstream_retries_total",
            "Requests sent a second time.",
            lambda: upstream.retries.made,
            upstream=name,
        )

    def _observe(self, kind: str, name: str, text: str, read: Read, **labels: str) -> None:
        register = self.metrics.counter if kind == "counter" else self.metrics.gauge
        self.metrics.observe(register(f"gateway_{name}", text, **labels), read)
