"""Bringing a table partition up to what is committed, before its inputs are read.

Commit markers reach the offsets topic and the table's topic independently. A worker that trusted
the offsets and read the table only up to its last stable offset could miss the newest snapshots of
payments whose inputs count as processed. So the order is fixed: the group's committed offsets
first (by the caller), then the end of the table partition by read_uncommitted, then a
read_committed read up to *that* end, waiting for transactions that are still open at it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from confluent_kafka import (
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from pipeline.batches.unreadable import UNFOLDED_BYTES_MAX, is_unreadable
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.runtime import failpoints
from pipeline.runtime.kafka_errors import LaneFatal
from pipeline.runtime.partition_offsets import list_offsets, watermarks
from pipeline.runtime.surroundings import REAL, Surroundings
from pipeline.runtime.table import Table
from pipeline.runtime.table_store import Checkpoint

_log = logging.getLogger(__name__)

LIST_OFFSETS_TIMEOUT_S = 30.0
ASK_AGAIN_S = 0.5
# In the line of a log that names where a restoration stands.
WAITS_FOR_OPEN = "waits for a transaction that is still open at"


def reader_config(bootstrap_servers: str) -> dict[str, Any]:
    """The settings of the consumer that reads a table's topic."""
    return {
        **reaching(bootstrap_servers),
        # Without a line for each failed connection.
        "log_level": 2,
        # Never used to commit: positions come from the checkpoints.
        "group.id": "paystream-restore-unused",
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
        "auto.offset.reset": "error",
        # Reached even when only control records are left before the end.
        "enable.partition.eof": True,
        "fetch.wait.max.ms": 50,
        "queued.min.messages": 100_000,
        "receive.message.max.bytes": UNFOLDED_BYTES_MAX,
        "check.crcs": True,
    }


@dataclass(frozen=True)
class RestorePlan:
    """Where to read a partition from, up to where, and whether the cache is void."""

    partition: int
    wipe: bool
    start: int
    end: int
    why: str


def plan_restore(
    partition: int,
    checkpoint: Checkpoint | None,
    *,
    cluster_id: str,
    topic_id: str,
    low: int,
    end: int,
    now_ms: int,
    delete_retention_ms: int,
) -> RestorePlan:
    """Decide, without I/O, whether the cache may be kept and from where it catches up.

    A checkpoint older than the topic's delete retention is thrown away: a tombstone written after
    it may already have been compacted away, and the cache would keep a deleted payment for ever.
    """

    def anew(why: str) -> RestorePlan:
        return RestorePlan(partition, True, low, end, why)

    if checkpoint is None:
        return anew("no checkpoint")
    if (checkpoint.cluster_id, checkpoint.topic_id) != (cluster_id, topic_id):
        return anew("another cluster or a recreated topic")
    if now_ms - checkpoint.saved_at_ms >= delete_retention_ms:
        return anew("checkpoint older than the delete retention")
    if checkpoint.offset > end:
        return anew("checkpoint beyond the end of the log")
    if checkpoint.offset < low:
        return anew("records after the checkpoint were deleted")
    return RestorePlan(partition, False, checkpoint.offset, end, "catch up")


def read_uncommitted_ends(
    admin: AdminClient, topic: str, partitions: Iterable[int], surroundings: Surroundings = REAL
) -> dict[int, tuple[int, int]]:
    """(low, end) of each partition, open transactions included."""
    asked = [TopicPartition(topic, p) for p in partitions]

    def found(spec: OffsetSpec) -> dict[tuple[str, int], int]:
        return list_offsets(
            admin,
            dict.fromkeys(asked, spec),
            timeout_s=LIST_OFFSETS_TIMEOUT_S,
            patience_s=LIST_OFFSETS_TIMEOUT_S,
            surroundings=surroundings,
        )

    lows = found(OffsetSpec.earliest())  # type: ignore[no-untyped-call]
    ends = found(OffsetSpec.latest())  # type: ignore[no-untyped-call]
    return {place[1]: (lows[place], end) for place, end in ends.items()}


