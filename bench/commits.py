"""Writes at a steady rate, and how long each takes to reach a subscribed socket: `python -m bench.commits` with a plan on stdin."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from websockets.asyncio.client import connect

from shared.testing import eventually

WRITERS = 32
"""Connections that write, each an item of its own."""
PATIENCE = 20.0
"""Seconds that the last events may take."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to write to, and where to listen."""

    port: int
    socket_url: str
    token: str
    items: Sequence[int]
    rate: int
    """Writes per second, over all connections."""
    seconds: float

    def text(self) -> str:
        """What the process reads."""
        return json.dumps(asdict(self))


class Writer:
    """One connection that writes one item."""

    def __init__(self, plan: Plan, item: int) -> None:
        self._plan = plan
        self._item = item
        self.written = 0

    async def run(self, *, offset: float) -> None:
        """Write on time, however long the answers take, as far as one connection can."""
        plan = self._plan
        reader, writer = await asyncio.open_connection("127.0.0.1", plan.port)
        body = b'{"name":"Brass compass","price":19.99}'
        request = (
            f"PUT /v1/items/{self._item} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {plan.token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body
        interval = len(plan.items) / plan.rate
        started = time.perf_counter() + offset
        while (due := started + self.written * interval) < started + plan.seconds:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise SystemExit(f"a write was refused: {head[:300]!r}")
            length = head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]
            await reader.readexactly(int(length))
            self.written += 1
        writer.close()


async def main(plan: Plan) -> None:
    """Print the milliseconds from each event's own time, before its commit, to its arrival."""
    latencies: list[float] = []
    headers = {"Authorization": f"Bearer {plan.token}"}
    async with connect(plan.socket_url, additional_headers=headers, compression=None, proxy=None) as socket:
        await socket.send('{"type":"subscribe","topic":"items"}')
        while json.loads(await socket.recv())["type"] != "subscribed":
            pass

        async def listen() -> None:
            async for text in socket:
                now = time.time()
                frame = json.loads(text)
                if frame["type"] == "event":
                    latencies.append(
                        (now - datetime.fromisoformat(frame["event"]["time"]).timestamp()) * 1000
                    )

        listening = asyncio.create_task(listen())
        writers = [Writer(plan, item) for item in plan.items]
        started = time.perf_counter()
        await asyncio.gather(
            *(writer.run(offset=number / plan.rate) for number, writer in enumerate(writers))
        )
        took = time.perf_counter() - started
        written = sum(writer.written for writer in writers)
        await eventually(lambda: len(latencies) >= written, within=PATIENCE)
        listening.cancel()
    sys.stdout.write(json.dumps({"latencies": latencies, "rate": written / took}))


if __name__ == "__main__":
    asyncio.run(main(Plan(**json.load(sys.stdin))))
