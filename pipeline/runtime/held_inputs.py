"""Records of partitions that have a suspect among them, kept apart until the suspects are behind.

A partition's records are committed in their order, so what lies behind a suspect waits with it;
other partitions do not. Suspects come out in pieces that go alone into a transaction.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from pipeline.runtime.admission import TAKE_BYTES_MAX, InputLane, TopicPartitionKey
from pipeline.runtime.input_record import InputRecord
from pipeline.runtime.suspects import Suspects

# Held of one partition before it is paused: what it holds behind its suspects is held for seconds.
# It is read on below half of that, since the suspects may be more.
HELD_MAX = 4_000
HELD_BYTES_MAX = 16 * 1024 * 1024


class HeldInputs:
    """Beside the admission: ``take`` is asked first for every record that was read."""

    def __init__(self, lanes: Iterable[InputLane], suspects: Suspects) -> None:
        self._lanes = {lane.topic: lane for lane in lanes}
        self._suspects = suspects
        self._queues: dict[TopicPartitionKey, deque[InputRecord]] = {}
        self._bytes: dict[TopicPartitionKey, int] = {}
        self._paused: set[TopicPartitionKey] = set()

    def __bool__(self) -> bool:
        return bool(self._queues)

    def holds(self, tp: TopicPartitionKey) -> bool:
        return tp in self._queues

    def clear(self) -> None:
        """Everything is read again from the last committed positions."""
        self._queues.clear()
        self._bytes.clear()
        self._paused.clear()

    def take(self, record: InputRecord) -> bool:
        """Keep a record that is a suspect or lies behind one; False when it is neither."""
        tp = record.topic, record.partition
        queue = self._queues.get(tp)
        if queue is None:
            if record.offset >= self._suspects.until(tp):
                return False
            queue = self._queues[tp] = deque()
        queue.append(record)
        self._bytes[tp] = self._bytes.get(tp, 0) + len(record.value or b"")
        return True

    def is_paused(self, tp: TopicPartitionKey) -> bool:
        """Whether enough is held of a partition."""
        return tp in self._paused

    def overfull(self) -> list[TopicPartitionKey]:
        """Partitions of which enough is held: paused until ``roomy`` or ``released`` names them."""
        full = [
            tp
            for tp, queue in self._queues.items()
            if len(queue) >= HELD_MAX or self._bytes[tp] >= HELD_BYTES_MAX
        ]
        self._paused.update(full)
        return full

    def roomy(self) -> list[TopicPartitionKey]:
        """Paused partitions of which so much has gone that they are to be read on."""
        room = [
            tp
            for tp in self._paused
            if len(self._queues[tp]) <= HELD_MAX // 2 and self._bytes[tp] <= HELD_BYTES_MAX // 2
        ]
        self._paused.difference_update(room)
        return room

    def next_piece(self, now_ms: int, *, gate_open: bool) -> list[InputRecord]:
        """Suspects of one partition to be handled alone, each partition in its turn; empty when
        none may be handled now."""
        for tp in list(self._queues):
            queue = self._queues.pop(tp)
            self._queues[tp] = queue
            lane = self._lanes[tp[0]]
            if lane.gated and not gate_open:
                continue
            until, most = self._suspects.until(tp), self._suspects.piece(tp)
            piece: list[InputRecord] = []
            size_bytes = 0
            while queue and len(piece) < most and size_bytes < TAKE_BYTES_MAX:
                head = queue[0]
                due_ms = head.timestamp_ms + (lane.delay_ms or 0)
                if head.offset >= until or (lane.delay_ms is not None and due_ms > now_ms):
                    break
                if self._suspects.is_condemned(head) and piece:
                    break
                piece.append(queue.popleft())
                size_bytes += len(head.value or b"")
                if self._suspects.is_condemned(head):
                    break
            if piece:
                self._bytes[tp] -= size_bytes
                return piece
        return []

    def released(self) -> Iterator[tuple[TopicPartitionKey, deque[InputRecord]]]:
        """Partitions whose suspects are behind, with what was held after them, in order.

        Asked while nothing is under way. A suspect may be gone from the log meanwhile.
        """
        for tp, queue in list(self._queues.items()):
            if not self._suspects.until(tp) or (
                queue and queue[0].offset >= self._suspects.until(tp)
            ):
                self._suspects.acquit(tp)
                self._bytes.pop(tp, None)
                self._paused.discard(tp)
                yield tp, self._queues.pop(tp)
