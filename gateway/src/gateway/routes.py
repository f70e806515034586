"""The route table: which path goes to which service, who may call it, and what it may cost.

The table is a file that people edit (routes.toml); it is judged whole at start and turned into dictionaries that a
request is looked up in.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from gateway.errors import PathAmbiguous
from gateway.limits import LimitSettings, RateLimit
from gateway.paths import canonical

Auth = Literal["required", "optional", "none"]
"""`required`: 401 without a token. `optional`: a token is not needed, but a bad one is a 401. `none`: not looked at."""
Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
"""HEAD goes with GET; OPTIONS is answered by the gateway."""

ALL_METHODS: tuple[Method, ...] = ("GET", "POST", "PUT", "PATCH", "DELETE")
IDEMPOTENT = frozenset({b"GET", b"HEAD", b"PUT", b"DELETE"})
DEFAULT_TABLE = Path(__file__).with_name("routes.toml")
OWN_PATHS = frozenset({"/health", "/openapi.json", "/docs", "/redoc", "/errors"})
"""First segments of what the gateway answers itself."""


class RouteTableError(Exception):
    """The table cannot be used; each argument is one sentence that says where and why."""


# What it names goes into Host fields as it is.
_url = re.compile(r"http://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]+)?/?").fullmatch


def _service_url(value: str) -> str:
    if not _url(value):
        raise ValueError("must be http://host:port")
    if urlsplit(value).port == 0:  # .port raises ValueError where it is too large
        raise ValueError("Port out of range 1-65535")
    return value.rstrip("/")


def _prefix(value: str) -> str:
    try:
        plain = canonical(value.encode()) == (value.encode(), b"")
    except PathAmbiguous:
        plain = False
    if not plain or not value.startswith("/") or value == "/":
        raise ValueError("must be like /v1/items: plain, no trailing slash, no dot segments")
    return value


def _rule_path(value: str) -> str:
    return value if value in ("", "/*") else _prefix(value.removesuffix("/*")) and value


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


DEFAULT_LIMIT = "default"


class UpstreamSettings(_Entry):
    """A service and what may be asked of it at once. Times in seconds."""

    url: Annotated[str, AfterValidator(_service_url)]
    max_connections: int = Field(
        128, ge=1, description="Connections, and so requests under way, per process."
    )
    max_queue: int = Field(256, ge=0, description="Requests that may wait for a connection.")
    max_tunnels: int = Field(10_000, ge=0, description="WebSockets per process.")
    queue_timeout: float = Field(1.0, gt=0, description="How long one may wait.")
    connect_timeout: float = Field(2.0, gt=0)
    first_byte_timeout: float = Field(30.0, gt=0, description="From the end of the request to its response.")
    idle_timeout: float = Field(
        60.0, gt=0, description="Between two pieces of a response, or of progress on a request."
    )
    pool_idle: float = Field(
        30.0, gt=0, description="How long an unused connection is kept (the service: longer)."
    )
    breaker_failures: int = Field(
        5, ge=1, description="Failures in a row after which the service is left alone."
    )
    breaker_open: float = Field(
        1.0, gt=0, description="For how long at first; doubled while it does not answer."
    )
    breaker_open_longest: float = Field(15.0, gt=0)
    pool_age: float = Field(
        600.0, gt=0, description="How old a connection may become before it is not used again."
    )


class Rule(_Entry):
    """An exception to its route's policy. The first that fits holds."""

    paths: tuple[Annotated[str, AfterValidator(_rule_path)], ...] = Field(
        description='Paths below the prefix: "" is the prefix itself, "/x/*" everything below /x.'
    )
    methods: tuple[Method, ...] = ALL_METHODS
    auth: Auth = "required"
    scopes: tuple[str, ...] = ()
    limit: str | None = Field(None, description="A limit of its own, instead of the route's.")


