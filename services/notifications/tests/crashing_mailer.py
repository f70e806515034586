"""A mailer that dies by SIGKILL when it has claimed a mail and not yet sent it."""

import asyncio
import os
import signal
from datetime import timedelta
from email.message import EmailMessage

from notifications import mailer
from notifications.settings import NotificationsSettings
from shared.database import Database


class Crash:
    async def send(self, message: EmailMessage, *, job_id: int) -> None:  # noqa: ARG002  # a transport's signature
        os.kill(os.getpid(), signal.SIGKILL)


async def main() -> None:
    mailer.LEASE = timedelta(seconds=0.5)  # how long the test waits for what the dead one held
    settings = NotificationsSettings.load()
    await mailer.Mailer(Database(settings), Crash(), sender=settings.mail_from).run()


if __name__ == "__main__":
    asyncio.run(main())
