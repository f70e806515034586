"""What a service's OpenAPI document says beyond what FastAPI knows: problems, response headers, how to authenticate.

A route names the problems of its own by `responses=problems(ItemNotFound)`; those that follow from its shape (a body, a
parameter, a scope) are added here.
"""

from collections.abc import Iterable, Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final, cast

from fastapi import FastAPI
from pydantic import BaseModel, Field

from shared import errors
from shared.errors import PROBLEM_JSON

METHODS: Final = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
EXAMPLE_REQUEST_ID: Final = "01942a60-7b85-7000-8000-000000000000"


class InvalidValue(BaseModel):
    """One value that was refused (only with status 422)."""

    pointer: str | None = Field(
        None, description="JSON Pointer (RFC 6901) into the body, as a fragment.", examples=["#/price"]
    )
    in_: str | None = Field(
        None, alias="in", description="Where a parameter stands: path, query or header.", examples=["query"]
    )
    parameter: str | None = Field(None, description="Name of the parameter.", examples=["limit"])
    code: str = Field(description="What is wrong with it; for programs.", examples=["greater_than"])
    detail: str = Field(description="The same for people.", examples=["Input should be greater than 0"])


class Problem(BaseModel):
    """RFC 9457 problem details. `GET /errors` lists every `code`."""

    type: str = Field(description="Where the code is explained.", examples=["/errors#not_authenticated"])
    title: str = Field(description="The code in words.", examples=["Not authenticated"])
    status: int = Field(description="The response's status.", examples=[401])
    code: str = Field(description="Stable; what programs should look at.", examples=["not_authenticated"])
    detail: str = Field(description="What happened this time.", examples=["Not authenticated."])
    request_id: str = Field(
        description="Under which the logs have this request.", examples=[EXAMPLE_REQUEST_ID]
    )
    errors: list[InvalidValue] = Field(default=[], description="The values that were refused.")


_SCHEMA: Final = {"$ref": "#/components/schemas/Problem"}
_UNDOCUMENTED: Final = "4XX"
_FRAMEWORKS_WORDS: Final = "Successful Response"

HEADERS: Final[dict[str, dict[str, Any]]] = {
    "X-Request-ID": {
        "description": "Names the request in the logs: the client's own if it sent a sane one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
        "example": EXAMPLE_REQUEST_ID,
    },
    "X-Process-Time-ms": {
        "description": "Milliseconds from the request's arrival to the response.",
        "schema": {"type": "number", "minimum": 0},
        "example": 3.2,
    },
    "WWW-Authenticate": {
        "description": "What is wrong with the token, or that there is none (RFC 6750 section 3).",
        "schema": {"type": "string"},
        "example": 'Bearer error="invalid_token"',
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "schema": {"type": "integer", "minimum": 0},
        "example": 1,
    },
}
"""Of responses; each is a component of the same name."""
_HEADERS_OF_EVERY_RESPONSE = ("X-Request-ID", "X-Process-Time-ms")
_HEADERS_BY_STATUS = {
    "401": ("WWW-Authenticate",),
    "403": ("WWW-Authenticate",),
    "429": ("Retry-After",),
    "503": ("Retry-After",),
}

RESPONSES: Final[dict[int | str, dict[str, Any]]] = {_UNDOCUMENTED: {"description": "Never seen."}}
"""Responses of an app, so that FastAPI does not document its own, different 422; `describe` removes them."""

OAUTH2: Final = "oauth2"
"""Name of the security scheme by which a person logs in; scopes belong to it."""
BEARER: Final = "bearer"
"""Name of the security scheme of who has a token already."""


def problems(*kinds: type[errors.Problem]) -> dict[int | str, dict[str, Any]]:
    """Return the responses that say that an operation answers these problems."""
    operation: dict[str, Any] = {"responses": {}}
    add_problems(operation, kinds)
    return {int(status): response for status, response in operation["responses"].items()}


def add_problems(operation: dict[str, Any], kinds: Iterable[type[errors.Problem]]) -> None:
    """Add problems to the responses of an operation; one that is there already is left alone."""
    responses = operation["responses"]
    for kind in kinds:
        response = responses.setdefault(str(kind.status), {"description": "", "content": {}})
        content = response["content"].setdefault(PROBLEM_JSON, {"schema": dict(_SCHEMA), "examples": {}})
        if kind.code not in content["examples"]:
            content["examples"][kind.code] = {"$ref": f"#/components/examples/{kind.code}"}
            known = f"{response['description']}; " if response["description"] else ""
            response["description"] = f"{known}{kind.title} (`{kind.code}`)"


