"""The grammar of HTTP/1.1 messages, read strictly: what is not plainly right is refused (SECURITY G1, G2).

One reading for both directions: the edge reads requests with it, the gateway's pool responses. Heads are judged whole
by one regular expression that cannot backtrack (possessive quantifiers), which costs about 1 µs for 600 bytes. Reading
a head so costs as much as httptools with the same checks around it, and leaves only one opinion on where a message
ends: two parsers that disagree are what request smuggling lives on.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

HEAD_LIMIT: Final = 16 * 1024
"""Bytes of a head, start line and empty line included (SECURITY G5)."""
CHUNK_LINE_LIMIT: Final = 256
"""Bytes of a chunk-size line with its extensions."""
MAX_LENGTH_DIGITS: Final = 15
"""Digits of a Content-Length or hexadecimal chunk size; far more than anybody sends, far less than overflows."""

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
# Repeated groups are kept from backtracking by (?>...) around them: before Python 3.11.5, (?:...)*+ matches too much.
_FIELDS = rb"(?>(?:" + _TOKEN + rb"++:[\t -~\x80-\xff]*+\r\n)*)"
_request_head = re.compile(
    rb"(" + _TOKEN + rb'{1,32}+) (/[!-"$-~\x80-\xff]*+|\*) HTTP/1\.([01])\r\n(' + _FIELDS + rb")\r\n"
).fullmatch
_response_head = re.compile(
    rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [\t -~\x80-\xff]*+)?\r\n(" + _FIELDS + rb")\r\n"
).fullmatch
_trailers = re.compile(_FIELDS + rb"\r\n").fullmatch
_chunk_size = re.compile(
    rb"([0-9A-Fa-f]{1,15}+)(?>(?:;"
    + _TOKEN
    + rb"++(?>(?:=(?:"
    + _TOKEN
    + rb'++|"[\t !#-\[\]-~\x80-\xff]*+"))?))*)'
).fullmatch
_host = re.compile(rb"(?:[A-Za-z0-9._~-]++|\[[0-9A-Fa-f:.]++\])(?::[0-9]{1,5}+)?").fullmatch
# An unfinished head is judged as it comes, so that a bare LF is not waited on until the deadline.
_bad_in_unfinished_head = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?!\n|\Z)").search

_FRAMING = frozenset({b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade"})
_SINGLE = frozenset({b"content-length", b"transfer-encoding"})
_OPTIONS = frozenset({b"close", b"keep-alive", b"upgrade", b""})
"""What Connection may say besides names of fields."""
_MAX_VERDICTS = 1024

Headers = list[tuple[bytes, bytes]]
"""Fields in their order, names in lower case, values without surrounding white space."""


class WireError(Exception):
    """Bytes that are not plainly an HTTP/1.1 message; the text says why."""


class HostError(WireError):
    """The Host field is missing, doubled or malformed (RFC 9112 section 3.2)."""


class HeadSizeError(WireError):
    """The head, or the trailer section, is larger than HEAD_LIMIT."""


class FieldSorter:
    """Decides by its name what becomes of a field: it is noted, or passed on as it came, or both, or neither.

    Verdicts are kept by names as they come, because names repeat and deciding costs. Others choose the names, so that
    memory has a bound.
    """

    __slots__ = ("_drops", "_noted", "_verdicts")

    def __init__(self, *, noted: Mapping[bytes, bool], drops: Callable[[bytes], object]) -> None:
        """`noted`: names whose values are kept, and whether they pass all the same; `drops`: whether others do not."""
        self._noted = {**dict.fromkeys(_FRAMING, False), **noted}
        self._drops = drops
        # True: drop; False: pass; else the name in lower case, and whether it passes.
        self._verdicts: dict[bytes, bool | tuple[bytes, bool]] = {}

    def sort(self, block: bytes) -> tuple[list[bytes], dict[bytes, bytes]]:
        """Return the lines of `block` that pass, and the noted values by name, those of repeated fields joined.

        Raises:
            HostError, WireError: a field is repeated that must not be.
        """
        passed: list[bytes] = []
        noted: dict[bytes, bytes] = {}
        verdicts = self._verdicts
        for line in block[:-2].split(b"\r\n") if block else ():
            name, _, value = line.partition(b":")
            verdict = verdicts.get(name)
            if verdict is None:
                verdict = self._judge(name)
            if verdict is False:
                passed.append(line)
            elif verdict is not True:
                name, passes = verdict
                if passes:
                    passed.append(line)
                value = value.strip(b" \t")
                noted[name] = value if name not in noted else _combined(name, noted[name], value)
        return passed, noted

    def _judge(self, name: bytes) -> bool | tuple[bytes, bool]:
        lower = name.lower()
        passes = self._noted.get(lower)
        verdict = bool(self._drops(lower)) if passes is None else (lower, passes)
        if len(self._verdicts) < _MAX_VERDICTS:
            self._verdicts[name] = verdict
        return verdict


PLAIN: Final = FieldSorter(noted={}, drops=lambda _: True)
"""Notes what says how a message is framed, and passes nothing on."""


class _Head:
    """What requests and responses have in common."""

    __slots__ = ("_block", "_headers", "chunked", "content_length", "keep_alive", "noted", "passed")

    content_length: int | None
    chunked: bool
    keep_alive: bool
    passed: bytes
    """The fields that the sorter lets pass, as they came."""
    noted: dict[bytes, bytes]
    """Values of the fields that it notes."""
    _block: bytes
    _headers: Headers | None

    def read(self, block: bytes, minor: bytes, sorter: FieldSorter) -> None:
        """Read the fields, and what they say in either direction."""
        lines, noted = sorter.sort(block)
        self._block = block
        self._headers = None
        self.content_length = _content_length(noted) if b"content-length" in noted else None
        self.chunked = b"transfer-encoding" in noted and _chunked(noted, minor)
        if b"connection" in noted and (options := noted[b"connection"].lower()) != b"keep-alive":
            tokens = _tokens(options)
            if b"close" in tokens:
                self.keep_alive = False
            if named := set(tokens) - _OPTIONS:
                # They speak of this connection only (RFC 9110 section 7.6.1).
                lines = [line for line in lines if line[: line.index(b":")].lower() not in named]
                for name in named - _FRAMING:
                    noted.pop(name, None)
        lines.append(b"")
        self.passed = b"\r\n".join(lines)
        self.noted = noted

    @property
    def headers(self) -> Headers:
        """All fields."""
        if self._headers is None:
            fields = (line.partition(b":") for line in self._block[:-2].split(b"\r\n") if line)
            self._headers = [(name.lower(), value.strip(b" \t")) for name, _, value in fields]
        return self._headers


class RequestHead(_Head):
    """A request's start line and fields. Framing is decided here and nowhere else."""

    __slots__ = ("expects_continue", "host", "http_1_0", "method", "target", "upgrade")

    method: bytes
    target: bytes
    http_1_0: bool
    host: bytes
    expects_continue: bool
    upgrade: bytes | None
    """The protocol asked for (lower case), where Connection says so too."""


