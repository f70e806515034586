"""What each consumed event leads to. A handler runs in the transaction that also records the event as received."""

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from items import service
from items.inbound import UserDeleted
from shared import idempotency
from shared.consumer import Handler, Subscription
from shared.events import Envelope
from shared.streams import EVENTS

SUBSCRIPTION = Subscription(stream=EVENTS, durable="items", subject="events.users.user.deleted.>")


async def disown(session: AsyncSession, event: Envelope) -> None:
    """Let the items of a deleted account live on without an owner, and forget what was answered to it."""
    user = UserDeleted.model_validate(event.data)
    await service.disown(session, owner_id=user.id)
    await idempotency.forget(session, user_id=user.id)


HANDLERS: Mapping[str, Handler] = {"users.user.deleted.v1": disown}

CONSUMERS: Mapping[Subscription, Mapping[str, Handler]] = {SUBSCRIPTION: HANDLERS}
