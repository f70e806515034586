"""The permissions of the NATS users, held by a real server."""

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import APIError

from shared.testing import free_port
from stack import command, services
from stack import nats as nats_server
from stack.errors import StackError

pytestmark = pytest.mark.integration


class Clients:
    """Connections to one server, by user; what the server refuses is in `refused`."""

    def __init__(self, port: int, passwords: dict[str, str]) -> None:
        self.refused: asyncio.Queue[str] = asyncio.Queue()
        self.open = AsyncExitStack()
        self._port = port
        self._passwords = passwords

    async def connect(self, user: str) -> Client:
        async def refuse(error: Exception) -> None:
            self.refused.put_nowait(str(error))

        client = await nats.connect(
            f"nats://127.0.0.1:{self._port}",
            user=user,
            password=self._passwords[user],
            inbox_prefix=f"_INBOX_{user}".encode(),
            error_cb=refuse,
        )
        self.open.push_async_callback(client.close)
        return client


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[nats_server.Server, dict[str, str]]]:
    reading = nats_server.consumes("EVENTS", "reader", "events.users.>")
    grants = {**nats_server.GRANTS, "reader": nats_server.Grant(reading, ("_INBOX_reader.>",))}
    passwords = nats_server.passwords_for(grants)
    configured = nats_server.write_config(tmp_path, free_port(), passwords, grants=grants, durable=False)
    process = command.spawn(nats_server.command(configured), stderr=subprocess.DEVNULL)
    nats_server.wait_ready(configured, alive=lambda: process.poll() is None)
    yield configured, passwords
    process.terminate()
    process.wait()


@pytest.fixture
async def clients(server: tuple[nats_server.Server, dict[str, str]]) -> AsyncIterator[Clients]:
    configured, passwords = server
    clients = Clients(configured.port, passwords)
    async with clients.open:
        streams = (await clients.connect(nats_server.OPERATOR)).jetstream()
        for name in nats_server.STREAMS:
            await streams.add_stream(name=name, subjects=[f"{name.lower()}.>"])
        yield clients


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("items", "events.users.session.revoked.1"),
        ("gateway", "events.users.session.revoked.1"),
        ("notifications", "events.items.item.created.1"),
        ("items", "commands.notifications.mail"),
        ("gateway", "commands.notifications.mail"),
        ("items", "dead.users.x"),
        ("items", "$JS.API.STREAM.DELETE.EVENTS"),
        ("users", "$JS.API.STREAM.PURGE.EVENTS"),
        ("items", "$JS.API.CONSUMER.CREATE.COMMANDS.notifications"),
        ("items", "$JS.API.STREAM.MSG.GET.COMMANDS"),
        ("items", "poke.users"),
    ],
)
async def test_a_forged_message_is_refused_by_the_server(clients: Clients, user: str, subject: str) -> None:
    client = await clients.connect(user)
    await client.publish(subject, b"{}")
    assert subject.lower() in await asyncio.wait_for(clients.refused.get(), 5)


@pytest.mark.parametrize("subject", ["events.>", "commands.>", "_INBOX.>", "_INBOX_users.>", "$JS.ACK.>"])
async def test_nobody_listens_to_what_is_not_theirs(clients: Clients, subject: str) -> None:
    client = await clients.connect("items")
    await client.subscribe(subject)
    assert subject.lower() in await asyncio.wait_for(clients.refused.get(), 5)


async def test_a_consumer_cannot_be_bent_to_another_subject(clients: Clients) -> None:
    reader = (await clients.connect("reader")).jetstream(timeout=2)
    await reader.pull_subscribe("events.users.>", durable="reader", stream="EVENTS")
    # The subject of the request is allowed; the filter in its body is the one that would count.
    honest = "$JS.API.CONSUMER.CREATE.EVENTS.reader.events.users.>"
    config = {"durable_name": "reader", "ack_policy": "explicit", "filter_subject": "events.>"}
    body = json.dumps({"stream_name": "EVENTS", "config": config}).encode()
    with pytest.raises(APIError, match="filter"):
        await reader._jsm._api_request(honest, body)


async def test_what_services_need_they_may(clients: Clients) -> None:
    users, notifications = await clients.connect("users"), await clients.connect("notifications")
    await users.jetstream().publish("events.users.user.registered.1", b"{}")
    await users.jetstream().publish("commands.notifications.mail", b"{}")
    stream = notifications.jetstream()
    events = await stream.pull_subscribe("events.>", durable="notifications", stream="EVENTS")
    (message,) = await events.fetch(1, timeout=5)
    await message.ack_sync()
    assert clients.refused.empty()


def test_every_service_has_its_grant() -> None:
    assert set(nats_server.GRANTS) == {spec.name for spec in services.TOLLHOUSE.services} | {
        nats_server.OPERATOR
    }


def test_the_configuration_is_closed_to_others_and_durable_by_default(tmp_path: Path) -> None:
    configured = nats_server.write_config(tmp_path, 4222, nats_server.passwords_for(nats_server.GRANTS))
    assert configured.config.stat().st_mode & 0o777 == 0o600
    assert '"sync_interval": "always"' in configured.config.read_text()


def test_another_server_on_the_port_is_not_taken_for_ours(
    server: tuple[nats_server.Server, dict[str, str]], tmp_path: Path
) -> None:
    running, passwords = server
    other = tmp_path / "other"
    other.mkdir()
    assert nats_server.is_ready(running)
    assert not nats_server.is_ready(nats_server.write_config(other, running.port, passwords))


def test_health_is_the_running_servers_and_not_that_of_one_that_was_killed(tmp_path: Path) -> None:
    passwords = nats_server.passwords_for(nats_server.GRANTS)
    configured = nats_server.write_config(tmp_path, free_port(), passwords, durable=False)
    assert not nats_server.is_healthy(configured)
    for _ in range(2):
        nats_server.clear_stale_ports(configured)
        process = command.spawn(nats_server.command(configured), stderr=subprocess.DEVNULL)
        nats_server.wait_ready(configured, alive=lambda: process.poll() is None)  # noqa: B023  # called right here
        deadline = time.monotonic() + 30
        while not nats_server.is_healthy(configured):  # the file with its port comes a moment later
            assert time.monotonic() < deadline
        process.kill()
        process.wait()
        assert list(tmp_path.glob(nats_server.PORTS_FILES))
        assert not nats_server.is_healthy(configured)


def test_a_server_that_dies_is_not_waited_for(tmp_path: Path) -> None:
    absent = nats_server.write_config(tmp_path, free_port(), nats_server.passwords_for(nats_server.GRANTS))
    with pytest.raises(StackError, match="ended before it was ready"):
        nats_server.wait_ready(absent, alive=lambda: False)
    with pytest.raises(StackError, match="not ready within 0 s"):
        nats_server.wait_ready(absent, alive=lambda: True, timeout=0)
