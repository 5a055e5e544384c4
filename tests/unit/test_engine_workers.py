"""What the workers hand to their lane, without a broker: one transaction, the right metadata."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.keys import record_key
from pipeline.observability.metrics import Metrics
from pipeline.runtime import gateway_worker
from pipeline.runtime.calls import Calls
from pipeline.runtime.client_calls import SLACK_S, ClientCalls
from pipeline.runtime.cluster import consumer_config
from pipeline.runtime.commit_thread import OVERDUE_S, TRANSACTION_S_MAX, CommitThread
from pipeline.runtime.end_txn_watch import EndTxnWatch
from pipeline.runtime.gateway_stage import GatewayStage
from pipeline.runtime.gateway_worker import GatewayWorker
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.kafka_errors import LaneHung
from pipeline.runtime.lane import Lane, producer_config
from pipeline.runtime.prefix import PartitionPrefix
from pipeline.runtime.surroundings import REAL
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import MemoryTableStore
from pipeline.runtime.work import Outcome, Work
from pipeline.runtime.worker_spec import WorkerSpec
from tests.support.engine_flow import EngineFlow
from topics.catalogue import TopicSettings


class GroupMember:
    """A consumer that knows only which generation it is in."""

    def __init__(self) -> None:
        self.generation = 1

    def consumer_group_metadata(self) -> str:
        return f"generation {self.generation}"

    def assign(self, partitions: list[TopicPartition]) -> None: ...

    def pause(self, partitions: list[TopicPartition]) -> None: ...

    def resume(self, partitions: list[TopicPartition]) -> None: ...


class Submitted:
    """Stands where the commit thread stands and keeps what it is handed."""

    busy = False

    def __init__(self) -> None:
        self.works: list[Work] = []

    def submit(self, work: Work) -> None:
        self.works.append(work)


def order_record(flow: EngineFlow, order_id: str, partition: int = 0) -> InputRecord:
    order = flow.order(order_id)
    return InputRecord(
        flow.topic("orders"),
        partition,
        0,
        order.submitted_at_ms,
        record_key("shop", order_id),
        flow.encode("order", order),
    )


@pytest.fixture
def flow(tmp_path: Path) -> EngineFlow:
    return EngineFlow("127.0.0.1:1", "t.", tmp_path, partitions=1)


def test_a_payments_batch_is_committed_with_the_metadata_of_its_first_record(
    flow: EngineFlow,
) -> None:
    """Metadata of a later generation would vouch for partitions that have moved meanwhile."""
    worker, _ = flow.payments_worker()
    member, submitted = GroupMember(), Submitted()
    inside: Any = worker
    inside._consumer, inside._commits = member, submitted
    inside._table = Table(MemoryTableStore(), decode=flow.stage().decode_row)
    inside._admission.assign([(flow.topic("orders"), 0)])
    inside._admission.add(order_record(flow, "o1"))
    inside._prepare()
    member.generation = 2
    inside._submit()
    (work,) = submitted.works
    assert work.group_metadata == "generation 1"
    assert work.offsets == {(flow.topic("orders"), 0): 1}


def test_a_gateway_batch_is_committed_with_the_metadata_of_its_assignment(
    flow: EngineFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken when the partitions were given, before any of their records; not at the commit."""
    monkeypatch.setattr(
        gateway_worker,
        "positions_of_lanes",
        lambda _consumer, partitions, **_: dict.fromkeys(partitions, 0),
    )
    stage = GatewayStage(flow.catalogue, flow.codec)
    calls = Calls({})
    worker = GatewayWorker(
        flow.spec("gateway"),
        catalogue=flow.catalogue,
        stage=stage,
        calls=calls,
        metrics=Metrics(),
        stop=threading.Event(),
    )
    member, submitted = GroupMember(), Submitted()
    inside: Any = worker
    inside._consumer, inside._commits, inside._admin = member, submitted, None
    inside._on_assign(member, [TopicPartition(stage.topic, 0)])
    prefix = inside._prefixes[0]
    prefix.begin(0)
    prefix.finish(0, ([], None))
    inside._became_ready(1)
    member.generation = 2
    inside._submit()
    (work,) = submitted.works
    assert work.group_metadata == "generation 1"
    assert work.offsets == {(stage.topic, 0): 1}
    calls._loop.close()


