"""The users application: what it holds, opened in order and closed in reverse."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from fastapi import FastAPI

from shared.app import create_app as create_shared_app
from shared.broker import Broker
from shared.database import Database
from shared.errors import DatabaseUnavailable, StartupRefused
from shared.relay import Relay
from shared.revocations import verifying
from shared.tasks import running
from shared.upkeep import Upkeep
from users import account_routes, admin_routes, service
from users.code_requests import CodeRequests
from users.errors import PROBLEMS, PasswordBreached, PasswordTooCommon
from users.housekeeping import keep_house
from users.key_ring import KeyRing
from users.passwords import Passwords
from users.routes import router, well_known
from users.settings import UsersSettings

TAGS = {
    "users": "Registration, access tokens, sessions.",
    "account": "The own account: profile, password, address, end.",
    "administration": "Other people's accounts.",
    "keys": "Keys that sign access tokens, and where to find them.",
}


def create() -> FastAPI:
    """Build the application from the environment."""
    return create_app(UsersSettings.load())


def create_app(settings: UsersSettings) -> FastAPI:
    """Build the application."""
    database = Database(settings)
    app = create_shared_app(
        settings,
        title="Tollhouse users",
        summary="Accounts, access tokens and the keys that sign them.",
        routers=(router, account_routes.router, admin_routes.router, well_known),
        lifespan=_lifespan,
        checks={"database": database.check_ready},
        problems=(*PROBLEMS, DatabaseUnavailable),
        scopes={service.ADMIN_SCOPE: "Administrate accounts and signing keys."},
        tags=TAGS,
    )
    app.state.database = database
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    settings: UsersSettings = app.state.settings
    database: Database = app.state.database
    async with AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        app.state.passwords = passwords = Passwords(settings)
        stack.push_async_callback(passwords.aclose)
        app.state.keys = keys = KeyRing(database, settings)
        await keys.load()
        await _ensure_admin(settings, database, passwords)
        # The service asks itself for the keys without leaving the process.
        own_keys = httpx.ASGITransport(app=app)
        http = httpx.AsyncClient(trust_env=False, mounts={str(settings.jwks_url): own_keys})
        broker = await stack.enter_async_context(Broker(settings))
        app.state.verifier, *_ = await stack.enter_async_context(verifying(settings, broker, http=http))
        relay = Relay(database, broker, service=settings.service, metrics=app.state.metrics)
        upkeep = Upkeep(database, settings, app.state.metrics)
        # Flushed after its task has ended and before the connections close.
        stack.push_async_callback(relay.flush)
        app.state.code_requests = requests = CodeRequests(database, settings)
        await stack.enter_async_context(
            running(
                relay.run(),
                upkeep.run(),
                keys.follow(),
                requests.run(),
                keep_house(database, settings),
            )
        )
        yield


async def _ensure_admin(settings: UsersSettings, database: Database, passwords: Passwords) -> None:
    if settings.admin_email is None or settings.admin_password is None:
        return
    try:
        password_hash = await passwords.hash(settings.admin_password.get_secret_value())
    except (PasswordTooCommon, PasswordBreached) as error:
        raise StartupRefused(f"USERS_ADMIN_PASSWORD cannot be used: {error}") from None
    async with database.transaction() as session:
        await service.ensure_admin(session, email=settings.admin_email, password_hash=password_hash)
