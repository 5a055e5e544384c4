"""Batches that a broker takes, and of which the client hands out nothing and says nothing.

Where the client cannot parse the records of a batch, it takes it for one that the broker has cut
off at the end of an answer, and asks for it again, for ever: gzip of several members, of which it
unfolds the first only; a compressed record whose value has a length of -2, which Java reads as
none. So no rule says which batches those are. A client of its own is given this batch and nothing
else: it hands out a record or an error, or counts a part of what it was given whole.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.broker_connection import BrokerConnection
from pipeline.kafka_access import reaching
from pipeline.record_batch import RecordBatch, fetch_batches, stable_ends
from pipeline.unreadable import UNFOLDED_BYTES_MAX

Place = tuple[str, int]

# Of each question to a broker, and of all of them to one.
REQUEST_TIMEOUT_S: Final = 3.0
BROKER_TIMEOUT_S: Final = 15.0
# How soon a stop is heard.
HEARS_S: Final = 0.5
FETCH_BYTES: Final = 256 * 1024
# The client that is given a batch: until it has said what it makes of it, and between two looks.
READ_TIMEOUT_S: Final = 30.0
STATISTICS_MS: Final = 200
READ_S: Final = 0.1


def heads(
    admin: AdminClient, positions: Mapping[Place, int], stopped: Callable[[], bool]
) -> dict[Place, RecordBatch]:
    """Of each partition the first committed batch, from a position on, of which a read_committed
    reader is handed records; without those where there is none. One of NOT_HAD."""
    known = admin.list_topics(timeout=REQUEST_TIMEOUT_S)
    by_leader: dict[int, dict[Place, int]] = {}
    for (topic, number), position in positions.items():
        leader = known.topics[topic].partitions[number].leader
        by_leader.setdefault(leader, {})[topic, number] = position
    found: dict[Place, RecordBatch] = {}
    for leader, places in by_leader.items():
        address = known.brokers[leader]
        broker = BrokerConnection(
            str(address.host),
            address.port,
            REQUEST_TIMEOUT_S,
            deadline_s=time.monotonic() + BROKER_TIMEOUT_S,
            stopped=stopped,
        )
        try:
            for place, end in stable_ends(broker, places).items():
                if places[place] < end and (head := _head(broker, place, places[place])):
                    found[place] = head
        finally:
            broker.close()
    return found


def _head(broker: BrokerConnection, place: Place, position: int) -> RecordBatch | None:
    while True:
        batches, is_end = fetch_batches(broker, *place, position, FETCH_BYTES)
        for batch in batches:
            # Of what was compacted away whole there is a batch without records.
            if batch.visible and batch.records and batch.last_offset >= position:
                return batch
        if is_end:
            return None
        position = batches[-1].last_offset + 1


def is_silent(
    servers: str,
    place: Place,
    batch: RecordBatch,
    position: int,
    stopped: Callable[[], bool] = lambda: False,
) -> bool | None:
    """Whether the client says nothing of this batch from a position in it on; None when that is not
    known in time. Unfolds it as the client does, so it takes as much memory."""
    partial = 0

    def counted(statistics: str) -> None:
        nonlocal partial
        brokers = json.loads(statistics)["brokers"].values()
        partial = sum(each["rxpartial"] for each in brokers)

    client = Consumer(
        {
            **reaching(servers),
            "log_level": 0,
            # Never used: the partition is assigned by hand and nothing is committed.
            "group.id": "paystream-silent-unused",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "auto.offset.reset": "error",
            # This batch and no byte more, of which a part would be counted as well.
            "fetch.message.max.bytes": len(batch.data),
            "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
            "check.crcs": True,
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": counted,
        }
    )
    try:
        begin = max(position, batch.first_offset)
        client.assign([TopicPartition(*place, begin)])
        until_s = time.monotonic() + READ_TIMEOUT_S
        while not partial:
            if stopped() or time.monotonic() > until_s:
                return None
            if (said := _said(client)) is not None:
                # Who gives out a record that is elsewhere has nothing of this place.
                return said >= 0 and not begin <= said <= batch.last_offset
        # What it made of the batch was in its queue before it counted a later one.
        return _said(client) is None
    except KafkaException:
        return None
    finally:
        client.close()


def _said(client: Any) -> int | None:
    """The offset of a record, or -1 for an error of this partition; those of its connections have
    none."""
    message = client.poll(READ_S)
    if message is None or message.partition() is None or message.partition() < 0:
        return None
    return -1 if message.error() is not None else message.offset()
