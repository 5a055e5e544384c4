"""Some kilobytes that unfold to 300 MiB, in every topic that a stage reads: one letter, and on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from sqlalchemy import Engine, text

from consumers.ledger_sink import LedgerSink
from consumers.notifier.database import open_callbacks
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.notifier import Notifier
from consumers.settlement_subscriber import Poison, SettlementSubscriber
from pipeline.audit import log_copy
from pipeline.audit.trace import trace
from pipeline.audit.verify import Sources, verify
from pipeline.domain.keys import record_key, reference_key
from pipeline.domain.model import ControlEntry, GatewayNotification, GatewayReference
from pipeline.domain.policy import Policy
from pipeline.domain.route_rules import ROUTING
from pipeline.errors import UserError
from pipeline.ledger.database import open_ledger
from pipeline.observability.metrics import Metrics
from pipeline.runtime import standstill
from pipeline.runtime.control import ControlReader, change_entry, read_records
from pipeline.runtime.control_standing import standing
from pipeline.runtime.heavy_batches import HeavyBatches
from pipeline.runtime.live_policy import LivePolicy
from pipeline.runtime.redrive.letter_log import LetterLog
from pipeline.runtime.redrive.plan import Markers
from pipeline.runtime.topic_reader import TopicReader
from producers.webhook_desk import Taken, WebhookDesk
from schemas.codec import default_codec
from tests.support.engine_flow import EngineFlow, RunningWorker, ends_of, headers_of
from tests.support.foreign_transaction import open_transaction_with
from tests.support.raw_record import (
    GZIP,
    LZ4,
    ZSTD,
    answer_to_batch,
    batch_bytes,
    gzip_members,
    lz4_frame,
    produce_raw,
    record_bytes,
    zeros,
)
from tests.support.waiting import WAIT_S, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.long]

# Beyond the 256 MiB that our clients take.
BOMB = zeros(300)


@pytest.fixture
def flow(kafka: str, topic_prefix: str, tmp_path: Path) -> EngineFlow:
    return EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()


def put_bomb(flow: EngineFlow, role: str) -> None:
    produce_raw(flow.bootstrap, flow.topic(role), BOMB, ZSTD)


def the_letter(flow: EngineFlow, role: str, stage: str) -> Message:
    """The one letter there is: of the batch in this topic, whole."""
    (letter,) = flow.messages("dead-letters")
    headers = headers_of(letter)
    assert headers["dlq.cause"] == "unreadable_batch"
    assert (headers["dlq.topic"], headers["dlq.stage"]) == (flow.topic(role), stage)
    assert headers["dlq.batch_records"] == "1"
    assert (letter.value() or b"").endswith(BOMB)
    return letter


def test_orders_around_it_are_asked_for_and_the_audit_reads_on(flow: EngineFlow) -> None:
    """The letter is there once, in the transaction of the offsets; `verify` names what has not been
    buried yet and nothing once it is, `trace` says what it cannot know."""
    first = flow.send_order(flow.order("before"))
    put_bomb(flow, "orders")
    last = flow.send_order(flow.order("after"))
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    waiting = {f.name: f.example.offset for f in judged.pending}
    assert waiting["unreadable_batch"] == 1
    assert judged.broken == []
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(first, last), running=running)
    letter = the_letter(flow, "orders", "payments")
    assert headers_of(letter)["dlq.offset"] == headers_of(letter)["dlq.last_offset"] == "1"
    assert [r.order_id for r in flow.nouns("payment-requests")] == ["before", "after"]
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    assert judged.broken == []
    assert "unreadable_batch" not in {f.name for f in judged.findings}
    traced = trace(Sources(flow.bootstrap, flow.prefix), "shop:after")
    assert traced.hops
    (remark,) = traced.remarks
    assert f"{flow.topic('orders')}[0]@1 to 1 cannot be decompressed" in remark


def test_the_audit_goes_around_gzip_that_would_end_its_process(flow: EngineFlow) -> None:
    """Its first member is empty. Those before it come in one answer with it."""
    before = [flow.send_order(flow.order(f"before{n}")) for n in range(20)]
    empty_first = gzip_members(b"", record_bytes(b"k", b"junk"))
    produce_raw(flow.bootstrap, flow.topic("orders"), empty_first, GZIP)
    last = flow.send_order(flow.order("after"))
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    assert [f.example.offset for f in judged.pending if f.name == "unreadable_batch"] == [20]
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*before, last), running=running)
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    assert judged.broken == []
    assert "unreadable_batch" not in {f.name for f in judged.findings}
    assert sum(judged.summary["payments"].values()) == 21
    traced = trace(Sources(flow.bootstrap, flow.prefix), "shop:after")
    assert traced.hops
    (remark,) = traced.remarks
    assert f"{flow.topic('orders')}[0]@20 to 20 cannot be decompressed" in remark


def test_one_that_was_passed_over_without_a_letter_is_a_finding(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `paystream positions step-over`."""
    put_bomb(flow, "orders")
    last = flow.send_order(flow.order("after"))
    monkeypatch.setattr("pipeline.runtime.table_worker.unreadable_letter", lambda *_, **__: [])
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    (found,) = judged.broken
    assert (found.name, found.example.topic, found.example.offset) == (
        "unreadable_batch", flow.topic("orders"), 0
    )  # fmt: skip


