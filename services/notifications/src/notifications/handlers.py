"""What each consumed event leads to. A handler runs in the transaction that also records the event as received."""

from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncSession

from notifications import service
from notifications.inbound import AddressVerified, ItemChanged, SendMail, UserDeleted, UserRegistered
from shared.consumer import Handler, Subscription
from shared.events import Envelope
from shared.streams import COMMANDS, EVENTS

SUBSCRIPTION = Subscription(stream=EVENTS, durable="notifications", subject="events.>")


COMMAND_SUBSCRIPTION = Subscription(
    stream=COMMANDS, durable="notifications-commands", subject="commands.notifications.>"
)


async def welcome(session: AsyncSession, event: Envelope) -> None:
    """Welcome a new user."""
    user = UserRegistered.model_validate(event.data)
    await service.notify(session, user_id=user.id, kind="welcome", title="Welcome to Tollhouse", data={})


async def confirm_creation(session: AsyncSession, event: Envelope) -> None:
    """Tell the owner that the item is on offer."""
    item = ItemChanged.model_validate(event.data)
    if item.owner_id is not None:
        await _tell_owner(
            session, item.owner_id, item, kind="item_created", title=f"“{item.name}” is on offer"
        )


async def report_change(session: AsyncSession, event: Envelope) -> None:
    """Tell the owner that somebody else, an admin, changed the item."""
    item = ItemChanged.model_validate(event.data)
    if item.owner_id is not None and item.owner_id != item.actor_id:
        title = f"“{item.name}” was changed by an administrator"
        await _tell_owner(session, item.owner_id, item, kind="item_changed_by_admin", title=title)


async def report_removal(session: AsyncSession, event: Envelope) -> None:
    """Tell the owner that somebody else, an admin, removed the item."""
    item = ItemChanged.model_validate(event.data)
    if item.owner_id is not None and item.owner_id != item.actor_id:
        title = f"“{item.name}” was removed by an administrator"
        await _tell_owner(session, item.owner_id, item, kind="item_removed_by_admin", title=title)


async def _tell_owner(
    session: AsyncSession, owner_id: int, item: ItemChanged, *, kind: str, title: str
) -> None:
    data = {"item_id": item.id, "name": item.name}
    await service.notify(session, user_id=owner_id, kind=kind, title=title, data=data)


async def forget(session: AsyncSession, event: Envelope) -> None:
    """Delete what is held of a deleted account."""
    user = UserDeleted.model_validate(event.data)
    await service.forget(session, user_id=user.id)


async def send_mail(session: AsyncSession, event: Envelope) -> None:
    """Store a mail that another service asks for."""
    command = SendMail.model_validate(event.data)
    await service.queue_template(
        session,
        user_id=command.user_id,
        recipient=command.to,
        template=command.template,
        values=command.values,
    )


async def remember_address(session: AsyncSession, event: Envelope) -> None:
    """Remember which address is a person's own."""
    verified = AddressVerified.model_validate(event.data)
    await service.remember_address(
        session, user_id=verified.user_id, email=verified.email, version=verified.version
    )


HANDLERS: Mapping[str, Handler] = {
    "users.user.registered.v1": welcome,
    "users.user.deleted.v1": forget,
    "items.item.created.v1": confirm_creation,
    "items.item.updated.v1": report_change,
    "items.item.deleted.v1": report_removal,
}

COMMAND_HANDLERS: Mapping[str, Handler] = {
    "notifications.mail.send.v1": send_mail,
    "notifications.address.verified.v1": remember_address,
}

CONSUMERS: Mapping[Subscription, Mapping[str, Handler]] = {
    SUBSCRIPTION: HANDLERS,
    COMMAND_SUBSCRIPTION: COMMAND_HANDLERS,
}
