"""Reads the topics as a read_committed consumer sees them, up to ends taken beforehand.

Records are handed on as they come and not kept: who folds them decides what to remember. A second
round reads on from where the first ended, so waiting for a flow to become quiet costs only what
is new.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec
from msgspec import Struct

from pipeline.audit.cut import LAYERS, Cut, RolePartition
from pipeline.audit.unavailable import AuditUnavailable
from topics.catalogue import Catalogue

Take = Callable[[str, "LogRecord"], None]

# A broker that is there answers metadata in milliseconds; a person waits at most ten seconds to
# hear that it is not.
ANSWER_TIMEOUT_S = 8.0
# Reading makes progress every few milliseconds; a broker restart takes some ten seconds.
STALL_TIMEOUT_S = 30.0
# A crashed producer's transaction ends after its time-out (10 s) and the broker's clean-up
# interval (10 s more).
OPEN_TRANSACTION_WAIT_S = 25.0
POLL_S = 0.2
BATCH_RECORDS = 5_000

_GONE = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError.REQUEST_TIMED_OUT,
}


class LogRecord(Struct, frozen=True, gc=False):
    """One committed record. ``timestamp_ms`` is the broker's append time; ``headers`` are read
    for dead letters only."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class LogCopy:
    """A place in every topic of one catalogue; ``advance`` moves it to the present end.

    Not for use by two threads. Leaves nothing on the cluster: it joins no group and commits no
    offsets.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        catalogue: Catalogue,
        *,
        open_transaction_wait_s: float = OPEN_TRANSACTION_WAIT_S,
    ) -> None:
        self._servers = bootstrap_servers
        self._catalogue = catalogue
        self._open_transaction_wait_s = open_transaction_wait_s
        self._client = _Client(bootstrap_servers)
        self._partitions: dict[str, int] = {}
        self._positions: dict[RolePartition, int] = {}
        self._first_at_ms: dict[RolePartition, int] = {}

    @property
    def catalogue(self) -> Catalogue:
        return self._catalogue

    def __enter__(self) -> LogCopy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    def advance(self, take: Take) -> Cut:
        """Hand on every record between the last round's end and the present one.

        Raises AuditUnavailable when the broker is away or a topic is missing.
        """
        client, catalogue = self._client, self._catalogue
        self._partitions = client.partition_counts(catalogue)
        committed = {
            stage: client.committed_offsets(catalogue, stage) for stage in ("payments", "gateway")
        }
        ends: dict[RolePartition, int] = {}
        for layer in LAYERS:
            ends |= self._offsets([r for r in layer if r in self._partitions], OffsetSpec.latest())
        lows = self._offsets(list(self._partitions), OffsetSpec.earliest())
        blind: set[RolePartition] = set()
        # Bounded over all topics: a stuck transaction holds up several of them at once.
        wait_left_s = self._open_transaction_wait_s
        for role in self._partitions:
            starts = {
                place: max(self._positions.get(place, 0), low)
                for place, low in lows.items()
                if place[0] == role
            }
            held, waited_s = self._read(role, starts, ends, take, wait_left_s)
            wait_left_s = max(0.0, wait_left_s - waited_s)
            blind |= held
        lows_after = self._offsets(list(self._partitions), OffsetSpec.earliest())
        blind |= {place for place, low in lows_after.items() if low != lows[place]}
        return Cut(
            partitions=dict(self._partitions),
            ends=ends,
            committed=committed,
            lows={place: low for place, low in lows_after.items() if low},
            first_at_ms=dict(self._first_at_ms),
            blind=frozenset(blind),
        )

    def _offsets(self, roles: Sequence[str], spec: OffsetSpec) -> dict[RolePartition, int]:
        places = [(role, p) for role in roles for p in range(self._partitions[role])]
        found = self._client.offsets([(self._catalogue.name(role), p) for role, p in places], spec)
        return {place: found[self._catalogue.name(place[0]), place[1]] for place in places}

    def _read(
        self,
        role: str,
        starts: Mapping[RolePartition, int],
        ends: Mapping[RolePartition, int],
        take: Take,
        wait_s: float,
    ) -> tuple[set[RolePartition], float]:
        """Read one topic; the partitions held up by an open transaction, and the time waited."""
        with_headers = role == "dead-letters"
        positions = self._positions
        first_at_ms = self._first_at_ms

        def on_record(message: Any) -> None:
            partition, offset = message.partition(), message.offset()
            place = (role, partition)
            at_ms = message.timestamp()[1]
            if place not in first_at_ms:
                first_at_ms[place] = at_ms
            positions[place] = offset + 1
            headers = tuple(message.headers() or ()) if with_headers else ()
            take(
                role,
                LogRecord(partition, offset, at_ms, message.key(), message.value(), headers),
            )

        spans = {
            place[1]: (start, ends[place]) for place, start in starts.items() if start < ends[place]
        }
        reached, waited_s = self._client.read(self._catalogue.name(role), spans, on_record, wait_s)
        held = set()
        for partition, position in reached.items():
            place = (role, partition)
            positions[place] = max(position, positions.get(place, 0))
            if positions[place] < ends[place]:
                held.add(place)
        return held, waited_s


def read_partition(
    bootstrap_servers: str,
    topics: Iterable[str],
    partition: int,
    on_record: Callable[[str, Any], None],
    *,
    open_transaction_wait_s: float = 0.0,
) -> None:
    """Hand on (topic, message) of one partition of each topic, read_committed, up to its end now.

    Records behind a transaction that is still open are left out.
    """
    client = _Client(bootstrap_servers)
    try:
        places = [(topic, partition) for topic in topics]
        ends = client.offsets(places, OffsetSpec.latest())
        starts = client.offsets(places, OffsetSpec.earliest())
        for topic, _ in places:
            start, end = starts[topic, partition], ends[topic, partition]
            if start < end:

                def hand_on(message: Any, topic: str = topic) -> None:
                    on_record(topic, message)

                client.read(topic, {partition: (start, end)}, hand_on, open_transaction_wait_s)
    finally:
        client.close()


def partition_counts(bootstrap_servers: str, catalogue: Catalogue) -> dict[str, int]:
    """Partitions of each topic of the catalogue as the cluster has them, by role."""
    client = _Client(bootstrap_servers)
    try:
        return client.partition_counts(catalogue)
    finally:
        client.close()


class _Client:
    """The Kafka calls of the audit, with one sentence for each way they fail."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers
        self._common = common = {
            "bootstrap.servers": bootstrap_servers,
            "client.id": "paystream-audit",
            "socket.connection.setup.timeout.ms": 5_000,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 0,
            "error_cb": lambda error: None,
        }
        self._admin = AdminClient(common)
        self._consumer = Consumer(
            {
                **common,
                # Never joined: partitions are assigned by hand and nothing is committed.
                "group.id": "paystream-audit",
                "enable.auto.commit": False,
                "enable.auto.offset.store": False,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "auto.offset.reset": "earliest",
                "fetch.wait.max.ms": 50,
                "fetch.message.max.bytes": 4 * 1024 * 1024,
                # Twelve partitions at a time: at most some hundred megabytes ahead of the reader.
                "queued.max.messages.kbytes": 8 * 1024,
                "queued.min.messages": 20_000,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def partition_counts(self, catalogue: Catalogue) -> dict[str, int]:
        try:
            known = self._admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics
        except KafkaException as error:
            raise self._away(error) from None
        missing = [s.name for s in catalogue.topics.values() if s.name not in known]
        if missing:
            raise AuditUnavailable(
                f"The broker at {self._servers} has no topic {missing[0]!r}"
                + (f" (and {len(missing) - 1} more are missing)" if missing[1:] else "")
                + "; give the prefix the flow was started with (--prefix), or start it with"
                " `paystream up`."
            )
        return {role: len(known[s.name].partitions) for role, s in catalogue.topics.items()}

    def committed_offsets(self, catalogue: Catalogue, stage: str) -> dict[RolePartition, int]:
        """The next offset of each input partition of a stage; partitions without one are left
        out. A pending commit does not show: the offset before it does.

        Asked by a consumer that never joins the group: the admin client's call for it crashes the
        process while the group's coordinator is away (confluent-kafka 2.16).
        """
        places = {
            (spec.name, p): (spec.role, p)
            for spec in catalogue.inputs(stage)
            for p in range(spec.partitions)
        }
        # read_uncommitted: the last offset that was committed, without waiting for pending ones.
        consumer = Consumer(
            {
                **self._common,
                "group.id": catalogue.group(stage),
                "isolation.level": "read_uncommitted",
                "enable.auto.commit": False,
            }
        )
        try:
            listed = consumer.committed(
                [TopicPartition(topic, p) for topic, p in places], timeout=ANSWER_TIMEOUT_S
            )
        except KafkaException as error:
            raise self._away(error) from None
        finally:
            consumer.close()
        failed = next((tp.error for tp in listed if tp.error is not None), None)
        if failed is not None:
            raise self._away(KafkaException(failed))
        return {places[tp.topic, tp.partition]: tp.offset for tp in listed if tp.offset >= 0}

    def offsets(
        self, places: Sequence[tuple[str, int]], spec: OffsetSpec
    ) -> dict[tuple[str, int], int]:
        """First or last offsets as a read_uncommitted reader sees them."""
        if not places:
            return {}
        futures = self._admin.list_offsets(
            {TopicPartition(topic, partition): spec for topic, partition in places},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=ANSWER_TIMEOUT_S,
        )
        try:
            return {
                (tp.topic, tp.partition): future.result(timeout=ANSWER_TIMEOUT_S).offset
                for tp, future in futures.items()
            }
        except KafkaException as error:
            raise self._away(error) from None
        except TimeoutError:
            raise self._away(None) from None

    def read(
        self,
        topic: str,
        spans: Mapping[int, tuple[int, int]],
        on_record: Callable[[Any], None],
        wait_s: float,
    ) -> tuple[dict[int, int], float]:
        """Read partitions from start up to end (excluded); the position reached in each, and how
        long the reading waited for open transactions.

        A read_committed reader gets PARTITION_EOF at the last stable offset. Below the end that
        means a transaction is open, so the reading waits for it, ``wait_s`` at most. At the end
        may be markers and aborted records, which are not handed out: the EOF tells that they
        were passed.
        """
        reached = {partition: start for partition, (start, _) in spans.items()}
        open_partitions = set(spans)
        at_stable_end: set[int] = set()
        consumer = self._consumer
        if not spans:
            return reached, 0.0
        consumer.assign([TopicPartition(topic, p, start) for p, (start, _) in spans.items()])
        waiting_since: float | None = None
        waited_s = 0.0
        last_news = time.monotonic()
        try:
            while open_partitions:
                messages = consumer.consume(BATCH_RECORDS, POLL_S)
                now = time.monotonic()
                if messages:
                    last_news = now
                done = []
                for message in messages:
                    partition = message.partition()
                    error = message.error()
                    if error is not None:
                        if error.code() == KafkaError._PARTITION_EOF:
                            at_stable_end.add(partition)
                            reached[partition] = max(reached[partition], message.offset())
                            if reached[partition] >= spans[partition][1]:
                                done.append(partition)
                            continue
                        if error.code() in _GONE or error.retriable():
                            continue
                        raise self._away(KafkaException(error))
                    offset = message.offset()
                    at_stable_end.discard(partition)
                    if offset < spans[partition][1]:
                        on_record(message)
                        reached[partition] = offset + 1
                    if offset + 1 >= spans[partition][1]:
                        reached[partition] = spans[partition][1]
                        done.append(partition)
                finished = [p for p in dict.fromkeys(done) if p in open_partitions]
                open_partitions.difference_update(finished)
                if finished and open_partitions:
                    consumer.incremental_unassign([TopicPartition(topic, p) for p in finished])
                if open_partitions and open_partitions <= at_stable_end:
                    waiting_since = now if waiting_since is None else waiting_since
                    if waited_s + now - waiting_since >= wait_s:
                        break
                    last_news = now
                elif waiting_since is not None:
                    waited_s += now - waiting_since
                    waiting_since = None
                if now - last_news > STALL_TIMEOUT_S:
                    raise self._away(None)
        finally:
            consumer.unassign()
        if waiting_since is not None:
            waited_s += time.monotonic() - waiting_since
        return reached, waited_s

    def _away(self, error: KafkaException | None) -> AuditUnavailable:
        reason = "" if error is None else f" ({_text(error)})"
        return AuditUnavailable(
            f"The Kafka broker at {self._servers} does not answer{reason}; start it (`paystream"
            " up`) or name another with --bootstrap-servers."
        )


def _text(error: KafkaException) -> str:
    first = error.args[0] if error.args else None
    return first.str() if isinstance(first, KafkaError) else str(error)
