"""Deletes notifications and mails that have outlived their use, a little at a time."""

import asyncio
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError

from notifications.models import MailJob, Notification
from notifications.settings import NotificationsSettings
from shared.database import Database
from shared.logs import get_logger
from shared.times import utc_now

log = get_logger(__name__)

INTERVAL = 600.0
"""Seconds between two rounds; every replica makes them, which does no harm."""
BATCH = 1000
"""Rows that one transaction deletes: its locks and its WAL stay small."""


async def keep_house(database: Database, settings: NotificationsSettings) -> None:
    """Make the rounds until cancelled."""
    while True:
        try:
            await make_round(database, settings)
        except (SQLAlchemyError, OSError) as error:
            log.warning("housekeeping.failed", error=type(error).__name__)
        await asyncio.sleep(INTERVAL)


async def make_round(database: Database, settings: NotificationsSettings) -> None:
    """Delete what is old enough."""
    retentions = (
        (Notification, settings.notification_retention_days),
        (MailJob, settings.mail_retention_days),
    )
    for table, days in retentions:
        deleted = BATCH
        while deleted == BATCH:
            deleted = await _delete_oldest(database, table, older_than=timedelta(days=days))
            if deleted:
                log.info("housekeeping.pruned", table=table.__tablename__, rows=deleted)


async def _delete_oldest(
    database: Database, table: type[Notification] | type[MailJob], *, older_than: timedelta
) -> int:
    # Ids and ages grow together: the oldest rows are found by the primary key, without an index of their own.
    oldest = select(table.id, table.created_at).order_by(table.id)
    if table is MailJob:
        oldest = oldest.where(MailJob.state != "queued")
    first = oldest.limit(BATCH).subquery()
    old = select(first.c.id).where(first.c.created_at < utc_now() - older_than)
    async with database.transaction() as session:
        deleted = await session.scalars(delete(table).where(table.id.in_(old)).returning(table.id))
        return len(deleted.all())
