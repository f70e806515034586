"""What every service answers: one error format, request ids, timing, health, whatever goes wrong inside."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import httpx
import psycopg
import pytest
from fastapi import APIRouter, FastAPI, Form, Request
from psycopg import sql
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from sqlalchemy import text

from shared import health
from shared.app import MAX_BODY_BYTES, create_app
from shared.auth import CurrentUser, requires
from shared.database import Database, ReadSession, Session
from shared.errors import DatabaseUnavailable, InternalError, Problem, catalogue
from shared.settings import DatabaseSettings, Settings
from shared.testing import TokenIssuer, serving
from shared.text import Text
from shared.tokens import Issuer, Principal, TokenVerifier

SECRET = "postgresql://role:hidden@db.internal/items"


class TeapotProblem(Problem):
    """It is a
    teapot."""

    status = 418
    code = "teapot"
    title = "Teapot"


class Thing(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: Text
    size: int = Field(gt=0)
    children: list["Thing"] = []


class ThingForm(BaseModel):
    name: str
    size: int = 1


router = APIRouter()


@router.post("/things", status_code=201)
async def make_thing(body: Thing) -> Thing:
    return body


@router.get("/things")
async def list_things(limit: int = 10) -> list[int]:
    return list(range(limit))


@router.post("/forms")
async def take_form(body: Annotated[ThingForm, Form()]) -> ThingForm:
    return body


@router.get("/teapot")
async def teapot() -> None:
    raise TeapotProblem("Short and stout.", headers={"X-Spout": "yes"}, extra={"error": "short"})


@router.get("/broken")
async def broken() -> None:
    raise RuntimeError(SECRET)


@router.get("/me")
async def me(user: CurrentUser) -> int:
    return user.id


@router.get("/write")
async def write(user: Annotated[Principal, requires("things:write")]) -> int:
    return user.id


@router.get("/read")
async def read(session: ReadSession) -> int:
    return await session.scalar(text("SELECT 1")) or 0


@router.get("/hold")
async def hold(request: Request, session: Session) -> None:
    await session.execute(text("SELECT 1"))
    request.app.state.held.set()
    await request.app.state.release.wait()


@router.get("/slow-query")
async def slow_query(session: Session) -> None:
    await session.execute(text("SET LOCAL statement_timeout = '10ms'"))
    await session.execute(text("SELECT pg_sleep(5)"))


class ProbeSettings(Settings):
    service = "items"
    port: int = 1


@pytest.fixture
def app() -> FastAPI:
    return create_app(
        ProbeSettings(), title="Probe", summary="A probe.", routers=(router,), problems=(TeapotProblem,)
    )


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with _client(app) as client:
        yield client


@asynccontextmanager
async def _client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, trust_env=False, verify=False) as client,  # noqa: S501  # plain HTTP
    ):
        yield client


def _is_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["code"] == code
    assert body["type"] == f"/errors#{code}"
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    for leak in ("Traceback", "SELECT", "hidden", "db.internal", "127.0.0.1", "psycopg", "sqlalchemy"):
        assert leak not in response.text
    return body


JSON = {"Content-Type": "application/json"}

BAD_REQUESTS: dict[str, tuple[str, str, dict[str, Any], int, str]] = {
    "unknown path": ("GET", "/nowhere", {}, 404, "route_not_found"),
    "trailing part": ("GET", "/things/1", {}, 404, "route_not_found"),
    "wrong method": ("DELETE", "/things", {}, 405, "method_not_allowed"),
    "broken JSON": ("POST", "/things", {"content": b'{"name"', "headers": JSON}, 400, "body_malformed"),
    "invalid UTF-8": ("POST", "/things", {"content": b'{"name": "\xff"}', "headers": JSON}, 400, "body_malformed"),
    "nesting of 100 000": ("POST", "/things", {"content": b"[" * 100_000, "headers": JSON}, 400, "body_malformed"),
    "balanced nesting": (
        "POST", "/things", {"content": b"[" * 100_000 + b"]" * 100_000, "headers": JSON}, 400, "body_malformed",
    ),
    "a number of 5000 digits": (
        "POST", "/things", {"content": b'{"name": "a", "size": ' + b"1" * 5000 + b"}", "headers": JSON},
        400, "body_malformed",
    ),
    "NaN": ("POST", "/things", {"content": b'{"name": "a", "size": NaN}', "headers": JSON}, 422, "validation_failed"),
    "Infinity": (
        "POST", "/things", {"content": b'{"name": "a", "size": Infinity}', "headers": JSON}, 422, "validation_failed",
    ),
    "lone surrogate in a value": (
        "POST", "/things", {"content": b'{"name": "\\ud800", "size": 1}', "headers": JSON}, 422, "validation_failed",
    ),
    "lone surrogate in a name": (
        "POST", "/things", {"content": b'{"\\ud800": 1, "name": "a", "size": 1}', "headers": JSON},
        422, "validation_failed",
    ),
    "no body": ("POST", "/things", {}, 422, "validation_failed"),
    "empty JSON body": ("POST", "/things", {"content": b"", "headers": JSON}, 422, "validation_failed"),
    "body is null": ("POST", "/things", {"content": b"null", "headers": JSON}, 422, "validation_failed"),
    "body is an array": ("POST", "/things", {"json": []}, 422, "validation_failed"),
    "form instead of JSON": ("POST", "/things", {"data": {"name": "a"}}, 415, "unsupported_media_type"),
    "text instead of JSON": (
        "POST", "/things", {"content": b'{"name": "a", "size": 1}', "headers": {"Content-Type": "text/plain"}},
        415, "unsupported_media_type",
    ),
    "no content type": ("POST", "/things", {"content": b'{"name": "a", "size": 1}'}, 415, "unsupported_media_type"),
    "JSON instead of a form": ("POST", "/forms", {"json": {"name": "a"}}, 415, "unsupported_media_type"),
    "form with a bad value": ("POST", "/forms", {"data": {"name": "a", "size": "x"}}, 422, "validation_failed"),
    "bad query": ("GET", "/things?limit=many", {}, 422, "validation_failed"),
    "body over the limit": (
        "POST", "/things", {"content": b" " * (MAX_BODY_BYTES + 1), "headers": JSON}, 413, "body_too_large",
    ),
    "error of our own": ("GET", "/teapot", {}, 418, "teapot"),
    "error nobody expected": ("GET", "/broken", {}, 500, "internal_error"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "options", "status", "code"), BAD_REQUESTS.values(), ids=BAD_REQUESTS
)
async def test_every_error_is_a_problem(
    client: httpx.AsyncClient, method: str, path: str, options: dict[str, Any], status: int, code: str
) -> None:
    _is_problem(await client.request(method, path, **options), status, code)


async def test_chunked_body_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * (MAX_BODY_BYTES // 16)

    _is_problem(await client.post("/things", content=body(), headers=JSON), 413, "body_too_large")


async def test_problem_carries_its_headers_and_members(client: httpx.AsyncClient) -> None:
    response = await client.get("/teapot")

    assert response.headers["x-spout"] == "yes"
    assert response.json()["error"] == "short"
    assert response.json()["detail"] == "Short and stout."


async def test_method_not_allowed_lists_every_method_of_the_path(client: httpx.AsyncClient) -> None:
    response = await client.delete("/things")

    assert set(response.headers["allow"].split(", ")) >= {"GET", "POST"}


async def test_validation_names_each_place_and_never_the_value(client: httpx.AsyncClient) -> None:
    response = await client.post(
        "/things", json={"name": 5, "size": -987654321, "children": [{"size": 1}], "a/b~c": "private-value"}
    )

    body = _is_problem(response, 422, "validation_failed")
    assert {(error["pointer"], error["code"]) for error in body["errors"]} == {
        ("#/name", "string_type"),
        ("#/size", "greater_than"),
        ("#/children/0/name", "missing"),
        ("#/a~1b~0c", "extra_forbidden"),
    }
    assert "private-value" not in response.text
    assert "-987654321" not in response.text


async def test_validation_of_a_parameter_names_it(client: httpx.AsyncClient) -> None:
    (error,) = (await client.get("/things?limit=many")).json()["errors"]

    assert (error["in"], error["parameter"]) == ("query", "limit")


async def test_answer_to_many_errors_is_bounded(client: httpx.AsyncClient) -> None:
    response = await client.post("/things", json={f"unknown{number}": 1 for number in range(50_000)})

    _is_problem(response, 422, "validation_failed")
    assert len(response.content) < 64 * 1024


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/merge-patch+json"])
async def test_json_by_another_name_is_accepted(client: httpx.AsyncClient, content_type: str) -> None:
    response = await client.post(
        "/things", content=json.dumps({"name": "a", "size": 1}), headers={"Content-Type": content_type}
    )

    assert response.status_code == 201


@pytest.mark.parametrize("sane", ["a", "0192-abc_DEF.9", "x" * 128])
async def test_sane_request_id_is_kept(client: httpx.AsyncClient, sane: str) -> None:
    assert (await client.get("/health", headers={"X-Request-ID": sane})).headers["x-request-id"] == sane


@pytest.mark.parametrize("insane", ["", "x" * 129, "a b", "a;b", "<script>", "ä".encode(), "a\tb"])
async def test_other_request_id_is_replaced(client: httpx.AsyncClient, insane: str) -> None:
    made = (await client.get("/health", headers={"X-Request-ID": insane})).headers["x-request-id"]

    assert made != insane
    assert len(made) == 36


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/broken"])
async def test_every_response_says_how_long_it_took(client: httpx.AsyncClient, path: str) -> None:
    assert float((await client.get(path)).headers["x-process-time-ms"]) >= 0


async def test_catalogue_lists_every_problem(client: httpx.AsyncClient) -> None:
    entries = (await client.get("/errors")).json()

    assert {"code": "teapot", "title": "Teapot", "status": 418, "description": "It is a teapot."} in entries
    codes = [entry["code"] for entry in entries]
    assert codes == sorted(set(codes))
    assert {code for *_, code in BAD_REQUESTS.values()} <= set(codes)
    assert all(entry["description"] for entry in entries)


def test_two_problems_cannot_share_a_code() -> None:
    class Other(TeapotProblem):
        """Something else."""

    with pytest.raises(ValueError, match="teapot"):
        catalogue([TeapotProblem, Other])
    assert len(catalogue([TeapotProblem, TeapotProblem, InternalError])) == 2


@pytest.fixture
async def protected(app: FastAPI, token_issuer: TokenIssuer) -> AsyncIterator[httpx.AsyncClient]:
    app.state.verifier = TokenVerifier(
        [Issuer(token_issuer.issuer, token_issuer.audience, token_issuer.jwks_url)]
    )
    async with _client(app) as client:
        yield client
    await app.state.verifier.aclose()


async def test_who_asks_is_taken_from_the_token_only(
    protected: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    nobody = await protected.get("/me", headers={"X-User-Id": "1"})
    _is_problem(nobody, 401, "not_authenticated")
    assert nobody.headers["www-authenticate"] == "Bearer"

    forged = await protected.get("/me", headers=TokenIssuer().authorization())
    _is_problem(forged, 401, "invalid_token")
    assert 'error="invalid_token"' in forged.headers["www-authenticate"]

    known = await protected.get("/me", headers=token_issuer.authorization(7))
    assert known.json() == 7


async def test_scope_that_is_missing_is_named(
    protected: httpx.AsyncClient, token_issuer: TokenIssuer
) -> None:
    refused = await protected.get("/write", headers=token_issuer.authorization(7, scope="things:read"))
    _is_problem(refused, 403, "insufficient_scope")
    assert 'scope="things:write"' in refused.headers["www-authenticate"]

    allowed = await protected.get("/write", headers=token_issuer.authorization(7, scope="things:write"))
    assert allowed.json() == 7


async def test_health_touches_nothing(client: httpx.AsyncClient) -> None:
    assert (await client.get("/health")).json() == {"status": "ok"}


async def test_readiness_asks_every_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "CHECK_TIMEOUT", 0.05)
    failure: list[Exception] = []
    stuck = asyncio.Event()

    async def check() -> None:
        if failure:
            raise failure[0]
        if stuck.is_set():
            await asyncio.Event().wait()

    app = create_app(ProbeSettings(), title="Probe", summary="A probe.", checks={"disk": check})
    async with _client(app) as client:
        assert (await client.get("/health/ready")).json() == {"status": "ready", "checks": {"disk": "ok"}}

        failure.append(OSError(SECRET))
        refused = await client.get("/health/ready")
        assert "disk" in _is_problem(refused, 503, "not_ready")["detail"]
        assert refused.headers["retry-after"]

        failure.clear()
        stuck.set()
        _is_problem(await client.get("/health/ready"), 503, "not_ready")

        app.state.draining.set()
        assert "shutting down" in _is_problem(await client.get("/health/ready"), 503, "not_ready")["detail"]
        assert (await client.get("/health")).status_code == 200


class ProbeDatabaseSettings(DatabaseSettings):
    service = "items"
    port: int = 1


@pytest.fixture
async def stored(database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A service with a pool of one connection and little patience."""
    settings = ProbeDatabaseSettings(
        database_url=SecretStr(database_url), database_pool_size=1, database_pool_timeout=0.1
    )
    database = Database(settings)
    app = create_app(
        settings,
        title="Probe",
        summary="A probe.",
        routers=(router,),
        checks={"database": database.check_ready},
        problems=(DatabaseUnavailable,),
    )
    app.state.database = database
    app.state.held, app.state.release = asyncio.Event(), asyncio.Event()
    async with _client(app) as client:
        client.app = app  # type: ignore[attr-defined]  # for the tests below
        yield client
    await database.close()


