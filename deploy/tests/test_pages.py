"""What the pages for operators name exists: error codes, settings, commands; and workflows are sound."""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from deploy.settings_page import settings_classes

from shared.errors import Problem
from stack.services import TOLLHOUSE

ROOT = Path(__file__).parents[2]
PAGES = {
    name: (ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("troubleshooting.md", "cloud.md")
}
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def problems(of: type[Problem] = Problem) -> Iterator[str]:
    """The codes of all problems of all packages."""
    for kind in of.__subclasses__():
        yield kind.code
        yield from problems(kind)


def test_every_error_code_is_one() -> None:
    for package in ("shared", *(spec.name for spec in TOLLHOUSE.services)):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__, f"{package}."):
            if module.name.endswith(("errors", "edge")):
                importlib.import_module(module.name)
    named = re.findall(r"\b[45]\d\d\s+`(\w+)`", PAGES["troubleshooting.md"])
    assert len(named) > 8
    assert set(named) <= set(problems())


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_is_one(page: str) -> None:
    known = set()
    for name, settings in settings_classes().items():
        known |= {
            f"{prefix}{field}".upper() for field in settings.model_fields for prefix in ("", f"{name}_")
        }
    named = re.findall(
        r"\b((?:GATEWAY|USERS|ITEMS|NOTIFICATIONS|TOKEN|DATABASE|JWKS|SHUTDOWN)_[A-Z_]+[A-Z])\b", PAGES[page]
    )
    assert named
    assert {name.removesuffix("_FILE") for name in named} <= known


@pytest.mark.parametrize("page", PAGES)
def test_linked_files_exist(page: str) -> None:
    for target in re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", PAGES[page]):
        assert (ROOT / "docs" / target).exists(), target


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_is_pinned_and_may_do_little(path: Path) -> None:
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    targets = re.findall(
        r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"]
        assert set(job.get("permissions", {}).items()) <= {("contents", "read"), ("packages", "write")}
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40))
            assert set(re.findall(r"make ([a-z0-9-]+)", step.get("run", ""))) <= set(targets)
