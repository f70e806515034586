"""A gateway of FastAPI, PyJWT and httpx, as a tutorial writes it. Run by uvicorn, with settings from the environment."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import jwt
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

UPSTREAM, ISSUER, AUDIENCE = (os.environ.get(name, "") for name in ("UPSTREAM", "ISSUER", "AUDIENCE"))
PUBLIC_KEY = Path(os.environ.get("PUBLIC_KEY", "/dev/null")).read_text()


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Share one client, which is more than many tutorials do."""
    async with httpx.AsyncClient(base_url=UPSTREAM) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)
bearer = HTTPBearer()


def current_user(credentials: Annotated[HTTPAuthorizationCredentials, Depends(bearer)]) -> dict[str, Any]:
    """Verify the token."""
    try:
        claims: dict[str, Any] = jwt.decode(
            credentials.credentials, PUBLIC_KEY, algorithms=["ES256"], issuer=ISSUER, audience=AUDIENCE
        )
    except jwt.InvalidTokenError:
        raise HTTPException(401, "invalid token") from None
    return claims


@app.api_route(
    "/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], dependencies=[Depends(current_user)]
)
async def proxy(path: str, request: Request) -> Response:
    """Forward the request, and what comes back."""
    client: httpx.AsyncClient = request.app.state.client
    headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
    answer = await client.request(
        request.method, f"/{path}", params=request.query_params, headers=headers, content=await request.body()
    )
    return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))
