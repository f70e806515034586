"""A relay that hangs when it has read its first rows, and ends once it notices that another one took its place."""

import asyncio
import os
import signal

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from items.settings import ItemsSettings
from shared import relay
from shared.broker import Broker
from shared.database import Database
from shared.relay import Relay, Waiting


class HangingRelay(Relay):
    async def _publish(self, window: list[Waiting]) -> tuple[list[Waiting], Exception | None]:
        os.kill(os.getpid(), signal.SIGSTOP)
        return await super()._publish(window)

    async def _next(self, session: AsyncSession, published: list[Waiting], *, limit: int) -> list[Waiting]:
        try:
            return await super()._next(session, published, limit=limit)
        except SQLAlchemyError:
            os._exit(0)


async def main() -> None:
    relay.HUNG_AFTER = 1
    settings = ItemsSettings.load()
    async with Broker(settings) as broker:
        await HangingRelay(Database(settings), broker, service="items").run()


if __name__ == "__main__":
    asyncio.run(main())
