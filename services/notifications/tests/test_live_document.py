"""docs/live.md says what the code does."""

import re
from pathlib import Path

from pydantic import SecretStr

from notifications.connections import Connections
from notifications.hub import Hub
from notifications.meters import LiveMeters
from notifications.settings import NotificationsSettings
from shared.metrics import Metrics
from shared.revocations import Revocations

SETTINGS = NotificationsSettings(database_url=SecretStr("postgresql://x@127.0.0.1/x"))
DOCUMENT = (Path(__file__).parents[3] / "docs/live.md").read_text(encoding="utf-8")


def test_settings_have_the_defaults_that_are_documented() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\d+) \|", DOCUMENT, re.MULTILINE)

    assert len(rows) >= 7
    for name, default in rows:
        assert NotificationsSettings.model_fields[name.lower()].default == float(default), name


def test_metrics_are_all_documented() -> None:
    metrics = Metrics()
    meters = LiveMeters(metrics, Hub(memory=1), Connections(SETTINGS, Revocations()))
    meters.refused("x")
    meters.ended(1000, "x")

    for cell in metrics._indexes:
        name = cell.family.removeprefix("notifications_live")
        assert name in DOCUMENT, cell.family
