"""Logging in: what a token says, what a refusal does not say, and what many logins at once may cost."""

import asyncio
import threading
import time
from typing import Any

import httpx
import jwt
import psycopg
import pytest
from fastapi import FastAPI
from jwt import PyJWK
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import select, text, update

from shared.testing import eventually, serving
from users.app import create_app
from users.models import LoginSession, SigningKey, User
from users.passwords import Passwords
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

ADA = {"email": "ada@example.com", "password": "correct horse battery", "full_name": "Ada Lovelace"}


async def _log_in(client: httpx.AsyncClient, **form: str) -> httpx.Response:
    return await client.post(
        "/v1/users/token", data={"username": ADA["email"], "password": ADA["password"], **form}
    )


def _bearer(token: httpx.Response) -> dict[str, str]:
    return {"Authorization": f"Bearer {token.json()['access_token']}"}


async def test_token_is_what_rfc_9068_says(
    client: httpx.AsyncClient, app: FastAPI, settings: UsersSettings
) -> None:
    user = (await client.post("/v1/users", json=ADA)).json()

    response = await _log_in(client)

    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body["scope"] == "items:write notifications:read notifications:send"
    token = body["access_token"]
    keys = (await client.get("/.well-known/jwks.json")).json()["keys"]
    header = jwt.get_unverified_header(token)
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": keys[0]["kid"]}
    claims = jwt.decode(token, PyJWK(keys[0]), audience=settings.token_audience, issuer=settings.token_issuer)
    assert set(claims) == {"iss", "aud", "sub", "client_id", "iat", "exp", "jti", "sid", "scope"}
    assert claims["sub"] == str(user["id"])
    assert claims["exp"] - claims["iat"] == body["expires_in"] == settings.access_token_ttl
    assert abs(claims["iat"] - time.time()) < 60
    assert claims["scope"].split() == user["scopes"]
    async with app.state.database.reading() as session:
        login = (await session.scalars(select(LoginSession))).one()
    assert (login.id, login.user_id) == (claims["sid"], user["id"])

    again = jwt.decode((await _log_in(client)).json()["access_token"], options={"verify_signature": False})
    assert again["jti"] != claims["jti"]
    assert again["sid"] != claims["sid"]


