"""The main job of Tollhouse, end to end."""

import email
import json
import time
from pathlib import Path

import httpx
import jwt
import pytest
from journey import Person, System
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from shared.testing import TokenIssuer, eventually

CONTRACTS = Path(__file__).parent.parent / "contracts"


async def test_register_create_watch_notify_mail(system: System, ada: Person, bob: Person) -> None:
    async with bob.watching("items") as stream:
        item = await ada.offer("Brass compass", 19.99)

        event = await stream.event()

    assert event["type"] == "items.item.created.v1"
    assert event["subject"] == str(item["id"])
    assert event["sequence"] == item["version"] == 1
    assert event["data"]["price"] == "19.99"
    assert event["data"]["owner_id"] == ada.id

    assert len(await ada.notified("welcome")) == 1
    assert len(await ada.notified("item_created", item_id=item["id"])) == 1
    assert [notification["kind"] for notification in await bob.notifications()] == ["welcome"]

    mail = await ada.http.post(
        "/v1/notifications/email",
        json={"to": bob.email, "subject": "It is yours", "body": "Come and get it."},
    )
    assert mail.status_code == 202
    queued = mail.json()
    assert queued["queued"] is True

    async def sent() -> bool:
        state = (await ada.http.get(f"/v1/notifications/email/{queued['id']}")).json()
        return bool(state["state"] == "sent")

    await eventually(sent)
    if system.data_dir is not None:
        _assert_mail_on_disk(system.data_dir / "mail" / f"{queued['id']}.eml", bob.email)


def _assert_mail_on_disk(path: Path, recipient: str) -> None:
    message = email.message_from_bytes(path.read_bytes())
    assert (message["To"], message["Subject"]) == (recipient, "It is yours")
    assert "Come and get it." in str(message.get_payload())


async def test_own_notifications_arrive_live(ada: Person) -> None:
    async with ada.watching("me") as stream:
        item = await ada.offer()
        kinds = {(await stream.event())["data"]["kind"]}
        if kinds == {"welcome"}:
            kinds = {(await stream.event())["data"]["kind"]}
    assert kinds == {"item_created"}
    assert item["owner_id"] == ada.id


async def test_items_belong_to_their_owner_and_admins(ada: Person, bob: Person, admin: Person) -> None:
    item = await ada.offer()
    path = f"/v1/items/{item['id']}"

    assert (await bob.http.patch(path, json={"price": 1})).status_code == 403
    assert (await ada.http.patch(path, json={"price": 17.5})).json()["price"] == 17.5
    assert (await admin.http.patch(path, json={"name": "Compass"})).json()["version"] == 3
    assert (await admin.http.delete(path)).status_code == 204
    assert (await ada.http.get(path)).json()["code"] == "item_not_found"

    assert len(await ada.notified("item_changed_by_admin", item_id=item["id"])) == 1
    assert len(await ada.notified("item_removed_by_admin", item_id=item["id"])) == 1


