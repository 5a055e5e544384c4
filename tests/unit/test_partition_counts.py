"""Partition counts never change on a live flow, and each group begins at an offset of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.errors import UserError
from pipeline.runtime import lane_counts
from topics import group_offsets, provisioning
from topics.admin import Admin
from topics.catalogue import TopicSettings, build_catalogue
from topics.growth import grown
from topics.provisioning import InitialOffset, Plan

PARTITIONS = 6
CATALOGUE = build_catalogue(TopicSettings(partitions=PARTITIONS))
NAMES = [spec.name for spec in CATALOGUE.topics.values()]


def cluster(**counts: int) -> AdminClient:
    """One whose topics have as many partitions as is wanted, but for those that are named."""
    topics = {
        name: SimpleNamespace(partitions=range(counts.get(name, PARTITIONS))) for name in NAMES
    }
    return cast(
        AdminClient, SimpleNamespace(list_topics=lambda **_: SimpleNamespace(topics=topics))
    )


def test_topics_of_unequal_counts_are_not_consumed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A payment's result would be in another lane than its order, where nobody knows it."""
    monkeypatch.setattr(lane_counts, "_has_records", lambda *_: True)
    lane_counts.require_co_partitioned(cluster(), CATALOGUE, "none")
    wider = cluster(**{CATALOGUE.name("gateway-results"): 2 * PARTITIONS})
    with pytest.raises(UserError, match="nothing is consumed, since records of one order"):
        lane_counts.require_co_partitioned(wider, CATALOGUE, "none")


@pytest.mark.parametrize("before", [PARTITIONS // 2, PARTITIONS])
def test_a_used_flow_that_was_given_more_partitions_is_not_consumed(
    monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    """By somebody's tool, and the settings after it: most orders have another lane now, and one
    that its shop sends once more would be charged once more."""
    committed = [("orders", partition) for partition in range(before)]
    monkeypatch.setattr(lane_counts, "_has_records", lambda *_: True)
    monkeypatch.setattr(lane_counts, "_committed", lambda *_: committed)
    if before == PARTITIONS:
        lane_counts.require_co_partitioned(cluster(), CATALOGUE, "none", stage="payments")
        return
    with pytest.raises(UserError, match="added after records had been written"):
        lane_counts.require_co_partitioned(cluster(), CATALOGUE, "none", stage="payments")


def test_only_a_used_flow_has_grown() -> None:
    """One that holds nothing may get as many partitions as anybody likes."""
    committed = [("orders", 0), ("orders", 2)]
    assert grown(committed, {"orders": 3}, used=lambda: True) is None
    assert grown(committed, {"orders": 6}, used=lambda: False) is None
    assert grown([], {"orders": 6}, used=lambda: True) is None
    found = grown(committed, {"orders": 6, "audit": 3}, used=lambda: True)
    assert found is not None
    assert (found.before, found.topics) == (3, ("orders",))


@pytest.mark.parametrize("used", [[], ["orders"]])
def test_provisioning_raises_counts_only_where_nothing_was_written(
    monkeypatch: pytest.MonkeyPatch, used: list[str]
) -> None:
    """Not even when it is asked to: the later records of an order would have another lane than the
    earlier ones."""
    monkeypatch.setattr(provisioning, "_topics_with_records", lambda *_: used)
    present = list(CATALOGUE.topics.values())
    growth, refusals = provisioning._partition_changes(
        cast(Admin, None), present, dict.fromkeys(NAMES, PARTITIONS // 2), grow_partitions=True
    )
    assert (len(growth), len(refusals)) == ((0, 1) if used else (len(NAMES), 0))


def test_provisioning_gives_each_group_its_first_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers begin nowhere else, so without them an installation that is new does nothing."""
    begun: dict[str, list[TopicPartition]] = {}
    for name in ("_create", "_grow", "_configure", "_wait_until_visible", "_wait_until_done"):
        monkeypatch.setattr(provisioning, name, lambda *_: None)
    monkeypatch.setattr(
        provisioning,
        "start_at_the_beginning",
        lambda _admin, group, partitions: begun.update({group: partitions}),
    )
    offsets = tuple(InitialOffset("g", "orders", partition) for partition in range(2))
    provisioning.apply(cast(Admin, None), Plan(catalogue=CATALOGUE, offsets=offsets))
    assert begun == {"g": [TopicPartition("orders", 0), TopicPartition("orders", 1)]}


def test_a_group_begins_with_what_is_kept_and_is_never_set_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """At the first record, not behind those that came before its workers; and where a worker has
    committed meanwhile, that stays, or all of it would be handled once more."""
    committed: list[TopicPartition] = []

    def commit(*, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        committed.extend(offsets)
        return offsets

    @contextmanager
    def bystander(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(commit=commit)

    places = [TopicPartition("orders", partition) for partition in range(2)]
    monkeypatch.setattr(group_offsets, "bystander", bystander)
    monkeypatch.setattr(group_offsets, "_committed", lambda *_: {("orders", 1): 40})
    monkeypatch.setattr(
        group_offsets,
        "list_offsets",
        lambda _, asked, __: {(t.topic, t.partition): 5 for t in asked},
    )
    admin = cast(Admin, SimpleNamespace(client_config={}))
    group_offsets.start_at_the_beginning(admin, "g", places)
    assert [(each.partition, each.offset) for each in committed] == [(0, 5)]
