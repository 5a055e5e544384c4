"""The transactional lane: one producer, one transaction at a time, every end accounted for.

``Lane.run`` carries out one ``Work`` and says whether it is committed or aborted; there is no
third answer. What the client leaves ambiguous is resolved here:

* an EndTxn that did not plainly succeed makes the producer suspect (a late copy could end the next
  transaction of the same epoch), so it is thrown away and initialised anew, which raises the epoch,
  before the next begin;
* whether such a transaction was committed is then read from the group's committed offsets, which
  were part of it; one that moved none of them is called aborted, since its records may be written
  twice and must not be lost;
* a TxnOffsetCommit that the client may have sent twice, and one of a transaction that was aborted,
  makes it suspect as well: a late copy would put the group's offsets to where that one ended, in
  the middle of the next transaction, which then commits them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from pipeline.domain.invariant import invariant
from pipeline.kafka_access import reaching
from pipeline.runtime import failpoints
from pipeline.runtime.client_calls import ClientCalls
from pipeline.runtime.cluster import STABLE_OFFSETS_TIMEOUT_S
from pipeline.runtime.end_txn_watch import EndTxnWatch
from pipeline.runtime.fetching import BATCH_BYTES
from pipeline.runtime.kafka_errors import Course, LaneFatal, course_of, kafka_error
from pipeline.runtime.surroundings import REAL, Surroundings
from pipeline.runtime.work import Outcome, Work

_log = logging.getLogger(__name__)

# A crash stalls read_committed readers until the broker aborts the open transaction; ten seconds
# is the shortest that a slow commit (reconnect back-off, a busy broker) does not run into.
TRANSACTION_TIMEOUT_MS = 10_000
# One retriable call is repeated for at most this long; after it the broker has aborted anyway.
RETRY_S_MAX = 2 * TRANSACTION_TIMEOUT_MS / 1000
INIT_TIMEOUT_S = 30.0
# What the group has committed is asked for as long as a transaction may hold it up, twice.
COMMITTED_S_MAX = 2 * STABLE_OFFSETS_TIMEOUT_S
# librdkafka sends a TxnOffsetCommit again 500 ms after it failed, and not even its log says so: a
# call that was shorter than this cannot hold a second one. A longer one costs the producer.
OFFSETS_PLAIN_S_MAX = 0.4
# Ends whose sign was not seen at all: a client whose log reads differently would run undefended.
UNSEEN_ENDS_MAX = 3
# A report for each record costs as much as the record, so only larger ones have one: smaller ones
# share a batch of at most `batch.size`, which every topic takes unless somebody lowered its limit.
REPORTED_BYTES = 64 * 1024
# What `batch.size` becomes, step by step, when a topic takes no batch that large: of one byte, each
# record is a batch of its own, and one that is refused then is refused for itself.
BATCH_STEPS = (BATCH_BYTES, REPORTED_BYTES, 1)


class Undefended(Exception):
    """The sign of an ambiguous end cannot be read with this client library: refuse to run."""


class CommittedOffsets(Protocol):
    """Answers the group's stable committed offset of each input partition asked about."""

    def __call__(self, partitions: list[tuple[str, int]]) -> Mapping[tuple[str, int], int]: ...


def producer_config(bootstrap_servers: str, transactional_id: str) -> dict[str, Any]:
    """The settings of a lane's producer; each that is not a default has its reason."""
    return {
        **reaching(bootstrap_servers),
        "transactional.id": transactional_id,
        "client.id": transactional_id,
        "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
        # Has to be no longer than the transaction's time-out plus 100 ms.
        "socket.timeout.ms": TRANSACTION_TIMEOUT_MS,
        # librdkafka's own default puts keys into other partitions than every Java client.
        "partitioner": "murmur2_random",
        "acks": "all",
        "compression.type": "lz4",
        "linger.ms": 5,
        "batch.num.messages": 10_000,
        "batch.size": BATCH_BYTES,
        # Dead letters carry whole inputs of up to 8 MiB and their headers.
        "message.max.bytes": 16 * 1024 * 1024,
        "queue.buffering.max.messages": 500_000,
        "queue.buffering.max.kbytes": 512 * 1024,
        # The AddPartitions after a commit may meet CONCURRENT_TRANSACTIONS: ask again soon.
        "retry.backoff.ms": 5,
        "retry.backoff.max.ms": 20,
        # A lost connection during a commit once stretched it to 9.4 s with the default of 10 s.
        "reconnect.backoff.ms": 20,
        "reconnect.backoff.max.ms": 500,
        # The end of every transaction is read from this log, see end_txn_watch.
        "debug": "eos",
    }


