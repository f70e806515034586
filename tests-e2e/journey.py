"""What journeys are made of: the system, and the people who use it through its one URL."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

from shared.ids import new_id
from shared.testing import eventually

PASSWORD = "correct horse battery"
ADMIN_EMAIL = os.environ.get("ADMIN_EMAIL", "admin@example.com")
ADMIN_PASSWORD = os.environ.get("ADMIN_PASSWORD", "the admin's password")
"""The first admin: of the system that the journeys start, or of the one that BASE_URL names."""


_PORTS = {"gateway": 8000, "users": 8001, "items": 8002, "notifications": 8003}
_METRICS_PORT = 8090


@dataclass(frozen=True)
class System:
    """The running system. `data_dir` is there where the journeys started it themselves."""

    url: str
    data_dir: Path | None = None
    supervisor: int = 0
    """Pid of the embedded stack."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the embedded stack was started with."""

    @property
    def socket_url(self) -> str:
        """Where the live stream is."""
        return self.url.replace("http", "ws", 1) + "/v1/ws"

    @property
    def metrics_url(self) -> str:
        """Where the embedded gateway answers with its metrics: on a port of its own, not open to clients."""
        return (
            f"http://127.0.0.1:{int(self.url.rpartition(':')[2]) - _PORTS['gateway'] + _METRICS_PORT}/metrics"
        )

    async def numbers(self, process: str) -> dict[str, float]:
        """Return what a service of the embedded stack counts, by series."""
        url = f"http://127.0.0.1:{self.offset + _METRICS_PORT + _PORTS[process] - _PORTS['gateway']}/metrics"
        async with httpx.AsyncClient(trust_env=False) as client:
            lines = (await client.get(url)).text.splitlines()
        series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(number) for name, _, number in series}

    @property
    def offset(self) -> int:
        """What the embedded stack adds to every port."""
        return int(self.url.rpartition(":")[2]) - _PORTS["gateway"]

    def pid(self, process: str) -> int:
        """Return the pid of a process of the embedded stack."""
        assert self.data_dir is not None
        return int((self.data_dir / "run" / f"{process}.pid").read_text())

    def kill(self, process: str, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to a process; returns the pid it had."""
        pid = self.pid(process)
        os.kill(pid, number)
        return pid

    async def restarted(self, process: str, before: int) -> None:
        """Wait until the supervisor has replaced a process and the system serves again."""

        def replaced() -> bool:
            return self.pid(process) != before

        await eventually(replaced, within=30)
        if process in _PORTS:
            port = _PORTS[process] - _PORTS["gateway"] + int(self.url.rpartition(":")[2])
            await self._answers_ready(f"http://127.0.0.1:{port}")
        await self._answers_ready(self.url)

    async def _answers_ready(self, url: str) -> None:
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

            async def is_ready() -> bool:
                try:
                    answer = await client.get("/health/ready")
                except httpx.TransportError:
                    return False
                return answer.status_code == 200 and answer.json()["status"] == "ready"

            await eventually(is_ready, within=60)


class Person:
    """Somebody with an account, an access token and an HTTP client."""

    def __init__(self, system: System, http: httpx.AsyncClient, *, email: str, password: str) -> None:
        self.system = system
        self.http = http
        self.email = email
        self.password = password
        self.id = 0
        self.token = ""

    async def register(self) -> None:
        """Make the account."""
        response = await self.http.post("/v1/users", json={"email": self.email, "password": self.password})
        assert response.status_code == 201, response.text
        self.id = response.json()["id"]

    async def log_in(self) -> None:
        """Get an access token, used from then on."""
        response = await self.http.post(
            "/v1/users/token", data={"username": self.email, "password": self.password}
        )
        assert response.status_code == 200, response.text
        self.token = response.json()["access_token"]
        self.http.headers["Authorization"] = f"Bearer {self.token}"

    async def logs_in(self) -> bool:
        """Log in; for waiting until that works."""
        await self.log_in()
        return True

    async def offer(self, name: str = "Brass compass", price: float = 19.99) -> dict[str, Any]:
        """Create an item."""
        response = await self.http.post("/v1/items", json={"name": name, "price": price})
        assert response.status_code == 201, response.text
        item: dict[str, Any] = response.json()
        return item

    async def notifications(self) -> list[dict[str, Any]]:
        """List the own notifications, newest first."""
        response = await self.http.get("/v1/notifications", params={"limit": 200})
        assert response.status_code == 200, response.text
        found: list[dict[str, Any]] = response.json()
        return found

    async def all_notifications(self) -> list[dict[str, Any]]:
        """Return every own notification, page by page."""
        found: list[dict[str, Any]] = []
        url: str | None = "/v1/notifications?limit=200"
        while url is not None:
            response = await self.http.get(url)
            assert response.status_code == 200, response.text
            found += response.json()
            url = response.links["next"]["url"] if "next" in response.links else None
        return found

    async def notified(self, kind: str, **data: object) -> list[dict[str, Any]]:
        """Wait for notifications of a kind about something."""

        async def arrived() -> list[dict[str, Any]]:
            return [
                notification
                for notification in await self.notifications()
                if notification["kind"] == kind and data.items() <= notification["data"].items()
            ]

        return await eventually(arrived, within=30)

    @asynccontextmanager
    async def watching(self, topic: str, cursor: str | None = None) -> AsyncIterator["Watch"]:
        """Open a socket that is subscribed to a topic."""
        headers = {"Authorization": f"Bearer {self.token}"}
        async with connect(self.system.socket_url, additional_headers=headers, proxy=None) as socket:
            watch = Watch(socket)
            assert (await watch.frame())["type"] == "ready"
            await socket.send(json.dumps({"type": "subscribe", "topic": topic, "cursor": cursor}))
            subscribed = await watch.frame()
            assert subscribed["type"] == "subscribed", subscribed
            watch.cursor = subscribed["cursor"]
            yield watch


class Watch:
    """A subscribed socket, and how far it has read."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.cursor = ""

    async def frame(self) -> dict[str, Any]:
        """Return the next frame."""
        async with asyncio.timeout(30):
            frame: dict[str, Any] = json.loads(await self.socket.recv())
        return frame

    async def event(self) -> dict[str, Any]:
        """Return the next event."""
        frame = await self.frame()
        assert frame["type"] == "event", frame
        self.cursor = frame["cursor"]
        event: dict[str, Any] = frame["event"]
        return event


def unique_email() -> str:
    """Return an address nobody has yet."""
    return f"{new_id()}@example.com"
