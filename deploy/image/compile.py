"""compile.py SERVICE: write bytecode for what the service imports, and for nothing else.

Run by assemble.sh with the environment's own Python. The file system of a container is read-only, so what is not compiled here
is compiled anew at each import; but half of what the libraries ship is never imported, and its bytecode would be a
tenth of the image. Nor do the libraries' docstrings reach it, a fifth of the rest: nothing depends on what they say, and the
sources have them. The bytecode is believed without looking at dates: nothing in an image changes.
"""

import ast
import importlib
import importlib.util
import marshal
import pkgutil
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
UNCHECKED_HASH = (0b01).to_bytes(4, "little")
"""The kind of bytecode that is not compared with its source (PEP 552)."""
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


def write_bytecode(file: Path, *, docstrings: bool) -> None:
    """Compile a module to where Python looks for its bytecode."""
    source = file.read_bytes()
    tree = ast.parse(source, file)
    if not docstrings:
        shorten_docstrings(tree)
    code = marshal.dumps(compile(tree, file, "exec", dont_inherit=True, optimize=0))
    target = Path(importlib.util.cache_from_source(file))
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(
        b"".join((importlib.util.MAGIC_NUMBER, UNCHECKED_HASH, importlib.util.source_hash(source), code))
    )


def shorten_docstrings(tree: ast.Module) -> None:
    """Leave a full stop of each docstring: some libraries ask whether there is one."""
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant(value=str()) as docstring), *_]:
                docstring.value = "."


def main(service: str) -> None:
    """Import everything, then compile what that has loaded."""
    for name in (service, "shared"):
        import_all(name)
    for name in LATER:
        import_if_installed(name)
    files = {str(getattr(module, "__file__", None)) for module in tuple(sys.modules.values())}
    files.add(str(Path(str(importlib.import_module(service).__file__)).with_name("__main__.py")))
    ours = {importlib.import_module(name).__path__[0] for name in (service, "shared")}
    for file in map(Path, sorted(files)):
        if file.is_relative_to(sys.prefix) and file.suffix == ".py":
            write_bytecode(file, docstrings=any(file.is_relative_to(folder) for folder in ours))


if __name__ == "__main__":
    main(sys.argv[1])
