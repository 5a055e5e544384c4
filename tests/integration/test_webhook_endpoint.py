"""Webhooks over HTTP into the log: what is answered, what is stored, what waits."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from msgspec.structs import replace

from pipeline.domain.ids import idempotency_key, payment_id
from pipeline.domain.keys import record_key, reference_key
from pipeline.domain.model import GatewayNotification, GatewayReference
from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.gateways.http_adapter import HttpGateway
from pipeline.gateways.notice import Notice, NoticeRefused
from pipeline.gateways.webhook_signature import signed_headers
from producers.webhook_desk import DELIVERY_TIMEOUT_MS, WebhookDesk
from producers.webhook_endpoint import BODY_BYTES_MAX, NoticeReader, WebhookServer
from tests.support.engine_flow import EngineFlow
from tests.support.waiting import WAIT_S, wait_until

pytestmark = pytest.mark.integration


SECRET = "whsec_" + "a" * 32


class JsonReader:
    """Takes any JSON that carries the word: what an adapter's own scheme does with a secret."""

    def read_notice(
        self, headers: Mapping[str, str], body: bytes, now_s: int
    ) -> Notice | NoticeRefused:
        if headers.get("x-word") != "true":
            return NoticeRefused("signature_wrong")
        try:
            said = json.loads(body)
        except ValueError:
            return NoticeRefused("unreadable")
        return Notice(
            merchant_id=said.get("merchant_id"),
            order_id=said.get("order_id"),
            notification_id=said["id"],
            gateway="simulator",
            type="operation",
            outcome="succeeded",
            gateway_reference=said["charge"],
            amount_minor=100,
            currency="GBP",
        )


