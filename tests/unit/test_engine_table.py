"""The table: what a worker sees while a transaction is under way, and what survives a failure."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.risk_velocity import WINDOW_MS_MAX, bucket_ms
from pipeline.runtime.restore import plan_restore
from pipeline.runtime.risk_stage import RiskStage
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import (
    Checkpoint,
    MemoryTableStore,
    RocksTableStore,
    TableStore,
)
from topics.catalogue import RISK_VELOCITY_RETENTION_MS

DAY_MS = 86_400_000
NOW_MS = 1_800_000_000_000


@pytest.fixture(params=["memory", "rocks"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TableStore]:
    made: TableStore = (
        MemoryTableStore() if request.param == "memory" else RocksTableStore(tmp_path / "table")
    )
    yield made
    made.close()


def table_over(store: TableStore, hot_max: int = 4) -> Table[str]:
    return Table(store, decode=bytes.decode, hot_max=hot_max, cluster_id="c", topic_id="t")


def put(table: Table[str], key: bytes, value: str) -> None:
    table.prepare(0, key, value, value.encode())


def test_a_value_is_seen_at_once_and_kept_only_by_a_commit(store: TableStore) -> None:
    """The next record of a payment sees what the one before it decided, prepared or under way; a
    commit keeps it and moves the checkpoint."""
    table = table_over(store)
    put(table, b"k", "prepared")
    assert table.get(0, b"k") == "prepared"
    assert table.get(1, b"k") is None, "another partition is another lane"
    table.seal()
    assert table.get(0, b"k") == "prepared"
    assert table.checkpoint(0) is None
    table.apply({0: 11}, NOW_MS)
    assert table.get(0, b"k") == "prepared"
    assert table.checkpoint(0) == Checkpoint("c", "t", 11, NOW_MS)


def test_a_failed_transaction_takes_what_was_prepared_on_top_of_it_along(store: TableStore) -> None:
    """When N fails, N+1's view goes with it: it was decided over values that never came to be."""
    table = table_over(store)
    put(table, b"k", "committed")
    table.seal()
    table.apply({0: 1}, NOW_MS)
    put(table, b"k", "N")
    table.seal()
    put(table, b"k", "N+1")
    put(table, b"new", "N+1")
    table.discard()
    assert table.get(0, b"k") == "committed"
    assert table.get(0, b"new") is None
    assert table.checkpoint(0) == Checkpoint("c", "t", 1, NOW_MS)


def test_only_one_transaction_is_under_way(store: TableStore) -> None:
    """Sealing N+1 before the end of N is known is a bug that stops the worker."""
    table = table_over(store)
    table.seal()
    with pytest.raises(InvariantBroken, match="one transaction at a time"):
        table.seal()


def test_a_commit_without_a_known_offset_stops_the_worker(store: TableStore) -> None:
    """A checkpoint is never guessed."""
    table = table_over(store)
    put(table, b"k", "v")
    table.seal()
    with pytest.raises(InvariantBroken, match="known offset"):
        table.apply({}, NOW_MS)


def test_memory_is_bounded_and_nothing_is_forgotten(store: TableStore) -> None:
    """Far more payments than fit in memory are all found again, with their newest value."""
    table = table_over(store, hot_max=10)
    for turn in range(3):
        for n in range(100):
            put(table, b"k%d" % n, f"{turn}.{n}")
            if n % 7 == 0:
                table.seal()
                table.apply({0: turn * 100 + n + 1}, NOW_MS)
            assert table.hot_count <= 10 + 7
        table.seal()
        table.apply({0: turn * 100 + 100}, NOW_MS)
        assert [table.get(0, b"k%d" % n) for n in range(100)] == [f"{turn}.{n}" for n in range(100)]


def test_restored_records_replace_what_the_cache_held(store: TableStore) -> None:
    """What another worker committed meanwhile wins over the cache kept from before, tombstones
    included."""
    table = table_over(store)
    for key in (b"kept", b"changed", b"deleted"):
        put(table, key, "mine")
    table.seal()
    table.apply({0: 3}, NOW_MS)
    table.restore(0, [(b"changed", b"theirs"), (b"deleted", None)], 5, NOW_MS)
    assert table.get(0, b"kept") == "mine"
    assert table.get(0, b"changed") == "theirs"
    assert table.get(0, b"deleted") is None
    assert table.checkpoint(0) == Checkpoint("c", "t", 5, NOW_MS)


