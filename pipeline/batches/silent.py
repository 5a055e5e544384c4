"""Batches that a broker takes, and of which the client hands out nothing and says nothing.

Where the client cannot parse the records of a batch, it takes it for one that the broker has cut
off at the end of an answer, and asks for it again, for ever: gzip of several members, of which it
unfolds the first only; a compressed record whose value has a length of -2, which Java reads as
none. So no rule says which batches those are. A client of its own is given this batch and nothing
else: it hands out a record or an error, or counts a part of what it was given whole. The batch
behind it may be one that ends the process of whoever fetches it, so a client that asks once comes
first: what it hands out needs no other.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from pipeline.batches.one_answer import Place, asks_once, one_answer
from pipeline.batches.record_batch import RecordBatch, fetch_batches, stable_ends
from pipeline.batches.unreadable import NOT_HAD, UNFOLDED_BYTES_MAX, is_damaged, is_unreadable
from pipeline.broker_connection import BrokerConnection
from pipeline.kafka_access import reaching

_log = logging.getLogger(__name__)

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
# Until a client that asks once has unfolded the batch; the second where nothing came in the first.
UNFOLDING_S: Final = (0.25, 2.0)


def heads(
    admin: AdminClient,
    positions: Mapping[Place, int],
    stopped: Callable[[], bool],
    passed: MutableMapping[Place, int] | None = None,
    access: Mapping[str, Any] | None = None,
) -> dict[Place, RecordBatch]:
    """Of each partition the first committed batch, from a position on, of which a read_committed
    reader is handed records; without those where there is none, or that cannot be looked at now.
    One of NOT_HAD where nobody says who leads them.

    ``passed``: up to where there was none. What is put there is not read again by the next call
    that is given it, so a long tail of aborted records is read once, in as many calls as it takes.
    ``access``: how the brokers are reached, where that is not as the process says.
    """
    passed = {} if passed is None else passed
    known = admin.list_topics(timeout=REQUEST_TIMEOUT_S)
    by_leader: dict[int, dict[Place, int]] = {}
    for place, position in positions.items():
        with contextlib.suppress(KeyError):
            leader = known.topics[place[0]].partitions[place[1]].leader
            by_leader.setdefault(leader, {})[place] = max(position, passed.get(place, 0))
    found: dict[Place, RecordBatch] = {}
    for leader, places in by_leader.items():
        # While one is chosen there is none.
        if (address := known.brokers.get(leader)) is not None:
            for place, head in _of_leader(address, places, stopped, passed, access):
                if head.last_offset >= positions[place]:
                    found[place] = head
    return found


def _of_leader(
    address: Any,
    places: Mapping[Place, int],
    stopped: Callable[[], bool],
    passed: MutableMapping[Place, int],
    access: Mapping[str, Any] | None,
) -> Iterator[tuple[Place, RecordBatch]]:
    """As far as it answers in time."""
    deadline_s = time.monotonic() + BROKER_TIMEOUT_S

    def connected() -> BrokerConnection:
        return BrokerConnection(
            str(address.host),
            address.port,
            REQUEST_TIMEOUT_S,
            deadline_s=deadline_s,
            stopped=stopped,
            access=access,
        )

    try:
        broker = connected()
        try:
            for place, end in stable_ends(broker, places).items():
                if places[place] >= end:
                    continue
                try:
                    if broker.is_closed:
                        broker = connected()
                    if head := _head(broker, place, places[place], passed):
                        yield place, head
                except NOT_HAD as error:
                    # The next one may be had.
                    _log.debug("%s[%d] is not looked at: %s", *place, error)
        finally:
            broker.close()
    except NOT_HAD as error:
        _log.debug("%s:%s says nothing of what lies there: %s", address.host, address.port, error)


def _head(
    broker: BrokerConnection, place: Place, position: int, passed: MutableMapping[Place, int]
) -> RecordBatch | None:
    while True:
        batches, is_end = fetch_batches(broker, *place, position, FETCH_BYTES)
        for batch in batches:
            # Of what was compacted away whole there is a batch without records.
            if batch.visible and batch.records and batch.last_offset >= position:
                return batch
            passed[place] = batch.last_offset + 1
        if is_end:
            return None
        position = batches[-1].last_offset + 1


def is_silent(
    servers: str,
    place: Place,
    batch: RecordBatch,
    position: int,
    stopped: Callable[[], bool] = lambda: False,
    access: Mapping[str, Any] | None = None,
) -> bool | None:
    """Whether the client says nothing of this batch from a position in it on; None when that is not
    known in time, or the client is told by its broker of something else. Unfolds it as the client
    does, so it takes as much memory."""
    position = max(position, batch.first_offset)
    try:
        said = _said_of_one_answer(servers, place, batch, position, stopped, access)
        if said is None:
            said = _said_of_it(servers, place, batch, position, stopped, access)
            if said is None:
                return True
    except (KafkaException, TimeoutError):
        return None
    if (error := said.error()) is None:
        return False
    # Any other is of the partition: that it was deleted, or is not for us to read.
    return False if is_unreadable(error) or is_damaged(error) else None


def _said_of_one_answer(
    servers: str,
    place: Place,
    batch: RecordBatch,
    position: int,
    stopped: Callable[[], bool],
    access: Mapping[str, Any] | None,
) -> Any:
    """The first that a client says of it; None where that is nothing in the time that it is given
    to unfold it. TimeoutError where it is not answered."""
    for unfolding_s in UNFOLDING_S:
        client = asks_once(servers, len(batch.data), access=access)
        try:
            for message in one_answer(client, place, position, unfolding_s, stopped):
                if _is_of_partition(message):
                    return message
        finally:
            client.close()
    return None


def _said_of_it(
    servers: str,
    place: Place,
    batch: RecordBatch,
    position: int,
    stopped: Callable[[], bool],
    access: Mapping[str, Any] | None,
) -> Any:
    """The first that a client says of it, however long it unfolds it; None where it takes it for
    cut off. TimeoutError where it does neither."""
    partial = 0

    def counted(statistics: str) -> None:
        nonlocal partial
        brokers = json.loads(statistics)["brokers"].values()
        partial = sum(each["rxpartial"] for each in brokers)

    client = Consumer(
        {
            **reaching(servers, access),
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
        client.assign([TopicPartition(*place, position)])
        until_s = time.monotonic() + READ_TIMEOUT_S
        said = None
        while not partial and said is None:
            if stopped() or time.monotonic() > until_s:
                raise TimeoutError(f"{place[0]}[{place[1]}]@{position}: nothing is said in time")
            said = _said(client)
        # What it made of the batch was in its queue before it counted a later one.
        return _said(client) if said is None else said
    finally:
        client.close()


def _said(client: Any) -> Any:
    """A record, or an error of this partition."""
    message = client.poll(READ_S)
    return message if message is not None and _is_of_partition(message) else None


def _is_of_partition(message: Any) -> bool:
    """Errors of the client's connections are of none."""
    return message.partition() is not None and message.partition() >= 0