@pytest.mark.integration
async def test_exhausted_pool_is_503_and_heals(stored: Any) -> None:
    holding = asyncio.create_task(stored.get("/hold"))
    await stored.app.state.held.wait()

    refused = await stored.get("/read")
    _is_problem(refused, 503, "database_unavailable")
    assert refused.headers["retry-after"]

    stored.app.state.release.set()
    assert (await holding).status_code == 200
    assert (await stored.get("/read")).json() == 1


@pytest.mark.integration
async def test_database_that_is_away_is_503_and_heals(
    stored: Any, postgres_dsn: str, database_url: str
) -> None:
    assert (await stored.get("/read")).json() == 1
    name = database_url.rpartition("/")[2]
    statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute(statement.format(sql.Identifier(name), sql.Literal(False)))
        admin.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
        )

        refused = await stored.get("/read")
        _is_problem(refused, 503, "database_unavailable")
        assert refused.headers["retry-after"]
        _is_problem(await stored.get("/health/ready"), 503, "not_ready")
        assert (await stored.get("/health")).status_code == 200

        admin.execute(statement.format(sql.Identifier(name), sql.Literal(True)))
    assert (await stored.get("/health/ready")).status_code == 200
    assert (await stored.get("/read")).json() == 1


@pytest.mark.integration
async def test_query_that_takes_too_long_is_503(stored: Any) -> None:
    _is_problem(await stored.get("/slow-query"), 503, "database_unavailable")
