"""Gateways of the Node world: Fastify with its own plugins, and Express as tutorials have it."""

import shutil
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bench.standin import StandIn
from bench.system import Server, System
from bench.tools import NODE, NPM
from bench.workbench import ROOT, Process, Workbench

FOLDER = ROOT / "bench/peers"
INSTALL_TIMEOUT = 300.0


def start_gateway(system: System, upstream: StandIn, name: str) -> Server:
    """Start `peers/<name>/server.js` on the measured core, before the same service, trusting the same issuer."""
    workbench, port = system.workbench, system.workbench.port()
    public = system.issuer.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    env = {
        "UPSTREAM": upstream.url,
        "PUBLIC_KEY": str(workbench.write("issuer.pem", public.decode())),
        "ISSUER": system.issuer.issuer,
        "AUDIENCE": system.issuer.audience,
    }
    process = start(workbench, name, port, env)
    return Server(name, f"http://127.0.0.1:{port}", process, describe(workbench, name))


def start(
    workbench: Workbench, name: str, port: int, env: dict[str, str], *, title: str | None = None
) -> Process:
    """Install the packages of `peers/<name>` where they are missing, and start its server on the measured core."""
    folder = install(workbench, name)
    return workbench.start(
        title or name,
        [str(NODE.path()), "server.js"],
        cores=workbench.cores.subject,
        port=port,
        env={"NODE_ENV": "production", "PORT": str(port), **env},
        cwd=folder,
    )


def install(workbench: Workbench, name: str) -> Path:
    """Install exactly what the lock file names; returns the folder."""
    folder = FOLDER / name
    lock, done = folder / "package-lock.json", folder / "node_modules" / ".installed"
    if not done.exists() or done.read_text() != lock.read_text():
        shutil.rmtree(folder / "node_modules", ignore_errors=True)
        workbench.run(
            [str(NPM.path()), "ci", "--no-audit", "--no-fund", "--prefix", str(folder)],
            timeout=INSTALL_TIMEOUT,
        )
        done.write_text(lock.read_text())
    return folder


def describe(workbench: Workbench, name: str) -> str:
    """What is run: the version of Node, the packages, the program."""
    version = workbench.run([str(NODE.path()), "--version"], timeout=10).strip()
    folder = FOLDER / name
    return f"node {version}, NODE_ENV=production\n{(folder / 'package.json').read_text()}\n{(folder / 'server.js').read_text()}"
