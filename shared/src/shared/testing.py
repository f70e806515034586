"""Helpers for tests of any service: real servers, real tokens, and waiting for conditions instead of sleeping."""

import asyncio
import inspect
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar, overload

import jwt
import orjson
import uvicorn
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from fastapi import FastAPI
from jwt.algorithms import ECAlgorithm
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from shared.edge import EdgeProtocol
from shared.ids import new_id
from shared.server import MAX_FRAME_BYTES

T = TypeVar("T")

POLL_INTERVAL = 0.02
PATIENCE = 20.0
"""Seconds a condition may take to come true; generous, because test machines are busy."""
_PORTS = range(20_000, 32_768)  # below what outgoing connections take


@overload
async def eventually(condition: Callable[[], Awaitable[T]], *, within: float = PATIENCE) -> T: ...
@overload
async def eventually(condition: Callable[[], T], *, within: float = PATIENCE) -> T: ...
async def eventually(condition: Callable[[], Any], *, within: float = PATIENCE) -> Any:
    """Return the condition's result once it is truthy.

    Raises:
        AssertionError: it was not, for `within` seconds; names the last result or error.
    """
    deadline = time.monotonic() + within
    while True:
        last: object = None
        try:
            found = condition()
            result = await found if inspect.isawaitable(found) else found
            if result:
                return result
            last = result
        except (AssertionError, OSError, LookupError) as error:
            last = error
        if time.monotonic() > deadline:
            raise AssertionError(f"not true within {within} s; last: {last!r}")
        await asyncio.sleep(POLL_INTERVAL)


def free_port() -> int:
    """Return a port on loopback that nobody listens on."""
    while True:
        port = random.choice(_PORTS)  # noqa: S311
        if _is_free(port):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def free_offset(ports: Sequence[int]) -> int:
    """Return an offset such that nobody listens on any of `ports` moved by it."""
    while True:
        offset = random.randrange(5_000, _PORTS.stop - max(ports))  # noqa: S311
        if all(_is_free(port + offset) for port in ports):
            return offset


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the test run


@asynccontextmanager
async def serving(
    app: Any, *, http: type[asyncio.Protocol] = EdgeProtocol, ws: Any = "websockets-sansio"
) -> AsyncIterator[str]:
    """Serve an ASGI app on a real socket, in the test's own event loop; yields its base URL."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=http,
        ws=ws,
        ws_max_size=MAX_FRAME_BYTES,
        ws_per_message_deflate=False,
        lifespan="on",
        log_config=None,
        proxy_headers=False,
        timeout_graceful_shutdown=5,
    )
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if task.done():
                raise AssertionError("the application did not start") from task.exception()
            await asyncio.sleep(POLL_INTERVAL)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        if isinstance(app, FastAPI) and isinstance(getattr(app.state, "draining", None), asyncio.Event):
            app.state.draining.set()
        server.should_exit = True
        await task
        listener.close()


class TokenIssuer:
    """An issuer with a key of its own, for tokens good and bad."""

    def __init__(self, issuer: str = "http://issuer.test", audience: str = "tollhouse") -> None:
        self.issuer = issuer
        self.audience = audience
        self.kid = new_id()
        self.key = generate_private_key(SECP256R1())
        self.jwks_url = ""
        self.fetches = 0

    def jwk(self) -> dict[str, Any]:
        """Return the public key."""
        members: dict[str, Any] = ECAlgorithm.to_jwk(self.key.public_key(), as_dict=True)
        return {**members, "kid": self.kid, "use": "sig", "alg": "ES256"}

    def claims(
        self, user_id: int = 1, *, scope: str = "", expires_in: int = 600, **more: Any
    ) -> dict[str, Any]:
        """Return claims as RFC 9068 has them; `more` overrides, and None leaves a claim out."""
        now = int(time.time())
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": str(user_id),
            "iat": now,
            "exp": now + expires_in,
            "jti": new_id(),
            "sid": new_id(),
            "client_id": "test",
            "scope": scope,
            **more,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def token(self, user_id: int = 1, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Return a signed access token."""
        return jwt.encode(
            self.claims(user_id, **claims),
            self.key,
            algorithm="ES256",
            headers={"typ": "at+jwt", "kid": self.kid, **(headers or {})},
        )

    def authorization(self, user_id: int = 1, **claims: Any) -> dict[str, str]:
        """Return the headers of a request by this user."""
        return {"Authorization": f"Bearer {self.token(user_id, **claims)}"}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator["TokenIssuer"]:
        """Publish the key set on a real server at `jwks_url`."""

        async def jwks(_request: Request) -> Response:
            self.fetches += 1
            return Response(orjson.dumps({"keys": [self.jwk()]}), media_type="application/json")

        async with serving(Starlette(routes=[Route("/jwks.json", jwks)])) as url:
            self.jwks_url = f"{url}/jwks.json"
            yield self
