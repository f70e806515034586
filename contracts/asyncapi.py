"""The AsyncAPI 3 document: every event and command that services publish, and the frames of the live stream."""

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

import items.handlers
import notifications.handlers
from notifications import frames, server_frames
from shared.consumer import Handler
from shared.events import Command, Event

REF = "#/components/schemas/{model}"
CONSUMED: Mapping[str, Mapping[str, Handler]] = {
    "items": items.handlers.HANDLERS,
    "notifications": {**notifications.handlers.HANDLERS, **notifications.handlers.COMMAND_HANDLERS},
}
CLIENT_FRAMES: tuple[type[BaseModel], ...] = (
    frames.Auth,
    frames.Subscribe,
    frames.Unsubscribe,
    frames.Ping,
)
SERVER_FRAMES: tuple[type[BaseModel], ...] = (
    server_frames.Ready,
    server_frames.Subscribed,
    server_frames.EventFrame,
    server_frames.Gap,
    server_frames.Expiring,
    server_frames.ErrorFrame,
    server_frames.Pong,
)

_ENVELOPE = {
    "type": "object",
    "description": "CloudEvents 1.0 in JSON.",
    "required": [
        "specversion",
        "id",
        "source",
        "type",
        "subject",
        "time",
        "datacontenttype",
        "dataschema",
        "sequence",
        "data",
    ],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "format": "uuid", "description": "UUIDv7. The same event has the same id."},
        "source": {"type": "string", "format": "uri-reference"},
        "type": {"type": "string"},
        "subject": {"type": "string", "description": "Id of the aggregate that changed."},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "dataschema": {"type": "string", "format": "uri"},
        "sequence": {"type": "integer", "description": "Version that the aggregate has since this event."},
        "traceparent": {"type": "string", "description": "W3C Trace Context of the request that caused it."},
        "data": {"type": "object"},
    },
}
_SECURITY = {
    "nats": {
        "type": "userPassword",
        "description": "One NATS user for each service, which may publish and read only what is its own.",
    },
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "An access token: in the handshake, as the sub-protocol `bearer.<token>`, or in a first auth frame.",
    },
}


def document(
    examples: Mapping[str, Iterable[Event]], envelopes: Mapping[str, dict[str, Any]]
) -> dict[str, Any]:
    """Make the document; `examples` are each service's, `envelopes` the same as CloudEvents by their type."""
    events = [event for service in examples.values() for event in service]
    kinds = [type(event) for event in events]
    schemas = _schemas([*kinds, *SERVER_FRAMES], "serialization") | _schemas(CLIENT_FRAMES, "validation")
    schemas["CloudEvent"] = _ENVELOPE
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    messages: dict[str, Any] = {}
    for sender, of_service in examples.items():
        for event in of_service:
            _add_event(event, envelopes[event.type], channels, operations, messages, sender=sender)
    for service, handlers in CONSUMED.items():
        for kind in handlers:
            operations[f"{service}.receives.{kind}"] = _operation(
                "receive", _channel_name(kind), [kind], f"{service} acts on it."
            )
    _add_live_stream(channels, operations, messages)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Tollhouse events",
            "version": version("tollhouse-gateway"),
            "description": (
                "Events between services on NATS JetStream, and the live stream for clients. Clients see no NATS: they "
                "follow topics on `/v1/ws`, or on `/v1/events` as Server-Sent Events with the same messages. Ignore fields "
                "and types that you do not know: they are added without a new version. What is removed, renamed or "
                "retyped becomes a new type, `.v2`."
            ),
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "gateway": {"host": "127.0.0.1:8000", "protocol": "ws", "description": "For clients."},
            "nats": {"host": "127.0.0.1:14222", "protocol": "nats", "description": "Between services only."},
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": schemas, "securitySchemes": _SECURITY},
    }


def _schemas(models: Sequence[type[BaseModel]], mode: Any) -> dict[str, Any]:
    _, definitions = models_json_schema([(model, mode) for model in models], ref_template=REF)
    found: dict[str, Any] = definitions["$defs"]
    missing = {model.__name__ for model in models} - found.keys()
    if missing:
        raise ValueError(f"more than one model has the name {missing}")
    return found


def _channel_name(kind: str) -> str:
    return kind.rpartition(".")[0]


def _add_event(
    event: Event,
    envelope: dict[str, Any],
    channels: dict[str, Any],
    operations: dict[str, Any],
    messages: dict[str, Any],
    *,
    sender: str,
) -> None:
    kind = event.type
    prefix = "commands" if isinstance(event, Command) else "events"
    channels[_channel_name(kind)] = {
        "address": f"{prefix}.{_channel_name(kind)}.{{id}}",
        "title": _channel_name(kind),
        "description": f"On the JetStream stream {prefix.upper()}.",
        "servers": [{"$ref": "#/servers/nats"}],
        "parameters": {"id": {"description": "Id of the aggregate."}},
        "messages": {kind: {"$ref": f"#/components/messages/{kind}"}},
    }
    operations[f"{sender}.sends.{kind}"] = _operation(
        "send", _channel_name(kind), [kind], f"{sender} publishes it."
    )
    messages[kind] = {
        "name": kind,
        "title": kind,
        "summary": (type(event).__doc__ or "").partition("\n")[0],
        "contentType": "application/cloudevents+json",
        "payload": {
            "allOf": [
                {"$ref": REF.format(model="CloudEvent")},
                {
                    "type": "object",
                    "properties": {
                        "type": {"const": kind},
                        "data": {"$ref": REF.format(model=type(event).__name__)},
                    },
                },
            ]
        },
        "examples": [{"payload": envelope}],
    }


def _add_live_stream(channels: dict[str, Any], operations: dict[str, Any], messages: dict[str, Any]) -> None:
    channels["live"] = {
        "address": "/v1/ws",
        "title": "live stream",
        "description": "WebSocket of the gateway. Topics: `items`, `items.<id>`, `me`.",
        "servers": [{"$ref": "#/servers/gateway"}],
        "messages": {
            model.__name__: {"$ref": f"#/components/messages/{model.__name__}"}
            for model in (*CLIENT_FRAMES, *SERVER_FRAMES)
        },
    }
    for model in (*CLIENT_FRAMES, *SERVER_FRAMES):
        messages[model.__name__] = {
            "name": model.__name__,
            "title": model.__name__,
            "summary": (model.__doc__ or "").partition("\n")[0],
            "contentType": "application/json",
            "payload": {"$ref": REF.format(model=model.__name__)},
        }
    names = [model.__name__ for model in CLIENT_FRAMES]
    operations["live.receives"] = _operation("receive", "live", names, "Frames that a client sends.")
    names = [model.__name__ for model in SERVER_FRAMES]
    operations["live.sends"] = _operation("send", "live", names, "Frames that a client gets.")


def _operation(action: str, channel: str, messages: Iterable[str], summary: str) -> dict[str, Any]:
    scheme = "bearer" if channel == "live" else "nats"
    return {
        "action": action,
        "security": [{"$ref": f"#/components/securitySchemes/{scheme}"}],
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
    }