def test_requests_around_it_are_called(flow: EngineFlow) -> None:
    """Nobody can tell whose the others were, so no payment hears of them."""
    flow.send_request(flow.order("before"))
    put_bomb(flow, "payment-requests")
    last = flow.send_request(flow.order("after"))
    running = RunningWorker(*flow.gateway_worker())
    try:
        flow.wait_consumed(ends_of(last), running=running, stage="gateway", role="payment-requests")
    finally:
        running.end()
    assert running.error is None
    the_letter(flow, "payment-requests", "gateway")
    assert [r.order_id for r in flow.nouns("gateway-results")] == ["before", "after"]


def end_with(worker: Any, until: Callable[[], bool]) -> None:
    """Run what has a ``run`` in a thread until it is so; what ended it is raised here."""
    stop, ended = threading.Event(), []

    def run() -> None:
        try:
            worker.run(stop)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: bool(ended) or until(), WAIT_S, "it has gone on behind the batch")
    finally:
        stop.set()
        thread.join(60)
    assert ended == []


# A record without a value, as a length of -2 says to Java; the client cannot parse it.
NO_VALUE = bytes((14, 0, 0, 0, 2, 107, 3, 0))
SILENT = pytest.mark.parametrize(
    ("records", "codec"), [(BOMB, ZSTD), (NO_VALUE, 0)], ids=["said", "in silence"]
)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standstill, "LOOK_S", 0.1)
    monkeypatch.setattr(standstill, "STANDS_S", 1.0)
    monkeypatch.setattr(log_copy, "STALL_TIMEOUT_S", 3.0)


def ledger_sink(flow: EngineFlow, engine: Engine) -> LedgerSink:
    return LedgerSink(
        bootstrap_servers=flow.bootstrap,
        engine=engine,
        catalogue=flow.catalogue,
        codec=default_codec(),
        instance_id="a",
    )


@SILENT
def test_the_ledger_goes_on_behind_it(
    flow: EngineFlow, tmp_path: Path, impatient: None, records: bytes, codec: int
) -> None:
    """What it buries and what lies behind are read by the offset in its database. Of one that the
    client passes by in silence it stood there for ever."""
    produce_raw(flow.bootstrap, flow.topic("settlements"), records, codec)
    flow.send("settlements", record_key("shop", "o1"), b"junk")
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    sink = ledger_sink(flow, engine)
    end_with(sink, lambda: len(flow.messages("dead-letters")) == 2)
    unread, junk = (headers_of(letter) for letter in flow.messages("dead-letters"))
    assert (unread["dlq.cause"], unread["dlq.offset"]) == ("unreadable_batch", "0")
    assert (junk["dlq.cause"], junk["dlq.offset"]) == ("not_wire_format", "1")
    with engine.connect() as connection:
        stored = (
            connection.execute(text("select next_offset from consumer_offsets")).scalars().all()
        )
    assert list(stored) == [2]
    engine.dispose()


