"""What the gateway itself answers, beside the problems every service has."""

from shared.errors import Problem


class PathAmbiguous(Problem):
    """The path can be read in more than one way (dot segments, encoded slashes, `//`, control or non-ASCII characters).

    Send the path in its canonical form.
    """

    status = 400
    code = "path_ambiguous"
    title = "Ambiguous path"


class OriginForbidden(Problem):
    """The page that opened this WebSocket is of an origin that is not allowed here (setting CORS_ORIGINS)."""

    status = 403
    code = "origin_forbidden"
    title = "Origin forbidden"


class RateLimited(Problem):
    """Too many requests from this user or address. Wait for as long as Retry-After says."""

    status = 429
    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, limit: str, policy: str, *, retry_after: int) -> None:
        super().__init__(
            f"The limit {limit!r} is spent; try again in {retry_after} s.",
            headers={
                "Retry-After": str(retry_after),
                "RateLimit-Policy": policy,
                "RateLimit": f'"{limit}";r=0;t={retry_after}',
            },
        )


class UpgradeRequired(Problem):
    """This path is a WebSocket; open it as one."""

    status = 426
    code = "upgrade_required"
    title = "Upgrade required"

    def __init__(self) -> None:
        super().__init__("Open this path as a WebSocket.", headers={"Upgrade": "websocket"})


class UpstreamFailed(Problem):
    """The service broke the connection or answered something that is not HTTP.

    A request that only reads was already tried again; one that writes may or may not have taken effect.
    """

    status = 502
    code = "upstream_failed"
    title = "Service failed"


class UpstreamUnavailable(Problem):
    """The service cannot be reached just now. Nothing was done; try again."""

    status = 503
    code = "upstream_unavailable"
    title = "Service unavailable"

    def __init__(self, detail: str | None = None, *, retry_after: int = 1) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after)})


class UpstreamOverloaded(Problem):
    """The service has as many requests under way as it may have. Nothing was done; try again."""

    status = 503
    code = "upstream_overloaded"
    title = "Service overloaded"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class UpstreamTimeout(Problem):
    """The service did not answer in time. A request that writes may or may not have taken effect."""

    status = 504
    code = "upstream_timeout"
    title = "Service timeout"


GATEWAY_PROBLEMS: tuple[type[Problem], ...] = (
    PathAmbiguous,
    OriginForbidden,
    RateLimited,
    UpgradeRequired,
    UpstreamFailed,
    UpstreamUnavailable,
    UpstreamOverloaded,
    UpstreamTimeout,
)
