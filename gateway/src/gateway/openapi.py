"""One OpenAPI 3.1 document and one problem catalogue out of those of the services."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from gateway.components import Document, adopt, drop_unused, rewritten, share_responses
from gateway.errors import (
    PathAmbiguous,
    RateLimited,
    UpstreamFailed,
    UpstreamOverloaded,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from gateway.routes import Policy, Routes
from shared.edge import HeadersTooLarge, HostInvalid, MalformedRequest
from shared.errors import (
    BodyTooLarge,
    CatalogueEntry,
    InsufficientScope,
    InvalidToken,
    KeysUnavailable,
    MethodNotAllowed,
    NotAuthenticated,
    Problem,
)
from shared.openapi import add_headers, add_problems, operations

STALE: Final = "x-tollhouse-stale"
"""At the top: the services whose part is their last good copy, because they are away; at an operation: true."""

DESCRIPTION: Final = """\
**Authenticate** by `Authorization: Bearer <access token>`. `POST /v1/users` makes an account, `POST /v1/users/token` gives
an access token and a refresh token. Access tokens live for minutes; a refresh token is good for one use and brings its
successor.

**Errors** are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) `application/problem+json` with a stable `code`;
`GET /errors` lists all of them. A request that arrives too slowly is answered by 408, one with a method that its path has
not by 405.

**Limits**: `RateLimit-Policy` and `RateLimit` say how many requests are left; 429 and 503 say in `Retry-After` when to
try again.

**Trace a request** by `X-Request-ID`: send your own, or read the one that was given.

**Paths** are accepted with and without a trailing slash. Unknown fields in a body are refused.

**Live**: `GET /v1/ws` is a WebSocket that tells of changes as they happen, and resumes where it left off. It takes the
token as `Authorization`, as the sub-protocols `tollhouse.v1, bearer.<token>`, or as a first frame
`{"type": "auth", "token": "…"}`; then `{"type": "subscribe", "topic": "items"}`.
"""

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "RateLimit-Policy": {
        "description": "The limit that holds: requests (`q`) within seconds (`w`).",
        "schema": {"type": "string"},
        "example": '"default";q=400;w=2',
    },
    "RateLimit": {
        "description": "What is left of it: requests (`r`), whole again after seconds (`t`).",
        "schema": {"type": "string"},
        "example": '"default";r=399;t=1',
    },
}
"""What the gateway adds to the responses of services."""

WIRE_PROBLEMS: Final = (MalformedRequest, HostInvalid, HeadersTooLarge)
"""Answered whatever was asked for."""


def merge(
    own: Document, services: Mapping[str, Document], *, routes: Routes, stale: Collection[str] = ()
) -> dict[str, Any]:
    """Return `own` (the gateway's document) with the operations of every service that a route leads to.

    Components that differ but share a name get the service's name in front; so do doubled operation ids. What the gateway
    may answer itself is added to each operation. `stale` names the services that are away.
    """
    merged: dict[str, Any] = {
        **own,
        "paths": rewritten(own.get("paths", {}), {}),
        "components": {kind: dict(entries) for kind, entries in own.get("components", {}).items()},
        "tags": [],
    }
    merged["components"].setdefault("headers", {}).update(HEADERS)
    for _, _, operation in operations(merged):
        add_problems(operation, WIRE_PROBLEMS)
        add_headers(merged, operation)
    taken = {operation["operationId"] for _, _, operation in operations(merged)}
    for name, document in services.items():
        renamed = adopt(merged["components"], name, document.get("components", {}))
        adopted = {
            "paths": _reachable(rewritten(document.get("paths", {}), renamed), merged["paths"], routes)
        }
        _rename_operations(adopted, name, taken)
        for path, method, operation in operations(adopted):
            _add_what_the_gateway_answers(merged, path, method, operation, routes)
            if name in stale:
                operation[STALE] = True
        merged["paths"].update(adopted["paths"])
    merged["tags"] = _tags([*services.values(), own], merged)
    for _, _, operation in operations(merged):
        operation.setdefault("security", [])  # said, not left open: nobody has to log in
        operation["responses"] = dict(sorted(operation["responses"].items()))
    share_responses(merged)
    drop_unused(merged)
    if away := sorted(set(stale) & services.keys()):
        merged[STALE] = away
    return merged


def merge_catalogues(own: Iterable[CatalogueEntry], services: Iterable[Iterable[Document]]) -> list[Document]:
    """Return all problems, ordered by code; where two describe the same code, the gateway's and the first hold."""
    entries: dict[str, Document] = {entry.code: entry._asdict() for entry in own}
    for catalogue in services:
        for entry in catalogue:
            entries.setdefault(str(entry["code"]), entry)
    return [entries[code] for code in sorted(entries)]


def _tags(documents: Iterable[Document], merged: Document) -> list[Document]:
    """Return the descriptions of the tags in use."""
    used = {tag for _, _, operation in operations(merged) for tag in operation.get("tags", ())}
    described: dict[str, Document] = {}
    for document in documents:
        for tag in document.get("tags", ()):
            if tag["name"] in used:
                described.setdefault(tag["name"], tag)
    return list(described.values())


def _policy(path: str, method: str, routes: Routes) -> Policy | None:
    """Return the policy of an operation, or None where no route leads to it."""
    route = routes.find(path.encode())
    verb = method.upper().encode()
    return route.policy(verb, path.encode()) if route is not None and verb in route.methods else None


def _reachable(paths: Document, known: Document, routes: Routes) -> dict[str, Any]:
    """Leave out the operations that no route leads to, and paths that somebody has already."""
    kept: dict[str, Any] = {}
    for path, item in paths.items():
        hidden = {
            method
            for _, method, _ in operations({"paths": {path: item}})
            if _policy(path, method, routes) is None
        }
        left = {key: value for key, value in item.items() if key not in hidden}
        if path not in known and any(operations({"paths": {path: left}})):
            kept[path] = left
    return kept


def _rename_operations(adopted: Document, service: str, taken: set[str]) -> None:
    """Give operations whose id is taken another one, also where links name them."""
    renamed: dict[str, str] = {}
    for _, _, operation in operations(adopted):
        name = operation["operationId"]
        while operation["operationId"] in taken:
            operation["operationId"] = f"{service}_{operation['operationId']}"
        taken.add(operation["operationId"])
        renamed[name] = operation["operationId"]
    for _, _, operation in operations(adopted):
        for response in operation["responses"].values():
            for link in response.get("links", {}).values():
                if "operationId" in link:
                    link["operationId"] = renamed.get(link["operationId"], link["operationId"])


def _add_what_the_gateway_answers(
    document: dict[str, Any], path: str, method: str, operation: dict[str, Any], routes: Routes
) -> None:
    policy = _policy(path, method, routes)
    if policy is not None:
        add_problems(operation, _problems(path, operation, policy))
        add_headers(document, operation, *HEADERS)


def _problems(path: str, operation: Document, policy: Policy) -> Iterator[type[Problem]]:
    yield from WIRE_PROBLEMS
    if "{" in path:
        yield PathAmbiguous
        yield MethodNotAllowed  # where a value makes it the path of other operations
    if policy.auth == "required":
        yield NotAuthenticated
    if policy.auth != "none":
        yield from (InvalidToken, KeysUnavailable)
    if policy.scopes:
        yield InsufficientScope
    if "requestBody" in operation:
        yield BodyTooLarge
    yield from (RateLimited, UpstreamFailed, UpstreamUnavailable, UpstreamOverloaded, UpstreamTimeout)
