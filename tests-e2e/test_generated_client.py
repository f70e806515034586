"""A client made from the live document by openapi-python-client does the whole journey."""

import importlib
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from journey import PASSWORD, System, unique_email

from shared.testing import eventually

PACKAGE = "tollhouse_client"


@pytest.fixture
def generated(system: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the client and let it be imported."""
    document, config, project = (tmp_path / name for name in ("openapi.json", "config.yaml", "project"))
    document.write_bytes(httpx.get(f"{system.url}/openapi.json", trust_env=False).content)
    config.write_text("post_hooks: []\n", encoding="utf-8")
    done = subprocess.run(  # noqa: S603
        [
            Path(sys.executable).with_name("openapi-python-client"),
            "generate",
            f"--path={document}",
            f"--output-path={project}",
            f"--config={config}",
            "--fail-on-warning",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(project)


def part(name: str) -> Any:
    """Import a part of the generated client."""
    return importlib.import_module(f"{PACKAGE}.{name}")


@pytest.mark.usefixtures("generated")
async def test_a_generated_client_does_the_whole_journey(system: System) -> None:
    async with AsyncExitStack() as stack:
        await _journey(system, stack)


async def _journey(system: System, stack: AsyncExitStack) -> None:
    models, api = part("models"), f"{PACKAGE}.api"
    settings = {"httpx_args": {"trust_env": False}}
    client = await stack.enter_async_context(part("client").Client(system.url, **settings))
    email = unique_email()

    async def call(operation: str, using: Any, **arguments: Any) -> Any:
        return await importlib.import_module(f"{api}.{operation}").asyncio_detailed(client=using, **arguments)

    registration = models.UserCreate(email=email, password=PASSWORD, full_name="Ada Lovelace")
    registered = await call("users.register_user", client, body=registration)
    assert (registered.status_code, registered.parsed.full_name) == (201, "Ada Lovelace")

    form = models.TokenForm(username=email, password=PASSWORD)
    token = (await call("users.create_token", client, body=form)).parsed
    ada = await stack.enter_async_context(
        part("client").AuthenticatedClient(system.url, token=token.access_token, **settings)
    )
    assert (await call("account.read_own_account", ada)).parsed.email == email

    offer = models.ItemWriteV2(name="Brass compass", price="19.99")
    first = await call("items.create_item_v2", ada, body=offer, idempotency_key="once")
    again = await call("items.create_item_v2", ada, body=offer, idempotency_key="once")
    item = first.parsed
    assert (first.status_code, again.parsed.id) == (201, item.id)
    assert again.headers["Idempotent-Replayed"] == "true"

    page = (await call("items.list_items_v2", client, owner_id=registered.parsed.id)).parsed
    assert [(one.id, one.price) for one in page.items] == [(item.id, "19.99")]

    patch = models.ItemPatchV2(price="17.50")
    changed = await call(
        "items.patch_item_v2", ada, item_id=item.id, body=patch, if_match=first.headers["ETag"]
    )
    assert (changed.parsed.price, changed.parsed.name) == ("17.50", "Brass compass")
    late = await call("items.delete_item_v2", ada, item_id=item.id, if_match=first.headers["ETag"])
    assert (late.status_code, late.parsed.code) == (412, "version_conflict")
    gone = await call("items.delete_item_v2", ada, item_id=item.id, if_match=changed.headers["ETag"])
    assert gone.status_code == 204
    assert (await call("items.read_item", client, item_id=item.id)).parsed.code == "item_not_found"

    async def told() -> list[Any]:
        found = (await call("notifications.list_notifications", ada, unread=True)).parsed
        return [one for one in found if one.data.additional_properties.get("item_id") == item.id]

    notification = (await eventually(told))[0]
    assert notification.kind == "item_created"
    read = await call("notifications.mark_notification_read", ada, notification_id=notification.id)
    assert read.status_code == 204
    assert notification.id not in [one.id for one in await told()]