def test_the_ledger_passes_over_nothing_that_the_client_leaves_out(
    flow: EngineFlow, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of the log the client calls all of it read, long before anybody looks."""
    monkeypatch.setattr(standstill, "STANDS_S", 8.0)
    one, two = record_bytes(b"k", b"junk"), record_bytes(b"k", b"junk", offset=1)
    produce_raw(flow.bootstrap, flow.topic("settlements"), gzip_members(one, two), GZIP, count=2)
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    sink = ledger_sink(flow, engine)
    end_with(sink, lambda: len(flow.messages("dead-letters")) == 2)
    read, unread = (headers_of(letter) for letter in flow.messages("dead-letters"))
    assert (read["dlq.cause"], read["dlq.offset"]) == ("not_wire_format", "0")
    assert (unread["dlq.cause"], unread["dlq.last_offset"]) == ("unreadable_batch", "1")
    engine.dispose()


@SILENT
def test_the_notifications_go_on_behind_it(
    flow: EngineFlow, tmp_path: Path, impatient: None, records: bytes, codec: int
) -> None:
    """It stood there once without a word."""
    produce_raw(flow.bootstrap, flow.topic("payment-events"), records, codec)
    flow.send("payment-events", record_key("shop", "o1"), b"junk")
    (tmp_path / "endpoints.toml").write_text("")
    engine = open_callbacks(f"sqlite:///{tmp_path / 'callbacks.sqlite'}")
    notifier = Notifier(
        bootstrap_servers=flow.bootstrap,
        engine=engine,
        catalogue=flow.catalogue,
        codec=default_codec(),
        endpoints=EndpointFile(tmp_path / "endpoints.toml"),
        instance_id="a",
        first_ms=1_000,
    )
    end_with(notifier, lambda: len(flow.messages("dead-letters")) == 2)
    unread, junk = (headers_of(letter) for letter in flow.messages("dead-letters"))
    assert (unread["dlq.cause"], unread["dlq.stage"]) == ("unreadable_batch", "notifications")
    assert junk["dlq.cause"] == "not_wire_format"
    engine.dispose()


# The second record lies across two members of gzip.
CUT = record_bytes(b"k", b"junk"), record_bytes(b"k", b"junk", offset=1)


@pytest.mark.parametrize(
    ("records", "codec", "count"),
    [
        (lz4_frame(record_bytes(b"k", b"v")) + b"more", LZ4, 1),
        (gzip_members(CUT[0][:4], CUT[0][4:]), GZIP, 1),
        (gzip_members(CUT[0] + CUT[1][:4], CUT[1][4:]), GZIP, 2),
        (NO_VALUE, 0, 1),
    ],
    ids=["bytes behind lz4", "gzip of two", "gzip of two, one read", "a length of -2"],
)
def test_what_a_broker_takes_and_the_client_cannot_read_stops_no_running_stage(
    flow: EngineFlow, impatient: None, records: bytes, codec: int, count: int
) -> None:
    """Most of them the client passes by in silence: its partition stood for ever."""
    first = flow.send_order(flow.order("before"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(first), running=running)
        produce_raw(flow.bootstrap, flow.topic("orders"), records, codec, count=count)
        last = flow.send_order(flow.order("after"))
        flow.wait_consumed(ends_of(last), running=running)
    letter = flow.messages("dead-letters")[-1]
    headers = headers_of(letter)
    assert (headers["dlq.cause"], headers["dlq.offset"]) == ("unreadable_batch", "1")
    assert headers["dlq.last_offset"] == str(count)
    assert (letter.value() or b"").endswith(records)
    assert [r.order_id for r in flow.nouns("payment-requests")] == ["before", "after"]
    # The audit meets it as well; where a part was read, that part's letter has the same offset.
    if count == 1:
        assert verify(Sources(flow.bootstrap, flow.prefix)).broken == []


@pytest.mark.parametrize("stage", ["payments", "gateway"])
def test_a_start_passes_over_it_before_another_that_is_kept_from_the_client(
    flow: EngineFlow, impatient: None, stage: str
) -> None:
    """What lies before that one is brought by a client of its own, which hears nothing either."""
    role = "orders" if stage == "payments" else "payment-requests"
    send = flow.send_order if stage == "payments" else flow.send_request
    send(flow.order("before"))
    produce_raw(flow.bootstrap, flow.topic(role), NO_VALUE)
    send(flow.order("between"))
    produce_raw(flow.bootstrap, flow.topic(role), gzip_members(CUT[0][:4], CUT[0][4:]), GZIP)
    last = send(flow.order("after"))
    worker = flow.payments_worker() if stage == "payments" else flow.gateway_worker()
    running = RunningWorker(*worker)
    try:
        flow.wait_consumed(ends_of(last), running=running, stage=stage, role=role)
    finally:
        running.end()
    assert running.error is None
    told = [headers_of(letter) for letter in flow.messages("dead-letters")]
    assert [(each["dlq.cause"], each["dlq.offset"]) for each in told] == [
        ("unreadable_batch", "1"),
        ("unreadable_batch", "3"),
    ]
    done = flow.nouns("payment-requests" if stage == "payments" else "gateway-results")
    assert [each.order_id for each in done] == ["before", "between", "after"]


def test_requests_behind_what_the_client_passes_by_in_silence_are_called(
    flow: EngineFlow, impatient: None
) -> None:
    first = flow.send_request(flow.order("before"))
    running = RunningWorker(*flow.gateway_worker())
    try:
        waited = {"running": running, "stage": "gateway", "role": "payment-requests"}
        flow.wait_consumed(ends_of(first), **waited)
        produce_raw(flow.bootstrap, flow.topic("payment-requests"), NO_VALUE)
        last = flow.send_request(flow.order("after"))
        flow.wait_consumed(ends_of(last), **waited)
    finally:
        running.end()
    assert running.error is None
    (letter,) = flow.messages("dead-letters")
    assert headers_of(letter)["dlq.cause"] == "unreadable_batch"
    assert [r.order_id for r in flow.nouns("gateway-results")] == ["before", "after"]


@pytest.mark.parametrize(
    "batch",
    [
        batch_bytes(record_bytes(b"k", b"v"), last=5),
        batch_bytes(record_bytes(b"k", b"v") + record_bytes(b"k", b"v", offset=1), count=2, last=0),
        batch_bytes(lz4_frame(record_bytes(b"k", b"v", offset=5)), LZ4),
        batch_bytes(gzip_members(record_bytes(b"k", b"v", offset=5)), GZIP),
    ],
    ids=["a last one too high", "a last one too low", "lz4", "gzip"],
)
def test_false_offsets_that_a_broker_looks_at_come_into_no_log(
    flow: EngineFlow, batch: bytes
) -> None:
    """Of the batch's own head, and of the records of a compressed one."""
    assert answer_to_batch(flow.bootstrap, flow.topic("orders"), batch) != 0
    assert flow.messages("orders") == []


@pytest.mark.parametrize("deltas", [(5,), (1_000,), (-1,), (1, 0), (0, 0), (0, 5, 1)])
def test_offsets_that_records_falsely_give_of_themselves_move_no_position(
    flow: EngineFlow, impatient: None, deltas: tuple[int, ...]
) -> None:
    """A broker takes them, and the client hands them out: what came at the places that they say was
    passed over, or the worker ended behind the end of the log. Of those before their place the
    client hands out nothing."""
    records = b"".join(record_bytes(b"k", b"junk", offset=each) for each in deltas)
    orders, count = flow.topic("orders"), len(deltas)
    first = flow.send_order(flow.order("first"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(first), running=running)
        produce_raw(flow.bootstrap, orders, records, count=count)
        sent = [flow.send_order(flow.order(f"o{n}")) for n in range(4)]
        flow.wait_consumed(ends_of(*sent), running=running)
        # At the end of the log, behind which the client asks for more.
        produce_raw(flow.bootstrap, orders, records, count=count)
        end = 5 + 2 * count
        flow.wait_consumed({0: end}, running=running)
    # One that a start finds.
    produce_raw(flow.bootstrap, orders, records, count=count)
    sent = [flow.send_order(flow.order(f"o{n}")) for n in range(4, 8)]
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*sent), running=running)
    assert flow.committed("payments", "orders")[0] == end + count + 4
    asked = [r.order_id for r in flow.nouns("payment-requests")]
    assert asked == ["first", *(f"o{n}" for n in range(8))]
    unread = [
        each
        for each in map(headers_of, flow.messages("dead-letters"))
        if each["dlq.cause"] == "unreadable_batch"
    ]
    begins = [1, 5 + count, end]
    assert [int(each["dlq.offset"]) for each in unread] == begins
    assert [int(each["dlq.last_offset"]) for each in unread] == [b + count - 1 for b in begins]
    assert unread[0]["dlq.detail"].endswith("give other offsets of themselves (none)")
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    # Where the first record was in its place, and came alone, it has a letter of its own.
    own = {"dead_letter_duplicated", "dead_letter_without_lineage"} if deltas[0] == 0 else set()
    assert {f.name for f in judged.broken} <= own


