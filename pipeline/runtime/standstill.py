"""Partitions of which the client brings nothing although something is there.

A worker tells which partitions it waits for: not paused, with nothing of them in hand. Where the
committed position of one does not move for a while, its broker is asked what lies there, in the
background. Where the same batch lies there twice, and a client that is given nothing else says
nothing of it either, it is passed over like any batch that cannot be unfolded; as is one of which
the client is known to leave out records. What lies behind one that was passed over is asked for at
once, since they come in rows. A batch that another client reads is never passed over: the log says
that the partition stands.

Where nothing lies that a reader is handed, but markers or aborted records, a position goes on
behind them. It would be before the begin of the log once those are deleted, and nobody could tell
that from records that were deleted unread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Set
from typing import Any, Final

from confluent_kafka.admin import AdminClient

from pipeline.batches.record_batch import RecordBatch
from pipeline.batches.record_offsets import gives_false_offsets
from pipeline.batches.silent import heads, is_silent
from pipeline.batches.unfolded import is_handed_out_in_part
from pipeline.batches.unreadable import NOT_HAD
from pipeline.kafka_access import reaching
from pipeline.runtime.fetching import FETCH_BYTES
from pipeline.runtime.unreadable_batch import UnreadableBatch
from pipeline.runtime.work import TopicPartitionKey

_log = logging.getLogger(__name__)

# Between two looks at the positions, and after so long a partition stands: a batch is passed over
# after two or three of those. An idle worker asks its brokers as often.
LOOK_S: Final = 1.0
STANDS_S: Final = 15.0
CLOSE_TIMEOUT_S: Final = 5.0
# All that is asked before a reader leaves.
LEAVING_S: Final = 2.0


class Standstill:
    """Of one worker; all methods but the asking itself in its main thread. Finds nothing until it
    is opened. ``access``: how the brokers are reached, where that is not as the process says."""

    def __init__(
        self,
        monotonic_s: Callable[[], float] = time.monotonic,
        access: Mapping[str, Any] | None = None,
    ) -> None:
        self._monotonic_s = monotonic_s
        self._access = access
        self._servers = ""
        self._looked_s = 0.0
        self._since: dict[TopicPartitionKey, tuple[int, float]] = {}
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._admin: AdminClient | None = None
        # What the thread has met, by where it asked: the first offset of what lies there; those
        # that a client reads, which are not asked for again; and up to where nothing lies before
        # them.
        self._met: dict[TopicPartitionKey, tuple[int, int]] = {}
        self._readable: dict[TopicPartitionKey, int] = {}
        self._passed: dict[TopicPartitionKey, int] = {}
        self._silent: dict[TopicPartitionKey, tuple[int, RecordBatch]] = {}
        # By what stands where: up to where nothing is handed out.
        self._empty: dict[tuple[TopicPartitionKey, int], int] = {}
        # Behind one that was passed over, where the next is asked for at once.
        self._behind: dict[TopicPartitionKey, int] = {}

    def open(self, bootstrap_servers: str) -> None:
        self._servers = bootstrap_servers

    def close(self) -> None:
        self._closing.set()
        if self._thread is not None:
            self._thread.join(CLOSE_TIMEOUT_S)

    @property
    def is_due(self) -> bool:
        """Whether ``take`` would look at anything."""
        return bool(self._servers) and self._monotonic_s() - self._looked_s >= LOOK_S

    def take(
        self,
        positions: Mapping[TopicPartitionKey, int],
        waits: Callable[[TopicPartitionKey], bool],
    ) -> list[UnreadableBatch]:
        """What stands for batches at these positions of which the client brings nothing; whoever
        takes it puts the client behind it. ``positions``: of all that is assigned, what comes next
        of it; ``waits``: whether nothing is in hand of a partition, and the client may bring it."""
        if not self.is_due:
            return []
        now_s = self._looked_s = self._monotonic_s()
        since = self._since
        for tp in [tp for tp in since if tp not in positions]:
            del since[tp]
        for tp, position in positions.items():
            if not waits(tp):
                since.pop(tp, None)
            elif since.get(tp, (-1,))[0] != position:
                since[tp] = position, now_s
        if self._thread is not None:
            if self._thread.is_alive():
                return []
            self._thread = None
            return self._found(positions)
        self._forget()
        standing = {
            tp: at
            for tp, (at, since_s) in since.items()
            if now_s - since_s >= self._patience_s(tp, at)
        }
        if standing:
            since.update({tp: (at, now_s) for tp, at in standing.items()})
            at_once = {tp for tp, at in standing.items() if self._behind.pop(tp, -1) == at}
            self._thread = threading.Thread(
                target=self._ask, args=(standing, at_once), name="standstill", daemon=True
            )
            self._thread.start()
        return []

    def take_empty(
        self, positions: Mapping[TopicPartitionKey, int]
    ) -> dict[TopicPartitionKey, int]:
        """Where partitions go on that ``take`` has seen standing at these positions: from there up
        to here nothing lies that a read_committed reader is handed, nor ever will."""
        if not self._empty:
            return {}
        empty, self._empty = self._empty, {}
        return {tp: end for (tp, at), end in empty.items() if positions.get(tp) == at}

    def empty_now(self, positions: Mapping[TopicPartitionKey, int]) -> dict[TopicPartitionKey, int]:
        """As ``take_empty`` of all these partitions, asked at once by a reader that leaves; up to
        the first batch that is handed out, where one lies there: it is for whoever comes next."""
        if not self._servers or not positions:
            return {}
        until_s = time.monotonic() + LEAVING_S
        behind: dict[TopicPartitionKey, int] = {}
        try:
            admin = AdminClient({**reaching(self._servers, self._access), "log_level": 0})
            heads(admin, positions, lambda: time.monotonic() > until_s, behind, self._access)
        except NOT_HAD as error:
            _log.debug("what lies behind the last records was not to be had: %s", error)
            return {}
        return _ahead(positions, behind)

    def _patience_s(self, tp: TopicPartitionKey, position: int) -> float:
        return LOOK_S if self._behind.get(tp) == position else STANDS_S

    def _forget(self) -> None:
        """What was met of partitions that have gone on since."""
        at = {tp: position for tp, (position, _) in self._since.items()}
        self._met = {tp: met for tp, met in self._met.items() if met[0] == at.get(tp)}
        self._readable = {tp: p for tp, p in self._readable.items() if p == at.get(tp)}
        # What no reader is handed stays so, wherever the partition stands.
        self._passed = {tp: p for tp, p in self._passed.items() if p > at.get(tp, p)}

    def _found(self, positions: Mapping[TopicPartitionKey, int]) -> list[UnreadableBatch]:
        """What the thread has found and still stands."""
        silent, self._silent = self._silent, {}
        found = []
        for tp, (position, batch) in silent.items():
            if positions.get(tp) == position and self._since.get(tp, (-1,))[0] == position:
                _log.warning(
                    "%s[%d]: of offsets %d to %d the client brings nothing from %d on, and says "
                    "nothing; going on behind them",
                    *tp, batch.first_offset, batch.last_offset, position,
                )  # fmt: skip
                self._behind[tp] = batch.last_offset + 1
                false = gives_false_offsets(batch)
                found.append(UnreadableBatch(*tp, batch, has_false_offsets=false))
        return found

    # In the background ------------------------------------------------------------------------

    def _ask(
        self, standing: Mapping[TopicPartitionKey, int], at_once: Set[TopicPartitionKey]
    ) -> None:
        try:
            if self._admin is None:
                self._admin = AdminClient({**reaching(self._servers, self._access), "log_level": 0})
            # What an earlier look has passed is not vouched for by this one.
            known = self._passed.keys() & standing
            stopped = self._closing.is_set
            found = heads(self._admin, standing, stopped, self._passed, self._access)
            # Where something was found the client is about to bring it, or it is passed over.
            asked = {tp: at for tp, at in standing.items() if tp not in known and tp not in found}
            empty = _ahead(asked, self._passed)
            self._empty = {(tp, standing[tp]): end for tp, end in empty.items()}
            self._passed = {tp: end for tp, end in self._passed.items() if tp in found}
            for tp, position in standing.items():
                self._judge(tp, position, found.get(tp), at_once=tp in at_once)
        except (MemoryError, *NOT_HAD) as error:
            _log.debug("what lies ahead of standing partitions was not to be had: %s", error)

    def _judge(
        self,
        tp: TopicPartitionKey,
        position: int,
        batch: RecordBatch | None,
        *,
        at_once: bool,
    ) -> None:
        if batch is None:
            self._met.pop(tp, None)
            return
        met = position, batch.first_offset
        if self._met.get(tp) != met:
            self._met[tp] = met
            if not at_once:
                # It may have come just now.
                return
        if self._readable.get(tp) == position:
            return
        # Those of which the client leaves out the rest are known by themselves: what it has made of
        # that it does not say.
        silent = (
            is_handed_out_in_part(batch)
            or gives_false_offsets(batch)
            or is_silent(self._servers, tp, batch, position, self._closing.is_set, self._access)
        )
        if silent and not batch.is_damaged:
            self._silent[tp] = position, batch
        elif silent is False and not at_once:
            self._readable[tp] = position
            _log.warning("%s[%d] stands at %d, though what lies there can be read%s", *tp, position,
                         _large(len(batch.data)))  # fmt: skip


def _large(size: int) -> str:
    """Why a partition stands behind others for a while without anything being wrong."""
    if size <= FETCH_BYTES:
        return ""
    return (
        f": a batch of {size:,} bytes, of which a broker gives one partition's at a time; it comes "
        f"in its turn, and sooner if its publisher writes batches of at most {FETCH_BYTES:,} bytes"
    )


def _ahead(
    positions: Mapping[TopicPartitionKey, int], behind: Mapping[TopicPartitionKey, int]
) -> dict[TopicPartitionKey, int]:
    """Up to where nothing lies, of those that do not stand there already."""
    return {tp: behind[tp] for tp, at in positions.items() if behind.get(tp, 0) > at}
