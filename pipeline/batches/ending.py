"""Batches that end the process of whoever gives them to the client or mislead it, and a way around.

Of gzip of several members the client unfolds the first only. Where that is empty, an assertion of
librdkafka's fails (2.16, ``rd_slice_init_full``), and no word of it can be caught. Where records
say that they are elsewhere, it goes on behind there. So whoever must read a log whatever was put
there looks at its batches first, and what lies before such a one is fetched in runs that end where
it begins.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from confluent_kafka import KafkaError, Message
from confluent_kafka.admin import AdminClient

from pipeline.batches.one_answer import Place, asks_once, one_answer
from pipeline.batches.record_batch import GZIP, RECORDS_AT, RecordBatch, fetch_batches
from pipeline.batches.record_offsets import gives_false_offsets
from pipeline.batches.silent import is_silent
from pipeline.batches.unreadable import is_unreadable
from pipeline.broker_connection import BrokerConnection
from pipeline.kafka_wire import Malformed

_PIECE: Final = 4 * 1024
REQUEST_TIMEOUT_S: Final = 10.0
FETCH_BYTES: Final = 8 * 1024 * 1024
# Of what lies before such a batch, in one answer.
RUN_BYTES: Final = 1024 * 1024
# Until what has come is unfolded.
UNFOLDING_S: Final = 0.25
# Where nothing has come, it is given more time, so often.
SLOWER: Final = 8
TRIES: Final = 2


def ends_the_client(batch: RecordBatch) -> bool:
    """Whether the client that is given this batch ends its process."""
    if batch.codec != GZIP:
        return False
    stream = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    try:
        for at in range(RECORDS_AT, len(batch.data), _PIECE):
            if stream.decompress(batch.data[at : at + _PIECE], 1):
                return False
            if stream.eof:
                return True
    except zlib.error:
        # The client says that it is damaged.
        pass
    return False


def _is_avoided(batch: RecordBatch) -> bool:
    return ends_the_client(batch) or gives_false_offsets(batch)


def behind_ending_batches(admin: AdminClient, positions: Mapping[Place, int]) -> dict[Place, int]:
    """Of each partition that has any from a position on, the offset behind the last of them. One of
    NOT_HAD where a log is not to be had; so much of it as its broker sends is fetched."""
    found: dict[Place, int] = {}
    with _Leaders(admin) as leaders:
        for place, position in positions.items():
            for batch in _batches(leaders.of(place), place, position):
                if _is_avoided(batch) and not batch.is_damaged:
                    found[place] = batch.last_offset + 1
    return found


def read_around(
    admin: AdminClient, servers: str, place: Place, position: int, behind: int
) -> Iterator[Message | RecordBatch]:
    """What a read_committed reader is handed of a partition from a position on up to the last batch
    that its client must not be given, that one included; each batch that the client cannot read as
    itself. One of NOT_HAD."""
    with _Leaders(admin) as leaders:
        run: list[RecordBatch] = []
        size = 0
        for batch in _batches(leaders.of(place), place, position):
            is_avoided = _is_avoided(batch)
            if run and (is_avoided or size + len(batch.data) > RUN_BYTES):
                yield from _read(servers, place, position, run)
                run, size = [], 0
            if is_avoided:
                if batch.visible:
                    yield batch
            else:
                run.append(batch)
                size += len(batch.data)
            if batch.last_offset + 1 >= behind:
                return


class _Leaders:
    """One connection to each leader that is asked for."""

    def __init__(self, admin: AdminClient) -> None:
        self._known = admin.list_topics(timeout=REQUEST_TIMEOUT_S)
        self._connections: dict[int, BrokerConnection] = {}

    def __enter__(self) -> _Leaders:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections.values():
            connection.close()

    def of(self, place: Place) -> BrokerConnection:
        """LookupError while there is none."""
        leader = self._known.topics[place[0]].partitions[place[1]].leader
        if leader not in self._connections:
            address = self._known.brokers[leader]
            self._connections[leader] = BrokerConnection(
                str(address.host), address.port, REQUEST_TIMEOUT_S
            )
        return self._connections[leader]


def _batches(broker: BrokerConnection, place: Place, position: int) -> Iterator[RecordBatch]:
    is_end = False
    while not is_end:
        batches, is_end = fetch_batches(broker, *place, position, FETCH_BYTES)
        yield from batches
        if batches:
            position = batches[-1].last_offset + 1


def _read(
    servers: str, place: Place, position: int, run: Sequence[RecordBatch]
) -> Iterator[Message | RecordBatch]:
    """What one run brings, in as many answers as it takes."""
    tries = 0
    while run := [b for b in run if b.last_offset >= position]:
        shown = [b for b in run if b.visible and b.records]
        if not shown:
            return
        position = max(position, shown[0].first_offset)
        size = sum(len(b.data) for b in run if b.last_offset >= position)
        messages, error = _brought(servers, place, position, size, UNFOLDING_S * SLOWER**tries)
        messages = [each for each in messages if (each.offset() or 0) <= shown[-1].last_offset]
        if messages:
            yield from messages
            position, tries = (messages[-1].offset() or 0) + 1, 0
        elif is_unreadable(error) or (
            error is None
            and tries
            and not shown[0].is_damaged
            and is_silent(servers, place, shown[0], position)
        ):
            yield shown[0]
            position, tries = shown[0].last_offset + 1, 0
        elif error is None and tries < TRIES:
            tries += 1
        else:
            raise Malformed(f"{place[0]}[{place[1]}]@{position}: {error or 'nothing comes'}")


def _brought(
    servers: str, place: Place, position: int, size: int, unfolding_s: float
) -> tuple[list[Message], KafkaError | None]:
    """The messages that come with so many bytes, and what the client says of them."""
    client = asks_once(servers, size)
    messages: list[Message] = []
    try:
        for message in one_answer(client, place, position, unfolding_s):
            if (error := message.error()) is None:
                messages.append(message)
            elif (message.partition() or 0) >= 0 and not error.retriable():
                return messages, error
    except TimeoutError:
        pass
    finally:
        client.close()
    return messages, None
