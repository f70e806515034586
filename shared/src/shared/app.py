"""The application factory: what every service's FastAPI app has, set up once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing, nullcontext
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.params import Form
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from shared import telemetry
from shared.drain import draining_on_signals
from shared.errors import (
    COMMON_PROBLEMS,
    PROBLEM_JSON,
    BodyTooLarge,
    DatabaseUnavailable,
    MalformedBody,
    MethodNotAllowed,
    Problem,
    RouteNotFound,
    UnsupportedMediaType,
    ValidationFailed,
    catalogue,
    problem_body,
)
from shared.health import Check, health_routes
from shared.logs import get_logger
from shared.metrics import Metrics
from shared.middleware import RequestContext, request_id_of
from shared.openapi import RESPONSES, describe
from shared.settings import DatabaseSettings, Settings
from shared.tasks import running

log = get_logger(__name__)

MAX_BODY_BYTES = 1024 * 1024
MAX_ERRORS_LISTED = 50
"""Places that a validation problem names; a body can be wrong in a hundred thousand."""
MAX_NAME_SHOWN = 100
"""Characters of a field's name that a validation problem repeats."""
FORM = "application/x-www-form-urlencoded"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def create_app(
    settings: Settings,
    *,
    title: str,
    summary: str,
    routers: Sequence[APIRouter] = (),
    lifespan: Lifespan | None = None,
    checks: Mapping[str, Check] | None = None,
    problems: Sequence[type[Problem]] = (),
    scopes: Mapping[str, str] | None = None,
    tags: Mapping[str, str] | None = None,
    openapi_url: str | None = "/openapi.json",
) -> FastAPI:
    """Build a service: its routers, with health, errors, request ids, logs and telemetry around them.

    `lifespan` opens what the service holds and closes it in reverse order; `checks` decide `/health/ready`; `problems`
    are the service's own, listed at `GET /errors` beside the common ones. `scopes` (those its operations need) and `tags`
    (groups of operations) each come with a sentence for the OpenAPI document.
    """
    tracer = telemetry.Tracer.from_settings(settings)
    app = FastAPI(
        title=title,
        summary=summary,
        version=version(f"tollhouse-{settings.service}"),
        lifespan=_around(settings, tracer, lifespan),
        redirect_slashes=False,
        openapi_url=openapi_url,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        responses=RESPONSES,
        openapi_tags=[{"name": name, "description": text} for name, text in (tags or {}).items()],
        generate_unique_id_function=lambda route: route.name,
        # The instrumentation package traces requests (telemetry.py); twice would be once too often.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.settings = settings
    app.state.tracer = tracer
    app.state.draining = asyncio.Event()
    app.add_middleware(RequestContext, max_body_bytes=MAX_BODY_BYTES)
    for router in routers:
        app.include_router(router)
    app.include_router(health_routes(checks))
    app.router.default = _nowhere
    describe(app, (*COMMON_PROBLEMS, *problems), scopes or {})
    _serve_catalogue(app, (*COMMON_PROBLEMS, *problems))
    for error, handler in (_HANDLERS | _database_handlers(settings)).items():
        app.add_exception_handler(error, handler)
    if tracer is not None:
        tracer.instrument(app)
    return app


def _around(settings: Settings, tracer: telemetry.Tracer | None, lifespan: Lifespan | None) -> Lifespan:
    """Run a service's lifespan between what every service does: notice a drain, count, flush the traces.

    What is counted in `app.state.metrics` is there from before the service's lifespan until after it.
    """

    @asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[None]:
        with draining_on_signals(app.state.draining), closing(Metrics(settings.metrics_dir)) as metrics:
            app.state.metrics = metrics
            async with running(metrics.watch()), lifespan(app) if lifespan else nullcontext():
                yield
        if tracer is not None:
            await asyncio.to_thread(tracer.close)  # it exports what is left, and waits for an answer

    return run


def _serve_catalogue(app: FastAPI, problems: Sequence[type[Problem]]) -> None:
    entries = [entry._asdict() for entry in catalogue(problems)]

    @app.get("/errors", tags=["errors"], include_in_schema=False)
    async def errors() -> list[dict[str, Any]]:
        return entries


def _respond(request: Request, problem: Problem) -> Response:
    return Response(
        problem.body(request_id_of(request.scope)),
        status_code=problem.status,
        media_type=PROBLEM_JSON,
        headers=problem.headers,
    )


async def _nowhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer for paths without a route; a WebSocket is refused before the upgrade, in words."""
    if scope["type"] != "websocket":
        raise HTTPException(404)
    socket = WebSocket(scope, receive, send)
    problem = RouteNotFound()
    await socket.receive()
    await socket.send_denial_response(
        Response(problem.body(request_id_of(scope)), problem.status, media_type=PROBLEM_JSON)
    )


async def _on_problem(request: Request, error: Problem) -> Response:
    return _respond(request, error)


_BY_STATUS: dict[int, type[Problem]] = {
    400: MalformedBody,
    404: RouteNotFound,
    405: MethodNotAllowed,
    413: BodyTooLarge,
}


async def _on_http_exception(request: Request, error: HTTPException) -> Response:
    """Translate what the framework itself raises."""
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 405:
        headers["allow"] = ", ".join(_allowed_methods(request))
    problem = _BY_STATUS.get(error.status_code)
    if problem is not None:
        return _respond(request, problem(headers=headers))
    body = problem_body(
        status=error.status_code,
        code=f"http_{error.status_code}",
        title=str(error.detail),
        request_id=request_id_of(request.scope),
    )
    return Response(body, status_code=error.status_code, media_type=PROBLEM_JSON, headers=headers)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods that the path has: the framework names those of its first route only."""
    routes: Sequence[BaseRoute] = request.app.routes
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**request.scope, "method": "GET" if method == "HEAD" else method})[0] is Match.FULL
            for route in routes
        )
    ]


