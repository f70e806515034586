"""The clients of the live stream, in Python and in a browser, through cut wires, killed services and expiring tokens."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import browsing
from cutter import Cutter, cutting
from journey import PASSWORD, Person, System
from playwright.async_api import Page

from shared.testing import TokenIssuer, eventually
from tollhouse_live import AccessToken, Event, Gap, LiveStream, LoginFailed, Refused, Session

CLIENTS = Path(__file__).parent.parent / "clients"
MODULE = CLIENTS / "js/tollhouse-live.js"
WATCH = """async ([username, password, topics]) => {
    const { LiveStream, Session } = await import("/tollhouse-live.js");
    window.seen = [];
    window.stream = new LiveStream(location.href, new Session(location.href, { username, password }), topics);
    window.done = (async () => {
        try {
            for await (const message of window.stream) window.seen.push(message);
            return "ended";
        } catch (error) {
            return String(error);
        }
    })();
}"""


@pytest.fixture
async def wire(system: System) -> AsyncIterator[Cutter]:
    async with cutting(system.url) as cutter:
        yield cutter


async def open_page(page: Page, url: str) -> None:
    """Open a page of the system's own origin that can import the module."""
    await page.route(
        "**/tollhouse-live.js", lambda route: route.fulfill(content_type="text/javascript", path=MODULE)
    )
    await page.goto(f"{url}/health")


class Log:
    """What the Python client has seen."""

    def __init__(self) -> None:
        self.messages: list[Event | Gap] = []

    async def keep(self, stream: LiveStream) -> None:
        async with stream:
            async for message in stream:
                self.messages.append(message)

    @property
    def item_ids(self) -> list[int]:
        return [message.data["id"] for message in self.messages if isinstance(message, Event)]


@asynccontextmanager
async def logging(stream: LiveStream) -> AsyncIterator[Log]:
    """Let the Python client run beside the block."""
    log = Log()
    await stream.ready()
    task = asyncio.create_task(log.keep(stream))
    try:
        yield log
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def seen(page: Page) -> list[int]:
    """Return the ids of the items whose events the browser has seen."""
    ids: list[int] = await page.evaluate("window.seen.map((message) => message.event?.data.id ?? null)")
    return ids


async def offer(person: Person) -> int:
    """Create an item; while the system restarts, try again."""

    async def tried() -> dict[str, Any] | None:
        with suppress(httpx.TransportError, AssertionError):
            return await person.offer()
        with suppress(httpx.TransportError, AssertionError):
            await person.log_in()  # on a busy machine a restart outlasts a token
        return None

    created = await eventually(tried, within=60)
    assert created is not None
    return int(created["id"])


@pytest.mark.timeout(300)
async def test_clients_miss_nothing_and_see_nothing_twice(
    embedded: System, ada: Person, wire: Cutter, tmp_path: Path
) -> None:
    tokens = Session(wire.url, username=ada.email, password=PASSWORD)
    python = LiveStream(wire.url, tokens, ["items"])
    async with browsing(tmp_path / "profile") as page, logging(python) as log:
        await open_page(page, wire.url)
        await page.evaluate(WATCH, [ada.email, PASSWORD, ["items"]])
        await page.wait_for_function("window.stream.cursors.items !== undefined")

        created = [await offer(ada) for _ in range(3)]
        for _ in range(4):
            wire.cut()
            created += [await offer(ada) for _ in range(3)]
        await eventually(lambda: log.item_ids[-1:] == created[-1:])

        for service in ("notifications", "gateway"):
            pid = embedded.kill(service)
            created += [await offer(ada) for _ in range(3)]
            await embedded.restarted(service, pid)
        created.append(await offer(ada))

        await eventually(lambda: log.item_ids[-1:] == created[-1:], within=60)
        await page.wait_for_function(
            "(last) => window.seen.at(-1)?.event?.data.id === last", arg=created[-1], timeout=60_000
        )
        in_browser = await seen(page)
        await page.evaluate("window.stream.close()")
        assert await page.evaluate("window.done") == "ended"

    assert wire.cuts >= 4
    published = [item_id for item_id in log.item_ids if item_id in set(created)]
    assert published == created
    assert log.item_ids == in_browser
    assert len(in_browser) == len(set(in_browser))


async def test_a_stored_cursor_goes_on_where_an_earlier_run_ended(system: System, ada: Person) -> None:
    tokens = Session(system.url, username=ada.email, password=PASSWORD)
    async with logging(LiveStream(system.url, tokens, ["me"])) as log:
        first = await ada.offer()
        await eventually(lambda: log.messages)
    (event,) = log.messages
    assert isinstance(event, Event)
    assert event.data["data"]["item_id"] == first["id"]
    second = await ada.offer()

    resumed = LiveStream(system.url, tokens, ["me"], cursors={"me": event.cursor})
    async with logging(resumed) as log:
        await eventually(lambda: log.messages)

    (event,) = log.messages
    assert isinstance(event, Event)
    assert (event.type, event.data["data"]["item_id"]) == (
        "notifications.notification.created.v1",
        second["id"],
    )


