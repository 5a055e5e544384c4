"""Faults of brokers. One broker at a time: of three copies two must agree."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from pipeline.chaos.flow.fault import Fault
from pipeline.chaos.flow.logs_at_rest import OFFSETS_TOPIC, STATE_TOPIC
from pipeline.embedded.broker import BrokerProcess


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
        leader = self.leader_of(STATE_TOPIC, transactional_id)
        for broker in self.cluster.kafka.brokers:
            if broker.node_id == leader:
                return broker, f"broker {leader}, coordinator of {transactional_id}"
        return self.pick()

    def transactional_id(self, node: str, stage: str) -> str:
        return f"paystream/{self.cluster.settings.topic_prefix}/{node}/{stage}/0"

    def leader_of(self, topic: str, name: str) -> int:
        """The broker that has the partition of one of Kafka's own topics in which a name is kept;
        -1 where that is not known."""
        return self.cluster.watch.cluster.leaders.get((topic, self._partition_of(topic, name)), -1)

    def partition_folder(self, node_id: int, topic: str, name: str) -> Path:
        """Where a broker keeps that partition."""
        log_dir = self.cluster.broker(node_id).folder / "log"
        return log_dir / f"{topic}-{self._partition_of(topic, name)}"

    def _partition_of(self, topic: str, name: str) -> int:
        partitions = sum(t == topic for t, _ in self.cluster.watch.cluster.leaders)
        return java_hash(name) % max(1, partitions)

    def group_coordinator(self) -> tuple[BrokerProcess, str]:
        """Of the group of one stage, drawn."""
        catalogue = self.cluster.settings.catalogue()
        group = catalogue.group(("payments", "gateway", "ledger")[self.drawn.pick % 3])
        leader = self.leader_of(OFFSETS_TOPIC, group)
        if leader < 0:
            return self.pick()
        return self.cluster.broker(leader), f"broker {leader}, coordinator of the group {group}"

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
    """``Utils.abs(String.hashCode)``, by which Kafka places ids and groups among partitions: the
    amount of a negative one (not its bits without the sign), and 0 of the least, which has none."""
    value = 0
    for character in text:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    signed = value - (1 << 32) if value >> 31 else value
    return 0 if signed == -(1 << 31) else abs(signed)
