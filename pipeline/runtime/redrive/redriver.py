"""Does something about dead letters, once: the copy, its marker and its entry in one transaction.

There is one transactional id for each topic prefix, so whoever opens a ``Redriver`` fences the
one before: a run that was killed, frozen or forgotten cannot commit any more. Only after that the
markers are read, so what was done is known, whoever did it. Two runs at once come to this: the
later one goes on, the earlier one ends and says so, and no letter is taken twice.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, Producer

from pipeline.domain.model import AuditEntry, DeadLetterMarker
from pipeline.domain.records import to_record
from pipeline.errors import UserError
from pipeline.runtime import failpoints
from pipeline.runtime.end_txn_watch import EndTxnWatch
from pipeline.runtime.kafka_errors import Course, course_of, kafka_error
from pipeline.runtime.lane import (
    INIT_TIMEOUT_S,
    RETRY_S_MAX,
    TRANSACTION_TIMEOUT_MS,
    producer_config,
)
from pipeline.runtime.redrive.letter import Headers, Letter, Whole, looks_masked, place_text
from pipeline.runtime.redrive.letter_log import LetterLog
from pipeline.runtime.redrive.plan import (
    DISCARDED,
    REDRIVEN,
    Limits,
    Markers,
    Plan,
    closed_otherwise,
)
from schemas.codec import Codec
from topics.catalogue import Catalogue

# Letters of one transaction: few enough that the rate is even within a second and an entry in the
# audit stays readable, many enough that the commit (some 10 ms) does not count.
BATCH_LETTERS_MAX: Final = 200
BATCHES_PER_S: Final = 5
# What a batch holds in memory; a letter of more than an ordinary record goes by itself, so that
# the one which does not fit its topic is known by name.
BATCH_BYTES_MAX: Final = 8 * 1024 * 1024
ALONE_BYTES: Final = 512 * 1024
# An aborted transaction is done again; what is aborted this often in a row will not be committed.
ABORTS_MAX: Final = 5
# A joined input may be many times its topic's limit before it is compressed.
MESSAGE_BYTES_MAX: Final = 1_000_000_000

# Derived ids: an act that is written twice is one entry.
_ENTRIES: Final = uuid.UUID("6f1c1d3e-5f0b-5a7e-9d55-2c1f6a0f4d21")

REDRIVE_ACTION: Final = "dead_letters_redrive"
DISCARD_ACTION: Final = "dead_letters_discard"
SUBJECT: Final = "dead-letters"


class TakenOver(UserError):
    """A later run has fenced this one. What it had committed stays; nothing is done twice."""


@dataclass(frozen=True)
class Act:
    """Who does it and why, for the audit. ``chosen`` says how the letters were selected."""

    actor: str
    reason: str
    chosen: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Done:
    """What a run has done. ``already``: somebody else did meanwhile. ``stopped``: it was asked to
    end before all was done."""

    letters: int = 0
    already: int = 0
    refused: dict[str, list[Letter]] = field(default_factory=dict)
    stopped: bool = False


class Pace:
    """Spreads letters evenly over time; ``None`` lets them run."""

    def __init__(
        self,
        per_s: float | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_s = per_s
        self._clock, self._sleep = clock, sleep
        self._began_s: float | None = None
        self._done = 0

    @property
    def batch_letters(self) -> int:
        if self._per_s is None:
            return BATCH_LETTERS_MAX
        return max(1, min(BATCH_LETTERS_MAX, int(self._per_s / BATCHES_PER_S)))

    def wait_for(self, letters: int, stopped: Callable[[], bool]) -> None:
        """Until so many more letters may be sent; in slices, so that a stop is heard."""
        if self._per_s is None:
            return
        now_s = self._clock()
        if self._began_s is None:
            self._began_s = now_s
        due_s = self._began_s + self._done / self._per_s
        self._done += letters
        while now_s < due_s and not stopped():
            self._sleep(min(0.2, due_s - now_s))
            now_s = self._clock()


class Redriver:
    """A context manager: opened, it is the only one of its prefix that can commit."""

    def __init__(
        self,
        bootstrap_servers: str,
        catalogue: Catalogue,
        codec: Codec,
        log: LetterLog,
        markers: Markers,
        limits: Limits,
        *,
        clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        make_producer: Callable[..., Any] = Producer,
    ) -> None:
        self._servers = bootstrap_servers
        self._log = log
        self._markers = markers
        self._limits = limits
        self._clock_ms = clock_ms
        self._make_producer = make_producer
        self._config = {
            **producer_config(
                bootstrap_servers, f"paystream/{catalogue.settings.prefix}/dead-letters"
            ),
            "message.max.bytes": MESSAGE_BYTES_MAX,
            # What fitted its topic came with a codec we do not know; this one packs best.
            "compression.type": "zstd",
            "error_cb": lambda error: None,
        }
        self._markers_topic = catalogue.name("dead-letter-markers")
        self._audit_topic = catalogue.name("audit")
        self._encode_marker = codec.encoder("dead-letter-marker")
        self._encode_entry = codec.encoder("audit-entry")
        self._prefix = catalogue.settings.prefix
        self._watch = EndTxnWatch()
        self._producer: Any = None

    def __enter__(self) -> Redriver:
        self._build()
        return self

    def __exit__(self, *_: object) -> None:
        # What is open is aborted by the next run's start, or by the broker after its time-out.
        self._producer = None

    def run(
        self,
        plan: Plan,
        act: Act,
        *,
        action: str,
        pace: Pace | None = None,
        stopped: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Done], None] = lambda done: None,
    ) -> Done:
        """Redrive or discard what the plan says is to be done; ends early when ``stopped``."""
        done = Done()
        pace = pace or Pace(None)
        letters = sorted(plan.todo, key=lambda letter: letter.place)
        wholes: Iterable[Whole] = (
            self._log.wholes(letters)
            if action == REDRIVE_ACTION
            else (Whole(letter, None, []) for letter in letters)
        )
        batch: list[Whole] = []
        size = 0
        for whole in wholes:
            if stopped():
                break
            weight = len(whole.value or b"")
            if self._still_masked(whole, action):
                done.refused.setdefault("bytes_must_be_the_original", []).append(whole.letter)
                continue
            if batch and (
                len(batch) >= pace.batch_letters
                or size + weight > BATCH_BYTES_MAX
                or weight > ALONE_BYTES
            ):
                self._carry_out(batch, act, action, pace, stopped, done)
                on_progress(done)
                batch, size = [], 0
            batch.append(whole)
            size += weight
            if weight > ALONE_BYTES:
                self._carry_out(batch, act, action, pace, stopped, done)
                on_progress(done)
                batch, size = [], 0
        if batch:
            self._carry_out(batch, act, action, pace, stopped, done)
            on_progress(done)
        done.stopped = stopped()
        return done

    def _still_masked(self, whole: Whole, action: str) -> bool:
        # Letters of before `dlq.masked` are looked at piece by piece; a number may lie across two.
        letter = whole.letter
        return (
            action == REDRIVE_ACTION
            and not self._limits.masked_too
            and len(letter.pieces) > 1
            and looks_masked(whole.value)
        )

    def _carry_out(
        self,
        batch: list[Whole],
        act: Act,
        action: str,
        pace: Pace,
        stopped: Callable[[], bool],
        done: Done,
    ) -> None:
        """One batch to its known end. A letter that somebody closed meanwhile is left out."""
        pace.wait_for(len(batch), stopped)
        if stopped():
            return
        for _ in range(ABORTS_MAX):
            fresh = [whole for whole in batch if self._markers.of(whole.letter) is None]
            closed = [whole for whole in batch if self._markers.of(whole.letter) is not None]
            if not fresh:
                self._count_closed(batch, action, done)
                return
            outcome = self._transaction(fresh, act, action)
            if outcome is None:
                done.letters += len(fresh)
                self._count_closed(closed, action, done)
                return
            if outcome == "too_large":
                if len(fresh) == 1:
                    done.refused.setdefault("record_must_fit_its_topic", []).append(fresh[0].letter)
                    self._count_closed(closed, action, done)
                    return
                for whole in fresh:
                    self._carry_out([whole], act, action, Pace(None), stopped, done)
                self._count_closed(closed, action, done)
                return
        raise UserError(
            f"Kafka at {self._servers} aborted the same transaction {ABORTS_MAX} times; "
            f"{done.letters} letters are done. Run the command again when the cluster is well."
        )

    def _count_closed(self, closed: Sequence[Whole], action: str, done: Done) -> None:
        """What somebody did meanwhile: the same, or the other, which is no success of this run."""
        wanted = REDRIVEN if action == REDRIVE_ACTION else DISCARDED
        for whole in closed:
            rule = closed_otherwise(whole.letter, self._markers, wanted)
            if rule is None:
                done.already += 1
            else:
                done.refused.setdefault(rule, []).append(whole.letter)

    def _transaction(self, batch: Sequence[Whole], act: Act, action: str) -> str | None:
        """Begin to known end. None: committed. Else why not: ``again`` or ``too_large``."""
        producer, watch = self._producer, self._watch
        watch.begin()
        failed: list[KafkaError] = []
        end_asked = False

        def delivered(error: KafkaError | None, _message: object) -> None:
            if error is not None:
                failed.append(error)

        markers, records = self._records(batch, act, action)
        try:
            self._call(producer.begin_transaction)
            failpoints.hit("redrive.begun")
            for topic, partition, key, value, headers in records:
                self._produce(topic, partition, key, value, headers, delivered)
            failpoints.hit("redrive.half_produced")
            for marker in markers:
                self._produce(
                    self._markers_topic,
                    marker.letter_partition,
                    place_text((marker.letter_partition, marker.letter_offset)).encode(),
                    self._encode_marker(to_record(marker)),
                    None,
                    delivered,
                )
            # So that an error of one record is known for what it is before the end is asked for.
            self._call(producer.flush, TRANSACTION_TIMEOUT_MS / 1000)
            if failed:
                raise _MustAbort(failed[0])
            failpoints.hit("redrive.produced")
            end_asked = True
            self._call(producer.commit_transaction, TRANSACTION_TIMEOUT_MS / 1000)
        except _MustAbort as error:
            return self._abort(error, failed, end_asked=end_asked)
        self._call(producer.poll, 0)
        failpoints.hit("redrive.committed")
        if watch.ended_plainly:
            for marker in markers:
                self._markers.take(marker)
            return None
        return self._resolve(batch)

    def _records(
        self, batch: Sequence[Whole], act: Act, action: str
    ) -> tuple[list[DeadLetterMarker], list[tuple[str, int, bytes | None, bytes | None, Any]]]:
        now_ms = self._clock_ms()
        names = [whole.letter.name for whole in batch]
        entry = AuditEntry(
            entry_id=str(
                uuid.uuid5(_ENTRIES, json.dumps([self._prefix, action, names], sort_keys=True))
            ),
            actor=act.actor,
            action=action,
            subject=SUBJECT,
            reason=act.reason,
            detail=json.dumps({"letters": names, "chosen_by": dict(act.chosen)}),
            occurred_at_ms=now_ms,
        )
        markers = []
        records: list[tuple[str, int, bytes | None, bytes | None, Any]] = []
        for whole in batch:
            letter = whole.letter
            first, redrives = self._markers.history(letter)
            redriven = action == REDRIVE_ACTION
            if redriven:
                redrives += 1
                headers = [*whole.headers, *redrive_headers(letter, first, redrives)]
                records.append(
                    (letter.topic, letter.source_partition, letter.key, whole.value, headers)
                )
            markers.append(
                DeadLetterMarker(
                    letter_partition=letter.partition,
                    letter_offset=letter.offset,
                    state=REDRIVEN if redriven else DISCARDED,
                    source_topic=letter.topic,
                    source_partition=letter.source_partition,
                    source_offset=letter.source_offset,
                    first_partition=first[0],
                    first_offset=first[1],
                    redrives=redrives,
                    audit_entry_id=entry.entry_id,
                    occurred_at_ms=now_ms,
                )
            )
        records.append(
            (
                self._audit_topic,
                -1,
                SUBJECT.encode(),
                self._encode_entry(to_record(entry)),
                None,
            )
        )
        return markers, records

    # The producer ---------------------------------------------------------------------------------

    def _produce(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None,
        delivered: Callable[..., None],
    ) -> None:
        more: dict[str, Any] = {} if headers is None else {"headers": headers}
        while True:
            try:
                self._producer.produce(topic, value, key, partition, on_delivery=delivered, **more)
                return
            except BufferError:
                self._call(self._producer.poll, 0.05)
            except (KafkaException, SystemError) as error:
                cause = _told(error)
                if cause is not None and cause.code() == KafkaError.MSG_SIZE_TOO_LARGE:
                    raise _MustAbort(cause) from error
                self._raise_course(error)

    def _call(self, call: Callable[..., Any], *args: Any) -> None:
        deadline = time.monotonic() + RETRY_S_MAX
        while True:
            try:
                call(*args)
                return
            except (KafkaException, SystemError) as error:
                self._raise_course(error, deadline)

    def _raise_course(self, error: Exception, deadline: float | None = None) -> None:
        """Return only when the same call shall be made again."""
        cause = _told(error)
        if cause is None:
            raise self._away(str(error)) from error
        course = course_of(cause)
        if course is Course.ABORT:
            raise _MustAbort(cause) from error
        if course is Course.LEAVE:
            if cause.code() in _FENCED:
                raise TakenOver(
                    "Another `paystream dead-letters` has taken over, so this one ends. What it "
                    "had done stays, nothing is done twice; `paystream dead-letters list` shows "
                    "what is left."
                ) from error
            raise self._away(f"{cause.name()}: {cause.str()}") from error
        if deadline is not None and time.monotonic() > deadline:
            raise self._away(f"still {cause.name()} after {RETRY_S_MAX:.0f} s") from error
        time.sleep(0.005)

    def _abort(self, error: _MustAbort, failed: list[KafkaError], *, end_asked: bool) -> str:
        try:
            self._call(self._producer.abort_transaction, TRANSACTION_TIMEOUT_MS / 1000)
        except _MustAbort as again:
            raise self._away(f"abort failed: {again}") from error
        self._call(self._producer.poll, 0)
        codes = {error.cause.code(), *(each.code() for each in failed)}
        if end_asked or (self._watch.answers and not self._watch.ended_plainly):
            # A commit may have been decided before the abort was asked for: the markers tell.
            self._build()
        return "too_large" if KafkaError.MSG_SIZE_TOO_LARGE in codes else "again"

    def _resolve(self, batch: Sequence[Whole]) -> str | None:
        """An end that was not plain: a late copy of it could end the next transaction, so the
        producer is built anew; what became of this one is read from its markers."""
        self._build()
        closed = [self._markers.of(whole.letter) is not None for whole in batch]
        return None if all(closed) else "again"

    def _build(self) -> None:
        """Fence every earlier producer, then learn what was done."""
        self._producer = None
        producer = self._make_producer(self._config, logger=self._watch)
        deadline = time.monotonic() + INIT_TIMEOUT_S
        while True:
            try:
                producer.init_transactions(INIT_TIMEOUT_S)
                break
            except (KafkaException, SystemError) as error:
                self._raise_course(error, deadline)
        self._producer = producer
        self._log.refresh(self._markers)

    def _away(self, what: str) -> UserError:
        return UserError(
            f"Kafka at {self._servers} does not take the transaction ({what}). What was committed "
            "stays; run the command again for the rest."
        )


def redrive_headers(letter: Letter, first: tuple[int, int], redrives: int) -> Headers:
    """What a redriven record says of itself; see pipeline.runtime.dead_letters."""
    return [
        ("redrive.letter", letter.name.encode()),
        ("redrive.offset", str(letter.source_offset).encode()),
        ("redrive.count", str(redrives).encode()),
        ("redrive.first", place_text(first).encode()),
        ("redrive.first_ms", str(letter.first_ms).encode()),
    ]


def _told(error: BaseException | None) -> KafkaError | None:
    """The client's error. When a fatal one comes before a line of its log, the client calls the
    logger with the exception set, and Python wraps that in a SystemError."""
    while isinstance(error, SystemError):
        error = error.__cause__
    return None if error is None else kafka_error(error)


_FENCED: Final = {
    KafkaError._FENCED,
    KafkaError.PRODUCER_FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
}


class _MustAbort(Exception):
    """The transaction has to be aborted; the producer stays usable."""

    def __init__(self, cause: KafkaError) -> None:
        super().__init__(str(cause))
        self.cause = cause
