"""Every list that the API documents is read by an index, however many items there are."""

from collections.abc import Iterator
from decimal import Decimal
from itertools import product as every
from typing import Any, get_args

import psycopg
import pytest
from sqlalchemy import make_url

from items.listing import ListQuery, Sort, listed
from items.settings import ItemsSettings
from stack.products import product
from stack.testing import DatabaseFactory

pytestmark = pytest.mark.integration

DISTINCT = 5_000
"""Products that repeat, each time with another price and seller."""
SORTS: tuple[str, ...] = get_args(Sort)
FILTERS: tuple[dict[str, Any], ...] = (
    {},
    {"in_stock": True},
    {"in_stock": False},
    {"min_price": 20, "max_price": 25},
    {"min_price": 3000},
    {"max_price": "0.01"},
    {"owner_id": 1},
    {"owner_id": 5000},
    {"owner_id": 1, "in_stock": True, "min_price": 50},
    {"q": "notebook"},
    {"q": "zither"},
    {"q": "brass comp"},
    {"q": "n"},
    {"q": "nothing-has-this"},
    {"q": "zither", "in_stock": True, "max_price": 200, "owner_id": 7},
)
MIDDLE: dict[str, str] = {"created_at": "2026-01-01T00:00:00+00:00", "price": "40.00", "name": "Oak mug"}


# A sequential scan is ten times cheaper with the smaller number, and a page by an index costs the same: what is read by an
# index there is read by it here, too.
@pytest.fixture(params=[100_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(900)])])
def catalogue(request: pytest.FixtureRequest, make_database: DatabaseFactory) -> Iterator[psycopg.Connection]:
    """A database with very many items."""
    url = make_url(make_database(ItemsSettings)).set(drivername="postgresql")
    with psycopg.connect(url.render_as_string(hide_password=False), autocommit=True) as connection:
        connection.execute("SET statement_timeout = 0")
        connection.execute("SET maintenance_work_mem = '256MB'")
        _fill(connection, request.param // DISTINCT)
        yield connection


def _fill(connection: psycopg.Connection, times: int) -> None:
    """Insert DISTINCT products `times` times; the indexes are made anew, which is quicker than to grow them."""
    indexes = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'items' AND indexname <> 'items_pkey'"
    ).fetchall()
    for name, _ in indexes:
        connection.execute(f'DROP INDEX "{name}"'.encode())
    connection.execute(
        "CREATE TEMP TABLE products (name text, description text, price numeric, in_stock boolean)"
    )
    with connection.cursor().copy("COPY products FROM STDIN") as copy:
        for number in range(1, DISTINCT + 1):
            copy.write_row(tuple(product(number).values()))
    connection.execute(
        "INSERT INTO items (name, description, price, in_stock, owner_id, created_at)"
        " SELECT name, description, round(price * (0.8 + 0.4 * random())::numeric, 2) + 0.01, in_stock,"
        " 1 + (power(random(), 2) * 5000)::integer, timestamptz '2025-01-01' + random() * interval '2 years'"
        " FROM generate_series(1, %s), products",
        [times],
    )
    for _, definition in indexes:
        connection.execute(definition.encode())
    connection.execute("VACUUM ANALYZE items")


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from _nodes(child)


def _explain(
    catalogue: psycopg.Connection, query: ListQuery, after: list[Any] | None, *, analyze: bool = False
) -> dict[str, Any]:
    text, parameters = listed(query, after=after, limit=51)
    options = "ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON" if analyze else "FORMAT JSON"
    cursor = psycopg.ClientCursor(catalogue)
    row = cursor.execute(f"EXPLAIN ({options}) ".encode() + text, parameters).fetchone()
    assert row is not None
    plan: dict[str, Any] = row[0][0]["Plan"]
    return plan


def _after(sort: str) -> list[Any]:
    return [MIDDLE[sort.removeprefix("-")], 7]


def test_every_documented_list_is_read_by_an_index(catalogue: psycopg.Connection) -> None:
    for sort, filters, deep in every(SORTS, FILTERS, (False, True)):
        query = ListQuery.model_validate({"sort": sort, **filters})
        plan = _explain(catalogue, query, _after(sort) if deep else None)
        kinds = [node["Node Type"] for node in _nodes(plan)]
        assert "Seq Scan" not in kinds, (sort, filters, deep, kinds)
        assert any("Index" in kind for kind in kinds), (sort, filters, deep, kinds)

    # What is read is little: a page far into a list costs as much as the first, and rare words their own items.
    (blocks,) = catalogue.execute("SELECT pg_relation_size('items') / 8192").fetchone() or ()
    cheap: tuple[dict[str, Any], ...] = (
        {},
        {"in_stock": False},
        {"owner_id": 5000},
        {"q": "zither astrolabe"},
    )
    for sort, filters, deep in every(SORTS, cheap, (False, True)):
        query = ListQuery.model_validate({"sort": sort, **filters})
        plan = _explain(catalogue, query, _after(sort) if deep else None, analyze=True)
        read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        assert read <= blocks / 5, (sort, filters, deep, read, blocks)


def test_prices_in_statements_are_exact() -> None:
    query = ListQuery.model_validate({"min_price": "0.1", "max_price": "999999.99"})
    assert (query.min_price, query.max_price) == (Decimal("0.1"), Decimal("999999.99"))
