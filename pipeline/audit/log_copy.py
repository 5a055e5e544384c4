"""Reads the topics as a read_committed consumer sees them, up to ends taken beforehand.

Records are handed on as they come and not kept: who folds them decides what to remember. A second
round reads on from where the first ended, so waiting for a flow to become quiet costs only what
is new.
"""

from __future__ import annotations

import contextlib
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from msgspec import Struct

from pipeline.audit.cut import Cut, RolePartition, Unreadable, judged_roles, layers
from pipeline.audit.unavailable import AuditUnavailable
from pipeline.batches.ending import behind_ending_batches, read_around
from pipeline.batches.record_batch import RecordBatch
from pipeline.batches.silent import heads, is_silent
from pipeline.batches.unreadable import (
    NOT_HAD,
    UNFOLDED_BYTES_MAX,
    CannotStepOver,
    UnreadableBatches,
    is_damaged,
    is_unreadable,
)
from pipeline.kafka_access import reaching
from pipeline.kafka_refusal import why_away
from topics.catalogue import Catalogue
from topics.record_headers import Headers, record_headers

# A topic's name and a partition.
Place = tuple[str, int]

_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]
_EARLIEST = OffsetSpec.earliest()  # type: ignore[no-untyped-call]

Take = Callable[[str, "LogRecord"], None]
# A batch that no client can unfold, of a topic and partition.
OnUnreadable = Callable[[Place, RecordBatch], None]

# A broker that is there answers metadata in milliseconds; a person hears within ten seconds, the
# start of the program included, that it is not.
CONNECT_TIMEOUT_S = 5.0
# Later answers come from a broker that was there a moment ago.
ANSWER_TIMEOUT_S = 10.0
# Reading makes progress every few milliseconds; a broker restart takes some ten seconds.
STALL_TIMEOUT_S = 30.0
# A crashed producer's transaction ends after its time-out (10 s) and the broker's clean-up
# interval (10 s more).
OPEN_TRANSACTION_WAIT_S = 25.0
POLL_S = 0.1
BATCH_RECORDS = 5_000

_PASSING = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
}
_GONE = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._RESOLVE,
    KafkaError._TIMED_OUT,
    KafkaError.REQUEST_TIMED_OUT,
}


