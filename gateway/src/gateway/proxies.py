"""Who the client is where proxies that are trusted stand in front (SECURITY G4)."""

from collections.abc import Iterable, Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address


class TrustedProxies:
    """Networks whose word on clients behind them is believed."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = tuple(networks)

    def trusts(self, address: str) -> bool:
        """Whether what `address` (as `plain_address` gives it) says about clients behind it is believed."""
        if not self._networks:
            return False
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        return any(parsed in network for network in self._networks)

    def origin_of(self, fields: Mapping[bytes, bytes], peer: str, scheme: str) -> tuple[str, str]:
        """Return address and scheme of the client behind `peer`: the last hop that no trusted proxy is."""
        if fields.get(b"x-forwarded-proto") in (b"http", b"https"):
            scheme = fields[b"x-forwarded-proto"].decode()
        address = peer
        for hop in reversed(fields.get(b"x-forwarded-for", b"").split(b",")):
            if not self.trusts(address):
                break
            claimed = _hop(hop.decode("latin-1"))
            if claimed is None:
                break  # whoever wrote that knows no better than we do
            address = claimed
        return address, scheme


def plain_address(address: str) -> str:
    """Return an address as one would write it: an IPv4 client of an IPv6 socket as IPv4."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(parsed)


def _hop(text: str) -> str | None:
    """Read a hop of X-Forwarded-For; some proxies add the port."""
    text = text.strip(" \t")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        ip_address(text)
    except ValueError:
        return None
    return None if "%" in text else plain_address(text)  # a scope means something on its own machine only
