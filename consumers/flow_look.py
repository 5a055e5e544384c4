"""How far the flow is: whether it can still turn out that a charge is ours.

A charge that nobody here asked for is given back only when everything that gateways and people have
said was read by payments, and everything that settled by then is booked. What payments make of a
record becomes visible partition by partition, so each end is waited for as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import closing

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from sqlalchemy import Engine

from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.model import Payment
from pipeline.domain.records import payment_from_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.ledger.database import reading
from pipeline.ledger.queries import booked_offsets
from pipeline.ledger.reconciliation.refunds import FlowSeen
from pipeline.runtime.cluster import ask_committed_positions
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.partition_offsets import list_offsets, watermarks
from pipeline.runtime.topic_reader import TopicReader
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue

# What gateways say of operations, from calls, webhooks and reports; and what people resolve.
SAID = ("gateway-results", "gateway-notifications", "payment-commands")
REQUEST_TIMEOUT_S = 10.0
# A flow that runs has caught up within this time, unless it is far behind.
PATIENCE_S = 20.0
PAUSE_S = 0.2
# A client that has just begun needs a moment for any answer.
OFFSETS_S_MIN = 1.0

Place = tuple[str, int]


class FlowLook:
    """Of one installation; asks the cluster, joins no group and writes nothing."""

    def __init__(
        self,
        bootstrap_servers: str,
        catalogue: Catalogue,
        codec: Codec,
        engine: Engine,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._servers = bootstrap_servers
        self._catalogue = catalogue
        self._decode = codec.decoder("payment")
        self._engine = engine
        self._patience_s = patience_s

    def seen(self, merchant_id: str, order_id: str) -> FlowSeen:
        """How far it is now, waited for a while; with the payment of that order, if there is one.
        UserError when the cluster does not answer, or what it keeps of the order cannot be read."""
        deadline_s = time.monotonic() + self._patience_s

        def soon(is_so: Callable[[], bool]) -> bool:
            while not is_so():
                if time.monotonic() >= deadline_s:
                    return False
                time.sleep(PAUSE_S)
            return True

        try:
            with closing(self._reader()) as reader:
                said = self._ends(*SAID)
                if not soon(lambda: _is_decided(reader, said) and self._is_read(said, deadline_s)):
                    return FlowSeen(answered=False, booked=False, payment=None)
                # Only now: what payments made of it lies before these ends.
                settled, kept = self._ends("settlements"), self._ends("payments")
                if not soon(lambda: _is_decided(reader, {**settled, **kept})):
                    return FlowSeen(answered=False, booked=False, payment=None)
            booked = soon(lambda: self._is_booked(settled))
            return FlowSeen(
                answered=True, booked=booked, payment=self._payment(merchant_id, order_id)
            )
        except (KafkaException, LaneFatal) as error:
            raise UserError(f"the cluster at {self._servers} does not answer: {error}.") from error

    def _ends(self, *roles: str) -> dict[Place, int]:
        """Where the partitions end now, with what belongs to open transactions."""
        admin = AdminClient({**reaching(self._servers), "log_level": 0})
        places = [
            TopicPartition(spec.name, partition)
            for spec in (self._catalogue[role] for role in roles)
            for partition in range(spec.partitions)
        ]
        return list_offsets(
            admin,
            {place: OffsetSpec.latest() for place in places},  # type: ignore[no-untyped-call]
            timeout_s=REQUEST_TIMEOUT_S,
        )

    def _reader(self) -> Consumer:
        """A client that is asked for ends as readers of committed records see them."""
        return Consumer(
            {
                **reaching(self._servers),
                "group.id": "paystream-past",
                "isolation.level": "read_committed",
                "log_level": 0,
            }
        )

    def _is_read(self, ends: Mapping[Place, int], deadline_s: float) -> bool:
        group = self._catalogue.group("payments")
        left_s = max(OFFSETS_S_MIN, deadline_s - time.monotonic())
        try:
            read = ask_committed_positions(self._servers, group, ends, patience_s=left_s)
        except LaneFatal:
            # A worker's transaction holds them and does not end: payments are not through. A
            # cluster that is away says so when it is asked anything else.
            self._ends(*SAID)
            return False
        return self._nothing_left(read, ends)

    def _is_booked(self, ends: Mapping[Place, int]) -> bool:
        with reading(self._engine) as connection:
            booked = {(o.topic, o.partition): o.next_offset for o in booked_offsets(connection)}
        return self._nothing_left(booked, ends)

    def _nothing_left(self, positions: Mapping[Place, int], ends: Mapping[Place, int]) -> bool:
        """Whether no record lies between: a log may end in marks of transactions alone."""
        for (topic, partition), end in ends.items():
            position = positions.get((topic, partition), 0)
            if position < end:
                left = next(TopicReader(self._servers).onward(topic, partition, position), None)
                if left is not None and left.offset < end:
                    return False
        return True

    def _payment(self, merchant_id: str, order_id: str) -> Payment | None:
        if not (merchant_id and order_id):
            return None
        table = self._catalogue["payments"]
        key = record_key(merchant_id, order_id)
        newest = None
        lane = partition_of(key, table.partitions)
        for record in TopicReader(self._servers).onward(table.name, lane, 0):
            if record.key == key:
                newest = record
        if newest is None or newest.value is None:
            return None
        try:
            return payment_from_record(self._decode(newest.value))
        except DecodeError as error:
            raise UserError(
                f"the payment of {merchant_id}:{order_id} at {table.name}[{lane}]@{newest.offset} "
                f"cannot be read ({error}), so it may know the charge: see what `paystream verify` "
                "says of it first."
            ) from error


def _is_decided(reader: Consumer, ends: Mapping[Place, int]) -> bool:
    """Whether no transaction is open any more before these ends."""
    return all(
        watermarks(reader, TopicPartition(*place), timeout_s=REQUEST_TIMEOUT_S)[1] >= end
        for place, end in ends.items()
    )
