"""`python -m <service> events …`: what operators do with a service's events (docs/events.md has the runbooks).

Exit codes: 0 done, 1 not or not wholly done (a sentence on standard error says why), 2 the command line is wrong.
"""

import argparse
import asyncio
import json
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from nats.errors import Error as NATSError
from nats.js.errors import NotFoundError
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from shared import dead_letter_commands
from shared.event_tool import Consumers, Failed, Tool, complain, say, told
from shared.outbox import OutboxRow
from shared.replay import Progress, Selection, oldest_kept, replay
from shared.server import Subcommands
from shared.settings import DatabaseSettings
from shared.streams import DEAD
from shared.times import utc_now

_WARNING = 30
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def subcommands(consumers: Callable[[], Consumers] = dict) -> Subcommands:
    """Return `events` for a service's command line; `consumers` is called when it is run."""

    def run(settings: DatabaseSettings, arguments: argparse.Namespace) -> int:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(_WARNING),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        )
        try:
            return asyncio.run(_COMMANDS[arguments.action](Tool(settings, consumers()), arguments))
        except Failed as failure:
            complain(f"{settings.service}: {failure}")
        except (NATSError, TimeoutError) as error:
            said = str(error) or type(error).__name__
            user = settings.nats_user or settings.service
            complain(
                f"{settings.service}: NATS did not do it for the user {user} ({said})."
                " Dead letters are the user operator's alone."
            )
        except (SQLAlchemyError, OSError) as error:
            complain(f"{settings.service}: the database cannot be worked with ({type(error).__name__}).")
        return 1

    return Subcommands("look after events: status, replay, dead letters", _describe, run)


def _describe(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="action")

    status = actions.add_parser(
        "status",
        help="show what waits, in the outbox and before each consumer",
        description="Show what waits in the outbox and before each consumer, and how many letters are dead.",
    )
    dead_letter_commands.add_json(status)

    again = actions.add_parser(
        "replay",
        help="publish events of the outbox again",
        description=(
            "Publish events of the outbox again, in order, into a stream that is new or has lost some. What a consumer has "
            "applied before, it does not apply again. Progress goes to standard error."
        ),
    )
    again.add_argument(
        "--since",
        required=True,
        type=_moment,
        metavar="TIME",
        help="from this time on: 2026-01-31T12:00Z (ISO 8601, UTC if it names no zone), or 90m, 12h, 7d ago",
    )
    again.add_argument("--until", type=_moment, metavar="TIME", help="before this time; default: up to now")
    again.add_argument(
        "--subject",
        default="events.>",
        metavar="FILTER",
        help="only subjects that fit, as NATS has it: events.items.item.deleted.*; default: all",
    )
    again.add_argument("--dry-run", action="store_true", help="only count what would be published")

    dead = actions.add_parser(
        "dead",
        help="list, show, redrive or drop dead letters",
        description="Look after what consumers of this service could not deal with. Needs the NATS user operator.",
    )
    dead_letter_commands.describe(dead)


def _moment(text: str) -> datetime:
    """Read a point in time: ISO 8601, or how long ago."""
    try:
        if found := re.fullmatch(r"(\d+)([smhd])", text):
            return utc_now() - timedelta(**{_UNITS[found[2]]: int(found[1])})
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"{text!r} is no time: 2026-01-31T12:00Z, or 12h") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def _status(tool: Tool, arguments: argparse.Namespace) -> int:
    async with tool.database() as database, database.reading() as session:
        waiting, oldest = (
            await session.execute(
                select(func.count(), func.min(OutboxRow.created_at)).where(OutboxRow.published_at.is_(None))
            )
        ).one()
        kept = await oldest_kept(database)
    found: dict[str, Any] = {
        "outbox": {"waiting": waiting, "oldest_waiting": oldest, "replay_possible_since": kept},
        "consumers": {},
    }
    service = tool.settings.service
    async with tool.broker() as broker:
        for subscription in tool.consumers:
            try:
                info = await broker.js.consumer_info(subscription.stream, subscription.durable)
            except NotFoundError:
                found["consumers"][subscription.durable] = None
                continue
            found["consumers"][subscription.durable] = {
                "pending": info.num_pending,
                "ack_pending": info.num_ack_pending,
                "redelivered": info.num_redelivered,
            }
        try:
            dead = await broker.js.stream_info(DEAD, subjects_filter=f"dead.{service}.>")
            found["dead_letters"] = sum((dead.state.subjects or {}).values())
        except NotFoundError:
            found["dead_letters"] = 0
    if arguments.json:
        say(json.dumps(found, default=told))
        return 0
    say(f"outbox        {waiting} waiting" + (f", the oldest since {told(oldest)}" if oldest else ""))
    say(f"replay        {f'possible since {told(kept)}' if kept else 'nothing is kept'}")
    for name, state in found["consumers"].items():
        say(
            f"consumer      {name}: "
            + (
                ", ".join(f"{number} {what}" for what, number in state.items())
                if state
                else "not declared yet"
            )
        )
    say(f"dead letters  {found['dead_letters']}")
    return 0


async def _replay(tool: Tool, arguments: argparse.Namespace) -> int:
    selection = Selection(arguments.since, arguments.until, arguments.subject)
    reached: list[Progress] = []

    def report(progress: Progress) -> None:
        reached[:] = [progress]
        complain(f"{progress.published} events, up to {told(progress.reached)}")

    async with tool.database() as database:
        kept = await oldest_kept(database)
        if kept is None or kept > selection.since:
            goes_back = f"goes back to {told(kept)} only" if kept else "keeps no published event"
            complain(f"{tool.settings.service}: the outbox {goes_back}.")
        if arguments.dry_run:
            done = await replay(database, None, selection, report=report)
        else:
            async with tool.broker() as broker:
                try:
                    done = await replay(database, broker, selection, report=report)
                except (NATSError, OSError, TimeoutError) as error:
                    since = (reached[0] if reached else Progress()).resume(selection)
                    raise Failed(
                        f"stopped ({str(error) or type(error).__name__}): go on with --since {told(since)}"
                    ) from error
    for subject, count in sorted(done.by_type.items()):
        say(f"{count:8}  {subject}.*")
    if arguments.dry_run:
        say(f"{done.published:8}  would be published")
    else:
        say(f"{done.published:8}  published, {done.duplicates} of which the stream had already")
    return 0


_COMMANDS = {"status": _status, "replay": _replay, "dead": dead_letter_commands.run}