class SlowLane:
    """A lane whose transaction ends when told."""

    def __init__(self, monotonic_s: Callable[[], float] = time.monotonic) -> None:
        self.may_end = threading.Event()
        self.under_way = 0
        self.most = 0
        self.calls = ClientCalls(monotonic_s)

    def run(self, work: Work) -> Outcome:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.may_end.wait(5)
        self.under_way -= 1
        return Outcome.COMMITTED


WORK = Work([], {("in", 0): 1}, None)


@pytest.fixture
def slow() -> Iterator[tuple[SlowLane, CommitThread]]:
    lane = SlowLane()
    commits = CommitThread(lane)  # type: ignore[arg-type]
    yield lane, commits
    lane.may_end.set()
    commits.close()


def test_a_second_transaction_is_refused_until_the_first_ones_end_is_taken(
    slow: tuple[SlowLane, CommitThread],
) -> None:
    """Handing over N+1 before the end of N is known and taken is a bug that stops the worker."""
    lane, commits = slow
    commits.submit(WORK)
    with pytest.raises(InvariantBroken, match="one transaction at a time"):
        commits.submit(WORK)
    assert commits.poll() is None
    lane.may_end.set()
    assert commits.busy, "known, but not yet taken"
    assert commits.wait(5) is Outcome.COMMITTED
    commits.submit(WORK)
    assert commits.wait(5) is Outcome.COMMITTED
    assert lane.most == 1


def test_a_transaction_that_does_not_end_at_all_ends_the_worker() -> None:
    """The client does not come back from a call: whoever waited on would hold its partitions."""
    now_s = [0.0]
    lane = SlowLane()
    commits = CommitThread(lane, replace(REAL, monotonic_s=lambda: now_s[0]))  # type: ignore[arg-type]
    commits.submit(WORK)
    now_s[0] = TRANSACTION_S_MAX
    assert commits.poll() is None
    now_s[0] += 1
    with pytest.raises(LaneHung, match="has not ended"):
        commits.poll()
    lane.may_end.set()
    commits.close()


def test_a_call_that_does_not_come_back_ends_the_worker() -> None:
    """Soon after its time, not only when a whole transaction's is over; one that has only been
    frozen with its process is waited for."""
    now_s = [0.0]
    lane = SlowLane(lambda: now_s[0])
    commits = CommitThread(lane, replace(REAL, monotonic_s=lambda: now_s[0]))  # type: ignore[arg-type]
    commits.submit(WORK)
    with lane.calls.calling("send_offsets_to_transaction", 10):
        now_s[0] = 10 + SLACK_S
        assert commits.poll() is None
        # As after a time in which the process stood still.
        now_s[0] += 60
        assert commits.poll() is None
        now_s[0] += OVERDUE_S
        assert commits.poll() is None
    # It was back in time, and the next one's time is its own.
    with lane.calls.calling("commit_transaction", 10):
        now_s[0] += 11 + SLACK_S
        assert commits.poll() is None
        now_s[0] += 1 + OVERDUE_S
        with pytest.raises(LaneHung, match="commit_transaction does not come back"):
            commits.poll()
    lane.may_end.set()
    commits.close()


def test_an_error_of_the_lane_reaches_the_worker() -> None:
    """What the commit thread died of is raised in the main loop, not swallowed with the thread."""

    class Broken:
        def run(self, work: Work) -> Outcome:
            raise ZeroDivisionError("a bug")

    commits = CommitThread(Broken())  # type: ignore[arg-type]
    commits.submit(WORK)
    with pytest.raises(ZeroDivisionError):
        commits.wait(5)
    commits.close()


def test_a_work_without_offsets_is_refused_before_anything_is_begun() -> None:
    """An empty list of offsets is accepted by the broker and fences nobody."""
    lane = Lane({}, stage="payments", committed_offsets=lambda _: {})
    with pytest.raises(InvariantBroken, match="fences nobody"):
        lane.run(Work([("out", 0, b"k", b"v", None)], {}, None))


def test_the_client_is_told_to_partition_as_every_java_client_does() -> None:
    """librdkafka's own default puts three quarters of the keys elsewhere."""
    assert producer_config("b", "t")["partitioner"] == "murmur2_random"


