"""The consumer that books settlements: from the topic into the ledger, each exactly once.

The group decides only who reads which partition. Where reading starts is what the database says,
since entries and offsets are committed there together; the group's offsets are committed
afterwards, for those who watch its lag, and never read.

Three things can go wrong with a settlement. Its bytes, key or content cannot be booked, or its id
is booked with other content: it goes to the dead letters first and the offset moves on afterwards,
so a crash between the two leaves the letter twice, never not at all. It is booked already: it is
skipped and counted. The database is away: nothing is read until it is back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from sqlalchemy import Engine

from consumers.settlement_entry import NotBookable, entry_of_record
from pipeline.batches.unreadable import UnreadableBatches, is_unreadable
from pipeline.domain.invariant import invariant
from pipeline.domain.keys import partition_of, record_key
from pipeline.domain.posting import JournalEntry
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.ledger.entries import Item
from pipeline.ledger.errors import LedgerUnavailable, OffsetMoved, SettlementConflicts
from pipeline.ledger.journal import Journal, Progress, Source
from pipeline.ledger.sealer import Sealer
from pipeline.runtime import failpoints
from pipeline.runtime.cluster import cluster_and_topic_id, consumer_config, require_reachable
from pipeline.runtime.dead_letters import dead_letter
from pipeline.runtime.input_record import InputRecord, input_record
from pipeline.runtime.kafka_errors import passes_by_itself
from pipeline.runtime.letter_evidence import settlement_letter
from pipeline.runtime.partition_offsets import watermarks
from pipeline.runtime.surroundings import REAL, Surroundings
from pipeline.runtime.unreadable_batch import CAUSE as UNREADABLE
from pipeline.runtime.unreadable_batch import UnreadableBatch, require_undamaged, step_over
from pipeline.runtime.work import Outgoing, TopicPartitionKey
from producers.ledger_events import LedgerEvents
from schemas.codec import Codec
from schemas.errors import RegistryUnavailable
from topics.catalogue import DEAD_LETTER_MAX_MESSAGE_BYTES, Catalogue

_log = logging.getLogger(__name__)

STAGE: Final = "ledger"
SETTLEMENT_CONFLICT: Final = "settlement_conflict"

# A batch of 2,000 holds the database for about a tenth of a second; larger ones gain little.
BATCH_RECORDS_MAX = 2_000
# A lone settlement waits this long for company; consume() with a long time-out returns late.
BATCH_AGE_MS_MAX = 100
RETRY_S_MIN, RETRY_S_MAX = 0.1, 5.0
# A partition that another writer moved is looked at again after this; a rebalance is faster.
LET_GO_S = 1.0
# How long a broker that has just become leader may show an end that is too low.
END_BEHIND_S_MAX = 15.0
BROKER_TIMEOUT_S = 10.0
# An undelivered dead letter is tried again by us, so the client need not try for its five minutes.
DELIVERY_TIMEOUT_S = 30.0

Stop = threading.Event | Callable[[], bool]


class LedgerMetrics(Protocol):
    """What the sink tells about itself, once a batch."""

    def posted(self, settlements: int) -> None:
        """Newly booked settlements."""

    def duplicates(self, settlements: int) -> None:
        """Settlements that were booked before and have been skipped."""

    def dead_lettered(self, cause: str) -> None:
        """One record has gone to the dead letters."""

    def batch_seconds(self, seconds: float) -> None:
        """Duration of one committed database transaction."""

    def booked_after(self, seconds: float) -> None:
        """From the append of a batch's oldest settlement until it was booked."""

    def lag(self, partition: int, records: int) -> None:
        """Records not yet booked; 1 can be a control record, which is never booked."""

    def unavailable(self) -> None:
        """A try that failed because the database, registry or dead-letter topic was away."""


