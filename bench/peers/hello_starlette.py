"""JSON from a bare Starlette endpoint."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route


async def hello(_request: Request) -> JSONResponse:
    """Greet."""
    return JSONResponse({"message": "hello, world"})


app = Starlette(routes=[Route("/hello", hello)])
