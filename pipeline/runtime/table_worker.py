"""The worker of a stage with a table: consume, decide over the table, commit, exactly once.

The stage brings its name, its input lanes, its table's topic and how a row is decoded; what a row
means is its own.

One process, one consumer, one table cache, one transactional lane. The main thread consumes and
prepares; the commit thread carries out one transaction at a time. What a step may rely on:

* positions only move when a transaction is known to be committed, and the table's cache likewise;
* after any failed transaction everything buffered and prepared is dropped and the inputs are read
  again from the last committed positions;
* a rebalance waits for the transaction under way, drops the rest, and restores before it goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from pipeline.batches.unreadable import NOT_HAD, UnreadableBatches, is_unreadable
from pipeline.domain.invariant import invariant
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.observability.metrics import Metrics
from pipeline.runtime import failpoints
from pipeline.runtime.admission import TAKE_BYTES_MAX, Admission, InputLane, TopicPartitionKey
from pipeline.runtime.batch import Batch
from pipeline.runtime.cluster import (
    UNEQUAL,
    StoppedWaiting,
    UnequalPartitions,
    ask_committed_positions,
    cluster_and_topic_id,
    consumer_config,
)
from pipeline.runtime.commit_policy import CommitPolicy
from pipeline.runtime.commit_thread import CommitThread
from pipeline.runtime.dead_letters import unreadable_letter
from pipeline.runtime.false_offsets import OPEN_ROLES, FalseOffsets
from pipeline.runtime.fetching import GATHERING
from pipeline.runtime.heavy_batches import HeavyBatches
from pipeline.runtime.held_inputs import HeldInputs
from pipeline.runtime.input_record import InputRecord, input_record
from pipeline.runtime.kafka_errors import LaneFatal, passes_by_itself
from pipeline.runtime.lane import TRANSACTION_TIMEOUT_MS, Lane, Undefended, producer_config
from pipeline.runtime.lane_counts import positions_of_lanes, require_co_partitioned
from pipeline.runtime.restore import Restorer
from pipeline.runtime.surroundings import REAL, Surroundings
from pipeline.runtime.suspect_turns import SuspectTurns
from pipeline.runtime.suspects import Suspects
from pipeline.runtime.table import Table
from pipeline.runtime.too_large import TooLarge
from pipeline.runtime.unreadable_batch import CAUSE as UNREADABLE
from pipeline.runtime.unreadable_batch import (
    DamagedBatches,
    UnreadableBatch,
    require_undamaged,
    step_over,
)
from pipeline.runtime.work import Outcome
from pipeline.runtime.worker_spec import WorkerSpec
from schemas.errors import RegistryUnavailable
from topics.catalogue import Catalogue

_log = logging.getLogger(__name__)

# Taken from the client at a time, and handled at a time: long enough to amortise the call, short
# enough that a commit that has ended is noticed soon.
FETCH_RECORDS_MAX = 1_000
# So often at once, while more has come: what is behind orders in the client's one queue is not kept
# waiting for them, since the buffers know what goes first.
FETCHES_MAX = 16
# How long a full batch waits at a time for the transaction before it; a stop is noticed after it.
FULL_BATCH_WAIT_S = 0.02
# Held for a topic before its partitions are paused: three full batches, so that a pause (which
# throws away the client's prefetch) is rare and memory stays bounded.
BUFFER_RECORDS_MAX = 12_000
# The store is made durable this often; a restart reads at most what came after it.
FLUSH_INTERVAL_S = 20.0
# A commit may use the transaction's whole time-out, and an ambiguous one is then resolved.
REBALANCE_WAIT_S = 2.5 * TRANSACTION_TIMEOUT_MS / 1000
DRAIN_S_MAX = 30.0
# Between two tries to ask a schema registry that is away.
REGISTRY_PAUSE_S = 1.0
# What ends a worker without a record being to blame for it.
OUTSIDE_CAUSES = (UserError, LaneFatal, Undefended, KafkaException)


V = TypeVar("V")


class TableStage(Protocol[V]):
    """What a stage is to its worker: bytes in, bytes out, over rows of its own table.

    ``name`` is its consumer group and its name in metrics. ``keep_s``: how long a row is worth
    keeping that is not written again; None keeps it for ever. ``handle`` puts the whole effect of
    one input into the batch and the table's prepared layer; ``quarantine`` the refusal of an input
    that killed the process, ``bury_too_large`` of one whose effects no topic takes (``told``: its
    payment hears of it).
    """

    @property
    def name(self) -> str: ...

    @property
    def lanes(self) -> tuple[InputLane, ...]: ...

    @property
    def table_topic(self) -> str: ...

    @property
    def keep_s(self) -> int | None: ...

    def decode_row(self, raw: bytes) -> V: ...

    def handle(self, record: InputRecord, table: Table[V], batch: Batch) -> None: ...

    def quarantine(self, record: InputRecord, table: Table[V], batch: Batch) -> None: ...

    def bury_too_large(
        self, record: InputRecord, table: Table[V], batch: Batch, *, told: bool
    ) -> None: ...


class TableWorker(Generic[V]):
    """Call ``run`` in the main thread of a process of its own; it returns after a clean drain."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        catalogue: Catalogue,
        stage: TableStage[V],
        metrics: Metrics,
        stop: threading.Event,
        commit_policy: CommitPolicy | None = None,
        orders_allowed: Callable[[], bool] = lambda: True,
        hot_max: int = 20_000,
        producer_overrides: Mapping[str, Any] | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._spec = spec
        self._outside = surroundings
        self._time_s = surroundings.time_s
        self._monotonic_s = surroundings.monotonic_s
        self._catalogue = catalogue
        self._stage = stage
        self._metrics = metrics
        self._stop = stop
        self._policy = commit_policy or CommitPolicy()
        self._orders_allowed = orders_allowed
        self._hot_max = hot_max
        self._producer_overrides = dict(producer_overrides or {})
        self._delay_ms = {lane.topic: lane.delay_ms or 0 for lane in stage.lanes}
        self._admission = Admission(stage.lanes, buffer_max=BUFFER_RECORDS_MAX)
        self._suspects = Suspects(spec.slot_dir / "suspects.json", surroundings.state_file)
        self._held = HeldInputs(stage.lanes, self._suspects)
        self._too_large = TooLarge()
        self._unreadable = UnreadableBatches(surroundings.monotonic_s)
        self._damaged = DamagedBatches()
        self._heavy = HeavyBatches()
        self._standstill = surroundings.standstill(surroundings.monotonic_s)
        self._offsets = FalseOffsets(each.topic for each in stage.lanes if each.role in OPEN_ROLES)
        # The last of them in each partition until it is committed; nearly always there is none.
        self._stepped_over: dict[TopicPartitionKey, int] = {}
        # Where partitions go on of which nothing else is to be handled: for the next transaction.
        self._empty: dict[TopicPartitionKey, int] = {}
        # Suspects are in preparation or under way, and nothing else; and whose turn it is next.
        self._alone = False
        self._turns = SuspectTurns()
        self._told_suspected = 0
        self._batch: Batch | None = None
        self._under_way: Batch | None = None
        self._submitted_s = 0.0
        self._table_offsets: dict[int, int] = {}
        self._positions: dict[TopicPartitionKey, int] = {}
        self._restoring = False
        self._closing = False
        self._epoch = 0
        self._restore_began_s = 0.0
        self._flushed_s = self._monotonic_s()

    # Life ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until ``stop`` is set, then drain: commit what is prepared and leave."""
        spec = self._spec
        self._admin = admin = self._outside.admin(
            {**reaching(spec.bootstrap_servers), "log_level": 2}
        )
        require_co_partitioned(
            admin,
            self._catalogue,
            spec.bootstrap_servers,
            stage=self._stage.name,
            surroundings=self._outside,
        )
        cluster_id, topic_id = cluster_and_topic_id(admin, self._stage.table_topic, self._outside)
        self._table: Table[V] = Table(
            self._outside.table_store(spec.slot_dir / "table", self._stage.keep_s),
            decode=self._stage.decode_row,
            hot_max=self._hot_max,
            cluster_id=cluster_id,
            topic_id=topic_id,
        )
        self._restorer = Restorer(
            self._table,
            stage=self._stage.name,
            topic=self._stage.table_topic,
            bootstrap_servers=spec.bootstrap_servers,
            admin=admin,
            cluster_id=cluster_id,
            topic_id=topic_id,
            delete_retention_ms=self._catalogue.settings.delete_retention_ms,
            surroundings=self._outside,
        )
        self._consumer = self._outside.consumer(
            {
                **consumer_config(
                    spec.bootstrap_servers,
                    group_id=self._catalogue.group(self._stage.name),
                    instance_id=spec.instance_id,
                ),
                **GATHERING,
            }
        )
        self._lane = Lane(
            {
                **producer_config(spec.bootstrap_servers, spec.transactional_id),
                **self._producer_overrides,
            },
            stage=self._stage.name,
            committed_offsets=self._committed_offsets,
            surroundings=self._outside,
        )
        self._lane.open()
        self._commits = CommitThread(self._lane, self._outside)
        self._suspects.start()
        if self._outside.has_brokers:
            self._heavy.open(spec.bootstrap_servers, self._suspects.deaths)
            self._standstill.open(spec.bootstrap_servers)
            self._offsets.open()
        self._consumer.subscribe(
            [lane.topic for lane in self._stage.lanes],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        _log.info("%s reads %s", spec.name, ", ".join(lane.topic for lane in self._stage.lanes))
        try:
            while not self._stop.is_set():
                self._turn()
            self._drain()
            self._suspects.excused()
        except OUTSIDE_CAUSES:
            self._suspects.excused()
            raise
        finally:
            self._suspects.close()
            self._standstill.close()
            self._offsets.close()
            self._restorer.stop()
            self._commits.close()
            # Closing revokes; what is still under way has failed, and waiting for it there would
            # hide why.
            self._under_way = None
            self._closing = True
            self._consumer.close()
            self._lane.close()
            self._table.close()

    def _drain(self) -> None:
        """Finish what is prepared; what is only buffered stays in Kafka for the next owner."""
        deadline = self._monotonic_s() + DRAIN_S_MAX
        while (self._batch or self._under_way) and self._monotonic_s() < deadline:
            self._take_outcome(self._commits.wait(0.05))
            if self._batch and not self._commits.busy:
                self._submit()
            self._consumer.poll(0)
        if not (self._batch or self._under_way):
            self._empty = self._standstill.empty_now(self._positions)
            self._pass_empty()
        while self._under_way and self._monotonic_s() < deadline:
            self._take_outcome(self._commits.wait(0.05))
            self._consumer.poll(0)
        _log.info("%s drained", self._spec.name)

    # One turn of the loop -----------------------------------------------------------------------

    def _turn(self) -> None:
        if self._restoring:
            self._restore_slice()
            return
        if self._commits.busy and (self._is_full() or self._holds_its_turn()):
            # Nothing more fits or may begin: consuming would only fill the buffers until they pause
            # their partitions, and turning the loop would take the core from the commit thread.
            self._take_outcome(self._commits.wait(FULL_BATCH_WAIT_S))
            return
        waiting_input = self._consume()
        self._prepare()
        self._take_outcome(self._commits.poll())
        self._damaged.end(self._has_in_hand)
        batch = self._batch
        if batch is not None and not self._commits.busy:
            age_ms = (self._monotonic_s() - batch.opened_s) * 1000
            if (
                self._alone
                or batch.input_bytes >= TAKE_BYTES_MAX
                or self._policy.due(batch.records, age_ms, waiting_input, self._ready())
            ):
                self._submit()
        elif batch is None and self._empty and not self._commits.busy:
            self._pass_empty()
        if self._monotonic_s() - self._flushed_s > FLUSH_INTERVAL_S:
            self._flushed_s = self._monotonic_s()
            self._table.flush()
            self._suspects.steady()
            self._metrics.hot_payments.set(self._table.hot_count)

    def _is_full(self) -> bool:
        return self._batch is not None and (
            self._batch.records >= self._policy.records_max
            or self._batch.input_bytes >= TAKE_BYTES_MAX
        )

    def _holds_its_turn(self) -> bool:
        """Whether nothing is begun beside what is under way: suspects are, or come next."""
        return self._alone or (self._turns.suspects_next and bool(self._held))

    def _ready(self) -> int:
        """How many buffered records the next turns may add to the batch."""
        return 0 if self._holds_its_turn() else self._admission.ready

    def _consume(self) -> bool:
        """Move all that has arrived into the buffers, until those are full and their partitions
        paused; True when there was something."""
        found = taken = self._take_arrived()
        for _ in range(1, FETCHES_MAX):
            if taken < FETCH_RECORDS_MAX:
                break
            taken = self._take_arrived()
        return found > 0

    def _take_arrived(self) -> int:
        """How many the client had at hand, at most FETCH_RECORDS_MAX and what was passed over."""
        epoch = self._epoch
        passed = self._pass_over_silent()
        messages = [*passed, *self._consumer.consume(FETCH_RECORDS_MAX, 0)]
        if self._heavy and self._epoch == epoch:
            messages = [*messages, *self._bring()]
        if not messages and not self._admission.ready:
            message = self._consumer.poll(self._patience_s())
            messages = [message] if message is not None else []
        came, messages = len(messages), self._damaged.before(messages)
        for message in messages:
            error = message.error()
            if error is not None and not self._offsets.misled(message):
                raise_consume_error(error, message)
        if self._epoch != epoch:
            # A rebalance happened inside the call; what it returned belongs to the past.
            self._damaged.clear()
            return 0
        held = self._held if self._suspects or self._held else None
        following = self._offsets.following
        for message in messages:
            error = message.error()
            if error is None:
                record = input_record(message)
                if type(message) is UnreadableBatch:
                    self._stepped_over[record.topic, record.partition] = record.offset
            elif (stepped := self._step_over(message)) is not None:
                record = input_record(stepped)
            elif self._offsets.misled(message):
                self._go_around(message.topic(), message.partition())
                return 1
            else:
                continue
            tp = record.topic, record.partition
            if (expected := following.get(tp)) is not None:
                if expected != record.offset and not self._is_in_its_place(record):
                    return 1
                following[tp] = record.offset + 1
            if held is None or not held.take(record):
                self._admission.add(record)
        fetching = self._admission.fetching()
        if fetching.resume:
            self._resume(fetching.resume)
        pause = [*fetching.pause, *(self._held.overfull() if self._held else ())]
        if pause:
            self._consumer.pause([TopicPartition(*tp) for tp in pause])
        return came

    def _is_in_its_place(self, record: InputRecord) -> bool:
        """Whether this is the next of its partition though offsets lie between. Where it is not,
        or that is not known, all is read again from the committed positions on."""
        if type(record.origin) is UnreadableBatch:
            return True
        tp = record.topic, record.partition
        try:
            if self._offsets.is_next(self._consumer, tp, record.offset):
                return True
        except UserError:
            raise
        except NOT_HAD as error:
            _log.warning("%s[%d]: what lies at %d was not to be had: %s", *tp, record.offset, error)
            self._settle("where a record lies was not to be had")
            self._rewind()
        else:
            self._go_around(*tp)
        return False

    def _go_around(self, topic: str, partition: int) -> None:
        """A batch whose records say that they are elsewhere, or of which the client leaves out
        some: as around one that is found before it is fetched."""
        tp = topic, partition
        following = self._offsets.following[tp]
        self._settle("records of other places came")
        self._heavy.look_again(tp, self._positions[tp], self._stop.is_set)
        if not self._heavy.keeps(tp, following) and not self._stop.is_set():
            raise LaneFatal(
                f"{topic}[{partition}]: what came is not what lies at {following}, and nothing "
                "there says why; the successor of this process looks again"
            )
        self._rewind()

    def _pass_over_silent(self) -> list[UnreadableBatch]:
        """What stands for batches of which the client brings nothing, with it put behind them."""
        found = self._standstill.take(self._positions, self._waits_for)
        for each in found:
            tp, position = (each.topic(), each.partition()), each.offset() + 1
            if not self._heavy.go_on(tp, position):
                self._consumer.seek(TopicPartition(*tp, position))
        if found:
            self._resume_brought()
        self._empty.update(self._standstill.take_empty(self._positions))
        return found

    def _waits_for(self, tp: TopicPartitionKey) -> bool:
        """Whether all that came of a partition is committed, and more may come."""
        return not (
            self._has_in_hand(tp)
            or self._admission.is_paused(*tp)
            or (self._heavy.has_ahead(tp) and not self._heavy.is_stuck(tp))
        )

    def _has_in_hand(self, tp: TopicPartitionKey) -> bool:
        """Whether something that came of a partition is not committed."""
        return (
            self._admission.holds(*tp)
            or self._held.holds(tp)
            or any(tp in batch.offsets for batch in (self._batch, self._under_way) if batch)
        )

    def _bring(self) -> list[Any]:
        """What lies before a batch that the client is not given, or what stands for that one. The
        client goes on with a partition when all of it has been brought."""
        self._heavy.look_on(self._positions, self._stop.is_set)
        for tp, offset in self._heavy.take_moved():
            self._consumer.seek(TopicPartition(*tp, offset))
        messages = self._heavy.bring(self._takes)
        self._resume_brought()
        return messages

    def _resume_brought(self) -> None:
        if brought := self._heavy.take_brought():
            self._resume(tp for tp in brought if self._takes(tp))

    def _takes(self, tp: TopicPartitionKey) -> bool:
        """Whether more of a partition is wanted."""
        return not self._admission.is_paused(*tp) and not self._held.is_paused(tp)

    def _resume(self, partitions: Iterable[TopicPartitionKey]) -> None:
        wanted = [TopicPartition(*tp) for tp in partitions if not self._heavy.has_ahead(tp)]
        if wanted:
            self._consumer.resume(wanted)

    def _step_over(self, message: Message) -> UnreadableBatch | None:
        if not is_unreadable(message.error()):
            return None
        stepped = step_over(self._unreadable, self._consumer, message)
        if stepped is not None:
            self._stepped_over[stepped.topic(), stepped.partition()] = stepped.offset()
        return stepped

    def _patience_s(self) -> float:
        """How long to wait for input when none is at hand."""
        if self._batch is not None or self._under_way is not None or self._held:
            return 0.002
        due_ms = self._admission.next_due_ms()
        if due_ms is None:
            return 0.1
        return min(0.1, max(0.002, due_ms / 1000 - self._time_s()))

    def _prepare(self) -> None:
        """Admit waiting input and let the stage put its effects into the batch."""
        allowed = self._orders_allowed()
        self._admission.open_gate(allowed)
        if self._alone:
            return
        records = self._take_held(allowed) if self._held else []
        if not records and not self._holds_its_turn():
            # While suspects wait for their turn nothing is begun: beside them nothing is under way.
            records = self._take_ordinary()
        if not records:
            self._turns.nothing_else()
            return
        failpoints.hit(f"{self._stage.name}.taken")
        batch = self._batch
        if batch is None:
            # The metadata of this moment: fetched at commit time it could belong to a generation
            # in which some of these partitions are another worker's.
            batch = self._batch = Batch(
                self._consumer.consumer_group_metadata(), self._monotonic_s()
            )
        batch.input_bytes += sum([len(r.value) for r in records if r.value is not None])
        batch.aged(min([r.timestamp_ms + self._delay_ms[r.topic] for r in records]))
        try:
            self._handle(records, batch)
        except RegistryUnavailable as error:
            self._wait_for_registry(error)
            return
        failpoints.hit(f"{self._stage.name}.processed")

    def _handle(self, records: list[InputRecord], batch: Batch) -> None:
        handle, table = self._stage.handle, self._table
        condemned = self._alone and self._suspects.is_condemned(records[0])
        if condemned and type(records[0].origin) is not UnreadableBatch:
            # Not looked at, so a death from here on is not its doing.
            self._stage.quarantine(records[0], table, batch)
            return
        self._suspects.took(records)
        if not self._too_large and not self._stepped_over:
            for record in records:
                handle(record, table, batch)
            return
        for record in records:
            refusals = self._too_large.refusals(record)
            if type(record.origin) is UnreadableBatch:
                self._bury_unreadable(record, batch, whole=not refusals and not condemned)
            elif refusals:
                self._stage.bury_too_large(record, table, batch, told=refusals == 1)
            else:
                handle(record, table, batch)

    def _bury_unreadable(self, record: InputRecord, batch: Batch, *, whole: bool) -> None:
        """A batch that cannot be unfolded; without its bytes where those were what ended it."""
        batch.took(record.topic, record.partition, record.offset)
        batch.notes[("dead_letters", UNREADABLE)] += 1
        batch.outputs.extend(
            unreadable_letter(
                record,
                topic=self._catalogue.name("dead-letters"),
                stage=self._stage.name,
                whole=whole,
            )
        )

    def _take_ordinary(self) -> list[InputRecord]:
        """Waiting input for the batch in preparation, as far as it has room."""
        have = self._batch.records if self._batch is not None else 0
        have_bytes = self._batch.input_bytes if self._batch is not None else 0
        room = self._policy.records_max - have
        if room <= 0:
            return []
        return self._admission.take(
            min(room, FETCH_RECORDS_MAX),
            int(self._time_s() * 1000),
            limit_bytes=TAKE_BYTES_MAX - have_bytes,
        )

    def _take_held(self, allowed: bool) -> list[InputRecord]:
        """Suspects for a transaction of their own, in turn with ordinary ones."""
        if self._batch is not None or self._under_way is not None or not self._turns.suspects_next:
            return []
        self._release()
        piece = self._held.next_piece(int(self._time_s() * 1000), gate_open=allowed)
        self._resume(tp for tp in self._held.roomy() if self._takes(tp))
        self._alone = bool(piece)
        if not piece:
            self._turns.no_suspect_now()
        return piece

    def _wait_for_registry(self, error: RegistryUnavailable) -> None:
        """A schema could not be asked for: the record is neither read nor refused, but waited for.

        The batch in preparation holds a record whose effect is missing, so it is dropped whole.
        """
        _log.warning("%s waits for the schema registry: %s", self._spec.name, error)
        self._settle("a schema could not be asked for")
        self._rewind()
        self._stop.wait(REGISTRY_PAUSE_S)

    # Transactions -------------------------------------------------------------------------------

    def _pass_empty(self) -> None:
        """In a transaction of its own, where nothing else is to be handled. Once: it commits the
        end of those partitions, and writes to none of them."""
        if any(self._positions[tp] < end for tp, end in self._empty.items()):
            metadata = self._consumer.consumer_group_metadata()
            self._batch = Batch(metadata, self._monotonic_s())
            self._submit()
        self._empty = {}

    def _submit(self) -> None:
        batch = self._batch
        if batch is None:
            return
        self._batch = None
        for tp, end in self._empty.items():
            if self._positions[tp] < end:
                batch.passes(tp, end)
        self._empty = {}
        self._under_way = batch
        self._table.seal()
        self._table_offsets = {}
        self._submitted_s = self._monotonic_s()
        self._commits.submit(batch.seal(self._table_offsets.__setitem__))

    def _take_outcome(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        batch = self._under_way
        invariant(batch is not None, "an outcome belongs to the transaction under way")
        if batch is None:
            return
        self._under_way = None
        metrics, stage = self._metrics, self._stage.name
        metrics.ended(
            stage, outcome.value, self._monotonic_s() - self._submitted_s, self._lane.rebuilds
        )
        self._lane.rebuilds = 0
        self._too_large.ended(batch, outcome, self._lane.too_large)
        if outcome is Outcome.ABORTED:
            self._rewind()
            return
        self._positions.update(batch.offsets)
        if self._stepped_over:
            self._stepped_over = {
                tp: last
                for tp, last in self._stepped_over.items()
                if batch.offsets.get(tp, 0) <= last
            }
        self._table.apply(
            {p: offset + 1 for p, offset in self._table_offsets.items()}, int(self._time_s() * 1000)
        )
        failpoints.hit(f"{stage}.cache_applied")
        self._suspects.committed(batch.offsets)
        self._tell_of_suspects()
        if self._held:
            self._turns.committed(self._alone, batch.opened_s, self._monotonic_s())
        self._alone = False
        metrics.committed(stage, batch.records, batch.oldest_ms, self._time_s())
        for (topic, partition), offset in batch.offsets.items():
            first = batch.first_offsets[(topic, partition)]
            metrics.records.labels(stage, topic).inc(offset - first)
        metrics.counted(stage, batch.notes)
        metrics.settled(batch.latencies_ms)

    def _rewind(self) -> None:
        """Back to the last committed positions; nothing prepared or buffered survives."""
        self._empty = {}
        self._table.discard()
        self._batch = None
        self._let_go_of_held()
        starts = self._starts()
        self._consumer.assign(starts)
        # The client keeps a pause across an assignment of the same partitions; the buffers are
        # empty now and would never ask for a resumption.
        self._resume(self._positions)
        if self._heavy:
            self._consumer.pause([tp for tp in starts if self._heavy.has_ahead(_key(tp))])
        self._admission.assign(self._positions)
        self._offsets.assign(self._positions)

    def _starts(self) -> list[TopicPartition]:
        """Where the client begins, to go on from the committed positions."""
        return [TopicPartition(*tp, self._heavy.begin(tp, o)) for tp, o in self._positions.items()]

    def _release(self) -> None:
        """What was held behind suspects that are committed goes on like any other input."""
        for tp, records in self._held.released():
            for record in records:
                self._admission.add(record)
            if self._takes(tp):
                self._resume([tp])
        self._tell_of_suspects()

    def _tell_of_suspects(self) -> None:
        suspected = self._suspects.among(self._positions) if self._suspects else 0
        if suspected > self._told_suspected:
            _log.warning(
                "%s: a process died with records of %d input partitions under way; they are "
                "handled one partition at a time, and what lies behind them there waits",
                self._spec.name,
                suspected,
            )
        elif self._told_suspected and not suspected:
            _log.info("%s is past what was under way at a death", self._spec.name)
        if suspected > self._told_suspected or not suspected:
            self._told_suspected = suspected

    def _let_go_of_held(self) -> None:
        self._suspects.forgot()
        self._held.clear()
        self._turns.aborted(self._alone)
        self._alone = False
        self._unreadable.clear()
        self._damaged.clear()
        self._stepped_over = {}

    def _committed_offsets(
        self, partitions: list[TopicPartitionKey]
    ) -> Mapping[TopicPartitionKey, int]:
        return ask_committed_positions(
            self._spec.bootstrap_servers,
            self._catalogue.group(self._stage.name),
            partitions,
            self._outside,
        )

    # The group ----------------------------------------------------------------------------------

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:
            # A join that ends within the close. A client that closes answers no question for its
            # offsets before the time-out, and there is nothing left to restore for.
            return
        by_topic: dict[str, set[int]] = {lane.topic: set() for lane in self._stage.lanes}
        for tp in partitions:
            # One that it does not read is left of a version that did.
            by_topic.setdefault(tp.topic, set()).add(tp.partition)
        read = {lane.topic for lane in self._stage.lanes}
        if by_topic.keys() != read or len({frozenset(each) for each in by_topic.values()}) > 1:
            raise UnequalPartitions(
                f"{self._spec.name} was given {UNEQUAL} "
                f"({', '.join(f'{t}: {sorted(n)}' for t, n in by_topic.items())}); nothing is "
                "consumed. Let every worker of the group run the same version and configuration; "
                "`paystream topics plan` says whether the topics differ."
            )
        # Committed offsets first, stable; the table's end is taken after them (see restore).
        wanted = [(tp.topic, tp.partition) for tp in partitions]
        try:
            found = positions_of_lanes(
                consumer, wanted, admin=self._admin, catalogue=self._catalogue,
                bootstrap_servers=self._spec.bootstrap_servers, stopped=self._stop.is_set,
            )  # fmt: skip
        except StoppedWaiting:
            # Nothing was taken yet: the drain has nothing to finish.
            return
        self._positions = dict(found)
        # Before the client fetches anything of it.
        self._heavy.look(self._positions, self._stop.is_set)
        assigned = self._starts()
        consumer.assign(assigned)
        consumer.pause(assigned)
        self._admission.assign(self._positions)
        self._offsets.assign(self._positions)
        self._suspects.assigned(self._positions)
        self._tell_of_suspects()
        self._epoch += 1
        self._restore_began_s = self._monotonic_s()
        self._restorer.begin(tp.partition for tp in partitions)
        self._restoring = True

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Finish the transaction under way in bounded time, drop the rest, give back."""
        self._take_outcome_before_leaving(apply=True)
        self._forget(consumer)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Expelled from the group: another worker may own the partitions by now."""
        self._take_outcome_before_leaving(apply=False)
        self._forget(consumer)

    def _take_outcome_before_leaving(self, *, apply: bool) -> None:
        if self._under_way is None:
            return
        outcome = self._known_end("a rebalance began")
        if apply and outcome is Outcome.COMMITTED:
            self._take_outcome(outcome)
        else:
            # Not applied: the cache stays at its checkpoint and catches up from the topic.
            self._under_way = None
            self._metrics.transactions.labels(self._stage.name, outcome.value).inc()

    def _settle(self, since: str) -> None:
        """Wait for the end of the transaction under way, so that the positions are those of the
        group."""
        if self._under_way is not None:
            self._take_outcome(self._known_end(since))

    def _known_end(self, since: str) -> Outcome:
        """How the transaction under way ended, waiting for it in bounded time."""
        outcome = self._commits.wait(REBALANCE_WAIT_S)
        if outcome is None:
            # Not a UserError: a slow broker is no reason for the supervisor to give up.
            raise LaneFatal(
                f"a transaction did not end within {REBALANCE_WAIT_S:.0f} s after {since}; the "
                "successor of this process resolves it"
            )
        return outcome

    def _forget(self, consumer: Consumer) -> None:
        self._epoch += 1
        self._table.discard()
        self._batch = None
        self._empty = {}
        self._under_way = None
        self._let_go_of_held()
        self._told_suspected = 0
        self._too_large.clear()
        self._restorer.stop()
        self._restoring = False
        self._positions = {}
        self._heavy.clear()
        self._admission.assign(())
        consumer.unassign()

    def _restore_slice(self) -> None:
        message = self._consumer.poll(0)
        error = message.error() if message is not None else None
        if message is not None and error is not None:
            raise_consume_error(error, message)
        if not self._restoring or not self._restorer.step():
            return
        self._restoring = False
        seconds = self._monotonic_s() - self._restore_began_s
        self._metrics.restored_records.inc(self._restorer.records_read)
        self._metrics.restore_seconds.observe(seconds)
        _log.info(
            "%s restored %d partitions: %d records in %.2f s",
            self._spec.name,
            len({p for _, p in self._positions}),
            self._restorer.records_read,
            seconds,
        )
        self._restorer.records_read = 0
        self._flushed_s = self._monotonic_s()
        self._resume(self._positions)


def _key(tp: TopicPartition) -> TopicPartitionKey:
    return tp.topic, tp.partition


def raise_consume_error(error: KafkaError, message: Message) -> None:
    """Errors that pass by themselves are left to the client, and batches that cannot be unfolded
    to the caller; the rest end the worker, named."""
    if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
        raise UserError(
            f"the position in {message.topic()}[{message.partition()}] is not in the log any more "
            f"({error.str()}): records were deleted before they were read. Nothing is skipped "
            "unasked; `paystream positions show` says what is gone, docs/operations.md what to do."
        )
    require_undamaged(message)
    if is_unreadable(error):
        return
    if not passes_by_itself(error):
        raise KafkaException(error)
    _log.warning("consumer: %s", error)
