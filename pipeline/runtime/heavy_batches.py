"""Batches that a worker's client must not be given, found before it fetches them.

The client unfolds a batch before anybody sees its records, and 1 MiB of gzip may be 1 GiB: a worker
with less is killed there, and its successor after it. So what lies behind the committed positions
is looked at first, over a connection of our own, for as far as one life may fetch before its first
commit. A worker that dies of a batch that came while it ran dies of it once.

A batch of which the client would hand out only a part, and say nothing, is found by the same look,
as is one whose records give false offsets of themselves; and batches of which each is little, and
what comes with one answer of the broker too much: the client unfolds all of an answer before it
hands out anything.

Where there is such a batch, the client begins behind it. What lies before it is brought by a client
of its own, in requests that end exactly there, as do batches that are too much together; the batch
itself is an ``UnreadableBatch``.

A look has a time. A worker that has died is given nothing of a partition before all of it was
looked at, whatever kept it from that: each start would die of what lies where the time is over.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import dropwhile
from typing import Any, Final

from confluent_kafka import OFFSET_END, KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from pipeline.batches.one_answer import asks_once, one_answer
from pipeline.batches.record_batch import RecordBatch, fetch_batches, stable_ends
from pipeline.batches.record_offsets import gives_false_offsets
from pipeline.batches.unfolded import (
    HEAVY_BYTES_MIN,
    is_handed_out_in_part,
    is_heavy,
    memory_of,
    most_memory_of,
)
from pipeline.batches.unreadable import (
    NOT_HAD,
    UNFOLDED_BYTES_MAX,
    batch_at,
    is_damaged,
    is_unreadable,
)
from pipeline.broker_connection import BrokerConnection, Refused
from pipeline.errors import UserError
from pipeline.kafka_access import reaching
from pipeline.runtime.kafka_errors import LaneFatal, passes_by_itself
from pipeline.runtime.unreadable_batch import UnreadableBatch
from pipeline.runtime.work import TopicPartitionKey

_log = logging.getLogger(__name__)

# What a life holds of one partition and has not committed, at most: two full buffers of a topic
# (``Admission``), two transactions, what the client has queued and what one answer brings. In
# records, or else in bytes: unfolded they are no fewer than as they come.
WINDOW_RECORDS: Final = 50_000
WINDOW_BYTES: Final = 128 * 1024 * 1024
FETCH_BYTES: Final = 4 * 1024 * 1024
# No less than the worker's own client fetches of a partition at a time.
RUN_BYTES: Final = 256 * 1024
# Of one leader, so that a silent one leaves time for two others.
REQUEST_TIMEOUT_S: Final = 5.0
# How soon it hears of a stop while it waits for the first broker.
HEARS_S: Final = 0.5
# All of the look, also where brokers do not answer, or in drops: it is part of a rebalance, and a
# member that takes too long for one is left out of the group. What such batches hold is kept until
# they are dead letters. Where either is over, the client begins behind what was found; but a worker
# that has died is given nothing there until the look has gone on, in steps of so long between its
# turns.
LOOK_TIMEOUT_S: Final = 15.0
KEPT_BYTES: Final = 8 * 1024 * 1024
STEP_S: Final = 0.5
# Until what has come is unfolded.
PAUSE_S: Final = 0.02
PAUSE_S_MAX: Final = 5.0
# Until a partition that could not be looked at is looked at again, the second time; twice as long
# each time from then on. A try takes a request's time, in which the others wait.
AGAIN_S: Final = 0.5
AGAIN_S_MAX: Final = 30.0
# So many of the longer ones until what brought nothing is tried again.
STUCK_PAUSES: Final = 10
STUCK_PAUSE_S: Final = 0.5


def bytes_max(deaths: int) -> int:
    """What a batch may come to for a worker that has died so often without a word. Where it dies
    again, the bound was too high for its memory."""
    return max(HEAVY_BYTES_MIN, UNFOLDED_BYTES_MAX >> deaths)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A batch that the worker's client is not to fetch. ``kept``: what stands for it if none is
    to; ``memory``: what a client needs for it, at the most."""

    first_offset: int
    last_offset: int
    size: int
    memory: int
    visible: bool
    kept: UnreadableBatch | None


