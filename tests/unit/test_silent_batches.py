"""What the client says nothing of is told apart from what it reads, by the client itself."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from pipeline.batches import silent as silent_batches
from pipeline.batches.record_batch import RecordBatch, fetch_batch
from pipeline.batches.silent import is_silent
from pipeline.broker_connection import BrokerConnection
from pipeline.runtime import standstill
from pipeline.runtime.standstill import Standstill
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import GZIP, LZ4, gzip_members, lz4_frame, produce_raw, record_bytes

TP = ("orders", 0)
RECORD = record_bytes(b"k", b"v")
# A value with a length of -2.
NO_VALUE = bytes((14, 0, 0, 0, 2, 107, 3, 0))
CUT = record_bytes(b"k", b"v", offset=1)
# It ends the process of whoever fetches it.
ENDING = gzip_members(b"", RECORD), GZIP


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is given little time to unfold what is small. What it does not say in that it is
    asked by another one that waits, with the same answer."""
    monkeypatch.setattr(silent_batches, "UNFOLDING_S", (0.05,))


def holding(
    records: bytes, codec: int = 0, count: int = 1, behind: tuple[bytes, int] = (RECORD, 0)
) -> tuple[MockCluster, RecordBatch]:
    """And something behind it, a good record if nothing else is said."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    produce_raw(cluster.bootstrap_servers, "orders", records, codec, count=count)
    produce_raw(cluster.bootstrap_servers, "orders", *behind)
    host, _, port = cluster.bootstrap_servers.partition(":")
    broker = BrokerConnection(host, int(port), 10.0)
    batch = fetch_batch(broker, "orders", 0, 0)
    broker.close()
    return cluster, batch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("records", "codec", "count", "position", "expected"),
    [
        (RECORD, 0, 1, 0, False),
        (record_bytes(b"k", b""), 0, 1, 0, False),
        (gzip_members(RECORD), GZIP, 1, 0, False),
        # Said with an error, which the worker's own client gives as well.
        (lz4_frame(RECORD) + b"more", LZ4, 1, 0, False),
        (NO_VALUE, 0, 1, 0, True),
        (gzip_members(RECORD[:4], RECORD[4:]), GZIP, 1, 0, True),
        (gzip_members(RECORD + CUT[:4], CUT[4:]), GZIP, 2, 0, False),
        (gzip_members(RECORD + CUT[:4], CUT[4:]), GZIP, 2, 1, True),
    ],
)
def test_only_what_brings_neither_record_nor_error_is_silent(
    records: bytes, codec: int, count: int, position: int, expected: bool, brief: None
) -> None:
    cluster, batch = holding(records, codec, count)
    assert is_silent(cluster.bootstrap_servers, TP, batch, position) is expected


ASKED = """
import os
from tests.unit.test_silent_batches import ENDING, RECORD, TP, holding, is_silent
cluster, batch = holding(RECORD, behind=ENDING)
for _ in range(12):
    print(is_silent(cluster.bootstrap_servers, TP, batch, 0), flush=True)
# The cluster is part of it.
os._exit(0)
"""


@pytest.mark.slow
def test_who_asks_is_not_ended_by_what_lies_behind_what_can_be_read() -> None:
    """In a process of its own: gzip whose first member is empty ends it when it is fetched."""
    done = subprocess.run(
        [sys.executable, "-c", ASKED], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["False"] * 12), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("records", "expected"), [(NO_VALUE, [0]), (RECORD, [])])
def test_a_partition_that_stands_before_good_records_is_only_named(
    records: bytes, expected: list[int], brief: None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Whatever keeps its client from bringing them."""
    monkeypatch.setattr(standstill, "LOOK_S", 0.01)
    monkeypatch.setattr(standstill, "STANDS_S", 0.02)
    cluster, _ = holding(records)
    watch = Standstill()
    watch.open(cluster.bootstrap_servers)
    said = "stands at 0" if not expected else "going on behind"
    found: list[int] = []
    deadline = time.monotonic() + 30
    while said not in caplog.text:
        assert time.monotonic() < deadline, caplog.text
        found += [each.offset() for each in watch.take({TP: 0}, lambda _tp: True)]
        time.sleep(0.01)
    watch.close()
    assert found == expected


def test_a_partition_that_is_not_waited_for_is_asked_of_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is paused, or what came of it is in hand."""
    monkeypatch.setattr(standstill, "heads", lambda *_: pytest.fail("asked"))
    now_s = iter(range(0, 1_000_000, 20))
    watch = Standstill(lambda: float(next(now_s)))
    watch.open("nowhere:1")
    for _ in range(20):
        assert watch.take({TP: 0}, lambda _tp: False) == []
    assert watch._thread is None