class Restorer:
    """Reads the table partitions of one assignment, a slice at a time.

    ``begin`` is called after the committed offsets are known. ``step`` returns True when every
    partition is restored; between steps the worker serves its consumer group. ``records_read`` is
    the number of records taken from the topic, for metrics and tests.
    """

    def __init__(
        self,
        table: Table[Any],
        *,
        stage: str,
        topic: str,
        bootstrap_servers: str,
        admin: AdminClient,
        cluster_id: str,
        topic_id: str,
        delete_retention_ms: int,
        now_ms: Callable[[], int] | None = None,
        surroundings: Surroundings = REAL,
    ) -> None:
        self._table = table
        self._stage = stage
        self._topic = topic
        self._bootstrap_servers = bootstrap_servers
        self._admin = admin
        self._cluster_id = cluster_id
        self._topic_id = topic_id
        self._delete_retention_ms = delete_retention_ms
        self._outside = surroundings
        self._now_ms = now_ms or (lambda: int(surroundings.time_s() * 1000))
        self._consumer: Any = None
        self._waiting: dict[int, int] = {}
        self._began_ms = 0
        self._saved_at_ms: dict[int, int] = {}
        self.records_read = 0
        self._told_open: set[int] = set()
        self.plans: list[RestorePlan] = []

    def begin(self, partitions: Iterable[int]) -> None:
        """Take the ends now and start reading up to them. A restoration under way is dropped."""
        self.stop()
        wanted = sorted(set(partitions))
        if not wanted:
            return
        self.plans = []
        assignment = []
        began_ms = self._began_ms = self._now_ms()
        for partition, (low, end) in self._ends(wanted).items():
            checkpoint = self._table.checkpoint(partition)
            plan = plan_restore(
                partition,
                checkpoint,
                cluster_id=self._cluster_id,
                topic_id=self._topic_id,
                low=low,
                end=end,
                now_ms=began_ms,
                delete_retention_ms=self._delete_retention_ms,
            )
            self.plans.append(plan)
            # As old as the reading that it came from, until the end is reached: a tombstone that
            # is still ahead may be compacted away before a broken-off restoration goes on.
            kept = None if plan.wipe else checkpoint
            self._saved_at_ms[partition] = began_ms if kept is None else kept.saved_at_ms
            if plan.wipe:
                if checkpoint is not None:
                    _log.warning(
                        "%s reads %s[%d] anew, %d to %d: %s (%d)",
                        self._stage, self._topic, partition, low, end, plan.why, checkpoint.offset,
                    )  # fmt: skip
                self._table.wipe(partition)
            if plan.start < plan.end:
                self._waiting[partition] = plan.end
                assignment.append(TopicPartition(self._topic, partition, plan.start))
        if assignment:
            self._consumer = self._outside.consumer(reader_config(self._bootstrap_servers))
            self._consumer.assign(assignment)

    def _ends(self, wanted: list[int]) -> dict[int, tuple[int, int]]:
        """(low, end) of each partition, open transactions included.

        Everything hangs on them: an end that is too low leaves rows out whose inputs count as
        handled. So two clients ask, one of them new, the wider answer counts, and while a
        checkpoint of this very topic is beyond it both ask again.
        """
        deadline_s = self._outside.monotonic_s() + LIST_OFFSETS_TIMEOUT_S
        while True:
            found = self._ask_twice(wanted)
            short = [
                partition
                for partition, (_, end) in found.items()
                if (kept := self._table.checkpoint(partition)) is not None
                and (kept.cluster_id, kept.topic_id) == (self._cluster_id, self._topic_id)
                and kept.offset > end
            ]
            if not short or self._outside.monotonic_s() >= deadline_s:
                return found
            _log.warning(
                "%s is told that %s[%d] ends at %d, which lies before its checkpoint",
                self._stage, self._topic, short[0], found[short[0]][1],
            )  # fmt: skip
            self._outside.sleep(ASK_AGAIN_S)

    def _ask_twice(self, wanted: list[int]) -> dict[int, tuple[int, int]]:
        said = read_uncommitted_ends(self._admin, self._topic, wanted, self._outside)
        asker = self._outside.consumer(
            {**reader_config(self._bootstrap_servers), "isolation.level": "read_uncommitted"}
        )
        found = {}
        try:
            for partition in wanted:
                seen = watermarks(
                    asker,
                    TopicPartition(self._topic, partition),
                    timeout_s=LIST_OFFSETS_TIMEOUT_S,
                    surroundings=self._outside,
                )
                spans = [(low, end) for low, end in (said[partition], seen) if 0 <= low <= end]
                if not spans:
                    raise LaneFatal(
                        f"where {self._topic}[{partition}] begins and ends is not to be had: "
                        f"{said[partition]}, {seen}"
                    )
                found[partition] = min(low for low, _ in spans), max(end for _, end in spans)
        finally:
            asker.close()
        return found

    def step(self, timeout_s: float = 0.1, limit: int = 10_000) -> bool:
        """Read one slice; True when everything up to the ends has been taken."""
        consumer = self._consumer
        if consumer is None:
            return True
        slices: dict[int, list[tuple[bytes, bytes | None]]] = {}
        reached: dict[int, int] = {}
        for message in consumer.consume(limit, timeout_s):
            error = message.error()
            partition = message.partition()
            offset = message.offset()
            if error is None and partition is not None and offset is not None:
                key = message.key()
                if key is not None:
                    slices.setdefault(partition, []).append((key, message.value()))
                reached[partition] = offset + 1
            elif error is None or partition is None or offset is None:
                continue
            elif error.code() == KafkaError._PARTITION_EOF:
                reached[partition] = offset
                if offset < self._waiting.get(partition, 0):
                    self._tell_open(partition, offset)
            elif is_unreadable(error):
                raise UserError(
                    f"the batch at {self._topic}[{partition}]@{offset} cannot be decompressed. "
                    "It is in the table of payments, of which nothing may be passed over: what is "
                    "missing there could be charged again. Nobody of this flow writes such; see "
                    "docs/operations.md, a batch that cannot be decompressed."
                )
            elif error.fatal() or not error.retriable():
                raise KafkaException(error)
        for partition, offset in reached.items():
            records = slices.get(partition, [])
            self.records_read += len(records)
            if offset >= self._waiting.get(partition, 0):
                self._waiting.pop(partition, None)
                self._saved_at_ms[partition] = self._began_ms
            self._table.restore(partition, records, offset, self._saved_at_ms[partition])
        failpoints.hit(f"{self._stage}.restoring")
        if not self._waiting:
            self.stop()
            return True
        return False

    def stop(self) -> None:
        """Give up or finish: the consumer is closed, nothing is waited for any more."""
        if self._consumer is not None:
            self._consumer.close()
        self._consumer = None
        self._waiting = {}
        self._told_open = set()

    def _tell_open(self, partition: int, offset: int) -> None:
        """Once of each: what is written behind it may be committed, and is waited for."""
        if partition not in self._told_open:
            self._told_open.add(partition)
            _log.info(
                "%s %s %s[%d]@%d", self._stage, WAITS_FOR_OPEN, self._topic, partition, offset
            )
