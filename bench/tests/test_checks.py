"""A process that is not strict does not pass for the product."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import cast

import pytest
from bench import checks, standin
from bench.model import BenchError
from bench.probe import get
from bench.standin import StandIn
from bench.system import Server, System
from bench.workbench import Process

from shared.testing import TokenIssuer


class Lenient(BaseHTTPRequestHandler):
    """Answers everything alike."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """Answer an item."""
        body = standin.ITEM.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


@pytest.fixture
def lenient() -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Lenient) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Server("lenient", f"http://127.0.0.1:{server.server_port}", cast("Process", None), "")
        server.shutdown()
        thread.join()


class OnlyTokens:
    """What the checks need of a system."""

    issuer = TokenIssuer()


def test_lenient_server_is_told_from_the_product(lenient: Server, tmp_path: Path) -> None:
    checks.same_answer(lenient, standin.SMALL, "-", standin.ITEM.encode())
    with pytest.raises(BenchError, match="G1"):
        checks.gateway_is_strict(
            lenient, cast("System", OnlyTokens()), StandIn("http://127.0.0.1:1", tmp_path)
        )


def test_other_answer_is_noticed_before_anything_is_measured(lenient: Server) -> None:
    with pytest.raises(BenchError, match="lenient answered"):
        checks.same_answer(lenient, standin.SMALL, "-", b"another item")
    assert get(lenient.url + "/").status == 200
