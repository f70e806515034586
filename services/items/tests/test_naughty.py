"""Texts and bodies that break careless services: they come back as they went in, or are refused; nothing fails."""

import json

import httpx
import pytest

from shared.testing import TokenIssuer

pytestmark = pytest.mark.integration

TEXTS = (
    "'; DROP TABLE items; --", '" OR 1=1', "${jndi:ldap://x}", "{{7*7}}", "<script>alert(1)</script>", "../../etc/passwd",
    "%00%0a%0d", "\r\nSet-Cookie: a=b", "\t\v\f", "\x7f\x80\x9f", "\u200b\u200e\u202e\ufeff", "\ufffe\uffff", "\U0010ffff",
    "ﷺ", "Z̴a̷l̶g̵o̸", "👩‍👩‍👧‍👦", "🇨🇦🏴󠁧󠁢󠁥󠁮󠁧󠁿", "مرحبا", "社會科學院", "İıŞ", "ß", "ﬁ", "Å vs. Å", "null", "undefined", "NaN",
    "-1", "1e400", "\\", "\\u0000", "'':*&|!<->", "()", "%s %d %n", "$1", ":id", "%(id)s", "a" * 120, " ", "  lead and trail  ",
)  # fmt: skip
BODIES = (
    b"", b"null", b"[]", b"1", b'"name"', b"{", b'{"name": "a", "price": NaN}', b'{"name": "a", "price": Infinity}',
    b'{"name": "a", "price": 1e999}', b'{"name": "a", "price": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a":' * 100_000,
    b'{"name": "\xff\xfe", "price": 1}', b'{"name": "\xed\xa0\x80", "price": 1}', b'{"name": "\\ud800", "price": 1}',
    b'{"name": "\\u0000", "price": 1}', b"\x00", b'{"name": "a", "price": 1, "price": "x"}',
    b'{"name": "a", "price": 1} x', b"{'name': 'a', 'price': 1}",
)  # fmt: skip


@pytest.fixture
def owner(token_issuer: TokenIssuer) -> dict[str, str]:
    return token_issuer.authorization(1, scope="items:write")


async def test_naughty_texts_come_back_as_they_went_in(
    client: httpx.AsyncClient, owner: dict[str, str]
) -> None:
    for text in TEXTS:
        body = json.dumps({"name": text, "description": text * 3, "price": 1})
        headers = {**owner, "Content-Type": "application/json"}
        made = await client.post("/v1/items", content=body, headers=headers)
        assert made.status_code == 201, (text, made.text)
        read = (await client.get(made.headers["location"])).json()
        assert (read["name"], read["description"]) == (text, text * 3)
        found = await client.get("/v2/items", params={"q": text, "limit": 1, "sort": "-name"})
        assert found.status_code == 200, (text, found.text)
    names = set()
    url: str | None = "/v1/items?sort=name&limit=3"
    while url is not None:
        page = await client.get(url)
        names |= {item["name"] for item in page.json()}
        url = page.links["next"]["url"] if "next" in page.links else None
    assert names == set(TEXTS)


async def test_naughty_bodies_are_refused(client: httpx.AsyncClient, owner: dict[str, str]) -> None:
    made = await client.post("/v1/items", json={"name": "a", "price": 1}, headers=owner)
    path = made.headers["location"]
    for key in (None, "a-key"):
        headers = {**owner, "Content-Type": "application/json", **({"Idempotency-Key": key} if key else {})}
        for body in BODIES:
            for response in (
                await client.post("/v1/items", content=body, headers=headers),
                await client.put(path, content=body, headers=headers),
                await client.patch(path, content=body, headers=headers),
                await client.patch(
                    path.replace("v1", "v2"), content=body, headers={**headers, "If-Match": "*"}
                ),
            ):
                assert 400 <= response.status_code < 500, (body[:60], response.status_code, response.text)
                assert response.headers["content-type"] == "application/problem+json"
                for secret in ("Traceback", "SELECT", "psycopg", "127.0.0.1"):
                    assert secret not in response.text
    assert (await client.get("/v1/items")).json() == [made.json()]
