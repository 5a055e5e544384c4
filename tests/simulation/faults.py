"""What a plan does to a running flow, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tests.simulation.gateway import GatewayBooks
from tests.simulation.ledger import SimLedger
from tests.simulation.log import MARKER_S_MAX, Cluster
from tests.simulation.plan import DEADLY, Fault
from tests.simulation.workers import Armed, Slot, Workers
from tests.simulation.world import Process, World

# One death more, and a worker with a table may quarantine a record that was alone at all of them
# and is not to blame for any.
TABLE_STAGES = frozenset({"payments", "risk"})
DEATHS_MAX = 3


class Faults:
    """``arm`` begins one; those that strike a process do so where ``step`` is passed."""

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        workers: Workers,
        *,
        books: Mapping[str, GatewayBooks],
        ledger: SimLedger,
        fired: Callable[[str, str], None],
    ) -> None:
        self.world = world
        self.cluster = cluster
        self.workers = workers
        self.books = books
        self.ledger = ledger
        self._fired = fired
        self._slow_until_s = 0.0
        workers.on_step = self.step

    def arm(self, fault: Fault) -> None:
        world, kind = self.world, fault.kind
        if kind == "slow_markers":
            self.cluster.marker_s_max = 2.0
            self._slow_until_s = max(self._slow_until_s, world.now_s + fault.for_s)
            self._fired(kind, "")

            def heal() -> None:
                # Another one may last longer.
                if world.now_s >= self._slow_until_s:
                    self.cluster.marker_s_max = MARKER_S_MAX

            world.after(fault.for_s, heal)
            return
        if kind == "outage":
            self.books[fault.target].down_until_s = world.now_s + fault.for_s
            self._fired(kind, fault.target)
            return
        if kind == "join":
            self._join(fault)
            return
        slot = self.workers.slots.get(fault.target)
        if slot is None:
            return
        if kind in ("crash", "pause", "zombie", "twin"):
            slot.armed.append(Armed(fault))
        elif kind == "end_txn":
            slot.client_faults.end_txn.append((fault.what, fault.for_s))
        elif kind == "refusal":
            slot.client_faults.refusals.append(fault.what)
        elif kind == "deaf":
            slot.client_faults.deaf_until_s = world.now_s + fault.for_s
            world.after(fault.for_s, lambda: slot.process and slot.process.ring())
            self._fired(kind, slot.name)
        elif kind == "stop":
            self._stop(slot, fault.for_s)
            self._fired(kind, slot.name)
        elif kind == "database":
            self.ledger.fail(fault.what, fault.for_s)

    def _stop(self, slot: Slot, for_s: float) -> None:
        """An orderly stop, and a start some time later."""
        if slot.stop is None:
            return
        slot.wanted = False
        slot.stop.set()

        def start() -> None:
            slot.wanted = True
            process = slot.process
            if process is None or process.ended:
                self.workers.launch(slot)

        self.world.after(for_s, start)

    def _join(self, fault: Fault) -> None:
        """One worker more, for a while."""
        if fault.target in self.workers.slots:
            return
        slot = self.workers.add(fault.target, len(self.workers.slots))
        self._fired(fault.kind, fault.target)

        def leave() -> None:
            slot.wanted = False
            if slot.stop is not None:
                slot.stop.set()
                slot.stop._process.resume()

        self.world.after(fault.for_s, leave)

    def step(self, slot: Slot, process: Process, name: str) -> None:
        """Called wherever a process may be struck."""
        armed = slot.armed
        if not armed or slot.process is not process:
            return
        first = armed[0]
        if first.steps_left > 0:
            first.steps_left -= 1
            return
        fault = armed.pop(0).fault
        if fault.kind in DEADLY:
            if slot.stage in TABLE_STAGES and slot.deaths >= DEATHS_MAX:
                return
            slot.deaths += 1
        self._fired(fault.kind, f"{process.name} at {name}")
        world = self.world
        if fault.kind == "crash":
            slot.disk.crash(world.random)
            world.after(fault.for_s, lambda: self.workers.relaunch(slot, process))
            process.kill()
        elif fault.kind in ("pause", "zombie"):
            process.pause()
            world.after(fault.for_s, process.resume)
        elif fault.kind == "twin":
            # Its supervisor believes it dead and starts another one in its place.
            process.pause()
            slot.disk.crash(world.random)
            world.after(0.5, lambda: self.workers.relaunch(slot, process))
            world.after(0.5 + fault.for_s, process.resume)
