"""Nothing comes for longer than a topic is kept, and what was read of it is deleted: nobody who has
read all of it misses anything, though a transaction's marker lay behind the last record."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import select

from consumers.ledger_sink import LedgerSink, NoMetrics
from consumers.notifier.database import open_callbacks, positions
from consumers.notifier.endpoints import EndpointFile
from consumers.notifier.notifier import Notifier
from consumers.settlement_subscriber import SettlementSubscriber
from pipeline.audit.verify import Sources, verify
from pipeline.ledger.database import open_ledger, reading
from pipeline.ledger.queries import booked_offsets
from pipeline.runtime import standstill
from pipeline.runtime.standstill import Standstill
from schemas.codec import default_codec
from tests.support.engine_flow import EngineFlow, RunningWorker, until
from tests.support.topics import log_ends
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

INPUTS = [("payments", "orders"), ("payments", "gateway-results"), ("gateway", "payment-requests")]
IDLE = pytest.mark.parametrize("idle", [True, False], ids=["idle", "leaving"])


@pytest.fixture
def flow(kafka: str, topic_prefix: str, tmp_path: Path) -> EngineFlow:
    return EngineFlow(kafka, topic_prefix, tmp_path, partitions=1).provisioned()


@pytest.fixture
def at(idle: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its position goes on while it is idle, as if it were killed then; or as it leaves, long
    before it would stand."""
    if idle:
        monkeypatch.setattr(standstill, "LOOK_S", 0.1)
        monkeypatch.setattr(standstill, "STANDS_S", 0.5)
        monkeypatch.setattr(Standstill, "empty_now", lambda *_: {})
    else:
        monkeypatch.setattr(standstill, "STANDS_S", 1_000.0)


@contextmanager
def running_stages(flow: EngineFlow) -> Iterator[None]:
    """A payments and a gateway worker; what either died of is raised."""
    stages = [RunningWorker(*flow.payments_worker()), RunningWorker(*flow.gateway_worker())]
    try:
        yield
    finally:
        for each in stages:
            each.end()
    assert [each.error for each in stages] == [None, None]


def settled(flow: EngineFlow) -> list[str]:
    return [each.order_id for each in flow.nouns("settlements")]


def end_of(flow: EngineFlow, role: str) -> int:
    return log_ends(flow.bootstrap, flow.topic(role))[0]


def delete_what_was_read(flow: EngineFlow, *roles: str) -> None:
    """All that lies there, as retention does once it is old enough."""
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})
    asked = [TopicPartition(flow.topic(role), 0, -1) for role in roles]
    for deleted in admin.delete_records(asked).values():
        assert deleted.result(30).low_watermark > 0


@IDLE
def test_stages_start_again_where_all_that_they_had_read_is_gone(
    flow: EngineFlow, idle: bool, at: None
) -> None:
    def at_ends() -> bool:
        return all(flow.committed(stage, role)[0] == end_of(flow, role) for stage, role in INPUTS)

    with running_stages(flow):
        flow.send_order(flow.order("before"))
        until(lambda: settled(flow) == ["before"], "it is settled")
        if idle:
            until(at_ends, "the positions are behind the markers")
    assert at_ends()
    delete_what_was_read(flow, *(role for _, role in INPUTS))
    with running_stages(flow):
        flow.send_order(flow.order("after"))
        until(lambda: settled(flow) == ["before", "after"], "it is settled as well")
    judged = verify(Sources(flow.bootstrap, flow.prefix))
    assert {found.name for found in judged.broken} == set()


def test_a_stage_that_leaves_a_backlog_starts_again_where_what_it_had_read_is_gone(
    flow: EngineFlow,
) -> None:
    """The marker is deleted before the backlog behind it."""
    topic, allowed = flow.topic("orders"), threading.Event()
    allowed.set()
    upstream = Producer({"bootstrap.servers": flow.bootstrap, "transactional.id": topic})
    upstream.init_transactions(60)
    upstream.begin_transaction()
    upstream.produce(topic, flow.encode("order", flow.order("before")), b"shop:before", 0)
    upstream.commit_transaction(60)
    worker = RunningWorker(*flow.payments_worker(orders_allowed=allowed.is_set))
    try:
        until(lambda: flow.committed("payments", "orders")[0] == 1, "it is read")
        allowed.clear()
        assert flow.send_order(flow.order("after"))[1] == 2
    finally:
        worker.end()
    assert worker.error is None
    assert flow.committed("payments", "orders")[0] == 2
    admin = AdminClient({"bootstrap.servers": flow.bootstrap})
    for deleted in admin.delete_records([TopicPartition(topic, 0, 2)]).values():
        assert deleted.result(30).low_watermark == 2
    with flow.running_payments():
        until(lambda: len(flow.nouns("payment-requests")) == 2, "the backlog is read")


def settle(flow: EngineFlow, order_id: str) -> None:
    """A payments worker writes its settlement and events, in transactions."""
    order = flow.order(order_id)
    before = len(settled(flow))
    with flow.running_payments():
        flow.send_order(order)
        until(lambda: order_id in {r.order_id for r in flow.nouns("payment-requests")}, "asked")
        flow.send_result(order)
        until(lambda: len(settled(flow)) > before, "it is settled")


