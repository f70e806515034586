"""Liveness and readiness, kept apart: a process that cannot serve is not one that must be killed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field

from shared.errors import NotReady
from shared.openapi import problems

Check = Callable[[], Awaitable[None]]
"""Raises when the process cannot serve without what it checks."""

CHECK_TIMEOUT = 2.0
"""Seconds after which a check counts as failed."""


class Health(BaseModel):
    """The process runs."""

    status: Literal["ok"] = Field("ok", description="Always `ok`; a process that hangs does not answer.")


class Readiness(BaseModel):
    """The process can serve."""

    status: Literal["ready"] = Field(
        "ready", description="Always `ready`; a process that cannot serve answers 503."
    )
    checks: dict[str, Literal["ok"]] = Field(
        {}, description="What the process needs to serve, each asked just now."
    )


def health_routes(checks: Mapping[str, Check] | None) -> APIRouter:
    """Return `/health`, which touches nothing, and `/health/ready`, which asks every check.

    Without `checks` there is only the former: the app has a `/health/ready` of its own.
    """
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="Say that the process runs")
    async def read_health() -> Health:
        """Answer without touching anything else; for whoever restarts processes that hang."""
        return Health()

    if checks is None:
        return router

    @router.get("/health/ready", summary="Say whether the process can serve", responses=problems(NotReady))
    async def read_readiness(request: Request) -> Readiness:
        """Ask everything that the process needs; for whoever decides where requests go."""
        if request.app.state.draining.is_set():
            raise NotReady("The process is shutting down.")
        for name, check in checks.items():
            try:
                async with asyncio.timeout(CHECK_TIMEOUT):
                    await check()
            except Exception as error:
                raise NotReady(f"The check {name!r} failed.") from error
        return Readiness(checks=dict.fromkeys(checks, "ok"))

    return router
