"""The README's walk-through, copied as it stands."""

import asyncio
import os
import re
from pathlib import Path

import httpx
import pytest
from journey import PASSWORD, System, unique_email

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = re.findall(r"<!-- walk-through -->\n```sh\n(.*?)```", README, re.DOTALL)


async def test_the_walk_through_works_as_it_stands(system: System) -> None:
    def as_on_this_system(block: str) -> bytes:
        block = block.replace("127.0.0.1:8000", system.url.removeprefix("http://"))
        return block.replace("ada@example.com", address).encode()

    address = unique_email()
    register_and_watch, *rest_of_it = BLOCKS
    shell = await asyncio.create_subprocess_exec(
        "bash",
        "-eu",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "BASE_URL": system.url, "SEED_PASSWORD": PASSWORD},
    )
    assert shell.stdin is not None
    assert shell.stdout is not None
    output = b""
    shell.stdin.write(as_on_this_system(register_and_watch))
    async with asyncio.timeout(120):
        # A person types the second part once the watcher of the first one watches.
        while b"watching items" not in output:
            output += (line := await shell.stdout.readline())
            assert line, output.decode()
        rest, _ = await shell.communicate(b"".join(map(as_on_this_system, rest_of_it)) + b"\nwait\n")

    output += rest
    assert shell.returncode == 0, output.decode()
    for expected in (
        b'"type": "items.item.created.v1"',
        b'"kind":"welcome"',
        b'"queued":true',
        b'"next_cursor":"',
    ):
        assert expected in output, output.decode()


@pytest.mark.parametrize("path", re.findall(r"<http://127\.0\.0\.1:8000(/\w+)>", README))
def test_the_linked_pages_exist(system: System, path: str) -> None:
    assert httpx.get(system.url + path, trust_env=False).status_code == 200


@pytest.mark.parametrize("target", re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", README))
def test_the_linked_files_exist(target: str) -> None:
    assert (ROOT / target).exists()


def test_the_commands_of_make_exist() -> None:
    named = set(re.findall(r"`?make ([a-z-]+)`?", README)) - {"and"}
    targets = set(
        re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named <= targets
