"""What the tests of the images need of the machine, and the images themselves, built once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
TAG = "test"
STANDIN = "localhost/tollhouse-standin"
CERTIFICATES = "/etc/ssl/certs"
"""Whom this machine trusts, its package index among them; a build must, too."""


@pytest.fixture(scope="session")
def machine() -> None:
    """A machine that can build and run images without Docker's engine. Otherwise say what it lacks."""
    missing = [
        tool
        for tool in ("podman", "buildah", "runc", "debootstrap", "catatonit", "nsenter")
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/usr/libexec/podman") is None
    ]
    if os.geteuid() != 0:
        missing.append("root")
    if missing:
        pytest.skip(f"images are not tested: this machine lacks {', '.join(missing)}")


@pytest.fixture(scope="session")
def images(machine: None, tmp_path_factory: pytest.TempPathFactory) -> str:  # noqa: ARG001
    """The tag under which every service's image has been built, on a stand-in for the official base."""
    folder = tmp_path_factory.mktemp("index")
    (folder / "pip.conf").write_text(f"[global]\ncert = {CERTIFICATES}/ca-certificates.crt\n")
    (folder / "uv.toml").write_text("system-certs = true\n")
    standins = Path(__file__).with_name("standins.sh")
    subprocess.run([standins, "python", "postgres", "nats"], check=True)
    environment = {
        **os.environ,
        "TAG": TAG,
        "BASE": f"{STANDIN}-python",
        "BUILD_MOUNTS": f"{CERTIFICATES}:{CERTIFICATES} {folder}/pip.conf:/etc/pip.conf {folder}/uv.toml:/etc/uv/uv.toml",
    }
    subprocess.run(["bash", ROOT / "deploy/image/build.sh"], env=environment, check=True)
    return TAG