def test_records_that_the_client_leaves_out_of_gzip_are_one_letter(
    flow: EngineFlow, impatient: None
) -> None:
    """The first member ends between two records, and of the others nothing was said. Also at the
    end of the log, where nothing that comes behind them tells."""
    one, two = record_bytes(b"k", b"junk"), record_bytes(b"k", b"junk", offset=1)
    before = flow.send_order(flow.order("before"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(before), running=running)
        produce_raw(flow.bootstrap, flow.topic("orders"), gzip_members(one, two), GZIP, count=2)
        flow.wait_consumed({0: 2}, running=running)
        last = flow.send_order(flow.order("after"))
        flow.wait_consumed(ends_of(last), running=running)
        produce_raw(flow.bootstrap, flow.topic("orders"), gzip_members(one, two), GZIP, count=2)
        flow.wait_consumed({0: 6}, running=running)
    told = [headers_of(letter) for letter in flow.messages("dead-letters")]
    unread = [each for each in told if each["dlq.cause"] == "unreadable_batch"]
    assert [(each["dlq.offset"], each["dlq.last_offset"]) for each in unread] == [
        ("1", "2"), ("4", "5")
    ]  # fmt: skip
    assert [r.order_id for r in flow.nouns("payment-requests")] == ["before", "after"]


@pytest.mark.parametrize("looks", [True, False], ids=["found ahead", "met"])
def test_none_of_them_takes_a_neighbour_along(
    flow: EngineFlow, impatient: None, monkeypatch: pytest.MonkeyPatch, looks: bool
) -> None:
    """All of them and the orders between come with one answer of the broker."""
    one, two = record_bytes(b"k", b"junk"), record_bytes(b"k", b"junk", offset=1)
    bad = [
        (lz4_frame(one) + b"more", LZ4, 1),
        (NO_VALUE, 0, 1),
        (gzip_members(one, two), GZIP, 2),
        (BOMB, ZSTD, 1),
        (record_bytes(b"k", b"junk", offset=5), 0, 1),
        (gzip_members(one[:4], one[4:]), GZIP, 1),
    ]
    places, names = [], []
    for number, (records, codec, count) in enumerate(bad):
        names.append(f"o{number}")
        _, at = flow.send_order(flow.order(names[-1]))
        places.append((at + 1, at + count))
        produce_raw(flow.bootstrap, flow.topic("orders"), records, codec, count=count)
    last = flow.send_order(flow.order("last"))
    if not looks:
        monkeypatch.setattr(HeavyBatches, "look", lambda *_: None)
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    told = [headers_of(letter) for letter in flow.messages("dead-letters")]
    assert [
        (int(each["dlq.offset"]), int(each["dlq.last_offset"]))
        for each in told
        if each["dlq.cause"] == "unreadable_batch"
    ] == places
    assert [r.order_id for r in flow.nouns("payment-requests")] == [*names, "last"]


def test_orders_of_transactions_are_each_read_once(flow: EngineFlow) -> None:
    """Also around what was aborted; the offsets of markers belong to no record."""
    producer = Producer(
        {"bootstrap.servers": flow.bootstrap, "transactional.id": f"{flow.prefix}foreign"}
    )
    producer.init_transactions(30)
    for number in range(20):
        producer.begin_transaction()
        for order in (flow.order(f"o{number}"), flow.order(f"p{number}")):
            key = record_key(order.merchant_id, order.order_id)
            producer.produce(flow.topic("orders"), flow.encode("order", order), key, 0)
        producer.flush(30)
        if number % 3:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    last = flow.send_order(flow.order("after"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    assert flow.messages("dead-letters") == []
    assert [r.order_id for r in flow.nouns("payment-requests")] == [
        *(f"{each}{n}" for n in range(20) if n % 3 for each in "op"), "after"
    ]  # fmt: skip


def test_a_partition_that_stands_for_good_reason_loses_nothing(
    flow: EngineFlow, impatient: None
) -> None:
    """Aborted records at the end, an open transaction, and a record that comes while its brokers
    are asked."""
    orders = flow.topic("orders")
    aborted, foreign = (
        open_transaction_with(flow.bootstrap, orders, f"{flow.prefix}{n}", NO_VALUE, 0)
        for n in range(2)
    )
    aborted.abort_transaction(30)
    with flow.running_payments() as running:
        for name in ("o1", "o2", "o3"):
            time.sleep(1.5)
            last = flow.send_order(flow.order(name))
        foreign.abort_transaction(30)
        flow.wait_consumed(ends_of(last), running=running)
    assert flow.messages("dead-letters") == []
    assert [r.order_id for r in flow.nouns("payment-requests")] == ["o1", "o2", "o3"]


@pytest.mark.parametrize("committed", [True, False])
def test_of_somebody_s_transaction_it_is_buried_only_if_that_was_committed(
    flow: EngineFlow, committed: bool
) -> None:
    """What was aborted is handed to nobody, so nobody buries it."""
    producer = open_transaction_with(
        flow.bootstrap, flow.topic("orders"), f"{flow.prefix}foreign", BOMB, ZSTD
    )
    if committed:
        producer.commit_transaction(30)
    else:
        producer.abort_transaction(30)
    last = flow.send_order(flow.order("after"))
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(last), running=running)
    causes = [headers_of(letter)["dlq.cause"] for letter in flow.messages("dead-letters")]
    assert causes == (["not_wire_format", "unreadable_batch"] if committed else [])
    assert [r.order_id for r in flow.nouns("payment-requests")] == ["after"]
    assert verify(Sources(flow.bootstrap, flow.prefix)).broken == []


def test_a_limit_lowered_below_our_batches_slows_the_flow_and_buries_nothing(
    flow: EngineFlow,
) -> None:
    """Of the topics that the payments worker writes to. What fits alone goes alone."""
    resources = []
    for role in ("payments", "payment-requests", "payment-events"):
        entry = ConfigEntry(
            "max.message.bytes", "4096", incremental_operation=AlterConfigOpType.SET
        )
        resources.append(
            ConfigResource(ResourceType.TOPIC, flow.topic(role), incremental_configs=[entry])
        )
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})
    for future in admin.incremental_alter_configs(resources).values():
        future.result(30)
    sent = [flow.send_order(flow.order(f"o{n}")) for n in range(1_000)]
    with flow.running_payments() as running:
        flow.wait_consumed(ends_of(*sent), running=running)
    assert flow.messages("dead-letters") == []
    assert len(flow.nouns("payment-requests")) == 1_000


