"""Wrong passwords make the next try wait (SECURITY U4).

They are counted in the database, so that replicas agree, under three keys:

- account and address together: the usual guesser. Only this one binds whoever has logged in to the account from the same
  address before, so that nobody else's guesses can keep the owner out.
- the account, from anywhere: guesses spread over many addresses.
- the address, for any account: one password tried on many accounts.

Past a key's free failures the wait is one second and doubles up to a limit; it ends by itself. Logging in clears the
account's count and that of the pair, a password reset by mail clears all of the account's. An address that fails on other
accounts is not cleared by logging in to one's own. Names are counted whether or not they are accounts: the answers do not
tell. Tries that have to wait are refused before any hashing and count for nothing. Of those that come at once after a wait,
one gets its turn. Only the free failures can be overshot by a burst, by what the hashing pool holds.
"""

import hmac
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from math import ceil
from typing import NamedTuple

from sqlalchemy import case, delete, func, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Database
from users import audit
from users.clients import Client
from users.errors import InvalidCredentials, TooManyAttempts
from users.models import LoginFailures, LoginSession, User
from users.service import email_key
from users.settings import UsersSettings

FIRST_DELAY = 1.0
"""Seconds to wait after the first failure that is one too many."""
ANY_ACCOUNT = b""
ANYWHERE = ""
MAX_ADDRESSES = 1000
"""Addresses of an account's logins that are looked at."""
_MAX_DOUBLINGS = 30


class Key(NamedTuple):
    """What failures are counted for."""

    account: bytes
    address: str


def delay(failures: int, *, free: int, limit: float) -> float:
    """Return the seconds to wait after so many failures, of which the first `free` cost nothing."""
    if failures < free:
        return 0.0
    return float(min(limit, FIRST_DELAY * 2 ** min(failures - free, _MAX_DOUBLINGS)))


@asynccontextmanager
async def guarding(
    database: Database, settings: UsersSettings, *, email: str, client: Client
) -> AsyncIterator[None]:
    """Let a password be tried; InvalidCredentials out of the block is a failure, its end without an error a success.

    No connection is held while the block runs.

    Raises:
        TooManyAttempts: there were too many failures; the block does not run.
    """
    account = _account_key(settings, email)
    pair, everywhere = Key(account, client.network), Key(account, ANYWHERE)
    async with database.reading() as session:
        counted = await _counted(session, settings, (pair, everywhere, Key(ANY_ACCOUNT, client.network)))
        binding = {key: count for key, count in counted.items() if count.delay > 0}
        if binding.keys() - {pair} and await _is_familiar(session, email, client):
            binding = {key: count for key, count in binding.items() if key == pair}
    if (wait := max((count.wait for count in binding.values()), default=0.0)) > 0:
        raise TooManyAttempts(ceil(wait))
    await _take_turn(database, binding)
    try:
        yield
    except InvalidCredentials:
        async with database.transaction() as session:
            await _count(session, settings, (pair, everywhere, Key(ANY_ACCOUNT, client.network)))
            known = await session.scalar(select(User.id).where(User.email_key == email_key(email)))
            await audit.note(session, "login.failed", subject_user_id=known, client=client)
        raise
    if counted.keys() & {pair, everywhere}:
        async with database.transaction() as session:
            await _forget(session, pair, everywhere)


async def forgive(session: AsyncSession, settings: UsersSettings, email: str) -> None:
    """Forget all failures of an account, wherever they came from."""
    account = _account_key(settings, email)
    await session.execute(delete(LoginFailures).where(LoginFailures.account == account))


async def prune(session: AsyncSession, settings: UsersSettings) -> None:
    """Delete counts that no longer count."""
    window = timedelta(seconds=settings.throttle_window)
    await session.execute(delete(LoginFailures).where(LoginFailures.last_at < func.now() - window))


def _account_key(settings: UsersSettings, email: str) -> bytes:
    return hmac.digest(settings.throttle_key, email_key(email).encode(), "sha256")


class _Count(NamedTuple):
    """What the failures of a key mean for the next try."""

    delay: float
    """Seconds between two tries."""
    wait: float
    """Seconds that are left of them; none left is 0 or less."""
    last_at: datetime


async def _counted(
    session: AsyncSession, settings: UsersSettings, keys: tuple[Key, ...]
) -> dict[Key, _Count]:
    """Return the count of each key that has failures."""
    age = func.extract("epoch", func.now() - LoginFailures.last_at)
    found = await session.execute(
        select(LoginFailures, age).where(tuple_(LoginFailures.account, LoginFailures.address).in_(keys))
    )
    counted = {}
    for row, seconds in found:
        key = Key(row.account, row.address)
        seconds_between = delay(row.failures, free=_free(settings, key), limit=settings.throttle_max_delay)
        counted[key] = _Count(seconds_between, seconds_between - float(seconds), row.last_at)
    return counted


async def _take_turn(database: Database, binding: Mapping[Key, _Count]) -> None:
    """Begin the next wait before the try: of many that come when a wait is over, one is first.

    Raises:
        TooManyAttempts: another one was.
    """
    if not binding:
        return
    async with database.transaction() as session:
        for key, count in sorted(binding.items()):
            turn = (
                update(LoginFailures)
                .where(
                    LoginFailures.account == key.account,
                    LoginFailures.address == key.address,
                    LoginFailures.last_at == count.last_at,
                )
                .values(last_at=func.now())
                .returning(LoginFailures.failures)
            )
            if await session.scalar(turn) is None:
                raise TooManyAttempts(ceil(count.delay))


def _free(settings: UsersSettings, key: Key) -> int:
    if key.account == ANY_ACCOUNT:
        return settings.throttle_address_failures
    return settings.throttle_account_failures if key.address == ANYWHERE else settings.throttle_pair_failures


async def _is_familiar(session: AsyncSession, email: str, client: Client) -> bool:
    """Say whether somebody has logged in to this account from this address (or line) before."""
    addresses = (
        select(LoginSession.address)
        .join(User, User.id == LoginSession.user_id)
        .where(User.email_key == email_key(email))
        .distinct()
        .limit(MAX_ADDRESSES)
    )
    return client.network in {Client(address=address).network for address in await session.scalars(addresses)}


async def _count(session: AsyncSession, settings: UsersSettings, keys: tuple[Key, ...]) -> None:
    # Sorted, so that parallel failures lock the rows they share in one order.
    counting = insert(LoginFailures).values(
        [{"account": key.account, "address": key.address, "failures": 1} for key in sorted(keys)]
    )
    window = timedelta(seconds=settings.throttle_window)
    is_old = LoginFailures.last_at < func.now() - window
    await session.execute(
        counting.on_conflict_do_update(
            index_elements=[LoginFailures.account, LoginFailures.address],
            set_={"failures": case((is_old, 1), else_=LoginFailures.failures + 1), "last_at": func.now()},
        )
    )


async def _forget(session: AsyncSession, *keys: Key) -> None:
    await session.execute(
        delete(LoginFailures).where(tuple_(LoginFailures.account, LoginFailures.address).in_(keys))
    )
