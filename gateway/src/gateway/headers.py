"""Which header fields pass the gateway, in either direction (SECURITY G4, G6, G10). Pure functions."""

import re
from typing import Final

from shared.wire import Headers, RequestHead, ResponseHead

HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
"""Fields that speak of one connection only (RFC 9110 section 7.6.1)."""

SECURITY_HEADERS: Final[Headers] = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
]
HSTS: Final = (b"strict-transport-security", b"max-age=31536000; includeSubDomains")

_MAX_VERDICTS: Final = 1024
"""Names whose verdict is remembered; clients choose names, so that memory has a bound."""

_REWRITTEN = frozenset({b"host", b"content-length", b"expect"})
_CLAIMS = re.compile(rb"x-forwarded-.*|forwarded|x-real-ip|x-user-.*|.*_.*").fullmatch
_OURS_IN_RESPONSES = (
    HOP_BY_HOP
    | {name for name, _ in SECURITY_HEADERS}
    | {b"content-length", b"server", b"x-powered-by", b"x-request-id", b"x-process-time-ms", HSTS[0]}
)
_sane_request_id = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch

_PASS: Final = 0
_DROP: Final = 1
_READ: Final = 2  # the gateway reads it, and it passes
_READ_DROP: Final = 3  # the gateway reads it, and it does not pass


class RequestFields:
    """What one pass over a request's fields gives: those to forward, as bytes, and those the gateway reads."""

    __slots__ = ("authorization", "lines", "origin", "protocols", "request_id", "traceparent", "tracestate")

    lines: list[bytes]
    authorization: bytes | None
    origin: bytes | None
    request_id: bytes | None
    """The client's, if sane."""
    protocols: bytes | None
    """WebSocket sub-protocols: not in `lines`, because one of them may be a token."""
    traceparent: bytes | None
    tracestate: bytes | None
    """W3C Trace Context: not in `lines`, because a state is worth nothing without a valid parent (tracing.py)."""


class RequestFilter:
    """Decides about request fields by name. Keeps verdicts, because names repeat and deciding costs."""

    def __init__(self) -> None:
        self._verdicts: dict[bytes, int] = {
            b"authorization": _READ,
            b"origin": _READ,
            b"sec-websocket-protocol": _READ_DROP,
            b"x-request-id": _READ_DROP,
            b"traceparent": _READ_DROP,
            b"tracestate": _READ_DROP,
        }

    def read(self, head: RequestHead) -> RequestFields:
        """Sort a request's fields. Of fields that may occur once, the gateway sees all values joined by a comma."""
        fields = RequestFields()
        lines: list[bytes] = []
        fields.lines = lines
        fields.authorization = fields.origin = fields.request_id = fields.protocols = None
        fields.traceparent = fields.tracestate = None
        named = head.connection
        verdicts = self._verdicts
        for name, value in head.headers:
            verdict = verdicts.get(name)
            if verdict is None:
                verdict = self._judge(name)
            if verdict == _DROP or (named is not None and name in named):
                continue
            if verdict != _READ_DROP:
                lines += (name, b": ", value, b"\r\n")
            if verdict:
                self._note(fields, name, value)
        return fields

    def _judge(self, name: bytes) -> int:
        dropped = name in HOP_BY_HOP or name in _REWRITTEN or _CLAIMS(name)
        verdict = _DROP if dropped else _PASS
        if len(self._verdicts) < _MAX_VERDICTS:
            self._verdicts[name] = verdict
        return verdict

    @staticmethod
    def _note(fields: RequestFields, name: bytes, value: bytes) -> None:
        if name == b"authorization":
            earlier = fields.authorization
            fields.authorization = value if earlier is None else earlier + b"," + value
        elif name == b"origin":
            fields.origin = value if fields.origin is None else fields.origin + b"," + value
        elif name == b"sec-websocket-protocol":
            fields.protocols = value if fields.protocols is None else fields.protocols + b"," + value
        elif name == b"traceparent":
            fields.traceparent = value if fields.traceparent is None else fields.traceparent + b"," + value
        elif name == b"tracestate":
            fields.tracestate = value if fields.tracestate is None else fields.tracestate + b"," + value
        elif _sane_request_id(value):
            fields.request_id = value


def response_lines(head: ResponseHead) -> list[bytes]:
    """Return the fields of a response that pass to the client."""
    lines: list[bytes] = []
    named = head.connection
    for name, value in head.headers:
        if (
            name in _OURS_IN_RESPONSES
            or (named is not None and name in named)
            or name.startswith(b"access-control-")
        ):
            continue
        lines += (name, b": ", value, b"\r\n")
    return lines
