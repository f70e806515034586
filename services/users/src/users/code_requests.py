"""Requests for codes by mail, answered before anybody looks whether the address has an account.

So the answer costs the same either way, and its time tells nobody who has an account: the request writes a row, and a task
of each replica deals with the rows a moment later. A row that was committed is not lost.
"""

import asyncio
from contextlib import suppress
from typing import Literal

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Database, wake_after_commit
from shared.logs import get_logger
from users import account
from users.clients import Client
from users.errors import UserNotFound
from users.models import CodeRequest
from users.settings import UsersSettings

log = get_logger(__name__)

SWEEP_INTERVAL = 5.0
"""Seconds after which rows are looked for that a replica left which is gone."""

Purpose = Literal["verify_email", "reset_password"]


class CodeRequests:
    """Takes requests, and deals with them while `run` runs."""

    def __init__(self, database: Database, settings: UsersSettings) -> None:
        self._database = database
        self._settings = settings
        self._written = asyncio.Event()

    def add(self, session: AsyncSession, purpose: Purpose, email: str, *, client: Client) -> None:
        """Put a request on the list."""
        session.add(
            CodeRequest(purpose=purpose, email=email, address=client.address, request_id=client.request_id)
        )
        wake_after_commit(session, self._written)

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            self._written.clear()
            try:
                while await self._deal_with_one():
                    pass
            except (SQLAlchemyError, OSError) as error:
                log.warning("code_requests.interrupted", error=type(error).__name__)
            with suppress(TimeoutError):
                async with asyncio.timeout(SWEEP_INTERVAL):
                    await self._written.wait()

    async def _deal_with_one(self) -> bool:
        first = select(CodeRequest).order_by(CodeRequest.id).limit(1).with_for_update(skip_locked=True)
        async with self._database.transaction() as session:
            request = await session.scalar(first)
            if request is None:
                return False
            await session.delete(request)
            client = Client(address=request.address, request_id=request.request_id)
            with suppress(UserNotFound):  # deleted in this moment
                if request.purpose == "verify_email":
                    await account.send_verification(session, self._settings, request.email, client=client)
                else:
                    await account.send_password_reset(session, self._settings, request.email, client=client)
        return True
