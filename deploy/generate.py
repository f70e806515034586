"""Write what is derived from the sources: NATS's configuration for compose and chart, and the page of all settings.

`python -m deploy.generate`, after a change of settings or of what a service may do on NATS; a test compares.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from deploy import chart
from deploy.settings_page import settings_page

from stack import nats

ROOT = Path(__file__).parents[1]


def nats_authorization() -> str:
    """The users of NATS and what each may do, with `$NATS_PASSWORD_<USER>` for the passwords."""
    names = {user: f"$NATS_PASSWORD_{user.upper()}" for user in nats.GRANTS}
    block = json.dumps({"authorization": nats.authorization(names)}, indent=2)
    # A reference is one only without quotes.
    bare = re.sub(r'"(\$NATS_PASSWORD_\w+)"', r"\1", block)
    return bare.removeprefix("{\n").removesuffix("}")


def compose_nats() -> str:
    """The configuration of the server in docker-compose.yml, which takes its passwords from a secret."""
    include = "include ../../run/secrets/nats_passwords.conf\n"
    return _nats(include, monitor="127.0.0.1:8222")  # health only, for the container itself


def chart_nats() -> str:
    """The configuration of the chart's server, which takes its passwords from the environment."""
    return _nats("", monitor="0.0.0.0:8222")  # probes and KEDA; a NetworkPolicy keeps others away


def _nats(include: str, *, monitor: str) -> str:
    return f"""# Made by `python -m deploy.generate`: do not edit.
{include}
server_name: nats
listen: 0.0.0.0:4222
http: {monitor}
max_payload: {nats.MAX_PAYLOAD}
max_connections: {nats.MAX_CONNECTIONS}
jetstream {{
  store_dir: /data
  max_memory_store: {nats.MAX_MEMORY_STORE}
  max_file_store: {nats.MAX_FILE_STORE}
  # What was acknowledged is on disk.
  sync_interval: always
}}
{nats_authorization()}"""


def documents() -> Mapping[Path, str]:
    """Every derived file, by its path."""
    return {
        ROOT / "deploy/compose/nats.conf": compose_nats(),
        ROOT / "docs/configuration.md": settings_page(),
        chart.CHART / "README.md": chart.readme(),
        chart.CHART / "values.schema.json": chart.schema(),
        chart.CHART / "files/databases.sh": (ROOT / "deploy/compose/databases.sh").read_text(
            encoding="utf-8"
        ),
        chart.CHART / "files/nats.conf": chart_nats(),
        chart.CHART / "files/services.yaml": chart.facts_file(),
    }


if __name__ == "__main__":
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
