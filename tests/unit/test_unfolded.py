"""What a batch comes to in memory, found without unfolding it there."""

from __future__ import annotations

import os
import time
import zlib
from functools import cache

import pytest
from confluent_kafka import Producer

from pipeline.batches import unfolded
from pipeline.batches.record_batch import RECORDS_AT, RecordBatch, fetch_batches, read_batch
from pipeline.batches.unfolded import (
    PIECES_MAX,
    RECORD_BYTES,
    is_handed_out_in_part,
    is_heavy,
    memory_of,
    unfolded_bytes,
)
from pipeline.batches.unreadable import UNFOLDED_BYTES_MAX
from pipeline.broker_connection import BrokerConnection
from pipeline.domain.model import Order
from pipeline.domain.records import to_record
from schemas.codec import default_codec
from tests.support.mock_cluster import MockCluster
from tests.support.raw_record import (
    GZIP,
    LZ4,
    MIB,
    ZSTD,
    batch_bytes,
    gzip_members,
    gzip_zeros,
    lz4_frame,
    zeros,
    zeros_in_frames,
)

SNAPPY = 2
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


@pytest.mark.slow
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


@pytest.mark.parametrize("told", [True, False])
def test_every_frame_of_zstd_is_counted(told: bool) -> None:
    """The client unfolds them all; a worker that has died of them is not given them again."""
    batch = batch_of(zeros_in_frames(200, told=told), ZSTD)
    assert len(batch.data) < MIB // 64
    assert 200 * MIB < unfolded_bytes(batch, UNFOLDED_BYTES_MAX) < 201 * MIB
    assert not is_heavy(batch, UNFOLDED_BYTES_MAX)
    assert is_heavy(batch, UNFOLDED_BYTES_MAX // 2)


@pytest.mark.slow
def test_what_is_cut_into_very_many_frames_counts_as_the_most_there_is() -> None:
    """Each has to be looked at for itself."""
    frame = b"\x28\xb5\x2f\xfd\x20\x01\x09\x00\x00\xff"
    few, many = (
        RecordBatch(0, 0, 1, 0, ZSTD, True, bytes(RECORDS_AT) + frame * count)
        for count in (1_000, PIECES_MAX // 2 + 1)
    )
    assert unfolded_bytes(few, UNFOLDED_BYTES_MAX) == 1_000
    assert is_heavy(many, UNFOLDED_BYTES_MAX)


@pytest.mark.slow
def test_gzip_of_several_members_is_told_by_what_they_hold() -> None:
    """The client hands out the first one's records and nothing of the others, without a word."""
    for parts, expected in (
        ((b"all of it",), False),
        ((b"begin", b"end"), True),
        ((b"all of it", b""), False),
        ((b"begin", b"", b"end"), True),
        ((os.urandom(100_000), b"end"), True),
    ):
        assert is_handed_out_in_part(batch_of(gzip_members(*parts), GZIP)) == expected
    garbage = gzip_members(b"all of it") + b"\x1f\x8b\x08 and no member"
    assert not is_handed_out_in_part(batch_of(garbage, GZIP))
    assert not is_handed_out_in_part(batch_of(gzip_members(b"begin", b"end"), ZSTD))


def test_bytes_behind_a_frame_of_lz4_are_none_of_it() -> None:
    batch = batch_of(lz4_frame(b"some records") + lz4_frame(b"others"), LZ4)
    assert unfolded_bytes(batch, UNFOLDED_BYTES_MAX) == len(b"some records")


@pytest.mark.parametrize("codec", [GZIP, ZSTD])
def test_no_death_makes_a_batch_lighter(codec: int) -> None:
    """What a worker died of is not given to its successors because they have died as well."""
    count = 1_000_000
    # Of less than a megabyte, as they could be of `orders`.
    written = zlib.compress(os.urandom(800_000), 0, wbits=31)
    if codec == ZSTD:
        written = zeros_in_frames(12, told=True) + written
    many = RecordBatch(0, count - 1, count, 0, codec, True, bytes(RECORDS_AT) + written)
    bounds = [UNFOLDED_BYTES_MAX >> deaths for deaths in range(5)]
    assert [is_heavy(many, each) for each in bounds] == [True] * 5


@pytest.mark.slow
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


@cache
def many_small() -> list[RecordBatch]:
    """Orders, as they are and compressed."""
    count = 40_000
    records = b"".join(
        b"%032x shop-a GBP %d"
        % (number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128, number % 9000)
        for number in range(count)
    )
    return [
        RecordBatch(0, count - 1, count, 0, codec, True, bytes(RECORDS_AT) + written)
        for codec, written in ((0, records), (GZIP, zlib.compress(records, wbits=31)))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("bytes_max", [16 * MIB, 64 * MIB, UNFOLDED_BYTES_MAX])
def test_a_worker_that_was_killed_often_refuses_no_good_records(bytes_max: int) -> None:
    """Its bound sinks with each death, whatever it died of; many small orders are no bomb."""
    for batch in many_small():
        assert memory_of(batch) > 16 * MIB
        assert not is_heavy(batch, bytes_max)


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["gzip", "zstd"])
def test_orders_that_hardly_differ_are_no_bomb_either(codec: str) -> None:
    """A subscription's forty thousand of one day, as the client itself writes them: in one batch,
    compressed by 27. A worker that was killed four times from outside buried them all."""
    cluster = MockCluster(brokers=1)
    cluster.create_topic("orders")
    producer = Producer(
        {
            "bootstrap.servers": cluster.bootstrap_servers,
            "compression.type": codec,
            "linger.ms": 60_000,
            "batch.num.messages": 40_000,
            "batch.size": 16 * MIB,
            "message.max.bytes": 16 * MIB,
        }
    )
    order = Order(
        merchant_id="shop",
        order_id="sub-0000000",
        amount_minor=999,
        currency="GBP",
        instrument_token="tok_wallet",
        business_date="2027-01-15",
        submitted_at_ms=1_790_000_000_000,
    )
    before, behind = default_codec().encoder("order")(to_record(order)).split(b"0000000")
    for number in range(40_000):
        name = b"%07d" % number
        producer.produce("orders", before + name + behind, b"shop:sub-" + name, 0)
    # A flush would send what its broker thread has had so far; a full batch goes by itself.
    deadline_s = time.monotonic() + 50
    while len(producer) and time.monotonic() < deadline_s:
        producer.poll(0.1)
    assert len(producer) == 0
    host, _, port = cluster.bootstrap_servers.partition(":")
    broker = BrokerConnection(host, int(port), 10.0)
    batches, _ = fetch_batches(broker, "orders", 0, 0, 16 * MIB)
    broker.close()
    most = max(batches, key=lambda each: each.records)
    assert most.records * RECORD_BYTES > 16 * MIB
    for deaths in range(6):
        assert not any(is_heavy(each, max(16 * MIB, 256 * MIB >> deaths)) for each in batches)
