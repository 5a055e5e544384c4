"""What a registry's answers mean, by a registry of a few lines that answers as it is told."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipeline.errors import UserError
from schemas import registry as registry_module
from schemas.codec import Codec, wire_header
from schemas.errors import DecodeError, RegistryUnavailable, UnknownSchemaId
from schemas.files import SCHEMA_NAMES, read_schema
from schemas.registry import RegistryIds, register

NOT_FOUND = (404, {"error_code": 40403, "message": "Schema not found"})
# Each costs a question at every start.
SUBJECTS = {name: name for name in ("order", "settlement")}


class FakeRegistry(ThreadingHTTPServer):
    """Look-ups by subject always work; ``answer`` is what is said of ids."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: tuple[int, Any] = NOT_FOUND
        # What is said of everything else, if it does not work.
        self.refusal: tuple[int, Any] | None = None
        self.asked: list[str] = []
        # How long it takes over a question, beyond the answer itself.
        self.slow_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: FakeRegistry

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refusal is not None:
            self.reply(*self.server.refusal)
            return
        time.sleep(self.server.slow_s)
        name = self.path.split("?")[0].split("/")[2].removesuffix("-value")
        schema = json.dumps(read_schema(name))
        schema_id = SCHEMA_NAMES.index(name) + 1
        self.reply(200, {"subject": name, "id": schema_id, "version": 1, "schema": schema})

    do_PUT = do_POST

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        time.sleep(self.server.slow_s)
        self.reply(*self.server.answer)

    def reply(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing in the tests' output."""


@pytest.fixture
def registry() -> Iterator[FakeRegistry]:
    server = FakeRegistry()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_unknown_id_is_asked_for_once(registry: FakeRegistry) -> None:
    """Noise that looks like an id does not ask the registry once for each record."""
    ids = RegistryIds(registry.url, SUBJECTS)
    for _ in range(3):
        with pytest.raises(UnknownSchemaId):
            ids.schema_of(99)
    assert len(registry.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"error_code": 50001, "message": "store"}),
        (503, {"error_code": 50301, "message": "starting"}),
        (401, {"error_code": 40101, "message": "who are you"}),
        (404, {"message": "no such page"}),
    ],
)
def test_an_answer_about_something_else_pauses(registry: FakeRegistry, answer: Any) -> None:
    """Only a plain "no such schema" is an unknown id; all else is a registry that is away."""
    codec = Codec(RegistryIds(registry.url, SUBJECTS))
    registry.answer = answer
    decode = codec.decoder("order")
    with pytest.raises(RegistryUnavailable):
        decode(wire_header(99) + b"x")
    registry.answer = NOT_FOUND
    with pytest.raises(DecodeError) as caught:
        decode(wire_header(99) + b"x")
    assert caught.value.kind == "unknown_schema_id"


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("body", [{}, {"error_code": 40101, "message": "who are you"}])
def test_a_registry_that_lets_nobody_in_is_named_so(
    registry: FakeRegistry, status: int, body: Any
) -> None:
    """Also without a reason of its own; that a schema is not registered would be a guess."""
    registry.refusal = status, body
    said = rf"{registry.url} does not let this program in \(HTTP status {status}\)"
    with pytest.raises(UserError, match=said):
        register(registry.url, SUBJECTS)
    with pytest.raises(UserError, match=said):
        RegistryIds(registry.url, SUBJECTS)


@pytest.mark.parametrize("status", [405, 409, 429, 500])
def test_a_refusal_without_a_reason_is_its_status(registry: FakeRegistry, status: int) -> None:
    registry.refusal = status, {}
    with pytest.raises(UserError, match=rf"HTTP status {status}") as refused:
        register(registry.url, SUBJECTS)
    assert "None" not in str(refused.value)


@pytest.mark.parametrize(
    "schema",
    ['"string"', '["null", "string"]', "not json", '{"type": "record"}', '{"type": "record", '
     '"name": "Order", "namespace": "io.paystream.v1"}', '{"type": "record", "name": "Order", '
     '"namespace": "io.paystream.v1", "fields": [{"name": "a b", "type": "string"}]}'],
)  # fmt: skip
def test_a_schema_that_is_none_of_ours_is_the_wrong_schema(
    registry: FakeRegistry, schema: str
) -> None:
    """Whatever a registry says an id is, the flow gets a named cause, never a crash."""
    registry.answer = (200, {"schema": schema})
    decode = Codec(RegistryIds(registry.url, SUBJECTS)).decoder("order")
    for _ in range(2):
        with pytest.raises(DecodeError) as caught:
            decode(wire_header(99) + b"x")
        assert caught.value.kind == "wrong_schema"
    assert len(registry.asked) == 1


def test_a_slow_registry_is_waited_for_at_the_start_and_pauses_the_flow_later(
    registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker does not give up its start for an answer that the flow would not wait for."""
    monkeypatch.setattr(registry_module, "REQUEST_TIMEOUT_S", 0.02)
    registry.slow_s = 0.2
    ids = RegistryIds(registry.url, {"order": "order"})
    with pytest.raises(RegistryUnavailable):
        ids.schema_of(99)


def test_a_registry_that_is_away_is_one_sentence() -> None:
    """Without a registry a start is refused, with the address and the way out."""
    for start in (RegistryIds, register):
        with pytest.raises(UserError, match=r"^No schema registry answers at http://127\.0\.0\.1"):
            start("http://127.0.0.1:1", SUBJECTS)
    with pytest.raises(UserError, match="is no address of a schema registry"):
        RegistryIds("registry:8081", SUBJECTS)