class NoMetrics:
    """For those who do not watch."""

    def posted(self, settlements: int) -> None: ...

    def duplicates(self, settlements: int) -> None: ...

    def dead_lettered(self, cause: str) -> None: ...

    def batch_seconds(self, seconds: float) -> None: ...

    def booked_after(self, seconds: float) -> None: ...

    def lag(self, partition: int, records: int) -> None: ...

    def unavailable(self) -> None: ...


@dataclass
class _Refused:
    """A record on its way to the dead letters. ``sent``: delivered, not to be sent again."""

    message: Any
    cause: str
    detail: str
    sent: bool = False


@dataclass
class _Batch:
    """What was consumed and is not booked.

    By partition, ``ends``: the last offset plus one; ``terms``: the assignment it was read under.
    """

    terms: dict[int, int] = field(default_factory=dict)
    items: list[Item] = field(default_factory=list)
    refused: list[_Refused] = field(default_factory=list)
    ends: dict[int, int] = field(default_factory=dict)
    messages: dict[tuple[int, int], Any] = field(default_factory=dict)

    def forget(self, partition: int) -> None:
        self.items = [item for item in self.items if item.partition != partition]
        self.refused = [r for r in self.refused if r.message.partition() != partition]
        self.ends.pop(partition, None)
        self.terms.pop(partition, None)


class _Undelivered(Exception):
    """A dead letter did not arrive; nothing may be booked beyond it."""


class _Stopped(Exception):
    """Asked to stop while waiting for a server."""


