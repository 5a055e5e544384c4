"""Merchants told over HTTP of events on a real broker: order, retries, crashes, isolation."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from msgspec.structs import replace
from sqlalchemy import Engine

from consumers.notifier.database import open_callbacks
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.notifier import Notifier
from consumers.notifier.store import CallbackStore, StoreAway
from pipeline.domain.ids import event_id, payment_id
from pipeline.domain.keys import record_key
from pipeline.domain.model import PaymentEvent
from pipeline.domain.records import to_record
from pipeline.runtime.failpoints import fired
from schemas.codec import default_codec
from tests.support.cli import Cli
from tests.support.ports import free_port
from tests.support.receiver import SECRET, Heard, Receiver
from tests.support.topics import create_topic, read_all
from tests.support.waiting import WAIT_S, wait_until
from topics.catalogue import Catalogue, TopicSettings, build_catalogue

pytestmark = pytest.mark.integration

PARTITIONS = 2
FIRST_MS = 200
OTHER_SECRET = "whsec_" + "YW5vdGhlciBrZXkgb2YgMjQgYnl0ZXMh"
ENCODE = default_codec().encoder("payment-event")


def event(merchant: str, order: str, sequence: int, kind: str = "captured") -> PaymentEvent:
    payment = payment_id(merchant, order)
    return PaymentEvent(
        event_id=event_id(payment, sequence),
        merchant_id=merchant,
        order_id=order,
        payment_id=payment,
        sequence=sequence,
        type=kind,
        status="captured",
        amount_minor=1250,
        currency="GBP",
        occurred_at_ms=1_790_000_000_000 + sequence,
    )


def table(name: str, merchant: str, url: str, *secrets: str, more: str = "") -> str:
    quoted = ", ".join(f'"{secret}"' for secret in secrets or (SECRET,))
    return (
        f'[endpoints.{name}]\nmerchant = "{merchant}"\nurl = "{url}"\n'
        f"secrets = [{quoted}]\n{more}\n"
    )


class Flow:
    """The topics of one test, its file of endpoints and its database."""

    def __init__(self, kafka: str, prefix: str, folder: Path) -> None:
        self.kafka, self.prefix, self.folder = kafka, prefix, folder
        self.catalogue: Catalogue = build_catalogue(
            TopicSettings(prefix=prefix, partitions=PARTITIONS)
        )
        self.topic = self.catalogue.name("payment-events")
        for role in ("payment-events", "dead-letters"):
            spec = self.catalogue[role]
            create_topic(kafka, spec.name, spec.partitions, config=spec.config)
        self.file = folder / "endpoints.toml"
        self.url = f"sqlite:///{folder / 'callbacks.sqlite'}"
        self.engine: Engine = open_callbacks(self.url)
        self.store = CallbackStore(self.engine)
        self._producer = Producer(
            {"bootstrap.servers": kafka, "partitioner": "murmur2_random", "linger.ms": 1}
        )

    def configure(self, *tables: str) -> None:
        self.file.write_text("\n".join(tables))

    def publish(self, *events: PaymentEvent) -> None:
        for each in events:
            self._producer.produce(
                self.topic, ENCODE(to_record(each)), record_key(each.merchant_id, each.order_id)
            )
        assert self._producer.flush(30) == 0

    def publish_raw(self, key: bytes, value: bytes) -> None:
        self._producer.produce(self.topic, value, key)
        assert self._producer.flush(30) == 0

    @contextmanager
    def running(self, instance: str = "a", **options: Any) -> Iterator[Notifier]:
        """A notifier in a thread; what ended it is raised here."""
        allowed = {"allow_http": True, "allow_private": True}
        notifier = Notifier(
            bootstrap_servers=self.kafka,
            engine=self.engine,
            catalogue=self.catalogue,
            codec=default_codec(),
            endpoints=EndpointFile(self.file, **allowed),
            instance_id=instance,
            first_ms=FIRST_MS,
            **{**allowed, **options},
        )
        stop = threading.Event()
        ended: list[BaseException] = []

        def run() -> None:
            try:
                notifier.run(stop)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield notifier
        finally:
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
        if ended:
            raise ended[0]

    def process(self, failpoint: str = "", kills: Path | None = None) -> subprocess.Popen[bytes]:
        """The worker as a process of its own, which a failpoint may kill."""
        spec = {
            "bootstrap": self.kafka, "url": self.url, "prefix": self.prefix,
            "partitions": PARTITIONS, "file": str(self.file), "first_ms": FIRST_MS,
        }  # fmt: skip

        env = {**os.environ, "PAYSTREAM_FAILPOINTS": failpoint}
        if kills is not None:
            env["PAYSTREAM_FAILPOINTS_DIR"] = str(kills)
        with (self.folder / "process.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "tests.support.notifier_process", json.dumps(spec)],
                stdout=log, stderr=log, env=env,
            )  # fmt: skip


@pytest.fixture
def flow(kafka: str, topic_prefix: str, tmp_path: Path) -> Iterator[Flow]:
    flow = Flow(kafka, topic_prefix, tmp_path)
    yield flow
    flow.engine.dispose()


def heard(receiver: Receiver, count: int, what: str = "all are heard") -> list[Heard]:
    wait_until(lambda: len(receiver.heard) >= count, WAIT_S, what)
    return receiver.heard


def settled(flow: Flow, state: str, count: int) -> None:
    wait_until(lambda: len(flow.store.find(state=state)) == count, WAIT_S, f"{count} {state}")


def test_a_merchant_is_told_of_its_events_in_order_and_believes_them(flow: Flow) -> None:
    """Signed, with the event's id, only its own merchant's, each once while all is well."""
    with Receiver().listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        steps = ["payment_started", "authorized", "captured", "refunded"]
        flow.publish(*(event("shop", "1", n, kind) for n, kind in enumerate(steps, 1)))
        flow.publish(event("other", "1", 1))
        with flow.running():
            settled(flow, "delivered", 3)
    assert [each.said["type"] for each in receiver.heard] == [
        "payment.authorized", "payment.captured", "payment.refunded",
    ]  # fmt: skip
    payment = payment_id("shop", "1")
    assert receiver.ids == [event_id(payment, n) for n in (2, 3, 4)]
    assert {each.refusal for each in receiver.heard} == {None}
    assert receiver.heard[1].data["amount_minor"] == 1250


def test_a_failing_first_delivery_holds_its_payment_in_order_and_no_other(flow: Flow) -> None:
    """The second event waits for the first one's next try; another payment does not."""
    first_id = event_id(payment_id("shop", "1"), 1)
    refusals = iter([503, 503])

    def answer(_number: int, said: Heard) -> int:
        return next(refusals, 204) if said.id == first_id else 204

    with Receiver(answer=answer).listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        flow.publish(event("shop", "1", 1), event("shop", "1", 2), event("shop", "2", 1))
        with flow.running():
            settled(flow, "delivered", 3)
            # An event that comes while nothing waits goes out as well.
            flow.publish(event("shop", "1", 3))
            settled(flow, "delivered", 4)
    mine = [each.data["sequence"] for each in receiver.heard if each.data["order_id"] == "1"]
    assert mine == [1, 1, 1, 2, 3]
    others = [n for n, each in enumerate(receiver.heard) if each.data["order_id"] == "2"]
    assert others[0] <= 1, "the other payment waited for the first one's retries"


