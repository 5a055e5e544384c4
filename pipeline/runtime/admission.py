"""Which waiting input is handled next, and which partitions stop being fetched.

Pure decisions over records already consumed: no clock, no client. Three rules:

* inputs are admitted in the order of their topics (results before timers before new orders), so
  that payments under way end before others begin;
* a tier's record is due at its append time plus the tier's delay; the ones behind it in its
  partition are due later still, so its head gates it;
* a buffer that is full, by records or by bytes, pauses its partitions until it is nearly empty
  again: every pause throws away what the client has prefetched, and toggling costs a factor of ten.
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


@dataclass
class _Buffer:
    lane: InputLane
    # A stream has one queue in arrival order (which keeps each partition's order); a tier has one
    # for each partition, since a head that is not due holds only its own partition.
    queues: dict[int, deque[InputRecord]] = field(default_factory=dict)
    count: int = 0
    size_bytes: int = 0
    paused: bool = False


class Admission:
    """Bounded buffers by topic, in admission order.

    ``buffer_max`` records are held for a topic before its partitions are paused; they are resumed
    when a quarter of that is left (hysteresis).
    """

    def __init__(self, lanes: Iterable[InputLane], *, buffer_max: int) -> None:
        self._buffers = {lane.topic: _Buffer(lane) for lane in lanes}
        self._buffer_max = buffer_max
        self._low = buffer_max // 4
        self._assigned: tuple[TopicPartitionKey, ...] = ()
        self._gate_open = True

    def assign(self, partitions: Iterable[TopicPartitionKey]) -> None:
        """A new assignment: everything buffered is dropped, nothing is paused."""
        self._assigned = tuple(partitions)
        for buffer in self._buffers.values():
            buffer.queues.clear()
            buffer.count = 0
            buffer.size_bytes = 0
            buffer.paused = False

    def add(self, record: InputRecord) -> None:
        buffer = self._buffers[record.topic]
        slot = record.partition if buffer.lane.delay_ms is not None else 0
        queue = buffer.queues.get(slot)
        if queue is None:
            queue = buffer.queues[slot] = deque()
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
        """Up to ``limit`` records to handle next, in admission order.

        No further one is taken once their values come to ``limit_bytes``; a larger one goes alone.
        """
        taken: list[InputRecord] = []
        for buffer in self._buffers.values():
            if len(taken) >= limit or limit_bytes <= 0:
                break
            if not buffer.count or (buffer.lane.gated and not self._gate_open):
                continue
            delay_ms = buffer.lane.delay_ms
            before = len(taken)
            size_bytes = buffer.size_bytes
            for queue in buffer.queues.values():
                room = limit - len(taken)
                if delay_ms is None and room >= len(queue) and limit_bytes >= buffer.size_bytes:
                    taken.extend(queue)
                    queue.clear()
                    buffer.size_bytes = 0
                else:
                    while (
                        queue
                        and len(taken) < limit
                        and limit_bytes > size_bytes - buffer.size_bytes
                        and (delay_ms is None or queue[0].timestamp_ms + delay_ms <= now_ms)
                    ):
                        record = queue.popleft()
                        taken.append(record)
                        if record.value is not None:
                            buffer.size_bytes -= len(record.value)
            buffer.count -= len(taken) - before
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
    def ready(self) -> bool:
        """Whether a stream record waits that may be taken now."""
        # Asked at each turn of the loop: a generator would cost more than the answer.
        for buffer in self._buffers.values():
            lane = buffer.lane
            if buffer.count and lane.delay_ms is None and (self._gate_open or not lane.gated):
                return True
        return False

    def is_paused(self, topic: str) -> bool:
        """Whether its partitions were named to be paused, and not yet to be resumed."""
        return self._buffers[topic].paused

    def buffered(self, topic: str) -> int:
        return self._buffers[topic].count

    def fetching(self) -> Fetching:
        """The partitions to pause and to resume now, by the fill of their topic's buffer."""
        pause: list[TopicPartitionKey] = []
        resume: list[TopicPartitionKey] = []
        for topic, buffer in self._buffers.items():
            if not buffer.paused and (
                buffer.count >= self._buffer_max or buffer.size_bytes >= BUFFER_BYTES_MAX
            ):
                buffer.paused = True
                pause.extend(tp for tp in self._assigned if tp[0] == topic)
            elif (
                buffer.paused
                and buffer.count <= self._low
                and buffer.size_bytes <= BUFFER_BYTES_MAX // 4
            ):
                buffer.paused = False
                resume.extend(tp for tp in self._assigned if tp[0] == topic)
        return Fetching(tuple(pause), tuple(resume))
