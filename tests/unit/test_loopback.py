"""A proxy in the environment stands between us and the world, not between us and ourselves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from pipeline.audit.gateway_copy import get_json
from pipeline.gateways.simulator.process import start_simulator, stop_simulator
from pipeline.loopback import open_url


class Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"path": "%s"}' % self.path.encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answer) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.mark.slow
def test_nobody_s_proxy_is_asked_for_a_server_of_this_machine(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # A port where nobody listens.
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("urllib.request._opener", None)
    for host in (server, server.replace("127.0.0.1", "localhost")):
        assert get_json(f"http://{host}/v1") == {"path": "/v1"}
    simulator = start_simulator(tmp_path / "books.db")
    stop_simulator(simulator)


@pytest.mark.slow
def test_a_server_elsewhere_is_asked_through_it(
    server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{server}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("urllib.request._opener", None)
    with open_url("http://gateway.example/v1", 10) as answer:
        assert answer.read() == b'{"path": "http://gateway.example/v1"}'
