"""One OpenAPI 3.1 document and one problem catalogue out of those of the services."""

from collections.abc import Iterable, Mapping
from typing import Any

from shared.errors import CatalogueEntry

Document = Mapping[str, Any]

_REF = "#/components/"


def merge(own: Document, services: Mapping[str, Document], *, prefixes: Iterable[str]) -> dict[str, Any]:
    """Return `own` (the gateway's document) with the operations of every service that a route leads to.

    Components that differ but share a name get the service's name in front; so do doubled operation ids.
    """
    merged: dict[str, Any] = {
        **own,
        "paths": dict(own.get("paths", {})),
        "components": {kind: dict(entries) for kind, entries in own.get("components", {}).items()},
        "servers": [{"url": "/"}],
    }
    allowed = tuple(prefixes)
    operations = {operation["operationId"] for operation in _operations(merged["paths"])}
    for name, document in services.items():
        renamed = _adopt_components(merged["components"], name, document.get("components", {}))
        for path, item in document.get("paths", {}).items():
            if not _reachable(path, allowed) or path in merged["paths"]:
                continue
            merged["paths"][path] = adopted = _rewritten(item, renamed)
            for operation in _operations({path: adopted}):
                if operation["operationId"] in operations:
                    operation["operationId"] = f"{name}_{operation['operationId']}"
                operations.add(operation["operationId"])
    return merged


def merge_catalogues(own: Iterable[CatalogueEntry], services: Iterable[Iterable[Document]]) -> list[Document]:
    """Return all problems, ordered by code; where two describe the same code, the gateway's and the first hold."""
    entries: dict[str, Document] = {entry.code: entry._asdict() for entry in own}
    for catalogue in services:
        for entry in catalogue:
            entries.setdefault(str(entry["code"]), entry)
    return [entries[code] for code in sorted(entries)]


def _reachable(path: str, prefixes: tuple[str, ...]) -> bool:
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)


def _operations(paths: Document) -> list[dict[str, Any]]:
    return [
        operation
        for item in paths.values()
        for operation in item.values()
        if isinstance(operation, dict) and "operationId" in operation
    ]


def _adopt_components(merged: dict[str, Any], service: str, components: Document) -> dict[str, str]:
    """Add a service's components and return the references that had to change."""
    renamed = {
        f"{_REF}{kind}/{name}": f"{_REF}{kind}/{service.capitalize()}{name}"
        for kind, entries in components.items()
        for name, entry in entries.items()
        if merged.get(kind, {}).get(name, entry) != entry
    }
    for kind, entries in components.items():
        for name, entry in entries.items():
            reference = renamed.get(f"{_REF}{kind}/{name}", name)
            merged.setdefault(kind, {})[reference.rpartition("/")[2]] = _rewritten(entry, renamed)
    return renamed


def _rewritten(node: Any, renamed: Mapping[str, str]) -> Any:
    """Copy a part of a document with its references changed."""
    if isinstance(node, Mapping):
        return {
            key: renamed.get(value, value)
            if key == "$ref" and isinstance(value, str)
            else _rewritten(value, renamed)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_rewritten(value, renamed) for value in node]
    return node
