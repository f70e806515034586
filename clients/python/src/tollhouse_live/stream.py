"""The stream: one connection at a time, made anew from the last cursor whenever it is lost."""

import asyncio
import json
import logging
import random
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

import httpx
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from tollhouse_live.messages import Event, Gap
from tollhouse_live.tokens import LoginFailed, Tokens

log = logging.getLogger("tollhouse_live")

FIRST_WAIT = 0.25
LONGEST_WAIT = 30.0
"""Seconds until a lost connection is made anew: at random up to a bound that doubles with every failure in a row."""
MAX_REFUSALS = 2
"""Fresh tokens in a row that may be refused before it is the person who is refused."""

_TOKEN_TROUBLE = frozenset({1008, 4401})


class Refused(Exception):
    """The server will not serve this stream, however often it is asked."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        """A problem code of the API (`GET /errors` lists them)."""


class LiveStream:
    """Iterate over events of some topics: each once, in order, through cut connections and restarts.

    Use it as an async context manager. Iterating raises Refused or LoginFailed when no reconnecting would help.
    """

    def __init__(
        self,
        url: str,
        tokens: Tokens,
        topics: Iterable[str],
        *,
        cursors: Mapping[str, str] | None = None,
        ping_interval: float = 20.0,
        trust_env: bool = False,
    ) -> None:
        """`url` is the system's, http(s)://…; `cursors` say, by topic, where to go on from an earlier run."""
        parts = urlsplit(url)
        scheme = {"http": "ws", "https": "wss"}[parts.scheme]
        self._url = f"{scheme}://{parts.netloc}{parts.path.rstrip('/')}/v1/ws"
        self._tokens = tokens
        self._topics = tuple(topics)
        self._ping_interval = ping_interval
        self._proxy: Literal[True] | None = True if trust_env else None
        self._socket: ClientConnection | None = None
        self._followed: set[str] = set()
        self._received: deque[Event | Gap] = deque()
        self._failures = 0
        self._refusals = 0
        self.cursors: dict[str, str] = dict(cursors or {})
        """Where each topic is, as far as it was iterated over. Store them to go on in a later run."""
        self.connections = 0
        """Connections made so far."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        socket, self._socket = self._socket, None
        if socket is not None:
            await socket.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event | Gap:
        while not self._received:
            await self._step()
        message = self._received.popleft()
        self.cursors[message.topic] = message.cursor if isinstance(message, Event) else message.end
        return message

    async def ready(self) -> None:
        """Return once every topic is followed: nothing that happens from then on is missed."""
        while not all(topic in self._followed for topic in self._topics):
            await self._step()

    async def _step(self) -> None:
        """Connect, or read one frame."""
        try:
            if self._socket is None:
                await self._connect()
            else:
                await self._read(json.loads(await self._socket.recv()))
        except (OSError, httpx.HTTPError, InvalidHandshake, ConnectionClosed) as error:
            await self._wait(error)

    async def _connect(self) -> None:
        token = await self._tokens.token(fresh=self._refusals > 0)
        socket = await connect(
            self._url,
            additional_headers={"Authorization": f"Bearer {token}"},
            ping_interval=self._ping_interval,
            ping_timeout=self._ping_interval,
            max_size=None,
            proxy=self._proxy,
        )
        self._socket = socket
        self.connections += 1
        self._received.clear()  # it comes again, from the cursors
        self._followed.clear()
        for topic in self._topics:
            await socket.send(
                json.dumps({"type": "subscribe", "topic": topic, "cursor": self.cursors.get(topic)})
            )

    async def _read(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "event":
                self._received.append(Event(frame["topic"], frame["cursor"], frame["event"]))
            case "gap":
                self._received.append(Gap(frame["topic"], frame["from"], frame["to"]))
            case "subscribed":
                self._followed.add(frame["topic"])
                self.cursors.setdefault(frame["topic"], frame["cursor"])
                self._failures = 0
            case "ready":
                self._refusals = 0
            case "expiring":
                await self._authenticate_again()
            case "error" if frame["code"] != "keys_unavailable":
                raise Refused(frame["code"], frame["detail"])
            case _:
                pass  # what a later version of the server may say is for later versions of clients

    async def _authenticate_again(self) -> None:
        """Send a new token in time. Failing that, the server closes the socket, and reconnecting asks for one again."""
        try:
            token = await self._tokens.token(fresh=True)
        except (OSError, httpx.HTTPError, LoginFailed) as error:
            log.warning("no new token: %s", error)
            return
        if self._socket is not None:
            await self._socket.send(json.dumps({"type": "auth", "token": token}))

    async def _wait(self, error: Exception) -> None:
        """Wait before the next attempt, or raise where none would help."""
        self._socket = None
        wait = random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**self._failures))  # noqa: S311  # spreads load
        self._failures += 1
        if isinstance(error, InvalidStatus):
            response = error.response
            if response.status_code == 401:
                self._refused(error)
            elif response.status_code in (429, 502, 503, 504):
                wait += float(response.headers.get("Retry-After", "0"))
            else:
                raise Refused(
                    f"http_{response.status_code}", response.body.decode(errors="replace")
                ) from error
        elif isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.code in _TOKEN_TROUBLE:
            self._refused(error)
        log.info("connection lost (%s); trying again in %.1f s", error, wait)
        await asyncio.sleep(wait)

    def _refused(self, error: Exception) -> None:
        self._refusals += 1
        if self._refusals > MAX_REFUSALS:
            raise Refused("invalid_token", "Fresh access tokens are refused, too.") from error
