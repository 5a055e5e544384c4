"""Questions for offsets after the brokers have changed places."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.audit.cut import Cut
from pipeline.audit.log_copy import LogCopy
from pipeline.embedded.kafka import start_kafka, stop_kafka
from pipeline.embedded.kafka_config import SHORT_LIVED
from pipeline.runtime.lag import GroupLag
from pipeline.runtime.restore import read_uncommitted_ends
from tests.support.topics import create_topic
from tests.support.waiting import wait_until
from topics.catalogue import TopicSettings, build_catalogue
from topics.provisioning import provision

pytestmark = pytest.mark.integration

ANSWERS_WITHIN_S = 60


@pytest.fixture
def moved(tmp_path: Path) -> Iterator[tuple[GroupLag, AdminClient, LogCopy]]:
    """Of a cluster whose leader has been another one since they first asked."""
    handle = start_kafka(tmp_path / "kafka", jvm_flags=SHORT_LIVED, die_with_parent=True)
    try:
        create_topic(handle.bootstrap_servers, "orders", 2)
        committer = Consumer(
            {"bootstrap.servers": handle.bootstrap_servers, "group.id": "g", "log_level": 0}
        )
        place = TopicPartition("orders", 0, 0)
        wait_until(
            lambda: _answers(lambda: committer.commit(offsets=[place], asynchronous=False)),
            ANSWERS_WITHIN_S,
            "the group has an offset",
        )
        committer.close()
        lag = GroupLag(handle.bootstrap_servers, "g", {"orders": 2})
        admin = AdminClient({"bootstrap.servers": handle.bootstrap_servers, "log_level": 0})
        assert lag() == {"orders": 0}
        assert read_uncommitted_ends(admin, "orders", [0, 1]) == {0: (0, 0), 1: (0, 0)}
        catalogue = build_catalogue(TopicSettings(prefix="moved.", partitions=2))
        provision(handle.bootstrap_servers, catalogue)
        copy = LogCopy(handle.bootstrap_servers, catalogue)
        assert set(_advance(copy).ends.values()) == {0}
        (broker,) = handle.brokers
        # It leads again, in a new epoch.
        broker.kill()
        broker.start()
        yield lag, admin, copy
        lag.close()
        copy.close()
    finally:
        stop_kafka(handle)


def _answers(ask: object) -> bool:
    try:
        ask()  # type: ignore[operator]
    except KafkaException:
        return False
    return True


def _advance(copy: LogCopy) -> Cut:
    return copy.advance(lambda role, record: None)


@pytest.mark.long
def test_lag_restoration_and_audit_ask_who_leads_now(
    moved: tuple[GroupLag, AdminClient, LogCopy],
) -> None:
    """The client keeps the leaders that it knew, and is refused (FENCED_LEADER_EPOCH) for minutes:
    the lag was unknown, a gate kept its place, a rebalance ended the worker, and `verify` called
    a broker away that was there."""
    lag, admin, copy = moved
    assert set(_advance(copy).ends.values()) == {0}
    wait_until(lambda: _answers(lag), ANSWERS_WITHIN_S, "the lag can be asked again")
    assert lag() == {"orders": 0}
    assert read_uncommitted_ends(admin, "orders", [0, 1]) == {0: (0, 0), 1: (0, 0)}
