"""wrk, the client of the throughput figures: requests as fast as they are answered, on a number of connections."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.model import BenchError
from bench.system import Server
from bench.tools import WRK
from bench.workbench import Workbench

REPLY_TIMEOUT = 8
"""Seconds after which wrk counts a time-out; it goes on waiting, though."""

# Each connection's next request is the next of the list: many users, none of them in a hurry.
_SCRIPT = """
local requests, turn = {}, 0
function init(args)
  local body = %(body)s
  for _, path in ipairs({%(paths)s}) do
    for _, token in ipairs({%(tokens)s}) do
      local headers = {["Authorization"] = "Bearer " .. token}
      if body then headers["Content-Type"] = "application/json" end
      requests[#requests + 1] = wrk.format(body and "POST" or "GET", path, headers, body)
    end
  end
end
function request()
  turn = turn %% #requests + 1
  return requests[turn]
end
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\\nRESULT {"requests": %%d, "seconds": %%f, "bytes": %%d, "p50": %%f, "p99": %%f, "refused": %%d, "broken": %%d, "timeouts": %%d}\\n',
    summary.requests, summary.duration / 1e6, summary.bytes, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    errors.status, errors.connect + errors.read + errors.write, errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Answered:
    """What wrk saw."""

    requests: int
    """Answered, with whatever status."""
    seconds: float
    bytes: int
    """Received, heads included."""
    p50: float
    """Milliseconds."""
    p99: float
    refused: int
    """Answered with 400 or more."""
    broken: int
    """Connections that could not be made, read or written."""
    timeouts: int

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return (self.requests - self.refused) / self.seconds


def script(
    workbench: Workbench,
    name: str,
    *,
    tokens: Sequence[str],
    paths: Sequence[str],
    body_bytes: int | None = None,
    body: str | None = None,
) -> Path:
    """Write the script of a client that sends GETs, or POSTs of `body` or a JSON string of `body_bytes`, as several users."""
    quoted = {"tokens": ", ".join(map(json.dumps, tokens)), "paths": ", ".join(map(json.dumps, paths))}
    quoted["body"] = "nil" if body is None else json.dumps(body)
    if body_bytes is not None:
        quoted["body"] = f"'\"' .. string.rep('x', {body_bytes - 2}) .. '\"'"
    return workbench.write(f"{name}.lua", _SCRIPT % quoted)


def run(
    workbench: Workbench, server: Server, client: Path, *, connections: int, may_time_out: bool = False
) -> Answered:
    """Load `server` for one round.

    Raises:
        BenchError: answers were no successes, so their number means nothing.
    """
    program = WRK.path()
    assert program is not None  # the harness has looked  # noqa: S101
    argv = [
        program,
        "-t1",
        f"-c{connections}",
        f"-d{workbench.seconds:.0f}s",
        f"--timeout={REPLY_TIMEOUT}s",
        f"-s{client}",
        server.url,
    ]
    try:
        text = workbench.run(argv, timeout=workbench.seconds + 60)
    except subprocess.TimeoutExpired:
        raise BenchError(f"wrk did not come back from {server.name}") from None
    return check(parse(text), server.name, may_time_out=may_time_out)


def parse(text: str) -> Answered:
    """Read the line that the script writes."""
    for line in text.splitlines():
        if line.startswith("RESULT "):
            return Answered(**json.loads(line.removeprefix("RESULT ")))
    raise BenchError(f"wrk said nothing that can be read:\n{text}")


def check(answered: Answered, name: str, *, may_time_out: bool) -> Answered:
    """Let only figures pass that mean something.

    Raises:
        BenchError: why they do not.
    """
    troubles = {"refused": answered.refused, "broken": answered.broken, "timed out": answered.timeouts}
    if may_time_out:
        del troubles["timed out"], troubles["broken"]
    found = ", ".join(f"{count} {what}" for what, count in troubles.items() if count)
    if found or answered.requests <= answered.refused:
        raise BenchError(f"{name}: of {answered.requests} requests {found or 'none was answered'}")
    return answered
