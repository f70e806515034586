"""Print the live stream: `python docs/examples/watch.py --topic items --count 1`, with the token in $TOKEN."""

import argparse
import asyncio
import json
import os

from tollhouse_live import AccessToken, Event, LiveStream


async def watch(url: str, token: str, topic: str, count: int, cursor: str | None) -> None:
    """Print `count` events of `topic`."""
    cursors = {topic: cursor} if cursor else {}
    async with LiveStream(url, AccessToken(token), [topic], cursors=cursors) as stream:
        await stream.ready()
        print(f"watching {topic} from cursor {stream.cursors[topic]}", flush=True)  # noqa: T201
        async for message in stream:
            if isinstance(message, Event):
                print(message.cursor, json.dumps(message.event, indent=2), flush=True)  # noqa: T201
                count -= 1
            else:
                print(f"events are lost between {message.start} and {message.end}", flush=True)  # noqa: T201
            if count == 0:
                return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print events of the live stream.")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--topic", default="items", help="items, items.<id> or me (default: %(default)s)")
    parser.add_argument("--count", type=int, default=-1, help="events to print before ending; -1: for ever")
    parser.add_argument("--cursor", help="print what came after this cursor first")
    arguments = parser.parse_args()
    asyncio.run(watch(arguments.url, os.environ["TOKEN"], arguments.topic, arguments.count, arguments.cursor))
