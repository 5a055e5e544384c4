"""The worker of the gateway stage: many calls in flight, their results committed in order.

A transaction begins only when results are ready and never spans a call. Of each partition the
finished prefix is committed; a result behind an open call is held. A worker that dies or loses a
partition leaves its open requests uncommitted: the next owner sends them again with the same
idempotency keys.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from confluent_kafka import Consumer, TopicPartition
from msgspec.structs import replace

from pipeline.batches.unreadable import UnreadableBatches, is_unreadable
from pipeline.domain.answer import LATE_ANSWER
from pipeline.domain.invariant import invariant
from pipeline.kafka_access import reaching
from pipeline.observability.metrics import Metrics
from pipeline.runtime import failpoints
from pipeline.runtime.batch import Batch
from pipeline.runtime.calls import Call, Calls
from pipeline.runtime.cluster import (
    StoppedWaiting,
    ask_committed_positions,
    consumer_config,
)
from pipeline.runtime.commit_policy import CommitPolicy
from pipeline.runtime.commit_thread import CommitThread
from pipeline.runtime.crash_guard import CrashGuard
from pipeline.runtime.gateway_stage import STAGE, GatewayStage
from pipeline.runtime.heard import tells_success
from pipeline.runtime.heavy_batches import HeavyBatches
from pipeline.runtime.held_requests import HELD_MAX, HeldRequests
from pipeline.runtime.input_record import input_record
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.lane import Lane, producer_config
from pipeline.runtime.lane_counts import positions_of_lanes, require_co_partitioned
from pipeline.runtime.late_words import LateWords
from pipeline.runtime.partition_offsets import watermarks
from pipeline.runtime.prefix import PartitionPrefix
from pipeline.runtime.surroundings import REAL, Surroundings
from pipeline.runtime.table_worker import (
    DRAIN_S_MAX,
    FETCH_RECORDS_MAX,
    OUTSIDE_CAUSES,
    REBALANCE_WAIT_S,
    REGISTRY_PAUSE_S,
    raise_consume_error,
)
from pipeline.runtime.too_large import TooLarge
from pipeline.runtime.unreadable_batch import DamagedBatches, UnreadableBatch, step_over
from pipeline.runtime.work import Outcome, Outgoing, TopicPartitionKey
from pipeline.runtime.worker_spec import WorkerSpec
from schemas.errors import RegistryUnavailable
from topics.catalogue import Catalogue

_log = logging.getLogger(__name__)

# Open, waiting and held requests of one worker. Enough to keep hundreds of calls in flight and a
# batch of results ready; fetching stops above it and goes on when half of it is left.
TRACKED_MAX = 6_000

# A worker that stood still for so long may have been expelled from its group: the session lasts ten
# seconds from the last heartbeat, and there is one every two.
STOOD_STILL_S_MAX = 7.0
# A worker that was replaced by one of its own identity hears it with its next heartbeat, and takes
# what arrives until then: a heartbeat's interval and a second.
REPLACED_HEARS_S = 3.0

Finished = tuple[list[Outgoing], Call | None]


class GatewayWorker:
    """Call ``run`` in the main thread of a process of its own; it returns after a clean drain."""

    def __init__(
        self,
        spec: WorkerSpec,
        *,
        catalogue: Catalogue,
        stage: GatewayStage,
        calls: Calls,
        metrics: Metrics,
        stop: threading.Event,
        commit_policy: CommitPolicy | None = None,
        tracked_max: int = TRACKED_MAX,
        producer_overrides: Mapping[str, Any] | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._spec = spec
        self._outside = surroundings
        self._time_s = surroundings.time_s
        self._monotonic_s = surroundings.monotonic_s
        self._catalogue = catalogue
        self._stage = stage
        self._calls = calls
        self._metrics = metrics
        self._stop = stop
        self._policy = commit_policy or CommitPolicy()
        self._tracked_max = tracked_max
        self._producer_overrides = dict(producer_overrides or {})
        self._guard = CrashGuard(
            spec.slot_dir / "crash-guard.json",
            now_s=surroundings.monotonic_s,
            state_file=surroundings.state_file,
        )
        self._too_large = TooLarge()
        self._unreadable = UnreadableBatches(surroundings.monotonic_s)
        self._damaged = DamagedBatches()
        self._heavy = HeavyBatches()
        self._standstill = surroundings.standstill(surroundings.monotonic_s)
        # The partitions of which the client is not given what comes next: see HeavyBatches.
        self._bringing: set[int] = set()
        self._prefixes: dict[int, PartitionPrefix[Finished]] = {}
        self._positions: dict[int, int] = {}
        # Of partitions given back in a rebalance: they may come back with it, calls and all.
        self._left: dict[int, tuple[int, PartitionPrefix[Finished]]] = {}
        # Of a careful worker only: what it has fetched, and has not begun.
        self._held = HeldRequests()
        # The partitions that are not paused.
        self._fetched: set[int] = set()
        self._epoch = 0
        self._metadata: Any = None
        self._under_way: Batch | None = None
        self._submitted_s = 0.0
        self._ready_since_s: float | None = None
        self._ready_records = 0
        # Where partitions go on of which nothing else is to be handled: for the next transaction.
        self._empty: dict[TopicPartitionKey, int] = {}
        self._words = LateWords(surroundings.monotonic_s)
        self._closing = False
        # Whether this process has had partitions: from then on no other one has its identity.
        self._is_member = False
        self._awake_s = surroundings.monotonic_s()

    # Life ---------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until ``stop`` is set, then let open calls end, commit their results and leave."""
        spec = self._spec
        self._admin = admin = self._outside.admin(
            {**reaching(spec.bootstrap_servers), "log_level": 2}
        )
        require_co_partitioned(
            admin,
            self._catalogue,
            spec.bootstrap_servers,
            stage=STAGE,
            surroundings=self._outside,
        )
        self._consumer = self._outside.consumer(
            consumer_config(
                spec.bootstrap_servers,
                group_id=self._catalogue.group(STAGE),
                instance_id=spec.instance_id,
            )
        )
        self._lane = Lane(
            {
                **producer_config(spec.bootstrap_servers, spec.transactional_id),
                **self._producer_overrides,
            },
            stage=STAGE,
            committed_offsets=lambda partitions: ask_committed_positions(
                spec.bootstrap_servers, self._catalogue.group(STAGE), partitions, self._outside
            ),
            surroundings=self._outside,
        )
        self._lane.open()
        self._calls.open()
        self._commits = CommitThread(self._lane, self._outside)
        self._guard.start()
        if self._outside.has_brokers:
            self._heavy.open(spec.bootstrap_servers, self._guard.deaths)
            self._standstill.open(spec.bootstrap_servers)
        self._consumer.subscribe(
            [self._stage.topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )
        _log.info("%s reads %s", spec.name, self._stage.topic)
        try:
            while not self._stop.is_set():
                self._turn(fetch=True)
            self._drain()
            self._guard.stopped()
        except OUTSIDE_CAUSES:
            self._guard.excused()
            raise
        finally:
            self._guard.close()
            self._standstill.close()
            self._calls.close()
            self._commits.close()
            # Closing revokes; what is still under way has failed, and committing more there would
            # hide why.
            self._under_way, self._ready_since_s = None, None
            self._closing = True
            self._consumer.close()
            self._lane.close()

    def _drain(self) -> None:
        """Take no more requests; commit what ends in bounded time, and what was heard too late."""
        deadline = self._monotonic_s() + DRAIN_S_MAX
        self._consumer.pause(self._assigned())
        while self._monotonic_s() < deadline and (
            self._tracked or self._under_way or self._left or (self._words and self._positions)
        ):
            self._turn(fetch=False)
        if not (self._tracked or self._under_way):
            self._empty = self._standstill.empty_now(self._committed())
            self._pass_empty()
        while self._under_way and self._monotonic_s() < deadline:
            self._turn(fetch=False)
        _log.info("%s drained", self._spec.name)

    # One turn of the loop -----------------------------------------------------------------------

    @property
    def _tracked(self) -> int:
        return sum(prefix.size for prefix in self._prefixes.values())

    def _turn(self, *, fetch: bool) -> None:
        tracked = self._tracked
        waiting_input = False
        if fetch:
            self._pace(tracked)
            waiting_input = self._consume(tracked)
        else:
            self._consumer.poll(0)
            self._calls.wait_finished(0.01)
        self._collect()
        self._take_outcome(self._commits.poll())
        if fetch:
            self._damaged.end(self._has_in_hand)
        if self._commits.busy:
            return
        if self._ready_since_s is None:
            # A worker that stops waits for no more than its open calls.
            if self._words.are_due or not (fetch or self._tracked):
                self._tell_words()
            elif self._empty:
                self._pass_empty()
            return
        age_ms = (self._monotonic_s() - self._ready_since_s) * 1000
        if self._guard.careful or self._policy.due(self._ready_records, age_ms, waiting_input):
            self._submit()

    def _pace(self, tracked: int) -> None:
        """Back-pressure: when too much is open or held, fetch no more of the partitions that have
        their share of it, until half of that is left. The others go on: the client hands out what
        arrived first, and one partition's backlog would be all that is ever open."""
        limit = HELD_MAX if self._guard.careful else self._tracked_max
        full = tracked + len(self._held) >= limit
        if not full and len(self._fetched) == len(self._prefixes):
            return
        share = max(1, limit // max(1, len(self._prefixes)))
        fetch = set()
        # What is suspected may be behind by now, and the others wanted.
        for partition in self._wanted():
            own = self._prefixes[partition].size + self._held.count(partition)
            enough = full and own >= share if partition in self._fetched else own > share // 2
            if not enough:
                fetch.add(partition)
        self._bringing = {p for p in fetch if self._heavy.has_ahead((self._stage.topic, p))}
        self._fetch(fetch - self._bringing)

    def _fetch(self, wanted: set[int]) -> None:
        """Pause and resume what differs, and nothing else: each pause costs what was prefetched."""
        topic = self._stage.topic
        if self._fetched - wanted:
            self._consumer.pause([TopicPartition(topic, p) for p in self._fetched - wanted])
        if wanted - self._fetched:
            self._consumer.resume([TopicPartition(topic, p) for p in wanted - self._fetched])
        self._fetched = wanted

    def _consume(self, tracked: int) -> bool:
        careful = self._guard.careful
        limit = HELD_MAX if careful else self._tracked_max
        room = limit - tracked - len(self._held)
        if room <= 0:
            # Only partitions are fetched that have less than their share.
            room = limit // max(1, len(self._prefixes))
        epoch = self._epoch
        passed = self._pass_over_silent()
        messages = self._consumer.consume(min(FETCH_RECORDS_MAX, max(1, room)), 0)
        messages = [*passed, *messages]
        if self._heavy and self._epoch == epoch:
            messages = [*messages, *self._bring()]
        if not messages and (tracked or not self._held):
            # Wait where the next thing is likelier: for a call to end, or for a request to come.
            if tracked or self._under_way is not None:
                self._calls.wait_finished(0.002)
                message = self._consumer.poll(0)
            else:
                message = self._consumer.poll(0.1)
            messages = [message] if message is not None else []
        messages = self._damaged.before(messages)
        for message in messages:
            error = message.error()
            if error is not None:
                raise_consume_error(error, message)
        if self._epoch != epoch:
            # A rebalance happened inside the call; what it returned belongs to the past, and what
            # was assigned is held until now.
            self._damaged.clear()
            self._pace(self._tracked)
            return False
        self._require_awake()
        records = [input_record(each) for each in self._read(messages)]
        if careful or self._held:
            # One record is open: the culprit if it dies. The others wait.
            self._held.add(each for each in records if each.partition in self._prefixes)
            if careful:
                records = [] if tracked else self._held.one(self._wanted())
            else:
                records = self._held.all()
        calls: list[Call] = []
        now_ms = int(self._time_s() * 1000)
        disturbed: set[int] = set()
        for record in records:
            prefix = self._prefixes.get(record.partition)
            if prefix is None:
                continue  # revoked while this was on its way to us
            if record.partition in disturbed:
                continue
            prefix.begin(record.offset)
            handled = not careful or self._guard.handling(
                record.topic, record.partition, record.offset
            )
            refusals = self._too_large.refusals(record) if self._too_large else 0
            if type(record.origin) is UnreadableBatch:
                letters = self._stage.bury_unreadable(record, whole=handled and not refusals)
                prefix.finish(record.offset, (letters, None))
                self._became_ready(1)
                continue
            if not handled:
                prefix.finish(record.offset, (self._stage.quarantine(record, now_ms), None))
                self._became_ready(1)
                continue
            if refusals:
                buried = self._stage.bury_too_large(record, now_ms, told=refusals == 1)
                prefix.finish(record.offset, (buried, None))
                self._became_ready(1)
                continue
            try:
                planned = self._stage.plan(record, now_ms)
            except RegistryUnavailable as error:
                # Neither read nor refused, but waited for: its partition is read again from its
                # committed position, and calls that are open are made again under the same keys.
                _log.warning("%s waits for the schema registry: %s", self._spec.name, error)
                disturbed.add(record.partition)
                self._stop.wait(REGISTRY_PAUSE_S)
                continue
            if isinstance(planned, Call):
                planned.token = (prefix, record)
                calls.append(planned)
            else:
                prefix.finish(record.offset, (planned, None))
                self._became_ready(1)
        for partition in disturbed:
            self._seek_back(partition)
        refused = self._stage.take_refused()
        if refused:
            self._calls.forget(refused)
        if calls:
            failpoints.hit("gateway.taken")
            self._calls.start(calls)
        return bool(messages)

    def _bring(self) -> list[Any]:
        """What lies before a batch that the client is not given, or what stands for that one."""
        self._heavy.look_on(self._committed(), self._stop.is_set)
        for tp, offset in self._heavy.take_moved():
            self._consumer.seek(TopicPartition(*tp, offset))
        return self._heavy.bring(lambda tp: tp[1] in self._bringing)

    def _committed(self) -> dict[TopicPartitionKey, int]:
        return {(self._stage.topic, p): offset for p, offset in self._positions.items()}

    def _pass_over_silent(self) -> list[UnreadableBatch]:
        """What stands for batches of which the client brings nothing, with it put behind them."""
        if not self._standstill.is_due:
            return []
        topic = self._stage.topic
        found = self._standstill.take(self._committed(), self._waits_for)
        for each in found:
            tp, position = (topic, each.partition()), each.offset() + 1
            if not self._heavy.go_on(tp, position):
                self._consumer.seek(TopicPartition(*tp, position))
        self._empty.update(self._standstill.take_empty(self._committed()))
        return found

    def _waits_for(self, tp: TopicPartitionKey) -> bool:
        """Whether all that came of a partition is committed, and more may come."""
        partition = tp[1]
        return not (
            partition not in self._fetched | self._bringing
            or self._has_in_hand(tp)
            or (self._heavy.has_ahead(tp) and not self._heavy.is_stuck(tp))
        )

    def _has_in_hand(self, tp: TopicPartitionKey) -> bool:
        """Whether something that came of a partition is not committed."""
        return bool(
            self._prefixes[tp[1]].size
            or self._held.count(tp[1])
            or (self._under_way is not None and tp in self._under_way.offsets)
        )

    def _read(self, messages: list[Any]) -> Iterator[Any]:
        """The records of these messages; one stands for a batch that cannot be unfolded."""
        for message in messages:
            error = message.error()
            if error is None:
                yield message
            elif is_unreadable(error):
                stepped = step_over(self._unreadable, self._consumer, message)
                if stepped is not None:
                    yield stepped

    def _require_awake(self) -> None:
        """Leave if this worker stood still and there is a gateway that takes a repetition twice.

        A frozen worker that wakes reads on before its client hears that the group has expelled it,
        and what it reads then its successor has read and sent as well.
        """
        now_s = self._monotonic_s()
        stood_s, self._awake_s = now_s - self._awake_s, now_s
        if self._stage.unrepeatable and stood_s >= STOOD_STILL_S_MAX:
            raise LaneFatal(
                f"stood still for {stood_s:.0f} s: another worker may have the requests, and a "
                "gateway without idempotency keys would take them twice"
            )

    def _collect(self) -> None:
        """Take ended calls back into the prefix they belong to. Of one whose prefix is no more only
        a success is told, as a late word."""
        ended = self._calls.take_finished()
        if not ended:
            return
        failpoints.hit("gateway.called")
        now_ms = int(self._time_s() * 1000)
        result = self._stage.result
        ready = 0
        for call in ended:
            prefix, record = call.token
            answer = call.answer
            if answer is None:
                continue
            is_late = call.is_late
            if not is_late and not self._has(record.partition, prefix):
                # Its request is read again, here or elsewhere, and that call may hear nothing.
                if not tells_success(answer):
                    continue
                is_late, answer = True, replace(answer, heard=LATE_ANSWER)
            said = result(record, call.request, answer, now_ms, read_before=call.read_before)
            if is_late:
                self._words.add(said)
                continue
            outputs = [said]
            if call.contradiction is not None:
                # Behind it, in one partition and one transaction: nobody reads it first.
                outputs.append(result(record, call.request, call.contradiction, now_ms))
            prefix.finish(record.offset, (outputs, call))
            ready += 1
        if ready:
            self._became_ready(ready)
        self._metrics.calls_in_flight.set(self._calls.in_flight)

    def _has(self, partition: int, prefix: PartitionPrefix[Finished]) -> bool:
        """Whether what ends in this prefix is still committed, at once or after the rebalance."""
        left = self._left.get(partition)
        return prefix is (self._prefixes.get(partition) if left is None else left[1])

    def _became_ready(self, count: int) -> None:
        self._ready_records += count
        if self._ready_since_s is None:
            self._ready_since_s = self._monotonic_s()

    # Transactions -------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Commit the finished prefix of every partition, up to a batch."""
        batch = Batch(self._metadata, self._monotonic_s())
        room = self._policy.records_max
        topic = self._stage.topic
        for partition, prefix in self._prefixes.items():
            for offset, (outputs, call) in prefix.pop_finished(room - batch.records):
                batch.took(topic, partition, offset)
                batch.outputs.extend(outputs)
                if call is not None and call.answer is not None:
                    batch.aged(call.token[1].timestamp_ms)
                    name = f"{call.request.gateway}|{call.request.kind}|{call.answer.outcome}"
                    batch.notes[("calls", name)] += 1
                    if call.seconds:
                        self._metrics.gateway_call_seconds.labels(
                            call.request.gateway, call.request.kind
                        ).observe(call.seconds)
                elif cause := _cause(outputs):
                    batch.notes[("dead_letters", cause)] += 1
        more = any(prefix.ready for prefix in self._prefixes.values())
        self._ready_since_s = self._monotonic_s() if more else None
        self._ready_records = 1 if more else 0
        if batch.records:
            self._hand_over(batch)

    def _tell_words(self) -> None:
        """Write what was heard too late in a transaction of its own, with the offset of one input
        as it is: an empty list of offsets fences nobody."""
        if not self._words or not self._positions:
            return
        batch = Batch(self._metadata, self._monotonic_s())
        partition = min(self._positions)
        batch.offsets[self._stage.topic, partition] = self._positions[partition]
        self._hand_over(batch)

    def _pass_empty(self) -> None:
        """In a transaction of its own, where nothing else is to be handled. Once: it commits the
        end of those partitions, and writes to none of them."""
        batch = Batch(self._metadata, self._monotonic_s())
        self._take_empty(batch)
        if batch.offsets:
            self._hand_over(batch)

    def _take_empty(self, batch: Batch) -> None:
        for (topic, partition), end in self._empty.items():
            if self._positions[partition] < end:
                batch.passes((topic, partition), end)
        self._empty = {}

    def _hand_over(self, batch: Batch) -> None:
        """To the commit thread, with what was heard too late, and where nothing lies."""
        self._take_empty(batch)
        batch.outputs.extend(self._words.tell())
        self._under_way = batch
        self._submitted_s = self._monotonic_s()
        self._commits.submit(batch.seal())

    def _take_outcome(self, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        batch = self._under_way
        invariant(batch is not None, "an outcome belongs to the transaction under way")
        if batch is None:
            return
        self._under_way = None
        metrics = self._metrics
        metrics.ended(
            STAGE, outcome.value, self._monotonic_s() - self._submitted_s, self._lane.rebuilds
        )
        self._lane.rebuilds = 0
        too_large = self._lane.too_large
        if too_large is not None and too_large >= len(batch.outputs) - self._words.told:
            # No request is to blame for it.
            self._words.refused()
            too_large = None
        self._too_large.ended(batch, outcome, too_large)
        self._words.ended(outcome)
        if outcome is Outcome.ABORTED:
            # Without a record of it there is nothing to read again.
            if batch.records:
                self._rewind()
            return
        for (_, partition), offset in batch.offsets.items():
            if partition in self._positions:
                self._positions[partition] = offset
        if not batch.records:
            return
        self._guard.committed(batch.offsets)
        metrics.committed(STAGE, batch.records, batch.oldest_ms, self._time_s())
        metrics.records.labels(STAGE, self._stage.topic).inc(batch.records)
        for (group, name), count in batch.notes.items():
            if group == "calls":
                metrics.gateway_calls.labels(*name.split("|")).inc(count)
            else:
                metrics.dead_letters.labels(STAGE, name).inc(count)

    def _rewind(self) -> None:
        """Read again from the last committed positions; same keys, so nothing is charged twice."""
        self._metadata = self._consumer.consumer_group_metadata()
        for partition in self._positions:
            self._seek_back(partition)
        self._ready_since_s, self._ready_records = None, 0

    def _seek_back(self, partition: int) -> None:
        self._prefixes[partition] = PartitionPrefix()
        self._held.drop(partition)
        self._unreadable.clear()
        self._damaged.forget((self._stage.topic, partition))
        position = self._positions[partition]
        tp = self._stage.topic, partition
        self._consumer.seek(TopicPartition(*tp, self._heavy.begin(tp, position)))
        if self._heavy.has_ahead(tp):
            self._bringing.discard(partition)
            self._fetch(self._fetched - {partition})

    # The group ----------------------------------------------------------------------------------

    def _assigned(self) -> list[TopicPartition]:
        return [TopicPartition(self._stage.topic, p) for p in self._prefixes]

    def _wanted(self) -> set[int]:
        """What may be fetched. A careful worker takes first what it may have died of: until that is
        done it stays careful, and a backlog before it would grow faster than one call at a time.
        """
        suspected = {
            partition
            for topic, partition, offset in self._guard.suspected()
            if topic == self._stage.topic and offset >= self._positions.get(partition, offset + 1)
        }
        if not self._guard.careful or not suspected:
            return set(self._prefixes)
        return suspected

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """All partitions of this worker from now on; nothing is read before the turn goes on."""
        if self._closing:
            # A join that ends within the close. A client that closes answers no question for its
            # offsets before the time-out.
            return
        left, self._left = self._left, {}
        wanted = [(tp.topic, tp.partition) for tp in partitions]
        try:
            positions = positions_of_lanes(
                consumer, wanted, admin=self._admin, catalogue=self._catalogue,
                bootstrap_servers=self._spec.bootstrap_servers, stopped=self._stop.is_set,
            )  # fmt: skip
        except StoppedWaiting:
            # Calls that were open over the rebalance are made again by the next owner.
            return
        # Before the client fetches anything of it.
        self._heavy.look(positions, self._stop.is_set)
        if self._stage.unrepeatable and not self._is_member:
            # An elder of the same identity may still live (two machines with one node id). What it
            # sends until it hears of this one lies below the ends that are asked for after that.
            self._outside.sleep(REPLACED_HEARS_S)
        self._is_member = True
        # The wait for stable offsets was no standing still; from here on it would be.
        self._awake_s = self._monotonic_s()
        assigned = []
        unchanged: set[int] = set()
        now_ms = int(self._time_s() * 1000)
        for (topic, partition), position in positions.items():
            self._stage.taken(partition, now_ms)
            if self._stage.unrepeatable:
                _, end = watermarks(
                    consumer,
                    TopicPartition(topic, partition),
                    timeout_s=REBALANCE_WAIT_S,
                    surroundings=self._outside,
                )
                self._stage.assigned(partition, end)
            left_at, prefix = left.get(partition, (None, PartitionPrefix[Finished]()))
            if left_at == position:
                unchanged.add(partition)
            elif left_at is not None:
                # Another worker has committed meanwhile.
                prefix = PartitionPrefix()
            self._prefixes[partition] = prefix
            self._positions[partition] = position
            # What is committed may lie behind all that was taken, where nothing else does.
            taken = max(position, prefix.next_offset or 0)
            start = self._heavy.begin((topic, partition), taken)
            assigned.append(TopicPartition(topic, partition, start))
        self._calls.keep_only(unchanged)
        consumer.assign(assigned)
        consumer.pause(assigned)
        self._fetched = set()
        self._epoch += 1
        if any(prefix.ready for prefix in self._prefixes.values()):
            self._became_ready(1)
        self._guard.assigned((self._stage.topic, p) for p in self._positions)
        self._take_share()
        # Of this generation, and taken before any record of it: see Work.
        self._metadata = consumer.consumer_group_metadata()

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Commit what is finished in bounded time, then give all back.

        Open calls go on. Most partitions come back with the assignment: one of which nobody has
        committed more meanwhile goes on where it was, and an answer that came in between counts.
        """
        if self._closing:
            # Settled before the close, in which the group's metadata may be gone.
            return
        self._settle()
        if self._ready_since_s is not None:
            self._submit()
        if self._under_way is None:
            self._tell_words()
        self._settle()
        left = {p: (self._positions[p], prefix) for p, prefix in self._prefixes.items()}
        self._leave(consumer)
        self._left = left

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Expelled from the group: another worker may have the requests by now."""
        if self._under_way is not None:
            outcome = self._commits.wait(REBALANCE_WAIT_S)
            if outcome is None:
                raise LaneFatal("a transaction did not end although the partitions were lost")
            self._words.ended(outcome)
            self._under_way = None
        self._leave(consumer)

    def _settle(self) -> None:
        if self._under_way is None:
            return
        outcome = self._commits.wait(REBALANCE_WAIT_S)
        if outcome is None:
            # Not a UserError: a slow broker is no reason for the supervisor to give up.
            raise LaneFatal(
                f"a transaction did not end within {REBALANCE_WAIT_S:.0f} s of a rebalance; the "
                "successor of this process resolves it"
            )
        self._take_outcome(outcome)

    def _leave(self, consumer: Consumer) -> None:
        self._epoch += 1
        self._left = {}
        self._too_large.clear()
        self._unreadable.clear()
        self._damaged.clear()
        self._heavy.clear()
        self._bringing = set()
        self._prefixes.clear()
        self._positions.clear()
        self._fetched = set()
        self._held.clear()
        self._empty = {}
        self._ready_since_s, self._ready_records = None, 0
        consumer.unassign()

    def _take_share(self) -> None:
        """Of what all workers may do at a gateway, as much as this one has of the partitions."""
        self._calls.gate.take_share(len(self._positions) / self._catalogue["orders"].partitions)


def _cause(outputs: list[Outgoing]) -> str | None:
    """The cause of a dead letter; None for the result of a request that was not sent."""
    for name, value in (outputs[0][4] or []) if outputs else []:
        if name == "dlq.cause":
            return value.decode()
    return None
