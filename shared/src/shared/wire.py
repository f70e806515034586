"""The grammar of HTTP/1.1 messages, read strictly: what is not plainly right is refused (SECURITY G1, G2).

One reading for both directions: the edge reads requests with it, the gateway's pool responses. Heads are judged whole
by one regular expression that cannot backtrack (possessive quantifiers), which costs about 1 µs for 600 bytes. Reading
a head so costs as much as httptools with the same checks around it, and leaves only one opinion on where a message
ends: two parsers that disagree are what request smuggling lives on.
"""

import re
from typing import Final

HEAD_LIMIT: Final = 16 * 1024
"""Bytes of a head, start line and empty line included (SECURITY G5)."""
CHUNK_LINE_LIMIT: Final = 256
"""Bytes of a chunk-size line with its extensions."""
MAX_LENGTH_DIGITS: Final = 15
"""Digits of a Content-Length or hexadecimal chunk size; far more than anybody sends, far less than overflows."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_FIELDS = rb"(?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*+"
_request_head = re.compile(
    rb"(" + _TOKEN + rb'{1,32}+) (/[!-"$-~\x80-\xff]*+|\*) HTTP/1\.([01])\r\n(' + _FIELDS + rb")\r\n"
).fullmatch
_response_head = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*+)?+\r\n(" + _FIELDS + rb")\r\n"
).fullmatch
_trailers = re.compile(_FIELDS + rb"\r\n").fullmatch
_chunk_size = re.compile(
    rb"([0-9A-Fa-f]{1,15}+)(?:;" + _TOKEN + rb"++(?:=(?:" + _TOKEN + rb'++|"[\t !#-\[\]-~\x80-\xff]*+"))?+)*+'
).fullmatch
_host = re.compile(rb"(?:[A-Za-z0-9._~-]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5}+)?+").fullmatch
# An unfinished head is judged as it comes, so that a bare LF is not waited on until the deadline.
_bad_in_unfinished_head = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)").search

_FRAMING = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade", b"date"}
)
_LISTS = frozenset({b"connection", b"expect", b"upgrade", b"date"})

Headers = list[tuple[bytes, bytes]]
"""Fields in their order, names in lower case, values without surrounding white space."""


class WireError(Exception):
    """Bytes that are not plainly an HTTP/1.1 message; the text says why."""


class HostError(WireError):
    """The Host field is missing, doubled or malformed (RFC 9112 section 3.2)."""


class HeadSizeError(WireError):
    """The head, or the trailer section, is larger than HEAD_LIMIT."""


class RequestHead:
    """A request's start line and fields. Framing is decided here and nowhere else."""

    __slots__ = (
        "chunked",
        "connection",
        "content_length",
        "expects_continue",
        "headers",
        "host",
        "http_1_0",
        "keep_alive",
        "method",
        "target",
        "upgrade",
    )

    method: bytes
    target: bytes
    http_1_0: bool
    headers: Headers
    host: bytes
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool
    connection: list[bytes] | None
    """Tokens of the Connection field: the names of fields that must not be passed on."""
    upgrade: bytes | None
    """The protocol asked for (lower case), where Connection says so too."""


class ResponseHead:
    """A response's status and fields."""

    __slots__ = ("chunked", "connection", "content_length", "has_date", "headers", "keep_alive", "status")

    status: int
    headers: Headers
    content_length: int | None
    chunked: bool
    keep_alive: bool
    connection: list[bytes] | None
    """Tokens of the Connection field: the names of fields that must not be passed on."""
    has_date: bool


def find_head_end(data: bytes, searched: int = 0) -> int:
    """Return the size of the head that `data` begins with, or 0 while it is not complete.

    `searched` is how much of `data` an earlier call has seen, so that a head that drips in costs no more.

    Raises:
        HeadSizeError: it is larger than HEAD_LIMIT.
        WireError: it can no longer become a head.
    """
    end = data.find(b"\r\n\r\n", max(searched - 3, 0)) + 4
    if end > HEAD_LIMIT or (end == 3 and len(data) > HEAD_LIMIT):
        raise HeadSizeError(f"The head is larger than {HEAD_LIMIT} bytes.")
    if end != 3:
        return end
    if data.startswith((b"\r", b"\n")) or _bad_in_unfinished_head(data, max(searched - 1, 0)):
        raise WireError("The head has a bare CR or LF or a control character.")
    return 0


def parse_request_head(data: bytes, end: int) -> RequestHead:
    """Read the request head in `data[:end]`.

    Raises:
        HostError, WireError: see there.
    """
    match = _request_head(data, 0, end)
    if match is None:
        raise WireError("The request line or a header field is malformed.")
    head = RequestHead()
    head.method, head.target, minor, block = match.groups()
    head.headers, framing = _read_fields(block)
    host = framing.get(b"host")
    if host is None or not _host(host):
        raise HostError("Exactly one well-formed Host field is needed.")
    head.host = host
    head.content_length = _content_length(framing)
    head.chunked = _chunked(framing, minor)
    head.http_1_0 = minor == b"0"
    head.keep_alive = minor == b"1"
    head.connection = head.upgrade = None
    if b"connection" in framing:
        head.connection = tokens = _tokens(framing[b"connection"])
        if b"close" in tokens:
            head.keep_alive = False
        # HTTP/1.0 knows no upgrades (RFC 9110 section 7.8).
        if minor == b"1" and b"upgrade" in tokens and b"upgrade" in framing:
            head.upgrade = framing[b"upgrade"].lower()
    # HTTP/1.0 knows no 1xx responses (RFC 9110 section 10.1.1).
    head.expects_continue = (
        minor == b"1" and b"expect" in framing and framing[b"expect"].lower() == b"100-continue"
    )
    return head


