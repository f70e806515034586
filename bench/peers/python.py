"""Servers of the Python world, on the measured core."""

import sys
from importlib.metadata import version

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench.standin import StandIn
from bench.system import Server, System
from bench.workbench import ROOT


def start_fastapi_httpx(system: System, upstream: StandIn) -> Server:
    """Start the tutorial's gateway with uvicorn's fast parts (uvloop, httptools) and no access log."""
    workbench, port = system.workbench, system.workbench.port()
    public = system.issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    argv = [
        *(sys.executable, "-m", "uvicorn", "bench.peers.fastapi_httpx:app"),
        *(
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--no-access-log",
            "--loop",
            "uvloop",
            "--http",
            "httptools",
        ),
    ]
    env = {
        "UPSTREAM": upstream.url,
        "PUBLIC_KEY": str(workbench.write("issuer.pem", public.decode())),
        "ISSUER": system.issuer.issuer,
        "AUDIENCE": system.issuer.audience,
    }
    process = workbench.start("fastapi-httpx", argv, cores=workbench.cores.subject, port=port, env=env)
    source = (ROOT / "bench/peers/fastapi_httpx.py").read_text()
    versions = ", ".join(f"{name} {version(name)}" for name in ("fastapi", "uvicorn", "httpx", "pyjwt"))
    return Server(
        "fastapi-httpx", f"http://127.0.0.1:{port}", process, f"{versions}\n{' '.join(argv)}\n{source}"
    )
