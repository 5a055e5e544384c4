"""A merchant's side: a real HTTP server that verifies what it is told and keeps it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from pipeline.gateways.webhook_signature import decoded_secret, refusal

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@dataclass(frozen=True)
class Heard:
    """One POST as it came; ``refusal`` is why its signature must not be believed, or None."""

    id: str
    path: str
    said: Any
    refusal: str | None
    signatures: int
    at_s: float

    @property
    def data(self) -> Any:
        return self.said["data"]


# The status for the so-many-th POST (from 1), after any waiting that it wants to do.
Answer = Callable[[int, Heard], int]


@dataclass
class Receiver:
    answer: Answer = lambda number, heard: 204
    secret: str = SECRET
    headers: dict[str, str] = field(default_factory=dict)
    heard: list[Heard] = field(default_factory=list)
    url: str = ""

    @property
    def ids(self) -> list[str]:
        return [each.id for each in self.heard]

    @contextmanager
    def listening(self, port: int = 0) -> Iterator[Receiver]:
        receiver, lock = self, threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                heard = Heard(
                    id=headers["webhook-id"],
                    path=self.path,
                    said=json.loads(body),
                    refusal=refusal(
                        [decoded_secret(receiver.secret)], headers, body, int(time.time())
                    ),
                    signatures=len(headers["webhook-signature"].split()),
                    at_s=time.monotonic(),
                )
                with lock:
                    receiver.heard.append(heard)
                    number = len(receiver.heard)
                status = receiver.answer(number, heard)
                self.send_response(status)
                for name, value in receiver.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        server = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{server.server_port}/hooks"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join(10)
