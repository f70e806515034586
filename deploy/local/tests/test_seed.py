"""`make seed`: the same believable products everywhere, offered once, at the pace that the system allows."""

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from stack import seed
from stack.products import product

Answer = tuple[int, dict[str, str], dict[str, Any]]


def test_a_product_is_the_same_on_every_machine() -> None:
    assert product(1) == {
        "name": "Sturdy walnut notebook",
        "description": "A sturdy notebook for small rooms. One of a kind. The box is included. "
        "Comes with a five-year guarantee.",
        "price": 8.32,
        "in_stock": True,
    }
    assert [product(number) for number in range(1, 50)] == [product(number) for number in range(1, 50)]


def test_products_are_as_varied_as_a_catalogue() -> None:
    products = [product(number) for number in range(1, 2001)]

    assert all(0 < made["price"] <= 1_000_000 and len(made["name"]) <= 120 for made in products)
    assert all(round(made["price"], 2) == made["price"] for made in products)
    assert 0.75 < sum(made["in_stock"] for made in products) / 2000 < 0.95
    assert any(made["description"] is None for made in products)
    assert len({made["name"] for made in products}) > 500
    notebooks, zithers = (
        sum(word in made["name"].lower() for made in products) for word in ("notebook", "zither")
    )
    assert notebooks > 10 * zithers > 0


class Gateway:
    """Stands in for the system's gateway, to fail at will; the journeys seed the real one."""

    def __init__(self) -> None:
        self.taken: dict[tuple[str, str], dict[str, Any]] = {}
        self.requests: list[tuple[str, str]] = []
        self.before: Callable[[str, str], Answer | None] = lambda _path, _key: None
        self.lock = threading.Lock()

    def answer(self, path: str, key: str, token: str, body: bytes) -> Answer:
        with self.lock:
            self.requests.append((path, key))
            if (refusal := self.before(path, key)) is not None:
                return refusal
            if path == "/v1/users":
                return 409, {}, {"code": "email_taken"}
            if path == "/v1/users/token":
                return 200, {}, {"access_token": parse_qs(body.decode())["username"][0]}
            if path == "/health":
                return 200, {}, {"status": "ok"}
            replayed = {"Idempotent-Replayed": "true"} if (token, key) in self.taken else {}
            self.taken[token, key] = json.loads(body)
            return 201, replayed, {}


@contextmanager
def running(gateway: Gateway) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:  # the name is http.server's
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            key = self.headers.get("Idempotency-Key", "")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            status, headers, answer = gateway.answer(self.path, key, token, body)
            document = json.dumps(answer).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(document))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(document)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Say nothing of clients that gave up."""

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def run(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> Iterator[Callable[..., Any]]:
    """Run the command line against the stand-in; returns exit code and what was said."""
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA_DIR", "data")
    monkeypatch.delenv("SEED_PASSWORD", raising=False)
    with running(gateway) as url:
        monkeypatch.setenv("BASE_URL", url)

        def command(*arguments: str) -> tuple[int, str]:
            code = seed.main(list(arguments))
            return code, capsys.readouterr().err

        yield command


def test_every_product_is_offered_once_and_a_second_run_finds_them(
    run: Callable[..., tuple[int, str]], gateway: Gateway
) -> None:
    code, said = run("30")

    assert code == 0, said
    assert {key: made for (_, key), made in gateway.taken.items()} == {
        f"seed-{number}": product(number) for number in range(1, 31)
    }
    assert len({seller for seller, _ in gateway.taken}) == seed.SELLERS
    assert "30 of 30 products" in said
    code, said = run("40")
    assert code == 0
    assert len(gateway.taken) == 40
    assert "30 were there already" in said


def test_it_waits_as_long_as_it_is_told(run: Callable[..., tuple[int, str]], gateway: Gateway) -> None:
    later: list[Answer] = [
        (429, {"Retry-After": "0"}, {"code": "too_many_requests"}),
        (503, {"Retry-After": "0"}, {"code": "database_unavailable"}),
        (409, {"Retry-After": "0"}, {"code": "idempotency_in_progress"}),
    ]
    gateway.before = lambda _path, key: later.pop() if key and later else None

    code, said = run("5")

    assert code == 0, said
    assert len(gateway.taken) == 5
    assert len(gateway.requests) == 1 + 2 * seed.SELLERS + 5 + 3


def test_an_expired_token_is_renewed(run: Callable[..., tuple[int, str]], gateway: Gateway) -> None:
    expired: list[Answer] = [(401, {}, {"code": "invalid_token"})]
    gateway.before = lambda _path, key: expired.pop() if key and expired else None

    assert run("5")[0] == 0
    assert len(gateway.taken) == 5


@pytest.mark.parametrize(
    ("path", "refusal", "sentence"),
    [
        ("/v1/users/token", (401, {}, {"code": "invalid_credentials"}), "give it as SEED_PASSWORD"),
        ("/v1/users/token", (500, {}, {}), "POST /v1/users/token was answered 500"),
        ("/v1/users", (422, {}, {"code": "password_too_common"}), "password_too_common"),
        ("/v1/items", (403, {}, {"code": "insufficient_scope"}), "POST /v1/items was answered 403"),
        ("/v1/items", (503, {"Retry-After": "3600"}, {}), "has not taken a product for 60 s (status 503)"),
    ],
)
def test_a_refusal_is_one_sentence(
    run: Callable[..., tuple[int, str]], gateway: Gateway, path: str, refusal: Answer, sentence: str
) -> None:
    gateway.before = lambda asked, _key: refusal if asked == path else None

    code, said = run("5")

    assert code == 2
    assert sentence in said
    assert "Traceback" not in said


def test_a_system_that_does_not_run_is_one_sentence(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BASE_URL", "http://127.0.0.1:1")
    assert run("5") == (2, "Nothing answers at http://127.0.0.1:1: start the system with make run.\n")
    monkeypatch.setenv("DATA_DIR", "nowhere")
    code, said = run("5")
    assert (code, "start the system with make run" in said) == (2, True)


@pytest.mark.parametrize("count", ["0", "-1", "x", "1.5", "10000001"])
def test_a_number_that_is_none_is_refused(count: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        seed.main([count])
    assert refused.value.code == 2
    assert "must be a number from 1" in capsys.readouterr().err


async def test_a_terminal_shows_one_line(gateway: Gateway) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    with running(gateway) as url:
        await seed.seed(url, "secret", 3, terminal)
    assert terminal.getvalue().count("\n") == 1
    assert "\r3 of 3 products" in terminal.getvalue()