class ShortTokens:
    """Tokens that live for a few seconds."""

    def __init__(self, issuer: TokenIssuer) -> None:
        self._issuer = issuer
        self.given = 0

    async def token(self, *, fresh: bool) -> str:
        assert fresh or not self.given
        self.given += 1
        return self._issuer.token(sub="somebody", expires_in=3, headers={"typ": "JWT"})


async def test_tokens_are_renewed_in_band_before_they_expire(
    embedded: System, ada: Person, external_issuer: TokenIssuer
) -> None:
    tokens = ShortTokens(external_issuer)
    stream = LiveStream(embedded.url, tokens, ["items"])
    async with logging(stream) as log:
        await eventually(lambda: tokens.given >= 4, within=60)
        item = await ada.offer()
        await eventually(lambda: log.item_ids[-1:] == [item["id"]])
        assert stream.connections == 1, "one connection, however many tokens"


@pytest.mark.parametrize(("topic", "code"), [("weather", "unknown_topic"), ("items.0", "unknown_topic")])
async def test_what_no_reconnecting_helps_is_raised(
    system: System, ada: Person, topic: str, code: str
) -> None:
    tokens = Session(system.url, username=ada.email, password=PASSWORD)
    async with LiveStream(system.url, tokens, [topic]) as stream:
        with pytest.raises(Refused) as refusal:
            await anext(stream)
    assert refusal.value.code == code


class BadTokens:
    """Tokens that nobody accepts."""

    async def token(self, *, fresh: bool) -> str:
        return f"x.y.{fresh}"


async def test_wrong_credentials_are_raised(system: System, ada: Person) -> None:
    with pytest.raises(LoginFailed):
        await Session(system.url, username=ada.email, password="not the password").token()
    async with LiveStream(system.url, AccessToken("x.y.z"), ["items"]) as stream:
        with pytest.raises(LoginFailed):
            await stream.ready()
    async with LiveStream(system.url, BadTokens(), ["items"]) as stream:
        with pytest.raises(Refused) as refusal:
            await anext(stream)
    assert refusal.value.code == "invalid_token"


async def test_a_session_whose_refresh_token_is_used_up_logs_in_again(system: System, ada: Person) -> None:
    session = Session(system.url, username=ada.email, password=PASSWORD)
    first = await session.token()
    session.refresh_token = "used up"
    assert await session.token(fresh=True) != first
    assert session.refresh_token != "used up"
    with pytest.raises(LoginFailed):
        await Session(system.url, refresh_token="unknown").token()


async def test_the_browser_is_told_what_no_reconnecting_helps(
    ada: Person, wire: Cutter, tmp_path: Path
) -> None:
    async with browsing(tmp_path / "profile") as page:
        await open_page(page, wire.url)
        await page.evaluate(WATCH, [ada.email, PASSWORD, ["weather"]])
        assert "unknown_topic" in await page.evaluate("window.done")
        await page.evaluate(WATCH, [ada.email, "not the password", ["items"]])
        assert "invalid_credentials" in await page.evaluate("window.done")


def example(readme: str, language: str, person: Person, url: str) -> str:
    """Return the example of a README, for this system and this person."""
    text = (CLIENTS / readme).read_text(encoding="utf-8")
    (block,) = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return str(block.replace("http://127.0.0.1:8000", url).replace("ada@example.com", person.email))


async def test_the_python_readmes_example_prints_events(system: System, ada: Person) -> None:
    code = example("python/README.md", "python", ada, system.url)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-u", "-c", code, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    line = asyncio.create_task(process.stdout.readline())

    async def printed() -> bool:
        if not line.done():
            await ada.offer()
        return line.done()

    try:
        await eventually(printed, within=60)
        assert b"items.item.created.v1" in line.result() or b"notifications.notification" in line.result()
    finally:
        process.kill()
        await process.wait()


async def test_the_browser_readmes_example_logs_events(ada: Person, wire: Cutter, tmp_path: Path) -> None:
    code = re.sub(r"</?script.*?>", "", example("js/README.md", "html", ada, wire.url))
    async with browsing(tmp_path / "profile") as page:
        logged: list[str] = []
        page.on("console", lambda message: logged.append(message.text))
        await open_page(page, wire.url)
        await page.add_script_tag(
            type="module", content=code.replace("./tollhouse-live.js", "/tollhouse-live.js")
        )

        async def event() -> bool:
            await ada.offer()
            return any("items.item.created.v1" in text for text in logged)

        await eventually(event, within=60)


async def test_server_sent_events_pass_the_gateway(system: System, ada: Person) -> None:
    headers = {"Authorization": f"Bearer {ada.token}"}
    url = f"{system.url}/v1/events"
    async with (
        httpx.AsyncClient(trust_env=False, timeout=20) as http,
        http.stream("GET", url, params={"topics": "items"}, headers=headers) as response,
    ):
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        async for line in lines:
            if "subscribed" in line:
                break
        item = await ada.offer("Sent by the server")
        async for line in lines:
            if line.startswith("data: "):
                assert "Sent by the server" in line
                break
        await ada.http.delete("/v1/users/me/sessions")  # revoked everywhere: the stream ends
        async with asyncio.timeout(20):
            assert [line async for line in lines if "event" in line] == []
    assert item["id"]
