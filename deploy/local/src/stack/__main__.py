"""`python -m stack`: what `make run`, `make dev` and `make clean` call."""

import argparse
import asyncio
import os
import shutil
import sys
from pathlib import Path

from stack import dev, postgres, preflight
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
        "command", nargs="?", choices=("run", "dev", "clean"), default="run", metavar="command"
    )
    command = parser.parse_args(arguments).command
    folder = Path.cwd()
    try:
        options = StackSettings.load(os.environ, folder)
        if command == "clean":
            clean(options.data_dir)
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
