"""Faults of what workers call: the gateways and the ledger's database."""

from __future__ import annotations

import signal

from pipeline.chaos.flow.fault import Fault
from pipeline.chaos.flow.node import send


class SimulatorFault(Fault):
    """Of one gateway, the keyless one as often as any."""

    def pick(self) -> str:
        names = sorted(self.cluster.simulators)
        self.name = names[self.drawn.pick % len(names)]
        return self.name

    def may_begin(self) -> bool:
        return all(s.process.poll() is None for s in self.cluster.simulators.values())


class KillSimulator(SimulatorFault):
    """SIGKILL; its books are durable, and it comes back on its own port."""

    def begin(self) -> str:
        process = self.cluster.simulators[self.pick()].process
        process.kill()
        process.wait()
        return self.name

    def end(self) -> None:
        self.cluster.later(lambda: self.cluster.start_simulator(self.name))


class FreezeSimulator(SimulatorFault):
    """SIGSTOP with calls open: each of them is unknown."""

    def begin(self) -> str:
        send(self.cluster.simulators[self.pick()].process.pid, signal.SIGSTOP)
        return self.name

    def end(self) -> None:
        send(self.cluster.simulators[self.name].process.pid, signal.SIGCONT)


class Outage(SimulatorFault):
    """It answers everything with a 500, or refuses connections."""

    def begin(self) -> str:
        mode = ("500", "refuse")[self.drawn.pick % 2]
        self.cluster.set_outage(self.pick(), mode)
        return f"{self.name}: {mode}"

    def end(self) -> None:
        self.cluster.set_outage(self.name, "none")


class KillPostgres(Fault):
    """SIGKILL of the server with the ledger's transactions open."""

    def begin(self) -> str:
        self.cluster.postgres.kill()
        return "server"

    def end(self) -> None:
        self.cluster.later(self.cluster.postgres.start)


class FreezePostgres(Fault):
    """SIGSTOP of the server and its sessions."""

    def begin(self) -> str:
        self.cluster.postgres.freeze()
        return "server and sessions"

    def end(self) -> None:
        self.cluster.postgres.thaw()
