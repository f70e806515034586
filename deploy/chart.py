"""What the chart takes from the sources: facts about each service, the schema of its values, and the README of them."""

import importlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from deploy.settings_page import is_secret, settings_classes

from shared.consumer import Subscription
from shared.settings import Settings
from stack import postgres
from stack.services import TOLLHOUSE, ServiceSpec

CHART = Path(__file__).with_name("helm")
ALWAYS_SECRET = "nats_password"  # noqa: S105  # the name of a setting
DECIDED = {"bind_host", "port", "shutdown_timeout", "token_issuer", "jwks_url", "nats_url", "nats_user", "metrics_bind_host",
           "metrics_port", "metrics_dir", "migrations_dir", "trusted_proxies"}  # fmt: skip
"""Settings that the chart decides; its own values say what can be chosen of them."""


def facts() -> dict[str, dict[str, Any]]:
    """What the templates must know of each service, by its name."""
    return {spec.name: _facts(spec) for spec in TOLLHOUSE.services}


def _facts(spec: ServiceSpec) -> dict[str, Any]:
    fields = settings_classes()[spec.name].model_fields
    secrets = {name: info for name, info in fields.items() if is_secret(info)}
    required = {name for name, info in secrets.items() if info.is_required()} | {ALWAYS_SECRET}
    names = [other.name for other in TOLLHOUSE.services]
    folders = {name: "/data" for name, value in spec.defaults.items() if "{data_dir}" in value}
    return {
        "database": spec.database,
        "calls": list(spec.after),
        "callers": [other.name for other in TOLLHOUSE.services if spec.name in other.after],
        "consumers": [{"stream": one.stream, "durable": one.durable} for one in _subscriptions(spec.name)],
        "requiredSecrets": sorted(map(_key, required)),
        "optionalSecrets": sorted(_key(name) for name in secrets if name not in required),
        "upstreams": {f"{name.upper()}_URL": name for name in names if f"{name}_url" in fields},
        "settings": folders,
        "folders": sorted(set(folders.values())),
        "roleSettings": dict(postgres.ROLE_SETTINGS) if spec.database else {},
    }


def _key(setting: str) -> str:
    return setting.replace("_", "-")


def _subscriptions(service: str) -> Iterable[Subscription]:
    try:
        module = importlib.import_module(f"{service}.handlers")
    except ModuleNotFoundError:
        return []
    return [value for value in vars(module).values() if isinstance(value, Subscription)]


def facts_file() -> str:
    """The facts as the chart reads them."""
    return "# Made by `python -m deploy.generate`: do not edit.\n" + yaml.safe_dump(facts(), sort_keys=False)


