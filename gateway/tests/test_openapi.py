"""One document out of those of the services: what a client developer may rely on."""

from typing import Any

import pytest

from gateway import openapi
from gateway.methods import Methods
from gateway.routes import Routes, RouteTable
from shared.errors import InternalError, catalogue

OWN: dict[str, Any] = {
    "openapi": "3.1.0",
    "paths": {"/": {"get": {"operationId": "read_welcome", "tags": ["own"], "responses": {"200": {}}}}},
    "tags": [{"name": "own", "description": "Own."}],
}


@pytest.fixture
def routes() -> Routes:
    return Routes(
        RouteTable.model_validate(
            {
                "limits": {"default": {"quota": 1, "window": 1}},
                "upstreams": {"a": {"url": "http://a"}},
                "routes": [
                    {"prefix": "/open", "upstream": "a", "auth": "none", "methods": ["GET"]},
                    {"prefix": "/optional", "upstream": "a", "auth": "optional"},
                    {"prefix": "/closed", "upstream": "a", "scopes": ["things:admin"]},
                ],
            }
        )
    )


def operation(name: str, **more: Any) -> dict[str, Any]:
    return {"operationId": name, "tags": ["things"], "responses": {"200": {"description": "OK"}}, **more}


def returning(schema: str) -> dict[str, Any]:
    """The responses of an operation that returns a component."""
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"200": {"description": "OK", "content": content}}


