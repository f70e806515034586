"""From a cursor to live: what a client missed, oldest first, then what comes, with no event between or twice."""

import asyncio
from collections.abc import Awaitable, Callable, Collection

from notifications.frames import Cursor, Form, gap_message
from notifications.history import History
from notifications.hub import Hub, Listener
from notifications.topics import Channel


async def follow_from(
    cursor: Cursor,
    channels: Collection[Channel],
    listener: Listener,
    *,
    hub: Hub,
    history: History,
    form: Form,
    drained: Callable[[], Awaitable[None]],
) -> int:
    """Write what came after `cursor`, page by page as the client takes it; return how many events that were.

    When this returns, the listener has everything up to the hub's position: from then on it may follow the hub, if it
    does so before anything else runs.

    Raises:
        TimeoutError: the stream cannot be read now.
    """
    written = 0
    while True:
        page = await history.after(cursor, channels)
        messages = []
        if page.lost_until is not None:
            messages += [
                form(gap_message(channel.topic, cursor, page.lost_until), page.lost_until)
                for channel in channels
            ]
        epoch = page.position.epoch
        messages += [event.encoded(channel, epoch, form) for channel, event in page.events]
        if messages:
            listener.write(b"".join(messages))
            written += len(page.events)
        cursor = page.position
        if cursor == hub.position:
            return written
        await asyncio.sleep(0)  # others first: a page from memory is no wait
        await drained()
