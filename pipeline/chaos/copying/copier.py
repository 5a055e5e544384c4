"""One process that copies a topic in transactions, as a worker of the engine does it.

``python -m pipeline.chaos.copying.copier JSON``: a batch, its copies and its offsets are one
transaction of the lane. SIGTERM ends it after the transaction that is under way. Exit codes as a
worker's: 0 asked to go, 3 its producer or its client cannot go on and a successor has to.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from pipeline.runtime.cluster import ask_committed_positions
from pipeline.runtime.kafka_errors import LaneFatal, ends_the_client, kafka_error
from pipeline.runtime.lane import Lane, producer_config
from pipeline.runtime.work import Outcome, Outgoing, Work
from pipeline.runtime.worker_spec import EXIT_LANE_FATAL
from pipeline.signal_event import SignalEvent

TAKE_S = 0.2
# As a worker has it: one that is killed is missed after this.
SESSION_MS = 10_000


@dataclass(frozen=True)
class CopierSpec:
    """``partition`` is None for a member of the group, else the one input it always has."""

    bootstrap: str
    source: str
    sink: str
    sink_partitions: int
    group: str
    transactional_id: str
    messages_max: int
    partition: int | None

    def encode(self) -> str:
        return json.dumps(asdict(self))


def copy(spec: CopierSpec, stop: threading.Event) -> None:
    """Until it is asked to stop. Raises LaneFatal when a successor has to go on."""
    consumer = Consumer(
        {
            "bootstrap.servers": spec.bootstrap,
            "group.id": spec.group,
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "session.timeout.ms": SESSION_MS,
            "partition.assignment.strategy": "range",
            "log_level": 0,
        }
    )
    committed = partial(ask_committed_positions, spec.bootstrap, spec.group)
    lane = Lane(
        {**producer_config(spec.bootstrap, spec.transactional_id), "log_level": 0},
        stage="copier",
        committed_offsets=committed,
    )
    # It fences whoever was here before, whose transaction then is over: what the group has
    # committed afterwards is where to begin.
    lane.open()
    moved = threading.Event()
    if spec.partition is None:
        consumer.subscribe(
            [spec.source], on_assign=partial(_assigned, committed, moved), on_revoke=_note(moved)
        )
    else:
        consumer.assign(_places(committed, [(spec.source, spec.partition)]))
    try:
        while not stop.is_set():
            moved.clear()
            metadata = consumer.consumer_group_metadata()
            batch = [m for m in consumer.consume(spec.messages_max, TAKE_S) if m.error() is None]
            # What came back from a call in which the assignment changed is of before it.
            if moved.is_set():
                if batch:
                    _rewind(consumer, committed)
                continue
            if not batch:
                continue
            if lane.run(_work(spec, batch, metadata)) is not Outcome.COMMITTED:
                _rewind(consumer, committed)
    finally:
        consumer.close()
        lane.close()


def _work(spec: CopierSpec, batch: list[Message], metadata: Any) -> Work:
    outputs: list[Outgoing] = []
    offsets = {}
    for message in batch:
        value = message.value() or b""
        to = int(value) % spec.sink_partitions
        outputs.append((spec.sink, to, message.key(), value, None))
        offsets[message.topic() or "", message.partition() or 0] = (message.offset() or 0) + 1
    return Work(outputs, offsets, metadata)


def _places(committed: Any, inputs: list[tuple[str, int]]) -> list[TopicPartition]:
    return [
        TopicPartition(topic, partition, offset)
        for (topic, partition), offset in committed(inputs).items()
    ]


def _assigned(
    committed: Any, moved: threading.Event, consumer: Consumer, given: list[TopicPartition]
) -> None:
    moved.set()
    consumer.assign(_places(committed, [(tp.topic, tp.partition) for tp in given]))


def _note(moved: threading.Event) -> Any:
    return lambda _consumer, _partitions: moved.set()


def _rewind(consumer: Consumer, committed: Any) -> None:
    """By an assignment of the same: a partition that is not fetched yet cannot be sought."""
    places = _places(committed, [(tp.topic, tp.partition) for tp in consumer.assignment()])
    if places:
        consumer.assign(places)


def main() -> int:
    spec = CopierSpec(**json.loads(sys.argv[1]))
    stop = SignalEvent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        copy(spec, stop)
    except LaneFatal as error:
        print(f"the lane left: {error}", file=sys.stderr)
        return EXIT_LANE_FATAL
    except KafkaException as error:
        found = kafka_error(error)
        if found is None or not (ends_the_client(found) or found.retriable()):
            raise
        print(f"the client left: {found.str()}", file=sys.stderr)
        return EXIT_LANE_FATAL
    return 0


if __name__ == "__main__":
    sys.exit(main())
