"""docker-compose.yml, brought up by podman alone: in its order, with its networks, secrets, rights and health checks.

podman-compose cannot wait for health with the podman of Debian 12, and its networks have no names. So this reads the file, gives
every container an address in each of its networks, and writes the names of its neighbours into its /etc/hosts.
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[3]
COMPOSE = ROOT / "docker-compose.yml"
RUN = ("--runtime", "runc")
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
HEALTH_TIMEOUT = 90.0
"""Seconds in which a container has to become healthy, or to end if it is one that ends."""
POLL_INTERVAL = 0.25

_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")


def read_compose(environment: Mapping[str, str]) -> dict[str, Any]:
    """Parse docker-compose.yml, then replace `${NAME:-default}` in its texts, as Compose does."""

    def replaced(node: Any) -> Any:
        if isinstance(node, str):
            return _VARIABLE.sub(lambda match: environment.get(match[1]) or match[2], node)
        if isinstance(node, list):
            return [replaced(part) for part in node]
        if isinstance(node, dict):
            return {key: replaced(part) for key, part in node.items()}
        return node

    compose: dict[str, Any] = replaced(yaml.safe_load(COMPOSE.read_text(encoding="utf-8")))
    return compose


class Topology:
    """The services of the file that have no profile, as containers."""

    def __init__(self, environment: Mapping[str, str], *, name: str, subnet: str = "10.91") -> None:
        self.compose = read_compose(environment)
        self.services = {
            service: spec for service, spec in self.compose["services"].items() if "profiles" not in spec
        }
        self.name = name
        self.subnet = subnet
        self.networks = sorted({network for spec in self.services.values() for network in spec["networks"]})
        self._done: set[str] = set()

    def up(self) -> None:
        """Start everything in the order of `depends_on`."""
        for number, network in enumerate(self.networks):
            internal = ["--internal"] if (self.compose["networks"][network] or {}).get("internal") else []
            podman(
                "network",
                "create",
                *internal,
                "--subnet",
                f"{self.subnet}.{number}.0/24",
                self._named(network),
            )
        waiting = dict(self.services)
        while waiting:
            for service, spec in list(waiting.items()):
                if spec.get("depends_on", {}).keys() <= self._done:
                    for need, how in spec.get("depends_on", {}).items():
                        self._await(need, how["condition"])
                    self._start(service, spec)
                    self._done.add(service)
                    del waiting[service]
        for service in self.services:
            if "healthcheck" in self.services[service] and "test" in self.services[service]["healthcheck"]:
                self._await(service, "service_healthy")

    def down(self) -> None:
        """Stop and remove everything, volumes included."""
        for service in self.services:
            podman("rm", "--force", "--time", "0", self._named(service), check=False)
        for network in self.networks:
            podman("network", "rm", "--force", self._named(network), check=False)
        for volume in self.compose["volumes"]:
            podman("volume", "rm", "--force", self._named(volume), check=False)

    def exec(self, service: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a service's container."""
        return podman(*RUN, "exec", self._named(service), *command, check=False)

    def inspect(self, service: str) -> dict[str, Any]:
        """What podman knows of a container."""
        found: list[dict[str, Any]] = json.loads(podman("inspect", self._named(service)).stdout)
        return found[0]

    def stop(self, service: str) -> int:
        """Stop a container as `docker compose stop` does; returns its exit code."""
        seconds = self.services[service]["stop_grace_period"].removesuffix("s")
        podman(*RUN, "stop", "--time", seconds, self._named(service))
        return int(self.inspect(service)["State"]["ExitCode"])

    def logs(self, service: str) -> str:
        """What a container has said."""
        result = podman("logs", self._named(service), check=False)
        return result.stdout + result.stderr

    def address(self, service: str, network: str) -> str:
        """A container's address in a network."""
        return f"{self.subnet}.{self.networks.index(network)}.{10 + list(self.services).index(service)}"

    def _named(self, part: str) -> str:
        return f"{self.name}-{part}"

    def _await(self, service: str, condition: str) -> None:
        deadline = time.monotonic() + HEALTH_TIMEOUT
        while not self._reached(service, condition):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{service}: {condition} was not reached.\n{self.logs(service)[-4000:]}")
            time.sleep(POLL_INTERVAL)

    def _reached(self, service: str, condition: str) -> bool:
        state = self.inspect(service)["State"]
        if condition == "service_completed_successfully":
            if state["Status"] == "exited" and state["ExitCode"] != 0:
                raise RuntimeError(f"{service} failed.\n{self.logs(service)[-4000:]}")
            return bool(state["Status"] == "exited")
        if state["Status"] != "running":
            raise RuntimeError(f"{service} does not run.\n{self.logs(service)[-4000:]}")
        kind, *command = self.services[service]["healthcheck"]["test"]
        assert kind == "CMD"
        return self.exec(service, *command).returncode == 0

    def _start(self, service: str, spec: Mapping[str, Any]) -> None:
        podman(
            *RUN, "run", "--detach", "--name", self._named(service), *LIMITS, *self._options(service, spec)
        )

    def _options(self, service: str, spec: Mapping[str, Any]) -> Iterator[str]:
        yield from self._neighbours(service, spec)
        for variable, value in spec.get("environment", {}).items():
            yield f"--env={variable}={value}"
        for secret in spec.get("secrets", ()):
            yield f"--volume={ROOT / self.compose['secrets'][secret]['file']}:/run/secrets/{secret}:ro"
        for volume in spec.get("volumes", ()):
            source, target = volume.split(":", 1)
            yield f"--volume={ROOT / source if source.startswith('.') else self._named(source)}:{target}"
        for place in spec.get("tmpfs", ()):
            yield f"--tmpfs={place}{',' if ':' in place else ':'}mode=1777"
        for port in spec.get("ports", ()):
            yield f"--publish={port}"
        yield from self._confinement(spec)
        if "stop_signal" in spec:
            yield f"--stop-signal={spec['stop_signal']}"
        if "entrypoint" in spec:
            yield f"--entrypoint={json.dumps(spec['entrypoint'])}"
        yield spec["image"]
        yield from spec.get("command", ())

    def _neighbours(self, service: str, spec: Mapping[str, Any]) -> Iterator[str]:
        for network in spec["networks"]:
            yield f"--network={self._named(network)}:ip={self.address(service, network)}"
            for neighbour, other in self.services.items():
                if network in other["networks"] and neighbour != service:
                    yield f"--add-host={neighbour}:{self.address(neighbour, network)}"

    @staticmethod
    def _confinement(spec: Mapping[str, Any]) -> Iterator[str]:
        yield from (f"--cap-drop={right}" for right in spec.get("cap_drop", ()))
        yield from (f"--cap-add={right}" for right in spec.get("cap_add", ()))
        yield from (f"--security-opt={option.replace(':', '=')}" for option in spec.get("security_opt", ()))
        yield from ("--init",) * spec.get("init", False)
        yield from ("--read-only",) * spec.get("read_only", False)
        if "shm_size" in spec:
            yield f"--shm-size={spec['shm_size']}"


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run podman. RuntimeError with what it said."""
    result = subprocess.run(("podman", *arguments), capture_output=True, text=True, check=False)
    if check and result.returncode != 0:
        raise RuntimeError(f"podman {' '.join(arguments[:4])} …: {result.stderr.strip()}")
    return result


@contextmanager
def running(environment: Mapping[str, str], *, name: str) -> Iterator[Topology]:
    """The topology, up; taken down in the end."""
    topology = Topology({**os.environ, **environment}, name=name)
    topology.down()
    try:
        topology.up()
        yield topology
    finally:
        topology.down()
