"""Access tokens as RFC 9068 has them."""

from collections.abc import Iterable
from time import time

import jwt

from shared.ids import new_id
from users.key_ring import KeyRing
from users.settings import UsersSettings

CLIENT_ID = "tollhouse"
"""The one first-party client that the password grant is for."""


def issue_access_token(
    settings: UsersSettings, keys: KeyRing, *, user_id: int, session_id: str, scopes: Iterable[str]
) -> str:
    """Return a signed `at+jwt` for the session, valid for `access_token_ttl` seconds."""
    now = int(time())
    claims = {
        "iss": settings.token_issuer,
        "aud": settings.token_audience,
        "sub": str(user_id),
        "client_id": CLIENT_ID,
        "iat": now,
        "exp": now + settings.access_token_ttl,
        "jti": new_id(),
        "sid": session_id,
        "scope": " ".join(sorted(scopes)),
    }
    kid, key = keys.signing_key()
    return jwt.encode(claims, key, algorithm="ES256", headers={"typ": "at+jwt", "kid": kid})
