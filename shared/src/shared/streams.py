"""The JetStream streams: declared here, created by whoever comes first, changed by the operator only.

`python -m shared.streams` creates or safely updates them; services call `ensure`, which only creates what is missing.
"""

import asyncio
import sys
from datetime import timedelta
from typing import ClassVar

import nats.errors
from nats.js import JetStreamContext
from nats.js.api import RetentionPolicy, StorageType, StreamConfig, StreamInfo, StreamSource
from nats.js.errors import APIError, NotFoundError
from pydantic import Field

from shared.broker import Broker
from shared.ids import new_id
from shared.logs import get_logger
from shared.settings import Settings

log = get_logger(__name__)

DUPLICATE_WINDOW = 3600
HOUR = 3600
DAY = 24 * HOUR
MAX_EVENT_AGE = timedelta(days=30)
"""How long the stream keeps an event: until then it may be delivered again."""
_NAME_IN_USE = 10058

EVENTS = "EVENTS"
COMMANDS = "COMMANDS"
DEAD = "DEAD"
REVOCATIONS = "REVOCATIONS"


_DECLARED = ("subjects", "retention", "max_age", "storage", "allow_direct", "duplicate_window")


class StreamConflict(RuntimeError):
    """A stream exists with a configuration that cannot be changed to ours."""


def declarations(replicas: int = 1) -> tuple[StreamConfig, ...]:
    """Return the streams as they should be."""
    common = {"storage": StorageType.FILE, "num_replicas": replicas, "duplicate_window": DUPLICATE_WINDOW}
    return (
        StreamConfig(
            name=EVENTS,
            description="Domain events",
            subjects=["events.>"],
            max_age=MAX_EVENT_AGE.total_seconds(),
            allow_direct=True,
            **common,  # type: ignore[arg-type]
        ),
        StreamConfig(
            name=COMMANDS,
            description="Commands, read once by their receiver; may carry secrets",
            subjects=["commands.>"],
            retention=RetentionPolicy.WORK_QUEUE,
            max_age=DAY,
            **common,  # type: ignore[arg-type]
        ),
        StreamConfig(
            name=REVOCATIONS,
            description="Sessions that ended early; a stream of its own, so that who verifies tokens need not read all events",
            sources=[StreamSource(name=EVENTS, filter_subject="events.users.session.revoked.>")],
            max_age=2 * HOUR,  # longer than any access token lives
            **common,  # type: ignore[arg-type]
        ),
        StreamConfig(
            name=DEAD,
            description="Messages whose handling failed for good",
            subjects=["dead.>"],
            max_age=90 * DAY,
            **common,  # type: ignore[arg-type]
        ),
    )


def differences(declared: StreamConfig, actual: StreamConfig) -> dict[str, str]:
    """Say in which fields a stream is not as declared: `{"max_age": "2592000.0, not 7200.0"}`."""
    found = {}
    for field in _DECLARED:
        wanted, there = getattr(declared, field), getattr(actual, field)
        if wanted is not None and wanted != there:
            found[field] = f"{getattr(wanted, 'value', wanted)}, not {there}"
    return found


async def ensure(js: JetStreamContext, name: str, *, replicas: int = 1) -> StreamInfo:
    """Return the stream, creating it when it is missing. One that is there stays as it is; the log tells what differs."""
    declared = next(stream for stream in declarations(replicas) if stream.name == name)
    try:
        info = await js.stream_info(name)
    except NotFoundError:
        return await _create(js, declared)
    if different := differences(declared, info.config):
        log.warning("stream.differs", stream=name, **different)
    return info


async def _create(js: JetStreamContext, declared: StreamConfig) -> StreamInfo:
    # A new epoch: cursors into an earlier stream of this name mean nothing in this one.
    declared.metadata = {"epoch": new_id().replace("-", "")}
    try:
        return await js.add_stream(declared)
    except APIError as error:
        if error.err_code == _NAME_IN_USE:  # another replica was faster
            return await js.stream_info(str(declared.name))
        raise


async def declare(js: JetStreamContext, *, replicas: int = 1) -> None:
    """Create missing streams and bring the others up to the declaration.

    Raises:
        StreamConflict: the server refuses the change; nothing was changed.
    """
    for declared in declarations(replicas):
        info = await ensure(js, str(declared.name), replicas=replicas)
        declared.metadata = info.config.metadata
        different = differences(declared, info.config)
        try:
            await js.update_stream(declared)
        except APIError as error:
            wanted = "; ".join(f"{field} should be {difference}" for field, difference in different.items())
            raise StreamConflict(
                f"Stream {declared.name} cannot be changed: {error.description} ({wanted})."
            ) from error


class StreamSettings(Settings):
    """What `python -m shared.streams` needs: a NATS user that may create and update streams."""

    service: ClassVar[str] = "streams"

    port: int = 0
    stream_replicas: int = Field(1, ge=1, le=5, description="Copies of each stream in a NATS cluster.")
    declare_timeout: int = Field(30, ge=1, description="Seconds to wait for NATS.")


async def _main(settings: StreamSettings) -> None:
    async with Broker(settings) as broker, asyncio.timeout(settings.declare_timeout):
        await broker.connected.wait()
        await declare(broker.js, replicas=settings.stream_replicas)


def _run(settings: StreamSettings) -> None:
    try:
        asyncio.run(_main(settings))
    except TimeoutError:
        sys.exit(f"streams: no answer from {settings.nats_url} within {settings.declare_timeout} s.")
    except (StreamConflict, nats.errors.Error) as error:
        sys.exit(f"streams: {str(error) or type(error).__name__}")


if __name__ == "__main__":
    _run(StreamSettings.load())
