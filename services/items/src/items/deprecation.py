"""Says of version 1 of the API when it ends: `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and where to go."""

from datetime import UTC
from email.utils import format_datetime

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from items.operations import V1, V2
from items.settings import ItemsSettings

Headers = list[tuple[bytes, bytes]]


def deprecation_headers(settings: ItemsSettings) -> Headers:
    """Return the headers that every answer of version 1 carries; none while it is not deprecated."""
    if settings.v1_deprecated_at is None:
        return []
    headers = [
        (b"deprecation", b"@%d" % settings.v1_deprecated_at.timestamp()),
        (b"link", f'<{V2.path}>; rel="successor-version"'.encode()),
    ]
    if settings.v1_sunset_at is not None:
        date = format_datetime(settings.v1_sunset_at.astimezone(UTC), usegmt=True)
        headers.append((b"sunset", date.encode()))
    return headers


class Deprecated:
    """ASGI middleware: adds the headers to whatever is answered under version 1's path, errors included."""

    def __init__(self, app: ASGIApp, *, headers: Headers) -> None:
        self.app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(V1.path):
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._headers]
            await send(message)

        await self.app(scope, receive, send_with_headers)
