"""What has outlived its use is deleted, a little at a time."""

from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from pydantic import SecretStr
from sqlalchemy import select

from notifications import housekeeping
from notifications.models import MailJob, Notification
from notifications.settings import NotificationsSettings
from shared.database import Database
from shared.tasks import running
from shared.testing import eventually
from shared.times import utc_now

pytestmark = pytest.mark.integration


@pytest.fixture
def settings(make_database: Callable[..., str]) -> NotificationsSettings:
    return NotificationsSettings(database_url=SecretStr(make_database(NotificationsSettings)))


@pytest.fixture
async def database(settings: NotificationsSettings) -> AsyncIterator[Database]:
    database = Database(settings)
    yield database
    await database.close()


async def test_old_notifications_and_ended_mails_go_and_the_others_stay(
    database: Database, settings: NotificationsSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeping, "BATCH", 3)
    async with database.transaction() as session:
        for days in (*[91] * 7, 89, 0):
            created = utc_now() - timedelta(days=days)
            session.add(Notification(user_id=7, kind=f"{days}", title="x", data={}, created_at=created))
        for days, state in (
            (31, "queued"),
            *[(31, "sent")] * 4,
            (31, "failed"),
            (29, "sent"),
            (29, "failed"),
        ):
            created = utc_now() - timedelta(days=days)
            session.add(
                MailJob(user_id=7, recipient="a@example.com", subject=f"{days} {state}", body="x",
                        state=state, created_at=created)
            )  # fmt: skip

    async def kept() -> tuple[list[str], list[str]]:
        async with database.reading() as session:
            kinds = await session.scalars(select(Notification.kind).order_by(Notification.id))
            subjects = await session.scalars(select(MailJob.subject).order_by(MailJob.id))
            return list(kinds), list(subjects)

    async def pruned() -> bool:
        return await kept() == (["89", "0"], ["31 queued", "29 sent", "29 failed"])

    async with running(housekeeping.keep_house(database, settings)):
        await eventually(pruned)


async def test_it_goes_on_while_the_database_is_away(
    settings: NotificationsSettings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(housekeeping, "INTERVAL", 0.01)
    nowhere = Database(
        settings.model_copy(update={"database_url": SecretStr("postgresql://x@127.0.0.1:1/x")})
    )
    logged = ""

    def failed_twice() -> bool:
        nonlocal logged
        logged += capsys.readouterr().out
        return logged.count("housekeeping.failed") >= 2

    async with running(housekeeping.keep_house(nowhere, settings)):
        await eventually(failed_twice)
    await nowhere.close()