@pytest.mark.parametrize("token", ["nonsense", "a.b.c", "-"])
async def test_a_wrong_token_is_refused(system: System, token: str) -> None:
    async with httpx.AsyncClient(base_url=system.url, trust_env=False) as http:
        answer = await http.get("/v1/users/me", headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert answer.headers["Content-Type"] == "application/problem+json"


async def test_a_foreign_key_is_refused_on_http_and_in_the_handshake(system: System, ada: Person) -> None:
    good = jwt.decode(ada.token, options={"verify_signature": False})
    header = jwt.get_unverified_header(ada.token)
    forged = jwt.encode(good, TokenIssuer().key, algorithm="ES256", headers=header)
    authorization = {"Authorization": f"Bearer {forged}"}

    answer = await ada.http.get("/v1/users/me", headers=authorization)
    assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")
    with pytest.raises(InvalidStatus) as refusal:
        async with connect(system.socket_url, additional_headers=authorization, proxy=None):
            pass
    assert refusal.value.response.status_code == 401


async def test_errors_and_headers_are_the_same_everywhere(system: System) -> None:
    async with httpx.AsyncClient(base_url=system.url, trust_env=False) as http:
        for method, path, status, code in [
            ("GET", "/nowhere", 404, "route_not_found"),
            ("GET", "/v1/items/999999999", 404, "item_not_found"),
            ("GET", "/v1/items/x", 422, "validation_failed"),
            ("DELETE", "/errors", 405, "method_not_allowed"),
            ("GET", "/v1/users/me", 401, "not_authenticated"),
            ("POST", "/v1/users", 422, "validation_failed"),
        ]:
            answer = await http.request(method, path, headers={"X-Request-ID": "abc-123"})
            assert (answer.status_code, answer.json()["code"]) == (status, code), (path, answer.text)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers.get_list("x-request-id") == ["abc-123"]
            assert answer.json()["request_id"] == "abc-123"
            assert len(answer.headers.get_list("x-process-time-ms")) == 1


async def test_the_gateways_metrics_count_what_was_asked(embedded: System, ada: Person) -> None:
    async def counted() -> float:
        async with httpx.AsyncClient(trust_env=False) as client:
            page = (await client.get(embedded.metrics_url)).text
        series = 'gateway_requests_total{route="/v1/items",method="GET",status="200"} '
        return sum(float(line.removeprefix(series)) for line in page.splitlines() if line.startswith(series))

    before = await counted()
    assert (await ada.http.get("/v1/items")).status_code == 200
    assert await counted() == before + 1


async def test_a_trailing_slash_makes_no_difference(ada: Person) -> None:
    item = await ada.offer()
    for path in ("/v1/items/", f"/v1/items/{item['id']}/", "/v1/users/me/", "/health/"):
        assert (await ada.http.get(path)).status_code == 200, path


async def test_one_openapi_document_describes_all_services(system: System) -> None:
    async with httpx.AsyncClient(base_url=system.url, trust_env=False) as http:
        document = (await http.get("/openapi.json")).json()
        docs, redoc = await http.get("/docs"), await http.get("/redoc")
        catalogue = (await http.get("/errors")).json()
    assert document["openapi"].startswith("3.1")
    assert {"/v1/users", "/v1/items/{item_id}", "/v1/notifications/email"} <= document["paths"].keys()
    assert docs.status_code == redoc.status_code == 200
    assert "https://" not in docs.text.replace(system.url, "")
    assert {"item_not_found", "email_taken", "recipient_not_allowed", "route_not_found"} <= {
        entry["code"] for entry in catalogue
    }


async def test_the_committed_openapi_document_is_the_one_served(system: System) -> None:
    committed = json.loads((CONTRACTS / "openapi.json").read_text(encoding="utf-8"))
    async with httpx.AsyncClient(base_url=system.url, trust_env=False) as http:

        async def served() -> bool:
            """Say whether it is that; a copy of a service that is just starting again is marked, for a while."""
            return bool((await http.get("/openapi.json")).json() == committed)

        await eventually(served, within=30)


async def test_the_way_of_an_event_can_be_followed_in_the_metrics(embedded: System, ada: Person) -> None:
    applied = 'consumer_events_total{consumer="notifications",result="applied"}'
    published = (await embedded.numbers("items"))["outbox_published_total"]
    received = (await embedded.numbers("notifications"))[applied]

    await ada.offer()

    async def arrived() -> bool:
        return (await embedded.numbers("notifications"))[applied] > received

    await eventually(arrived)
    items = await embedded.numbers("items")
    assert items["outbox_published_total"] > published
    assert items["outbox_relay_active"] == 1
    assert {"outbox_backlog", "outbox_oldest_seconds", 'consumer_pending{consumer="items"}'} <= items.keys()


async def test_an_expired_token_is_refused_and_its_socket_closed(ada: Person) -> None:
    expires_at = jwt.decode(ada.token, options={"verify_signature": False})["exp"]
    if expires_at - time.time() > 120:
        pytest.skip("this system's tokens live too long to see one expire")

    async def expired() -> bool:
        return (await ada.http.get("/v1/users/me")).status_code == 401

    async with ada.watching("items") as stream:
        await eventually(expired, within=90)
        await stream.socket.wait_closed()
        assert stream.socket.close_code == 4401
