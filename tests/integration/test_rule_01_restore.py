"""Rule 1: the table is whole before an input is read, whatever order commit markers arrive in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.domain.keys import record_key
from pipeline.domain.policy import Policy
from pipeline.processors.order import process_order
from pipeline.runtime.cluster import cluster_and_topic_id
from pipeline.runtime.restore import Restorer
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore, TableStore
from producers.load_generator import LoadPlan, prepare, run_load
from tests.support.engine_flow import EngineFlow, ends_of, until
from tests.support.topics import create_topic, log_ends

pytestmark = pytest.mark.integration

RETENTION_MS = 86_400_000


class TableTopic:
    """A table's topic of one partition, a writer of it, and a restorer of a table over a store."""

    def __init__(self, bootstrap: str, prefix: str) -> None:
        self.bootstrap, self.name = bootstrap, f"{prefix}table"
        create_topic(bootstrap, self.name)
        self.producer = Producer(
            {"bootstrap.servers": bootstrap, "transactional.id": f"{prefix}writer"}
        )
        self.producer.init_transactions(30)

    def begin(self, **values: str) -> None:
        """Write in a transaction that stays open; the records are in the log on return."""
        self.producer.begin_transaction()
        for key, value in values.items():
            self.producer.produce(self.name, value.encode(), key.encode(), 0)
        self.producer.flush(10)

    def commit(self) -> None:
        self.producer.commit_transaction(10)

    def table(self, store: TableStore | None = None) -> tuple[Table[str], Restorer]:
        admin = AdminClient({"bootstrap.servers": self.bootstrap})
        cluster_id, topic_id = cluster_and_topic_id(admin, self.name)
        table: Table[str] = Table(
            store or MemoryTableStore(),
            decode=bytes.decode,
            cluster_id=cluster_id,
            topic_id=topic_id,
        )
        restorer = Restorer(
            table,
            stage="payments",
            topic=self.name,
            bootstrap_servers=self.bootstrap,
            admin=admin,
            cluster_id=cluster_id,
            topic_id=topic_id,
            delete_retention_ms=RETENTION_MS,
        )
        return table, restorer


@pytest.fixture
def topic(kafka: str, topic_prefix: str) -> TableTopic:
    return TableTopic(kafka, topic_prefix)


