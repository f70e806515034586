"""One canonical path per request: what is routed on is what is forwarded (SECURITY G3)."""

import re

from gateway.errors import PathAmbiguous

# Nearly every path is plain; this says so in one pass.
# Why (?>...): shared.wire.
_plain = re.compile(rb"(?>(?:/[A-Za-z0-9_~!$&'()*+,;=:@-][A-Za-z0-9._~!$&'()*+,;=:@-]*+)+)").fullmatch
# Two slashes, dot segments (with parameters too, which some servers drop), backslashes, what may not stand in a path at all, broken escapes, and escapes that decoders
# disagree about: dot, slash, backslash and control characters.
_ambiguous = re.compile(
    rb"//|/\.\.?(?:[/;]|\Z)|[^!#-;=?-\[\]_a-z|~]|%(?![0-9A-Fa-f]{2})|%(?:2[EFef]|5[Cc]|[01][0-9A-Fa-f]|7[Ff])"
).search
_escaped_unreserved = re.compile(rb"%(?:3[0-9]|[46][1-9A-Fa-f]|[57][0-9Aa]|2[Dd]|5[Ff]|7[Ee])").sub


def canonical(target: bytes) -> tuple[bytes, bytes]:
    """Split a request target into its canonical path and `?query` (which is passed through byte for byte).

    A trailing slash is dropped; escaped unreserved characters are written plainly (RFC 3986 section 6.2.2.2).

    Raises:
        PathAmbiguous: the path has no one reading.
    """
    path, mark, query = target.partition(b"?")
    query = mark + query
    if _plain(path):
        return path, query
    if _ambiguous(path):
        raise PathAmbiguous(
            "Use the plain form of the path: no dot segments, no //, no escaped dots or slashes."
        )
    path = _escaped_unreserved(lambda match: bytes.fromhex(match[0][1:].decode()), path)
    if path[-1:] == b"/" and len(path) > 1:
        path = path[:-1]
    return path, query
