"""How far consumer groups are behind, asked of the cluster itself."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from pipeline.kafka_access import reaching
from pipeline.observability.stalls import Places, lag_of
from pipeline.runtime.partition_offsets import list_offsets

_log = logging.getLogger(__name__)

# Back-pressure reacts within this time; at 10,000 orders/s the overshoot is half of what may wait.
LOOK_INTERVAL_S = 0.5
REQUEST_TIMEOUT_S = 10.0
# A cluster that answers that it cannot say would fill the log with it: twice a second.
FAILURES_A_LINE = 60


class GroupLag:
    """Asks for a group's committed offsets by a consumer that never joins the group.

    The admin client's call for them crashes the process (SIGSEGV, confluent-kafka 2.16) while the
    group's coordinator is away; a consumer's answers an error.
    """

    def __init__(self, bootstrap_servers: str, group: str, topics: Mapping[str, int]) -> None:
        self.group = group
        self._partitions = [TopicPartition(t, p) for t, n in topics.items() for p in range(n)]
        # The client's own lines on standard error would repeat what our errors say.
        quiet: dict[str, str | int | float | bool] = {
            **reaching(bootstrap_servers),
            "log_level": 0,
        }
        self._admin = AdminClient(quiet)
        self._consumer = Consumer(
            {
                **quiet,
                "group.id": group,
                "enable.auto.commit": False,
                # Unstable offsets will do: a lag is an estimate.
                "isolation.level": "read_uncommitted",
                "auto.offset.reset": "error",
            }
        )

    def __call__(self) -> dict[str, int]:
        """Records between the committed offsets and the ends, by topic.

        Control records count as well, so a group that has read everything may show a lag of a few:
        never alert on lag > 0 alone. A partition without a committed offset counts from its
        beginning. Raises KafkaException when the cluster does not answer.
        """
        return lag_of(self.places())

    def places(self) -> Places:
        """The committed offset and the end of every partition; as above."""
        answered = self._consumer.committed(self._partitions, timeout=REQUEST_TIMEOUT_S)
        committed = {(tp.topic, tp.partition): max(tp.offset, 0) for tp in answered}
        ends = list_offsets(
            self._admin,
            {tp: OffsetSpec.latest() for tp in self._partitions},  # type: ignore[no-untyped-call]
            timeout_s=REQUEST_TIMEOUT_S,
        )
        return {place: (committed.get(place, 0), end) for place, end in ends.items()}

    def close(self) -> None:
        self._consumer.close()


class LagGate:
    """Closed while a group is more than ``records_max`` behind on a topic; asked on the hot path.

    Hysteresis: it opens again at three quarters. When the cluster cannot be asked the gate keeps
    its last position.
    """

    def __init__(
        self,
        lag: Callable[[], Mapping[str, int]],
        *,
        records_max: int,
        stage: str = "gateway",
        what: str = "requests",
    ) -> None:
        self._lag = lag
        self._stage = stage
        self._what = what
        self._records_max = records_max
        self._stop = threading.Event()
        self._open = True
        self._failures = 0
        self._thread = threading.Thread(target=self._watch, name="lag-gate", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(REQUEST_TIMEOUT_S)

    def __call__(self) -> bool:
        return self._open

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_INTERVAL_S):
            self.look()

    def look(self) -> None:
        """Ask once; what stands in the log is what changed, and what has not for half a minute."""
        try:
            lag = sum(self._lag().values())
        except KafkaException as error:
            if self._failures % FAILURES_A_LINE == 0:
                _log.warning("the lag of the %s stage cannot be asked: %s", self._stage, error)
            self._failures += 1
            return
        if self._failures:
            _log.info("the lag of the %s stage can be asked again", self._stage)
            self._failures = 0
        limit = self._records_max if self._open else self._records_max * 3 // 4
        is_open = lag <= limit
        if is_open != self._open:
            _log.info(
                "new orders are %s: the %s stage is %d %s behind",
                "admitted again" if is_open else "held back",
                self._stage,
                lag,
                self._what,
            )
        self._open = is_open