def parse_response_head(data: bytes, end: int) -> ResponseHead:
    """Read the response head in `data[:end]`.

    Raises:
        WireError: see there.
    """
    match = _response_head(data, 0, end)
    if match is None:
        raise WireError("The status line or a header field is malformed.")
    minor, status, block = match.groups()
    head = ResponseHead()
    head.status = int(status)
    head.headers, framing = _read_fields(block)
    head.content_length = _content_length(framing)
    head.chunked = _chunked(framing, minor)
    head.has_date = b"date" in framing
    head.connection = None
    head.keep_alive = minor == b"1"
    if b"connection" in framing:
        head.connection = tokens = _tokens(framing[b"connection"])
        head.keep_alive = b"close" not in tokens and (minor == b"1" or b"keep-alive" in tokens)
    return head


def _read_fields(block: bytes) -> tuple[Headers, dict[bytes, bytes]]:
    """Return all fields in order, and by name those that say how the message is framed or handled."""
    headers: Headers = []
    framing: dict[bytes, bytes] = {}
    for line in block[:-2].split(b"\r\n") if block else ():
        name, _, value = line.partition(b":")
        name = name.lower()
        value = value.strip(b" \t")
        headers.append((name, value))
        if name in _FRAMING:
            framing[name] = value if name not in framing else _combined(name, framing[name], value)
    return headers, framing


def _combined(name: bytes, earlier: bytes, value: bytes) -> bytes:
    if name == b"host":
        raise HostError("There is more than one Host field.")
    if name not in _LISTS:
        raise WireError(f"There is more than one {name.decode()} field.")
    return earlier + b"," + value


def _chunked(framing: dict[bytes, bytes], minor: bytes) -> bool:
    coding = framing.get(b"transfer-encoding")
    if coding is None:
        return False
    if coding.lower() != b"chunked" or minor == b"0":
        raise WireError("Only Transfer-Encoding: chunked is understood, and only in HTTP/1.1.")
    if b"content-length" in framing:
        raise WireError("Content-Length and Transfer-Encoding exclude each other.")
    return True


def _content_length(framing: dict[bytes, bytes]) -> int | None:
    value = framing.get(b"content-length")
    if value is None:
        return None
    if not value.isdigit() or len(value) > MAX_LENGTH_DIGITS:
        raise WireError("Content-Length must be one decimal number.")
    return int(value)


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip(b" \t") for token in value.lower().split(b",")]


class ChunkedBody:
    """Takes a chunked body apart (RFC 9112 section 7.1). Extensions and trailers are checked and dropped."""

    __slots__ = ("_left", "_line", "_trailing", "complete", "rest")

    def __init__(self) -> None:
        self.complete = False
        self.rest = b""
        """What followed the body, once it is complete."""
        self._left = -1  # bytes of the chunk still to come, then 0 for its CRLF; -1: a size line comes next
        self._line = b""  # the unfinished size line, CRLF or trailer section
        self._trailing = False

    def feed(self, data: bytes) -> bytes:
        """Return the content in `data`.

        Raises:
            WireError: malformed or too long sizes, extensions, trailers; a chunk longer than its size.
        """
        if self._line:
            data = self._line + data
            self._line = b""
        blocks = []
        position: int | None = 0
        while position is not None and position < len(data):
            if self._left > 0:
                block = data[position : position + self._left]
                position += len(block)
                self._left -= len(block)
                blocks.append(block)
            elif self._left == 0:
                position = self._chunk_end(data, position)
            elif self._trailing:
                position = self._trailers(data, position)
            else:
                position = self._size_line(data, position)
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    # Each of these reads one element at `position` and returns where it ends. None: the element is unfinished (its
    # beginning is kept in _line), or the body is complete.

    def _chunk_end(self, data: bytes, position: int) -> int | None:
        ending = data[position : position + 2]
        if ending == b"\r\n":
            self._left = -1
            return position + 2
        if ending != b"\r":
            raise WireError("A chunk is longer than its size.")
        self._line = ending
        return None

    def _size_line(self, data: bytes, position: int) -> int | None:
        end = data.find(b"\r\n", position, position + CHUNK_LINE_LIMIT)
        if end < 0:
            self._line = line = data[position:]
            if len(line) >= CHUNK_LINE_LIMIT or b"\n" in line or b"\r" in line[:-1]:
                raise WireError("A chunk size is malformed.")
            return None
        match = _chunk_size(data, position, end)
        if match is None:
            raise WireError("A chunk size is malformed.")
        self._left = int(match[1], 16)
        if self._left == 0:
            self._trailing = True
            self._left = -1
        return end + 2

    def _trailers(self, data: bytes, position: int) -> int | None:
        if data.startswith(b"\r\n", position):
            end = position + 2
        else:
            end = data.find(b"\r\n\r\n", position) + 4
            if (end if end != 3 else len(data)) - position > HEAD_LIMIT:
                raise HeadSizeError(f"The trailer section is larger than {HEAD_LIMIT} bytes.")
            if end == 3:
                self._line = data[position:]
                if _bad_in_unfinished_head(self._line):
                    raise WireError("A trailer field is malformed.")
                return None
            if not _trailers(data, position, end):
                raise WireError("A trailer field is malformed.")
        self.complete = True
        self.rest = data[end:]
        return None
