"""`python -m gateway serve`, `python -m gateway check`."""

import sys

from gateway.routes import RouteTable, RouteTableError
from gateway.settings import GatewaySettings
from shared.server import main, run


def serve(settings: GatewaySettings) -> None:
    """Serve until SIGTERM."""
    _table(settings)
    run(settings, "gateway.app:create", http="gateway.edge:GatewayProtocol", ws="none")


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