@dataclass
class Endpoint:
    """One run of the endpoint over a flow's topics."""

    flow: EngineFlow
    delivery_timeout_ms: int = DELIVERY_TIMEOUT_MS
    readers: Mapping[str, NoticeReader] = field(default_factory=lambda: {"simulator": JsonReader()})
    counted: Counter[tuple[str, str]] = field(default_factory=Counter)
    waiting: int = 0
    url: str = ""

    @contextmanager
    def running(self) -> Iterator[Endpoint]:
        desk = WebhookDesk(
            self.flow.bootstrap,
            catalogue=self.flow.catalogue,
            codec=self.flow.codec,
            state_dir=self.flow.state_dir,
            delivery_timeout_ms=self.delivery_timeout_ms,
            on_parked=self._parked,
        )
        server = WebhookServer(desk, self.readers, host="127.0.0.1", port=0, count=self._count)
        stop = threading.Event()
        thread = threading.Thread(target=server.run, args=(stop,), daemon=True)
        thread.start()
        assert server.ready.wait(30)
        self.url = server.url
        try:
            yield self
        finally:
            stop.set()
            thread.join(30)
            assert not thread.is_alive()

    def post(
        self,
        body: bytes,
        *,
        word: str = "true",
        gateway: str = "simulator",
        headers: Mapping[str, str] | None = None,
    ) -> int:
        request = urllib.request.Request(
            f"{self.url}/webhooks/{gateway}",
            data=body,
            headers={"X-Word": word, **(headers or {})},
            method="POST",
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def notices(self) -> list[GatewayNotification]:
        return self.flow.nouns("gateway-notifications")

    def _count(self, gateway: str, result: str) -> None:
        self.counted[(gateway, result)] += 1

    def _parked(self, count: int, oldest_ms: int | None) -> None:
        self.waiting = count


def body(**said: str) -> bytes:
    return json.dumps({"type": "charge", **said}).encode()


def reference(number: int) -> GatewayReference:
    return GatewayReference(
        gateway="simulator",
        gateway_reference=f"ch_{number}",
        merchant_id="shop",
        order_id=f"o{number}",
        payment_id="p",
        operation_id=f"o{number}",
        attempt=1,
        kind="charge",
    )


@pytest.fixture
def endpoint(kafka: str, topic_prefix: str, tmp_path: Path) -> Endpoint:
    return Endpoint(EngineFlow(kafka, topic_prefix, tmp_path).provisioned())


def test_a_notice_is_in_the_log_before_it_is_answered(endpoint: Endpoint) -> None:
    """200 means stored under the order's key; whatever is not the gateway's is named and not
    stored."""
    with endpoint.running() as running:
        ours = {"merchant_id": "shop", "order_id": "o1", "charge": "ch_1"}
        assert running.post(body(id="n1", **ours)) == 200
        assert [n.notification_id for n in running.notices()] == ["n1"]
        (message,) = endpoint.flow.messages("gateway-notifications")
        assert message.key() == record_key("shop", "o1")
        assert running.post(body(id="n2", **ours), word="no") == 401
        assert running.post(body(id="n3", **ours), gateway="other") == 404
        assert running.post(b"x" * (BODY_BYTES_MAX + 1)) == 413
        assert running.post(b"no JSON") == 400
        assert len(running.notices()) == 1
    assert endpoint.counted == {
        ("simulator", "published"): 1,
        ("simulator", "signature_wrong"): 1,
        ("unknown", "unknown_gateway"): 1,
        ("simulator", "too_large"): 1,
        ("simulator", "unreadable"): 1,
    }


def test_what_is_genuine_and_cannot_be_held_is_refused_by_name(endpoint: Endpoint) -> None:
    """A signed amount beyond 64 bits, brackets without end, half a character in the id: each is 400
    under its own word, and the next notice is taken."""
    endpoint.readers = {"simulator": HttpGateway("simulator", "http://x", notice_secrets=(SECRET,))}

    def told(amount_minor: int, notice_id: str = "msg_1", more: str = "null") -> int:
        said = {
            "id": "ch_1", "status": "succeeded", "amount_minor": amount_minor, "currency": "GBP",
            "reference": idempotency_key(payment_id("shop", "o1"), "o1", "simulator", 1),
            "merchant_id": "shop", "order_id": "o1",
        }  # fmt: skip
        text = json.dumps({"type": "charge.succeeded", "data": said})
        sent = f'{text[:-1]}, "more": {more}}}'.encode()
        headers = signed_headers([SECRET], notice_id, int(time.time()), sent)
        # On its way a surrogate is the byte that it stands for.
        headers["webhook-id"] = notice_id.encode("utf-8", "surrogateescape").decode("latin-1")
        return running.post(sent, headers=headers)

    with endpoint.running() as running:
        assert told(2**63) == 400
        assert told(100, more="[" * 100_000) == 400
        assert told(100, notice_id="msg_\udce9") == 400
        assert told(100) == 200
    assert [n.notification_id for n in endpoint.notices()] == ["msg_1"]
    assert endpoint.counted == {
        ("simulator", "unreadable"): 2,
        ("simulator", "unstorable"): 1,
        ("simulator", "published"): 1,
    }


def test_a_fault_of_ours_is_sent_again_by_the_gateway(endpoint: Endpoint) -> None:
    """A reader that fails answers 503, so that no notice is lost by it, and others are taken."""
    with endpoint.running() as running:
        assert running.post(body(merchant_id="shop")) == 503
        assert running.post(body(id="n1", merchant_id="shop", order_id="o", charge="c")) == 200
    assert endpoint.counted[("simulator", "not_handled")] == 1


def test_a_notice_faster_than_its_reference_waits_for_it(endpoint: Endpoint) -> None:
    """With only the gateway's own id it is parked, survives a restart, and goes on as soon as the
    payments stage has written whose id that is; one already known goes on at once."""
    flow = endpoint.flow

    def know(number: int) -> None:
        key = reference_key("simulator", f"ch_{number}")
        flow.send("gateway-references", key, flow.encode("gateway-reference", reference(number)))

    with endpoint.running() as running:
        assert running.post(body(id="n1", charge="ch_1")) == 200
        assert running.post(body(id="n1", charge="ch_1")) == 200, "the gateway repeats it"
        wait_until(lambda: running.waiting == 1, WAIT_S, "one notice waits")
        assert running.notices() == []
    know(1)
    with endpoint.running() as running:
        wait_until(lambda: running.notices(), WAIT_S, "the parked notice goes on")
        wait_until(lambda: running.waiting == 0, WAIT_S, "nothing waits")
        know(2)
        wait_until(
            lambda: (
                running.post(body(id="n2", charge="ch_2")) == 200 and len(running.notices()) > 1
            ),
            WAIT_S,
            "a known one goes on",
        )
    ids = {(n.notification_id, n.order_id, n.operation_id, n.attempt) for n in endpoint.notices()}
    assert ids == {("n1", "o1", "o1", 1), ("n2", "o2", "o2", 1)}
    last = flow.messages("parked-notices")[-1]
    assert last.value() is None, "its wait is over"


def test_an_id_that_is_told_of_a_second_payment_stays_the_first_ones(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    """Else a gateway that mixes up its payments would have one count the other's money, unheard of.
    Another operation of the same payment takes it over."""
    flow = endpoint.flow
    first, key = reference(1), reference_key("simulator", "ch_1")
    later = replace(first, operation_id="k2")
    for known in (first, later, replace(reference(2), payment_id="q")):
        flow.send("gateway-references", key, flow.encode("gateway-reference", known))
    with endpoint.running() as running:
        wait_until(
            lambda: "simulator:ch_1 is said to be of shop:o2" in caplog.text, WAIT_S, "all read"
        )
        assert running.post(body(id="n1", charge="ch_1")) == 200
        wait_until(lambda: running.notices(), WAIT_S, "the notice is addressed")
    (notice,) = endpoint.notices()
    assert (notice.order_id, notice.operation_id) == ("o1", "k2")


def test_what_is_about_a_charge_nobody_asked_for_goes_to_its_payment(endpoint: Endpoint) -> None:
    """Its notices name the order that the charge was made with; other payments' go by that."""
    flow = endpoint.flow
    for number, merchant in ((1, "unasked"), (2, "shop")):
        known = replace(reference(number), merchant_id=merchant)
        key = reference_key("simulator", f"ch_{number}")
        flow.send("gateway-references", key, flow.encode("gateway-reference", known))
    said = {"merchant_id": "somebody", "order_id": "else"}
    with endpoint.running() as running:
        # What is not addressed goes on once the references are read.
        for number in (1, 2):
            assert running.post(body(id="n0", charge=f"ch_{number}")) == 200
        wait_until(lambda: len(running.notices()) == 2, WAIT_S, "references are read")
        for number in (1, 2):
            assert running.post(body(id=f"n{number}", charge=f"ch_{number}", **said)) == 200
        wait_until(lambda: len(running.notices()) == 4, WAIT_S, "both are taken")
    whose = {n.notification_id: (n.merchant_id, n.order_id) for n in endpoint.notices()}
    assert whose["n1"] == ("unasked", "o1")
    assert whose["n2"] == ("somebody", "else")


def test_a_record_that_cannot_be_read_holds_up_nobody_elses_notices(endpoint: Endpoint) -> None:
    """A reference of a schema that a program before an upgrade does not know, and a parked notice
    that is none: their notices wait on, through a restart, and go on once the record is right."""
    flow = endpoint.flow

    def know(number: int, value: bytes | None = None) -> None:
        known = value or flow.encode("gateway-reference", reference(number))
        flow.send("gateway-references", reference_key("simulator", f"ch_{number}"), known)

    with endpoint.running() as running:
        assert [running.post(body(id=f"n{n}", charge=f"ch_{n}")) for n in (1, 2)] == [200, 200]
        wait_until(lambda: running.waiting == 2, WAIT_S, "two notices wait")
    know(1, b"\0\0\0\x26\x67 of a newer program")
    parked = reference_key("simulator", "ch_3") + b"\nn3"
    flow.send("parked-notices", parked, b"no notice")
    know(3)
    know(2)
    for start in ("first", "second"):
        with endpoint.running() as running:
            wait_until(lambda: running.notices(), WAIT_S, "what can be read goes on")
            ours = body(id=start, merchant_id="shop", order_id="o9", charge="ch_9")
            assert running.post(ours) == 200
            wait_until(lambda: running.waiting == 2, WAIT_S, "what cannot be read waits")
    know(1)
    with endpoint.running() as running:
        wait_until(lambda: len(running.notices()) == 4, WAIT_S, "its reference can be read now")
        wait_until(lambda: running.waiting == 1, WAIT_S, "the one that is no notice stays")
    ids = {n.notification_id for n in endpoint.notices()}
    assert ids == {"n1", "n2", "first", "second"}


def test_a_broker_that_is_away_is_no_lost_notice(tmp_path: Path, topic_prefix: str) -> None:
    """What cannot be stored is answered 503, so that the gateway sends it again."""
    handle = start_kafka(tmp_path / "kafka", jvm_flags=SHORT_LIVED, die_with_parent=True)
    flow = EngineFlow(handle.bootstrap_servers, topic_prefix, tmp_path / "state").provisioned()
    endpoint = Endpoint(flow, delivery_timeout_ms=1_000)
    try:
        with endpoint.running() as running:
            ours = body(id="n1", merchant_id="shop", order_id="o1", charge="ch_1")
            # A broker that has just started may need longer than that for its first answer.
            wait_until(lambda: running.post(ours) == 200, 60, "it is stored")
            before = endpoint.counted[("simulator", "not_stored")]
            stop_kafka(handle)
            assert running.post(ours) == 503
    finally:
        stop_kafka(handle)
    assert endpoint.counted[("simulator", "not_stored")] == before + 1
