"""What the benchmark makes for others: configurations, scripts, refusals; and how it reads what they say."""

import json
from pathlib import Path

import pytest
from bench import checks, pace, profiling, standin, system, tools, wrk
from bench.model import BenchError
from bench.peers import envoy, node
from bench.tools import Tool

from shared.testing import TokenIssuer
from stack.command import Command


def test_raised_limits_name_every_limit_of_the_shipped_table() -> None:
    limits = json.loads(system.raised_limits(system.ROUTES))
    assert set(limits) >= {"default", "registration", "anonymous-sockets"}
    assert all(limit["quota"] >= 10**9 and "shadow" not in limit for limit in limits.values())


def test_descriptions_keep_secrets() -> None:
    command = Command(
        ("python", "-m", "x"), {"NATS_PASSWORD": "hidden-1", "A_KEY_ENCRYPTION_KEY": "hidden-2"}, Path()
    )
    assert "hidden" not in system.describe(command)


def test_envoy_has_the_features_that_it_is_compared_in(tmp_path: Path) -> None:
    text = json.dumps(
        envoy.configure(1, 2, issuer="i", audience="a", keys_url="http://k", access_log=tmp_path / "log")
    )
    for feature in (
        "jwt_cache_config",
        "local_ratelimit",
        "json_format",
        "normalize_path",
        "retry_policy",
        '"generate_request_id": true',
        '"timeout": "60s"',
    ):
        assert feature in text


def test_standin_answers_an_item_of_140_bytes(tmp_path: Path) -> None:
    assert 130 <= len(standin.ITEM) <= 150
    assert standin.ITEM in standin.configure(tmp_path, (1, 2))


def test_wrk_is_believed_only_when_all_went_well() -> None:
    line = 'RESULT {"requests": 100, "seconds": 2.0, "bytes": 1, "p50": 1.0, "p99": 2.0, "refused": %d, "broken": 0, "timeouts": %d}'
    good = wrk.check(wrk.parse("Running\n" + line % (0, 0)), "u", may_time_out=False)
    assert good.rate == 50.0
    for refused, timeouts, patient in ((1, 0, False), (0, 1, False), (100, 0, True), (1, 0, True)):
        with pytest.raises(BenchError):
            wrk.check(wrk.parse(line % (refused, timeouts)), "u", may_time_out=patient)
    assert wrk.check(wrk.parse(line % (0, 3)), "u", may_time_out=True).rate == 50.0
    with pytest.raises(BenchError, match="nothing"):
        wrk.parse("")


def test_missing_programs_are_named_with_their_packages() -> None:
    here, gone = Tool("sh", "dash"), Tool("no-such-program", "its-package")
    assert tools.missing([here]) is None
    assert "no-such-program" in (said := tools.missing([here, gone, gone]) or "")
    assert "apt install its-package" in said


def test_checks_ask_for_every_rule() -> None:
    issuer = TokenIssuer()
    asked = {
        refusal.rule for refusal in (*checks.wire_refusals(issuer.token()), *checks.token_refusals(issuer))
    }
    assert asked == {"G1", "G2", "G3", "G5", "T1", "T2", "T3"}  # G4 and T4 are no refusals


def test_node_peers_are_pinned() -> None:
    for name in ("fastify", "express"):
        folder = node.FOLDER / name
        wanted = json.loads((folder / "package.json").read_text())["dependencies"]
        locked = json.loads((folder / "package-lock.json").read_text())["packages"]
        assert {package: locked[f"node_modules/{package}"]["version"] for package in wanted} == wanted
        assert "://" not in "".join(locked[one].get("resolved", "") for one in locked)


def test_percentiles_are_values_that_were_seen() -> None:
    values = [float(value) for value in range(200, 0, -1)]
    assert (pace.percentile(values, 50), pace.percentile(values, 99)) == (100.0, 198.0)
    assert pace.percentile([7.0], 50) == pace.percentile([7.0], 99) == 7.0


def test_profiles_add_up_by_function() -> None:
    table = profiling.table(
        [
            "main (/x/.venv/lib/python3.11/site-packages/uvicorn/main.py:1);send (/x/gateway/src/gateway/wire.py:7) 3",
            "main (/x/.venv/lib/python3.11/site-packages/uvicorn/main.py:2);send (/x/gateway/src/gateway/wire.py:9) 5",
            "main (/x/.venv/lib/python3.11/site-packages/uvicorn/main.py:2) 2",
            "thread (/usr/lib/python3.11/threading.py:9);poll (libc.so.6) 90",
        ]
    )
    assert "10 samples" in table
    assert "  80.0%   80.0%  send (gateway/wire.py)" in table
    assert "  20.0%  100.0%  main (uvicorn/main.py)" in table
    with pytest.raises(BenchError):
        profiling.table([])