async def test_key_set_holds_public_signature_keys_only(client: httpx.AsyncClient) -> None:
    response = await client.get("/.well-known/jwks.json")

    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "public, max-age=300"
    (key,) = response.json()["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert (key["kty"], key["crv"], key["use"], key["alg"]) == ("EC", "P-256", "sig", "ES256")


async def test_refusal_never_says_whether_the_address_is_known(
    client: httpx.AsyncClient, app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    await client.post("/v1/users", json=ADA)
    hashed: list[str] = []
    passwords: Passwords = app.state.passwords
    original = passwords._hasher.verify_and_update

    def count(password: str, stored: str) -> Any:
        hashed.append(stored.rpartition("$")[0].rpartition("$")[0])  # the parameters, without salt and hash
        return original(password, stored)

    monkeypatch.setattr(passwords._hasher, "verify_and_update", count)
    answers = [
        await _log_in(client, password="wrong but long enough"),
        await _log_in(client, username="nobody@example.com", password="wrong but long enough"),
    ]

    for answer in answers:
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
    known, unknown = ({**answer.json(), "request_id": ""} for answer in answers)
    assert known == unknown
    assert (known["code"], known["error"]) == ("invalid_credentials", "invalid_grant")
    assert answers[0].headers.keys() == answers[1].headers.keys()
    assert len(hashed) == 2
    assert hashed[0] == hashed[1]


async def test_deactivated_account_is_refused_like_an_unknown_one(
    client: httpx.AsyncClient, app: FastAPI
) -> None:
    await client.post("/v1/users", json=ADA)
    async with app.state.database.transaction() as session:
        await session.execute(update(User).values(is_active=False))

    assert (await _log_in(client)).json()["code"] == "invalid_credentials"


async def test_scope_can_be_narrowed_and_never_widened(client: httpx.AsyncClient) -> None:
    await client.post("/v1/users", json=ADA)

    narrow = (await _log_in(client, scope="notifications:read items:write items:write")).json()
    assert narrow["scope"] == "items:write notifications:read"
    claims = jwt.decode(narrow["access_token"], options={"verify_signature": False})
    assert claims["scope"] == narrow["scope"]

    for wanted in ("users:admin", "items:write items:admin", "*"):
        refused = await _log_in(client, scope=wanted)
        assert (refused.status_code, refused.json()["code"]) == (400, "invalid_scope")
        assert refused.json()["error"] == "invalid_scope"


BAD_FORMS: dict[str, tuple[dict[str, str], int, str]] = {
    "unknown grant": ({"grant_type": "client_credentials"}, 400, "unsupported_grant_type"),
    "implicit grant": ({"grant_type": "authorization_code", "code": "x"}, 400, "unsupported_grant_type"),
    "no password": ({"password": ""}, 400, "invalid_request"),
    "no username": ({"username": ""}, 400, "invalid_request"),
    "no refresh token": ({"grant_type": "refresh_token"}, 400, "invalid_request"),
    "grant type huge": ({"grant_type": "x" * 100_000}, 400, "unsupported_grant_type"),
    "grant type in capitals": ({"grant_type": "PASSWORD"}, 400, "unsupported_grant_type"),
    "password too long": ({"password": "x" * 129}, 422, "validation_failed"),
    "username too long": ({"username": "x" * 255}, 422, "validation_failed"),
    "username with NUL": ({"username": "ada\0@example.com"}, 422, "validation_failed"),
    "scope too long": ({"scope": "x" * 1001}, 422, "validation_failed"),
}


@pytest.mark.parametrize(("form", "status", "code"), BAD_FORMS.values(), ids=BAD_FORMS)
async def test_bad_token_request_is_refused(
    client: httpx.AsyncClient, form: dict[str, str], status: int, code: str
) -> None:
    await client.post("/v1/users", json=ADA)

    response = await _log_in(client, **form)

    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.json()["error"] == (code if status == 400 else "invalid_request")
    assert "x" * 100 not in response.text


async def test_grant_type_may_be_named(client: httpx.AsyncClient) -> None:
    await client.post("/v1/users", json=ADA)

    for name in ("password", ""):  # RFC 6749 section 3.2: a parameter without a value is as good as none
        assert (await _log_in(client, grant_type=name)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/users/token", "/v1/users/token/revoke"])
@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "text/plain",
        "",
        "multipart/form-data; boundary=x",
        "multipart/form-data; boundary=x; charset=utf-7",  # in which a lone surrogate can be spelled
        "application/x-www-form-urlencoded2",
    ],
)
async def test_token_endpoints_take_a_form_only(
    client: httpx.AsyncClient, path: str, content_type: str
) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="password"\r\n\r\n+2AA-\r\n--x--\r\n'
    response = await client.post(path, content=body, headers={"Content-Type": content_type})

    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")
    assert response.json()["error"] == "invalid_request"


async def test_registration_takes_json_only(client: httpx.AsyncClient) -> None:
    response = await client.post("/v1/users", data=ADA)
    assert (response.status_code, response.json()["code"]) == (415, "unsupported_media_type")


async def test_a_declared_charset_of_the_form_is_no_reason_to_refuse_it(client: httpx.AsyncClient) -> None:
    await client.post("/v1/users", json=ADA)
    response = await client.post(
        "/v1/users/token",
        content=b"username=ada%40example.com&password=correct+horse+battery",
        headers={"Content-Type": "application/x-www-form-urlencoded; charset=UTF-8"},
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/users/token", b"username=ada%40example.com&password=x&password=correct+horse+battery"),
        ("/v1/users/token", b"username=ada%40example.com&password=correct+horse+battery&scope=a&scope=a"),
        ("/v1/users/token", b"unknown=1&unknown=2&username=a&password=b"),
        ("/v1/users/token/revoke", b"token=a&token=b"),
    ],
)
async def test_no_parameter_may_be_given_twice(client: httpx.AsyncClient, path: str, body: bytes) -> None:
    await client.post("/v1/users", json=ADA)
    response = await client.post(
        path, content=body, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )

    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert response.json()["error"] == "invalid_request"


async def test_nothing_the_token_endpoint_says_may_be_stored(client: httpx.AsyncClient) -> None:
    await client.post("/v1/users", json=ADA)
    answers = [
        await _log_in(client),
        await _log_in(client, password="wrong but long enough"),
        await _log_in(client, scope="users:admin"),
        await _log_in(client, grant_type="refresh_token", refresh_token="x"),
        await _log_in(client, grant_type="client_credentials"),
        await client.post("/v1/users/token", json={}),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 400, 400, 400, 415]
    for answer in answers:
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["pragma"] == "no-cache"


async def test_me_needs_a_token_of_somebody_who_is_there(client: httpx.AsyncClient, app: FastAPI) -> None:
    assert (await client.get("/v1/users/me")).status_code == 401
    await client.post("/v1/users", json=ADA)
    token = _bearer(await _log_in(client))
    async with app.state.database.transaction() as session:
        await session.execute(text("DELETE FROM users"))

    assert (await client.get("/v1/users/me", headers=token)).json()["code"] == "user_not_found"


