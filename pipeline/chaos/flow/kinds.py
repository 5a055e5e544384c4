"""The class behind each kind of fault that can be drawn."""

from __future__ import annotations

from pipeline.chaos.flow.broker_faults import FreezeBroker, KillBroker, RollBrokers
from pipeline.chaos.flow.cluster import Cluster
from pipeline.chaos.flow.draw import Drawn
from pipeline.chaos.flow.fault import Fault
from pipeline.chaos.flow.markers_apart import MarkersApart
from pipeline.chaos.flow.node_faults import RollWorkers, ScaleDown, ScaleUp, Upgrade
from pipeline.chaos.flow.protocol_faults import (
    DoubledEnds,
    DoubledWrites,
    DroppedAnswers,
    LateEnds,
    ReorderedWrites,
)
from pipeline.chaos.flow.server_faults import (
    FreezePostgres,
    FreezeSimulator,
    KillPostgres,
    KillSimulator,
    Outage,
)
from pipeline.chaos.flow.worker_faults import FreezeWorker, FullDisk, KillWorker, Twin

# Each with what is fixed about it: the stage of the worker, or which broker it is.
CLASSES: dict[str, tuple[type[Fault], dict[str, str]]] = {
    "kill-payments": (KillWorker, {"stage": "payments"}),
    "kill-gateway-worker": (KillWorker, {"stage": "gateway"}),
    "kill-ledger": (KillWorker, {"stage": "ledger"}),
    "freeze-payments-short": (FreezeWorker, {"stage": "payments"}),
    "freeze-payments-long": (FreezeWorker, {"stage": "payments"}),
    "freeze-gateway-worker-short": (FreezeWorker, {"stage": "gateway"}),
    "freeze-gateway-worker-past-failover": (FreezeWorker, {"stage": "gateway"}),
    "freeze-ledger": (FreezeWorker, {"stage": "ledger"}),
    "twin-payments": (Twin, {"stage": "payments"}),
    "twin-gateway-worker": (Twin, {"stage": "gateway"}),
    "twin-ledger": (Twin, {"stage": "ledger"}),
    "full-disk": (FullDisk, {"stage": "payments"}),
    "late-ends": (LateEnds, {}),
    "doubled-ends": (DoubledEnds, {}),
    "dropped-answers": (DroppedAnswers, {}),
    "doubled-writes": (DoubledWrites, {}),
    "reordered-writes": (ReorderedWrites, {}),
    "kill-broker": (KillBroker, {"who": "pick"}),
    "kill-coordinator": (KillBroker, {"who": "coordinator"}),
    "kill-group-coordinator": (KillBroker, {"who": "group_coordinator"}),
    "kill-controller": (KillBroker, {"who": "controller"}),
    "freeze-broker-short": (FreezeBroker, {"who": "pick"}),
    "freeze-coordinator-long": (FreezeBroker, {"who": "coordinator"}),
    "freeze-group-coordinator-long": (FreezeBroker, {"who": "group_coordinator"}),
    "freeze-controller-long": (FreezeBroker, {"who": "controller"}),
    "markers-apart": (MarkersApart, {}),
    "roll-brokers": (RollBrokers, {}),
    "kill-simulator": (KillSimulator, {}),
    "freeze-simulator": (FreezeSimulator, {}),
    "gateway-outage": (Outage, {}),
    "kill-postgres": (KillPostgres, {}),
    "freeze-postgres": (FreezePostgres, {}),
    "roll-workers": (RollWorkers, {}),
    "scale-up": (ScaleUp, {}),
    "scale-down": (ScaleDown, {}),
    "upgrade": (Upgrade, {}),
}


def make(drawn: Drawn, cluster: Cluster) -> Fault:
    """The fault that was drawn, not begun yet."""
    kind, fixed = CLASSES[drawn.kind]
    fault = kind(drawn, cluster)
    for name, value in fixed.items():
        setattr(fault, name, value)
    return fault
