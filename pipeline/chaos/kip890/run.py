"""One loop, one broker and one script: injure the ends, then read what committed readers see."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from pipeline.chaos.faults import Injected, Rule
from pipeline.chaos.kip890.loops import EngineLoop, Loop, PlainLoop, Topics
from pipeline.chaos.kip890.script import PARTS, Step
from pipeline.chaos.kip890.verdict import End, Findings, Told, Written, judge
from pipeline.chaos.proxy import KafkaProxy
from pipeline.chaos.wire import NO_ERROR, Api
from pipeline.errors import UserError

LOOPS: dict[str, Callable[[Topics, str], Loop]] = {"plain": PlainLoop, "engine": EngineLoop}
TOPIC_TIMEOUT_S = 30.0
# An open transaction that hides the end of a topic ends by itself within 20 s.
READ_TIMEOUT_S = 60.0
SAY_EVERY_S = 10.0


@dataclass
class Seen:
    """What one run came to. Times in seconds."""

    loop: str
    transaction_version: int
    # Ends that were to be injured, and those that were.
    wanted: int = 0
    faults: int = 0
    answer_lost: int = 0
    timed_out: int = 0
    late: int = 0
    doubled_ends: int = 0
    noticed: int = 0
    false_alarms: int = 0
    transactions: int = 0
    # What the broker answered to the late ones: no error, or one; a copy that came twice in a row
    # may be obeyed, inside its own transaction. ``refusals``: how often each error code.
    late_obeyed: int = 0
    late_refused: int = 0
    copies_unanswered: int = 0
    refusals: dict[int, int] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    rebuild_s: list[float] = field(default_factory=list)
    took_s: float = 0.0

    @property
    def unnoticed(self) -> int:
        return self.faults - self.noticed

    @property
    def exposed(self) -> bool:
        return self.findings.broken


def run_loop(
    kind: str,
    steps: Iterable[Step],
    *,
    direct: str,
    proxy: KafkaProxy,
    transaction_version: int,
    name: str,
    say: Callable[[str], None] = lambda _line: None,
) -> Seen:
    """Carry out the steps over fresh topics and judge what is visible afterwards.

    ``direct`` reaches the brokers around the proxy. UserError when a topic cannot be made or read.
    """
    topics = Topics(proxy.bootstrap_servers, name)
    _create(direct, topics)
    loop = LOOPS[kind](topics, direct)
    steps = [*steps, Step(True), Step(True)]
    wanted = sum(step.fault is not None for step in steps)
    seen = Seen(kind, transaction_version, wanted)
    told: list[Told] = []
    before = len(proxy.injected)
    begun_s = said_s = time.monotonic()
    number = 0
    rule: Rule | None = None
    try:
        for step in steps:
            if step.fault is not None and (rule is None or rule.spent):
                rule = proxy.inject(
                    Rule(Api.END_TXN, step.fault, transactional_id=topics.transactional_id)
                )
            injured, noticed = len(proxy.injected), loop.noticed
            end = loop.attempt(number, len(told), commit=step.commit)
            told.append(Told(number, len(told), end))
            harmed = len(proxy.injected) > injured
            if loop.noticed > noticed:
                seen.noticed += harmed
                seen.false_alarms += not harmed
            if end is End.COMMITTED:
                number += 1
            elif end is End.UNKNOWN:
                number = topics.committed()
            if time.monotonic() - said_s > SAY_EVERY_S:
                said_s = time.monotonic()
                say(f"  {kind}: {len(proxy.injected) - before:,} ends injured")
        proxy.release()
        committed = topics.committed()
    finally:
        proxy.heal()
        loop.close()
    visible = read_committed(direct, topics.sink)
    seen.transactions = len(told)
    seen.findings = judge(told, visible, committed)
    seen.rebuild_s = loop.rebuild_s
    seen.took_s = time.monotonic() - begun_s
    _count(seen, proxy.injected[before:])
    return seen


def _count(seen: Seen, injected: list[Injected]) -> None:
    refusals: Counter[int] = Counter()
    for one in injected:
        seen.faults += 1
        seen.timed_out += one.fault.silently
        seen.answer_lost += not one.fault.silently
        late = one.fault.copy is not None and one.fault.copy.after is not None
        seen.late += late
        seen.doubled_ends += not late
        if one.copy_answer is None or one.copy_answer < 0:
            seen.copies_unanswered += 1
        elif late and one.copy_answer == NO_ERROR:
            seen.late_obeyed += 1
        elif late:
            seen.late_refused += 1
            refusals[one.copy_answer] += 1
    seen.refusals = dict(refusals)


def _create(direct: str, topics: Topics) -> None:
    admin = AdminClient({"bootstrap.servers": direct, "log_level": 0})
    wanted = [NewTopic(topics.source, 1, -1), NewTopic(topics.sink, PARTS, -1)]
    try:
        for future in admin.create_topics(wanted, operation_timeout=TOPIC_TIMEOUT_S).values():
            future.result(TOPIC_TIMEOUT_S)
        consumer = Consumer({"bootstrap.servers": direct, "group.id": topics.group, "log_level": 0})
        try:
            _when_ready(
                lambda: consumer.commit(
                    offsets=[TopicPartition(topics.source, 0, 0)], asynchronous=False
                )
            )
            for partition in range(PARTS):
                place = TopicPartition(topics.sink, partition)
                _when_ready(partial(consumer.get_watermark_offsets, place, 10))
        finally:
            consumer.close()
    except KafkaException as error:
        raise UserError(f"Kafka at {direct} did not make the topics: {error}") from error


def _when_ready(call: Callable[[], object]) -> None:
    """A broker hears a moment late of the topics it leads, and of the groups."""
    deadline = time.monotonic() + TOPIC_TIMEOUT_S
    while True:
        try:
            call()
            return
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def read_committed(bootstrap: str, topic: str) -> list[Written]:
    """All that a reader of committed records sees of the topic, up to its end of this moment."""
    common = {
        "bootstrap.servers": bootstrap,
        "group.id": f"{topic}.reader",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": "earliest",
        "log_level": 0,
    }
    asked = Consumer({**common, "isolation.level": "read_uncommitted"})
    ends = {p: asked.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in range(PARTS)}
    asked.close()
    found = []
    missing = {partition for partition, end in ends.items() if end}
    reader = Consumer({**common, "isolation.level": "read_committed"})
    try:
        reader.assign([TopicPartition(topic, p, 0) for p in sorted(missing)])
        deadline = time.monotonic() + READ_TIMEOUT_S
        while missing:
            if time.monotonic() > deadline:
                raise UserError(f"{topic}: a transaction stays open, its end cannot be read")
            for message in reader.consume(1000, 0.2):
                error, offset = message.error(), message.offset() or 0
                partition = message.partition() or 0
                if error is None:
                    found.append(Written.decode(message.value() or b""))
                elif error.code() != KafkaError._PARTITION_EOF:
                    raise UserError(f"{topic}: {error}")
                elif offset >= ends[partition]:
                    missing.discard(partition)
    finally:
        reader.close()
    return found