def test_a_wiped_partition_is_empty_and_its_neighbour_is_not(store: TableStore) -> None:
    """Wiping leaves no row, no value in memory and no checkpoint that would vouch for them."""
    table = table_over(store)
    for partition in (0, 1, 255, 256):
        table.prepare(partition, b"k", "v", b"v")
    table.seal()
    table.apply(dict.fromkeys((0, 1, 255, 256), 1), NOW_MS)
    table.wipe(0)
    table.wipe(255)
    assert [table.get(p, b"k") for p in (0, 1, 255, 256)] == [None, "v", None, "v"]
    assert table.checkpoint(0) is None
    assert table.checkpoint(1) is not None


def test_a_closed_store_is_found_again_with_its_checkpoint(tmp_path: Path) -> None:
    """A restart goes on from the checkpoint instead of reading the topic from its beginning."""
    first = RocksTableStore(tmp_path / "table")
    checkpoint = Checkpoint("c", "t", 7, NOW_MS)
    first.write(3, [(b"a", b"1"), (b"b", b"2")], checkpoint)
    first.write(3, [(b"a", None)], checkpoint)
    first.close()
    second = RocksTableStore(tmp_path / "table")
    try:
        assert (second.get(3, b"a"), second.get(3, b"b")) == (None, b"2")
        assert second.checkpoint(3) == checkpoint
    finally:
        second.close()


def test_a_damaged_store_begins_again(tmp_path: Path) -> None:
    """The store is a cache: damage costs a restoration, not the start."""
    first = RocksTableStore(tmp_path / "table")
    first.write(0, [(b"a", b"1")], Checkpoint("c", "t", 7, NOW_MS))
    first.close()
    (tmp_path / "table" / "CURRENT").write_text("MANIFEST-999999\n")
    second = RocksTableStore(tmp_path / "table")
    try:
        assert second.get(0, b"a") is None
        assert second.checkpoint(0) is None
    finally:
        second.close()


GOOD = Checkpoint("c", "t", 50, NOW_MS - 1_000)


@pytest.mark.parametrize(
    ("checkpoint", "why"),
    [
        (None, "no checkpoint"),
        (Checkpoint("other", "t", 50, NOW_MS), "another cluster"),
        (Checkpoint("c", "recreated", 50, NOW_MS), "recreated topic"),
        (Checkpoint("c", "t", 50, NOW_MS - DAY_MS), "older than the delete retention"),
        (Checkpoint("c", "t", 101, NOW_MS), "beyond the end"),
        (Checkpoint("c", "t", 9, NOW_MS), "were deleted"),
    ],
)
def test_a_cache_that_cannot_be_trusted_is_read_anew(
    checkpoint: Checkpoint | None, why: str
) -> None:
    """Each doubt about a checkpoint wipes the cache and reads the partition from its beginning."""
    plan = plan_restore(
        0,
        checkpoint,
        cluster_id="c",
        topic_id="t",
        low=10,
        end=100,
        now_ms=NOW_MS,
        delete_retention_ms=DAY_MS,
    )
    assert plan.wipe
    assert (plan.start, plan.end) == (10, 100)
    assert why in plan.why


@pytest.mark.parametrize("offset", [10, 50, 100])
def test_a_good_checkpoint_reads_only_what_came_after_it(offset: int) -> None:
    """A cache kept across a rebalance or a restart catches up from its checkpoint."""
    plan = plan_restore(
        0,
        Checkpoint("c", "t", offset, GOOD.saved_at_ms),
        cluster_id="c",
        topic_id="t",
        low=10,
        end=100,
        now_ms=NOW_MS,
        delete_retention_ms=DAY_MS,
    )
    assert (plan.wipe, plan.start, plan.end) == (False, offset, 100)


def test_counts_are_kept_for_longer_than_any_window() -> None:
    """Topic and cache forget an identity only when no window can hold anything of it."""
    longest_ms = WINDOW_MS_MAX + bucket_ms(WINDOW_MS_MAX)
    assert longest_ms < RISK_VELOCITY_RETENTION_MS
    assert RiskStage.keep_s * 1000 > longest_ms
