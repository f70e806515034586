"""The one middleware of every service: request id, timing, access log, and a 500 that says nothing it should not."""

import re
import sys
from contextlib import suppress
from time import perf_counter

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared import telemetry
from shared.errors import PROBLEM_JSON, BodyTooLarge, InternalError, Problem, StartupRefused
from shared.ids import new_id
from shared.logs import get_logger

log = get_logger(__name__)

_SANE_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch
_QUIET_PATHS = frozenset({"/health", "/health/ready"})


def request_id_of(scope: Scope) -> str:
    """Return the request id that RequestContext gave this request."""
    return str(scope["state"]["request_id"])


class RequestContext:
    """Outermost pure ASGI middleware.

    Accepts `X-Request-ID` where it is a sane token, else makes one; binds it to the logs; answers `X-Request-ID` and
    `X-Process-Time-ms`; refuses bodies over the limit (FastAPI's own limit answers in plain text); turns an exception
    nobody handled into problem+json.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _start_or_say_why(self.app, scope, receive, send)
            return
        started = perf_counter()
        request_id = _request_id(scope)
        scope.setdefault("state", {}).update(request_id=request_id, is_head=scope.get("method") == "HEAD")
        status = received = 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-process-time-ms", b"%.1f" % ((perf_counter() - started) * 1000)),
                ]
            await send(message)

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_body_bytes:
                raise HTTPException(413)  # the one kind of error that FastAPI passes on while it reads a body
            return message

        structlog.contextvars.bind_contextvars(request_id=request_id)
        telemetry.remember(scope["headers"])
        try:
            if _declared_length(scope) > self._max_body_bytes:
                await _send_problem(send_with_headers, BodyTooLarge(), request_id)
            else:
                # HEAD is GET without the body (RFC 9110 section 9.3.2), which the server leaves out by itself.
                asked = {**scope, "method": "GET"} if scope.get("method") == "HEAD" else scope
                await self.app(asked, receive_within_limit, send_with_headers)
        except Exception:
            log.exception("request.failed", path=scope["path"])
            if scope["type"] == "websocket" or status:
                raise
            reason = "The request failed; the log has the reason under this request id."
            await _send_problem(send_with_headers, InternalError(reason), request_id)
        finally:
            if scope["path"] not in _QUIET_PATHS:
                log.info(
                    "request.served" if scope["type"] == "http" else "socket.served",
                    method=scope.get("method"),
                    path=scope["path"],
                    status=status or None,
                    ms=round((perf_counter() - started) * 1000, 1),
                )
            structlog.contextvars.unbind_contextvars("request_id")


async def _start_or_say_why(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Run the lifespan; a refusal to start is reported by its sentence instead of a traceback."""

    async def send_plainly(message: Message) -> None:
        reason = sys.exception()  # Starlette sends while it handles what was raised
        if message["type"] == "lifespan.startup.failed" and isinstance(reason, StartupRefused):
            message = {**message, "message": str(reason)}
        await send(message)

    with suppress(StartupRefused):
        await app(scope, receive, send_plainly)


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_REQUEST_ID(value):
            return str(value, "ascii")
    return new_id()


def _declared_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _send_problem(send: Send, problem: Problem, request_id: str) -> None:
    body = problem.body(request_id)
    headers = [(b"content-type", PROBLEM_JSON.encode()), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
