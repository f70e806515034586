"""A stand-in for a service: quick to start, told by its environment how to misbehave.

`python standin.py <name> serve|migrate`. STANDIN_<NAME>: `refuse` (bad settings), `crash` (dies before it is ready), `deaf` (ignores SIGTERM),
`fork` (has a worker process). What it knows goes to `DATA_DIR/standin/<name>.json`.
"""

import json
import os
import signal
import socketserver
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import FrameType

name, verb = sys.argv[1:]
mood = os.environ.get(f"STANDIN_{name.upper()}", "")
folder = Path(os.environ["DATA_DIR"]) / "standin"


def say(event: str, level: str = "info") -> None:
    sys.stdout.write(json.dumps({"level": level, "service": name, "event": event}) + "\n")
    sys.stdout.flush()


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        pass


def drain(_number: int, _frame: FrameType | None) -> None:
    say(f"{name} drained")
    os._exit(0)


def serve() -> None:
    socketserver.TCPServer.allow_reuse_address = True
    server = HTTPServer(("127.0.0.1", int(os.environ[f"{name.upper()}_PORT"])), Health)
    if mood == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, drain)
    worker = None
    if mood == "fork":
        # A worker that outlives its parent and holds the port, as a server's workers do.
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        worker = subprocess.Popen([sys.executable, "-c", code], pass_fds=[server.fileno()]).pid  # noqa: S603
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps({"environ": dict(os.environ), "worker": worker}))
    say(f"{name} serves")
    server.serve_forever()


if Path(f"{name}.broken").exists():
    sys.stderr.write(f"{name} has a syntax error\n")
    raise SystemExit(1)
if mood == "refuse":
    sys.stderr.write(f"{name}: {name.upper()}_COLOUR is not set.\n")
    raise SystemExit(2)
if mood == "crash" and verb == "serve":
    sys.stderr.write(f"{name} cannot go on\n")
    raise SystemExit(7)
if verb == "serve":
    serve()
say(f"{name} {verb} done")