@SILENT
def test_a_follower_of_settlements_passes_it_over_and_goes_on(
    flow: EngineFlow, impatient: None, records: bytes, codec: int
) -> None:
    """Told as one poison with its records' number; its group is behind it, so that it does not come
    again."""
    produce_raw(flow.bootstrap, flow.topic("settlements"), records, codec)
    flow.send("settlements", record_key("shop", "o1"), b"junk")
    seen: list[Poison] = []
    with SettlementSubscriber(
        flow.bootstrap,
        f"{flow.prefix}follower",
        topic=flow.topic("settlements"),
        start="earliest",
        on_poison=seen.append,
    ) as settlements:
        wait_until(lambda: settlements.poll(1) is None and len(seen) == 2, WAIT_S, "both are seen")
        assert settlements.commit()
    assert (seen[0].kind, seen[0].position.offset) == ("unreadable_batch", 0)
    assert seen[0].detail == "1 records up to offset 0"
    assert seen[1].position.offset == 1


def test_a_table_with_one_is_named_and_not_passed_over(flow: EngineFlow) -> None:
    """A payment that is missing there could be charged again."""
    produce_raw(flow.bootstrap, flow.topic("payments"), zeros(300, b"shop:o1"), ZSTD)
    worker, _ = flow.payments_worker()
    with pytest.raises(UserError, match=r"payments\[0\]@0 cannot be decompressed"):
        worker.run()


