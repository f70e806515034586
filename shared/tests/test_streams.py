"""The streams: made once by whoever comes first, changed by the operator only."""

import asyncio
import os
import sys
from typing import Any

import pytest
from nats.errors import Error as NATSError
from nats.js.api import StorageType, StreamConfig
from nats.js.errors import APIError
from structlog.testing import capture_logs

from shared.streams import COMMANDS, DEAD, EVENTS, REVOCATIONS, StreamConflict, declarations, declare, ensure
from shared.testing import free_port

pytestmark = pytest.mark.integration


async def test_replicas_that_race_make_one_stream(connected: Any) -> None:
    async with connected("users") as users, connected("items") as items, connected("notifications") as third:
        made = await asyncio.gather(*(ensure(broker.js, EVENTS) for broker in (users, items, third) * 4))

    assert len({(info.config.metadata or {})["epoch"] for info in made}) == 1


async def test_ensure_keeps_what_there_is(connected: Any) -> None:
    async with connected("items") as broker:
        first = await ensure(broker.js, EVENTS)
        again = await ensure(broker.js, EVENTS)

    assert first.config == again.config


async def test_declare_updates_a_stream_and_keeps_its_epoch(connected: Any) -> None:
    async with connected("operator") as broker:
        await declare(broker.js)
        before = (await broker.js.stream_info(EVENTS)).config
        older = next(stream for stream in declarations() if stream.name == EVENTS)
        older.max_age = 7200
        older.metadata = before.metadata
        await broker.js.update_stream(older)

        await declare(broker.js)

        after = (await broker.js.stream_info(EVENTS)).config
        assert after.max_age == before.max_age
        assert (after.metadata or {})["epoch"] == (before.metadata or {})["epoch"]
        assert {str(info.config.name) for info in await broker.js.streams_info()} == {
            EVENTS,
            COMMANDS,
            REVOCATIONS,
            DEAD,
        }


async def test_conflict_says_so_and_changes_nothing(connected: Any) -> None:
    async with connected("operator") as broker:
        await broker.js.add_stream(
            StreamConfig(name=EVENTS, subjects=["events.>"], storage=StorageType.MEMORY)
        )

        with pytest.raises(
            StreamConflict, match=r"EVENTS cannot be changed: .*storage should be file, not memory"
        ):
            await declare(broker.js)

        assert (await broker.js.stream_info(EVENTS)).config.storage == StorageType.MEMORY


async def test_service_says_what_of_a_stream_is_not_as_declared(connected: Any) -> None:
    async with connected("operator") as operator, connected("items") as items:
        await declare(operator.js)
        with capture_logs() as logs:
            await ensure(items.js, EVENTS)
        assert logs == []

        older = (await operator.js.stream_info(EVENTS)).config
        older.max_age = 7200
        await operator.js.update_stream(older)
        with capture_logs() as logs:
            info = await ensure(items.js, EVENTS)

    assert info.config.max_age == 7200
    (said,) = logs
    assert (said["event"], said["stream"]) == ("stream.differs", EVENTS)
    assert said["max_age"] == "2592000.0, not 7200.0"


async def test_services_may_neither_change_nor_delete_a_stream(connected: Any) -> None:
    async with connected("operator") as operator, connected("items") as items:
        await declare(operator.js)
        items.js._timeout = 0.3  # a refused request is never answered
        with pytest.raises((NATSError, APIError, TimeoutError)):
            await items.js.delete_stream(EVENTS)
        with pytest.raises((NATSError, APIError, TimeoutError)):
            await items.js.publish("events.users.user.registered.1", b"{}")

        state = (await operator.js.stream_info(EVENTS)).state
        assert state.messages == 0


async def _declare_by_command(environment: dict[str, str]) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "shared.streams",
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    return process.returncode, errors.decode()


async def test_command_declares_the_streams_twice_over(nats_server: Any, connected: Any) -> None:
    environment = nats_server.environment("operator")

    assert await _declare_by_command(environment) == (0, "")
    assert await _declare_by_command(environment) == (0, "")

    async with connected("operator") as broker:
        assert {str(info.config.name) for info in await broker.js.streams_info()} == {
            EVENTS,
            COMMANDS,
            REVOCATIONS,
            DEAD,
        }


async def test_command_says_in_one_sentence_what_stopped_it(nats_server: Any, connected: Any) -> None:
    async with connected("operator") as broker:
        await broker.js.add_stream(StreamConfig(name=DEAD, subjects=["dead.>"], storage=StorageType.MEMORY))

    code, errors = await _declare_by_command(nats_server.environment("operator"))

    assert code == 1
    assert errors.startswith("streams: Stream DEAD cannot be changed")
    assert errors.count("\n") == 1


async def test_command_gives_up_when_nobody_answers() -> None:
    port = free_port()

    code, errors = await _declare_by_command(
        {"NATS_URL": f"nats://127.0.0.1:{port}", "STREAMS_DECLARE_TIMEOUT": "1"}
    )

    assert code == 1
    assert errors == f"streams: no answer from nats://127.0.0.1:{port} within 1 s.\n"