class LogRecord(Struct, frozen=True, gc=False):
    """One committed record. ``timestamp_ms`` is the broker's append time."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


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
        self._unreadable: dict[RolePartition, list[Unreadable]] = {}

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
        judged = judged_roles(catalogue)
        counts = client.partition_counts(catalogue)
        self._partitions = {role: counts[role] for role in counts if role in judged}
        committed = {
            stage: client.committed_offsets(catalogue, stage)
            for stage in ("payments", "gateway", "risk")
        }
        ends: dict[RolePartition, int] = {}
        for layer in layers(catalogue):
            ends |= self._offsets([r for r in layer if r in self._partitions], _LATEST)
        lows = self._offsets(list(self._partitions), _EARLIEST)
        blind = self._read(lows, ends, take)
        lows_after = self._offsets(list(self._partitions), _EARLIEST)
        blind |= {place for place, low in lows_after.items() if low != lows[place]}
        untouched: dict[RolePartition, int] | None
        try:
            untouched = client.committed_offsets(catalogue, "payments", stable=True)
        except AuditUnavailable:
            # A worker that crashed within a transaction: timers then count as on their way.
            untouched = None
        return Cut(
            partitions=dict(self._partitions),
            ends=ends,
            committed=committed,
            lows={place: low for place, low in lows_after.items() if low},
            first_at_ms=dict(self._first_at_ms),
            blind=frozenset(blind),
            untouched=untouched,
            unreadable=[
                each
                for place, found in sorted(self._unreadable.items())
                for each in found
                if each.last_offset >= lows_after.get(place, 0)
            ],
        )

    def _offsets(self, roles: Sequence[str], spec: OffsetSpec) -> dict[RolePartition, int]:
        places = [(role, p) for role in roles for p in range(self._partitions[role])]
        found = self._client.offsets([(self._catalogue.name(role), p) for role, p in places], spec)
        return {place: found[self._catalogue.name(place[0]), place[1]] for place in places}

    def _read(
        self,
        lows: Mapping[RolePartition, int],
        ends: Mapping[RolePartition, int],
        take: Take,
    ) -> set[RolePartition]:
        """Read on in every topic; the partitions that an open transaction held up."""
        positions, first_at_ms = self._positions, self._first_at_ms
        roles = {spec.name: role for role, spec in self._catalogue.topics.items()}

        def on_record(message: Any) -> None:
            role, partition, offset = roles[message.topic()], message.partition(), message.offset()
            at_ms = message.timestamp()[1]
            first_at_ms.setdefault((role, partition), at_ms)
            take(
                role,
                LogRecord(
                    partition,
                    offset,
                    at_ms,
                    message.key(),
                    message.value(),
                    record_headers(message),
                ),
            )

        def on_unreadable(place: Place, batch: RecordBatch) -> None:
            met = roles[place[0]], place[1]
            self._unreadable.setdefault(met, []).append(
                Unreadable(
                    *met,
                    batch.first_offset,
                    batch.last_offset,
                    batch.records,
                    zlib.crc32(batch.data),
                )
            )

        name = self._catalogue.name
        spans = {
            (name(role), partition): (max(positions.get((role, partition), 0), low), end)
            for (role, partition), low in lows.items()
            if max(positions.get((role, partition), 0), low) < (end := ends[role, partition])
        }
        reached = self._client.read(spans, on_record, self._open_transaction_wait_s, on_unreadable)
        held = set()
        for (topic, partition), position in reached.items():
            place = (roles[topic], partition)
            positions[place] = position
            if position < ends[place]:
                held.add(place)
        return held


def read_partition(
    bootstrap_servers: str,
    topics: Iterable[str],
    partition: int,
    on_record: Callable[[Any], None],
    *,
    open_transaction_wait_s: float = 0.0,
    on_unreadable: OnUnreadable | None = None,
) -> None:
    """Hand on the messages of one partition of each topic, read_committed, up to its end now.

    Records behind a transaction that is still open are left out. A batch that no client can unfold
    is told of, and AuditUnavailable where nobody wants to hear it.
    """
    client = _Client(bootstrap_servers)
    try:
        places = [(topic, partition) for topic in topics]
        ends = client.offsets(places, _LATEST)
        starts = client.offsets(places, _EARLIEST)
        spans = {p: (starts[p], ends[p]) for p in places if starts[p] < ends[p]}
        client.read(spans, on_record, open_transaction_wait_s, on_unreadable or _refuse)
    finally:
        client.close()


def _refuse(place: Place, batch: RecordBatch) -> None:
    raise AuditUnavailable(
        f"{batch.records} records at {place[0]}[{place[1]}]@{batch.first_offset} cannot be "
        "decompressed, so what is shown would not be all; see docs/operations.md."
    )


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
        common: dict[str, Any] = {
            **reaching(bootstrap_servers),
            "client.id": "paystream-audit",
            "socket.connection.setup.timeout.ms": 5_000,
            "reconnect.backoff.max.ms": 1_000,
            "log_level": 0,
            "error_cb": lambda error: None,
        }
        self._common = common
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
                # The bound of what zstd unfolds to: what a worker reads is to be judged.
                "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
                "check.crcs": True,
                "fetch.wait.max.ms": 50,
                # Of the one queue, so the bound of what the client holds ahead of the reader.
                "queued.max.messages.kbytes": 64 * 1024,
            }
        )

    def close(self) -> None:
        self._consumer.close()

    def partition_counts(self, catalogue: Catalogue) -> dict[str, int]:
        try:
            known = self._admin.list_topics(timeout=CONNECT_TIMEOUT_S).topics
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

    def committed_offsets(
        self, catalogue: Catalogue, stage: str, *, stable: bool = False
    ) -> dict[RolePartition, int]:
        """The next offset of each input partition of a stage; partitions without one are left
        out. A pending commit does not show: the offset before it does. ``stable`` waits for it.

        Asked by a consumer that never joins the group: the admin client's call for it crashes the
        process while the group's coordinator is away (confluent-kafka 2.16).
        """
        judged = judged_roles(catalogue)
        places = {
            (spec.name, p): (spec.role, p)
            for spec in catalogue.inputs(stage)
            if spec.role in judged
            for p in range(spec.partitions)
        }
        # read_uncommitted: the last offset that was committed, without waiting for pending ones.
        # read_committed would be answered only once none is pending.
        consumer = Consumer(
            {
                **self._common,
                "group.id": catalogue.group(stage),
                "isolation.level": "read_committed" if stable else "read_uncommitted",
                "enable.auto.commit": False,
            }
        )
        asked = [TopicPartition(topic, p) for topic, p in places]
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        try:
            while True:
                try:
                    listed = consumer.committed(asked, timeout=ANSWER_TIMEOUT_S)
                    break
                except KafkaException as error:
                    # A coordinator that has just moved, or is being made, answers soon.
                    if not _passes(error) or time.monotonic() > deadline:
                        raise self._away(error) from None
                    time.sleep(POLL_S)
        finally:
            consumer.close()
        failed = next((tp.error for tp in listed if tp.error is not None), None)
        if failed is not None:
            raise self._away(KafkaException(failed))
        return {places[tp.topic, tp.partition]: tp.offset for tp in listed if tp.offset >= 0}

    def offsets(
        self, places: Sequence[tuple[str, int]], spec: OffsetSpec
    ) -> dict[tuple[str, int], int]:
        """First or last offsets as a read_uncommitted reader sees them.

        The client's call goes by the leaders that it has known and does not look who leads now
        unless it is told to, so after a failure it is, and asked once more at least.
        """
        if not places:
            return {}
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        asked_again = False
        while True:
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
                if asked_again and time.monotonic() > deadline:
                    raise self._away(error) from None
            except TimeoutError:
                raise self._away(None) from None
            if asked_again:
                time.sleep(POLL_S)
            asked_again = True
            with contextlib.suppress(KafkaException):
                self._admin.list_topics(timeout=CONNECT_TIMEOUT_S)

    def read(
        self,
        spans: Mapping[Place, tuple[int, int]],
        on_record: Callable[[Any], None],
        wait_s: float,
        on_unreadable: OnUnreadable,
    ) -> dict[Place, int]:
        """Read partitions from start up to end (excluded); the position reached in each.

        A read_committed reader gets PARTITION_EOF at the last stable offset. Below the end that
        means a transaction is open, so the reading waits for it, ``wait_s`` at most. At the end
        may be markers and aborted records, which are not handed out: the EOF tells that they
        were passed.
        """
        reached = {place: start for place, (start, _) in spans.items()}
        unfinished = set(spans)
        at_stable_end: set[Place] = set()
        unreadable = UnreadableBatches()
        consumer = self._consumer
        reached.update(self._read_around(spans, on_record, on_unreadable))
        unfinished = {place for place in unfinished if reached[place] < spans[place][1]}
        if not unfinished:
            return reached
        consumer.assign([TopicPartition(*place, reached[place]) for place in unfinished])
        waited_s = 0.0
        last_look = last_news = time.monotonic()
        try:
            while unfinished:
                messages: list[Any] = consumer.consume(BATCH_RECORDS, POLL_S)
                now = time.monotonic()
                finished = []
                for message in messages:
                    place = message.topic(), message.partition()
                    error = message.error()
                    if error is None:
                        position = message.offset() + 1
                        at_stable_end.discard(place)
                        if position <= spans[place][1]:
                            on_record(message)
                    elif error.code() == KafkaError._PARTITION_EOF:
                        position = message.offset()
                        at_stable_end.add(place)
                    elif error.code() in _GONE or error.retriable():
                        continue
                    elif is_unreadable(error):
                        if place not in unfinished:
                            continue
                        batch = self._step_over(unreadable, place, message.offset())
                        if batch is None:
                            continue
                        if batch.visible and batch.first_offset < spans[place][1]:
                            on_unreadable(place, batch)
                        position = batch.last_offset + 1
                    elif is_damaged(error):
                        raise AuditUnavailable(
                            f"The batch at {place[0]}[{place[1]}]@{message.offset()} is damaged "
                            f"({error.str()}), so what follows it cannot be judged; "
                            "see docs/operations.md."
                        )
                    else:
                        raise self._away(KafkaException(error))
                    reached[place] = min(max(reached[place], position), spans[place][1])
                    if reached[place] == spans[place][1] and place in unfinished:
                        unfinished.discard(place)
                        finished.append(TopicPartition(*place))
                if finished and unfinished:
                    consumer.incremental_unassign(finished)
                if messages:
                    last_news = now
                if unfinished <= at_stable_end:
                    waited_s += now - last_look
                    if waited_s >= wait_s:
                        break
                elif now - last_news > STALL_TIMEOUT_S:
                    silent = self._silent({place: reached[place] for place in unfinished})
                    if not silent:
                        raise self._away(None)
                    for place, batch in silent.items():
                        on_unreadable(place, batch)
                        behind = batch.last_offset + 1
                        reached[place] = min(behind, spans[place][1])
                        if reached[place] == spans[place][1]:
                            unfinished.discard(place)
                        consumer.seek(TopicPartition(*place, behind))
                    now = last_news = time.monotonic()
                last_look = now
        finally:
            consumer.unassign()
        return reached

    def _read_around(
        self,
        spans: Mapping[Place, tuple[int, int]],
        on_record: Callable[[Any], None],
        on_unreadable: OnUnreadable,
    ) -> Iterator[tuple[Place, int]]:
        """Partitions that have a batch which would end this process or mislead its client, and
        where they are behind it.

        Up to where the partition ends: the client fetches beyond what is to be read."""
        try:
            behind = behind_ending_batches(
                self._admin, {place: start for place, (start, _) in spans.items()}
            )
        except NOT_HAD:
            # The client meets the same broker, and says why.
            return
        for place, last in behind.items():
            start, end = spans[place]
            try:
                for each in read_around(self._admin, self._servers, place, start, last):
                    if not isinstance(each, RecordBatch):
                        if (each.offset() or 0) < end:
                            on_record(each)
                    elif each.first_offset < end:
                        on_unreadable(place, each)
            except NOT_HAD as error:
                raise AuditUnavailable(
                    f"The batch at {place[0]}[{place[1]}]@{last - 1} would end or mislead this "
                    "process, and what lies before it could not be read around it "
                    f"({error}), so what follows cannot be judged; see docs/operations.md."
                ) from error
            yield place, min(last, end)

    def _silent(self, positions: Mapping[Place, int]) -> dict[Place, RecordBatch]:
        """What lies at these positions, as far as the client says nothing of it."""
        try:
            found = heads(self._admin, positions, lambda: False)
        except NOT_HAD:
            return {}
        return {
            place: batch
            for place, batch in found.items()
            if is_silent(self._servers, place, batch, positions[place]) and not batch.is_damaged
        }

    def _step_over(
        self, unreadable: UnreadableBatches, place: Place, offset: int
    ) -> RecordBatch | None:
        try:
            return unreadable.step_over(self._consumer, *place, offset)
        except CannotStepOver as error:
            raise AuditUnavailable(
                f"The batch at {place[0]}[{place[1]}]@{offset} cannot be decompressed, and where "
                f"it ends could not be asked for ({error}), so what follows it cannot be judged; "
                "see docs/operations.md."
            ) from error

    def _away(self, error: KafkaException | None) -> AuditUnavailable:
        reason = why_away(self._servers, error)
        return AuditUnavailable(
            f"The Kafka broker at {self._servers} does not answer{reason}; start it (`paystream"
            " up`) or name another with --bootstrap-servers."
        )


def _passes(error: KafkaException) -> bool:
    first = error.args[0] if error.args else None
    return isinstance(first, KafkaError) and first.code() in _PASSING