def keyed_bomb(flow: EngineFlow, role: str, key: bytes = b"k") -> None:
    """Of a topic that takes no record without a key."""
    produce_raw(flow.bootstrap, flow.topic(role), zeros(300, key), ZSTD)


def test_workers_start_without_it_and_follow_what_is_written_behind_it(flow: EngineFlow) -> None:
    """Of the control topic. No worker could start before, and each said that the cluster is away;
    the entry that stands stays in force."""

    def change(reason: str) -> None:
        change_entry(
            flow.bootstrap, flow.catalogue, flow.codec,
            key=ROUTING, value="{}", changed_by="tests", reason=reason, now_ms=1_000,
        )  # fmt: skip

    change("first")
    keyed_bomb(flow, "control", ROUTING.encode())
    seen: list[str] = []
    metrics = Metrics()
    policy = LivePolicy(Policy(), metrics=metrics)

    def on_entry(key: str, entry: ControlEntry | None) -> None:
        seen.append("" if entry is None else entry.reason)

    reader = ControlReader(flow.bootstrap, flow.catalogue, flow.codec, on_entry, policy.left_out)
    try:
        reader.start()
        assert seen == ["first"]
        refused = metrics.registry.get_sample_value(
            "paystream_control_entries_total", {"key": ROUTING, "result": "refused"}
        )
        assert refused == 1
        # A change reads what stands before it writes.
        change("second")
        wait_until(lambda: seen == ["first", "second"], WAIT_S, "the change is followed")
    finally:
        reader.close()
    told = read_records(flow.bootstrap, flow.catalogue, flow.codec)
    (why,) = [each.unreadable for each in told if not each.key]
    assert why is not None
    assert why.startswith(f"the batch at {flow.topic('control')}[0]@")
    assert "cannot be decompressed (zstd)" in why
    stands = standing(Policy(), told)[ROUTING]
    assert (stands.newest and stands.newest.version, stands.problems) == (2, ())