@IDLE
def test_a_follower_that_has_read_all_is_not_told_that_it_missed_something(
    flow: EngineFlow, idle: bool, at: None
) -> None:
    settle(flow, "before")
    group, topic = f"{flow.prefix}follower", flow.topic("settlements")

    def committed() -> int:
        asker = Consumer({"bootstrap.servers": flow.bootstrap, "group.id": group})
        try:
            return asker.committed([TopicPartition(topic, 0)], timeout=30)[0].offset
        finally:
            asker.close()

    def read(follower: SettlementSubscriber) -> str:
        found = wait_until(lambda: follower.poll(0.2), 60, "a settlement")
        return found[0].order_id  # type: ignore[no-any-return]

    with SettlementSubscriber(flow.bootstrap, group, topic=topic, start="earliest") as follower:
        assert read(follower) == "before"
        assert follower.commit()
        if idle:
            wait_until(
                lambda: follower.poll(0.1) or committed() == end_of(flow, "settlements"),
                60,
                "its position is behind the marker",
            )
    assert committed() == end_of(flow, "settlements")
    delete_what_was_read(flow, "settlements")
    with SettlementSubscriber(flow.bootstrap, group, topic=topic) as follower:
        assert follower.poll(3.0) is None
        settle(flow, "after")
        assert read(follower) == "after"


def test_a_followers_position_stays_before_what_it_has_not_done(flow: EngineFlow) -> None:
    settle(flow, "before")
    group, topic = f"{flow.prefix}follower", flow.topic("settlements")
    for _ in range(2):
        with SettlementSubscriber(flow.bootstrap, group, topic=topic, start="earliest") as follower:
            found = wait_until(lambda: follower.poll(0.2), 60, "a settlement")
            assert found[0].order_id == "before"


@IDLE
def test_notifications_count_nothing_as_lost_that_they_have_read(
    flow: EngineFlow, tmp_path: Path, idle: bool, at: None, caplog: pytest.LogCaptureFixture
) -> None:
    settle(flow, "before")
    (tmp_path / "endpoints.toml").write_text("")
    engine = open_callbacks(f"sqlite:///{tmp_path / 'callbacks.sqlite'}")

    def stored() -> int | None:
        with engine.connect() as connection:
            return connection.execute(select(positions.c.next_offset)).scalar()

    def run_until(what: Callable[[], Any]) -> None:
        stop = threading.Event()
        notifier = Notifier(
            bootstrap_servers=flow.bootstrap,
            engine=engine,
            catalogue=flow.catalogue,
            codec=default_codec(),
            endpoints=EndpointFile(tmp_path / "endpoints.toml"),
            instance_id="a",
            first_ms=1_000,
        )
        thread = threading.Thread(target=notifier.run, args=(stop,))
        thread.start()
        try:
            wait_until(what, 60, "it has read all")
        finally:
            stop.set()
            thread.join(60)

    end = end_of(flow, "payment-events")
    last = flow.messages("payment-events")[-1].offset() or 0
    assert last + 1 < end
    run_until(lambda: (stored() or 0) >= (end if idle else last + 1))
    assert stored() == end
    delete_what_was_read(flow, "payment-events")
    settle(flow, "after")
    run_until(lambda: (stored() or 0) > end)
    assert "deleted by retention" not in caplog.text
    engine.dispose()


class Transactions(NoMetrics):
    """Those of the ledger's database."""

    def __init__(self) -> None:
        self.count = 0

    def batch_seconds(self, seconds: float) -> None:
        self.count += 1


@IDLE
def test_a_ledger_that_has_booked_all_misses_nothing_and_comes_to_rest(
    flow: EngineFlow, tmp_path: Path, idle: bool, at: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle(flow, "before")
    engine = open_ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}")
    transactions, looks, ask = Transactions(), [0], Standstill._ask

    def asked(watch: Standstill, *more: Any) -> None:
        ask(watch, *more)
        looks[0] += 1

    monkeypatch.setattr(Standstill, "_ask", asked)

    def stored() -> int:
        with reading(engine) as connection:
            return sum(each.next_offset for each in booked_offsets(connection))

    @contextmanager
    def booking() -> Iterator[None]:
        sink = LedgerSink(
            bootstrap_servers=flow.bootstrap,
            engine=engine,
            catalogue=flow.catalogue,
            codec=flow.codec,
            instance_id="a",
            metrics=transactions,
        )
        stop, ended = threading.Event(), []

        def run() -> None:
            try:
                sink.run(stop)
            except BaseException as error:
                ended.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join(60)
        assert ended == []

    end = end_of(flow, "settlements")
    with booking():
        wait_until(lambda: stored() >= (end if idle else end - 1), 60, "it has booked all")
        if idle:
            # Once behind the last record, and once behind its marker.
            looked = looks[0]
            wait_until(lambda: looks[0] > looked + 2, 60, "it has looked on")
            assert transactions.count == 2
    assert stored() == end
    delete_what_was_read(flow, "settlements")
    with booking():
        settle(flow, "after")
        wait_until(lambda: stored() > end, 60, "it goes on")
    engine.dispose()
