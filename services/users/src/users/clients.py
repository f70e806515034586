"""Where a request comes from."""

import ipaddress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from shared.middleware import request_id_of

MAX_LABEL = 200


@dataclass(frozen=True, slots=True)
class Client:
    """Where a request comes from, as a person may recognise it and an investigation needs it."""

    label: str | None = None
    address: str | None = None
    request_id: str | None = None

    @property
    def network(self) -> str:
        """What wrong passwords are counted for: the address, or its /64 where one line has that many (IPv6)."""
        try:
            address = ipaddress.ip_address(self.address or "")
        except ValueError:
            return "unknown"
        return (
            str(address) if address.version == 4 else str(ipaddress.ip_network((address, 64), strict=False))
        )


ITSELF = Client(label="users")
"""The service's own doing: its schedule, its start, its commands."""


def client_of(request: Request) -> Client:
    """Say where a request comes from; the gateway overwrites what clients claim in X-Forwarded-For."""
    forwarded = _address(request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip())
    peer = request.client.host if request.client else None
    label = request.headers.get("user-agent")
    return Client(
        label=label and label[:MAX_LABEL],
        address=forwarded or peer,
        request_id=request_id_of(request.scope),
    )


def _address(text: str) -> str | None:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return None


CurrentClient = Annotated[Client, Depends(client_of)]