def test_letters_around_it_are_listed_and_it_is_named(flow: EngineFlow) -> None:
    """What holds the letters cannot be read in full, and says so; what says which of them have gone
    back is not passed over, since one could go back twice."""
    before = flow.send("dead-letters", b"shop:o1", b"junk")
    put_bomb(flow, "dead-letters")
    after = flow.send("dead-letters", b"shop:o1", b"junk")
    with LetterLog(flow.bootstrap, flow.catalogue, flow.codec) as log:
        assert [(each.partition, each.offset) for each in log.letters()] == [before, after]
        (said,) = log.left_out
        assert said.startswith(f"1 letters at {flow.topic('dead-letters')}[0]@1 are left out")
        keyed_bomb(flow, "dead-letter-markers")
        with pytest.raises(UserError, match=r"dead-letter-markers\[0\]@0 cannot be decompressed"):
            log.refresh(Markers())


def test_a_foreign_word_about_a_dead_letter_is_named_with_its_place(flow: EngineFlow) -> None:
    """It is not passed over: what it says of a letter may be that it went back."""
    flow.send("dead-letter-markers", b"shop:o1", b"junk")
    with (
        LetterLog(flow.bootstrap, flow.catalogue, flow.codec) as log,
        pytest.raises(
            UserError, match=r"dead-letter-markers\[0\]@0 is no word about a dead letter"
        ),
    ):
        log.refresh(Markers())


