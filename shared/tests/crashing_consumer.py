"""A consumer that dies by SIGKILL when its first effect is committed and the message not yet acknowledged."""

import asyncio
import os
import signal
from typing import NoReturn

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from items.settings import ItemsSettings
from shared import consumer
from shared.broker import Broker
from shared.consumer import Consumer, Subscription
from shared.database import Database
from shared.events import Envelope


class CrashingConsumer(Consumer):
    async def _acknowledge(self, *_: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


async def take_note(session: AsyncSession, event: Envelope) -> None:
    await session.execute(text("INSERT INTO effects (note) VALUES (:note)"), {"note": event.id})


async def main() -> None:
    consumer.ACK_WAIT = 1.0  # how long the test waits for what the dead one held
    settings = ItemsSettings.load()
    async with Broker(settings) as broker:
        await CrashingConsumer(
            broker,
            Database(settings),
            Subscription("EVENTS", "notifications", "events.>"),
            {"items.item.counted.v1": take_note},
            service="notifications",
        ).run()


if __name__ == "__main__":
    asyncio.run(main())