@pytest.mark.parametrize("point", ["notifications.taken", "notifications.delivered"])
def test_a_kill_loses_nothing_and_repeats_under_the_same_id(
    flow: Flow, tmp_path: Path, point: str
) -> None:
    """Killed after the answer and before it is written down: the same message comes again.
    Killed after events were taken: they are delivered by the next."""
    kills = tmp_path / "kills"
    kills.mkdir()
    expected = [event_id(payment_id("shop", f"{n}"), 1) for n in range(30)]
    with Receiver().listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        for start in (0, 10, 20):
            flow.publish(*(event("shop", f"{n}", 1) for n in range(start, start + 10)))
            process = flow.process(f"{point}=2", kills)
            if start < 20:
                assert process.wait(60) == -9, (tmp_path / "process.log").read_text()
        try:
            settled(flow, "delivered", 30)
        finally:
            process.terminate()
            assert process.wait(60) == 0, (tmp_path / "process.log").read_text()
    assert fired(kills) == {point: 2}
    assert set(receiver.ids) == set(expected)
    assert {each.refusal for each in receiver.heard} == {None}
    if point == "notifications.delivered":
        assert len(receiver.heard) > 30, "nothing was repeated, so nothing was tried"


def test_dead_and_slow_endpoints_do_not_delay_another_merchant(
    flow: Flow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One refuses connections, one does not answer, the name servers of 16 do not either; the last
    merchant, found by name, is told all of its 60 events while all of them still hang."""
    over = threading.Event()
    resolve = socket.getaddrinfo

    def hanging_lookup(host: str, *rest: Any, **more: Any) -> Any:
        if host.endswith(".example"):
            over.wait(WAIT_S)
            raise socket.gaierror(socket.EAI_AGAIN, "the name server does not answer")
        return resolve(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", hanging_lookup)

    def answers_late(_number: int, _said: Heard) -> int:
        over.wait(WAIT_S)
        return 204

    slow = Receiver(answer=answers_late)
    nameless = [f"nameless-{n}" for n in range(16)]
    with Receiver().listening() as good, slow.listening():
        flow.configure(
            table("good", "good", good.url.replace("127.0.0.1", "localhost")),
            table("dead", "dead", f"http://127.0.0.1:{free_port()}/"),
            table("slow", "slow", slow.url, more="timeout_ms = 60000"),
            *(table(n, n, f"http://{n}.example/", more="timeout_ms = 60000") for n in nameless),
        )
        for merchant in ("dead", "slow", *nameless):
            flow.publish(*(event(merchant, f"{n}", 1) for n in range(5)))
        try:
            with flow.running():
                wait_until(lambda: len(slow.heard) == 1, WAIT_S, "the slow one is being called")
                flow.publish(*(event("good", f"{n}", 1) for n in range(60)))
                heard(good, 60)
                assert len(slow.heard) == 1, "one that has taken nothing yet has more than one open"
                tried = [r for r in flow.store.find(endpoint="slow") if r["tries"]]
                assert tried == [], "the good one was told only after the slow one had ended"
                over.set()
        finally:
            over.set()
    assert len(set(good.ids)) == 60
    dead = flow.store.find(endpoint="dead")
    assert {row["state"] for row in dead} == {"waiting"}
    told = flow.store.deliveries_of(row["event_id"] for row in dead)
    outcomes = {
        row["outcome"] for (name, _), rows in told.items() if name == "dead" for row in rows
    }
    assert outcomes == {"unreachable"}


def test_a_secret_is_rotated_without_a_gap(flow: Flow) -> None:
    """With both, each message carries a signature of each; a receiver believes either way, before
    and after it changes its own. The file is followed while the worker runs."""
    with Receiver().listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        with flow.running():
            flow.publish(event("shop", "1", 1))
            heard(receiver, 1)
            flow.configure(table("main", "shop", receiver.url, OTHER_SECRET, SECRET))
            n = 1
            for n in range(2, 500):
                flow.publish(event("shop", "1", n))
                if heard(receiver, n)[-1].signatures == 2:
                    break
            receiver.secret = OTHER_SECRET
            flow.publish(event("shop", "1", n + 1))
            heard(receiver, n + 1)
    assert {each.refusal for each in receiver.heard} == {None}
    assert receiver.heard[0].signatures == 1


@pytest.mark.long
def test_given_up_is_named_and_sent_again_by_hand_under_its_id(
    flow: Flow, tmp_path: Path, kafka: str
) -> None:
    """After the last try it ends; `webhooks log` shows why, `resend` delivers it with its old id,
    `test` tries the endpoint."""
    status = [500]
    cli = Cli(
        tmp_path / "cli",
        {
            "PAYSTREAM_BOOTSTRAP_SERVERS": kafka,
            "PAYSTREAM_CALLBACKS_URL": flow.url,
            "PAYSTREAM_MERCHANT_ENDPOINTS": str(flow.file),
            "PAYSTREAM_CALLBACK_ALLOW_HTTP": "true",
            "PAYSTREAM_CALLBACK_ALLOW_PRIVATE": "true",
        },
    )
    with Receiver(answer=lambda n, said: status[0]).listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        flow.publish(event("shop", "1", 1))
        with flow.running(tries_max=2):
            settled(flow, "given_up", 1)
            assert len(receiver.heard) == 2
            log = cli.run("webhooks", "log", "--merchant", "shop", "--given-up")
            assert log.code == 0, log.err
            assert "main: given_up, 2 tries" in log.out
            assert log.out.count("refused, status 500") == 2

            failed = cli.run("webhooks", "test", "main")
            assert (failed.code, "refused, status 500" in failed.out) == (1, True), failed
            status[0] = 200
            assert cli.run("webhooks", "test", "main").code == 0
            assert receiver.heard[-1].said["type"] == "paystream.test"

            nothing = cli.run("webhooks", "resend", "--endpoint", "nobody")
            assert nothing.code == 1, nothing
            asked = cli.run("webhooks", "resend", receiver.ids[0], "--by", "alice")
            assert "1 callbacks will be delivered again" in asked.out, asked
            settled(flow, "delivered", 1)
    assert receiver.ids[-1] == receiver.ids[0]
    assert {each.refusal for each in receiver.heard} == {None}
    log = cli.run("webhooks", "log", "--order", "1")
    assert "resend_asked, alice" in log.out
    assert re.search(r"try 1 delivered, status 200", log.out)


def test_an_event_that_cannot_be_read_is_put_aside_whole(flow: Flow) -> None:
    """Bad bytes, a key of another order and a time that none is go to the dead letters; the flow
    goes on."""
    with Receiver().listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        flow.publish_raw(b"shop:1", b"nonsense")
        flow.publish_raw(b"shop:2", ENCODE(to_record(event("shop", "1", 1))))
        timeless = replace(event("shop", "1", 1), occurred_at_ms=2**62)
        flow.publish_raw(b"shop:1", ENCODE(to_record(timeless)))
        flow.publish(event("shop", "1", 2))
        with flow.running():
            heard(receiver, 1)
            wait_until(
                lambda: len(read_all(flow.kafka, flow.catalogue.name("dead-letters"))) == 3,
                WAIT_S,
                "all three are dead letters",
            )
    letters = read_all(flow.kafka, flow.catalogue.name("dead-letters"))
    causes = {dict(each.headers() or [])["dlq.cause"] for each in letters}
    assert causes == {b"not_wire_format", b"key_mismatch", b"cannot_be_told"}
    assert {dict(each.headers() or [])["dlq.stage"] for each in letters} == {b"notifications"}
    assert receiver.ids == [event_id(payment_id("shop", "1"), 2)]


def test_where_it_begins_is_a_setting_and_then_the_database(flow: Flow) -> None:
    """With `latest` nothing of before is told; after a stop everything that came meanwhile is."""
    with Receiver().listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        flow.publish(event("shop", "old", 1))
        with flow.running(start="latest") as notifier:
            wait_until(lambda: len(notifier.reader.lanes) == PARTITIONS, WAIT_S, "it has begun")
        flow.publish(event("shop", "new", 1))
        with flow.running(start="latest"):
            settled(flow, "delivered", 1)
    assert [each.data["order_id"] for each in receiver.heard] == ["new"]


def test_two_workers_share_the_partitions(flow: Flow) -> None:
    """Each delivers its own partition's callbacks; together all, and what one leaves the other
    takes over."""
    with Receiver().listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        with flow.running("a", consumer_overrides={"session.timeout.ms": 6_000}) as a:
            with flow.running("b", consumer_overrides={"session.timeout.ms": 6_000}) as b:
                wait_until(
                    lambda: len(a.reader.lanes) == len(b.reader.lanes) == 1, WAIT_S, "both have one"
                )
                flow.publish(*(event("shop", f"{n}", 1) for n in range(20)))
                heard(receiver, 20)
            flow.publish(*(event("shop", f"{n}", 2) for n in range(20)))
            settled(flow, "delivered", 40)
    assert len(set(receiver.ids)) == 40


def test_a_database_that_is_away_is_waited_for(flow: Flow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read on, nothing is forgotten and nothing delivered twice by the same worker."""
    failing: dict[str, int] = {"take": 2, "record": 2, "due": 2, "waiting": 1}

    def away(name: str) -> None:
        real = getattr(CallbackStore, name)

        def sometimes(*given: Any, **more: Any) -> Any:
            if failing[name] > 0:
                failing[name] -= 1
                raise StoreAway(f"{name} does not work now")
            return real(*given, **more)

        monkeypatch.setattr(CallbackStore, name, sometimes)

    for name in failing:
        away(name)
    with Receiver().listening() as receiver:
        flow.configure(table("main", "shop", receiver.url))
        flow.publish(event("shop", "1", 1), event("shop", "1", 2), event("shop", "2", 1))
        with flow.running():
            settled(flow, "delivered", 3)
    assert set(failing.values()) == {0}
    assert len(receiver.ids) == len(set(receiver.ids)) == 3