def add_examples(document: dict[str, Any], kinds: Iterable[type[errors.Problem]]) -> None:
    """Add an example of each problem to the components."""
    examples = document.setdefault("components", {}).setdefault("examples", {})
    for kind in kinds:
        entry = errors.catalogue([kind])[0]
        examples[entry.code] = {
            "summary": entry.title,
            "description": entry.description,
            "value": {
                "type": f"/errors#{entry.code}",
                "title": entry.title,
                "status": entry.status,
                "code": entry.code,
                "detail": f"{entry.title}.",
                "request_id": EXAMPLE_REQUEST_ID,
                **kind.example,
            },
        }


def add_headers(document: dict[str, Any], operation: Mapping[str, Any], *more: str) -> None:
    """Add the header fields that every response has to those of an operation, and `more` that are components already."""
    components = document.setdefault("components", {}).setdefault("headers", {})
    for status, response in operation["responses"].items():
        for name in (*_HEADERS_OF_EVERY_RESPONSE, *_HEADERS_BY_STATUS.get(status, ()), *more):
            if name in HEADERS:
                components.setdefault(name, HEADERS[name])
            response.setdefault("headers", {}).setdefault(name, {"$ref": f"#/components/headers/{name}"})


def operations(document: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Return path, method (in lower case) and operation of everything a document describes."""
    for path, item in document.get("paths", {}).items():
        for method in METHODS:
            if method in item:
                yield path, method, item[method]


def describe(app: FastAPI, kinds: Iterable[type[errors.Problem]], scopes: Mapping[str, str]) -> None:
    """Let an app's document say what all of its operations have in common.

    `kinds` are all problems of the service, `scopes` the scopes its operations need, each with what it allows.
    """
    original, kinds = app.openapi, tuple(kinds)

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            _complete(original(), kinds, scopes)
        return cast("dict[str, Any]", app.openapi_schema)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _complete(
    document: dict[str, Any], kinds: tuple[type[errors.Problem], ...], scopes: Mapping[str, str]
) -> None:
    components = document.setdefault("components", {})
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    components.setdefault("schemas", {}).update(schema.pop("$defs"), Problem=schema)
    add_examples(document, kinds)
    _describe_authentication(components.get("securitySchemes", {}), scopes)
    for _, _, operation in operations(document):
        operation["responses"].pop(_UNDOCUMENTED, None)
        if needed := operation.get("security"):
            # Whoever logged in elsewhere has no use for the password flow.
            needed.append({BEARER: []})
        for parameter in operation.get("parameters", ()):
            parameter["schema"] = _without_null(parameter["schema"])
        add_problems(operation, _implied(operation, kinds))
        add_headers(document, operation)
        for status, response in operation["responses"].items():
            if response["description"] == _FRAMEWORKS_WORDS:
                response["description"] = HTTPStatus(int(status)).phrase
        operation["responses"] = dict(sorted(operation["responses"].items()))


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter, which can be left out, but never null."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) != 1:
        return schema
    return {**{key: value for key, value in schema.items() if key != "anyOf"}, **kinds[0]}


def _describe_authentication(schemes: dict[str, Any], scopes: Mapping[str, str]) -> None:
    if OAUTH2 in schemes:
        schemes[OAUTH2]["flows"]["password"]["scopes"] = dict(scopes)
        schemes[BEARER] = {
            "type": "http",
            "scheme": "bearer",
            "bearerFormat": "JWT",
            "description": "An access token, however it was come by.",
        }


def _implied(
    operation: Mapping[str, Any], kinds: tuple[type[errors.Problem], ...]
) -> Iterator[type[errors.Problem]]:
    """Say which problems follow from an operation's shape."""
    if "requestBody" in operation:
        yield from (errors.MalformedBody, errors.BodyTooLarge, errors.UnsupportedMediaType)
    if "requestBody" in operation or "parameters" in operation:
        yield errors.ValidationFailed
    if needed := operation.get("security"):
        yield from (errors.NotAuthenticated, errors.InvalidToken)
        if any(scopes for scheme in needed for scopes in scheme.values()):
            yield errors.InsufficientScope
        yield errors.KeysUnavailable
    if errors.DatabaseUnavailable in kinds and "health" not in operation["tags"]:
        yield errors.DatabaseUnavailable
    yield errors.InternalError
