"""nginx as a plain reverse proxy, without tokens, limits or logs: the limit of what a proxy on this core could do."""

from pathlib import Path

from bench.standin import StandIn
from bench.system import Server, System
from bench.tools import NGINX

_CONFIGURATION = """\
worker_processes 1;
daemon off;
pid {folder}/proxy.pid;
error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    client_max_body_size 32m;
    client_body_temp_path {folder}/proxy-body;
    proxy_temp_path {folder}/proxy-proxy;
    fastcgi_temp_path {folder}/proxy-fastcgi;
    uwsgi_temp_path {folder}/proxy-uwsgi;
    scgi_temp_path {folder}/proxy-scgi;
    upstream items {{ server {upstream}; keepalive 1024; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{
            proxy_pass http://items;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_buffers 8 32k;
            proxy_busy_buffers_size 64k;
            proxy_max_temp_file_size 0;
            proxy_request_buffering off;
        }}
    }}
}}
"""


def start(system: System, upstream: StandIn) -> Server:
    """Start nginx on the measured core before the same service."""
    workbench, port = system.workbench, system.workbench.port()
    text = configure(workbench.folder, port, upstream.url.removeprefix("http://"))
    path = workbench.write("proxy.conf", text)
    argv = [str(NGINX.path()), "-c", str(path), "-p", str(workbench.folder)]
    process = workbench.start("nginx", argv, cores=workbench.cores.subject, port=port)
    return Server("nginx", f"http://127.0.0.1:{port}", process, text)


def configure(folder: Path, port: int, upstream: str) -> str:
    """nginx's configuration."""
    return _CONFIGURATION.format(folder=folder, port=port, upstream=upstream)
