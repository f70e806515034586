"""The route table: what is refused, which route and which policy holds."""

from pathlib import Path

import pytest

from gateway.routes import Route, Routes, RouteTable, RouteTableError, load

PLAIN = "must be like /v1/items: plain, no trailing slash, no dot segments"
TABLE = """\
[upstreams.a]
url = "http://a.example:8080"

[[routes]]
prefix = "/v1/a"
upstream = "a"

[[routes]]
prefix = "/v1/b"
upstream = "a"

[[routes.rules]]
paths = [""]
auth = "optional"
"""


def test_the_shipped_table_is_good() -> None:
    table = load()
    assert {route.prefix for route in table.routes} >= {
        "/v1/users",
        "/v1/items",
        "/v2/items",
        "/v1/notifications",
        "/v1/ws",
    }


@pytest.mark.parametrize(
    ("change", "by", "line", "reason"),
    [
        ('"http://a.example:8080"', '"https://a"', 2, "must be http://host:port"),
        ('"http://a.example:8080"', '"http://a/path"', 2, "must be http://host:port"),
        ('"http://a.example:8080"', '"http://a:99999"', 2, "Port out of range 0-65535"),
        ('"http://a.example:8080"', '"http://a:0"', 2, "Port out of range 1-65535"),
        ('"http://a.example:8080"', '"http://a b"', 2, "must be http://host:port"),
        ('"http://a.example:8080"', r'"http://a\r\nX: b"', 2, "must be http://host:port"),
        ('url = "http', 'colour = "red"\nurl = "http', 2, "Extra inputs are not permitted"),
        ('url = "http://a.example:8080"', "max_queue = 1", 1, "Field required"),
        (
            'prefix = "/v1/b"',
            'prefix = "/v1/b/"',
            9,
            "must be like /v1/items: plain, no trailing slash, no dot segments",
        ),
        (
            'prefix = "/v1/b"',
            'prefix = "v1"',
            9,
            "must be like /v1/items: plain, no trailing slash, no dot segments",
        ),
        (
            'prefix = "/v1/b"',
            'prefix = "/v1/../b"',
            9,
            "must be like /v1/items: plain, no trailing slash, no dot segments",
        ),
        ('prefix = "/v1/b"', 'prefix = "/v1/b c"', 9, PLAIN),
        ('prefix = "/v1/b"', 'prefix = "/v1/%62"', 9, PLAIN),
        ('prefix = "/v1/b"', 'prefix = "/v1/b?c"', 9, PLAIN),
        ('prefix = "/v1/b"', 'prefix = "/docs/b"', 9, "the gateway itself answers /docs/b"),
        ('prefix = "/v1/b"', 'prefix = "/v1/a"', 9, "there is another route for /v1/a"),
        (
            'prefix = "/v1/b"\nupstream = "a"',
            'prefix = "/v1/b"\nupstream = "c"',
            10,
            "there is no upstream 'c'",
        ),
        ('auth = "optional"', 'auth = "perhaps"', 14, "Input should be 'required', 'optional' or 'none'"),
        ('auth = "optional"', 'auth = "optional"\nscopes = ["x"]', 8, "scopes need auth = required"),
        (
            'paths = [""]',
            'paths = ["x"]',
            13,
            "must be like /v1/items: plain, no trailing slash, no dot segments",
        ),
    ],
)
def test_mistake_is_told_with_its_line_and_reason(
    tmp_path: Path, change: str, by: str, line: int, reason: str
) -> None:
    path = tmp_path / "routes.toml"
    assert change in TABLE
    path.write_text(TABLE.replace(change, by))
    with pytest.raises(RouteTableError) as caught:
        load(path)
    (sentence,) = caught.value.args
    assert sentence.startswith(f"{path}, line {line}: ")
    assert sentence.endswith(f": {reason}.")


def test_rule_that_never_holds_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(TABLE + '\n[[routes.rules]]\npaths = [""]\nmethods = ["GET"]\nauth = "none"\n')
    with pytest.raises(RouteTableError, match=r"line 17: .*: the rules above leave nothing to this one\."):
        load(path)


