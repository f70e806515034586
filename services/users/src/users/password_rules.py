"""Which passwords nobody may have: those that are guessed first, and those that were in a breach."""

import hashlib

import httpx
from zxcvbn_rs_py import zxcvbn

from shared.logs import get_logger
from users.errors import PasswordBreached, PasswordTooCommon

log = get_logger(__name__)

COMMON_GUESSES = 10**6
"""A password that zxcvbn expects to be found by fewer guesses is common: a known one, or a known one dressed up."""
LONGEST_COMMON = 24
"""Longer ones are not judged: no common one is, and the time to judge grows fast (30 ms for the worst of this length)."""
BREACH_TIMEOUT = 2.0
"""Seconds that a breach list may take; then the password is accepted."""
MAX_RANGE_BYTES = 1024 * 1024


def is_common(password: str) -> bool:
    """Say whether a password is on the lists, or close to it: `Password1234!`, `qwertyuiop12`, `aaaaaaaaaaaa`."""
    return len(password) <= LONGEST_COMMON and zxcvbn(password).guesses < COMMON_GUESSES


class PasswordRules:
    """Judges new passwords, before anything is spent on hashing them (SECURITY U2)."""

    def __init__(self, breach_range_url: str) -> None:
        """Ask the breach list at this URL; empty: none."""
        self._breaches = BreachList(breach_range_url) if breach_range_url else None

    async def check_password(self, password: str) -> None:
        """Accept a password, or say why not.

        Raises:
            PasswordTooCommon: it is among those that are guessed first.
            PasswordBreached: the breach list has it.
        """
        if is_common(password):
            raise PasswordTooCommon
        if self._breaches is not None and await self._breaches.has(password):
            raise PasswordBreached

    async def aclose(self) -> None:
        """Close the connections to the breach list."""
        if self._breaches is not None:
            await self._breaches.aclose()


class BreachList:
    """A list of breached passwords that is asked by k-anonymity: it sees five digits of a SHA-1, never a password.

    The protocol is that of Have I Been Pwned's range search, which others can serve from their own network too.
    """

    def __init__(self, range_url: str) -> None:
        self._range_url = range_url.rstrip("/")
        self._http = httpx.AsyncClient(
            timeout=BREACH_TIMEOUT, trust_env=False, headers={"Add-Padding": "true"}
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def has(self, password: str) -> bool:
        """Say whether a password is listed. A list that cannot be asked lists nothing: it must not stop registration."""
        digest = hashlib.sha1(password.encode(), usedforsecurity=False).hexdigest().upper()
        try:
            async with self._http.stream("GET", f"{self._range_url}/{digest[:5]}") as response:
                response.raise_for_status()
                listed = await _read(response)
        except httpx.HTTPError as error:
            log.warning("breaches.not_asked", error=type(error).__name__)
            return False
        # Lines of `SUFFIX:COUNT`; a count of 0 is padding.
        counts = dict(line.strip().partition(":")[::2] for line in listed.splitlines())
        return counts.get(digest[5:], "0") != "0"


async def _read(response: httpx.Response) -> str:
    read = bytearray()
    async for chunk in response.aiter_bytes():
        read += chunk
        if len(read) > MAX_RANGE_BYTES:
            raise httpx.DecodingError("the answer is too large", request=response.request)
    return read.decode("ascii", "replace")