@pytest.mark.parametrize(
    ("lines", "plainly"),
    [
        (["EndTxn returned NO_ERROR in state CommittingTransaction (may_retry=false)"], True),
        ([], False),
        (["EndTxn returned _TRANSPORT in state x (may_retry=true)", "EndTxn returned NO_ERROR"], 0),
        (["EndTxn returned NO_ERROR", "EndTxn returned NO_ERROR"], False),
        (["EndTxn returned _TIMED_OUT in state x"], False),
        (["EndTxn returned CONCURRENT_TRANSACTIONS x", "EndTxn returned NO_ERROR x"], False),
    ],
)
def test_only_one_answer_without_error_is_a_plain_end(lines: list[str], plainly: bool) -> None:
    """Silence, two answers, or any answer but NO_ERROR leave a copy that may still be under way."""
    watch = EndTxnWatch()
    watch.log(7, "%s %s", "ENDTXN", "of the transaction before")
    watch.begin()
    watch.log(7, "%s [%s] %s", "ADDPARTS", "client", "EndTxn returned NO_ERROR is another's text")
    for line in lines:
        watch.log(7, "%s [%s] %s", "ENDTXN", "client", f"[thrd:main]: {line}")
    assert watch.ended_plainly is bool(plainly)


_NAMES = st.text("ab./-1", max_size=4)
_IDS = st.tuples(
    _NAMES.filter(lambda prefix: "/" not in prefix),  # no topic's name may hold one
    _NAMES,
    st.sampled_from(["payments", "gateway"]),
    st.integers(0, 11),
)


@given(_IDS, _IDS)
@example(("a.", "b", "payments", 0), ("", "a.b", "payments", 0))
@example(("", "a/b", "payments", 0), ("", "a", "payments", 0))
def test_no_two_workers_share_a_transactional_id(
    one: tuple[str, str, str, int], other: tuple[str, str, str, int]
) -> None:
    """Another prefix, node, stage or slot is another id: two workers of one id fence each other."""
    ids = [
        WorkerSpec(stage, node, slot, "b", TopicSettings(prefix=prefix), Path()).transactional_id
        for prefix, node, stage, slot in (one, other)
    ]
    assert (ids[0] == ids[1]) == (one == other)


def test_a_result_behind_an_open_call_is_held() -> None:
    """The offset moves over the finished head of a partition only, whatever ends first."""
    prefix: PartitionPrefix[str] = PartitionPrefix()
    for offset in (3, 4, 8):
        prefix.begin(offset)
    prefix.finish(8, "c")
    prefix.finish(4, "b")
    assert list(prefix.pop_finished(10)) == []
    prefix.finish(3, "a")
    prefix.finish(3, "late answer of a parked call")
    assert list(prefix.pop_finished(2)) == [(3, "a"), (4, "b")]
    assert prefix.ready
    assert list(prefix.pop_finished(10)) == [(8, "c")]
    assert prefix.size == 0
    prefix.begin(9)
    with pytest.raises(InvariantBroken, match="offset order"):
        prefix.begin(9)


def test_a_worker_is_the_same_to_the_cluster_after_a_restart(flow: EngineFlow) -> None:
    """Its transactional id fences its own zombie and its member id takes its partitions back, so
    neither may hold anything of the process."""
    spec = flow.spec("payments", 3, node_id="n7")
    assert spec.transactional_id == "paystream/t./n7/payments/3"
    assert spec.instance_id == "n7.3"


def test_input_consumers_are_static_committed_and_skip_nothing() -> None:
    """The instance id is part of the fence, stable offsets of the restoration, and no reset policy
    may skip or repeat what the group has not committed. Shared out in one round: a static member
    that restarts between two of them would keep the half-done sharing."""
    config = consumer_config("b", group_id="g", instance_id="n1.0")
    assert config["partition.assignment.strategy"] == "range"
    assert config["group.instance.id"] == "n1.0"
    assert config["isolation.level"] == "read_committed"
    assert config["auto.offset.reset"] == "error"
    assert config["enable.auto.commit"] is False
    assert config["enable.auto.offset.store"] is False
