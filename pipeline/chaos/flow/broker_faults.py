"""Faults of brokers. One broker at a time: of three copies two must agree."""

from __future__ import annotations

import signal
from concurrent.futures import Future

from pipeline.chaos.flow.fault import Fault
from pipeline.chaos.flow.node import send
from pipeline.embedded.broker import BrokerProcess

# From the moment on that a broker stands until a commit that was under way has its other markers.
MARKED_S = 0.5


class BrokerFault(Fault):
    """Waits until every partition has all of its copies in sync."""

    def may_begin(self) -> bool:
        return self.cluster.watch.cluster.in_sync and all(
            broker.is_running() for broker in self.cluster.kafka.brokers
        )

    def pick(self) -> tuple[BrokerProcess, str]:
        brokers = self.cluster.kafka.brokers
        broker = brokers[self.drawn.pick % len(brokers)]
        return broker, f"broker {broker.node_id}"

    def coordinator(self) -> tuple[BrokerProcess, str]:
        """Of the transactions of one worker, drawn among nodes and stages."""
        node, stage = [
            (name, stage)
            for name in sorted(self.cluster.nodes)
            for stage in ("payments", "gateway")
        ][self.drawn.pick % (2 * len(self.cluster.nodes))]
        transactional_id = self.transactional_id(node, stage)
        leader = self.leader_of("__transaction_state", transactional_id)
        for broker in self.cluster.kafka.brokers:
            if broker.node_id == leader:
                return broker, f"broker {leader}, coordinator of {transactional_id}"
        return self.pick()

    def transactional_id(self, node: str, stage: str) -> str:
        return f"paystream/{self.cluster.settings.topic_prefix}/{node}/{stage}/0"

    def leader_of(self, topic: str, name: str) -> int:
        """The broker that has the partition of one of Kafka's own topics in which a name is kept;
        -1 where that is not known."""
        leaders = self.cluster.watch.cluster.leaders
        partitions = sum(t == topic for t, _ in leaders)
        return leaders.get((topic, java_hash(name) % partitions), -1) if partitions else -1

    def controller(self) -> tuple[BrokerProcess, str]:
        broker = self.cluster.controller()
        return broker, f"broker {broker.node_id}, controller"


class KillBroker(BrokerFault):
    """SIGKILL; it comes back on its own data and port when the fault ends."""

    who = "pick"

    def begin(self) -> str:
        self.broker, text = getattr(self, self.who)()
        self.broker.kill()
        return str(text)

    def end(self) -> None:
        self.broker.launch()


class FreezeBroker(BrokerFault):
    """SIGSTOP; its connections stay open and nothing is answered."""

    who = "pick"

    def begin(self) -> str:
        self.broker, text = getattr(self, self.who)()
        self.broker.pause()
        return str(text)

    def end(self) -> None:
        self.broker.resume()


class MarkersApart(BrokerFault):
    """Markers of one transaction land apart: a broker that has a part of the table stands still,
    and neither the coordinator of a worker's transactions nor that of its offsets does. The worker
    is killed, so whoever comes next finds offsets of a transaction whose rows it cannot see yet."""

    def may_begin(self) -> bool:
        return super().may_begin() and self._chosen() is not None

    def _chosen(self) -> tuple[str, int, BrokerProcess] | None:
        """A node, its payments worker, and the broker."""
        workers = self.cluster.workers("payments")
        if not workers:
            return None
        node, pid = workers[self.drawn.pick % len(workers)]
        catalogue = self.cluster.settings.catalogue()
        spared = {
            self.leader_of("__transaction_state", self.transactional_id(node.name, "payments")),
            self.leader_of("__consumer_offsets", catalogue.group("payments")),
        }
        table = catalogue.name("payments")
        leading = {
            leader for (topic, _), leader in self.cluster.watch.cluster.leaders.items()
            if topic == table
        }  # fmt: skip
        for broker in self.cluster.kafka.brokers:
            if broker.node_id in leading - spared:
                return node.name, pid, broker
        return None

    def begin(self) -> str:
        chosen = self._chosen()
        assert chosen is not None, "may_begin was asked in the same turn"
        name, self._pid, self.broker = chosen
        self.broker.pause()
        self._killed = False
        return f"broker {self.broker.node_id}, and {name} payments (process {self._pid})"

    def is_over(self) -> bool:
        if not self._killed and self.elapsed_s >= MARKED_S:
            # What it had asked to be committed is, and what it writes now hangs.
            send(self._pid, signal.SIGKILL)
            self._killed = True
        return super().is_over()

    def end(self) -> None:
        self.broker.resume()


class RollBrokers(BrokerFault):
    """Each in turn is stopped in good order and started, once the one before is in sync again."""

    def begin(self) -> str:
        self._left = list(self.cluster.kafka.brokers)
        self._job: Future[None] | None = None
        self._ready_s = 0.0
        return ", ".join(f"broker {broker.node_id}" for broker in self._left)

    def is_over(self) -> bool:
        if self._job is not None:
            if not self._job.done():
                return False
            self._job, self._ready_s = None, self.elapsed_s + 2.0
        if self.elapsed_s > 2 * self.drawn.duration_s:
            # A busy machine: the rest of them are left as they are.
            return True
        # What is known of the brokers is a second old: in sync is believed a moment later.
        if self.elapsed_s < self._ready_s or not self.may_begin():
            return False
        if not self._left:
            return True
        broker = self._left.pop(0)
        self._job = self.cluster.later(lambda: _restart(broker))
        return False

    def end(self) -> None:
        self._left = []


def _restart(broker: BrokerProcess) -> None:
    broker.stop()
    broker.start()


def java_hash(text: str) -> int:
    """``String.hashCode`` without its sign bit, by which Kafka places ids among partitions."""
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return value & 0x7FFFFFFF
