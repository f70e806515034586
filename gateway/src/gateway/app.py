"""The gateway's application: what the gateway itself owns, on FastAPI, and the life of the data path beside it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Literal

import httpx
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel, Field

from gateway import event_documents, openapi
from gateway.accesslog import AccessLog
from gateway.cors import Cors
from gateway.directory import TIMEOUT, Directory, Service
from gateway.documents import add_documents
from gateway.errors import GATEWAY_PROBLEMS
from gateway.headers import HSTS, SECURITY_HEADERS
from gateway.meters import Meters
from gateway.proxies import TrustedProxies
from gateway.proxy import Proxy
from gateway.routes import Routes, RouteTable
from gateway.settings import GatewaySettings
from gateway.tracing import Traces
from gateway.upstream import Upstream
from shared.app import create_app as create_base_app
from shared.broker import Broker
from shared.edge import EDGE_PROBLEMS
from shared.errors import COMMON_PROBLEMS, NotReady, catalogue
from shared.metrics import Metrics
from shared.openapi import problems
from shared.revocations import RevocationReader, Revocations, verifying
from shared.tasks import running
from shared.tokens import TokenVerifier

PROBLEMS = (*COMMON_PROBLEMS, *EDGE_PROBLEMS, *GATEWAY_PROBLEMS)
TAGS = {
    "gateway": "What this is, and every problem that it may answer.",
    "health": "For whoever runs it: does it live, can it serve.",
}

router = APIRouter()


class Welcome(BaseModel):
    """Where to go from here."""

    status: Literal["ok"] = Field(
        "ok", description="Always `ok`; `/health/ready` says which services can be reached."
    )
    name: str = Field("Tollhouse", description="What gateway and services are called together.")
    framework: str = Field("FastAPI", description="What the services are made with.")
    version: str = Field(description="The gateway's; the services have their own.", examples=["0.1.0"])
    docs: str = Field("/docs", description="This API, to be tried out.")
    redoc: str = Field("/redoc", description="The same, to be read.")
    openapi: str = Field("/openapi.json", description="The same, for programs.")
    errors: str = Field("/errors", description="Every problem code.")
    health: str = Field("/health", description="Whether the gateway lives.")


class ProblemKind(BaseModel):
    """A problem that some operation may answer."""

    code: str = Field(description="Stable; what programs should look at.", examples=["item_not_found"])
    title: str = Field(description="The code in words.", examples=["Item not found"])
    status: int = Field(description="Of the response.", examples=[404])
    description: str = Field(
        description="What it means and what to do.",
        examples=["No item has this id; it may have been deleted."],
    )


class GatewayReadiness(BaseModel):
    """The gateway serves; `degraded`: some service is away just now, or NATS, and with it news of revoked sessions."""

    status: Literal["ready", "degraded"] = Field(
        description="`degraded`: a service or NATS is away; what does not need it works."
    )
    nats: Literal["up", "down"] = Field(description="`down`: revoked sessions are not heard of.")
    upstreams: dict[str, Literal["up", "down"]] = Field(
        description="The services.", examples=[{"items": "up", "notifications": "up", "users": "up"}]
    )
    documents: dict[str, Literal["current", "stale"]] = Field(
        description="`stale`: `/openapi.json` and `/errors` have the last good copy of what the service says of itself.",
        examples=[{"items": "current", "notifications": "current", "users": "current"}],
    )


def create() -> FastAPI:
    """Make the application from the environment; uvicorn's entry point."""
    return create_app(GatewaySettings.load())


