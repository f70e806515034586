"""Options, credentials and what is looked at before anything starts."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shared.testing import free_port
from stack import credentials, preflight, probes
from stack.errors import StackError
from stack.services import TOLLHOUSE, environment
from stack.settings import StackSettings, help_text

ROOT = Path(__file__).parents[3]
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs another account")


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("GATEWAY_PORT=9000\nPORT_OFFSET=7\nITEMS_COLOUR=red\n")
    options = StackSettings.load({"GATEWAY_PORT": "9001"}, tmp_path)
    assert options.gateway_url == "http://127.0.0.1:9008"
    assert options.data_dir == tmp_path / ".data"
    assert options.handed_on["ITEMS_COLOUR"] == "red"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"GATEWAY_PORT": "many"}, r"GATEWAY_PORT=many: .*integer"),
        ({"PORT_OFFSET": "60000"}, "out of the range"),
        ({"PORT_OFFSET": "-8000"}, "out of the range"),
        ({"GATEWAY_PORT": "8001"}, "GATEWAY_PORT 8001 is the port of another part"),
        (
            {"GATEWAY_METRICS_PORT": "8000"},
            "GATEWAY_METRICS_PORT 8000 is the port of another part",
        ),
        ({"WORKERS": "0"}, "WORKERS=0: .*greater than or equal to 1"),
        ({"LOG_FORMAT": "xml"}, "LOG_FORMAT=xml: "),
    ],
)
def test_a_bad_option_is_named_with_its_value(
    variables: dict[str, str], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(StackError, match=sentence):
        StackSettings.load(variables, tmp_path)


def test_the_example_file_and_the_help_list_every_option_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text()
    shown = subprocess.run(
        [sys.executable, "-m", "stack", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for line in help_text().splitlines():
        if "=" in line:
            assert f"# {line.strip()}\n" in example
        assert line in shown


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("::1", "http://[::1]:8000"),
        ("192.0.2.1", "http://192.0.2.1:8000"),
    ],
)
def test_an_address_for_everybody_is_reached_on_loopback(host: str, url: str, tmp_path: Path) -> None:
    assert StackSettings.load({"GATEWAY_BIND_HOST": host}, tmp_path).gateway_url == url


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::", "0.0.0.0"])
async def test_the_probe_finds_a_gateway_on_any_address(host: str) -> None:
    asked = []

    async def ready(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    port = free_port()
    async with await asyncio.start_server(ready, host, port):
        assert await probes.http_ready(host, port)()
    authority = f"[::1]:{port}" if ":" in host else f"127.0.0.1:{port}"
    assert f"\r\nHost: {authority}\r\n".encode() in asked[0]


@pytest.mark.parametrize(
    ("variables", "port"),
    [
        ({}, "8090"),
        ({"PORT_OFFSET": "7"}, "8097"),
        ({"GATEWAY_METRICS_PORT": "9100"}, "9100"),
        ({"GATEWAY_METRICS_PORT": "0"}, ""),
    ],
)
def test_the_gateway_is_told_where_to_answer_for_metrics(
    variables: dict[str, str], port: str, tmp_path: Path
) -> None:
    options = StackSettings.load(variables, tmp_path)
    passwords = {f"nats.{service.name}": "" for service in TOLLHOUSE.services}
    told = environment(TOLLHOUSE.services[-1], TOLLHOUSE, options, passwords, None)
    assert told["GATEWAY_METRICS_PORT"] == port
    assert options.metrics_url == (f"http://127.0.0.1:{port}/metrics" if port else None)


def test_credentials_are_made_once_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    first = credentials.load(path, {"a": credentials.password, "key": credentials.encryption_key})
    second = credentials.load(path, {"a": credentials.password, "b": credentials.password})
    assert second["a"] == first["a"]
    assert second["b"] != first["a"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert credentials.load(path, {"key": credentials.encryption_key})["key"] == first["key"]


@pytest.mark.parametrize("damage", ["", "[]", '{"a": 1}', "{"])
def test_damaged_credentials_are_never_replaced(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "credentials.json"
    path.write_text(damage)
    with pytest.raises(StackError, match="is damaged"):
        credentials.load(path, {"a": credentials.password})
    assert path.read_text() == damage


def test_a_folder_is_claimed_once(tmp_path: Path) -> None:
    with (
        preflight.claimed(tmp_path / "data"),
        pytest.raises(StackError, match=f"Another stack \\(pid {os.getpid()}\\) uses"),
        preflight.claimed(tmp_path / "data"),
    ):
        pass
    with preflight.claimed(tmp_path / "data"):
        pass
    assert not list((tmp_path / "data" / "run").iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StackError, match=r"file/data cannot be used: Not a directory\."),
        preflight.claimed(tmp_path / "file/data"),
    ):
        pass


@ROOT_ONLY
def test_root_does_not_lock_an_owner_out_of_his_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 65534, 65534)
    with pytest.raises(StackError, match="run as its owner"), preflight.claimed(tmp_path / "data"):
        pass


def test_a_busy_port_is_named_with_its_owner_and_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port()))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            StackError, match=rf"Port {port} \(gateway\) is in use by .* \(pid {os.getpid()}\).*GATEWAY_PORT"
        ):
            preflight.check_ports({"gateway": ("127.0.0.1", port)})
    preflight.check_ports({"gateway": ("127.0.0.1", port)})


def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(StackError, match=r"192\.0\.2\.1:8000 \(gateway\) cannot be listened on"):
        preflight.check_ports({"gateway": ("192.0.2.1", 8000)})
