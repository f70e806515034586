"""`make dev`: a service starts again when its sources change, all of them when the shared ones do."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from watchfiles import PythonFilter, awatch

from stack.errors import StartFailed
from stack.services import ServiceSpec, System
from stack.supervisor import Supervisor

QUIET = 200
"""Milliseconds without a further change before services are restarted: editors save in several steps."""

TICK = 500
"""Milliseconds until the watcher reports that nothing has changed; its first report says that it watches."""


def reload(folder: Path) -> Callable[[Supervisor], Coroutine[Any, Any, None]]:
    """The work beside the supervisor: watch the sources under `folder` and restart what they concern."""

    async def watch(supervisor: Supervisor) -> None:
        sources = {
            name: [folder / source for source in paths] for name, paths in _sources(supervisor.system).items()
        }
        existing = {path for paths in sources.values() for path in paths if path.exists()}
        watching = False
        async for changes in awatch(
            *existing, watch_filter=PythonFilter(), step=QUIET, rust_timeout=TICK, yield_on_timeout=True
        ):
            if not watching:
                watching = True
                supervisor.output.say(f"watching {len(existing)} folders of sources.")
            if not changes:
                continue
            changed = [Path(path) for _, path in changes]
            concerned = [
                spec for spec in supervisor.system.services if _concerns(changed, sources[spec.name])
            ]
            names = ", ".join(spec.name for spec in concerned)
            supervisor.output.say(f"{_shown(changed, folder)} changed: restarting {names}.")
            await asyncio.gather(*(_restart(supervisor, spec, changed) for spec in concerned))

    return watch


def _sources(system: System) -> Mapping[str, tuple[str, ...]]:
    return {spec.name: (*spec.sources, *system.shared_sources) for spec in system.services}


def _concerns(changed: list[Path], sources: list[Path]) -> bool:
    return any(path.is_relative_to(source) for path in changed for source in sources)


async def _restart(supervisor: Supervisor, spec: ServiceSpec, changed: list[Path]) -> None:
    if spec.database and any("migrations" in path.parts for path in changed):
        try:
            await supervisor.migrate(spec)
        except StartFailed as failure:  # the author's next save may mend it
            supervisor.output.say(str(failure), "error")
            return
    await supervisor.process(spec.name).restart()


def _shown(changed: list[Path], folder: Path) -> str:
    first = changed[0].relative_to(folder) if changed[0].is_relative_to(folder) else changed[0]
    return str(first) if len(changed) == 1 else f"{first} and {len(changed) - 1} more"