async def _on_validation_error(request: Request, error: RequestValidationError) -> Response:
    details = error.errors()
    if any(item["loc"][0] == "body" for item in details):
        if not _declares_expected_type(request):
            return _respond(request, UnsupportedMediaType(f"Send {_expected_type(request)}."))
        if any(item["type"] == "json_invalid" for item in details):
            return _respond(request, MalformedBody("The body is not valid JSON."))
    return _respond(
        request,
        ValidationFailed(
            "; ".join(f"{_place(item)}: {item['msg']}" for item in details[:5]),
            errors=[_describe(item) for item in details[:MAX_ERRORS_LISTED]],
            # Forms are what OAuth takes: its clients look here (RFC 6749 section 5.2).
            extra={"error": "invalid_request"} if _expected_type(request) == FORM else None,
        ),
    )


def _expected_type(request: Request) -> str:
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.body_field and isinstance(route.body_field.field_info, Form):
        return FORM
    return "application/json"


def _declares_expected_type(request: Request) -> bool:
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-length", "0") == "0" and "transfer-encoding" not in request.headers:
        return True  # no body at all: the fields are missing, not of the wrong type
    expected = _expected_type(request)
    if expected == "application/json":
        return declared == expected or (declared.startswith("application/") and declared.endswith("+json"))
    return declared in (expected, "multipart/form-data")


def _describe(item: Mapping[str, Any]) -> dict[str, str]:
    """Name the place and the reason, never the value: it may be a password."""
    kind, *path = item["loc"]
    place = (
        {"pointer": "#" + "".join(f"/{_escape(_shown(part))}" for part in path)}
        if kind == "body"
        else {"in": str(kind), "parameter": ".".join(map(_shown, path))}
    )
    return {**place, "code": str(item["type"]), "detail": str(item["msg"])}


def _place(item: Mapping[str, Any]) -> str:
    return ".".join(map(_shown, item["loc"][1:])) or str(item["loc"][0])


def _shown(part: object) -> str:
    """Return a part of a place, short and without the lone surrogates that a field's name may have."""
    return str(part)[:MAX_NAME_SHOWN].encode("utf-8", "replace").decode()


def _escape(part: str) -> str:
    """Escape a reference token (RFC 6901 section 3)."""
    return part.replace("~", "~0").replace("/", "~1")


async def _on_database_error(request: Request, error: Exception) -> Response:
    log.warning("database.unavailable", error=type(error).__name__, cause=str(error.__cause__ or ""))
    return _respond(request, DatabaseUnavailable("Nothing was changed. Try again."))


_HANDLERS: dict[type[Exception], Any] = {
    Problem: _on_problem,
    HTTPException: _on_http_exception,
    RequestValidationError: _on_validation_error,
}


def _database_handlers(settings: Settings) -> dict[type[Exception], Any]:
    """Handlers of a service that has a database; SQLAlchemy would cost the others 12 MB and a fifth of a second at their start."""
    if not isinstance(settings, DatabaseSettings):
        return {}
    from sqlalchemy.exc import InterfaceError, OperationalError
    from sqlalchemy.exc import TimeoutError as PoolTimeout

    return dict.fromkeys((OperationalError, InterfaceError, PoolTimeout), _on_database_error)
