"""Runs a service on uvicorn: strict wire rules, one process per worker, a drain in a defined order."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.supervisors import Multiprocess

from shared import logs
from shared.edge import EdgeProtocol
from shared.settings import Settings

KEEP_ALIVE = 75
"""Seconds that an idle connection stays open: longer than the gateway's pool keeps it."""
BACKLOG = 2048


class Server(uvicorn.Server):
    """uvicorn's server, which tells the application first when a drain begins."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the drain: readiness fails and streams end, before listeners close (SECURITY, Processes)."""
        drain = getattr(getattr(self.config.loaded_app, "state", None), "draining", None)
        if isinstance(drain, asyncio.Event):
            drain.set()
        super().handle_exit(sig, frame)


def run(
    settings: Settings,
    app: str,
    *,
    http: type[asyncio.Protocol] | str = EdgeProtocol,
    ws: type[asyncio.Protocol] | str = "websockets-sansio",
) -> None:
    """Serve the application that the factory `app` ("items.app:create") makes, until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        app,
        factory=True,
        host=settings.bind_host,
        port=settings.port,
        workers=settings.workers,
        http=http,  # type: ignore[arg-type]  # a class or an import string; the annotation knows names only
        ws=ws,  # type: ignore[arg-type]
        ws_max_size=64 * 1024,
        backlog=BACKLOG,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=settings.shutdown_timeout,
        log_config=None,
        access_log=False,
    )
    logs.configure(settings)
    server = Server(config)
    if settings.workers == 1:
        server.run()
        sys.exit(0 if server.started else 3)
    listener = config.bind_socket()
    Multiprocess(config, target=server.run, sockets=[listener]).run()


def main(
    settings: type[Settings],
    commands: Mapping[str, tuple[str, Callable[[Any], None]]],
    argv: Sequence[str] | None = None,
) -> None:
    """Entry point of `python -m <service> <command>`: `commands` maps a name to its help and its function."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {settings.service}", description=f"The Tollhouse service {settings.service}."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, (summary, _) in commands.items():
        subparsers.add_parser(name, help=summary, description=summary)
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    commands[arguments.command][1](settings.load())
