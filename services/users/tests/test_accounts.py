"""Registering, logging in and reading one's account, over HTTP on real servers."""

import asyncio

import httpx
import pytest

pytestmark = pytest.mark.integration

ADA = {"email": "Ada@Example.com", "password": "correct horse battery", "full_name": "Ada Lovelace"}


async def register(client: httpx.AsyncClient, **changes: object) -> httpx.Response:
    return await client.post("/v1/users", json={**ADA, **changes})


async def log_in(client: httpx.AsyncClient, **form: str) -> httpx.Response:
    return await client.post(
        "/v1/users/token", data={"username": ADA["email"], "password": ADA["password"], **form}
    )


async def test_register_answers_the_account_without_the_password(client: httpx.AsyncClient) -> None:
    response = await register(client)

    assert response.status_code == 201
    body = response.json()
    assert body["email"] == "Ada@example.com"
    assert body["scopes"] == ["items:write", "notifications:read", "notifications:send"]
    assert body["is_active"] is True
    assert body["email_verified"] is False
    assert set(body) == {
        "id", "email", "full_name", "is_active", "email_verified", "scopes", "created_at",
    }  # fmt: skip


async def test_an_address_registers_once_whatever_its_case(client: httpx.AsyncClient) -> None:
    await register(client)

    response = await register(client, email="ADA@EXAMPLE.COM")

    assert response.status_code == 409
    assert response.json()["code"] == "email_taken"


async def test_twenty_parallel_registrations_make_one_account(client: httpx.AsyncClient) -> None:
    responses = await asyncio.gather(*(register(client) for _ in range(20)))

    assert sorted(response.status_code for response in responses) == [201] + [409] * 19


async def test_token_reads_the_own_account(client: httpx.AsyncClient) -> None:
    user = (await register(client)).json()

    token = (await log_in(client)).json()
    me = await client.get("/v1/users/me", headers={"Authorization": f"Bearer {token['access_token']}"})

    assert token["token_type"] == "bearer"
    assert token["expires_in"] == 900
    assert me.status_code == 200
    assert me.json() == user