class RouteSettings(_Entry):
    """One path prefix."""

    prefix: Annotated[str, AfterValidator(_prefix)]
    upstream: str
    auth: Auth = "required"
    scopes: tuple[str, ...] = Field((), description="Scopes that a token must have.")
    methods: tuple[Method, ...] = ALL_METHODS
    rules: tuple[Rule, ...] = ()
    limit: str = Field(DEFAULT_LIMIT, description="Which of [limits] holds.")
    anonymous_limit: str | None = Field(None, description="A further limit for requests without a token.")
    websocket: bool = Field(False, description="The prefix is a WebSocket.")
    streaming: bool = Field(
        False, description="Responses may last for ever; they end when the gateway drains."
    )
    body_limit: int = Field(1024 * 1024, ge=0, description="Bytes.")
    timeout: float = Field(
        60.0, gt=0, description="For a whole request, in seconds; not for streaming routes."
    )
    retries: int = Field(1, ge=0, le=3, description="Times that a request that only reads is tried again.")

    @model_validator(mode="after")
    def _scopes_need_a_token(self) -> Self:
        for auth, scopes in ((self.auth, self.scopes), *((rule.auth, rule.scopes) for rule in self.rules)):
            if scopes and auth != "required":
                raise ValueError("scopes need auth = required")
        return self


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
"""Stands in header fields, logs and metrics as it is."""


class RouteTable(_Entry):
    """The whole file."""

    limits: dict[_Name, LimitSettings]
    upstreams: dict[_Name, UpstreamSettings]
    routes: tuple[RouteSettings, ...]


