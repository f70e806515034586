"""`python -m stack.seed N`: offers the first N products on the running system, through its gateway, as a few sellers.

Each product has its idempotency key, so that a run that was cut off is simply repeated: what is there already is not
offered again, for the 24 hours that keys live.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import httpx

from stack import credentials
from stack.errors import StackError
from stack.products import product
from stack.settings import StackSettings

SELLERS = 8
"""People who offer the products, in turn: each has a rate limit of its own."""
REQUESTS_EACH = 2
"""Offers of a seller that are under way at a time."""
PATIENCE = 60.0
"""Seconds without any success after which it gives up."""
MAX_PRODUCTS = 10_000_000


class Seeder:
    """Offers products and counts what became of them."""

    def __init__(self, http: httpx.AsyncClient, password: str, numbers: range, progress: TextIO) -> None:
        self.made = self.known = 0
        self._http = http
        self._password = password
        self._tokens: dict[str, str] = {}
        # A product is always its own seller's: idempotency keys belong to a person.
        self._numbers: Mapping[str, Iterator[int]] = {
            f"seller-{seller}@example.com": iter(numbers[seller - 1 :: SELLERS])
            for seller in range(1, SELLERS + 1)
        }
        self._total = len(numbers)
        self._progress = progress
        self._started = self._succeeded = time.monotonic()
        self._shown = 0.0

    async def run(self) -> None:
        """Offer everything.

        StackError: the system does not answer, or refuses.
        """
        try:
            async with asyncio.TaskGroup() as work:
                for email in self._numbers:
                    work.create_task(self._register(email))
            async with asyncio.TaskGroup() as work:
                for email in self._numbers:
                    for _ in range(REQUESTS_EACH):
                        work.create_task(self._sell(email))
        except ExceptionGroup as failures:
            expected = failures.subgroup(StackError)
            if expected is None:
                raise
            raise expected.exceptions[0] from None
        self._show(last=True)

    async def _register(self, email: str) -> None:
        registered = await self._request(
            "POST", "/v1/users", json={"email": email, "password": self._password}
        )
        if registered.status_code not in (201, 409):
            raise _refusal(registered)
        await self._log_in(email)

    async def _sell(self, email: str) -> None:
        for number in self._numbers[email]:
            answer = await self._offer(number, email)
            if answer.status_code == httpx.codes.UNAUTHORIZED:  # the token has expired meanwhile
                await self._log_in(email)
                answer = await self._offer(number, email)
            if answer.status_code != httpx.codes.CREATED:
                raise _refusal(answer)
            if "idempotent-replayed" in answer.headers:
                self.known += 1
            else:
                self.made += 1
            self._show()

    async def _log_in(self, email: str) -> None:
        form = {"username": email, "password": self._password}
        answer = await self._request("POST", "/v1/users/token", data=form)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise StackError(f"{email} exists already, with another password: give it as SEED_PASSWORD.")
        if answer.status_code != httpx.codes.OK:
            raise _refusal(answer)
        self._tokens[email] = answer.json()["access_token"]

    async def _offer(self, number: int, email: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._tokens[email]}", "Idempotency-Key": f"seed-{number}"}
        return await self._request("POST", "/v1/items", json=product(number), headers=headers)

    async def _request(self, method: str, path: str, **options: object) -> httpx.Response:
        """Send a request until it is answered with something else than "later"."""
        while True:
            try:
                answer = await self._http.request(method, path, **options)  # type: ignore[arg-type]
            except httpx.TransportError as error:
                pause, reason = 1.0, type(error).__name__
            else:
                if not _means_later(answer):
                    self._succeeded = time.monotonic()
                    return answer
                pause, reason = float(answer.headers.get("retry-after", 1)), f"status {answer.status_code}"
            if time.monotonic() - self._succeeded + pause > PATIENCE:
                raise StackError(
                    f"{self._http.base_url} has not taken a product for {PATIENCE:.0f} s ({reason})."
                )
            await asyncio.sleep(pause)

    def _show(self, *, last: bool = False) -> None:
        """Say how far it is: on a terminal in one line four times a second, else every ten seconds."""
        now = time.monotonic()
        in_place = self._progress.isatty()
        if not last and now - self._shown < (0.25 if in_place else 10):
            return
        self._shown = now
        done = self.made + self.known
        text = f"{done} of {self._total} products, {done / max(now - self._started, 0.001):.0f} a second"
        ended = f"{text}; {self.known} were there already" if last and self.known else text
        self._progress.write(f"\r{ended}\033[K" if in_place else f"{ended}\n")
        if last and in_place:
            self._progress.write("\n")
        self._progress.flush()


def _means_later(answer: httpx.Response) -> bool:
    """Say whether the same request should be sent again; a 409 is final but for a twin that still runs."""
    if answer.status_code == httpx.codes.CONFLICT:
        return b'"idempotency_in_progress"' in answer.content
    return answer.status_code in (429, 502, 503, 504)


def _refusal(answer: httpx.Response) -> StackError:
    path = answer.request.url.path
    return StackError(
        f"{answer.request.method} {path} was answered {answer.status_code}: {answer.text[:300]}"
    )


async def seed(url: str, password: str, count: int, progress: TextIO) -> Seeder:
    """Offer the first `count` products on the system at `url`.

    StackError: it does not run, or does not take them.
    """
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        try:
            await http.get("/health")
        except httpx.TransportError:
            raise StackError(f"Nothing answers at {url}: start the system with make run.") from None
        seeder = Seeder(http, password, range(1, count + 1), progress)
        await seeder.run()
        return seeder


def password_of(environment: Mapping[str, str], options: StackSettings) -> str:
    """Return the sellers' password: SEED_PASSWORD, or one that is made for this stack and kept in its DATA_DIR.

    StackError: there is neither.
    """
    if given := environment.get("SEED_PASSWORD"):
        return given
    if not options.data_dir.is_dir():
        raise StackError(
            f"{options.data_dir} is not there: start the system with make run, or give SEED_PASSWORD."
        )
    return credentials.load(options.data_dir / "credentials.json", {"seed": credentials.password})["seed"]


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= MAX_PRODUCTS:
        raise argparse.ArgumentTypeError(f"must be a number from 1 to {MAX_PRODUCTS}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m stack.seed",
        description="Offer the first N products on the running system, as sellers seller-1@example.com and so on. "
        "What is there already is not offered again (for 24 hours). BASE_URL names another system than this "
        "folder's, SEED_PASSWORD the sellers' password (12 characters or more).",
    )
    parser.add_argument("count", type=_count, metavar="N")
    count: int = parser.parse_args(arguments).count
    try:
        options = StackSettings.load(os.environ, Path.cwd())
        url = os.environ.get("BASE_URL", options.gateway_url).rstrip("/")
        asyncio.run(seed(url, password_of(os.environ, options), count, sys.stderr))
    except StackError as failure:
        sys.stderr.write(f"{failure}\n")
        return failure.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("\nThe same command goes on from here.\n")
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
