"""Publishing decisions about the books, and booking what they post once they are published.

A decision that is in the database and not in the topic, or in the topic and not booked, is what a
crash leaves: the next call takes it further. Decisions are published in transactions of one id,
with what else they are told by (a payout as it stands, the audit's entry): whoever publishes puts
an earlier one off before looking at the topic, so each decision is there once, with all of it. One
that an earlier version published twice counts where it stands first.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from msgspec import Struct
from sqlalchemy import Engine

from pipeline.domain.model import LedgerEvent
from pipeline.domain.payout_records import Companion
from pipeline.domain.records import ledger_event_from_record, to_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.ledger.database import reading
from pipeline.ledger.decision_booking import DecisionBooker, booked_decisions
from pipeline.ledger.decisions import (
    TOPIC_ROLE,
    WaitingDecision,
    adopt,
    decided_ids,
    decisions_at,
    waiting_decisions,
)
from pipeline.ledger.journal import Source
from pipeline.runtime.cluster import (
    METADATA_TIMEOUT_S,
    cluster_and_topic_id,
    require_reachable,
)
from pipeline.runtime.partition_offsets import watermarks
from pipeline.runtime.topic_reader import PastRecord, TopicReader
from producers.payout_records import companions_of
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue

# One key for all, so that they lie in one partition, in order.
KEY = b"ledger"
# How long a publication may take before it is given up, and the broker ends what a crash left open.
TRANSACTION_TIMEOUT_S = 30.0
# A broker that froze is left for another leader only after its session, some ten seconds.
LEADER_TIMEOUT_S = 30.0
# Decisions published by one transaction, and what their bodies come to: most have some hundred
# bytes, rows that are cleared some hundred KiB.
PUBLISHED_TOGETHER_MAX = 500
PUBLISHED_BYTES_MAX = 4 * 1024 * 1024

# Partition and offset.
Place = tuple[int, int]


class PublishedEvent(Struct, frozen=True):
    """A decision and where it stands first."""

    event: LedgerEvent
    partition: int
    offset: int


class LedgerEvents:
    """The topic of decisions of one installation."""

    def __init__(self, bootstrap_servers: str, catalogue: Catalogue, codec: Codec) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._catalogue = catalogue
        self._codec = codec
        self._topic = catalogue.name(TOPIC_ROLE)
        self._encode = codec.encoder("ledger-event")
        self._decode = codec.decoder("ledger-event")

    def source(self) -> Source:
        """The topic with the ids that tell it from another of its name. UserError when away."""
        return topic_source(self.bootstrap_servers, self._topic)

    def read(self) -> list[PublishedEvent]:
        """Every decision in the topic, in the order they were made.

        UserError when two ledgers have decided on these topics, or one is not there.
        """
        found = list(self._first_of_each(self._onward({})))
        self._require_whole([each.event.sequence for each in found])
        return sorted(found, key=lambda each: each.event.sequence)

    def publish(self, engine: Engine, on_step: Callable[[str], None] = lambda _step: None) -> int:
        """Publish what is decided and book what it posts, in order; how many entries that made.

        What the topic has and the ledger has not is taken over first. UserError when the two
        contradict each other: another ledger has decided on these topics.

        ``on_step`` is told the steps, for tests that end the process there.
        """
        source = self.source()
        with reading(engine) as connection:
            producer = self._fencing_producer() if waiting_decisions(connection) else None
        there, waiting = self._there_and_waiting(engine, source)
        if producer is None and any(each.event_id not in there for each in waiting):
            # Somebody has decided meanwhile.
            producer = self._fencing_producer()
            there, waiting = self._there_and_waiting(engine, source)
        booker = DecisionBooker(engine, source)
        made = 0
        for some in together(waiting):
            with reading(engine) as connection:
                events = decisions_at(connection, [each.sequence for each in some])
            on_step("decided")
            places = {
                event.event_id: there[event.event_id] for event in events if event.event_id in there
            }
            new = [event for event in events if event.event_id not in places]
            if new and producer is not None:
                places.update(self._deliver(producer, new, companions_of(engine, new), on_step))
            on_step("published")
            for event in events:
                made += booker.book(event, *places[event.event_id])
        return made

    def tell(self, companion: Companion) -> None:
        """Publish something that no decision goes with: that one was refused."""
        self._deliver(self._fencing_producer(), (), (companion,), lambda _step: None)

    def _there_and_waiting(
        self, engine: Engine, source: Source
    ) -> tuple[dict[str, Place], list[WaitingDecision]]:
        """Where each decision is that the topic has and the ledger has not booked, and what is to
        be published or booked; what the ledger had not is taken over."""
        with reading(engine) as connection:
            known = decided_ids(connection)
            booked = booked_decisions(connection, source)
        there: dict[str, Place] = {}
        sequences: list[int] = []
        unknown: list[LedgerEvent] = []
        # They are booked in their order, so what lies before is booked and was looked at then.
        for each in self._first_of_each(self._onward(booked.next_offsets)):
            event = each.event
            there[event.event_id] = each.partition, each.offset
            if event.sequence > booked.sequence:
                sequences.append(event.sequence)
            if known.get(event.sequence) != event.event_id:
                unknown.append(event)
        self._require_whole(sequences, booked.sequence + 1)
        with engine.begin() as connection:
            adopt(connection, unknown)
            return there, waiting_decisions(connection)

    def _onward(self, starts: Mapping[int, int]) -> Iterator[PastRecord]:
        """Records of the topic in its order, of each partition from an offset on. UserError when
        some of what lies before were deleted."""
        parts = []
        for partition, (low, end) in topic_ranges(self.bootstrap_servers, self._topic).items():
            start = starts.get(partition, 0)
            if start and low:
                raise UserError(
                    f"{self._topic}[{partition}] begins at offset {low}: decisions were deleted. "
                    "Keep the topic for ever (retention.ms=-1); the ledger's backup has them."
                )
            if max(start, low) < end:
                reader = TopicReader(self.bootstrap_servers)
                parts.append(reader.onward(self._topic, partition, max(start, low)))
        yield from heapq.merge(*parts, key=lambda record: record.timestamp_ms)

    def _first_of_each(self, records: Iterable[PastRecord]) -> Iterator[PublishedEvent]:
        """Each decision where it stands first."""
        seen: set[str] = set()
        for record in records:
            try:
                event = ledger_event_from_record(self._decode(record.value or b""))
            except DecodeError as error:
                raise UserError(
                    f"{self._topic}[{record.partition}]@{record.offset} is no decision about the "
                    f"books ({error}); nothing is made of the topics until it is explained."
                ) from error
            if event.event_id not in seen:
                seen.add(event.event_id)
                yield PublishedEvent(event, record.partition, record.offset)

    def _require_whole(self, sequences: Iterable[int], first: int = 1) -> None:
        for number, sequence in enumerate(sorted(sequences), first):
            if sequence != number:
                raise UserError(
                    f"{self._topic} has no decision {number} and then {sequence}, or two of one "
                    "number: another ledger has decided on these topics, or some of them were "
                    "deleted."
                )

    def _fencing_producer(self) -> Producer:
        """What another process was publishing is ended by now: it is in the topic, or never is."""
        producer = Producer(
            {
                **reaching(self.bootstrap_servers),
                "client.id": "paystream.ledger.events",
                "transactional.id": f"paystream/{self._catalogue.settings.prefix}/ledger-events",
                "transaction.timeout.ms": int(TRANSACTION_TIMEOUT_S * 1000),
                "partitioner": "murmur2_random",
                "log_level": 0,
            }
        )
        try:
            producer.init_transactions(TRANSACTION_TIMEOUT_S)
        except KafkaException as error:
            raise UserError(
                f"the cluster takes no transactions now: {error.args[0].str()}. When it does, "
                "`paystream ledger publish` takes what is decided further."
            ) from error
        return producer

    def _deliver(
        self,
        producer: Producer,
        events: Sequence[LedgerEvent],
        companions: Sequence[Companion],
        on_step: Callable[[str], None],
    ) -> dict[str, tuple[int, int]]:
        """Publish all or nothing; where each decision is."""
        placed: dict[str, tuple[int, int]] = {}

        def placing(event: LedgerEvent) -> Callable[[object, Message], None]:
            def place(error: object, message: Message) -> None:
                if error is None:
                    placed[event.event_id] = message.partition() or 0, message.offset() or 0

            return place

        try:
            producer.begin_transaction()
            for event in events:
                value = self._encode(to_record(event))
                producer.produce(self._topic, value, KEY, on_delivery=placing(event))
            for role, key, noun in companions:
                schema = self._catalogue[role].schema or ""
                value = self._codec.encoder(schema)(to_record(noun))
                producer.produce(self._catalogue.name(role), value, key)
            producer.flush(TRANSACTION_TIMEOUT_S)
            on_step("sent")
            producer.commit_transaction(TRANSACTION_TIMEOUT_S)
        except KafkaException as error:
            why = error.args[0].str()
            if not events:
                raise UserError(f"the audit was not certainly told of a refusal: {why}.") from error
            raise UserError(
                f"decision {events[0].sequence} is made and was not certainly published ({why}); "
                "when the cluster is back and has all topics (`paystream topics apply`), "
                "`paystream ledger publish` takes it further."
            ) from error
        return placed


def together(events: Sequence[WaitingDecision]) -> Iterator[list[WaitingDecision]]:
    """In order, as many at a time as one transaction should hold; one that is larger goes alone."""
    taken: list[WaitingDecision] = []
    size = 0
    for event in events:
        if taken and (
            len(taken) == PUBLISHED_TOGETHER_MAX or size + event.size > PUBLISHED_BYTES_MAX
        ):
            yield taken
            taken, size = [], 0
        taken.append(event)
        size += event.size
    if taken:
        yield taken


def _away(bootstrap_servers: str, error: KafkaException) -> UserError:
    return UserError(
        f"the cluster at {bootstrap_servers} does not answer: {error.args[0].str()}. "
        "Start it, or set --bootstrap-servers."
    )


def topic_source(bootstrap_servers: str, topic: str) -> Source:
    """The topic with the ids that tell it from another of its name. UserError when away."""
    admin = AdminClient({**reaching(bootstrap_servers), "log_level": 0})
    try:
        metadata = require_reachable(admin, bootstrap_servers)
        if topic not in metadata.topics:
            raise UserError(
                f"topic {topic} is missing on the cluster. Create it with `paystream topics apply`."
            )
        cluster_id, topic_id = cluster_and_topic_id(admin, topic)
    except KafkaException as error:
        raise _away(bootstrap_servers, error) from error
    return Source(cluster_id, topic, topic_id)


def topic_ranges(bootstrap_servers: str, topic: str) -> dict[int, tuple[int, int]]:
    """First offset and end of each partition, waited for while one has no leader.

    UserError when the cluster is away.
    """
    consumer = Consumer(
        {**reaching(bootstrap_servers), "group.id": "paystream-past", "log_level": 0}
    )
    try:
        found = consumer.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
        return {
            partition: watermarks(
                consumer, TopicPartition(topic, partition), timeout_s=LEADER_TIMEOUT_S
            )
            for partition in sorted(found.partitions)
        }
    except KafkaException as error:
        raise _away(bootstrap_servers, error) from error
    finally:
        consumer.close()
