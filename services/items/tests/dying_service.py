"""The items service, which dies between the commit of a creation and its answer."""

import os
import signal

import uvicorn
from starlette.types import Message, Receive, Scope, Send

from items.app import create_app
from items.settings import ItemsSettings

settings = ItemsSettings.load()
app = create_app(settings)


async def dying(scope: Scope, receive: Receive, send: Send) -> None:
    async def die_instead(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 201:
            os.kill(os.getpid(), signal.SIGKILL)
        await send(message)

    await app(scope, receive, die_instead)


uvicorn.run(dying, port=settings.port, lifespan="on", log_config=None)
