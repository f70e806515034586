"""The merged OpenAPI document as it is served: for programs, in Swagger UI and in ReDoc, all from our own assets."""

from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, Final

import fastapi_offline
import orjson
from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html, get_swagger_ui_oauth2_redirect_html
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from gateway import openapi
from gateway.directory import Directory
from gateway.methods import Methods
from gateway.routes import Routes

ASSETS: Final = Path(fastapi_offline.__file__).with_name("static")
LICENSE: Final = {"name": "Apache-2.0", "identifier": "Apache-2.0"}

router = APIRouter(include_in_schema=False)


class Edition:
    """The document of all services at one time."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document

    @cached_property
    def encoded(self) -> bytes:
        """The document as JSON: encoding it takes milliseconds, and everybody may ask for it."""
        return orjson.dumps(self.document)

    @cached_property
    def methods(self) -> Methods:
        """The methods of its paths."""
        return Methods(self.document)


class Documents:
    """Makes the document of all services, anew when one of theirs has changed."""

    def __init__(self, app: FastAPI, routes: Routes) -> None:
        self._app = app
        self.merge = partial(openapi.merge, app.openapi(), routes=routes)
        """Make the document out of those of the services."""
        self._version: int | None = None
        self._edition: Edition

    @property
    def current(self) -> Edition:
        """The document of now."""
        directory: Directory = self._app.state.directory
        if directory.version != self._version:
            self._edition = Edition(
                self.merge(
                    {service.name: service.openapi for service in directory.services},
                    stale=[service.name for service in directory.services if service.stale],
                )
            )
            self._version = directory.version
        return self._edition

    def allow(self, path: bytes) -> str | None:
        """Return the value of Allow for a path, or None where no operation has it."""
        return self.current.methods.allow(path)


def add_documents(app: FastAPI, routes: Routes) -> Documents:
    """Serve the document of all services instead of the app's own, and the pages that show it."""
    app.description = openapi.DESCRIPTION
    app.license_info = LICENSE
    app.servers = [{"url": "/", "description": "This gateway."}]
    documents = app.state.documents = Documents(app, routes)
    app.include_router(router)
    app.mount("/docs/assets", StaticFiles(directory=ASSETS), name="docs-assets")
    return documents


@router.get("/openapi.json")
async def read_openapi(request: Request) -> Response:
    """Return the document."""
    documents: Documents = request.app.state.documents
    return Response(documents.current.encoded, media_type="application/json")


@router.get("/docs")
async def docs() -> HTMLResponse:
    """Swagger UI."""
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Tollhouse",
        oauth2_redirect_url="/docs/oauth2-redirect",
        swagger_js_url="/docs/assets/swagger-ui-bundle.js",
        swagger_css_url="/docs/assets/swagger-ui.css",
        swagger_favicon_url="/docs/assets/favicon.png",
        swagger_ui_parameters={"displayRequestDuration": True, "defaultModelsExpandDepth": 0},
    )


@cache
def _redoc_script() -> str:
    """ReDoc's script without the one thing that it fetches from elsewhere, a logo."""
    script = (ASSETS / "redoc.standalone.js").read_text(encoding="utf-8")
    return script.replace("https://cdn.redoc.ly/redoc/logo-mini.svg", "/docs/assets/favicon.png")


@router.get("/docs/assets/redoc.standalone.js")
async def redoc_script() -> Response:
    """Return the script of `/redoc`."""
    return Response(_redoc_script(), media_type="text/javascript", headers={"Cache-Control": "max-age=86400"})


@router.get("/docs/oauth2-redirect")
async def oauth2_redirect() -> HTMLResponse:
    """Swagger UI's page for the end of an authorization."""
    return get_swagger_ui_oauth2_redirect_html()


@router.get("/redoc")
async def redoc() -> HTMLResponse:
    """ReDoc."""
    return get_redoc_html(
        openapi_url="/openapi.json",
        title="Tollhouse",
        redoc_js_url="/docs/assets/redoc.standalone.js",
        redoc_favicon_url="/docs/assets/favicon.png",
        with_google_fonts=False,
    )
