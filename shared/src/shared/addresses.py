"""Client addresses as things that can be counted."""

from ipaddress import IPv6Address, ip_address


def address_key(address: str) -> str:
    """Return what an address counts as: itself, or the /64 of an IPv6 address, which is what one subscriber has."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
    return address
