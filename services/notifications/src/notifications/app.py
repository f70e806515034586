"""The notifications application: what it holds, opened in order and closed in reverse."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from starlette.middleware import Middleware

from notifications import echo, mailer, sse, websocket
from notifications.connections import Connections
from notifications.errors import PROBLEMS
from notifications.handlers import COMMAND_HANDLERS, COMMAND_SUBSCRIPTION, HANDLERS, SUBSCRIPTION
from notifications.history import History
from notifications.housekeeping import keep_house
from notifications.hub import Hub
from notifications.live import LiveReader
from notifications.meters import LiveMeters
from notifications.routes import router
from notifications.service import SCOPES
from notifications.settings import NotificationsSettings
from notifications.stream import LiveStream
from shared import idempotency
from shared.app import create_app as create_shared_app
from shared.broker import Broker
from shared.consumer import Consumer
from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.metrics import Metrics
from shared.relay import Relay
from shared.revocations import Revocations, verifying
from shared.tasks import running
from shared.upkeep import Upkeep


def create() -> FastAPI:
    """Build the application from the environment."""
    return create_app(NotificationsSettings.load())


def create_app(settings: NotificationsSettings) -> FastAPI:
    """Build the application."""
    database = Database(settings)
    app = create_shared_app(
        settings,
        title="Tollhouse notifications",
        summary="Stored notifications, the live stream and mail.",
        routers=(router, sse.router, echo.router),
        lifespan=_lifespan,
        checks={"database": database.check_ready},
        problems=(*PROBLEMS, *idempotency.PROBLEMS, DatabaseUnavailable),
        scopes=SCOPES,
        tags={
            "notifications": "What a person was told, and mail sent on a person's behalf.",
            "live": "Events as they happen, from a cursor on.",
        },
    )
    app.state.database = database
    # The innermost: requests have their id, their log line and their traces by then.
    app.user_middleware.append(Middleware(websocket.LiveSockets, state=app.state))
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: NotificationsSettings = app.state.settings
    database: Database = app.state.database
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        broker = await stack.enter_async_context(Broker(settings))
        app.state.verifier, revocations, _ = await stack.enter_async_context(verifying(settings, broker))
        metrics: Metrics = app.state.metrics
        relay = Relay(database, broker, service=settings.service, metrics=metrics)
        upkeep = Upkeep(database, settings, metrics)
        # Flushed after its task has ended and before the connections close.
        stack.push_async_callback(relay.flush)
        app.state.live = live = _live_stream(settings, broker, revocations, metrics)
        app.state.mailer = mail = mailer.Mailer(
            database, mailer.transport(settings), sender=settings.mail_from
        )
        consumer = Consumer(
            broker, database, SUBSCRIPTION, HANDLERS, service=settings.service, metrics=metrics
        )
        commands = Consumer(
            broker,
            database,
            COMMAND_SUBSCRIPTION,
            COMMAND_HANDLERS,
            service=settings.service,
            metrics=metrics,
        )
        await stack.enter_async_context(
            running(
                relay.run(),
                upkeep.run(),
                live.reader.run(),
                live.connections.end_when(app.state.draining),
                mail.run(),
                keep_house(database, settings),
                consumer.run(),
                commands.run(),
                idempotency.keep_pruning(database),
            )
        )
        yield


def _live_stream(
    settings: NotificationsSettings, broker: Broker, revocations: Revocations, metrics: Metrics
) -> LiveStream:
    hub = Hub(memory=settings.replay_memory)
    history = History(broker, hub)
    connections = Connections(settings, revocations)
    return LiveStream(
        settings=settings,
        hub=hub,
        history=history,
        reader=LiveReader(broker, hub, history, memory=settings.replay_memory),
        connections=connections,
        meters=LiveMeters(metrics, hub, connections),
    )
