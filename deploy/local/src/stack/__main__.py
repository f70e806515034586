"""`python -m stack`: what `make run`, `make dev` and `make clean` call."""

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

from stack import credentials, dev, postgres, preflight, services
from stack.errors import StackError
from stack.logs import Output
from stack.reach import SYSTEM_DIR
from stack.services import TOLLHOUSE, System
from stack.settings import StackSettings, help_text
from stack.supervisor import Supervisor

DESCRIPTION = """\
Run the whole of Tollhouse on this machine: PostgreSQL, NATS, users, items, notifications and the gateway.

commands:
  run    bring everything up, and keep it up until Ctrl-C (the default)
  dev    the same; a service restarts when its sources change
  exec   run a command of a service against the running stack, as the NATS user operator:
         python -m stack exec items events status
  clean  delete DATA_DIR with all data in it
"""
EPILOGUE = f"""\
options, from the environment or from a file .env (the environment wins):
{help_text()}

The pid of each process stands in DATA_DIR/run/<name>.pid. Under root, PostgreSQL runs as the account postgres or nobody; where
that account cannot reach DATA_DIR, DATA_DIR/postgres is a link into {SYSTEM_DIR}.
Every other variable is handed on to the services, each of which reads its settings from <SERVICE>_<NAME>.
The exit code is 0 after a stop in order, 1 when a process could not be brought up, 2 when something outside is in the way.
"""


def main(arguments: list[str] | None = None, *, system: System = TOLLHOUSE) -> int:
    """Run a command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m stack",
        description=DESCRIPTION,
        epilog=EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", choices=("run", "dev", "exec", "clean"), default="run", metavar="command"
    )
    parser.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="…", help="of exec: the service and its command"
    )
    parsed = parser.parse_args(arguments)
    command: str = parsed.command
    if bool(parsed.words) != (command == "exec"):
        parser.error("exec takes a service and its command, and no other command takes any")
    folder = Path.cwd()
    try:
        options = StackSettings.load(os.environ, folder)
        if command == "clean":
            clean(options.data_dir)
        elif command == "exec":
            return execute(system, options, folder, parsed.words)
        else:
            with preflight.claimed(options.data_dir):
                run(system, options, folder, reloading=command == "dev")
    except StackError as failure:
        print(failure, file=sys.stderr)  # noqa: T201
        return failure.exit_code
    except OSError as failure:  # a full disk, a folder taken away
        where = f"{failure.filename}: " if failure.filename else ""
        print(f"{where}{failure.strerror or failure}.", file=sys.stderr)  # noqa: T201
        return StackError.exit_code
    except KeyboardInterrupt:  # before there was anything to stop
        pass
    return 0


def run(system: System, options: StackSettings, folder: Path, *, reloading: bool) -> None:
    """Bring the stack up on a claimed DATA_DIR and keep it until a signal ends it."""
    human = options.log_format == "console" or (options.log_format == "auto" and sys.stdout.isatty())
    output = Output(sys.stdout, human=human, chatter=options.log_level == "debug")

    async def supervise() -> None:
        await Supervisor(system, options, folder, output).run(*([dev.reload(folder)] if reloading else []))

    try:
        asyncio.run(supervise())
    finally:
        output.close()


def execute(system: System, options: StackSettings, folder: Path, words: list[str]) -> int:
    """Run `python -m <words>` with a service's environment and the operator's rights on NATS; returns its exit code.

    StackError: there is no such service.
    """
    spec = next((spec for spec in system.services if spec.name == words[0]), None)
    if spec is None:
        raise StackError(f"{words[0]} is no service: {', '.join(spec.name for spec in system.services)} are.")
    stored = options.data_dir / "credentials.json"
    if not stored.exists():
        raise StackError(f"No stack has run on {options.data_dir} yet.")
    secrets = credentials.load(stored, services.wanted_credentials(system))
    url = services.database_url_of(spec, options, secrets)
    env = services.environment(spec, system, options, secrets, url) | services.as_operator(spec, secrets)
    return subprocess.run((*spec.program_argv, *words[1:]), env=env, cwd=folder, check=False).returncode  # noqa: S603  # the user's own command


def clean(data_dir: Path) -> None:
    """Delete `data_dir`, the database included wherever it was placed; StackError when a stack uses it."""
    if not data_dir.exists():
        return
    if not (data_dir / "run").is_dir():
        raise StackError(f"{data_dir} was not made by this program: delete it yourself.")
    with preflight.claimed(data_dir):
        preflight.end_leftovers(data_dir)
        postgres.discard(data_dir)
        for part in data_dir.iterdir():
            if part.is_dir() and part.name != "run":
                shutil.rmtree(part)
            elif part.is_file():
                part.unlink()
    shutil.rmtree(data_dir)


if __name__ == "__main__":
    raise SystemExit(main())
