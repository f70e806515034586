"""RFC 9457 problem details: every error is a class with a stable code, rendered in one place."""

from collections.abc import Iterable, Mapping
from inspect import cleandoc
from typing import Any, ClassVar, NamedTuple

import orjson

PROBLEM_JSON = "application/problem+json"


class Problem(Exception):
    """An error with a status, a stable code and a title. The docstring of a subclass is its catalogue entry."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"
    example: ClassVar[Mapping[str, Any]] = {}
    """Members of the example in the OpenAPI document that are not as in any problem."""

    def __init__(
        self,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        errors: list[dict[str, str]] | None = None,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail or self.title)
        self.detail = detail
        self.headers = dict(headers or {})
        self.errors = errors
        self.extra = dict(extra or {})

    def body(self, request_id: str) -> bytes:
        """Return the problem+json document (API.md, RFC 9457 section 3)."""
        return problem_body(
            status=self.status,
            code=self.code,
            title=self.title,
            detail=self.detail,
            request_id=request_id,
            errors=self.errors,
            extra=self.extra,
        )


def problem_body(
    *,
    status: int,
    code: str,
    title: str,
    request_id: str,
    detail: str | None = None,
    errors: list[dict[str, str]] | None = None,
    extra: Mapping[str, str] | None = None,
) -> bytes:
    """Render a problem document; `type` points into the catalogue at `GET /errors`."""
    document: dict[str, Any] = {
        "type": f"/errors#{code}",
        "title": title,
        "status": status,
        "code": code,
        "detail": detail or f"{title}.",
        "request_id": request_id,
        **(extra or {}),
    }
    if errors is not None:
        document["errors"] = errors
    return orjson.dumps(document)


class CatalogueEntry(NamedTuple):
    """One line of `GET /errors`."""

    code: str
    title: str
    status: int
    description: str


def catalogue(problems: Iterable[type[Problem]]) -> list[CatalogueEntry]:
    """Describe the problems, ordered by code, each code once.

    Raises:
        ValueError: two different problems share a code.
    """
    entries: dict[str, CatalogueEntry] = {}
    for problem in problems:
        description = " ".join(cleandoc(problem.__doc__ or problem.title).split())
        entry = CatalogueEntry(problem.code, problem.title, problem.status, description)
        if entries.setdefault(problem.code, entry) != entry:
            raise ValueError(f"two problems share the code {problem.code!r}")
    return [entries[code] for code in sorted(entries)]


class StartupRefused(RuntimeError):
    """The process cannot start as it is configured; the message is one sentence for whoever started it."""


class InternalError(Problem):
    """Something failed that should not. Report it with the request id."""


class MalformedBody(Problem):
    """The body is not what its Content-Type says: broken JSON, invalid UTF-8, nesting without end."""

    status = 400
    code = "body_malformed"
    title = "Malformed body"


class NotAuthenticated(Problem):
    """The request needs an access token and has none."""

    status = 401
    code = "not_authenticated"
    title = "Not authenticated"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class InvalidToken(Problem):
    """The access token is malformed, expired, revoked, or not signed by an issuer that is trusted here."""

    status = 401
    code = "invalid_token"
    title = "Invalid token"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


class InsufficientScope(Problem):
    """The access token is good but lacks a scope that the operation needs."""

    status = 403
    code = "insufficient_scope"
    title = "Insufficient scope"

    def __init__(self, scope: str) -> None:
        super().__init__(
            f"This needs the scope {scope}.",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scope}"'},
        )


class RouteNotFound(Problem):
    """No operation has this path."""

    status = 404
    code = "route_not_found"
    title = "Route not found"


class MethodNotAllowed(Problem):
    """The path exists, but not with this method; the Allow header lists the methods it has."""

    status = 405
    code = "method_not_allowed"
    title = "Method not allowed"


class BodyTooLarge(Problem):
    """The request body is larger than the operation accepts."""

    status = 413
    code = "body_too_large"
    title = "Body too large"


class UnsupportedMediaType(Problem):
    """The body is not declared as JSON (or as a form, where the operation takes one)."""

    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class ValidationFailed(Problem):
    """Some values are missing or out of range; `errors` names each one."""

    status = 422
    code = "validation_failed"
    title = "Validation failed"
    example: ClassVar[Mapping[str, Any]] = {
        "detail": "price: Input should be greater than 0",
        "errors": [
            {"pointer": "#/price", "code": "greater_than", "detail": "Input should be greater than 0"}
        ],
    }


class KeysUnavailable(Problem):
    """No signing keys could be fetched yet, so tokens cannot be judged. Try again."""

    status = 503
    code = "keys_unavailable"
    title = "Keys unavailable"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class DatabaseUnavailable(Problem):
    """The database cannot be reached or is too busy. Nothing was changed. Try again."""

    status = 503
    code = "database_unavailable"
    title = "Database unavailable"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


class NotReady(Problem):
    """The process is starting, draining, or lacks something it cannot serve without."""

    status = 503
    code = "not_ready"
    title = "Not ready"

    def __init__(self, detail: str | None = None) -> None:
        super().__init__(detail, headers={"Retry-After": "1"})


COMMON_PROBLEMS: tuple[type[Problem], ...] = (
    InternalError,
    MalformedBody,
    NotAuthenticated,
    InvalidToken,
    InsufficientScope,
    RouteNotFound,
    MethodNotAllowed,
    BodyTooLarge,
    UnsupportedMediaType,
    ValidationFailed,
    KeysUnavailable,
    NotReady,
)
"""Problems any service may answer; DatabaseUnavailable comes with a database."""
