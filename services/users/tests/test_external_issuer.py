"""People of another issuer at the users service: they have no account here, and what their scopes allow."""

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI
from pydantic import AnyHttpUrl
from sqlalchemy import select

from shared.settings import TrustedIssuer
from shared.testing import TokenIssuer
from shared.tokens import derived_id
from users.models import AuditRow
from users.settings import UsersSettings

pytestmark = pytest.mark.integration

BOSS = "4c3f0c3e-6f3b-4a57-9d3f-2f6f6b1f7a11"
ADA = {"email": "ada@example.com", "password": "correct horse battery"}


@pytest.fixture
async def elsewhere() -> AsyncIterator[TokenIssuer]:
    async with TokenIssuer("https://login.example.com").serving() as issuer:
        yield issuer


@pytest.fixture
def settings(settings: UsersSettings, elsewhere: TokenIssuer) -> UsersSettings:
    trusted = TrustedIssuer(
        issuer=elsewhere.issuer, audience=elsewhere.audience, jwks_url=AnyHttpUrl(elsewhere.jwks_url)
    )
    return settings.model_copy(update={"trusted_issuers": (trusted,)})


async def test_they_have_no_account_here(client: httpx.AsyncClient, elsewhere: TokenIssuer) -> None:
    headers = {"Authorization": f"Bearer {elsewhere.token(sub=BOSS)}"}

    answers = [
        await client.get("/v1/users/me", headers=headers),
        await client.patch("/v1/users/me", json={"full_name": "Ada"}, headers=headers),
        await client.delete("/v1/users/me", headers=headers),
        await client.post("/v1/users/me/email", json={"email": "a@example.com"}, headers=headers),
    ]
    assert [answer.json()["code"] for answer in answers] == ["user_not_found"] * 4
    assert (await client.get("/v1/users/me/sessions", headers=headers)).json() == []
    assert (await client.get("/v1/users", headers=headers)).status_code == 403


async def test_their_administrators_are_on_record_by_an_id_that_is_nobody_elses(
    client: httpx.AsyncClient, app: FastAPI, elsewhere: TokenIssuer
) -> None:
    ada = (await client.post("/v1/users", json=ADA)).json()["id"]
    headers = {"Authorization": f"Bearer {elsewhere.token(sub=BOSS, scope='users:admin')}"}

    answer = await client.patch(f"/v1/users/{ada}", json={"is_active": False}, headers=headers)

    assert (answer.status_code, answer.json()["is_active"]) == (200, False)
    async with app.state.database.reading() as session:
        row = (await session.scalars(select(AuditRow).where(AuditRow.action == "account.changed"))).one()
    assert (row.actor_id, row.subject_user_id) == (derived_id(elsewhere.issuer, BOSS), ada)


async def test_nobody_ends_a_session_of_ours_by_naming_it_in_a_token_of_theirs(
    client: httpx.AsyncClient, elsewhere: TokenIssuer
) -> None:
    await client.post("/v1/users", json=ADA)
    form = {"username": ADA["email"], "password": ADA["password"]}
    tokens = (await client.post("/v1/users/token", data=form)).json()
    mine = {"Authorization": f"Bearer {tokens['access_token']}"}
    (session,) = (await client.get("/v1/users/me/sessions", headers=mine)).json()

    token = elsewhere.token(sub=BOSS, sid=session["id"])
    assert (await client.post("/v1/users/token/revoke", data={"token": token})).status_code == 200
    theirs = {"Authorization": f"Bearer {token}"}
    ended = await client.delete(f"/v1/users/me/sessions/{session['id']}", headers=theirs)

    assert ended.status_code == 404
    refresh = {"grant_type": "refresh_token", "refresh_token": tokens["refresh_token"]}
    assert (await client.post("/v1/users/token", data=refresh)).status_code == 200
