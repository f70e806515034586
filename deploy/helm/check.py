"""`make check-chart`: let checkov judge what the chart renders for the default and the example values. Exit code 0: no failure."""

import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from deploy.helm.tests.rendering import renderings

CHECKOV = "checkov==3.3.30"
SKIPPED = {
    "CKV_K8S_8": "liveness probes: pods of `helm test` end by themselves; test_chart.py asks those of all Deployments",
    "CKV_K8S_9": "readiness probes: likewise",
    "CKV_K8S_11": "CPU limits: they throttle a process that has idle cores beside it; requests are set, memory is limited",
    "CKV_K8S_15": "imagePullPolicy Always: tags are versions and never move; production pins digests",
    "CKV_K8S_35": "secrets as files: ours are; the bundled NATS, for a trial, takes passwords from its environment only",
    "CKV_K8S_40": "UIDs of 10000 and more: ours have them; 999 and 1000 are those of the PostgreSQL and NATS images, for a trial",
    "CKV_K8S_43": "images by digest: a value; the example of several zones uses it",
}
"""Checks that are not asked, and why."""


def main() -> int:
    """Render, and hand it to checkov."""
    uv = str(Path(sys.executable).with_name("uv"))
    with tempfile.TemporaryDirectory() as folder:
        for name, manifests in renderings():
            (Path(folder) / f"{name}.yaml").write_text(yaml.safe_dump_all(manifests))
        command = [uv, "tool", "run", CHECKOV, "--directory", folder, "--framework", "kubernetes", "--compact", "--quiet", "--skip-download",
                   "--skip-check", ",".join(SKIPPED)]  # fmt: skip
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
