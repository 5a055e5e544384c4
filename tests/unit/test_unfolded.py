"""What a batch comes to in memory, found without unfolding it there."""

from __future__ import annotations

import os
import zlib

import pytest
from confluent_kafka import Producer

from pipeline import unfolded
from pipeline.broker_connection import BrokerConnection
from pipeline.record_batch import RECORDS_AT, RecordBatch, fetch_batches, read_batch
from pipeline.unfolded import RECORD_BYTES, is_heavy, unfolded_bytes
from pipeline.unreadable import UNFOLDED_BYTES_MAX
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import GZIP, MIB, ZSTD, batch_bytes, gzip_zeros, zeros

SNAPPY, LZ4 = 2, 3
CODECS = ["none", "gzip", "snappy", "lz4", "zstd"]


def batch_of(records: bytes, codec: int, count: int = 1) -> RecordBatch:
    return read_batch(batch_bytes(records, codec, count=count), 0, ())


@pytest.fixture(scope="module")
def written() -> dict[str, tuple[RecordBatch, int]]:
    """Of each codec what the client itself writes, and the size of its values."""
    cluster = MockCluster(brokers=1)
    # In one record: of several a flush may send the first in a batch of its own.
    value = b"\0" * 300_000 + b"".join(b"%d" % n for n in range(60_000)) + os.urandom(100_000)
    found = {}
    host, _, port = cluster.bootstrap_servers.partition(":")
    broker = BrokerConnection(host, int(port), 10.0)
    for codec in CODECS:
        cluster.create_topic(codec)
        config = {"bootstrap.servers": cluster.bootstrap_servers, "compression.type": codec}
        producer = Producer(config)
        producer.produce(codec, value, partition=0)
        assert producer.flush(30) == 0
        ((batch,), is_end) = fetch_batches(broker, codec, 0, 0, MIB)
        assert is_end
        found[codec] = batch, len(value)
    broker.close()
    return found


@pytest.mark.parametrize("codec", CODECS)
def test_what_the_client_writes_is_measured(
    written: dict[str, tuple[RecordBatch, int]], codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never less than it is, and not much more: zstd does not say how large its blocks are."""
    batch, size = written[codec]
    assert batch.codec_name == codec
    assert (codec == "none") == (len(batch.data) > size)
    found = unfolded_bytes(batch, UNFOLDED_BYTES_MAX)
    assert size < found <= 1.5 * size
    monkeypatch.setattr(unfolded, "USUAL_MOST", 0)
    assert not is_heavy(batch, 2 * size)
    assert is_heavy(batch, size)


def test_gzip_is_counted_no_further_than_to_the_bound() -> None:
    batch = batch_of(gzip_zeros(20), GZIP)
    assert len(batch.data) < MIB // 32
    assert is_heavy(batch, 16 * MIB)
    assert not is_heavy(batch, 21 * MIB)
    assert MIB <= unfolded_bytes(batch, MIB) < 2 * MIB


def test_what_zstd_refuses_by_itself_is_left_to_it_by_a_reader_that_has_the_memory() -> None:
    """It takes 256 MiB before it gives up; whoever died of less is not given it."""
    batch = batch_of(zeros(300), ZSTD)
    assert not is_heavy(batch, UNFOLDED_BYTES_MAX)
    assert is_heavy(batch, UNFOLDED_BYTES_MAX // 2)
    assert is_heavy(batch_of(zeros(200), ZSTD), 150 * MIB)


def test_many_records_are_much_however_small_they_are() -> None:
    """What is held for each is a hundred times its seven bytes."""
    count = 1_000_000
    batch = batch_of(zlib.compress(b"\x0c\0\0\0\1\1\0" * count, wbits=31), GZIP, count)
    assert is_heavy(batch, UNFOLDED_BYTES_MAX)
    assert not is_heavy(batch, count * (RECORD_BYTES + 7))
    # Also for a worker that has died of something: its bound is never above that of the others.
    written = zlib.compress(os.urandom(300_000), wbits=31)
    many = RecordBatch(0, count - 1, count, 0, GZIP, True, bytes(RECORDS_AT) + written)
    assert is_heavy(many, UNFOLDED_BYTES_MAX)
    assert is_heavy(many, UNFOLDED_BYTES_MAX // 2)


@pytest.mark.parametrize("codec", [GZIP, SNAPPY, LZ4, ZSTD])
@pytest.mark.parametrize("records", [b"", b"\xff", b"\xff" * 40, b"\x1f\x8b\x08" + b"\xff" * 40])
def test_what_is_no_frame_of_its_codec_is_left_to_the_client(codec: int, records: bytes) -> None:
    """Which refuses it."""
    assert not is_heavy(batch_of(records, codec), UNFOLDED_BYTES_MAX)


@pytest.mark.parametrize("bytes_max", [16 * MIB, 64 * MIB, UNFOLDED_BYTES_MAX])
def test_a_worker_that_was_killed_often_refuses_no_good_records(bytes_max: int) -> None:
    """Its bound sinks with each death, whatever it died of; many small orders are no bomb."""
    count = 40_000
    records = b"".join(
        b"%032x shop-a GBP %d"
        % (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, number % 9000)
        for number in range(count)
    )
    for codec, written in ((0, records), (GZIP, zlib.compress(records, wbits=31))):
        data = bytes(RECORDS_AT) + written
        batch = RecordBatch(0, count - 1, count, 0, codec, True, data)
        assert unfolded_bytes(batch, UNFOLDED_BYTES_MAX) + count * RECORD_BYTES > 16 * MIB
        assert not is_heavy(batch, bytes_max)