class LedgerSink:
    """Call ``run`` in one thread; it returns when asked to stop, with nothing half booked.

    ``instance_id`` is the static member id in the group: unique, and the same after a restart.
    The engine comes from ``open_ledger`` and stays the caller's.
    """

    def __init__(
        self,
        *,
        bootstrap_servers: str,
        engine: Engine,
        catalogue: Catalogue,
        codec: Codec,
        instance_id: str,
        metrics: LedgerMetrics | None = None,
        batch_records_max: int = BATCH_RECORDS_MAX,
        batch_age_ms_max: int = BATCH_AGE_MS_MAX,
        consumer_overrides: Mapping[str, Any] | None = None,
        surroundings: Surroundings = REAL,
        decisions: LedgerEvents | None = None,
        sealer: Callable[[Engine], Sealer] = Sealer,
    ) -> None:
        invariant(batch_age_ms_max <= 200, "longer slices of consume() return late")
        self._outside = surroundings
        self._monotonic_s = surroundings.monotonic_s
        self._bootstrap_servers = bootstrap_servers
        self._engine = engine
        self._catalogue = catalogue
        self._topic = catalogue.name("settlements")
        self._decode = codec.decoder("settlement")
        self._decisions = decisions or LedgerEvents(bootstrap_servers, catalogue, codec)
        self._make_sealer = sealer
        self._encode_notice = codec.encoder("gateway-notification")
        self._instance_id = instance_id
        self._metrics: LedgerMetrics = metrics if metrics is not None else NoMetrics()
        self._batch_records_max = batch_records_max
        self._batch_age_s = batch_age_ms_max / 1000
        self._consumer_overrides = dict(consumer_overrides or {})
        self._producer: Producer | None = None
        self._unreadable = UnreadableBatches(surroundings.monotonic_s)
        self._standstill = surroundings.standstill(surroundings.monotonic_s)
        # The stored offset of every partition this sink may book, as it was last known.
        self._stored: dict[int, int] = {}
        # Counts how often each partition was begun: what was read before a rebalance that took the
        # partition away and gave it back is read again from the database's offset.
        self._terms: dict[int, int] = {}
        # Partitions let go, and when to look at them again.
        self._let_go_until_s: dict[int, float] = {}
        # Messages that came while waiting for a server; they are next.
        self._held: list[Any] = []
        self._paused = False
        self._closing = False
        self._stopping: Callable[[], bool] = lambda: False

    # Life ---------------------------------------------------------------------------------------

    def run(self, stop: Stop) -> None:
        """Book until ``stop``. UserError when something outside has to be put right first."""
        self._stopping = stop.is_set if isinstance(stop, threading.Event) else stop
        quiet: dict[str, Any] = {**reaching(self._bootstrap_servers), "log_level": 2}
        admin = self._outside.admin(quiet, logger=_log)
        self._journal = Journal(
            self._engine,
            self._source(admin),
            now_ms=lambda: int(self._outside.time_s() * 1000),
            on_step=failpoints.hit,
        )
        self._adopt_decisions(admin)
        self._consumer = self._outside.consumer(
            {
                **consumer_config(
                    self._bootstrap_servers,
                    group_id=self._catalogue.group(STAGE),
                    instance_id=self._instance_id,
                ),
                "on_commit": _on_commit,
                "logger": _log,
                **self._consumer_overrides,
            }
        )
        self._consumer.subscribe(
            [self._topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_revoke,
        )
        _log.info("ledger sink %s books %s", self._instance_id, self._topic)
        if self._outside.has_brokers:
            self._standstill.open(self._bootstrap_servers)
        sealer = self._make_sealer(self._engine)
        sealer.start()
        try:
            while not self._stopping():
                self._turn()
            self._book(self._passing(_Batch(), self._standstill.empty_now(self._positions())))
        except _Stopped:
            pass
        finally:
            self._closing = True
            self._standstill.close()
            sealer.stop()
            self._consumer.close()
        _log.info("ledger sink %s stopped", self._instance_id)

    def _source(self, admin: AdminClient) -> Source:
        metadata = require_reachable(admin, self._bootstrap_servers)
        if self._topic not in metadata.topics:
            raise UserError(
                f"topic {self._topic} is missing on the cluster. Create it with "
                "`paystream topics apply`."
            )
        cluster_id, topic_id = cluster_and_topic_id(admin, self._topic, self._outside)
        return Source(cluster_id, self._topic, topic_id)

    def _adopt_decisions(self, admin: AdminClient) -> None:
        """A new ledger, or one from a backup, follows what was decided before it books anything."""
        topic = self._catalogue.name("ledger-events")
        if topic not in require_reachable(admin, self._bootstrap_servers).topics:
            return
        events = [each.event for each in self._decisions.read()]
        retry_s = RETRY_S_MIN
        while True:
            try:
                taken = self._journal.adopt(events)
                break
            except LedgerUnavailable as error:
                self._metrics.unavailable()
                _log.warning(
                    "the ledger's database is away, next try in %.1f s: %s", retry_s, error
                )
            if self._stopping():
                return
            self._outside.sleep(retry_s)
            retry_s = min(retry_s * 2, RETRY_S_MAX)
        if taken:
            _log.warning(
                "took over %d decisions from %s; when the ledger has caught up, run "
                "`paystream ledger publish`", taken, topic,
            )  # fmt: skip

    # One turn of the loop -----------------------------------------------------------------------

    def _turn(self) -> None:
        self._take_back()
        messages, self._held = self._held, []
        if not messages:
            messages = self._consumer.consume(self._batch_records_max, timeout=self._batch_age_s)
        passed, empty = self._pass_over_silent(messages)
        batch = self._take([*messages, *passed])
        if batch.ends:
            failpoints.hit("ledger.batch_taken")
        self._book(self._passing(batch, empty))

    def _pass_over_silent(
        self, messages: list[Any]
    ) -> tuple[list[UnreadableBatch], dict[TopicPartitionKey, int]]:
        """What stands for batches of which the client brings nothing, with it put behind them; and
        up to where nothing lies that anybody is handed."""
        if not self._standstill.is_due:
            return [], {}
        came = {message.partition() for message in messages}
        positions = self._positions()
        found = self._standstill.take(positions, lambda tp: tp[1] not in came)
        for each in found:
            self._consumer.seek(TopicPartition(self._topic, each.partition(), each.offset() + 1))
        return found, self._standstill.take_empty(positions)

    def _positions(self) -> dict[TopicPartitionKey, int]:
        return {(self._topic, partition): offset for partition, offset in self._stored.items()}

    def _passing(self, batch: _Batch, empty: Mapping[TopicPartitionKey, int]) -> _Batch:
        """With the offsets moved behind control and aborted records where nothing else lies; else
        a quiet partition's would be before the begin of the log once those are deleted."""
        for (_, partition), end in empty.items():
            # What has come since is behind them.
            if partition not in batch.ends:
                batch.ends[partition], batch.terms[partition] = end, self._terms[partition]
        return batch

    def _take(self, messages: list[Any]) -> _Batch:
        """Sort what was consumed into entries and refusals."""
        batch = _Batch()
        for message in messages:
            error = message.error()
            partition = message.partition()
            if error is not None:
                if is_unreadable(error):
                    self._step_over(message, batch)
                else:
                    _raise_unless_passing(message, self._topic)
                continue
            stored = self._stored.get(partition)
            if stored is None:
                continue  # given back or let go; its next owner reads it from the database's offset
            offset = message.offset()
            if offset < batch.ends.get(partition, stored):
                continue
            if type(message) is UnreadableBatch:
                self._refuse(message, batch)
                continue
            batch.ends[partition] = offset + 1
            batch.terms[partition] = self._terms[partition]
            self._read(message, partition, offset, batch)
        return batch

    def _step_over(self, message: Any, batch: _Batch) -> None:
        """A batch of settlements that cannot be unfolded is one refusal."""
        partition = message.partition()
        stored = self._stored.get(partition)
        if stored is None:
            return
        stepped = step_over(self._unreadable, self._consumer, message)
        if stepped is None or stepped.offset() < batch.ends.get(partition, stored):
            return
        self._refuse(stepped, batch)

    def _refuse(self, unreadable: UnreadableBatch, batch: _Batch) -> None:
        partition = unreadable.partition()
        batch.ends[partition] = unreadable.offset() + 1
        batch.terms[partition] = self._terms[partition]
        batch.refused.append(_Refused(unreadable, UNREADABLE, unreadable.detail))

    def _read(self, message: Any, partition: int, offset: int, batch: _Batch) -> None:
        made = self._made(message.key(), message.value() or b"")
        if isinstance(made, NotBookable):
            batch.refused.append(_Refused(message, made.cause, made.detail))
            return
        batch.items.append(Item(partition, offset, made))
        batch.messages[partition, offset] = message

    def _made(self, key: bytes | None, value: bytes) -> JournalEntry | NotBookable:
        retry_s = RETRY_S_MIN
        while True:
            try:
                made = entry_of_record(self._decode, key, value)
            except RegistryUnavailable as error:
                retry_s = self._wait_for("the schema registry", error, retry_s)
            else:
                self._resume()
                return made

    # Booking ------------------------------------------------------------------------------------

    def _book(self, batch: _Batch) -> None:
        """Dead letters first, then the database; repeated until it is done or given up."""
        retry_s = RETRY_S_MIN
        while True:
            # A rebalance while waiting may have taken partitions away.
            for partition, term in list(batch.terms.items()):
                if partition not in self._stored or self._terms[partition] != term:
                    batch.forget(partition)
            if not batch.ends:
                # All of it was let go or given back: nothing is left to wait for.
                self._resume()
                return
            try:
                self._send_dead_letters(batch.refused)
                self._post(batch)
            except SettlementConflicts as found:
                refused = {(c.partition, c.offset): c for c in found.conflicts}
                batch.items = [i for i in batch.items if (i.partition, i.offset) not in refused]
                batch.refused += [
                    _Refused(batch.messages[position], SETTLEMENT_CONFLICT, conflict.detail)
                    for position, conflict in refused.items()
                ]
            except OffsetMoved as moved:
                _log.warning("%s: %s; letting it go", self._topic, moved)
                self._let_go(moved.partition)
            except LedgerUnavailable as error:
                retry_s = self._wait_for("the ledger's database", error, retry_s)
            except _Undelivered as error:
                retry_s = self._wait_for("the dead-letter topic", error, retry_s)
            else:
                self._resume()
                return

    def _post(self, batch: _Batch) -> None:
        progress = {p: Progress(self._stored[p], end) for p, end in batch.ends.items()}
        started_s = self._monotonic_s()
        posted = self._journal.post(batch.items, progress)
        failpoints.hit("ledger.committed")
        self._metrics.batch_seconds(self._monotonic_s() - started_s)
        if batch.items:
            oldest_ms = min(
                batch.messages[item.partition, item.offset].timestamp()[1] for item in batch.items
            )
            self._metrics.booked_after(max(0.0, self._outside.time_s() - oldest_ms / 1000))
        for partition, moved in progress.items():
            self._stored[partition] = moved.next_offset
        self._told(posted.posted, posted.duplicates, batch.refused)
        self._commit_to_group(progress)

    def _told(self, posted: int, duplicates: tuple[Item, ...], refused: list[_Refused]) -> None:
        if posted:
            self._metrics.posted(posted)
        if duplicates:
            self._metrics.duplicates(len(duplicates))
            first = duplicates[0]
            _log.warning(
                "%d settlements were booked already and are skipped, the first at %s[%d]@%d",
                len(duplicates), self._topic, first.partition, first.offset,
            )  # fmt: skip
        for one in refused:
            self._metrics.dead_lettered(one.cause)
            _log.warning(
                "dead letter: %s[%d]@%d: %s: %s",
                self._topic, one.message.partition(), one.message.offset(), one.cause, one.detail,
            )  # fmt: skip
        _log.debug("booked %d settlements", posted)

    def _commit_to_group(self, progress: Mapping[int, Progress]) -> None:
        """For views of the group's lag alone: nothing reads these offsets to start from."""
        offsets = []
        for partition, moved in progress.items():
            position = TopicPartition(self._topic, partition, moved.next_offset)
            offsets.append(position)
            _low, high = self._consumer.get_watermark_offsets(position, cached=True)
            self._metrics.lag(partition, max(0, high - moved.next_offset))
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            _log.debug("the group's offsets were not committed: %s", error)

    def _send_dead_letters(self, refused: list[_Refused]) -> None:
        """Deliver what is not delivered yet; _Undelivered if any of it was not."""
        waiting = [one for one in refused if not one.sent]
        if not waiting:
            return
        if self._producer is None:
            self._producer = self._outside.producer(
                _dead_letter_producer_config(self._bootstrap_servers)
            )
        failures: list[str] = []

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                failures.append(str(error))

        topic = self._catalogue.name("dead-letters")
        pieces = 0
        for one in waiting:
            record = input_record(one.message)
            letters = dead_letter(
                record, topic=topic, stage=STAGE, cause=one.cause, detail=one.detail
            )
            for letter in (*letters, *self._told_to_payment(record, one.cause)):
                name, partition, key, value, headers = letter
                try:
                    self._producer.produce(
                        name,
                        key=key,
                        value=value,
                        partition=partition,
                        headers=list(headers or ()),
                        on_delivery=delivered,
                    )
                except (BufferError, KafkaException) as error:
                    failures.append(str(error))
                pieces += 1
        left = self._producer.flush(DELIVERY_TIMEOUT_S + 5)
        if failures or left:
            # Sent again as a whole: a letter may be there twice, but none is missing.
            self._producer = None
            raise _Undelivered(failures[0] if failures else f"{left} of {pieces} not confirmed")
        for one in waiting:
            one.sent = True

    def _told_to_payment(self, record: InputRecord, cause: str) -> list[Outgoing]:
        """The word of a letter to its payment, which counts it once however often it comes."""
        word = settlement_letter(record, cause, int(self._outside.time_s() * 1000))
        if word is None:
            return []
        key = record_key(word.merchant_id, word.order_id)
        notices = self._catalogue["gateway-notifications"]
        lane = partition_of(key, notices.partitions)
        return [(notices.name, lane, key, self._encode_notice(to_record(word)), None)]

    # Waiting ------------------------------------------------------------------------------------

    def _wait_for(self, what: str, error: Exception, retry_s: float) -> float:
        """Wait before the next try, staying a member of the group; returns the next wait.

        Reading is paused meanwhile, so nothing piles up. _Stopped when asked to stop.
        """
        self._metrics.unavailable()
        _log.warning("%s is away, next try in %.1f s: %s", what, retry_s, error)
        if not self._paused:
            self._paused = True
            self._consumer.pause(self._consumer.assignment())
        deadline_s = self._monotonic_s() + retry_s
        while (left_s := deadline_s - self._monotonic_s()) > 0:
            if self._stopping():
                raise _Stopped
            message = self._consumer.poll(min(left_s, 0.1))
            if message is None:
                continue
            failure = message.error()
            if failure is not None:
                # A batch that cannot be unfolded is told of again when reading goes on.
                if not is_unreadable(failure):
                    _raise_unless_passing(message, self._topic)
            else:
                # Of a partition assigned just now: its offset was read, so the database is back.
                self._held.append(message)
                break
        return min(retry_s * 2, RETRY_S_MAX)

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._consumer.resume(
                [
                    tp
                    for tp in self._consumer.assignment()
                    if tp.partition not in self._let_go_until_s
                ]
            )

    # Partitions that come and go ----------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:
            # A join that ends within the close; nothing of it is read.
            return
        starts = []
        for tp in partitions:
            try:
                start = self._start_of(consumer, tp.partition)
            except _Stopped:
                # The loop ends next; nothing of this assignment is read.
                consumer.assign([])
                return
            starts.append(TopicPartition(tp.topic, tp.partition, start))
        for tp in starts:
            self._begin(tp.partition, tp.offset)
        consumer.assign(starts)
        # The client keeps the pause of those that come back, and whatever they were paused for is
        # over: their offsets were read from the database, which decides whose they are.
        self._paused = False
        consumer.resume(starts)
        if starts:
            _log.info(
                "assigned %s", ", ".join(f"{tp.topic}[{tp.partition}]@{tp.offset}" for tp in starts)
            )

    def _on_revoke(self, _consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Nothing is under way here: a batch is booked before the next is read."""
        for tp in partitions:
            self._forget(tp.partition)
        if partitions:
            _log.info("gave back %s", ", ".join(f"{tp.topic}[{tp.partition}]" for tp in partitions))

    def _begin(self, partition: int, stored: int) -> None:
        self._forget(partition)
        self._stored[partition] = stored
        self._terms[partition] = self._terms.get(partition, 0) + 1

    def _forget(self, partition: int) -> None:
        self._stored.pop(partition, None)
        self._unreadable.clear()
        self._let_go_until_s.pop(partition, None)

    def _let_go(self, partition: int) -> None:
        """Stop booking a partition that somebody else has moved, until it is clear whose it is."""
        self._forget(partition)
        self._let_go_until_s[partition] = self._monotonic_s() + LET_GO_S
        self._held = [m for m in self._held if m.partition() != partition]
        self._consumer.pause([TopicPartition(self._topic, partition)])

    def _take_back(self) -> None:
        """Read a partition that was let go from the database's offset, if it is still ours.

        A zombie has lost it to a rebalance by now. Otherwise the other writer was this sink's own
        transaction whose commit was reported as failed, or one that has ended.
        """
        now_s = self._monotonic_s()
        for partition in [p for p, until_s in self._let_go_until_s.items() if until_s <= now_s]:
            try:
                stored = self._journal.stored_offset(partition)
                invariant(stored is not None, "an offset that was moved is stored")
                start = TopicPartition(self._topic, partition, stored or 0)
                self._consumer.seek(start)
            except (LedgerUnavailable, KafkaException) as error:
                _log.warning("%s[%d] stays let go: %s", self._topic, partition, error)
                self._let_go_until_s[partition] = now_s + LET_GO_S
                continue
            self._begin(partition, start.offset)
            self._consumer.resume([start])
            _log.info("took back %s[%d]@%d", self._topic, partition, start.offset)

    def _start_of(self, consumer: Consumer, partition: int) -> int:
        """Where the database says to go on; UserError if the log does not hold that any more."""
        retry_s = RETRY_S_MIN
        end_behind_since_s: float | None = None
        while True:
            try:
                stored = self._journal.stored_offset(partition)
                low, end = watermarks(
                    consumer,
                    TopicPartition(self._topic, partition),
                    timeout_s=BROKER_TIMEOUT_S,
                    surroundings=self._outside,
                )
                _require_unbroken(self._topic, partition, stored, low)
                if stored is None:
                    self._journal.begin_partition(partition, 0)
                    # Read again: another sink may have been first.
                    continue
                if stored <= end:
                    return stored
                now_s = self._monotonic_s()
                end_behind_since_s = end_behind_since_s or now_s
                if now_s - end_behind_since_s > END_BEHIND_S_MAX:
                    raise UserError(
                        f"{self._topic}[{partition}] ends at offset {end}, but the ledger has "
                        f"booked up to {stored}: the cluster has lost records that it had "
                        "acknowledged, or is an old copy. See docs/ledger.md before going on."
                    )
                error: Exception = RuntimeError(f"the log ends at {end}, {stored} is booked")
            except LedgerUnavailable as away:
                error = away
            except KafkaException as away:
                error = away
            self._metrics.unavailable()
            _log.warning(
                "%s[%d] cannot start yet, next try in %.1f s: %s",
                self._topic, partition, retry_s, error,
            )  # fmt: skip
            deadline_s = self._monotonic_s() + retry_s
            while self._monotonic_s() < deadline_s:
                if self._stopping():
                    raise _Stopped
                self._outside.sleep(0.05)
            retry_s = min(retry_s * 2, RETRY_S_MAX)


def _require_unbroken(topic: str, partition: int, stored: int | None, low: int) -> None:
    if low <= (stored or 0):
        return
    booked = "nothing is booked of it" if stored is None else f"it is booked up to {stored}"
    raise UserError(
        f"{topic}[{partition}] begins at offset {low}, but {booked}: settlements were deleted "
        "before they were booked. Nothing is skipped unasked; see docs/ledger.md."
    )


def _raise_unless_passing(message: Any, topic: str) -> None:
    """Errors that pass by themselves are left to the client; the rest end the sink, named."""
    error = message.error()
    require_undamaged(message)
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise UserError(
            f"an offset of {topic} is not in the log ({error.str()}): settlements were deleted "
            "before they were booked, or the topic was made anew. See docs/ledger.md."
        )
    if not passes_by_itself(error):
        raise KafkaException(error)
    _log.warning("consumer: %s", error)


def _on_commit(error: KafkaError | None, _partitions: object) -> None:
    if error is not None:
        _log.debug("the group's offsets were not committed: %s", error)


def _dead_letter_producer_config(bootstrap_servers: str) -> dict[str, Any]:
    return {
        **reaching(bootstrap_servers),
        "client.id": "paystream.ledger.dead-letters",
        "enable.idempotence": True,
        "acks": "all",
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "message.max.bytes": DEAD_LETTER_MAX_MESSAGE_BYTES,
        "delivery.timeout.ms": int(DELIVERY_TIMEOUT_S * 1000),
        # What is not delivered is said by who waits for it; not each connection that fails.
        "log_level": 2,
        "logger": _log,
    }
