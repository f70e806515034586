"""Argon2id in a bounded thread pool: a flood of logins slows nobody who does not log in (SECURITY U3)."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pwdlib import PasswordHash
from pwdlib.exceptions import UnknownHashError
from pwdlib.hashers.argon2 import Argon2Hasher

from users.errors import HashingBusy
from users.password_rules import PasswordRules
from users.settings import UsersSettings

T = TypeVar("T")


class Passwords:
    """Hashes and verifies passwords off the event loop, at most so many at a time."""

    def __init__(self, settings: UsersSettings) -> None:
        self._rules = PasswordRules(str(settings.breach_range_url or ""))
        self._hasher = PasswordHash(
            [
                Argon2Hasher(
                    memory_cost=settings.argon2_memory_kib,
                    time_cost=settings.argon2_iterations,
                    parallelism=1,  # one password, one thread of the pool
                )
            ]
        )
        self._pool = ThreadPoolExecutor(settings.hashing_threads, thread_name_prefix="argon2")
        self._limit = settings.hashing_threads + settings.hashing_backlog
        self._running = 0
        # Verified when the account is unknown, so that both cases cost the same (SECURITY U1).
        self._nobodys_hash = self._hasher.hash("nobody has this password")

    async def aclose(self) -> None:
        """Let running hashes end and stop the threads."""
        self._pool.shutdown(cancel_futures=True)
        await self._rules.aclose()

    async def hash(self, password: str) -> str:
        """Return the Argon2id hash of a new password in PHC format; one that nobody may have is never hashed.

        Raises:
            PasswordTooCommon, PasswordBreached: see PasswordRules.check_password.
            HashingBusy: the pool and its queue are full.
        """
        await self._rules.check_password(password)
        return await self._run(lambda: self._hasher.hash(password))

    async def verify(self, password: str, password_hash: str | None) -> tuple[bool, str | None]:
        """Say whether the password fits, and give a new hash when the parameters have grown since.

        Without a hash the same work is done and the answer is no.

        Raises:
            HashingBusy: the pool and its queue are full.
        """

        def verify() -> tuple[bool, str | None]:
            try:
                return self._hasher.verify_and_update(password, password_hash or self._nobodys_hash)
            except UnknownHashError:
                return False, None

        fits, updated = await self._run(verify)
        return (fits, updated) if password_hash is not None else (False, None)

    async def _run(self, work: Callable[[], T]) -> T:
        if self._running >= self._limit:
            raise HashingBusy
        self._running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._running -= 1
