"""compile.py SERVICE: write bytecode for what the service imports, and for nothing else.

Run by assemble.sh with the environment's own Python. The file system of a container is read-only, so what is not compiled here
is compiled anew at each import; but half of what the libraries ship is never imported, and its bytecode would be a
tenth of the image. The bytecode is believed without looking at dates: nothing in an image changes.
"""

import importlib
import pkgutil
import py_compile
import sys
from pathlib import Path

LATER = (
    "alembic.command",
    "alembic.ddl.postgresql",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "opentelemetry.instrumentation.fastapi",
    "opentelemetry.instrumentation.httpx",
    "opentelemetry.instrumentation.psycopg",
    "sqlalchemy.dialects.postgresql.psycopg",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.http.httptools_impl",
    "uvicorn.protocols.websockets.websockets_sansio_impl",
    "uvicorn.supervisors",
)
"""Imported only once the process runs, or when a setting asks for it."""
DATABASE = ("alembic", "opentelemetry.instrumentation.psycopg", "psycopg", "sqlalchemy")
"""What shared's extra `database` brings; without it the modules that need it are never imported."""
TESTS = ("shared.testing", "shared.testing_wire", "gateway.testing")


def import_all(name: str) -> None:
    """Import a package with all its modules but those for tests and the entry point, which would run."""
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, f"{name}."):
        if module.name not in TESTS and not module.name.endswith(".__main__"):
            import_if_installed(module.name)


def import_if_installed(name: str) -> None:
    """Import a module, unless it needs a database's packages and they are not there."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as missing:
        if not str(missing.name).startswith(DATABASE):
            raise


def main(service: str) -> None:
    """Import everything, then compile what that has loaded."""
    for name in (service, "shared"):
        import_all(name)
    for name in LATER:
        import_if_installed(name)
    files = {str(getattr(module, "__file__", None)) for module in tuple(sys.modules.values())}
    files.add(str(Path(str(importlib.import_module(service).__file__)).with_name("__main__.py")))
    for file in sorted(files):
        if file.startswith(sys.prefix) and file.endswith(".py"):
            py_compile.compile(
                file, doraise=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
            )


if __name__ == "__main__":
    main(sys.argv[1])
