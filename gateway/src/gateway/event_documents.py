"""The AsyncAPI document of events and the live stream, for programs and (as a plain page) for people.

`make contracts` writes it beside this file from the services' own models.
"""

from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final

import orjson
from fastapi import APIRouter
from fastapi.responses import HTMLResponse, Response

DOCUMENT: Final = Path(__file__).with_name("asyncapi.json")

router = APIRouter(include_in_schema=False)


@cache
def _encoded() -> bytes:
    return DOCUMENT.read_bytes()


@router.get("/asyncapi.json")
async def asyncapi() -> Response:
    """The document, AsyncAPI 3."""
    return Response(_encoded(), media_type="application/json")


@router.get("/docs/events")
async def events() -> HTMLResponse:
    """A page that needs no script."""
    return HTMLResponse(page())


@cache
def page() -> str:
    """Write the document as HTML."""
    document = orjson.loads(_encoded())
    parts = [
        f"<h1>{escape(document['info']['title'])}</h1>",
        f"<p>{escape(document['info']['description'])} The document itself: <a href=/asyncapi.json>asyncapi.json</a>.</p>",
    ]
    for channel in document["channels"].values():
        parts.append(
            f"<h2>{escape(channel['title'])}</h2><p><code>{escape(channel['address'])}</code> "
            f"{escape(channel['description'])}</p>"
        )
        for reference in channel["messages"].values():
            message = document["components"]["messages"][_name(reference)]
            parts.append(f"<h3>{escape(message['title'])}</h3><p>{escape(message['summary'])}</p>")
            parts.append(_fields(message["payload"], document["components"]["schemas"]))
            parts += [
                f"<pre>{escape(orjson.dumps(example['payload'], option=orjson.OPT_INDENT_2).decode())}</pre>"
                for example in message.get("examples", ())
            ]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Tollhouse events</title>"
        f"<style>{_STYLE}</style><body>{''.join(parts)}</body></html>"
    )


_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td{border:1px solid #ccc;padding:.2rem .6rem;vertical-align:top}"
    "pre{background:#f4f4f4;padding:1rem;overflow:auto}"
)


def _name(reference: dict[str, str]) -> str:
    return reference["$ref"].rpartition("/")[2]


def _fields(payload: dict[str, Any], schemas: dict[str, Any]) -> str:
    if "allOf" in payload:  # an event: its data
        payload = payload["allOf"][-1]["properties"]["data"]
    schema = schemas[_name(payload)]
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{escape(_kind(field))}"
        f"<td>{'' if name in required else 'optional'}<td>{escape(field.get('description', ''))}"
        for name, field in schema.get("properties", {}).items()
    ]
    return f"<table>{''.join(rows)}</table>"


def _kind(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return " or ".join(map(_kind, field["anyOf"]))
    if "$ref" in field:
        return _name(field)
    if "const" in field:
        return str(orjson.dumps(field["const"]).decode())
    return str(field.get("type", "anything"))
