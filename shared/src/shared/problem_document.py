"""How errors appear in a service's OpenAPI document: one schema, referred to by every operation."""

from typing import Any, cast

from fastapi import FastAPI
from pydantic import BaseModel, Field


class InvalidValue(BaseModel):
    """One value that was refused (only with status 422)."""

    pointer: str | None = Field(None, description="JSON Pointer (RFC 6901) into the body, as a fragment.")
    in_: str | None = Field(None, alias="in", description="Where a parameter stands: path, query or header.")
    parameter: str | None = Field(None, description="Name of the parameter.")
    code: str
    detail: str


class Problem(BaseModel):
    """RFC 9457 problem details. `GET /errors` lists every `code`."""

    type: str = Field(examples=["/errors#item_not_found"])
    title: str
    status: int
    code: str = Field(description="Stable; what programs should look at.", examples=["item_not_found"])
    detail: str
    request_id: str = Field(description="Under which the logs have this request.")
    errors: list[InvalidValue] = Field(default=[], description="The values that were refused.")


def _response(description: str) -> dict[str, Any]:
    reference = {"$ref": "#/components/schemas/Problem"}
    return {"description": description, "content": {"application/problem+json": {"schema": reference}}}


PROBLEM_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": _response("The request was refused; `code` says why."),
    "5XX": _response("The request failed; where Retry-After is given, it may be repeated."),
}
"""Responses of every operation. They also keep FastAPI from documenting its own, different 422."""


def describe_problems(app: FastAPI) -> None:
    """Add the schemas that PROBLEM_RESPONSES refers to to the app's OpenAPI document."""
    original = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = original()
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas.update(problem.pop("$defs"))
            schemas["Problem"] = problem
        return cast("dict[str, Any]", app.openapi_schema)

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it
