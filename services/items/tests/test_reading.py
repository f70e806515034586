"""Reads while the database goes away and comes back."""

import asyncio
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from items.app import create_app
from items.reading import Reader
from items.settings import ItemsSettings
from shared.errors import DatabaseUnavailable
from shared.testing import TokenIssuer, eventually, free_port, serving

pytestmark = pytest.mark.integration


async def test_connections_that_were_closed_while_idle_disturb_no_request(
    client: httpx.AsyncClient, settings: ItemsSettings, token_issuer: TokenIssuer, postgres_dsn: str
) -> None:
    owner = token_issuer.authorization(1, scope="items:write")
    path = (await client.post("/v1/items", json={"name": "a", "price": 1}, headers=owner)).headers["location"]
    database = settings.database_url.get_secret_value().rpartition("/")[2]
    for _ in range(3):
        assert (await client.get(path)).status_code == 200
        with psycopg.connect(postgres_dsn, autocommit=True) as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = %s", [database]
            )

            def all_gone(admin: psycopg.Connection = admin) -> bool:
                left = admin.execute("SELECT 1 FROM pg_stat_activity WHERE datname = %s", [database])
                return left.fetchone() is None

            await eventually(all_gone)
        assert (await client.get(path)).status_code == 200
        written = await client.post("/v1/items", json={"name": "a", "price": 1}, headers=owner)
        assert written.status_code == 201


async def test_reads_without_a_database_are_told_to_come_again(settings: ItemsSettings) -> None:
    away = settings.model_copy(
        update={
            "database_url": SecretStr(f"postgresql://nobody:hidden@127.0.0.1:{free_port()}/nothing"),
            "database_pool_timeout": 0.2,
        }
    )
    app: Any = create_app(away)
    async with serving(app) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        for path in ("/v1/items/1", "/v2/items?q=a"):
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
            assert answer.headers["retry-after"] == "1"
            assert "127.0.0.1" not in answer.text


async def test_a_read_after_an_outage_does_not_wait_for_a_pause_that_grew_with_it(
    settings: ItemsSettings,
) -> None:
    """Seconds after its begin, the pool tries as often as at first, whoever asks."""
    attempts = 0

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        url = f"postgresql://nobody:hidden@127.0.0.1:{port}/nothing?sslmode=disable&gssencmode=disable"
        away = settings.model_copy(
            update={
                "database_url": SecretStr(url),
                "database_pool_size": 1,
                "database_pool_timeout": 0.1,
            }
        )
        async with Reader(away) as reader:

            async def tried_often() -> bool:
                with pytest.raises(DatabaseUnavailable):
                    await reader.rows(b"SELECT 1", {}, prepare=False)
                return attempts > 8

            await eventually(tried_often)  # at twice the pause each time, it would take minutes