class ResponseHead(_Head):
    """A response's status and fields."""

    __slots__ = ("status",)

    status: int


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


def parse_request_head(data: bytes, end: int, sorter: FieldSorter = PLAIN) -> RequestHead:
    """Read the request head in `data[:end]`.

    Raises:
        HostError, WireError: see there.
    """
    match = _request_head(data, 0, end)
    if match is None:
        raise WireError("The request line or a header field is malformed.")
    head = RequestHead()
    head.method, head.target, minor, block = match.groups()
    head.http_1_0 = minor == b"0"
    head.keep_alive = minor == b"1"
    head.read(block, minor, sorter)
    noted = head.noted
    host = noted.get(b"host")
    if host is None or not _host(host):
        raise HostError("Exactly one well-formed Host field is needed.")
    head.host = host
    head.expects_continue = False
    head.upgrade = None
    # HTTP/1.0 knows no 1xx responses and no upgrades (RFC 9110 sections 10.1.1 and 7.8).
    if minor == b"1":
        if b"expect" in noted:
            head.expects_continue = noted[b"expect"].lower() == b"100-continue"
        if b"upgrade" in noted and b"upgrade" in _tokens(noted.get(b"connection", b"")):
            head.upgrade = noted[b"upgrade"].lower()
    return head


def parse_response_head(data: bytes, end: int, sorter: FieldSorter = PLAIN) -> ResponseHead:
    """Read the response head in `data[:end]`.

    Raises:
        WireError: see there.
    """
    match = _response_head(data, 0, end)
    if match is None:
        raise WireError("The status line or a header field is malformed.")
    head = ResponseHead()
    minor, status, block = match.groups()
    head.status = int(status)
    head.keep_alive = minor == b"1"
    head.read(block, minor, sorter)
    if minor == b"0" and b"connection" in head.noted:
        tokens = _tokens(head.noted[b"connection"])
        head.keep_alive = b"keep-alive" in tokens and b"close" not in tokens
    return head


def _combined(name: bytes, earlier: bytes, value: bytes) -> bytes:
    if name == b"host":
        raise HostError("There is more than one Host field.")
    if name in _SINGLE:
        raise WireError(f"There is more than one {name.decode()} field.")
    return earlier + b"," + value


def _chunked(noted: dict[bytes, bytes], minor: bytes) -> bool:
    if noted[b"transfer-encoding"].lower() != b"chunked" or minor == b"0":
        raise WireError("Only Transfer-Encoding: chunked is understood, and only in HTTP/1.1.")
    if b"content-length" in noted:
        raise WireError("Content-Length and Transfer-Encoding exclude each other.")
    return True


def _content_length(noted: dict[bytes, bytes]) -> int:
    value = noted[b"content-length"]
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
