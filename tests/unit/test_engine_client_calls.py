"""The real client over its own mock cluster: a call of it that never comes back is noticed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from confluent_kafka import Consumer, KafkaError

from pipeline.runtime import failpoints
from pipeline.runtime.client_calls import SLACK_S
from pipeline.runtime.commit_thread import OVERDUE_S, CommitThread
from pipeline.runtime.fetching import BATCH_BYTES
from pipeline.runtime.kafka_errors import LaneHung
from pipeline.runtime.lane import TRANSACTION_TIMEOUT_MS, Lane, producer_config
from pipeline.runtime.surroundings import REAL
from pipeline.runtime.work import Outcome, Outgoing, Work
from tests.support.mock_cluster import MockCluster
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_a_group_coordinator_that_goes_away_ends_the_worker_that_hangs_on_it() -> None:
    """The client forgets the time-out of ``send_offsets_to_transaction`` when the coordinator of
    the group is down and that of the transaction is not, as while brokers are rolled. The worker
    ends when that time is over: not before, and not minutes later."""
    cluster = MockCluster(brokers=3)
    cluster.coordinate_transactions("lane", 1)
    cluster.coordinate_group("group", 2)
    member = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "group"})
    now_s = [0.0]
    outside = replace(REAL, monotonic_s=lambda: now_s[0])
    lane = Lane(
        producer_config(cluster.bootstrap_servers, "lane"),
        stage="payments",
        committed_offsets=lambda partitions: dict.fromkeys(partitions, 0),
        surroundings=outside,
    )
    lane.open()
    commits = CommitThread(lane, outside)
    work = Work(
        [("out", 0, b"key", b"value", None)], {("in", 0): 1}, member.consumer_group_metadata()
    )
    cluster.take_down(2)
    commits.submit(work)
    called = "send_offsets_to_transaction"
    wait_until(lambda: (lane.calls.under_way or ("",))[0] == called, 10, "the lane sends offsets")

    now_s[0] += TRANSACTION_TIMEOUT_MS / 1000 + SLACK_S
    assert commits.wait(0.1) is None
    now_s[0] += 1
    assert commits.wait(0.1) is None
    now_s[0] += 1 + OVERDUE_S
    with pytest.raises(LaneHung, match=f"{called} does not come back"):
        commits.poll()


@pytest.mark.parametrize("refused", ["by the client", "at its end", "before it has all records"])
@pytest.mark.slow
def test_a_record_that_is_refused_for_its_size_costs_its_transaction_and_no_more(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client names the record, takes the abort, and the next transaction is committed: whenever
    the refusal comes, also while other records are still produced, of which it takes none then."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("in")
    member = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "group"})
    lane = Lane(
        producer_config(cluster.bootstrap_servers, "lane"),
        stage="payments",
        committed_offsets=lambda partitions: dict.fromkeys(partitions, 0),
    )

    def is_refused() -> bool:
        lane._producer.poll(0)
        return lane.too_large is not None

    def until_refused(point: str) -> None:
        if point == "payments.half_produced" and refused == "before it has all records":
            wait_until(is_refused, 10, "the refusal")

    lane.open()
    small: Outgoing = ("out", 0, b"key", b"value", None)
    large: Outgoing = ("out", 0, b"key", b"v" * (BATCH_BYTES + 1), None)
    if refused == "by the client":
        large = ("out", 0, b"key", b"v" * (17 * 1024 * 1024), None)
    else:
        cluster.refuse_produce(KafkaError.MSG_SIZE_TOO_LARGE)
    offsets, metadata = {("in", 0): 1}, member.consumer_group_metadata()
    with monkeypatch.context() as patched:
        patched.setattr(failpoints, "hit", until_refused)
        assert lane.run(Work([large, small], offsets, metadata)) is Outcome.ABORTED
    assert lane.too_large == 0
    assert lane.run(Work([small], offsets, metadata)) is Outcome.COMMITTED
    assert lane.too_large is None
