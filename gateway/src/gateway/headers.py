"""Which header fields pass the gateway, in either direction (SECURITY G4, G6, G10)."""

import re
from typing import Final

from shared.wire import FieldSorter, Headers

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

_REWRITTEN = frozenset({b"host", b"content-length", b"expect"})
_CLAIMS = re.compile(rb"x-forwarded-.*|forwarded|x-real-ip|x-user-.*|.*_.*").fullmatch
_OURS_IN_RESPONSES = (
    HOP_BY_HOP
    | {name for name, _ in SECURITY_HEADERS}
    | {b"content-length", b"server", b"x-powered-by", b"x-request-id", b"x-process-time-ms", HSTS[0]}
)

REQUEST: Final = FieldSorter(
    noted={
        b"authorization": True,
        b"origin": True,
        b"x-request-id": False,
        # One of them may be a token (access.split_protocols).
        b"sec-websocket-protocol": False,
        # A state is worth nothing without a valid parent (tracing.py).
        b"traceparent": False,
        b"tracestate": False,
        # Believed where a trusted proxy says it (proxies.py).
        b"x-forwarded-for": False,
        b"x-forwarded-proto": False,
    },
    drops=lambda name: name in HOP_BY_HOP or name in _REWRITTEN or _CLAIMS(name),
)
"""Which fields of a request pass, and which the gateway reads."""

RESPONSE: Final = FieldSorter(
    noted={b"date": True},
    drops=lambda name: name in _OURS_IN_RESPONSES or name.startswith(b"access-control-"),
)
"""Which fields of a response pass."""

sane_request_id: Final = re.compile(rb"[A-Za-z0-9._-]{1,128}").fullmatch