def finished(restorer: Restorer, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if restorer.step(0.05):
            return True
    return False


def test_a_transaction_that_is_open_at_the_end_is_waited_for(topic: TableTopic) -> None:
    """Its offsets may be visible already; a table without its records would charge again."""
    topic.begin(first="1")
    topic.commit()
    topic.begin(last="2")
    table, restorer = topic.table()
    restorer.begin([0])
    assert not finished(restorer, 1.5), "ended at the last stable offset"
    assert table.get(0, b"first") == "1"
    assert table.get(0, b"last") is None
    topic.commit()
    assert finished(restorer, 20)
    assert table.get(0, b"last") == "2"
    restorer.stop()


def test_an_aborted_transaction_at_the_end_is_neither_waited_for_nor_seen(
    topic: TableTopic,
) -> None:
    """What was aborted counts towards the end to reach, and never into the table."""
    topic.begin(kept="1")
    topic.commit()
    topic.begin(kept="2", never="3")
    topic.producer.abort_transaction(10)
    table, restorer = topic.table()
    restorer.begin([0])
    assert finished(restorer, 20)
    assert table.get(0, b"kept") == "1"
    assert table.get(0, b"never") is None


def test_a_kept_cache_reads_only_what_others_committed_meanwhile(topic: TableTopic) -> None:
    """After a rebalance the cache catches up from its checkpoint; a recreated topic wipes it."""
    store = MemoryTableStore()
    topic.begin(**{f"k{n}": "old" for n in range(50)})
    topic.commit()
    table, restorer = topic.table(store)
    restorer.begin([0])
    assert finished(restorer, 20)
    assert restorer.records_read == 50
    assert table.get(0, b"k7") == "old"

    topic.begin(k7="new")
    topic.commit()
    restorer.records_read = 0
    restorer.begin([0])
    assert finished(restorer, 20)
    assert restorer.records_read == 1
    assert (table.get(0, b"k7"), table.get(0, b"k8")) == ("new", "old")

    table, restorer = topic.table(store)
    restorer._topic_id = "another topic of the same name"
    restorer.begin([0])
    assert restorer.plans[0].wipe
    assert finished(restorer, 20)
    assert restorer.records_read == 51


def test_a_broken_off_restoration_is_dated_by_its_beginning(topic: TableTopic) -> None:
    """A tombstone ahead of it may be gone when it goes on, so it must not look fresh."""
    store = MemoryTableStore()
    topic.begin(first="1")
    topic.commit()
    topic.begin(last="2")
    clock = [1_000_000]
    _, restorer = topic.table(store)
    restorer._now_ms = lambda: clock[0]
    restorer.begin([0])
    clock[0] += RETENTION_MS
    assert not finished(restorer, 1.0)
    restorer.stop()
    topic.commit()
    restorer.begin([0])
    assert "older than the delete retention" in restorer.plans[0].why
    restorer.stop()


def test_a_worker_waits_for_the_transaction_that_its_predecessor_left_open(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """A predecessor's transaction is open while the successor starts, and commits: the payment it
    wrote is known, so the same order again is a duplicate and asks for no second charge."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    order = flow.order("o1")
    key = record_key("shop", "o1")
    partition, offset = flow.send_order(order)
    decision = process_order(None, order, order.submitted_at_ms, Policy())
    assert decision.payment is not None

    predecessor = Producer({"bootstrap.servers": kafka, "transactional.id": f"{topic_prefix}old"})
    predecessor.init_transactions(30)
    outsider = Consumer({"bootstrap.servers": kafka, "group.id": flow.catalogue.group("payments")})
    predecessor.begin_transaction()
    for role, name, noun in (
        ("payment-requests", "payment-request", flow.request(order)),
        ("payments", "payment", decision.payment),
    ):
        predecessor.produce(flow.topic(role), flow.encode(name, noun), key, partition)
    predecessor.send_offsets_to_transaction(
        [TopicPartition(flow.topic("orders"), partition, offset + 1)],
        outsider.consumer_group_metadata(),
        10,
    )
    predecessor.flush(10)
    with flow.running_payments() as running:
        again = flow.send_order(order)
        time.sleep(1.5)  # it must not go on; there is no event to wait for
        assert running.worker._positions == {}, "went on without the stable offsets"
        predecessor.commit_transaction(10)
        flow.wait_consumed(ends_of(again), running=running)
    outsider.close()
    assert len(flow.nouns("payment-requests")) == 1
    assert flow.payments()["o1"].sequence == 1


def test_a_worker_reads_no_input_while_the_tables_end_is_open(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """Its offsets are stable and the restoration has begun, but the last payment is in a
    transaction whose marker has not come: the order's second copy has to wait for it."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    order = flow.order("o1")
    decision = process_order(None, order, order.submitted_at_ms, Policy())
    assert decision.payment is not None
    partition, _ = again = flow.send_order(order)
    predecessor = Producer({"bootstrap.servers": kafka, "transactional.id": f"{topic_prefix}old"})
    predecessor.init_transactions(30)
    predecessor.begin_transaction()
    payment = flow.encode("payment", decision.payment)
    predecessor.produce(flow.topic("payments"), payment, record_key("shop", "o1"), partition)
    predecessor.flush(10)
    with flow.running_payments() as running:
        until(lambda: running.worker._restoring, "the restoration has begun")
        time.sleep(1)  # it must not go on; there is no event to wait for
        assert running.worker._restoring
        assert running.worker._admission.buffered(flow.topic("orders")) == 0
        predecessor.commit_transaction(10)
        flow.wait_consumed(ends_of(again), running=running)
    assert flow.messages("payment-requests") == [], "the order was asked for a second time"


@pytest.mark.long
@pytest.mark.slow
def test_a_restart_reads_only_what_came_after_the_checkpoint(
    kafka: str, topic_prefix: str, tmp_path: Path
) -> None:
    """50,000 payments of which 1,000 fit in memory: a restart reads next to nothing, every order
    is still known, and a wiped cache reads all of it once."""
    flow = EngineFlow(kafka, topic_prefix, tmp_path).provisioned()
    count = 50_000
    plan = LoadPlan(
        count=count, submitted_at_ms=int(time.time() * 1000), business_date="2027-01-15"
    )
    pool = prepare(plan)
    ends = _load(flow, pool)
    with flow.running_payments(hot_max=1_000) as running:
        flow.wait_consumed(ends, running=running, timeout_s=120)
        assert running.worker._table.hot_count <= 1_000 + 4_000
    assert len(flow.messages("payment-requests")) == count

    again = _load(flow, pool[::50])
    with flow.running_payments(hot_max=1_000) as running:
        flow.wait_consumed(again, running=running)
        restored = running.worker._metrics.restored_records._value.get()
        duplicates = running.worker._metrics.notes.labels("payments", "duplicate_order")
        assert duplicates._value.get() == count // 50
        running.worker._restorer.plans.clear()
    assert restored == 0
    assert len(flow.messages("payment-requests")) == count, "an order was asked for twice"

    table = flow.spec("payments").slot_dir / "table"
    _remove(table)
    with flow.running_payments(hot_max=1_000) as running:
        at = flow.send_order(flow.order("one-more"))
        flow.wait_consumed(ends_of(at), running=running, timeout_s=120)
        assert running.worker._metrics.restored_records._value.get() >= count


def _load(flow: EngineFlow, pool: Any) -> dict[int, int]:
    """Append the pool to the orders; the ends to wait for."""
    report = run_load(flow.bootstrap, pool, topic=flow.topic("orders"))
    assert report.failed == 0
    return log_ends(flow.bootstrap, flow.topic("orders"))


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder)
