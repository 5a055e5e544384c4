"""A thread that looks at the cluster twice a second: how far each stage is, who leads, what hangs.

It only asks; what the cluster does not answer in time is looked at again with the next sample.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from pipeline.chaos.flow.recovery import Place, Sample
from topics.catalogue import Catalogue

LOOK_EVERY_S = 0.5
ANSWER_TIMEOUT_S = 3.0
# One topic for each step of a payment's way; the ledger's is how far its group has come.
STEPS = ("payment-requests", "gateway-results", "settlements")
BOOKED = "ledger"

_LATEST = OffsetSpec.latest()  # type: ignore[no-untyped-call]


@dataclass
class StuckEnd:
    """A last stable offset that does not move although there is more behind it."""

    offset: int
    since_s: float


@dataclass
class Cluster:
    """What was last seen of the brokers. ``leaders`` by topic and partition."""

    leaders: Mapping[tuple[str, int], int] = field(default_factory=dict)
    in_sync: bool = False


class Watch:
    """A context manager. Every attribute may be read at any time."""

    def __init__(self, bootstrap_servers: str, catalogue: Catalogue) -> None:
        quiet: dict[str, Any] = {
            "bootstrap.servers": bootstrap_servers,
            "log_level": 0,
            "reconnect.backoff.max.ms": 1_000,
            "error_cb": lambda _error: None,
        }
        self._catalogue = catalogue
        self._admin = AdminClient(quiet)
        self._booked = Consumer(
            {
                **quiet,
                "group.id": catalogue.group("ledger"),
                "enable.auto.commit": False,
                "isolation.level": "read_uncommitted",
            }
        )
        self._places = [
            TopicPartition(spec.name, partition)
            for spec in catalogue.topics.values()
            for partition in range(spec.partitions)
        ]
        self._roles = {spec.name: role for role, spec in catalogue.topics.items()}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos-watch", daemon=True)
        self.samples: list[Sample] = []
        self.cluster = Cluster()
        self._stuck: dict[tuple[str, int], StuckEnd] = {}
        # The longest that any partition's last stable offset stood below its end, and where.
        self.stuck_s_max = 0.0
        self.stuck_where = ""

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(4 * ANSWER_TIMEOUT_S)
        self._booked.close()

    def stuck_now(self) -> Mapping[str, float]:
        """Partitions whose last stable offset stands below the end, and for how long."""
        now_s = time.monotonic()
        return {f"{t}[{p}]": now_s - s.since_s for (t, p), s in list(self._stuck.items())}

    def _run(self) -> None:
        known_s = 0.0
        while not self._stop.wait(LOOK_EVERY_S):
            asked_s = time.monotonic()
            stable = self._offsets(IsolationLevel.READ_COMMITTED)
            ends = self._offsets(IsolationLevel.READ_UNCOMMITTED)
            self._note_stuck(stable, ends)
            if asked_s - known_s > 1.0:
                known_s = asked_s
                self._look_at_brokers()
            reached: dict[Place, int] = {
                (self._roles[topic], partition): offset
                for (topic, partition), offset in stable.items()
                if self._roles[topic] in STEPS
            }
            reached |= self._ledger()
            if reached:
                self.samples.append(Sample(asked_s, time.monotonic(), reached))

    def _offsets(self, isolation: IsolationLevel) -> dict[tuple[str, int], int]:
        asked = self._admin.list_offsets(
            dict.fromkeys(self._places, _LATEST),
            isolation_level=isolation,
            request_timeout=ANSWER_TIMEOUT_S,
        )
        found = {}
        for place, future in asked.items():
            try:
                found[place.topic, place.partition] = future.result(2 * ANSWER_TIMEOUT_S).offset
            except (KafkaException, TimeoutError):
                continue
        return found

    def _ledger(self) -> dict[Place, int]:
        topic = self._catalogue.name("settlements")
        places = [
            TopicPartition(topic, p) for p in range(self._catalogue["settlements"].partitions)
        ]
        try:
            answered: Sequence[Any] = self._booked.committed(places, timeout=ANSWER_TIMEOUT_S)
        except KafkaException:
            return {}
        return {(BOOKED, tp.partition): tp.offset for tp in answered if tp.offset >= 0}

    def _note_stuck(
        self, stable: Mapping[tuple[str, int], int], ends: Mapping[tuple[str, int], int]
    ) -> None:
        now_s = time.monotonic()
        for place, offset in stable.items():
            if ends.get(place, offset) <= offset:
                self._stuck.pop(place, None)
                continue
            known = self._stuck.get(place)
            if known is None or known.offset != offset:
                self._stuck[place] = StuckEnd(offset, now_s)
            elif now_s - known.since_s > self.stuck_s_max:
                self.stuck_s_max = now_s - known.since_s
                self.stuck_where = f"{place[0]}[{place[1]}]@{offset}"

    def _look_at_brokers(self) -> None:
        try:
            topics = self._admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics
        except KafkaException:
            self.cluster = Cluster(self.cluster.leaders, in_sync=False)
            return
        leaders, in_sync = {}, True
        for name, topic in topics.items():
            for number, partition in topic.partitions.items():
                leaders[name, number] = partition.leader
                in_sync &= set(partition.isrs) == set(partition.replicas) and partition.leader >= 0
        self.cluster = Cluster(leaders, in_sync)
