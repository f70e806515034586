"""What the gateway knows of its services on the control path (httpx): alive or not, their documents.

The last good copy of a document is kept while a service is away.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from shared.logs import get_logger

log = get_logger(__name__)

POLL_SECONDS: Final = 2.0
"""Between two looks at a service."""
FIRST_POLL_SECONDS: Final = 0.2
"""The same while a service was not seen yet."""
DOCUMENTS_SECONDS: Final = 60.0
"""Between two fetches of the documents of a service that stays alive."""
TIMEOUT: Final = 2.0
MAX_DOCUMENT_BYTES: Final = 4 * 1024 * 1024

_ENTRY: Final = frozenset({"code", "title", "status", "description"})
"""What an entry of a catalogue has."""


@dataclass
class Service:
    """A service as last seen."""

    name: str
    url: str
    alive: bool = False
    seen: bool = False
    openapi: dict[str, Any] = field(default_factory=dict)
    problems: list[dict[str, Any]] = field(default_factory=list)
    fetched_at: float = float("-inf")
    unreadable: bool = False
    """Its documents could not be fetched when last tried."""

    @property
    def stale(self) -> bool:
        """Whether its documents are those of some time ago."""
        return not self.alive or self.unreadable


class Directory:
    """Looks at every service now and then."""

    def __init__(self, urls: dict[str, str], http: httpx.AsyncClient) -> None:
        self.services = [Service(name, url) for name, url in urls.items()]
        self.version = 0
        """Grows when a document changes, or becomes stale or current."""
        self._http = http

    @property
    def complete(self) -> bool:
        """Whether every service was seen alive once."""
        return all(service.seen for service in self.services)

    async def watch(self) -> None:
        """Look for ever."""
        async with asyncio.TaskGroup() as group:
            for service in self.services:
                group.create_task(self._watch(service), name=f"watch-{service.name}")

    async def _watch(self, service: Service) -> None:
        while True:
            await self._look(service)
            await asyncio.sleep(POLL_SECONDS if service.seen else FIRST_POLL_SECONDS)

    async def _look(self, service: Service) -> None:
        was_stale = service.stale
        try:
            await self._see(service)
        finally:
            self.version += service.stale != was_stale

    async def _see(self, service: Service) -> None:
        was_alive = service.alive
        try:
            response = await self._http.get(f"{service.url}/health")
            service.alive = response.status_code == httpx.codes.OK
        except httpx.HTTPError:
            service.alive = False
        if service.alive != was_alive:
            log.info("upstream.alive" if service.alive else "upstream.away", upstream=service.name)
        if not service.alive:
            return
        now = asyncio.get_running_loop().time()
        if not was_alive or now - service.fetched_at > DOCUMENTS_SECONDS:
            await self._fetch_documents(service)
            service.fetched_at = now
        service.seen = True

    async def _fetch_documents(self, service: Service) -> None:
        openapi = await self._document(service, "/openapi.json")
        problems = await self._document(service, "/errors")
        service.unreadable = not (isinstance(openapi, dict) and isinstance(problems, list))
        if isinstance(openapi, dict) and openapi != service.openapi:
            service.openapi = openapi
            self.version += 1
        if isinstance(problems, list):
            service.problems = [
                entry for entry in problems if isinstance(entry, dict) and entry.keys() >= _ENTRY
            ]

    async def _document(self, service: Service, path: str) -> Any:
        try:
            response = await self._http.get(service.url + path)
            response.raise_for_status()
            if len(response.content) > MAX_DOCUMENT_BYTES:
                raise ValueError("too large")  # noqa: TRY301
            return response.json()
        except (httpx.HTTPError, ValueError) as error:
            log.warning("upstream.document_unavailable", upstream=service.name, path=path, error=str(error))
            return None
