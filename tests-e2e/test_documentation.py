"""The documentation in a real browser that reaches nothing but the gateway."""

import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from browser import browsing
from journey import Person, System
from playwright.async_api import Page, Request, Route, expect

expect.set_options(timeout=30_000)  # a machine that runs the whole suite is slow

SCREENSHOTS = os.environ.get("SCREENSHOTS")
"""A folder to keep pictures of the pages in, such as docs/pictures."""


@pytest.fixture
async def page(system: System, tmp_path: Path) -> AsyncIterator[Page]:
    """A page of a browser that reaches nothing but the gateway, and must not want to."""
    gateway, elsewhere, broken = urlsplit(system.url).netloc, list[str](), list[str]()

    async def only_the_gateway(route: Route, request: Request) -> None:
        if urlsplit(request.url).netloc == gateway:
            await route.continue_()
        else:
            elsewhere.append(request.url)
            await route.abort()

    async with browsing(tmp_path / "profile") as page:
        await page.set_viewport_size({"width": 1280, "height": 1250})
        await page.route("**/*", only_the_gateway)
        page.on("pageerror", lambda error: broken.append(str(error)))
        yield page
    assert (elsewhere, broken) == ([], [])


async def test_docs_log_in_and_create_an_item(page: Page, system: System, ada: Person) -> None:
    await page.goto(f"{system.url}/docs")
    await expect(page.get_by_role("heading", name="Tollhouse")).to_be_visible()

    await page.get_by_role("button", name="Authorize").click()
    login = page.locator(".auth-container", has_text="password")
    await login.get_by_label("username").fill(ada.email)
    await login.get_by_label("password").last.fill(ada.password)
    await login.get_by_role("button", name="Apply given OAuth2 credentials").click()
    await expect(login.get_by_role("button", name="Remove authorization")).to_be_visible()
    await page.get_by_role("button", name="Close").first.click()

    operation = page.locator("#operations-items-create_item")
    await operation.get_by_role("button").first.click()
    await operation.get_by_role("button", name="Try it out").click()
    await expect(operation.locator("textarea")).to_contain_text("Brass compass")
    await operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table")
    await expect(answer.locator(".response-col_status").last).to_contain_text("201")

    mine = (await ada.http.get("/v1/items", params={"owner_id": ada.id})).json()
    assert [item["name"] for item in mine] == ["Brass compass"]
    await operation.locator(".opblock-section-request-body").evaluate("section => section.scrollIntoView()")
    await _keep(page, "docs.png")


async def test_redoc_shows_every_group(page: Page, system: System) -> None:
    await page.goto(f"{system.url}/redoc")
    await expect(page.get_by_role("heading", name="Tollhouse")).to_be_visible()
    for operation in ("Register", "Offer an item", "List the own notifications"):
        await expect(page.get_by_role("heading", name=operation).first).to_be_attached()
    await _keep(page, "redoc.png")


async def _keep(page: Page, name: str) -> None:
    if SCREENSHOTS:
        await page.screenshot(path=Path(SCREENSHOTS) / name)