def load(
    path: Path = DEFAULT_TABLE,
    *,
    urls: Mapping[str, str] | None = None,
    limits: Mapping[str, Mapping[str, object]] | None = None,
) -> RouteTable:
    """Read the table; `urls` replace those of the upstreams they name, `limits` the values they name.

    Raises:
        RouteTableError: it cannot be read, or something in it is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RouteTableError(f"{path}: {error}.") from None
    urls, limits = urls or {}, limits or {}
    _replace(document, urls, limits)
    try:
        table = RouteTable.model_validate(document)
        mistakes = list(_contradictions(table))
    except ValidationError as error:
        mistakes = [(item["loc"], item["msg"]) for item in error.errors(include_url=False)]
    if mistakes:
        raise RouteTableError(
            *(
                f"{_source(path, text, place, urls, limits)}: {'.'.join(map(str, place))}: "
                f"{reason.removeprefix('Value error, ')}."
                for place, reason in mistakes
            )
        )
    return table


def _replace(
    document: dict[str, Any], urls: Mapping[str, str], limits: Mapping[str, Mapping[str, object]]
) -> None:
    """Put values over those of the file, as far as it has the right shape; the rest is for the validation."""
    upstreams = document.get("upstreams")
    for name, url in urls.items():
        if isinstance(upstreams, dict) and isinstance(upstreams.get(name), dict):
            upstreams[name]["url"] = url
    known = document.setdefault("limits", {})
    if isinstance(known, dict):
        known.setdefault(DEFAULT_LIMIT, {"quota": 400, "window": 2})
        for name, values in limits.items():
            if isinstance(known.setdefault(name, {}), dict):
                known[name].update(values)


_Place = tuple[int | str, ...]


def _contradictions(table: RouteTable) -> Iterator[tuple[_Place, str]]:
    seen: set[str] = set()
    if not table.routes:
        yield ("routes",), "there is no route"
    for index, route in enumerate(table.routes):
        if route.upstream not in table.upstreams:
            yield ("routes", index, "upstream"), f"there is no upstream {route.upstream!r}"
        if route.prefix in seen:
            yield ("routes", index, "prefix"), f"there is another route for {route.prefix}"
        seen.add(route.prefix)
        if f"/{route.prefix.split('/')[1]}" in OWN_PATHS:
            yield ("routes", index, "prefix"), f"the gateway itself answers {route.prefix}"
        yield from _rules_that_never_hold(index, route)
        rules = (
            (("routes", index, "rules", number, "limit"), rule.limit)
            for number, rule in enumerate(route.rules)
        )
        named = (
            (("routes", index, "limit"), route.limit),
            (("routes", index, "anonymous_limit"), route.anonymous_limit),
        )
        for place, limit in (*named, *rules):
            if limit is not None and limit not in table.limits:
                yield place, f"there is no limit {limit!r}"


def _rules_that_never_hold(index: int, route: RouteSettings) -> Iterator[tuple[_Place, str]]:
    """Find rules whose every path and method an earlier rule has (Route.policy says which holds)."""
    earlier: set[tuple[str, Method]] = set()
    for number, rule in enumerate(route.rules):
        own = {(path, method) for path in rule.paths for method in rule.methods}
        if own <= earlier:
            yield ("routes", index, "rules", number, "paths"), "the rules above leave nothing to this one"
        earlier |= own


def _source(
    path: Path,
    text: str,
    place: _Place,
    urls: Mapping[str, str],
    limits: Mapping[str, Mapping[str, object]],
) -> str:
    """Say where to correct a mistake: a line of the file, or the setting that replaces it."""
    match place:
        case ("upstreams", str(name), "url") if name in urls:
            return f"GATEWAY_{name.upper()}_URL"
        case ("limits", str(name), *_) if name in limits:
            return "GATEWAY_LIMITS"
    return f"{path}, line {_line_of(text, place)}"


def _line_of(text: str, place: _Place) -> int:
    """Return the number of the line where `place` stands, or of the table around it: tomllib keeps no lines."""
    lines = text.splitlines()
    found, path = 0, ""
    for part in place:
        if isinstance(part, int):
            heads = [
                number
                for number, line in enumerate(lines)
                if line.strip() == f"[[{path}]]" and number >= found
            ]
            found = heads[part] if part < len(heads) else found
            continue
        path = f"{path}.{part}" if path else part
        rest = range(found + 1 if found else 0, len(lines))
        for number in rest:
            line = lines[number].strip()
            if line == f"[{path}]" or line.partition("=")[0].strip() == part:
                found = number
                break
            if found and line.startswith("[["):
                break
    return found + 1


class Policy:
    """Who may do it, and how often."""

    __slots__ = ("auth", "limit", "scopes")

    def __init__(self, auth: Auth, scopes: Iterable[str], limit: RateLimit) -> None:
        self.auth = auth
        self.scopes = tuple(scopes)
        self.limit = limit


class Route:
    """A prefix, ready to be asked. Everything a request needs of it is computed here once."""

    __slots__ = (
        "_below",
        "_default",
        "_exact",
        "allow",
        "anonymous_limit",
        "body_limit",
        "methods",
        "prefix",
        "retries",
        "streaming",
        "timeout",
        "upstream",
        "websocket",
    )

    def __init__(self, settings: RouteSettings, limits: Mapping[str, RateLimit]) -> None:
        self.prefix = settings.prefix.encode()
        self.upstream = settings.upstream
        self.websocket = settings.websocket
        self.streaming = settings.streaming
        self.body_limit = settings.body_limit
        self.timeout = float("inf") if settings.streaming else settings.timeout
        self.retries = settings.retries
        self.methods = frozenset(_with_head(settings.methods))
        self.allow = ", ".join([*_with_head_names(settings.methods), "OPTIONS"])
        self.anonymous_limit = limits[settings.anonymous_limit] if settings.anonymous_limit else None
        self._default = Policy(settings.auth, settings.scopes, limits[settings.limit])
        self._exact: dict[tuple[bytes, bytes], Policy] = {}
        self._below: list[tuple[bytes, frozenset[bytes], Policy]] = []
        for rule in settings.rules:
            policy = Policy(rule.auth, rule.scopes, limits[rule.limit or settings.limit])
            methods = frozenset(_with_head(rule.methods))
            for path in rule.paths:
                if path.endswith("/*"):
                    self._below.append((self.prefix + path[:-1].encode(), methods, policy))
                else:
                    for method in methods:
                        self._exact.setdefault((method, self.prefix + path.encode()), policy)

    def policy(self, method: bytes, path: bytes) -> Policy:
        """Return the policy of an operation: an exact rule, else the first rule above it, else the route's own."""
        policy = self._exact.get((method, path))
        if policy is not None:
            return policy
        for parent, methods, policy in self._below:
            if method in methods and path.startswith(parent):
                return policy
        return self._default


def _with_head_names(methods: Iterable[str]) -> list[str]:
    return [name for method in methods for name in (("GET", "HEAD") if method == "GET" else (method,))]


def _with_head(methods: Iterable[str]) -> list[bytes]:
    return [name.encode() for name in _with_head_names(methods)]


class Routes:
    """Finds the route of a path: the longest prefix that ends where a segment ends."""

    def __init__(self, table: RouteTable) -> None:
        self.limits = {name: RateLimit(name, settings) for name, settings in table.limits.items()}
        self._by_prefix = {route.prefix.encode(): Route(route, self.limits) for route in table.routes}
        self._depth = max(prefix.count(b"/") for prefix in self._by_prefix)

    def __iter__(self) -> Iterator[Route]:
        return iter(self._by_prefix.values())

    def find(self, path: bytes) -> Route | None:
        """Return the route of a canonical path."""
        segments = path.split(b"/", self._depth + 1)
        if len(segments) > self._depth + 1:
            path = path[: -len(segments[-1]) - 1]
        while path:
            route = self._by_prefix.get(path)
            if route is not None:
                return route
            path = path[: path.rfind(b"/")]
        return None
