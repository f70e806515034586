"""The life of signing keys: published → signing → verifying → retired, by the times stored with each key.

A new key is published for a while before it signs, so that every verifier has it by then; one that signs no more is still
published until the last token it signed has expired. So a rotation causes no false 401. Replicas read the same rows, and
agree on the key that signs.
"""

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Literal, NamedTuple

import orjson
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from shared.database import Database
from shared.logs import get_logger
from shared.times import utc_now
from shared.tokens import LEEWAY
from users import audit
from users.clients import ITSELF, Client
from users.keys import KeyEncryptionMismatch, decrypt, new_signing_key
from users.models import SigningKey
from users.settings import UsersSettings

log = get_logger(__name__)

FOLLOW_INTERVAL = 5.0
"""Seconds between two looks at the keys in the database: how late a replica may learn of a rotation."""
MAX_PUBLISHED = 8
"""Keys in the JWKS: verifiers refuse a set that is too large (jwks.MAX_KEYS)."""
_KEYS_LOCK = 7_305_811_101

KeyState = Literal["published", "signing", "verifying", "retired"]


class KeyInfo(NamedTuple):
    """A key and where it stands in its life."""

    key: SigningKey
    state: KeyState


def life(keys: Sequence[SigningKey], *, now: datetime, token_ttl: int) -> list[KeyInfo]:
    """Say where each key stands; `keys` are in the order in which they begin to sign."""
    found: list[KeyInfo] = []
    for key, successor in zip(keys, (*keys[1:], None), strict=True):
        state: KeyState
        if key.signs_from > now:
            state = "published"
        elif successor is None or successor.signs_from > now:
            state = "signing"
        elif successor.signs_from + timedelta(seconds=token_ttl + LEEWAY + FOLLOW_INTERVAL) > now:
            state = "verifying"
        else:
            state = "retired"
        found.append(KeyInfo(key, state))
    return found


async def all_keys(session: AsyncSession) -> list[SigningKey]:
    """Return every key, in the order in which they begin to sign."""
    return list(
        await session.scalars(select(SigningKey).order_by(SigningKey.signs_from, SigningKey.created_at))
    )


async def rotate(
    session: AsyncSession, settings: UsersSettings, *, by: int | None = None, client: Client = ITSELF
) -> SigningKey:
    """Publish a key that takes over in `key_publication_lead` seconds.

    While one waits to, or as many are published as may be, the newest one is returned.

    Raises:
        KeyEncryptionMismatch: the key in settings does not open the stored ones: nobody could use a key made with it.
    """
    await session.execute(select(func.pg_advisory_xact_lock(_KEYS_LOCK)))
    keys = await all_keys(session)
    now = utc_now()
    if keys:
        decrypt(AESGCM(settings.encryption_key), keys[-1])
        published = sum(
            state != "retired" for _, state in life(keys, now=now, token_ttl=settings.access_token_ttl)
        )
        if keys[-1].signs_from > now or published >= MAX_PUBLISHED:
            return keys[-1]
    lead = timedelta(seconds=settings.key_publication_lead) if keys else timedelta()
    return await _add(session, settings, "key.rotated", signs_from=now + lead, by=by, client=client)


async def replace_all(session: AsyncSession, settings: UsersSettings) -> SigningKey:
    """Put one new key in the place of all others, which need not be readable any more: for a key that was stolen."""
    await session.execute(select(func.pg_advisory_xact_lock(_KEYS_LOCK)))
    await session.execute(delete(SigningKey))
    return await _add(session, settings, "keys.replaced", signs_from=utc_now())


async def _add(
    session: AsyncSession,
    settings: UsersSettings,
    act: Literal["key.rotated", "keys.replaced"],
    *,
    signs_from: datetime,
    by: int | None = None,
    client: Client = ITSELF,
) -> SigningKey:
    key = new_signing_key(AESGCM(settings.encryption_key), signs_from=signs_from)
    session.add(key)
    await session.flush()
    await audit.record(session, act, actor_id=by, client=client, detail={"kid": key.kid})
    log.info("keys.added", act=act, kid=key.kid, signs_from=key.signs_from.isoformat())
    return key


class KeyRing:
    """What this process knows of the keys; `follow` keeps it fresh."""

    def __init__(self, database: Database, settings: UsersSettings) -> None:
        self._database = database
        self._settings = settings
        self._cipher = AESGCM(settings.encryption_key)
        self._keys: list[SigningKey] = []
        self._private: dict[str, EllipticCurvePrivateKey] = {}

    async def load(self) -> None:
        """Read the keys, making the first one if there is none.

        Raises:
            KeyEncryptionMismatch: the key in settings does not open the stored ones.
        """
        async with self._database.reading() as session:
            keys = await all_keys(session)
        if not keys or self._is_due(keys[-1]):
            async with self._database.transaction() as session:
                await self._rotate_if_due(session)
                keys = await all_keys(session)
        self._private = {
            key.kid: self._private.get(key.kid) or decrypt(self._cipher, key)
            for key, state in self._life(keys)
            if state in ("published", "signing")
        }
        self._keys = keys

    async def _rotate_if_due(self, session: AsyncSession) -> None:
        await session.execute(select(func.pg_advisory_xact_lock(_KEYS_LOCK)))
        keys = await all_keys(session)
        if not keys or self._is_due(keys[-1]):  # another replica may have been faster
            await rotate(session, self._settings)

    def _is_due(self, newest: SigningKey) -> bool:
        interval = self._settings.key_rotation_interval
        return bool(interval) and newest.signs_from + timedelta(seconds=interval) <= utc_now()

    async def follow(self) -> None:
        """Keep the ring fresh and rotate by schedule, until cancelled."""
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL)
            try:
                await self.load()
            except (SQLAlchemyError, OSError, KeyEncryptionMismatch) as error:
                # It goes on with the keys it has: better than to stop where others have gone wrong.
                log.warning("keys.not_read", error=type(error).__name__)

    def _life(self, keys: Sequence[SigningKey]) -> list[KeyInfo]:
        return life(keys, now=utc_now(), token_ttl=self._settings.access_token_ttl)

    def signing_key(self) -> tuple[str, EllipticCurvePrivateKey]:
        """Return the id and the private half of the key that signs now."""
        kid = next(key.kid for key, state in self._life(self._keys) if state == "signing")
        return kid, self._private[kid]

    def jwks(self) -> bytes:
        """Return the JSON Web Key Set (RFC 7517): every key that signs, will sign, or has signed what may still be valid."""
        return orjson.dumps(
            {"keys": [key.public_jwk for key, state in self._life(self._keys) if state != "retired"]}
        )
