"""`python -m <service> events dead …`: look at dead letters, let their handlers try again, or drop them."""

import argparse
import json
from typing import Any

from pydantic import ValidationError

from shared.consumer import apply
from shared.database import Database
from shared.dead_letters import DeadLetters, StoredLetter, place_of
from shared.event_tool import Failed, Tool, complain, say, told
from shared.events import Envelope
from shared.streams import COMMANDS


def describe(dead: argparse.ArgumentParser) -> None:
    """Add the arguments of `dead`."""
    verbs = dead.add_subparsers(dest="verb", required=True, metavar="verb")
    listing = verbs.add_parser("list", help="list them, oldest first")
    listing.add_argument("--consumer", help="only this consumer's")
    add_json(listing)
    showing = verbs.add_parser("show", help="show one whole, payload and headers too")
    showing.add_argument("number", type=int)
    for verb, summary in (
        (
            "redrive",
            "let the service's own handler try again, here and now; a letter that succeeds is deleted",
        ),
        ("drop", "delete them for good"),
    ):
        acting = verbs.add_parser(verb, help=summary, description=summary.capitalize() + ".")
        acting.add_argument("number", type=int, nargs="*", help="as `list` shows it")
        acting.add_argument("--all", action="store_true", help="all there are")
        acting.add_argument("--consumer", help="with --all: only this consumer's")


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="for programs: one JSON document")


async def run(tool: Tool, arguments: argparse.Namespace) -> int:
    """Carry out `dead`; returns the exit code."""
    async with tool.broker() as broker:
        letters = DeadLetters(broker.js, tool.settings.service)
        match arguments.verb:
            case "list":
                return await _list(letters, arguments)
            case "show":
                _show(await _get(letters, arguments.number))
                return 0
            case "redrive":
                async with tool.database() as database:
                    return await _redrive(tool, database, letters, await _chosen(letters, arguments))
            case _:
                for stored in await _chosen(letters, arguments):
                    await letters.drop(stored.number)
                    say(f"{stored.number}: dropped")
                return 0


async def _get(letters: DeadLetters, number: int) -> StoredLetter:
    try:
        return await letters.get(number)
    except LookupError:
        raise Failed(f"there is no dead letter {number}.") from None


async def _chosen(letters: DeadLetters, arguments: argparse.Namespace) -> list[StoredLetter]:
    if arguments.all == bool(arguments.number):
        raise Failed("name the letters by their numbers, or say --all.")
    if arguments.all:
        return [stored async for stored in letters.all(consumer=arguments.consumer)]
    return [await _get(letters, number) for number in arguments.number]


async def _list(letters: DeadLetters, arguments: argparse.Namespace) -> int:
    found = [stored async for stored in letters.all(consumer=arguments.consumer)]
    if arguments.json:
        say(json.dumps([_fields(stored) for stored in found]))
        return 0
    for stored in found:
        letter = stored.letter
        when = told(letter.last_failure_at or letter.published_at)
        say(
            f"{stored.number:6}  {when}  {letter.consumer}  {letter.subject}  {letter.deliveries}×  {letter.cause}"
        )
    say(f"{len(found)} dead letters" if len(found) != 1 else "1 dead letter")
    return 0


def _fields(stored: StoredLetter) -> dict[str, Any]:
    letter = stored.letter
    return {
        "number": stored.number,
        "consumer": letter.consumer,
        "cause": letter.cause,
        "deliveries": letter.deliveries,
        "published_at": told(letter.published_at),
        "first_failure_at": told(letter.first_failure_at),
        "last_failure_at": told(letter.last_failure_at),
        "stream": letter.stream,
        "sequence": letter.sequence,
        "subject": letter.subject,
        "headers": dict(letter.headers),
    }


def _show(stored: StoredLetter) -> None:
    for name, value in _fields(stored).items():
        say(f"{name:16}  {value}")
    say()
    say(stored.payload.decode("utf-8", "backslashreplace"))


async def _redrive(tool: Tool, database: Database, letters: DeadLetters, chosen: list[StoredLetter]) -> int:
    failures = 0
    for stored in chosen:
        try:
            result = await _try_again(tool, database, stored)
        except Failed as failure:
            failures += 1
            complain(f"{stored.number}: {failure}")
            continue
        await letters.drop(stored.number)
        say(f"{stored.number}: {result}")
    return 1 if failures else 0


async def _try_again(tool: Tool, database: Database, stored: StoredLetter) -> str:
    """Apply a letter by the handlers of the consumer that set it aside, and of no other.

    Raises:
        Failed: the letter stays.
    """
    letter = stored.letter
    if letter.stream == COMMANDS:
        raise Failed("the payload of a command is not kept, for it may hold a secret: have it sent anew.")
    named = {subscription.durable: handlers for subscription, handlers in tool.consumers.items()}
    handlers = named.get(letter.consumer)
    if handlers is None:
        raise Failed(f"this service has no consumer {letter.consumer}.")
    try:
        event = Envelope.model_validate_json(stored.payload)
        return await apply(database, letter.consumer, handlers, event)
    except ValidationError as error:
        raise Failed(
            f"it still cannot be understood: {error.errors(include_input=False)[0]['msg']}."
        ) from None
    except Exception as error:
        raise Failed(f"it failed again: {place_of(error)}.") from error
