"""docs/gateway.md says what the code does."""

import re
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from gateway.app import PROBLEMS
from gateway.limits import LimitSettings
from gateway.routes import RouteSettings, RouteTable, Rule, UpstreamSettings
from gateway.settings import GatewaySettings
from gateway.testing import Gateway
from shared.settings import Settings

TEXT = (Path(__file__).parents[2] / "docs" / "gateway.md").read_text()
SOURCES = Path(__file__).parents[1] / "src" / "gateway"
UNITS = {"": 1, "s": 1, "bytes": 1, "KiB": 1024, "MiB": 1024**2}
NOT_OURS = {"body_malformed", "unsupported_media_type", "validation_failed"}
"""Every service has these in common, but the gateway reads no bodies."""


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading or a table's own head."""
    table = TEXT[TEXT.index(heading) :].partition("|---")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_every_problem_is_there_with_its_status() -> None:
    told = {(int(status), code) for status, cell, _ in rows("## Problems") for code in named(cell)}
    assert told == {(problem.status, problem.code) for problem in PROBLEMS if problem.code not in NOT_OURS}


@pytest.mark.parametrize(
    ("head", "model"),
    [
        ("| key of a route", RouteSettings),
        ("| key of an upstream", UpstreamSettings),
        ("| key of a limit", LimitSettings),
    ],
)
def test_every_key_of_the_table_is_there_with_its_default(head: str, model: type[BaseModel]) -> None:
    told = {
        name: default
        for names, *cells in rows(head)
        for name, default in zip(named(names), [*cells[0].split(", "), *[""] * 3], strict=False)
    }
    assert set(told) == set(model.model_fields) - {"rules", "url"}
    for name, text in told.items():
        default = model.model_fields[name].default
        number = _number(text.strip("`"))
        if isinstance(default, (int, float)) and not isinstance(default, bool) and number is not None:
            assert number == default, name
    assert set(Rule.model_fields) == {"paths", "methods", "auth", "scopes", "limit"}  # told with `auth`


def test_every_setting_is_there() -> None:
    told = {name for names, *_ in rows("## Settings") for name in named(names)}
    own = {f"GATEWAY_{name.upper()}" for name in GatewaySettings.model_fields}
    common = {name.upper() for name in Settings.model_fields}
    assert told <= own | common
    for name in GatewaySettings.model_fields:
        assert told & {name.upper(), f"GATEWAY_{name.upper()}"}, name


def _number(text: str) -> float | None:
    match = re.fullmatch(r"([0-9. \u00a0]+?) ?(s|bytes|KiB|MiB|)", text)
    return float(match[1].replace(" ", "")) * UNITS[match[2]] if match else None


def test_every_bound_has_the_value_that_is_told() -> None:
    for text, value, where in rows("## Bounds"):
        module, *path = named(where)[0].split(".")
        package = "gateway" if (SOURCES / f"{module}.py").exists() and module != "edge" else "shared"
        found: Any = import_module(f"{package}.{module}")
        for part in path:
            found = getattr(found() if isinstance(found, type) else found, part)
        assert _number(value) == found, text


def _bounds() -> Iterator[str]:
    for source in SOURCES.glob("*.py"):
        for name in re.findall(r"^([A-Z][A-Z_]+)(?:: Final)? = [0-9]", source.read_text(), re.MULTILINE):
            yield f"{source.stem}.{name}"


def test_every_bound_is_there() -> None:
    told = {named(where)[0] for _, _, where in rows("## Bounds")}
    assert set(_bounds()) <= told


async def test_every_metric_is_there(gateway: Gateway) -> None:
    async with gateway.connect() as raw:
        await raw.send(b"GET /open HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET /open// HTTP/1.1\r\nHost: a\r\n\r\n")
        assert [(await raw.response()).status for _ in range(2)] == [200, 400]
    counted = {cell.family for cell in gateway.app.state.proxy.meters.metrics._indexes} - {""}
    told = {
        name.replace("…", "gateway_upstream_connections")
        for names, *_ in rows("## Metrics")
        for name in named(names)
    }
    assert counted <= told
    source = "".join(path.read_text() for path in SOURCES.glob("*.py"))
    for name in told:
        assert name in counted or f'"{name}"' in source, name


def test_the_example_is_a_good_table() -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)
    table = RouteTable.model_validate({"limits": {}, **tomllib.loads(example)})
    assert table.routes[0].rules[0].auth == "optional"


def test_every_module_that_is_named_exists() -> None:
    files = set(re.findall(r"`(?:shared/)?([a-z_]+\.py)`", TEXT))
    assert files
    shared = Path(import_module("shared").__file__ or "").parent
    assert all((SOURCES / name).exists() or (shared / name).exists() for name in files)