def test_a_reader_of_the_past_ends_there_unless_it_goes_on_without(flow: EngineFlow) -> None:
    """And never says that the broker is away."""
    flow.send("settlements", b"shop:o1", b"one")
    put_bomb(flow, "settlements")
    flow.send("settlements", b"shop:o1", b"two")
    put_bomb(flow, "settlements")
    passed: list[int] = []
    reader = TopicReader(flow.bootstrap, lambda batch: passed.append(batch.first_offset))
    topic = flow.topic("settlements")
    assert [each.value for each in reader.by_time(topic, None, None)] == [b"one", b"two"]
    assert passed == [1, 3]
    with pytest.raises(UserError, match=r"settlements\[0\]@1 cannot be decompressed \(zstd, 1 rec"):
        list(TopicReader(flow.bootstrap).by_time(topic, None, None))


def test_references_and_parked_notices_behind_it_are_followed(flow: EngineFlow) -> None:
    """Each is one letter, and is not met again by the next run."""
    keyed_bomb(flow, "gateway-references")
    keyed_bomb(flow, "parked-notices")
    notice = GatewayNotification(
        merchant_id="", order_id="", payment_id="", notification_id="n1", gateway="simulator",
        type="charge", amount_minor=1, currency="GBP", received_at_ms=1, gateway_reference="ch_1",
    )  # fmt: skip
    reference = GatewayReference(
        gateway="simulator", gateway_reference="ch_1", merchant_id="shop", order_id="o1",
        payment_id="p", operation_id="o1", attempt=1, kind="charge",
    )  # fmt: skip
    alerts: list[int] = []

    @contextmanager
    def following() -> Iterator[WebhookDesk]:
        desk = WebhookDesk(
            flow.bootstrap,
            catalogue=flow.catalogue,
            codec=flow.codec,
            state_dir=flow.state_dir,
            on_unreadable=lambda: alerts.append(1),
        )
        desk.open()
        stop = threading.Event()

        def poll() -> None:
            while not stop.is_set():
                desk.poll(0.05)

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield desk
            assert desk.failure is None
        finally:
            stop.set()
            thread.join()
            desk.close()

    with following() as desk:
        assert desk.take(notice).result(30) == Taken.PARKED
        key = reference_key("simulator", "ch_1")
        flow.send("gateway-references", key, flow.encode("gateway-reference", reference))
        wait_until(lambda: flow.messages("gateway-notifications"), WAIT_S, "the notice has gone on")
    assert [n.order_id for n in flow.nouns("gateway-notifications")] == ["o1"]
    found = {headers_of(each)["dlq.topic"] for each in flow.messages("dead-letters")}
    assert found == {flow.topic("gateway-references"), flow.topic("parked-notices")}
    assert len(alerts) == 2
    with following() as desk:
        assert desk.take(notice).result(30) == Taken.PUBLISHED
    assert len(flow.messages("dead-letters")) == 2
    assert verify(Sources(flow.bootstrap, flow.prefix)).broken == []