def values() -> dict[str, Any]:
    """The chart's default values."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    return found


# Values whose type the defaults do not show.
_TEXT = {"type": "string"}

_PEER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "minProperties": 1,
    "properties": {
        "ipBlock": {
            "type": "object",
            "additionalProperties": False,
            "required": ["cidr"],
            "properties": {"cidr": _TEXT, "except": {"type": "array", "items": _TEXT}},
        },
        "namespaceSelector": {"type": "object"},
        "podSelector": {"type": "object"},
    },
}
_COUNT = {"type": "integer", "minimum": 1}
_ANY = {"type": ["string", "number", "boolean", "array", "object"]}
_STRINGS = {"type": "object", "additionalProperties": _TEXT}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
_PROBE = {
    "type": "object",
    "additionalProperties": False,
    "properties": dict.fromkeys(
        ("initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold", "successThreshold"),
        _COUNT,
    ),
}
_SPREAD = {
    "type": "array",
    "items": {
        "type": "object",
        "additionalProperties": False,
        "required": ["topologyKey", "whenUnsatisfiable"],
        "properties": {
            "topologyKey": _TEXT,
            "whenUnsatisfiable": {"enum": ["DoNotSchedule", "ScheduleAnyway"]},
        },
    },
}
_RESOURCES = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        kind: {"type": "object", "additionalProperties": {"type": ["string", "number"]}}
        for kind in ("requests", "limits")
    },
}
_BY_KEY: Mapping[str, dict[str, Any]] = {
    "peers": {"type": "array", "items": _PEER},
    "from": {"type": "array", "items": _PEER},
    "gatewayFrom": {"type": "array", "items": _PEER},
    "dns": {"type": "array", "items": _PEER},
    "optionalKeys": {"type": "array", "items": _TEXT},
    "pullSecrets": {"type": "array", "items": _TEXT},
    "trustedProxies": {"type": "array", "items": {"type": "string", "pattern": r"^[0-9a-fA-F.:]+/[0-9]+$"}},
    "hostnames": {"type": "array", "items": _TEXT},
    "parentRefs": _OBJECTS,
    "extraIngress": _OBJECTS,
    "extraEgress": _OBJECTS,
    "env": {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {"name": _TEXT, "value": _TEXT, "valueFrom": {"type": "object"}},
        },
    },
    "extraVolumes": _OBJECTS,
    "extraVolumeMounts": _OBJECTS,
    "tolerations": _OBJECTS,
    "topologySpread": _SPREAD,
    "startup": _PROBE,
    "readiness": _PROBE,
    "liveness": _PROBE,
    "resources": _RESOURCES,
    "podAnnotations": _STRINGS,
    "podLabels": _STRINGS,
    "serviceAnnotations": _STRINGS,
    "serviceAccountAnnotations": _STRINGS,
    "annotations": _STRINGS,
    "labels": _STRINGS,
    "nodeSelector": _STRINGS,
    "affinity": {"type": "object"},
    "pullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
    "digest": {"type": "string", "pattern": "^(sha256:[0-9a-f]{64})?$"},
    "publicUrl": {"type": "string", "pattern": "^https?://[^/]+$"},
    "maxUnavailable": {"type": ["integer", "string"]},
    "targetCPU": {"type": "integer", "minimum": 1, "maximum": 100},
    "streamReplicas": {"type": "integer", "minimum": 1, "maximum": 5},
    "requestTimeout": {"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"},
    "existing": {"type": "string", "pattern": "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"},
}


def schema() -> str:
    """values.schema.json: nothing but what values.yaml has, down to the names of settings and secrets."""
    defaults = values()
    properties = {key: _schema(key, value) for key, value in defaults.items()}
    properties["settings"] = _settings(Settings, "")
    base = _schema("defaults", defaults["defaults"])
    base["properties"]["settings"] = {"type": "object", "maxProperties": 0}
    base["properties"]["secret"] = {"const": defaults["defaults"]["secret"]}  # each service has its own
    properties["defaults"] = base
    properties["services"] = _closed({name: _service(name, defaults["defaults"]) for name in facts()})
    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Values of the chart tollhouse",
        **_closed({**properties, "global": {"type": "object"}}),
    }
    return json.dumps(document, indent=2) + "\n"


def _service(name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    known = facts()[name]
    keys = [*known["requiredSecrets"], *known["optionalSecrets"]]
    block = {key: _schema(key, value) for key, value in defaults.items()}
    block["settings"] = _settings(settings_classes()[name], "")
    block["secret"] = _closed(
        {
            "existing": _BY_KEY["existing"],
            "optionalKeys": {
                "type": "array",
                "items": {"enum": known["optionalSecrets"]} if known["optionalSecrets"] else _TEXT,
            },
            "values": _closed({key: {"type": "string", "minLength": 1} for key in keys}),
        }
    )
    return _closed(block)


def _settings(settings: type[Settings], prefix: str) -> dict[str, Any]:
    fields = {
        name: info
        for name, info in settings.model_fields.items()
        if not is_secret(info) and name not in DECIDED
    }
    return _closed(
        {
            f"{prefix}{name.upper()}": {**_ANY, "description": info.description or ""}
            for name, info in fields.items()
        }
    )


def _closed(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": dict(properties)}


def _schema(key: str, value: Any) -> dict[str, Any]:
    if key in _BY_KEY:
        return dict(_BY_KEY[key])
    if isinstance(value, dict):
        return _closed({name: _schema(name, inner) for name, inner in value.items()})
    if isinstance(value, bool):
        return {"type": "boolean"}
    if isinstance(value, int):
        return {"type": "integer", "minimum": 0 if key == "preStopSeconds" else 1}
    if isinstance(value, str):
        return dict(_TEXT)
    raise ValueError(f"chart.py does not know what {key} may be")


_DOCUMENTED = re.compile(r"^( *)# -- (.+)$")
_KEY = re.compile(r"^( *)([\w]+):(.*)$")


def documented_values() -> list[tuple[str, Any, str]]:
    """Every documented value: its path, its default and its meaning."""
    rows = []
    path: list[tuple[int, str]] = []
    meaning = ""
    for line in (CHART / "values.yaml").read_text(encoding="utf-8").splitlines():
        if comment := _DOCUMENTED.match(line):
            meaning = comment[2]
        elif key := _KEY.match(line):
            indent = len(key[1])
            path = [part for part in path if part[0] < indent] + [(indent, key[2])]
            if meaning:
                names = [name for _, name in path]
                rows.append((".".join(names), _at(values(), names), meaning))
                meaning = ""
    return rows


def _at(tree: Any, path: Iterable[str]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def readme() -> str:
    """The chart's README: an introduction of its own, and the tables of values and secrets."""
    introduction = (CHART / "README.in.md").read_text(encoding="utf-8")
    table = ["| value | default | meaning |", "|---|---|---|"]
    table += [
        f"| `{path}` | `{_compact(default)}` | {meaning} |" for path, default, meaning in documented_values()
    ]
    secrets = ["| service | required | optional |", "|---|---|---|"]
    for name, known in facts().items():
        own = ["database-password (bundled PostgreSQL only)"] if known["database"] else []
        cells = [
            ", ".join(f"`{key}`" for key in known[kind]) for kind in ("requiredSecrets", "optionalSecrets")
        ]
        secrets.append(f"| {name} | {', '.join([cells[0], *own])} | {cells[1]} |")
    return introduction.replace("<!-- values -->", "\n".join(table)).replace(
        "<!-- secrets -->", "\n".join(secrets)
    )


def _compact(value: Any) -> str:
    return '""' if value == "" else value if isinstance(value, str) else json.dumps(value)