async def test_full_hashing_pool_is_503_and_slows_nobody_else(
    settings: UsersSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    app = create_app(settings.model_copy(update={"hashing_threads": 1, "hashing_backlog": 1}))
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await client.post("/v1/users", json=ADA)
        token = _bearer(await _log_in(client))
        passwords: Passwords = app.state.passwords
        original = passwords._hasher.verify_and_update

        def wait(password: str, stored: str) -> Any:
            release.wait(20)
            return original(password, stored)

        monkeypatch.setattr(passwords._hasher, "verify_and_update", wait)
        waiting = [asyncio.create_task(_log_in(client)) for _ in range(2)]
        await eventually(lambda: passwords._running == 2)

        refused = await _log_in(client)
        assert (refused.status_code, refused.json()["code"]) == (503, "hashing_busy")
        assert refused.headers["retry-after"]
        assert (await client.post("/v1/users", json={**ADA, "email": "b@example.com"})).status_code == 503
        assert (await client.get("/v1/users/me", headers=token)).status_code == 200

        release.set()
        assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200, 200]


async def test_weaker_hash_is_renewed_at_login(
    client: httpx.AsyncClient, settings: UsersSettings, app: FastAPI
) -> None:
    await client.post("/v1/users", json=ADA)
    stronger = create_app(settings.model_copy(update={"argon2_iterations": 2}))
    async with serving(stronger) as url, httpx.AsyncClient(base_url=url, trust_env=False) as other:
        assert (await _log_in(other)).status_code == 200

    async with app.state.database.reading() as session:
        assert ",t=2," in (await session.scalars(select(User.password_hash))).one()
    assert (await _log_in(client)).status_code == 200


async def test_signing_key_survives_a_restart(settings: UsersSettings) -> None:
    documents: list[Any] = []
    tokens: list[dict[str, str]] = []
    for _ in range(2):
        app = create_app(settings)
        async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            if not tokens:
                await client.post("/v1/users", json=ADA)
            tokens.append(_bearer(await _log_in(client)))
            documents.append((await client.get("/.well-known/jwks.json")).json())
            assert (await client.get("/v1/users/me", headers=tokens[0])).status_code == 200
    assert documents[0] == documents[1]


async def test_replicas_that_start_at_once_agree_on_one_key(settings: UsersSettings) -> None:
    async def key_set(app: FastAPI) -> Any:
        async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            return (await client.get("/.well-known/jwks.json")).json()

    first, second, third = await asyncio.gather(*(key_set(create_app(settings)) for _ in range(3)))

    assert first == second == third
    assert len(first["keys"]) == 1


@pytest.mark.usefixtures("client")
async def test_private_key_is_stored_encrypted(app: FastAPI) -> None:
    async with app.state.database.reading() as session:
        key = (await session.scalars(select(SigningKey))).one()

    assert "d" not in key.public_jwk
    private = app.state.keys.signing_key()[1].private_numbers().private_value.to_bytes(32, "big")
    assert private not in key.private_key


async def test_first_admin_comes_from_settings_once(settings: UsersSettings) -> None:
    credentials = {"admin_email": "root@example.com", "admin_password": SecretStr("a long admin password")}
    form = {"username": "root@example.com", "password": "a long admin password"}
    ids = []
    for changes in (credentials, {**credentials, "admin_password": SecretStr("another long password")}):
        app = create_app(settings.model_copy(update=changes))
        async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
            token = await client.post("/v1/users/token", data=form)
            assert "users:admin" in token.json()["scope"].split()
            me = (await client.get("/v1/users/me", headers=_bearer(token))).json()
            assert {"items:admin", "users:admin", "notifications:send_any"} <= set(me["scopes"])
            ids.append(me["id"])
    assert ids[0] == ids[1]

    # When nobody knows the password any more, another address makes another one.
    app = create_app(settings.model_copy(update={**credentials, "admin_email": "second@example.com"}))
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        token = await client.post("/v1/users/token", data={**form, "username": "second@example.com"})
        assert "users:admin" in token.json()["scope"].split()


async def test_replicas_that_start_at_once_make_one_admin(settings: UsersSettings) -> None:
    admin = {"admin_email": "root@example.com", "admin_password": SecretStr("a long admin password")}

    async def start(app: FastAPI) -> int:
        async with serving(app), app.state.database.reading() as session:
            return await session.scalar(text("SELECT count(*) FROM users")) or 0

    counts = await asyncio.gather(*(start(create_app(settings.model_copy(update=admin))) for _ in range(3)))

    assert counts == [1, 1, 1]


async def test_registration_survives_a_database_that_goes_away(
    client: httpx.AsyncClient, postgres_dsn: str, settings: UsersSettings
) -> None:
    name = settings.database_url.get_secret_value().rpartition("/")[2]
    statement = sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS {}")
    with psycopg.connect(postgres_dsn, autocommit=True) as admin:
        admin.execute(statement.format(sql.Identifier(name), sql.Literal(False)))
        admin.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            refused = await client.post("/v1/users", json=ADA)
        finally:
            admin.execute(statement.format(sql.Identifier(name), sql.Literal(True)))

    assert (refused.status_code, refused.json()["code"]) == (503, "database_unavailable")
    assert (await client.post("/v1/users", json=ADA)).status_code == 201
