"""A wire between a client and the system that can be cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

CHUNK = 64 * 1024


class Cutter:
    """Passes bytes on both ways; `cut` resets every connection, as a network does that goes away."""

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._host, self._port = parts.hostname, parts.port
        self._open: set[asyncio.StreamWriter] = set()
        self.url = ""
        self.cuts = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass one connection on."""
        forth = None
        try:
            back, forth = await asyncio.open_connection(self._host, self._port)
            self._open |= {writer, forth}
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_copy(reader, forth))
                directions.create_task(_copy(back, writer))
        except* OSError:
            pass
        finally:
            for end in filter(None, (writer, forth)):
                self._open.discard(end)
                end.close()

    def cut(self) -> None:
        """Reset every connection there is."""
        self.cuts += len(self._open) // 2
        for writer in self._open:
            writer.transport.abort()


async def _copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(CHUNK):
        sink.write(data)
        await sink.drain()
    raise ConnectionResetError  # one side has gone: so does the other


@asynccontextmanager
async def cutting(target: str) -> AsyncIterator[Cutter]:
    """Stand between clients and `target` while the block runs."""
    cutter = Cutter(target)
    server = await asyncio.start_server(cutter.serve, "127.0.0.1", 0)
    cutter.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield cutter
    finally:
        server.close()
        cutter.cut()
