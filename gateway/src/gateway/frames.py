"""Where a stream of WebSocket frames may be cut: a close frame can be put in where one frame ends and the next begins (RFC
6455 section 5.2)."""

from typing import Final

RESTART: Final = b"\x88\x02\x03\xf4"
"""A close frame that says 1012: the service restarts, connect again (IANA WebSocket close codes)."""

_CLOSE: Final = 0x8


class FrameFollower:
    """Knows where a stream of frames may be cut."""

    __slots__ = ("_head", "_left", "closing")

    def __init__(self) -> None:
        self._head = b""  # an unfinished frame head
        self._left = 0  # bytes of the frame still to come
        self.closing = False
        """Whether a close frame went by."""

    @property
    def at_boundary(self) -> bool:
        """Whether a frame has just ended."""
        return not self._left and not self._head

    def feed(self, data: bytes, *, stop: bool = False) -> int:
        """Follow `data` and return how much of it was followed: all, or up to the first boundary where `stop`."""
        position, size = 0, len(data)
        while position < size:
            if self._left:
                step = min(self._left, size - position)
                self._left -= step
                position += step
            else:
                position += self._read_head(data[position : position + 10])
            if stop and self.at_boundary:
                break
        return position

    def _read_head(self, data: bytes) -> int:
        """Read a frame head that begins in `_head` and goes on in `data`; return how much of `data` belongs to it."""
        known = len(self._head)
        head = self._head + data
        short = head[1] & 0x7F if len(head) > 1 else 0
        masked = 4 if len(head) > 1 and head[1] & 0x80 else 0
        extended = {126: 2, 127: 8}.get(short, 0)
        size = 2 + extended
        if len(head) < size:
            self._head = head
            return len(data)
        self._head = b""
        self._left = (int.from_bytes(head[2:size], "big") if extended else short) + masked
        self.closing = self.closing or head[0] & 0x0F == _CLOSE
        return size - known
