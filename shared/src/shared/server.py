"""Runs a service on uvicorn: strict wire rules, one process per worker, a drain in a defined order."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, NamedTuple

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from shared import logs
from shared.edge import EdgeProtocol
from shared.metrics import exporting
from shared.settings import Settings

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the gateway's pool keeps it."""
BACKLOG = 2048
MAX_FRAME_BYTES = 64 * 1024
"""Longest WebSocket message; a longer one closes the socket with 1009."""


class _Config(uvicorn.Config):
    """uvicorn's configuration with our logs, in the parent and in every worker it spawns."""

    def __init__(self, settings: Settings, app: str, **options: Any) -> None:
        self._settings = settings
        super().__init__(
            app,
            factory=True,
            host=settings.bind_host,
            port=settings.port,
            workers=settings.workers,
            backlog=BACKLOG,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=settings.shutdown_timeout,
            access_log=False,
            **options,
        )

    def configure_logging(self) -> None:
        logs.configure(self._settings)


class _Server(uvicorn.Server):
    """uvicorn's server; one that stops because it was told to has succeeded."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002  # the signature is uvicorn's
        """Begin to stop. uvicorn would raise the signal again in the end, and die of it."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def run(
    settings: Settings,
    app: str,
    *,
    http: type[asyncio.Protocol] | str = EdgeProtocol,
    ws: type[asyncio.Protocol] | str = "websockets-sansio",
) -> None:
    """Serve the application that the factory `app` ("items.app:create") makes, until SIGTERM or SIGINT."""
    config = _Config(
        settings,
        app,
        http=http,
        ws=ws,
        ws_max_size=MAX_FRAME_BYTES,
        # A frame is made once for all sockets; compressed, it would be made anew for each.
        ws_per_message_deflate=False,
    )
    listener = _bind(settings)
    with _exporting(settings):
        if settings.workers > 1:
            Multiprocess(config, sockets=[listener]).run()
            return
        server = _Server(config)
        server.run(sockets=[listener])
    if not server.started:
        sys.exit(STARTUP_FAILURE)


@contextmanager
def _exporting(settings: Settings) -> Iterator[None]:
    """Export what all workers count; they find the place in the environment that they inherit."""
    if settings.metrics_port is None:
        yield
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(exporting(settings.metrics_bind_host, settings.metrics_port))
        except OSError as error:
            where = f"{settings.metrics_bind_host} port {settings.metrics_port}"
            sys.exit(f"{settings.service}: cannot listen on {where} for metrics: {error.strerror}.")
        os.environ[f"{settings.service.upper()}_METRICS_DIR"] = str(folder)
        yield


def _bind(settings: Settings) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in settings.bind_host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.bind_host, settings.port))
    except OSError as error:
        where = f"{settings.bind_host} port {settings.port}"
        sys.exit(f"{settings.service}: cannot listen on {where}: {error.strerror}.")
    listener.set_inheritable(True)
    return listener


class Subcommands(NamedTuple):
    """A command with arguments of its own: its help, what adds them to a parser, and its function."""

    summary: str
    describe: Callable[[argparse.ArgumentParser], None]
    run: Callable[[Any, argparse.Namespace], int]
    """Takes the settings and the arguments, returns the exit code."""


def main(
    settings: type[Settings],
    commands: Mapping[str, tuple[str, Callable[[Any], None]] | Subcommands],
    argv: Sequence[str] | None = None,
) -> None:
    """Entry point of `python -m <service> <command>`: `commands` maps a name to its help and its function."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {settings.service}", description=f"The Tollhouse service {settings.service}."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in commands.items():
        added = subparsers.add_parser(name, help=command[0], description=f"{command[0].capitalize()}.")
        if isinstance(command, Subcommands):
            command.describe(added)
    arguments = parser.parse_args(argv)
    chosen = commands[arguments.command]
    if isinstance(chosen, Subcommands):
        sys.exit(chosen.run(settings.load(), arguments))
    chosen[1](settings.load())
