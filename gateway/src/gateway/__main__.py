"""`python -m gateway serve`, `python -m gateway check`."""

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from gateway.routes import RouteTable, RouteTableError
from gateway.settings import GatewaySettings
from shared.metrics import exporting
from shared.server import main, run


def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM."""
    _table(settings)
    with _metrics(settings):
        run(settings, "gateway.app:create", http="gateway.edge:GatewayProtocol", ws="none")


@contextmanager
def _metrics(settings: GatewaySettings) -> Iterator[None]:
    """Export what all workers count; they find the place in the environment that they inherit."""
    if settings.metrics_port is None:
        yield
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(exporting(settings.metrics_bind_host, settings.metrics_port))
        except OSError as error:
            where = f"{settings.metrics_bind_host} port {settings.metrics_port}"
            sys.exit(f"gateway: cannot listen on {where} for metrics: {error.strerror}.")
        os.environ["GATEWAY_METRICS_DIR"] = str(folder)
        yield


def check(settings: GatewaySettings) -> None:
    """Print the effective route table."""
    print(_table(settings).model_dump_json(indent=2))  # noqa: T201


def _table(settings: GatewaySettings) -> RouteTable:
    try:
        return settings.route_table()
    except RouteTableError as error:
        for line in error.args:
            print(f"gateway: {line}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None


if __name__ == "__main__":
    main(
        GatewaySettings,
        {
            "serve": ("serve until SIGTERM", serve),
            "check": ("print the effective route table, or what is wrong with it", check),
        },
    )
