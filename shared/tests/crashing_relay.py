"""A relay that dies by SIGKILL when its first window is published and not yet marked."""

import asyncio
import os
import signal
from typing import NoReturn

from items.settings import ItemsSettings
from shared.broker import Broker
from shared.database import Database
from shared.relay import Relay, Waiting


class CrashingRelay(Relay):
    async def _publish(self, window: list[Waiting]) -> NoReturn:
        await super()._publish(window)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


async def main() -> None:
    settings = ItemsSettings.load()
    async with Broker(settings) as broker:
        await CrashingRelay(Database(settings), broker, service="items").run()


if __name__ == "__main__":
    asyncio.run(main())
