"""The order of things: servers, databases, streams, migrations, services by what they need; and back again.

Everything is asked for at once, and waits until what it needs is ready. The stack ends when it is told to (SIGINT, SIGTERM, SIGHUP), or when something cannot be brought up.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from stack import credentials, nats, postgres, preflight, probes, services
from stack import settings as ports
from stack.command import Command
from stack.logs import NAME_WIDTH, Output
from stack.processes import PATIENCE, Patience, Supervised, run_once
from stack.services import ServiceSpec, System
from stack.settings import StackSettings

POSTGRES_STOP_TIMEOUT = 20.0
"""Seconds for PostgreSQL's fast shutdown, which writes a checkpoint; then the immediate one, which is recovered from."""
POSTGRES_ATTEMPTS = 6
NATS_STOP_TIMEOUT = 10.0
SERVICE_STOP_MARGIN = 5.0
"""Seconds on top of SHUTDOWN_TIMEOUT before a service that still drains is killed."""


class Supervisor:
    """One run of the stack."""

    def __init__(
        self,
        system: System,
        options: StackSettings,
        folder: Path,
        output: Output,
        *,
        patience: Patience = PATIENCE,
    ) -> None:
        """`folder` is the repository's root: services run there."""
        self.system = system
        self.output = output
        self._options = options
        self._folder = folder
        self._patience = patience
        self._began = time.monotonic()
        self._secrets: dict[str, str] = {}
        self._processes: dict[str, Supervised] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._reached = {
            name: asyncio.Event() for name in ("postgres", "nats", *(spec.name for spec in system.services))
        }
        # A program per core, in the order of asking: more would only hold up the one that the others wait for.
        self._turns = asyncio.Semaphore(os.cpu_count() or 1)
        self._hurry = asyncio.Event()
        self._end: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, *beside: Callable[["Supervisor"], Coroutine[Any, Any, None]]) -> None:
        """Bring everything up, keep it up until told to stop, take it down. `beside` starts once all is ready.

        StackError: something could not be brought up; what was up has been stopped.
        """
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # under nohup it outlives its terminal
            signals.append(signal.SIGHUP)
        for number in signals:
            loop.add_signal_handler(number, self._told_to_stop, number)
        try:
            self._watch("bring up", self._bring_up(beside))
            await self._end
        finally:
            await self._take_down()
            for number in signals:
                loop.remove_signal_handler(number)

    def process(self, name: str) -> Supervised:
        """The process of a service that has been started."""
        return self._processes[name]

    async def migrate(self, spec: ServiceSpec) -> None:
        """Bring the service's database to the present schema. StartFailed with the last lines of the migration."""
        command = services.command(spec, "migrate", self._environment(spec), self._folder)
        async with self._turns:
            await run_once(spec.name, "migrate", self._marked(command), self.output)

    def _told_to_stop(self, number: signal.Signals) -> None:
        if self._end.done():
            if not self._hurry.is_set():
                self.output.say("stopping at once.")
            self._hurry.set()
            return
        self.output.text("")
        self.output.say("stopping; once more to stop at once." if number == signal.SIGINT else "stopping.")
        self._end.set_result(None)

    def _watch(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Own a task; its failure ends the stack."""
        task = self._tasks[name] = asyncio.create_task(work, name=name)

        def note(done: asyncio.Task[None]) -> None:
            if not done.cancelled() and (failure := done.exception()) and not self._end.done():
                self._end.set_exception(failure)

        task.add_done_callback(note)

    async def _bring_up(self, beside: Iterable[Callable[["Supervisor"], Coroutine[Any, Any, None]]]) -> None:
        data_dir = self._options.data_dir
        ended = await asyncio.to_thread(preflight.end_leftovers, data_dir)
        if ended:
            self.output.say(f"ended {ended} processes that a killed run had left.")
        await asyncio.to_thread(preflight.check_ports, self._ports())
        self._secrets = credentials.load(
            data_dir / "credentials.json", services.wanted_credentials(self.system)
        )
        (data_dir / "mail").mkdir(mode=0o700, exist_ok=True)
        await _together(
            self._bring_up_nats(),
            self._bring_up_postgres(),
            *(self._bring_up_service(spec) for spec in self.system.services),
        )
        self._show_ready()
        for work in beside:
            self._watch(work.__name__, work(self))

    async def _bring_up_postgres(self) -> None:
        if not (self._options.data_dir / "postgres").exists():
            self._progress("postgres", "creating its data folder")
        cluster = await asyncio.to_thread(postgres.prepare, self._options.data_dir, self._secrets["postgres"])
        port = self._options.port(ports.POSTGRES)

        def command() -> Command:
            postgres.clear_stale_pid_file(cluster.data)
            return postgres.command(cluster, port)

        await self._keep(
            "postgres",
            command,
            probes.blocking(lambda: postgres.is_ready(cluster.dsn(port))),
            stop_signal=signal.SIGINT,
            kill_signal=signal.SIGQUIT,
            stop_timeout=POSTGRES_STOP_TIMEOUT,
            # After a kill it refuses to start until the last of its orphans is gone, hence the attempts.
            patience=replace(self._patience, start=postgres.READY_TIMEOUT, attempts=POSTGRES_ATTEMPTS),
        )
        self._progress("postgres", f"ready on port {port}")
        await asyncio.to_thread(self._create_databases, cluster.dsn(port))
        self._reached["postgres"].set()

    def _create_databases(self, admin: str) -> None:
        for spec in self.system.services:
            if spec.database:
                postgres.create_service_database(admin, spec.name, self._secrets[f"database.{spec.name}"])

    async def _bring_up_nats(self) -> None:
        port = self._options.port(ports.NATS)
        passwords = {user: self._secrets[f"nats.{user}"] for user in nats.GRANTS}
        server = await asyncio.to_thread(nats.write_config, self._options.data_dir, port, passwords)

        def command() -> Command:
            nats.clear_stale_ports(server)
            return nats.command(server)

        await self._keep(
            "nats",
            command,
            probes.blocking(lambda: nats.is_ready(server)),
            stop_timeout=NATS_STOP_TIMEOUT,
            # A stream whose disk was full refuses every write until the server is started again.
            fit=probes.blocking(lambda: nats.is_healthy(server)),
        )
        self._progress("nats", f"ready on port {port}")
        operator = {
            "NATS_URL": f"nats://127.0.0.1:{port}",
            "NATS_USER": nats.OPERATOR,
            "NATS_PASSWORD": passwords[nats.OPERATOR],
            "LOG_FORMAT": "json",
        }
        env = {**self._options.handed_on, **operator}
        declare = Command(self.system.declare_streams, env, self._folder)
        async with self._turns:
            await run_once("streams", "declare", self._marked(declare), self.output)
        self._progress("nats", "streams declared")
        self._reached["nats"].set()

    async def _bring_up_service(self, spec: ServiceSpec) -> None:
        if spec.database:
            await self._reached["postgres"].wait()
            await self.migrate(spec)
            self._progress(spec.name, "database migrated")
        for need in ("nats", *spec.after):
            await self._reached[need].wait()
        port = services.port_of(spec, self._options)
        command = services.command(spec, "serve", self._environment(spec), self._folder)
        host = self._options.gateway_bind_host if spec.name == services.GATEWAY else "127.0.0.1"
        await self._keep(
            spec.name,
            lambda: command,
            probes.http_ready(host, port),
            stop_timeout=self._options.shutdown_timeout + SERVICE_STOP_MARGIN,
        )
        self._progress(spec.name, f"ready on port {port}")
        self._reached[spec.name].set()

    async def _keep(
        self,
        name: str,
        command: Callable[[], Command],
        probe: probes.Probe,
        *,
        stop_timeout: float,
        patience: Patience | None = None,
        fit: probes.Probe | None = None,
        **stop: signal.Signals,
    ) -> None:
        """Start a process under supervision and return once it is ready for the first time."""
        process = self._processes[name] = Supervised(
            name,
            lambda: self._marked(command()),
            probe,
            self.output,
            pid_file=self._options.data_dir / "run" / f"{name}.pid",
            stop_timeout=stop_timeout,
            patience=patience or self._patience,
            fit=fit,
            **stop,
        )
        self._watch(name, process.keep())
        await process.ready.wait()

    async def _take_down(self) -> None:
        """Users' side first, so that everything still has what it needs while it drains."""
        bring_up = self._tasks.pop("bring up")
        supervised = {name: self._tasks.pop(name) for name in self._processes}
        for task in (bring_up, *self._tasks.values()):
            task.cancel()
        await asyncio.gather(bring_up, *self._tasks.values(), return_exceptions=True)
        for layer in self._layers():
            await asyncio.gather(*(self._processes[name].stop(self._hurry) for name in layer))
            await asyncio.gather(*(supervised[name] for name in layer), return_exceptions=True)
        self.output.say("stopped.", seconds=round(time.monotonic() - self._began, 1))

    def _layers(self) -> list[list[str]]:
        """Names of the processes there are, in groups that stop together, in the order of stopping."""
        remaining = {spec.name: spec for spec in self.system.services}
        layers = []
        while remaining:
            needed = {name for spec in remaining.values() for name in spec.after}
            layers.append([name for name in remaining if name not in needed])
            for name in layers[-1]:
                del remaining[name]
        layers += [["nats"], ["postgres"]]
        return [[name for name in layer if name in self._processes] for layer in layers]

    def _environment(self, spec: ServiceSpec) -> dict[str, str]:
        url = services.database_url_of(spec, self._options, self._secrets)
        return services.environment(spec, self.system, self._options, self._secrets, url)

    def _marked(self, command: Command) -> Command:
        return command.marked(**{preflight.MARKER: str(self._options.data_dir)})

    def _ports(self) -> dict[str, tuple[str, int]]:
        listed = {
            spec.name: ("127.0.0.1", services.port_of(spec, self._options)) for spec in self.system.services
        }
        listed[services.GATEWAY] = (
            self._options.gateway_bind_host,
            self._options.port(self._options.gateway_port),
        )
        for spec in self.system.services:
            if (port := services.metrics_port_of(spec, self._options)) is not None:
                listed["metrics" if spec.name == services.GATEWAY else f"{spec.name} metrics"] = (
                    "127.0.0.1",
                    port,
                )
        listed["nats"] = ("127.0.0.1", self._options.port(ports.NATS))
        listed["postgres"] = ("127.0.0.1", self._options.port(ports.POSTGRES))
        return listed

    def _progress(self, name: str, what: str) -> None:
        seconds = time.monotonic() - self._began
        if self.output.human:
            self.output.text(f"{seconds:6.1f} s {name:<{NAME_WIDTH}} {what}")
        else:
            self.output.say(f"{name} {what}", seconds=round(seconds, 1))

    def _show_ready(self) -> None:
        seconds = round(time.monotonic() - self._began, 1)
        if self.output.human:
            self.output.text(ready_text(self._options, seconds))
        else:
            self.output.say("ready.", seconds=seconds, gateway=self._options.gateway_url)


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Run side by side; the first failure cancels the others and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for one in work:
                group.create_task(one)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def ready_text(options: StackSettings, seconds: float) -> str:
    """Where everything is, and three commands to try."""
    url = options.gateway_url
    json = "-H 'Content-Type: application/json'"
    cut = """sed 's/.*"access_token": *"\\([^"]*\\)".*/\\1/'"""
    return f"""
Tollhouse is ready after {seconds} s.

  gateway      {url}
  API docs     {url}/docs
  metrics      {options.metrics_url or "none"}
  PostgreSQL   127.0.0.1:{options.port(ports.POSTGRES)}
  NATS         127.0.0.1:{options.port(ports.NATS)}
  data         {options.data_dir} (mails in mail, passwords in credentials.json)

Try it in another terminal:

  curl -s {url}/v1/users {json} -d '{{"email": "ada@example.com", "password": "correct horse battery"}}'
  TOKEN=$(curl -s {url}/v1/users/token -d 'username=ada@example.com&password=correct horse battery' | {cut})
  curl -s {url}/v1/items -H "Authorization: Bearer $TOKEN" {json} -d '{{"name": "Lamp", "price": 19.90}}'

Ctrl-C stops everything; the data stays.
"""
