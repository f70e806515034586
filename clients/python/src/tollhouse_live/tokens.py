"""Access tokens for a stream that outlives them."""

import asyncio
from typing import Protocol

import httpx

TIMEOUT = 10.0
"""Seconds that the token endpoint has."""


class LoginFailed(Exception):
    """The credentials are refused: logging in, or on, takes new ones."""


class Tokens(Protocol):
    """Where a stream gets its access tokens from."""

    async def token(self, *, fresh: bool) -> str:
        """Return an access token; where `fresh`, not the one that was returned before: it expires or was refused.

        Raises:
            LoginFailed: there will be none.
            OSError, httpx.HTTPError: there is none just now.
        """


class AccessToken:
    """One token from elsewhere: the stream lasts as long as it does."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self, *, fresh: bool = False) -> str:
        """Return the token (see Tokens)."""
        if fresh:
            raise LoginFailed("the access token has expired or is refused")
        return self._token


class Session:
    """A person's session: logs in once, then refreshes. Refresh tokens are single-use, so one session serves one program."""

    def __init__(
        self,
        url: str,
        *,
        username: str = "",
        password: str = "",
        refresh_token: str = "",
        trust_env: bool = False,
    ) -> None:
        """Log in with an address and a password at the first need, or go on with a refresh token."""
        self._url = f"{url.rstrip('/')}/v1/users/token"
        self._login = {"grant_type": "password", "username": username, "password": password}
        self._trust_env = trust_env
        self._access_token = ""
        self._one_at_a_time = asyncio.Lock()
        self.refresh_token = refresh_token
        """The newest one; store it to go on after a restart without the password."""

    async def token(self, *, fresh: bool = False) -> str:
        """Return an access token (see Tokens)."""
        before = self._access_token
        async with self._one_at_a_time:
            if not self._access_token or (fresh and self._access_token == before):
                await self._obtain()
        return self._access_token

    async def _obtain(self) -> None:
        if self.refresh_token:
            grant = {"grant_type": "refresh_token", "refresh_token": self.refresh_token}
        else:
            grant = self._login
        async with httpx.AsyncClient(trust_env=self._trust_env, timeout=TIMEOUT) as http:
            answer = await http.post(self._url, data=grant)
        if answer.status_code in (400, 401) and self.refresh_token and self._login["username"]:
            self.refresh_token = ""  # the session has ended; the password begins another one
            await self._obtain()
            return
        if answer.status_code in (400, 401, 403):
            raise LoginFailed(answer.json().get("detail", "refused"))
        answer.raise_for_status()
        granted = answer.json()
        self._access_token = granted["access_token"]
        self.refresh_token = granted.get("refresh_token", "")