class Lane:
    """One transactional producer and the transactions it carries out, strictly in turn.

    Not thread-safe: one thread calls ``run`` at a time. ``stage`` names the failpoints
    (``payments.begun``). ``committed_offsets`` is asked after an ambiguous end only.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        stage: str,
        committed_offsets: CommittedOffsets,
        make_producer: Callable[..., Any] | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._config = dict(config)
        self._stage = stage
        self._committed_offsets = committed_offsets
        self._outside = surroundings
        self._make_producer = make_producer or surroundings.producer
        self._watch = EndTxnWatch()
        self.calls = ClientCalls(surroundings.monotonic_s)
        self._producer: Any = None
        self._suspect = False
        self._unseen_ends = 0
        self.rebuilds = 0
        self.ambiguous_ends = 0
        # Of the last transaction: the index of an output that was too large for client or topic.
        self.too_large: int | None = None
        # Whether the broker refused a batch of several for its size, and which step that led to.
        self._batch_refused = False
        self._batch_step = 0
        # How long the last one took, from the old producer's end to the new one's first epoch.
        self.rebuild_s_last = 0.0

    def open(self) -> None:
        """Fence every earlier producer of this transactional id and be ready to begin."""
        self._build()

    def close(self) -> None:
        """Let the producer go. A transaction left open is aborted by the next producer of this
        transactional id, or by the broker after its time-out."""
        self._producer = None

    def run(self, work: Work) -> Outcome:
        """Carry out one transaction, from begin to a known end.

        Raises LaneFatal when the producer is fenced or beyond repair, Undefended when the ends of
        transactions cannot be observed. On ABORTED the caller rewinds its inputs to where the
        batch began; nothing of the work is visible to a read_committed reader. ``too_large`` names
        the output that was refused for its size, if that was why; where a batch of several was, no
        output is to blame, and the next transaction goes in smaller ones. What a work that moves no
        offset wrote may be visible all the same, where its end was not plain.
        """
        invariant(bool(work.offsets), "an empty list of offsets fences nobody")
        if self._suspect:
            self._rebuild()
        watch = self._watch
        watch.begin()
        self.too_large = None
        self._batch_refused = False
        stage = self._stage
        end_asked = False
        try:
            self._call(self._producer.begin_transaction)
            failpoints.hit(f"{stage}.begun")
            self._produce(work)
            failpoints.hit(f"{stage}.produced")
            self._send_offsets(work)
            failpoints.hit(f"{stage}.offsets_sent")
            end_asked = True
            self._call(self._producer.commit_transaction, TRANSACTION_TIMEOUT_MS / 1000)
        except _MustAbort as error:
            _log.warning("transaction aborted: %s", error)
            outcome = self._abort(work, end_asked=end_asked)
            if outcome is Outcome.ABORTED and self.too_large is None:
                self._batch_refused = self._batch_refused or error.too_large
                self._make_smaller_batches()
            return outcome
        self._producer.poll(0)
        failpoints.hit(f"{stage}.committed")
        if watch.ended_plainly:
            self._unseen_ends = 0
            return Outcome.COMMITTED
        self._require_sight()
        return self._resolve(work)

    def _send_offsets(self, work: Work) -> None:
        offsets = [TopicPartition(t, p, o) for (t, p), o in work.offsets.items()]
        begun_s = self._outside.monotonic_s()
        self._call(
            self._producer.send_offsets_to_transaction,
            offsets,
            work.group_metadata,
            TRANSACTION_TIMEOUT_MS / 1000,
        )
        if self._outside.monotonic_s() - begun_s > OFFSETS_PLAIN_S_MAX:
            # This transaction is whole; the next one is another producer's.
            self._suspect = True

    def _produce(self, work: Work) -> None:
        producer = self._producer
        produce = producer.produce
        tracked = work.tracked
        # In batches of one byte, whatever is refused is reported: 0 for all that has a value.
        reported = min(REPORTED_BYTES, BATCH_STEPS[self._batch_step] - 1)
        half = len(work.outputs) // 2
        for index, (topic, partition, key, value, headers) in enumerate(work.outputs):
            if index == half:
                failpoints.hit(f"{self._stage}.half_produced")
            more: dict[str, Any] = {}
            if headers is not None:
                more["headers"] = headers
            size = 0 if value is None else len(value)
            if index in tracked or size > reported:
                more["on_delivery"] = self._reporter(index, size, tracked.get(index))
            while True:
                try:
                    produce(topic, value, key, partition, **more)
                    break
                except BufferError:
                    producer.poll(0.05)
                except KafkaException as error:
                    cause = kafka_error(error)
                    if _is_too_large(cause):
                        self.too_large = index
                        raise _MustAbort(f"{len(value or b'')} bytes for {topic}") from error
                    if cause is not None and cause.code() == KafkaError._STATE:
                        # The broker has refused an earlier record meanwhile, and the client takes
                        # no other. Any call but this one says why.
                        self._send_offsets(work)
                        raise _MustAbort(str(cause)) from error
                    self._raise_course(error)

    def _reporter(
        self, index: int, size: int, report: Callable[[int], None] | None
    ) -> Callable[..., None]:
        # A record that is larger than `batch.size` goes alone, so it is refused for itself.
        alone = size > BATCH_STEPS[self._batch_step] or BATCH_STEPS[self._batch_step] == 1

        def on_delivery(error: Any, message: Any) -> None:
            # Reports after an abort carry _PURGE errors: the record is not in the log, nothing to
            # say.
            if error is None:
                if report is not None:
                    report(message.offset())
            elif _is_too_large(error):
                if alone:
                    self.too_large = index
                else:
                    self._batch_refused = True

        return on_delivery

    def _call(self, call: Callable[..., Any], *args: Any) -> None:
        deadline = self._outside.monotonic_s() + RETRY_S_MAX
        while True:
            try:
                with self.calls.calling(call.__name__, TRANSACTION_TIMEOUT_MS / 1000):
                    call(*args)
                return
            except KafkaException as error:
                self._raise_course(error, deadline)

    def _raise_course(self, error: KafkaException, deadline: float | None = None) -> None:
        """Return only when the same call shall be made again."""
        cause = kafka_error(error)
        if cause is None:
            raise LaneFatal(str(error)) from error
        course = course_of(cause)
        if course is Course.ABORT:
            raise _MustAbort(str(cause), too_large=_is_too_large(cause)) from error
        if course is Course.LEAVE:
            raise LaneFatal(f"{cause.name()}: {cause.str()}") from error
        if deadline is not None and self._outside.monotonic_s() > deadline:
            raise LaneFatal(f"still {cause.name()} after {RETRY_S_MAX:.0f} s") from error
        self._outside.sleep(0.005)

    def _abort(self, work: Work, *, end_asked: bool) -> Outcome:
        """``end_asked``: its commit was asked for before, and may be on its way."""
        try:
            self._call(self._producer.abort_transaction, TRANSACTION_TIMEOUT_MS / 1000)
        except _MustAbort as error:
            raise LaneFatal(f"abort failed: {error}") from error
        self._producer.poll(0)
        # A transaction that had not reached the broker is aborted without an EndTxn.
        if end_asked:
            # The commit may have been decided before the abort was asked for. The client does not
            # even log the answer to a commit that had failed by itself meanwhile.
            return self._resolve(work)
        # Nobody asked for a commit, so the offsets are not asked: in a zombie's place its successor
        # has moved them on. What the abort overtook may still arrive, the offsets above all.
        if self._watch.answers and not self._watch.ended_plainly:
            self.ambiguous_ends += 1
        self._suspect = True
        return Outcome.ABORTED

    def _make_smaller_batches(self) -> None:
        """After a batch of several records was refused for its size, which nobody's input is to
        blame for: from the next transaction on, for as long as this process lives."""
        if not self._batch_refused or self._batch_step == len(BATCH_STEPS) - 1:
            return
        self._batch_step += 1
        self._config["batch.size"] = BATCH_STEPS[self._batch_step]
        self._suspect = True
        _log.warning(
            "a topic takes no batch of %d bytes: writing in batches of %d, which is slower. "
            "Somebody lowered its max.message.bytes; see `paystream topics plan`",
            BATCH_STEPS[self._batch_step - 1],
            BATCH_STEPS[self._batch_step],
        )

    def _require_sight(self) -> None:
        """Undefended after a few ends without a sign."""
        if self._watch.answers:
            self._unseen_ends = 0
            return
        self._unseen_ends += 1
        if self._unseen_ends >= UNSEEN_ENDS_MAX:
            raise Undefended(
                f"{self._unseen_ends} transactions ended without the EndTxn line that "
                "debug=eos prints: this librdkafka logs differently, and a lost answer could "
                "tear a transaction unseen; use the librdkafka this version was tested with"
            )

    def _resolve(self, work: Work) -> Outcome:
        """An end that was not plain: rebuild, then read what became of the transaction."""
        answers = list(self._watch.answers)
        self.ambiguous_ends += 1
        self._rebuild()
        outcome = self._outcome_by_offsets(work) if work.moves else Outcome.ABORTED
        if outcome is Outcome.COMMITTED and not self._vouched_for(work):
            raise LaneFatal(
                "the end of a transaction was ambiguous, and the group knows this worker no more: "
                "its successor may have moved the offsets that would tell"
            )
        _log.warning(
            "the end of a transaction was ambiguous (EndTxn answered %s): producer rebuilt, the "
            "transaction is %s by %s",
            ", ".join(answers) or "nothing that was seen",
            outcome.value,
            "its committed offsets" if work.moves else "rule, since it moved no offset",
        )
        return outcome

    def _outcome_by_offsets(self, work: Work) -> Outcome:
        with self.calls.calling("committed", COMMITTED_S_MAX):
            committed = self._committed_offsets(list(work.offsets))
        reached = [committed.get(tp, -1) >= offset for tp, offset in work.offsets.items()]
        return Outcome.COMMITTED if all(reached) else Outcome.ABORTED

    def _vouched_for(self, work: Work) -> bool:
        """Whether the group still takes the work's metadata, so that nobody but this worker can
        have committed offsets of its partitions. Asked by a transaction that is taken back."""
        self._watch.begin()
        vouched = True
        try:
            self._call(self._producer.begin_transaction)
            self._send_offsets(work)
        except _MustAbort:
            vouched = False
        try:
            self._call(self._producer.abort_transaction, TRANSACTION_TIMEOUT_MS / 1000)
        except _MustAbort as error:
            raise LaneFatal(f"abort failed: {error}") from error
        self._producer.poll(0)
        # Its offsets were answered at once (a late answer has made the producer suspect already),
        # so the abort has overtaken nothing; one that was itself not plain costs it all the same.
        if self._watch.answers and not self._watch.ended_plainly:
            self._suspect = True
        return vouched

    def _rebuild(self) -> None:
        begun_s = self._outside.monotonic_s()
        self.rebuilds += 1
        self._producer = None
        self._build()
        self.rebuild_s_last = self._outside.monotonic_s() - begun_s

    def _build(self) -> None:
        self._suspect = True
        producer = self._make_producer(self._config, logger=self._watch)
        deadline = self._outside.monotonic_s() + INIT_TIMEOUT_S
        while True:
            try:
                with self.calls.calling("init_transactions", INIT_TIMEOUT_S):
                    producer.init_transactions(INIT_TIMEOUT_S)
                break
            except KafkaException as error:
                self._raise_course(error, deadline)
        self._producer = producer
        self._suspect = False


class _MustAbort(Exception):
    """The transaction has to be aborted; the producer stays usable. ``too_large``: the broker has
    refused something for its size."""

    def __init__(self, what: str, *, too_large: bool = False) -> None:
        super().__init__(what)
        self.too_large = too_large


def _is_too_large(error: KafkaError | None) -> bool:
    return error is not None and error.code() == KafkaError.MSG_SIZE_TOO_LARGE
