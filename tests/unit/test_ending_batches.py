"""A batch that would end the process of whoever's client is given it is read around."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from pipeline.audit import log_copy
from pipeline.audit.log_copy import read_partition
from pipeline.batches import ending
from pipeline.batches.ending import ends_the_client
from pipeline.batches.record_batch import RecordBatch, read_batch
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import (
    GZIP,
    LZ4,
    batch_bytes,
    gzip_members,
    lz4_frame,
    produce_batch,
    produce_raw,
    record_bytes,
)

RECORD = record_bytes(b"k", b"v")
EMPTY_FIRST = gzip_members(b"", RECORD)
# A value with a length of -2.
NO_VALUE = bytes((14, 0, 0, 0, 2, 107, 3, 0))
CUT = record_bytes(b"k", b"v", offset=1)


def named_empty() -> bytes:
    """A member without a byte in it, whose file's name is longer than a piece."""
    empty = zlib.compress(b"", wbits=16 + zlib.MAX_WBITS)
    return empty[:3] + b"\x08" + empty[4:10] + b"n" * 10_000 + b"\0" + empty[10:]


@pytest.mark.parametrize(
    ("records", "codec", "expected"),
    [
        (EMPTY_FIRST, GZIP, True),
        (named_empty() + gzip_members(RECORD), GZIP, True),
        (gzip_members(b"", b"", RECORD), GZIP, True),
        (gzip_members(RECORD), GZIP, False),
        (gzip_members(RECORD, b""), GZIP, False),
        (gzip_members(RECORD[:1], RECORD[1:]), GZIP, False),
        (gzip_members(b"")[:12], GZIP, False),
        (b"no gzip", GZIP, False),
        (EMPTY_FIRST, 0, False),
        (lz4_frame(RECORD), LZ4, False),
    ],
)
def test_only_gzip_whose_first_member_is_empty_ends_the_client(
    records: bytes, codec: int, expected: bool
) -> None:
    assert ends_the_client(read_batch(batch_bytes(records, codec), 0, [])) is expected


def cluster_with(*parts: tuple[bytes, int, int]) -> MockCluster:
    """Each a batch: its records, their codec and count."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    for records, codec, count in parts:
        produce_raw(cluster.bootstrap_servers, "orders", records, codec, count=count)
    return cluster


def read(cluster: MockCluster, patch: pytest.MonkeyPatch) -> list[str]:
    """What is handed on, in order: offsets of records, and of batches that are told of."""
    patch.setattr(ending, "UNFOLDING_S", 0.1)
    said: list[str] = []

    def on_record(message: Any) -> None:
        said.append(f"{message.offset()}")

    def on_unreadable(_place: object, batch: RecordBatch) -> None:
        said.append(f"{batch.first_offset} to {batch.last_offset}")

    read_partition(cluster.bootstrap_servers, ["orders"], 0, on_record, on_unreadable=on_unreadable)
    return said


GOOD = (RECORD, 0, 1)
ENDING = (EMPTY_FIRST, GZIP, 1)
ASTRAY = (record_bytes(b"k", b"v", offset=3), 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([ENDING], ["0 to 0"]),
        ([GOOD, ENDING, GOOD], ["0", "1 to 1", "2"]),
        ([ENDING, ENDING, GOOD, GOOD, ENDING], ["0 to 0", "1 to 1", "2", "3", "4 to 4"]),
        # Which would have it read on elsewhere.
        ([GOOD, ASTRAY, GOOD, GOOD, ASTRAY, GOOD], ["0", "1 to 1", "2", "3", "4 to 4", "5"]),
        # Beside those of which the client says nothing, or that it cannot unfold.
        (
            [GOOD, (NO_VALUE, 0, 1), GOOD, ENDING, GOOD],
            ["0", "1 to 1", "2", "3 to 3", "4"],
        ),
        (
            [GOOD, (gzip_members(RECORD + CUT[:4], CUT[4:]), GZIP, 2), GOOD, ENDING],
            ["0", "1", "1 to 2", "3", "4 to 4"],
        ),
        (
            [GOOD, (lz4_frame(RECORD) + b"more", LZ4, 1), GOOD, ENDING, GOOD],
            ["0", "1 to 1", "2", "3 to 3", "4"],
        ),
    ],
    ids=[
        "alone",
        "between",
        "several",
        "elsewhere",
        "silence before",
        "read in part before",
        "refused before",
    ],
)
def test_the_audit_reads_around_it(
    parts: list[tuple[bytes, int, int]], expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a look before, this process would end."""
    assert read(cluster_with(*parts), monkeypatch) == expected


@pytest.mark.slow
def test_a_long_way_before_it_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two batches each, of which this broker sends one at a time."""
    monkeypatch.setattr(ending, "RUN_BYTES", 150)
    parts = [(RECORD, 0, 1), (RECORD + CUT, 0, 2)] * 2
    expected = ["0", "1", "2", "3", "4", "5", "6 to 6", "7"]
    assert read(cluster_with(*parts, ENDING, GOOD), monkeypatch) == expected


@pytest.mark.slow
def test_of_a_damaged_batch_the_client_speaks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its checksum is looked at before it is unfolded."""
    cluster = cluster_with(GOOD)
    damaged = batch_bytes(EMPTY_FIRST, GZIP, damaged=True)
    produce_batch(cluster.bootstrap_servers, "orders", damaged)
    with pytest.raises(log_copy.AuditUnavailable, match="is damaged"):
        read(cluster, monkeypatch)