def returned(merged: dict[str, Any], path: str) -> dict[str, Any]:
    """The component that an operation of a merged document returns."""
    schema = merged["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    found: dict[str, Any] = merged["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return found


def test_components_that_collide_are_kept_apart(routes: Routes) -> None:
    def service(path: str, part: str) -> dict[str, Any]:
        return {
            "paths": {path: {"get": operation("list_things", responses=returning("Whole"))}},
            "components": {
                "schemas": {
                    # The same text in both services, and yet another meaning: its part differs.
                    "Whole": {"properties": {"part": {"$ref": "#/components/schemas/Part"}}},
                    "Part": {"type": part},
                    "Same": {"type": "object"},
                }
            },
        }

    merged = openapi.merge(
        OWN,
        {"first": service("/open/a", "string"), "second": service("/open/b", "integer")},
        routes=routes,
    )

    for path, kind in (("/open/a", "string"), ("/open/b", "integer")):
        part = returned(merged, path)["properties"]["part"]["$ref"].rpartition("/")[2]
        assert merged["components"]["schemas"][part] == {"type": kind}
    assert set(merged["components"]["schemas"]) == {"Whole", "Part", "SecondWhole", "SecondPart"}


def test_operation_ids_are_unique_also_where_links_name_them(routes: Routes) -> None:
    linked = {"201": {"description": "Created", "links": {"read": {"operationId": "read_thing"}}}}
    paths = {"/open/b": {"get": operation("read_thing"), "post": operation("make_thing", responses=linked)}}
    closed = {path.replace("open", "closed"): item for path, item in paths.items()}
    merged = openapi.merge(
        OWN,
        {"first": {"paths": {"/open/a": {"get": operation("read_thing")}}}, "second": {"paths": closed}},
        routes=routes,
    )
    made = merged["paths"]["/closed/b"]["post"]
    assert merged["paths"]["/closed/b"]["get"]["operationId"] == "second_read_thing"
    assert made["responses"]["201"]["links"]["read"]["operationId"] == "second_read_thing"


def test_what_no_route_leads_to_is_left_out(routes: Routes) -> None:
    paths = {
        "/open/things": {"get": operation("list_things"), "post": operation("make_thing")},
        "/open/made": {"post": operation("make_other")},
        "/internal": {"get": operation("internal")},
        "/": {"get": operation("welcome")},
    }
    merged = openapi.merge(OWN, {"first": {"paths": paths}}, routes=routes)
    assert set(merged["paths"]) == {"/", "/open/things"}
    assert set(merged["paths"]["/open/things"]) == {"get"}
    assert merged["paths"]["/"]["get"]["operationId"] == "read_welcome"


def codes(merged: dict[str, Any], path: str, method: str = "get") -> dict[str, set[str]]:
    """The problem codes of an operation, by status."""
    found = {}
    shared = merged["components"]["responses"]
    for status, said in merged["paths"][path][method]["responses"].items():
        response = shared[said["$ref"].rpartition("/")[2]] if "$ref" in said else said
        if status >= "400":
            found[status] = set(response["content"]["application/problem+json"]["examples"])
    return found


def test_each_operation_says_what_the_gateway_itself_may_answer(routes: Routes) -> None:
    paths = {
        "/open/things": {"get": operation("list_things")},
        "/optional/{id}": {"put": operation("put_thing", requestBody={})},
        "/closed/things": {"get": operation("admin_things")},
    }
    merged = openapi.merge(OWN, {"first": {"paths": paths}}, routes=routes)

    always = {
        "400": {"malformed_request", "host_invalid"},
        "431": {"headers_too_large"},
        "429": {"rate_limited"},
        "502": {"upstream_failed"},
        "503": {"upstream_unavailable", "upstream_overloaded"},
        "504": {"upstream_timeout"},
    }
    verified = {**always, "503": {*always["503"], "keys_unavailable"}}
    assert codes(merged, "/") == {status: always[status] for status in ("400", "431")}
    assert codes(merged, "/open/things") == always
    assert codes(merged, "/optional/{id}", "put") == {
        **verified,
        "400": {*always["400"], "path_ambiguous"},
        "401": {"invalid_token"},
        "405": {"method_not_allowed"},
        "413": {"body_too_large"},
    }
    assert codes(merged, "/closed/things") == {
        **verified,
        "401": {"not_authenticated", "invalid_token"},
        "403": {"insufficient_scope"},
    }
    limited = merged["components"]["responses"]["TooManyRequests"]["headers"]
    assert {"X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy"} <= set(limited)


def test_problems_of_the_service_and_of_the_gateway_stand_side_by_side(routes: Routes) -> None:
    own = {"examples": {"hashing_busy": {"$ref": "#/components/examples/hashing_busy"}}}
    responses = {
        "503": {"description": "Busy (`hashing_busy`)", "content": {"application/problem+json": own}}
    }
    service = {
        "paths": {"/open/things": {"get": operation("list_things", responses=responses)}},
        "components": {"examples": {"hashing_busy": {}, "never_used": {}}},
    }
    merged = openapi.merge(OWN, {"first": service}, routes=routes)
    assert codes(merged, "/open/things")["503"] == {
        "hashing_busy",
        "upstream_unavailable",
        "upstream_overloaded",
    }
    assert "hashing_busy" in merged["components"]["examples"]
    assert "never_used" not in merged["components"]["examples"]
    assert "upstream_unavailable" not in str(service), "the service's own document is left as it was"


def test_scopes_of_all_services_belong_to_one_login(routes: Routes) -> None:
    def service(scope: str) -> dict[str, Any]:
        flows = {"password": {"tokenUrl": "/v1/users/token", "scopes": {scope: f"Do {scope}."}}}
        return {
            "paths": {f"/open/{scope}": {"get": operation(scope, security=[{"oauth2": [scope]}])}},
            "components": {"securitySchemes": {"oauth2": {"type": "oauth2", "flows": flows}}},
        }

    merged = openapi.merge(OWN, {"first": service("a"), "second": service("b")}, routes=routes)
    flow = merged["components"]["securitySchemes"]["oauth2"]["flows"]["password"]
    assert flow == {"tokenUrl": "/v1/users/token", "scopes": {"a": "Do a.", "b": "Do b."}}
    assert merged["paths"]["/open/b"]["get"]["security"] == [{"oauth2": ["b"]}]
    assert merged["paths"]["/"]["get"]["security"] == []


def test_tags_are_described_once_and_the_gateways_come_last(routes: Routes) -> None:
    tags = [{"name": "things", "description": "Things."}, {"name": "unused", "description": "None."}]
    services = {
        name: {"paths": {f"/open/{name}": {"get": operation(name)}}, "tags": tags} for name in ("a", "b")
    }
    merged = openapi.merge(OWN, services, routes=routes)
    assert [tag["name"] for tag in merged["tags"]] == ["things", "own"]


def test_a_service_that_is_away_is_marked(routes: Routes) -> None:
    services = {name: {"paths": {f"/open/{name}": {"get": operation(name)}}} for name in ("a", "b")}
    merged = openapi.merge(OWN, services, routes=routes, stale=["b"])
    assert merged["x-tollhouse-stale"] == ["b"]
    assert "x-tollhouse-stale" not in merged["paths"]["/open/a"]["get"]
    assert merged["paths"]["/open/b"]["get"]["x-tollhouse-stale"] is True


@pytest.mark.parametrize(
    ("path", "allow"),
    [
        (b"/things", "GET, HEAD, POST, OPTIONS"),
        (b"/things/7", "PUT, DELETE, OPTIONS"),
        (b"/things/mine", "GET, HEAD, OPTIONS"),
        (b"/things/7/parts", None),
        (b"/thingsx7", None),
    ],
)
def test_allow_names_the_methods_of_the_path(path: bytes, allow: str | None) -> None:
    paths = {
        "/things": {"get": {}, "post": {}, "description": "not a method"},
        "/things/{id}": {"put": {}, "delete": {}},
        "/things/mine": {"get": {}},
    }
    assert Methods({"paths": paths}).allow(path) == allow


def test_catalogues_are_ordered_and_each_code_stands_once() -> None:
    merged = openapi.merge_catalogues(catalogue([InternalError]), [[{"code": "a"}], [{"code": "a", "x": 1}]])
    assert [entry["code"] for entry in merged] == ["a", "internal_error"]
    assert merged[0] == {"code": "a"}