def create_app(settings: GatewaySettings) -> FastAPI:
    """Make the application. Its lifespan puts the data path into `app.state.proxy`, where GatewayProtocol finds it.

    Raises:
        RouteTableError: the route table cannot be used.
    """
    table = settings.route_table()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Closed in reverse order: first nobody asks the services any more, then the pools go.
        async with AsyncExitStack() as stack:
            broker = await stack.enter_async_context(Broker(settings))
            verifier, revoked, app.state.revocations = await stack.enter_async_context(
                verifying(settings, broker)
            )
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=TIMEOUT, trust_env=False))
            app.state.verifier = verifier
            metrics: Metrics = app.state.metrics
            tracer = app.state.tracer
            traces = Traces(settings.trace_ratio, tracer.provider if tracer is not None else None)
            app.state.proxy = proxy = _proxy(
                settings, table, verifier, metrics, traces, allow_of=app.state.documents.allow
            )
            stack.push_async_callback(proxy.aclose)
            app.state.directory = directory = Directory(
                {name: upstream.url for name, upstream in table.upstreams.items()}, http
            )
            _show_states(proxy.meters, verifier, app.state.revocations, revoked, directory)
            await stack.enter_async_context(running(directory.watch()))
            yield

    app = create_base_app(
        settings,
        title="Tollhouse",
        summary="Items, accounts and notifications behind one URL.",
        routers=[router],
        lifespan=lifespan,
        problems=(*EDGE_PROBLEMS, *GATEWAY_PROBLEMS),
        tags=TAGS,
        openapi_url=None,  # documents.py serves the one of all services
    )
    app.include_router(event_documents.router)
    add_documents(app, Routes(table))
    return app


def _proxy(
    settings: GatewaySettings,
    table: RouteTable,
    verifier: TokenVerifier,
    metrics: Metrics,
    traces: Traces,
    *,
    allow_of: Callable[[bytes], str | None],
) -> Proxy:
    loop = asyncio.get_running_loop()
    routes = Routes(table)
    upstreams = {name: Upstream(name, upstream, loop) for name, upstream in table.upstreams.items()}
    return Proxy(
        routes,
        upstreams,
        verifier,
        meters=Meters(metrics, routes, upstreams),
        traces=traces,
        cors=Cors(settings.cors_origins, credentials=settings.cors_credentials),
        access_log=AccessLog(settings),
        trusted_proxies=TrustedProxies(settings.trusted_proxies),
        headers=[*SECURITY_HEADERS, HSTS] if settings.hsts else SECURITY_HEADERS,
        allow_of=allow_of,
    )


def _show_states(
    meters: Meters,
    verifier: TokenVerifier,
    reader: RevocationReader,
    revocations: Revocations,
    directory: Directory,
) -> None:
    """Show what else a process knows in its metrics."""
    meters.show("keys_known", "Processes that know the keys of our own issuer.", lambda: verifier.ready)
    meters.show("revocations_current", "Processes that know all revoked sessions.", reader.caught_up.is_set)
    meters.show("revoked_sessions", "Sessions that each process refuses, added up.", lambda: len(revocations))
    for service in directory.services:
        alive = partial(_alive, service)
        meters.show("upstream_up", "Processes that see the service alive.", alive, upstream=service.name)


def _alive(service: Service) -> bool:
    return service.alive


@router.get("/", tags=["gateway"], summary="Say what this is")
async def read_welcome(request: Request) -> Welcome:
    """Name the system and where its documents are."""
    return Welcome(version=request.app.version)


@router.get(
    "/health/ready",
    tags=["health"],
    summary="Say whether the gateway can serve",
    responses=problems(NotReady),
)
async def read_readiness(request: Request) -> GatewayReadiness:
    """Say which services are there. `degraded` (200) is not 503: what does not need the missing service works."""
    state = request.app.state
    directory: Directory = state.directory
    if state.draining.is_set():
        raise NotReady("The process is shutting down.")
    if not state.verifier.ready:
        raise NotReady("The signing keys are not known yet.")
    if not directory.complete:
        missing = ", ".join(service.name for service in directory.services if not service.seen)
        raise NotReady(f"Not seen yet: {missing}.")
    informed = state.revocations.caught_up.is_set()
    return GatewayReadiness(
        status="ready" if informed and all(service.alive for service in directory.services) else "degraded",
        nats="up" if informed else "down",
        upstreams={service.name: "up" if service.alive else "down" for service in directory.services},
        documents={service.name: "stale" if service.stale else "current" for service in directory.services},
    )


@router.get("/errors", tags=["gateway"], summary="List every problem code")
async def list_errors(request: Request) -> list[ProblemKind]:
    """Return the catalogue of the gateway and of all services (RFC 9457 `type` points here)."""
    directory: Directory = request.app.state.directory
    services = [service.problems for service in directory.services]
    return [
        ProblemKind.model_validate(entry) for entry in openapi.merge_catalogues(catalogue(PROBLEMS), services)
    ]
