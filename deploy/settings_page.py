"""The page of all settings, made from the settings classes themselves."""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from shared.settings import DatabaseSettings, Settings
from stack.services import TOLLHOUSE

INTRODUCTION = """\
# Settings

<!-- Made by `python -m deploy.generate`: do not edit. -->

Every setting is an environment variable. `ITEMS_LOG_LEVEL` is for items alone; where *all services* have a setting, plain
`LOG_LEVEL` is for everybody who has none of their own. With `_FILE` after the name the value is read from a file
(`ITEMS_DATABASE_URL_FILE=/run/secrets/items_database_url`): the way for secrets (marked so below), which are never read from
anywhere else. An empty variable counts as not set. A wrong or missing value ends the process at once (exit code 2) with a
sentence that names the variable and never its value; a variable that nobody knows is ignored.

Lists and objects are JSON. What `make run` itself understands is in [.env.example](../.env.example); what stands in the
route table is in [gateway.md](gateway.md).
"""
PROGRAMS = {
    "streams": "`python -m shared.streams`, which declares the JetStream streams",
}
"""Headings of programs that are no service."""


def settings_classes() -> dict[str, type[Settings]]:
    """Every settings class of the product by its prefix: services first, in their order of starting."""
    services = [spec.name for spec in TOLLHOUSE.services]
    modules = set()  # those of the product: tests have settings classes of their own
    for package in ("shared", *services):
        paths = importlib.import_module(package).__path__
        for module in pkgutil.walk_packages(paths, f"{package}."):
            if "testing" not in module.name and not module.name.endswith(".__main__"):
                importlib.import_module(module.name)
                modules.add(module.name)
    found = {one.service: one for one in _subclasses(Settings) if one.__module__ in modules}
    return dict(
        sorted(
            found.items(),
            key=lambda entry: services.index(entry[0]) if entry[0] in services else len(services),
        )
    )


def _subclasses(one: type[Settings]) -> Iterator[type[Settings]]:
    for other in one.__subclasses__():
        if "service" in vars(other):
            yield other
        yield from _subclasses(other)


def settings_page() -> str:
    """The whole page."""
    parts = [
        INTRODUCTION,
        "## All services\n\nPlain, or with a service's prefix.\n\n" + _table(Settings, "", skip={"port"}),
        "## Services with a database\n\nAlways with the service's prefix.\n\n"
        + _table(DatabaseSettings, "<SERVICE>_", skip=set(Settings.model_fields)),
    ]
    for name, settings in settings_classes().items():
        inherited = DatabaseSettings if issubclass(settings, DatabaseSettings) else Settings
        same = {
            field
            for field, info in inherited.model_fields.items()
            if settings.model_fields[field].default == info.default
        }
        heading = PROGRAMS.get(name, name)
        parts.append(f"## {heading}\n\n" + _table(settings, f"{name.upper()}_", skip=same))
    return "\n".join(parts)


def _table(settings: type[Settings], prefix: str, *, skip: set[str]) -> str:
    rows = [
        f"| `{prefix}{field.upper()}` | {_type(info)} | {_default(info)} | {(info.description or '').replace('|', chr(92) + '|')} |"
        for field, info in settings.model_fields.items()
        if field not in skip and info.description
    ]
    return "\n".join(["| variable | type | default | meaning |", "|---|---|---|---|", *rows, ""])


def is_secret(info: FieldInfo) -> bool:
    """Whether the setting's value may be shown nowhere."""
    return "SecretStr" in str(info.annotation)


_TYPES = {
    "int": "whole number",
    "float": "number",
    "bool": "true or false",
    "str": "text",
    "AwareDatetime": "time (ISO 8601, with its zone)",
    "EmailStr": "address",
    "Path": "path",
    "AnyHttpUrl": "URL",
    "HttpUrl": "URL",
    "SecretStr": "**secret**",
}


def _type(info: FieldInfo) -> str:
    schema = str(info.annotation)
    if "Literal" in schema:
        options: tuple[Any, ...] = getattr(info.annotation, "__args__", ())
        return ", ".join(f"`{option}`" for option in options)
    if schema.startswith(("tuple", "dict")):
        return "JSON"
    for name, words in _TYPES.items():
        if name in schema.replace("typing.", "").replace("pydantic.networks.", ""):
            return words + _bounds(info)
    return "text"


def _bounds(info: FieldInfo) -> str:
    found = {
        name: getattr(part, name)
        for part in info.metadata
        for name in ("ge", "gt", "le")
        if hasattr(part, name)
    }
    if "ge" in found and "le" in found:
        return f", {found['ge']} to {found['le']}"
    if "ge" in found:
        return f" ≥ {found['ge']}"
    return f" > {found['gt']}" if "gt" in found else ""


def _default(info: FieldInfo) -> str:
    default = info.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return "**required**"
    if isinstance(default, SecretStr) or default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return f"`{json.dumps(default)}`"
    if isinstance(default, tuple | dict):
        return f"`{json.dumps(default, default=str)}`"
    if info.annotation is not None and str(default).startswith("/"):
        return "shipped"
    return f"`{default}`"