def test_mistake_in_a_setting_names_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(TABLE)
    with pytest.raises(
        RouteTableError, match=r"^GATEWAY_A_URL: upstreams\.a\.url: must be http://host:port\."
    ):
        load(path, urls={"a": "ftp://a"})
    with pytest.raises(RouteTableError, match=r"^GATEWAY_LIMITS: limits\.default\.qota: "):
        load(path, limits={"default": {"qota": 1}})


@pytest.mark.parametrize(
    "text",
    [
        "[[routes",
        "",
        "routes = []\n[upstreams]\n",
        "upstreams = 3",
        '[upstreams]\na = "http://a"\n',
        "limits = 3",
        "[limits]\ndefault = 3",
        "[[limits]]\nquota = 1",
    ],
)
def test_table_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(text)
    with pytest.raises(RouteTableError, match=r"routes\.toml"):
        load(path, urls={"a": "http://b"}, limits={"default": {"quota": 1}})


def test_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RouteTableError, match="No such file"):
        load(tmp_path / "none.toml")


def test_limits_can_be_raised_one_value_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "routes.toml"
    path.write_text(TABLE)
    assert load(path).limits["default"].model_dump(include={"quota", "window"}) == {"quota": 400, "window": 2}
    raised = load(path, limits={"default": {"quota": 9000}, "other": {"quota": 1, "window": 1}}).limits
    assert raised["default"].model_dump(include={"quota", "window"}) == {"quota": 9000, "window": 2}
    assert raised["other"].quota == 1
    path.write_text(TABLE.replace('prefix = "/v1/b"', 'prefix = "/v1/b"\nlimit = "none"'))
    with pytest.raises(RouteTableError, match=r"line 10: routes\.1\.limit: there is no limit 'none'"):
        load(path)


def routes(*prefixes: str) -> Routes:
    table = {
        "upstreams": {"a": {"url": "http://a"}},
        "limits": {"default": {"quota": 1, "window": 1}},
        "routes": [{"prefix": prefix, "upstream": "a"} for prefix in prefixes],
    }
    return Routes(RouteTable.model_validate(table))


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        (b"/v1/a", b"/v1/a"),
        (b"/v1/a/x/y/z", b"/v1/a"),
        (b"/v1/a/deep", b"/v1/a/deep"),
        (b"/v1/a/deep/x", b"/v1/a/deep"),
        (b"/v1/a/deeper", b"/v1/a"),
        (b"/v1/ab", None),
        (b"/v1", None),
        (b"/", None),
        (b"*", None),
        (b"/v2/a", None),
        (b"/x/v1/a", None),
        (b"/a" * 5000, None),
    ],
)
def test_longest_prefix_that_ends_with_a_segment_wins(path: bytes, prefix: bytes | None) -> None:
    found = routes("/v1/a", "/v1/a/deep", "/top").find(path)
    assert (found.prefix if found else None) == prefix


def shipped(path: bytes) -> Route:
    route = Routes(load()).find(path)
    assert route is not None
    return route


@pytest.mark.parametrize(
    ("method", "path", "auth"),
    [
        (b"GET", b"/v1/items", "optional"),
        (b"HEAD", b"/v1/items/3", "optional"),
        (b"GET", b"/v2/items/3", "optional"),
        (b"POST", b"/v1/items", "required"),
        (b"DELETE", b"/v1/items/3", "required"),
        (b"POST", b"/v1/users", "optional"),
        (b"GET", b"/v1/users", "required"),
        (b"POST", b"/v1/users/token", "none"),
        (b"POST", b"/v1/users/token/revoke", "none"),
        (b"GET", b"/v1/users/token", "required"),
        (b"POST", b"/v1/users/tokens", "required"),
        (b"GET", b"/v1/users/me", "required"),
        (b"POST", b"/v1/users/password-reset/confirm", "optional"),
        (b"POST", b"/v1/users/verify-email", "optional"),
        (b"GET", b"/v1/notifications", "required"),
        (b"POST", b"/v1/notifications/email", "required"),
        (b"GET", b"/v1/events", "required"),
        (b"GET", b"/v1/ws", "optional"),
        (b"GET", b"/v1/ws/echo", "none"),
        (b"GET", b"/ws/echo", "none"),
        (b"GET", b"/.well-known/jwks.json", "none"),
    ],
)
def test_policy_of_the_shipped_operations(method: bytes, path: bytes, auth: str) -> None:
    assert shipped(path).policy(method, path).auth == auth
