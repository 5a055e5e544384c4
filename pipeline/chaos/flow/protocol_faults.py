"""Injured requests of one node's producers, on their way through the proxy."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.chaos import faults
from pipeline.chaos.faults import Rule
from pipeline.chaos.flow.cluster import PROXIED
from pipeline.chaos.flow.fault import Fault
from pipeline.chaos.wire import Api

# Of the ends of a lane that commits several times a second; each one costs a new producer.
CHANCE = 0.15
# Of the writes, of which a transaction has one for each partition.
WRITES_CHANCE = 0.05


class ProtocolFault(Fault):
    rules: Sequence[tuple[Api, faults.Fault]] = ()
    chance = CHANCE

    def begin(self) -> str:
        proxy = self.cluster.proxy
        self._before = len(proxy.injected)
        self._injured = 0
        for api, fault in self.rules:
            proxy.inject(Rule(api, fault, times=None, chance=self.chance))
        return f"producers of {PROXIED}"

    def end(self) -> None:
        proxy = self.cluster.proxy
        proxy.heal()
        # No other fault is at the proxy meanwhile, and no rule injures any more.
        self._injured = len(proxy.injected) - self._before
        # What still waits to arrive late arrives now; that may take as long as a broker is away.
        self.cluster.later(proxy.release)

    @property
    def injured(self) -> int:
        return self._injured

    @property
    def came_to_nothing(self) -> str:
        return "" if self._injured else "it injured no request"


class LateEnds(ProtocolFault):
    """The request itself, or one more of it, in the middle of the next transaction."""

    rules = (
        (Api.END_TXN, faults.late(Api.PRODUCE)),
        (Api.END_TXN, faults.late(Api.PRODUCE, lost=faults.Lost.ANSWER)),
        (Api.TXN_OFFSET_COMMIT, faults.late(Api.PRODUCE, lost=faults.Lost.ANSWER)),
    )


class DoubledEnds(ProtocolFault):
    rules = ((Api.END_TXN, faults.double(lost=faults.Lost.ANSWER)),)


class DroppedAnswers(ProtocolFault):
    rules = (
        (Api.END_TXN, faults.lose_answer()),
        (Api.TXN_OFFSET_COMMIT, faults.lose_answer()),
        (Api.ADD_PARTITIONS_TO_TXN, faults.lose_answer()),
    )


class DoubledWrites(ProtocolFault):
    """Records arrive twice, their answers or not at all, as over a network that drops packets."""

    chance = WRITES_CHANCE
    rules = (
        (Api.PRODUCE, faults.double(lost=faults.Lost.ANSWER)),
        (Api.PRODUCE, faults.lose_answer()),
        (Api.PRODUCE, faults.lose_request()),
    )


class ReorderedWrites(ProtocolFault):
    """Records arrive behind those that were sent after them, or late."""

    chance = WRITES_CHANCE
    rules = (
        (Api.PRODUCE, faults.reorder()),
        (Api.PRODUCE, faults.delay(0.5)),
    )
