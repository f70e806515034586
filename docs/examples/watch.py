"""Print the live stream: `python docs/examples/watch.py --topic items --count 1`, with the token in $TOKEN."""

import argparse
import asyncio
import json
import os

from websockets.asyncio.client import connect


async def watch(url: str, token: str, topic: str, count: int, cursor: str | None) -> None:
    """Subscribe to `topic` and print `count` events."""
    async with connect(url, additional_headers={"Authorization": f"Bearer {token}"}, proxy=None) as socket:
        await socket.send(json.dumps({"type": "subscribe", "topic": topic, "cursor": cursor}))
        async for frame in socket:
            message = json.loads(frame)
            print(json.dumps(message, indent=2), flush=True)  # noqa: T201
            if message["type"] == "event":
                count -= 1
            if count == 0:
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print events of the live stream.")
    parser.add_argument("--url", default="ws://127.0.0.1:8000/v1/ws")
    parser.add_argument("--topic", default="items", help="items, items.<id> or me (default: %(default)s)")
    parser.add_argument("--count", type=int, default=-1, help="events to print before ending; -1: for ever")
    parser.add_argument("--cursor", help="print what came after this cursor first")
    arguments = parser.parse_args()
    asyncio.run(watch(arguments.url, os.environ["TOKEN"], arguments.topic, arguments.count, arguments.cursor))
