"""One hop of the peer: the smallest exactly-once consume-process-produce loop that is honest.

    python -m benchmarks.peer_hop '{"bootstrap_servers": ..., "source": ..., ...}'

No table, no duplicates looked for, no ambiguous ends resolved, nothing overlapped: consume up to a
batch, copy (or decode and encode) it, commit, again. It ends when its standard input is closed, so
it never outlives the benchmark.
"""

from __future__ import annotations

import io
import os
import select
import sys
from collections.abc import Callable
from typing import Any

import fastavro
from confluent_kafka import Consumer, Producer, TopicPartition
from msgspec import Struct, json

from schemas.codec import HEADER_BYTES, load_schemas

# How long a batch may take to fill; a full one does not wait.
FILL_S = 0.05
TRANSACTION_S = 30.0


class HopSpec(Struct, frozen=True):
    """``batch_max`` records a transaction; ``codec`` is copy (bytes) or fastavro."""

    bootstrap_servers: str
    source: str
    target: str
    partitions: int
    batch_max: int
    codec: str


def main() -> int:
    run(json.decode(sys.argv[1].encode(), type=HopSpec))
    return 0


def run(spec: HopSpec) -> None:
    """Loop until standard input is closed."""
    name = f"peer-{spec.source}"
    consumer = Consumer(
        {
            "bootstrap.servers": spec.bootstrap_servers,
            "group.id": name,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "queued.min.messages": 100_000,
            "fetch.wait.max.ms": 100,
        }
    )
    producer = Producer(
        {
            "bootstrap.servers": spec.bootstrap_servers,
            "transactional.id": name,
            "log_level": 3,
            "linger.ms": 5,
            "batch.num.messages": 10_000,
            "batch.size": 1_000_000,
            "compression.type": "lz4",
            "retry.backoff.ms": 5,
            "retry.backoff.max.ms": 20,
        }
    )
    producer.init_transactions(TRANSACTION_S)
    consumer.subscribe([spec.source])
    process = _processor(spec.codec)
    produce = producer.produce
    while not _input_closed():
        messages: list[Any] = consumer.consume(spec.batch_max, FILL_S)
        if not messages:
            continue
        metadata = consumer.consumer_group_metadata()
        positions: dict[int, int] = {}
        producer.begin_transaction()
        for message in messages:
            if message.error() is not None:
                raise SystemExit(f"{name}: {message.error().str()}")
            partition = message.partition()
            positions[partition] = message.offset() + 1
            while True:
                try:
                    produce(spec.target, process(message.value()), message.key(), partition)
                    break
                except BufferError:
                    producer.poll(0.05)
        offsets = [TopicPartition(spec.source, p, o) for p, o in positions.items()]
        producer.send_offsets_to_transaction(offsets, metadata, TRANSACTION_S)
        producer.commit_transaction(TRANSACTION_S)
    consumer.close()


def _processor(codec: str) -> Callable[[bytes], bytes]:
    if codec == "copy":
        return lambda value: value
    schema = load_schemas()["order"]
    read: Any = fastavro.schemaless_reader
    write: Any = fastavro.schemaless_writer

    def through_fastavro(value: bytes) -> bytes:
        record = read(io.BytesIO(value[HEADER_BYTES:]), schema)
        out = io.BytesIO()
        out.write(value[:HEADER_BYTES])
        write(out, schema, record)
        return out.getvalue()

    return through_fastavro


def _input_closed() -> bool:
    """Whether the benchmark has closed our standard input, or is gone."""
    ready, _, _ = select.select([sys.stdin.fileno()], [], [], 0)
    return bool(ready) and os.read(sys.stdin.fileno(), 1) == b""


if __name__ == "__main__":
    sys.exit(main())
