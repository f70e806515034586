"""What deploy/ and docs/ derive from the sources is up to date; what the page of settings says is so."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from deploy import generate
from deploy.settings_page import is_secret, settings_classes, settings_page

from stack.services import TOLLHOUSE

ROOT = Path(__file__).parents[2]
SERVICES = [spec.name for spec in TOLLHOUSE.services]


DOCUMENTS = generate.documents()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_is_up_to_date(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == DOCUMENTS[path], "make generate"


def test_the_page_names_every_setting_of_every_program() -> None:
    page = settings_page()
    for name, settings in settings_classes().items():
        for field, info in settings.model_fields.items():
            names = f"(?:{name.upper()}_|<SERVICE>_|){field.upper()}"
            rows = re.findall(rf"^\| `{names}` \| (.*)$", page, re.MULTILINE)
            assert rows or (name, field) == ("streams", "port"), f"{name}: {field}"
            if is_secret(info):
                assert all(row.startswith("**secret**") for row in rows)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_lacks_a_required_setting_says_which_and_ends(service: str) -> None:
    settings = settings_classes()[service]
    required = [field.upper() for field, info in settings.model_fields.items() if info.is_required()]
    prefix = f"{service.upper()}_"
    # One that needs none would start, and must say that it cannot listen on an address that is not of this machine.
    bare = {"PATH": os.environ["PATH"], f"{prefix}BIND_HOST": "192.0.2.1"}

    result = subprocess.run(
        [sys.executable, "-m", service, "serve"], env=bare, capture_output=True, text=True, check=False
    )

    assert result.returncode == (2 if required else 1)
    said = result.stderr.splitlines()
    assert (
        said[-1:] == [f"{service}: cannot listen on 192.0.2.1 port 8000: Cannot assign requested address."]
        or required
    )
    for field in required:
        assert f"{service}: {prefix}{field} is not set (or give a file by {prefix}{field}_FILE)." in said
