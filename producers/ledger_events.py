"""Publishing decisions about the books, and booking what they post once they are published.

A decision that is in the database and not in the topic, or in the topic and not booked, is what a
crash leaves: the next call takes it further. A decision that is in the topic twice counts where it
stands first.
"""

from __future__ import annotations

from collections.abc import Callable

from confluent_kafka import (
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from msgspec import Struct
from sqlalchemy import Engine

from pipeline.domain.model import LedgerEvent
from pipeline.domain.records import ledger_event_from_record, to_record
from pipeline.errors import UserError
from pipeline.ledger.decision_booking import book_decision
from pipeline.ledger.decisions import adopt, unpublished
from pipeline.ledger.journal import Source
from pipeline.runtime.cluster import cluster_and_topic_id, require_reachable
from pipeline.runtime.topic_reader import TopicReader
from schemas.codec import Codec
from schemas.errors import DecodeError
from topics.catalogue import Catalogue

ROLE = "ledger-events"
# One key for all, so that they lie in one partition, in order.
KEY = b"ledger"
DELIVERY_TIMEOUT_S = 30.0
METADATA_TIMEOUT_S = 10.0


class PublishedEvent(Struct, frozen=True):
    """A decision and where it stands first."""

    event: LedgerEvent
    partition: int
    offset: int


class LedgerEvents:
    """The topic of decisions of one installation."""

    def __init__(self, bootstrap_servers: str, catalogue: Catalogue, codec: Codec) -> None:
        self.bootstrap_servers = bootstrap_servers
        self._topic = catalogue.name(ROLE)
        self._encode = codec.encoder("ledger-event")
        self._decode = codec.decoder("ledger-event")

    def source(self) -> Source:
        """The topic with the ids that tell it from another of its name. UserError when away."""
        return topic_source(self.bootstrap_servers, self._topic)

    def read(self) -> list[PublishedEvent]:
        """Every decision in the topic, in the order they were made.

        UserError when two ledgers have decided on these topics, or one is not there.
        """
        found: dict[str, PublishedEvent] = {}
        for record in TopicReader(self.bootstrap_servers).by_time(self._topic, None, None):
            try:
                event = ledger_event_from_record(self._decode(record.value or b""))
            except DecodeError as error:
                raise UserError(
                    f"{self._topic}[{record.partition}]@{record.offset} is no decision about the "
                    f"books ({error}); nothing is made of the topics until it is explained."
                ) from error
            found.setdefault(event.event_id, PublishedEvent(event, record.partition, record.offset))
        ordered = sorted(found.values(), key=lambda each: each.event.sequence)
        for number, each in enumerate(ordered, 1):
            if each.event.sequence != number:
                raise UserError(
                    f"{self._topic} has no decision {number} and then {each.event.sequence}, or "
                    "two of one number: another ledger has decided on these topics, or some of "
                    "them were deleted."
                )
        return ordered

    def publish(self, engine: Engine, on_step: Callable[[str], None] = lambda _step: None) -> int:
        """Publish what is decided and book what it posts, in order; how many entries that made.

        What the topic has and the ledger has not is taken over first. UserError when the two
        contradict each other: another ledger has decided on these topics.

        ``on_step`` is told the steps, for tests that end the process there.
        """
        source = self.source()
        there = {each.event.event_id: each for each in self.read()}
        with engine.begin() as connection:
            adopt(connection, [each.event for each in there.values()])
            waiting = unpublished(connection)
        made = 0
        for event in waiting:
            on_step("decided")
            place = there.get(event.event_id)
            if place is not None:
                partition, offset = place.partition, place.offset
            else:
                partition, offset = self._deliver(event)
            on_step("published")
            made += book_decision(engine, source, event, partition, offset)
        return made

    def _deliver(self, event: LedgerEvent) -> tuple[int, int]:
        producer = Producer(
            {
                "bootstrap.servers": self.bootstrap_servers,
                "client.id": "paystream.ledger.events",
                "enable.idempotence": True,
                "acks": "all",
                "partitioner": "murmur2_random",
                "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
                "log_level": 0,
            }
        )
        reports: list[tuple[KafkaError | None, Message]] = []
        producer.produce(
            self._topic,
            key=KEY,
            value=self._encode(to_record(event)),
            on_delivery=lambda error, message: reports.append((error, message)),
        )
        producer.flush(DELIVERY_TIMEOUT_S + 5)
        error, message = reports[0] if reports else (None, None)
        if message is None or error is not None:
            raise UserError(
                f"decision {event.sequence} is made and was not certainly published"
                f"{f' ({error.str()})' if error is not None else ''}; when the cluster is back, "
                "`paystream ledger publish` takes it further."
            )
        return message.partition() or 0, message.offset() or 0


def topic_source(bootstrap_servers: str, topic: str) -> Source:
    """The topic with the ids that tell it from another of its name. UserError when away."""
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    try:
        metadata = require_reachable(admin, bootstrap_servers)
        if topic not in metadata.topics:
            raise UserError(
                f"topic {topic} is missing on the cluster. Create it with `paystream topics apply`."
            )
        cluster_id, topic_id = cluster_and_topic_id(admin, topic)
    except KafkaException as error:
        raise UserError(f"the cluster does not answer: {error.args[0].str()}.") from error
    return Source(cluster_id, topic, topic_id)


def topic_ranges(bootstrap_servers: str, topic: str) -> dict[int, tuple[int, int]]:
    """First offset and end of each partition. UserError when the cluster is away."""
    consumer = Consumer(
        {"bootstrap.servers": bootstrap_servers, "group.id": "paystream-past", "log_level": 0}
    )
    try:
        found = consumer.list_topics(topic, timeout=METADATA_TIMEOUT_S).topics[topic]
        return {
            partition: consumer.get_watermark_offsets(
                TopicPartition(topic, partition), timeout=METADATA_TIMEOUT_S
            )
            for partition in sorted(found.partitions)
        }
    except KafkaException as error:
        raise UserError(f"the cluster does not answer: {error.args[0].str()}.") from error
    finally:
        consumer.close()
