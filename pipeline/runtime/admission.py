"""Which waiting input is handled next, and which partitions stop being fetched.

Pure decisions over records already consumed: no clock, no client. Three rules:

* inputs are admitted in the order of their topics (results before timers before new orders), so
  that payments under way end before others begin;
* a tier's record is due at its append time plus the tier's delay; the ones behind it in its
  partition are due later still, so its head gates it;
* a buffer that is full, by records or by bytes, pauses its partitions until they are nearly empty
  again: every pause throws away what the client has prefetched, and toggling costs a factor of ten;
* partitions have equal shares of a buffer and of what is taken from it. The client hands out what
  arrived first, so that the partition of the quickest broker would fill a buffer each time, and
  under a backlog the orders of another one would wait until the backlog is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pipeline.runtime.input_record import InputRecord

TopicPartitionKey = tuple[str, int]

# Twelve thousand ordinary orders are 4 MB; a record of a megabyte on the wire may be many
# decompressed, and a few thousand of those must end neither the memory nor the transaction's time.
BUFFER_BYTES_MAX = 64 * 1024 * 1024
TAKE_BYTES_MAX = 32 * 1024 * 1024


@dataclass(frozen=True)
class InputLane:
    """One input topic. ``delay_ms`` makes it a tier; ``gated`` marks new work that may be held."""

    role: str
    topic: str
    delay_ms: int | None = None
    gated: bool = False


@dataclass(frozen=True)
class Fetching:
    """Partitions whose fetching changes now."""

    pause: tuple[TopicPartitionKey, ...] = ()
    resume: tuple[TopicPartitionKey, ...] = ()


_AS_IT_IS = Fetching()


@dataclass(slots=True)
class _Buffer:
    lane: InputLane
    # By partition; the first is the next in turn.
    queues: dict[int, deque[InputRecord]] = field(default_factory=dict)
    count: int = 0
    size_bytes: int = 0
    # Of a tier: before this no head is due. Unknown (0) once a partition has another head.
    none_due_before_ms: int = 0
    # Of the topic's assigned partitions those that are not fetched.
    assigned: tuple[int, ...] = ()
    paused: set[int] = field(default_factory=set)

    def take_all(self) -> list[InputRecord]:
        taken: list[InputRecord] = []
        for queue in self.queues.values():
            taken.extend(queue)
            queue.clear()
        self.count = self.size_bytes = 0
        return taken

    def take_in_turn(self, limit: int, limit_bytes: int, now_ms: int) -> list[InputRecord]:
        """As much of each partition as of the others, as far as they have it and it is due."""
        delay_ms = self.lane.delay_ms
        taken: list[InputRecord] = []
        turn = [partition for partition, queue in self.queues.items() if queue]
        while turn and len(taken) < limit and limit_bytes > 0:
            share = max(1, (limit - len(taken)) // len(turn))
            more = []
            for partition in turn:
                if len(taken) >= limit or limit_bytes <= 0:
                    break
                queue = self.queues.pop(partition)
                self.queues[partition] = queue
                until = min(limit, len(taken) + share)
                while (
                    queue
                    and len(taken) < until
                    and limit_bytes > 0
                    and (delay_ms is None or queue[0].timestamp_ms + delay_ms <= now_ms)
                ):
                    record = queue.popleft()
                    taken.append(record)
                    if record.value is not None:
                        limit_bytes -= len(record.value)
                        self.size_bytes -= len(record.value)
                if queue and len(taken) == until:
                    more.append(partition)
            turn = more
        self.count -= len(taken)
        if delay_ms is not None and not taken:
            heads = [queue[0].timestamp_ms for queue in self.queues.values() if queue]
            self.none_due_before_ms = min(heads, default=0) + delay_ms
        return taken


class Admission:
    """Bounded buffers by topic, in admission order.

    A topic holds ``buffer_max`` records before its partitions are paused: those that hold as much
    of it as their share. One is resumed when a quarter of its share is left (hysteresis). So no
    topic holds more than twice ``buffer_max``.
    """

    def __init__(self, lanes: Iterable[InputLane], *, buffer_max: int) -> None:
        self._buffers = {lane.topic: _Buffer(lane) for lane in lanes}
        self._buffer_max = buffer_max
        self._gate_open = True

    def assign(self, partitions: Iterable[TopicPartitionKey]) -> None:
        """A new assignment: everything buffered is dropped, nothing is paused."""
        assigned = tuple(partitions)
        for topic, buffer in self._buffers.items():
            buffer.queues.clear()
            buffer.count = 0
            buffer.size_bytes = 0
            buffer.none_due_before_ms = 0
            buffer.assigned = tuple(p for t, p in assigned if t == topic)
            buffer.paused.clear()

    def add(self, record: InputRecord) -> None:
        buffer = self._buffers[record.topic]
        queue = buffer.queues.get(record.partition)
        if queue is None:
            queue = buffer.queues[record.partition] = deque()
        if not queue:
            buffer.none_due_before_ms = 0
        queue.append(record)
        buffer.count += 1
        if record.value is not None:
            buffer.size_bytes += len(record.value)

    def open_gate(self, is_open: bool) -> None:
        """Whether new work (gated lanes) is admitted; closed while the next stage is behind."""
        self._gate_open = is_open

    def take(
        self, limit: int, now_ms: int, *, limit_bytes: int = TAKE_BYTES_MAX
    ) -> list[InputRecord]:
        """Up to ``limit`` records to handle next, in admission order, each partition's in its own.

        No further one is taken once their values come to ``limit_bytes``; a larger one goes alone.
        """
        taken: list[InputRecord] = []
        for buffer in self._buffers.values():
            if not buffer.count or now_ms < buffer.none_due_before_ms:
                continue
            room = limit - len(taken)
            if room <= 0 or limit_bytes <= 0:
                break
            if buffer.lane.gated and not self._gate_open:
                continue
            size_bytes = buffer.size_bytes
            if buffer.lane.delay_ms is None and buffer.count <= room and size_bytes <= limit_bytes:
                taken.extend(buffer.take_all())
            else:
                taken.extend(buffer.take_in_turn(room, limit_bytes, now_ms))
            limit_bytes -= size_bytes - buffer.size_bytes
        return taken

    def next_due_ms(self) -> int | None:
        """When the first waiting tier record is due (epoch ms); None when none waits."""
        due: int | None = None
        for buffer in self._buffers.values():
            delay_ms = buffer.lane.delay_ms
            if delay_ms is None or not buffer.count:
                continue
            for queue in buffer.queues.values():
                if queue and (due is None or queue[0].timestamp_ms + delay_ms < due):
                    due = queue[0].timestamp_ms + delay_ms
        return due

    @property
    def ready(self) -> int:
        """How many stream records wait that may be taken now."""
        # Asked at each turn of the loop: a generator would cost more than the answer.
        count = 0
        for buffer in self._buffers.values():
            lane = buffer.lane
            if lane.delay_ms is None and (self._gate_open or not lane.gated):
                count += buffer.count
        return count

    def is_paused(self, topic: str, partition: int) -> bool:
        """Whether it was named to be paused, and not yet to be resumed."""
        return partition in self._buffers[topic].paused

    def holds(self, topic: str, partition: int) -> bool:
        return bool(self._buffers[topic].queues.get(partition))

    def buffered(self, topic: str) -> int:
        return self._buffers[topic].count

    def fetching(self) -> Fetching:
        """The partitions to pause and to resume now, by what is held of them and of their topic."""
        # Asked at each turn of the loop, and nearly always nothing changes.
        for buffer in self._buffers.values():
            if (
                buffer.count >= self._buffer_max
                or buffer.size_bytes >= BUFFER_BYTES_MAX
                or buffer.paused
            ):
                break
        else:
            return _AS_IT_IS
        pause: list[TopicPartitionKey] = []
        resume: list[TopicPartitionKey] = []
        for topic, buffer in self._buffers.items():
            full = buffer.count >= self._buffer_max
            heavy = buffer.size_bytes >= BUFFER_BYTES_MAX
            if not (full or heavy or buffer.paused) or not buffer.assigned:
                continue
            light = buffer.size_bytes <= BUFFER_BYTES_MAX // 4
            share = max(1, self._buffer_max // len(buffer.assigned))
            for partition in buffer.assigned:
                held = len(buffer.queues.get(partition, ()))
                if partition not in buffer.paused:
                    if heavy or (full and held >= share):
                        buffer.paused.add(partition)
                        pause.append((topic, partition))
                elif held <= share // 4 and light and not full:
                    buffer.paused.discard(partition)
                    resume.append((topic, partition))
        return Fetching(tuple(pause), tuple(resume)) if pause or resume else _AS_IT_IS
