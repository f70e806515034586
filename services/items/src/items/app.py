"""The items application: what it holds, opened in order and closed in reverse."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import APIRouter, FastAPI

from items import routes, routes_v2
from items.cursors import Cursors
from items.deprecation import Deprecated, deprecation_headers
from items.errors import PROBLEMS
from items.handlers import HANDLERS, SUBSCRIPTION
from items.reading import Reader
from items.service import SCOPES
from items.settings import ItemsSettings
from shared import idempotency
from shared.app import create_app as create_shared_app
from shared.broker import Broker
from shared.consumer import Consumer
from shared.database import Database
from shared.errors import DatabaseUnavailable
from shared.relay import Relay
from shared.revocations import verifying
from shared.tasks import running
from shared.upkeep import Upkeep


def create() -> FastAPI:
    """Build the application from the environment."""
    return create_app(ItemsSettings.load())


def create_app(settings: ItemsSettings) -> FastAPI:
    """Build the application."""
    database = Database(settings)
    ending = deprecation_headers(settings)
    version_1 = APIRouter()
    version_1.include_router(routes.router, deprecated=bool(ending) or None)
    app = create_shared_app(
        settings,
        title="Tollhouse items",
        summary="What people offer.",
        routers=(version_1, routes_v2.router),
        lifespan=_lifespan,
        checks={"database": database.check_ready},
        problems=(*PROBLEMS, *idempotency.PROBLEMS, DatabaseUnavailable),
        scopes=SCOPES,
        tags={"items": "What people offer: everybody may look, owners may change."},
    )
    app.state.database = database
    app.state.cursors = Cursors(settings.cursor_signing_key)
    if ending:
        app.add_middleware(Deprecated, headers=ending)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: ItemsSettings = app.state.settings
    database: Database = app.state.database
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        app.state.reader = await stack.enter_async_context(Reader(settings))
        broker = await stack.enter_async_context(Broker(settings))
        app.state.verifier, *_ = await stack.enter_async_context(verifying(settings, broker))
        relay = Relay(database, broker, service=settings.service, metrics=app.state.metrics)
        upkeep = Upkeep(database, settings, app.state.metrics)
        # Flushed after its task has ended and before the connections close.
        stack.push_async_callback(relay.flush)
        consumer = Consumer(
            broker, database, SUBSCRIPTION, HANDLERS, service=settings.service, metrics=app.state.metrics
        )
        await stack.enter_async_context(
            running(relay.run(), upkeep.run(), consumer.run(), idempotency.keep_pruning(database))
        )
        yield