class _Together:
    """What may come with one answer of those batches that were seen last."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._measured: deque[tuple[int, int]] = deque()
        # Of these what they may need at the most is known only; what they do takes time.
        self._batches: deque[tuple[RecordBatch, int]] = deque()
        self._size = self._memory = 0

    def add(self, batch: RecordBatch) -> tuple[int, bool]:
        """What this one needs, at the most, and whether all need no more than there is."""
        size, memory = len(batch.data), most_memory_of(batch)
        self._leave(RUN_BYTES - size)
        self._batches.append((batch, memory))
        self._size, self._memory = self._size + size, self._memory + memory
        if self._memory > self._bytes_max:
            while self._batches:
                each, most = self._batches.popleft()
                memory = memory_of(each)
                self._measured.append((len(each.data), memory))
                self._memory += memory - most
        alone = len(self._batches) + len(self._measured) == 1
        return memory, alone or self._memory <= self._bytes_max

    def clear(self) -> None:
        self._leave(0)

    def _leave(self, size: int) -> None:
        """Only the last ones, of so many bytes."""
        while self._size > size and (self._measured or self._batches):
            if self._measured:
                first, memory = self._measured.popleft()
            else:
                batch, memory = self._batches.popleft()
                first = len(batch.data)
            self._size, self._memory = self._size - first, self._memory - memory


class _Look:
    """At one partition, as far as it has got: ``reached``. ``begins``: from where on the worker's
    client goes on with it, once it may, unless something is kept from it. ``is_behind``: whether
    anything is known to lie there. ``again_s``: when it may go on."""

    def __init__(
        self,
        tp: TopicPartitionKey,
        address: Any,
        position: int,
        together: _Together,
        *,
        is_behind: bool,
    ) -> None:
        self.tp = tp
        self.address = address
        self.begins = self.reached = position
        self.is_behind = is_behind
        self.failures = 0
        self.again_s = 0.0
        self.kept_bytes = 0
        self.seen: list[_Seen] = []
        self._together = together
        self._length = self._records = self._size = 0

    def add(self, batch: RecordBatch, kept: UnreadableBatch | None) -> None:
        memory, fits, size = 0, False, len(batch.data)
        # Of what was compacted away whole there is a batch without records.
        shown = batch.visible and batch.records > 0
        if kept:
            self.kept_bytes += size
            self._together.clear()
        else:
            memory, fits = self._together.add(batch)
        self.seen.append(_Seen(batch.first_offset, batch.last_offset, size, memory, shown, kept))
        if not fits:
            self._length = len(self.seen)
        self.reached = batch.last_offset + 1
        self._records, self._size = self._records + batch.records, self._size + size

    def failed(self, why: object) -> None:
        """It is tried again: another may lead the partition by now."""
        self.address = None
        self.failures += 1
        if self.failures == 1:
            return
        longer = min(self.failures - 2, 16)
        self.again_s = time.monotonic() + min(AGAIN_S_MAX, AGAIN_S * 2**longer)
        if self.failures.bit_count() == 1:
            _log.warning(
                "%s[%d]: not looked at from offset %d on, and not read before it is: %s",
                *self.tp, self.reached, why,
            )  # fmt: skip

    def is_through(self) -> bool:
        """As far as one life may fetch."""
        return self._records >= WINDOW_RECORDS or self._size >= WINDOW_BYTES

    def take(self) -> list[_Seen]:
        """Up to the last that is kept from the client, behind which the look goes on anew."""
        taken = self.seen[: self._length]
        if taken:
            self.reached = taken[-1].last_offset + 1
            self.seen, self.kept_bytes = [], 0
            self._length = self._records = self._size = 0
            self._together.clear()
        return taken


class _Limits:
    """Of one look, over all of its partitions."""

    def __init__(self, stopped: Callable[[], bool], timeout_s: float) -> None:
        self._stopped = stopped
        self._deadline_s = time.monotonic() + timeout_s

    def are_reached(self) -> bool:
        return time.monotonic() > self._deadline_s or self._stopped()

    def known(self, bootstrap_servers: str) -> Any:
        """What the brokers say of the cluster; asked in pieces, so that a stop is heard."""
        admin = AdminClient({**reaching(bootstrap_servers), "log_level": 0})
        until_s = min(self._deadline_s, time.monotonic() + REQUEST_TIMEOUT_S)
        while True:
            try:
                return admin.list_topics(timeout=HEARS_S)
            except KafkaException:
                if self._stopped() or time.monotonic() > until_s:
                    raise

    def connected(self, address: Any) -> BrokerConnection:
        return BrokerConnection(
            str(address.host),
            address.port,
            REQUEST_TIMEOUT_S,
            deadline_s=self._deadline_s,
            stopped=self._stopped,
        )


class HeavyBatches:
    """Of one worker. Looks at nothing until it is opened."""

    def __init__(self) -> None:
        self._servers = ""
        self._bytes_max = 0
        self._has_died = False
        # Up to the last heavy one of a partition, and what is to be brought next of them.
        self._seen: dict[TopicPartitionKey, list[_Seen]] = {}
        self._next: dict[TopicPartitionKey, int] = {}
        self._brought: list[TopicPartitionKey] = []
        self._pause_s = PAUSE_S
        # The first offset of one that the client could not unfold.
        self._refused: dict[TopicPartitionKey, int] = {}
        # Those of which the last try brought nothing, and when the next one is.
        self._stuck: dict[TopicPartitionKey, float] = {}
        # Bytes of what is kept, by partition.
        self._kept_bytes: dict[TopicPartitionKey, int] = {}
        # Where it is not known yet what lies ahead, and the client is given nothing until it is;
        # and where it begins then.
        self._looks: dict[TopicPartitionKey, _Look] = {}
        self._moved: list[tuple[TopicPartitionKey, int]] = []

    def open(self, bootstrap_servers: str, deaths: int) -> None:
        self._servers = bootstrap_servers
        self._bytes_max = bytes_max(deaths)
        self._has_died = deaths > 0

    def __bool__(self) -> bool:
        """Whether something is to be brought, or looked at."""
        return bool(self._next or self._looks)

    def has_ahead(self, tp: TopicPartitionKey) -> bool:
        """Whether something is to be brought of a partition, or looked at, before its client goes
        on with it."""
        return tp in self._next or tp in self._looks

    def is_stuck(self, tp: TopicPartitionKey) -> bool:
        """Whether something is to be brought of a partition, and the last try brought nothing."""
        return tp in self._stuck

    def go_on(self, tp: TopicPartitionKey, position: int) -> bool:
        """Bring what comes from a position on, and nothing before that. False where nothing is to
        be brought of this partition: it is for its client to go on."""
        if tp not in self._next:
            return False
        self._pause_s = PAUSE_S
        self._brought_up_to(tp, position)
        return True

    def take_moved(self) -> list[tuple[TopicPartitionKey, int]]:
        """Where the client begins with the partitions that the look has got through since."""
        moved, self._moved = self._moved, []
        return moved

    def take_brought(self) -> list[TopicPartitionKey]:
        """The partitions of which all has been brought since the last call."""
        brought, self._brought = self._brought, []
        return brought

    def clear(self) -> None:
        self._brought.clear()
        self._moved.clear()
        self._looks.clear()
        self._kept_bytes.clear()
        self._seen.clear()
        self._next.clear()
        self._refused.clear()
        self._stuck.clear()

    def look(
        self,
        positions: Mapping[TopicPartitionKey, int],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Find those behind the committed positions of a new assignment.

        Asked within a rebalance callback, so the worker's consumer is not asked for the leaders:
        its ``list_topics`` ends with the state of the call that the callback is in, and the process
        aborts at the next callback of that call (confluent-kafka 2.16, ``CallState_get``).
        """
        self.clear()
        self._look_at(positions, stopped)

    def look_again(
        self,
        tp: TopicPartitionKey,
        position: int,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Find those behind the committed position of one partition, of which one was met. Each
        partition is then to begin anew."""
        self._looks.pop(tp, None)
        self._kept_bytes.pop(tp, None)
        self._seen.pop(tp, None)
        self._next.pop(tp, None)
        self._refused.pop(tp, None)
        self._stuck.pop(tp, None)
        self._look_at({tp: position}, stopped)

    def keeps(self, tp: TopicPartitionKey, offset: int) -> bool:
        """Whether one that its client is not given reaches to this offset or lies behind it."""
        look = self._looks.get(tp)
        seen = [*self._seen.get(tp, ()), *(look.seen if look else ())]
        return any(each.kept and each.last_offset >= offset for each in seen)

    def _look_at(
        self, positions: Mapping[TopicPartitionKey, int], stopped: Callable[[], bool]
    ) -> None:
        if not self._servers:
            return
        limits = _Limits(stopped, LOOK_TIMEOUT_S)
        try:
            known = limits.known(self._servers)
            leaders: dict[int, dict[TopicPartitionKey, int]] = {}
            for (topic, number), position in positions.items():
                leader = known.topics[topic].partitions[number].leader
                leaders.setdefault(leader, {})[topic, number] = position
        except (MemoryError, *NOT_HAD) as error:
            self._put_off(positions, None, error)
            return
        for leader, places in leaders.items():
            address = known.brokers.get(leader)
            try:
                self._look(known.brokers[leader], places, limits)
            except (MemoryError, *NOT_HAD) as error:
                self._put_off(places, address, error)

    def _put_off(self, places: Mapping[TopicPartitionKey, int], address: Any, why: object) -> None:
        """Of these it is not even known whether anything lies there."""
        if not self._has_died or _may_be_given(why):
            _log.warning("what lies ahead in %d partitions is not looked at: %s", len(places), why)
            return
        _log.info("what lies ahead in %d partitions is looked at later: %s", len(places), why)
        for tp, position in places.items():
            together = _Together(self._bytes_max)
            self._looks[tp] = _Look(tp, address, position, together, is_behind=False)

    def _look(self, address: Any, places: Mapping[TopicPartitionKey, int], limits: _Limits) -> None:
        broker = limits.connected(address)
        ends = stable_ends(broker, places)
        if untold := {tp: position for tp, position in places.items() if tp not in ends}:
            self._put_off(untold, None, "its leader does not tell where it ends")
        behind = [tp for tp, end in ends.items() if places[tp] < end]
        # One answer may bring of each of them; what did not die has the memory, or dies once.
        together = self._bytes_max // len(behind) if self._has_died and behind else 0
        looks = deque(
            _Look(tp, address, places[tp], _Together(together or self._bytes_max), is_behind=True)
            for tp in behind
        )
        self._look_in_turns(broker, address, looks, limits)
        for look in looks:
            if not self._has_died:
                self._given_up(look, "the time is over, or what is kept would be too much")
                continue
            self._look_later(look)
            _log.info("%s[%d]: looked at up to offset %d so far", *look.tp, look.reached)

    def _look_in_turns(
        self, broker: BrokerConnection, address: Any, looks: deque[_Look], limits: _Limits
    ) -> None:
        """At the beginning of each first, which the client would fetch at once. Leaves those for
        which there is no time."""
        try:
            while looks and not self._keeps_too_much(looks) and not limits.are_reached():
                try:
                    if broker.is_closed:
                        broker = limits.connected(address)
                except NOT_HAD as error:
                    while looks and not limits.are_reached():
                        self._failed(looks.popleft(), error)
                    return
                try:
                    is_through = self._step(broker, looks[0], limits.are_reached)
                except (MemoryError, *NOT_HAD) as error:
                    if not limits.are_reached():
                        self._failed(looks.popleft(), error)
                    continue
                if is_through:
                    self._looked(looks.popleft())
                else:
                    looks.rotate(-1)
        finally:
            broker.close()

    def _step(self, broker: BrokerConnection, look: _Look, is_over: Callable[[], bool]) -> bool:
        """What comes at once of a partition. Whether all has been looked at then."""
        batches, is_end = fetch_batches(broker, *look.tp, look.reached, FETCH_BYTES)
        for batch in batches:
            look.add(batch, self._kept(batch, look.tp))
            if is_over() and batch is not batches[-1]:
                return False
        return is_end or look.is_through()

    def _take(self, look: _Look) -> None:
        """What has been found there is brought, as far as it is not behind the worker."""
        kept_bytes = look.kept_bytes
        if taken := look.take():
            self._seen[look.tp], self._kept_bytes[look.tp] = taken, kept_bytes
            if look.begins < look.reached:
                self._next[look.tp], look.begins = look.begins, look.reached

    def _looked(self, look: _Look) -> None:
        self._looks.pop(look.tp, None)
        self._take(look)

    def _failed(self, look: _Look, why: object) -> None:
        if not self._has_died or _may_be_given(why):
            self._given_up(look, why)
            return
        look.failed(why)
        self._look_later(look)

    def _look_later(self, look: _Look) -> None:
        """Go on with it between the worker's turns."""
        self._take(look)
        self._looks[look.tp] = look

    def _given_up(self, look: _Look, why: object) -> None:
        _log.warning("%s[%d]: not looked at from offset %d on: %s", *look.tp, look.reached, why)
        self._looked(look)

    def _keeps_too_much(self, looks: Iterable[_Look]) -> bool:
        return sum(self._kept_bytes.values()) + sum(e.kept_bytes for e in looks) > KEPT_BYTES

    def look_on(
        self,
        positions: Mapping[TopicPartitionKey, int],
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Take the look a step further where it was not through in time, at one partition after
        the other. ``positions``: what is committed; what was kept before that is forgotten."""
        if not self._looks:
            return
        for tp in [tp for tp in self._seen if tp not in self._next]:
            seen = reversed(self._seen[tp])
            if not any(each.visible and each.last_offset >= positions[tp] for each in seen):
                del self._seen[tp], self._kept_bytes[tp]
        now_s = time.monotonic()
        waiting = (each for each in self._looks.values() if each.tp not in self._seen)
        look = next((each for each in waiting if each.again_s <= now_s), None)
        if look is None:
            return
        if self._keeps_too_much(self._looks.values()):
            for each in self._looks.values():
                if each.tp not in self._seen:
                    self._take(each)
            return
        self._looks[look.tp] = self._looks.pop(look.tp)
        begins = {each.tp: each.begins for each in self._looks.values()}
        through = []
        try:
            through = self._through(look, stopped)
        except (MemoryError, *NOT_HAD) as error:
            if stopped():
                return
            self._failed(look, error)
            if look.tp not in self._looks:
                through = [look]
        for each in through:
            self._looked(each)
            self._moved.append((each.tp, self.begin(each.tp, begins[each.tp])))
            if each.tp not in self._next:
                self._brought.append(each.tp)

    def _through(self, look: _Look, stopped: Callable[[], bool]) -> list[_Look]:
        """Those of which all has been looked at with one step more."""
        limits = _Limits(stopped, REQUEST_TIMEOUT_S)
        until_s = time.monotonic() + STEP_S
        if look.address is None:
            self._find_leader(look, limits)
        broker = limits.connected(look.address)
        try:
            if not look.is_behind:
                through = self._empty(broker, look)
            elif self._step(broker, look, lambda: time.monotonic() > until_s):
                through = [look]
            else:
                through = []
        finally:
            broker.close()
        look.failures = 0
        return through

    def _find_leader(self, look: _Look, limits: _Limits) -> None:
        """Who leads it now; and those of which that is known as little."""
        known = limits.known(self._servers)
        for each in [each for each in self._looks.values() if each.address is None]:
            with contextlib.suppress(LookupError):
                each.address = _leader(known, each.tp)
        if look.address is None:
            raise LookupError("nobody leads it")

    def _empty(self, broker: BrokerConnection, look: _Look) -> list[_Look]:
        """Those of one leader in which nothing lies, of all of which that is not known yet."""
        asked = {
            each.tp: each
            for each in self._looks.values()
            if not each.is_behind and each.address is look.address
        }
        ends = stable_ends(broker, {tp: each.reached for tp, each in asked.items()})
        for tp, each in asked.items():
            # Of what is left out its leader says why as it is looked at.
            each.is_behind = tp not in ends or ends[tp] > each.reached
        return [each for each in asked.values() if not each.is_behind]

    def _kept(self, batch: RecordBatch, tp: TopicPartitionKey) -> UnreadableBatch | None:
        """What stands for this batch if the client must not be given it."""
        bytes_max, has_false_offsets = 0, False
        if is_heavy(batch, self._bytes_max):
            why, bytes_max = f"unfold to more than {self._bytes_max >> 20} MiB", self._bytes_max
        elif is_handed_out_in_part(batch):
            why = "are gzip of several members, of which the client reads one"
        elif gives_false_offsets(batch):
            why, has_false_offsets = "give other offsets of themselves", True
        else:
            return None
        if batch.is_damaged:
            # Nobody's doing; the client says so by itself, before it unfolds anything.
            return None
        _log.warning(
            "%s[%d]: offsets %d to %d %s; going on behind them",
            *tp, batch.first_offset, batch.last_offset, why,
        )  # fmt: skip
        return UnreadableBatch(*tp, batch, bytes_max, has_false_offsets)

    def begin(self, tp: TopicPartitionKey, position: int) -> int:
        """Where the client begins, for a worker that goes on from this position: what is before
        that is brought. At the end, where nothing is to be fetched, as long as that is not known.
        """
        start = position
        if (seen := self._seen.get(tp)) is not None:
            self._stuck.pop(tp, None)
            if position <= seen[-1].last_offset:
                self._next[tp] = position
                start = seen[-1].last_offset + 1
            else:
                # Not forgotten: it may go back, as behind calls that are open, whose results an
                # abort takes back.
                self._next.pop(tp, None)
        if (look := self._looks.get(tp)) is not None:
            look.begins = start
            start = OFFSET_END
        return start

    def bring(self, wanted: Callable[[TopicPartitionKey], bool]) -> list[Any]:
        """The next messages of one of the partitions that are wanted, each in turn: a call takes as
        long as one of them at the most."""
        now_s = time.monotonic()
        due = (each for each in self._next if self._stuck.get(each, now_s) <= now_s)
        tp = next((each for each in due if wanted(each)), None)
        if tp is None:
            return []
        self._next[tp] = self._next.pop(tp)
        return self._bring(tp)

    def _bring(self, tp: TopicPartitionKey) -> list[Any]:
        # From the first that a reader is handed: an answer of a marker and nothing else, as at the
        # end of a segment, leaves in the client's queue what makes it ask for no more.
        ahead = list(
            dropwhile(
                lambda each: each.last_offset < self._next[tp] or not each.visible, self._seen[tp]
            )
        )
        if not ahead:
            self._brought_up_to(tp, self._seen[tp][-1].last_offset + 1)
            return []
        self._next[tp] = max(self._next[tp], ahead[0].first_offset)
        if (kept := ahead[0].kept) is not None:
            messages, position = [kept], kept.offset() + 1
        else:
            messages, position = self._read(tp, self._run(tp, ahead))
            if position == self._next[tp]:
                # The others go on meanwhile, and have most of the time.
                pauses = STUCK_PAUSES if self._pause_s > STUCK_PAUSE_S else 0
                self._stuck[tp] = time.monotonic() + pauses * self._pause_s
                return messages
        self._brought_up_to(tp, position)
        return messages

    def _brought_up_to(self, tp: TopicPartitionKey, position: int) -> None:
        self._stuck.pop(tp, None)
        if position > self._seen[tp][-1].last_offset:
            del self._next[tp]
            if tp not in self._looks:
                self._brought.append(tp)
        else:
            self._next[tp] = position

    def _run(self, tp: TopicPartitionKey, ahead: list[_Seen]) -> list[_Seen]:
        """Those that come with one answer, and are no more than fits the memory together."""
        run: list[_Seen] = []
        size = memory = 0
        for each in ahead:
            size, memory = size + each.size, memory + each.memory
            if each.kept is not None or (run and (size > RUN_BYTES or memory > self._bytes_max)):
                break
            run.append(each)
        # One that was refused is asked for again by itself.
        return run[:1] if self._refused.get(tp) == run[0].first_offset else run

    def _read(self, tp: TopicPartitionKey, run: list[_Seen]) -> tuple[list[Any], int]:
        """The messages of a run as far as one answer brought them, and what comes next."""
        position, behind = self._next[tp], run[-1].last_offset + 1
        last = max(each.last_offset for each in run if each.visible)
        messages: list[Any] = []
        client = asks_once(self._servers, sum(each.size for each in run), log_level=2)
        try:
            for message in one_answer(client, tp, position, self._pause_s):
                error, offset = message.error(), message.offset() or 0
                if error is None and offset <= last:
                    messages.append(message)
                elif error is not None and not passes_by_itself(error):
                    if is_damaged(error):
                        # For the worker to end at, once what came before it is handled.
                        return [*messages, message], offset
                    if not is_unreadable(error):
                        raise KafkaException(error)
                    # As with the worker's own client: asked for twice, then stepped over.
                    if messages or self._refused.get(tp) != offset:
                        self._refused[tp] = offset
                        return messages, offset
                    batch = batch_at(client, *tp, offset)
                    stands = [UnreadableBatch(*tp, batch)] if batch.visible else []
                    return stands, batch.last_offset + 1
        except UserError:
            raise
        except NOT_HAD as error:
            raise LaneFatal(
                f"what lies before a batch in {tp[0]}[{tp[1]}] that is stepped over cannot be "
                f"read ({error})"
            ) from error
        finally:
            client.close()
        if not messages:
            # The next client waits for longer: this one's queue is touched.
            self._pause_s = min(PAUSE_S_MAX, 2 * self._pause_s)
            return [], position
        reached = messages[-1].offset()
        return messages, behind if reached >= last else reached + 1


def _leader(known: Any, tp: TopicPartitionKey) -> Any:
    return known.brokers[known.topics[tp[0]].partitions[tp[1]].leader]


def _may_be_given(why: object) -> bool:
    """Whether a worker that has died is given a partition of which this is known and no more: its
    client is told the same, or nobody can ever look there."""
    if isinstance(why, Refused):
        return why.code == KafkaError.OFFSET_OUT_OF_RANGE
    return isinstance(why, UserError)
