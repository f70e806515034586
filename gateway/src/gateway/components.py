"""Components of several OpenAPI documents under one roof: none lost, none mixed up, none twice."""

from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from shared.openapi import OAUTH2, operations

Document = Mapping[str, Any]

_PHRASES = {"413": "Content Too Large", "414": "URI Too Long", "422": "Unprocessable Content"}
"""RFC 9110's names, which http.HTTPStatus has since Python 3.13: no document depends on the version that made it."""


def adopt(merged: dict[str, Any], service: str, components: Document) -> dict[str, str]:
    """Add a service's components and return the references that had to change."""
    _adopt_security(merged, components.get("securitySchemes", {}))
    mine = {
        (kind, name): entry
        for kind, entries in components.items()
        if kind != "securitySchemes"
        for name, entry in entries.items()
    }
    renamed = _collisions(merged, service, mine)
    for (kind, name), entry in mine.items():
        reference = renamed.get(_reference(kind, name), name)
        merged.setdefault(kind, {})[reference.rpartition("/")[2]] = rewritten(entry, renamed)
    return renamed


def _collisions(merged: Document, service: str, mine: Mapping[tuple[str, str], Any]) -> dict[str, str]:
    """Return new references for components that differ from another of their name.

    What refers to a renamed component differs too, though it reads the same: it is renamed in the next round.
    """
    renamed: dict[str, str] = {}
    found = True
    while found:
        found = False
        for (kind, name), entry in mine.items():
            known = merged.get(kind, {})
            if _reference(kind, name) in renamed or name not in known:
                continue
            if known[name] != rewritten(entry, renamed):
                new = f"{service.capitalize()}{name}"
                while new in known or (kind, new) in mine:
                    new = f"{new}_"
                renamed[_reference(kind, name)] = _reference(kind, new)
                found = True
    return renamed


def _adopt_security(merged: dict[str, Any], schemes: Document) -> None:
    """Add security schemes; the scopes of all services belong to one password flow."""
    known = merged.setdefault("securitySchemes", {})
    for name, scheme in schemes.items():
        scopes = known[name]["flows"]["password"]["scopes"] if name == OAUTH2 and name in known else {}
        known[name] = rewritten(scheme, {})
        if name == OAUTH2:
            mine = scheme["flows"]["password"]["scopes"]
            known[name]["flows"]["password"]["scopes"] = dict(sorted({**mine, **scopes}.items()))


def _reference(kind: str, name: str) -> str:
    return f"#/components/{kind}/{name}"


def rewritten(node: Any, renamed: Mapping[str, str]) -> Any:
    """Copy a part of a document with its references changed: `$ref`, and those in a discriminator's mapping."""
    if isinstance(node, Mapping):
        return {key: rewritten(value, renamed) for key, value in node.items()}
    if isinstance(node, list):
        return [rewritten(value, renamed) for value in node]
    return renamed.get(node, node) if isinstance(node, str) else node


def share_responses(merged: dict[str, Any]) -> None:
    """Make the commonest response of each error status a component: that halves the document."""
    found: dict[str, list[Any]] = {}
    for _, _, operation in operations(merged):
        for status, response in operation["responses"].items():
            if status >= "400":
                found.setdefault(status, []).append(response)
    components = merged["components"].setdefault("responses", {})
    for status, responses in found.items():
        common = max(responses, key=responses.count)
        phrase = _PHRASES.get(status, HTTPStatus(int(status)).phrase)
        name = phrase.title().replace(" ", "").replace("-", "")
        if responses.count(common) > 1 and name not in components:
            components[name] = common
            for _, _, operation in operations(merged):
                if operation["responses"].get(status) == common:
                    operation["responses"][status] = {"$ref": _reference("responses", name)}


def drop_unused(merged: dict[str, Any]) -> None:
    """Keep only the components that some operation leads to."""
    components = merged["components"]
    used: set[str] = set()
    ahead = list(_references(merged["paths"]))
    while ahead:
        reference = ahead.pop()
        if reference not in used:
            used.add(reference)
            _, _, kind, name = reference.split("/")
            ahead += _references(components.get(kind, {}).get(name))
    for kind, entries in components.items():
        if kind != "securitySchemes":
            components[kind] = {
                name: entry for name, entry in entries.items() if _reference(kind, name) in used
            }


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)
    elif isinstance(node, str) and node.startswith("#/components/") and node.count("/") == 3:
        yield node
