"""What stands behind every proxy: nginx in the place of the services, with answers that cost next to nothing."""

import json
from dataclasses import dataclass
from pathlib import Path

from bench.tools import NGINX
from bench.workbench import Workbench

ITEM = json.dumps(
    {
        "id": 1,
        "name": "Brass compass",
        "description": None,
        "price": "19.99",
        "currency": "EUR",
        "owner_id": 7,
        "created_at": "2026-01-01T00:00:00Z",
    },
    separators=(",", ":"),
)
"""140 bytes, about what an item takes."""
SMALL, LARGE, HUGE, ECHO, SINK = (
    "/v1/items/1",
    "/v1/items/100-kib",
    "/v1/items/10-mib",
    "/v1/items/echo",
    "/v1/items",
)
LARGE_BYTES, HUGE_BYTES = 100 * 1024, 10 * 1024 * 1024

SEEN_FIELDS = ("x_forwarded_for", "x_user_id", "x_real_ip", "x_hop", "forwarded", "te")
"""Request fields whose values ECHO answers, as nginx names them."""

_KEYS_PATH = "/.well-known/jwks.json"

_CONFIGURATION = """\
worker_processes 1;
daemon off;
pid {folder}/standin.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    log_format keys '$time_iso8601 $status';
    access_log off;
    default_type application/json;
    keepalive_requests 1000000000;
    keepalive_timeout 75s;
    open_file_cache max=10;
    sendfile on;
    tcp_nopush on;
    client_max_body_size 32m;
    client_body_buffer_size 16m;
    client_body_temp_path {folder}/standin-body;
    proxy_temp_path {folder}/standin-proxy;
    fastcgi_temp_path {folder}/standin-fastcgi;
    uwsgi_temp_path {folder}/standin-uwsgi;
    scgi_temp_path {folder}/standin-scgi;

    # Reading a whole body takes a server behind it that hears of it afterwards.
    upstream received {{ server unix:{folder}/received.sock; keepalive 64; }}
    server {{
        listen unix:{folder}/received.sock;
        location / {{ return 201 '{item}'; }}
    }}

    server {{
{listens}
        location = /health {{ return 200 '{{"status":"ok"}}'; }}
        location = /openapi.json {{ return 200 '{{"openapi":"3.1.0","info":{{"title":"-","version":"1"}},"paths":{{}}}}'; }}
        location = /errors {{ return 200 '[]'; }}
        location = {keys_path} {{ alias {folder}/jwks.json; access_log {folder}/keys.log keys; }}
        location = {small} {{ return 200 '{item}'; }}
        location = {echo} {{ return 200 '{{{seen}}}'; }}
        location = {large} {{ alias {folder}/large.json; }}
        location = {huge} {{ alias {folder}/huge.json; }}
        location = {sink} {{
            proxy_pass http://received;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_pass_request_body off;
            proxy_set_header Content-Length "";
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class StandIn:
    """The running stand-in."""

    url: str
    """The service that has the paths above."""
    keys_log: Path
    """A line for each time somebody fetched the keys."""

    @property
    def keys_url(self) -> str:
        """Where the keys are."""
        return self.url + _KEYS_PATH

    @property
    def key_fetches(self) -> int:
        """How often the keys were fetched."""
        return len(self.keys_log.read_text().splitlines())


def start(workbench: Workbench, keys: str, ports: tuple[int, ...]) -> StandIn:
    """Listen on `ports`, each of them with everything; `keys` is the JWKS document."""
    program = NGINX.path()
    assert program is not None  # the harness has looked  # noqa: S101
    workbench.write("jwks.json", keys)
    workbench.write("large.json", f'"{"x" * (LARGE_BYTES - 2)}"')
    workbench.write("huge.json", f'"{"x" * (HUGE_BYTES - 2)}"')
    log = workbench.write("keys.log", "")
    if workbench.as_root:
        log.chmod(0o666)  # nginx's workers run as another account
    configuration = workbench.write("standin.conf", configure(workbench.folder, ports))
    workbench.start(
        "standin",
        [program, "-c", str(configuration), "-p", str(workbench.folder)],
        cores=workbench.cores.load,
        port=ports[0],
    )
    return StandIn(f"http://127.0.0.1:{ports[0]}", log)


def configure(folder: Path, ports: tuple[int, ...]) -> str:
    """nginx's configuration."""
    return _CONFIGURATION.format(
        folder=folder,
        item=ITEM,
        listens="\n".join(f"        listen 127.0.0.1:{port} backlog=4096;" for port in ports),
        keys_path=_KEYS_PATH,
        small=SMALL,
        large=LARGE,
        huge=HUGE,
        echo=ECHO,
        sink=SINK,
        seen=",".join(f'"{name}":"$http_{name}"' for name in SEEN_FIELDS),
    )
