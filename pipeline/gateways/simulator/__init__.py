"""A payment gateway that runs on this machine: a real HTTP server with durable books."""

from __future__ import annotations

from pipeline.gateways.simulator.faults import FaultKind, FaultPlan
from pipeline.gateways.simulator.process import (
    SimulatorHandle,
    kill_simulator,
    start_simulator,
    stop_simulator,
)

__all__ = [
    "FaultKind",
    "FaultPlan",
    "SimulatorHandle",
    "kill_simulator",
    "start_simulator",
    "stop_simulator",
]
