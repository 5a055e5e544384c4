"""Somebody else's transaction with a batch in it that no client would write."""

from __future__ import annotations

from confluent_kafka import Producer

from pipeline.broker_connection import BrokerConnection
from pipeline.hanging.requests import coordinated
from tests.support.raw_record import batch_bytes, produce_batch

_TRANSACTIONAL = 0x10


def open_transaction_with(
    bootstrap: str, topic: str, transactional_id: str, records: bytes, codec: int
) -> Producer:
    """In partition 0: a record of junk, and these records as a batch behind it. The producer's
    transaction is open."""
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": transactional_id})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(topic, b"junk", b"k", partition=0)
    producer.flush(30)
    host, _, port = bootstrap.partition(":")
    broker = BrokerConnection(host, int(port), 10.0)
    (known,) = coordinated(broker, [transactional_id])
    broker.close()
    batch = batch_bytes(
        records, codec | _TRANSACTIONAL, producer_id=known.producer_id, epoch=0, sequence=1
    )
    produce_batch(bootstrap, topic, batch, transactional_id)
    return producer
