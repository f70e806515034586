"""The service's own consumer, which dies by SIGKILL when an effect is committed and the message not acknowledged."""

import asyncio
import os
import signal
from typing import NoReturn

from notifications.handlers import HANDLERS, SUBSCRIPTION
from notifications.settings import NotificationsSettings
from shared import consumer
from shared.broker import Broker
from shared.consumer import Consumer
from shared.database import Database


class CrashingConsumer(Consumer):
    async def _acknowledge(self, *_: object) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


async def main() -> None:
    consumer.ACK_WAIT = 1.0  # how long the test waits for what the dead one held
    settings = NotificationsSettings.load()
    async with Broker(settings) as broker:
        await CrashingConsumer(
            broker, Database(settings), SUBSCRIPTION, HANDLERS, service=settings.service
        ).run()


if __name__ == "__main__":
    asyncio.run(main())
