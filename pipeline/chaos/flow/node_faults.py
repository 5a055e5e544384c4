"""Nodes that come, go and are restarted in good order."""

from __future__ import annotations

from concurrent.futures import Future

from pipeline.chaos.flow.cluster import HOME_NODES
from pipeline.chaos.flow.fault import Fault


class NodeFault(Fault):
    def may_begin(self) -> bool:
        return all(
            name in self.cluster.nodes and self.cluster.nodes[name].is_up for name in HOME_NODES
        )


class ScaleUp(NodeFault):
    """One more node joins each group; drained again, its partitions go back."""

    def begin(self) -> str:
        self.name = f"n{2 + self.drawn.number}"
        self.cluster.nodes[self.name] = self.cluster.new_node(self.name)
        self.cluster.nodes[self.name].start()
        return self.name

    def end(self) -> None:
        self.cluster.later(self.cluster.nodes[self.name].leave())
        self.cluster.forget(self.name)


class ScaleDown(NodeFault):
    """A node is drained, and comes back with its own id and its old caches."""

    def begin(self) -> str:
        name = HOME_NODES[self.drawn.pick % len(HOME_NODES)]
        self.node = self.cluster.nodes[name]
        self._drained = self.cluster.later(self.node.leave())
        return name

    def is_over(self) -> bool:
        return super().is_over() and self._drained.done()

    def end(self) -> None:
        if self._drained.done():
            self.node.start()


class RollWorkers(NodeFault):
    """Every node in turn is drained and started again at once."""

    def begin(self) -> str:
        self._left = list(HOME_NODES)
        self._node = self.cluster.nodes[self._left[0]]
        self._drained: Future[bool] | None = None
        self._ready_s = 0.0
        return ", ".join(self._left)

    def is_over(self) -> bool:
        if self._drained is not None:
            if not self._drained.done():
                return False
            self._node.start()
            # A rolling restart waits until a node works again; five seconds do for that.
            self._drained, self._ready_s = None, self.elapsed_s + 5.0
        if self.elapsed_s < self._ready_s:
            return False
        if not self._left:
            return True
        self._node = self.cluster.nodes[self._left.pop(0)]
        self._drained = self.cluster.later(self._node.leave())
        return False

    def end(self) -> None:
        self._left = []
        if self._drained is not None and self._drained.done():
            self._node.start()


class Upgrade(NodeFault):
    """Every node becomes a version that reads topics which the one before does not know.

    Either as docs/operations.md says, all workers stopped before the first new one; or by mistake
    node by node, so that both versions are in one group until the last has gone: whoever is given
    unequal partitions refuses, and may give up.
    """

    def may_begin(self) -> bool:
        return self.cluster.older and super().may_begin()

    def begin(self) -> str:
        self.cluster.older = False
        nodes = [self.cluster.nodes[name] for name in HOME_NODES]
        self._steps = [[node] for node in nodes] if self.drawn.pick % 2 else [nodes]
        self._next_s = 0.0
        self._step()
        self.cluster.is_mixed |= bool(self._steps)
        how = "node by node" if self._steps else "all at once"
        return f"{', '.join(HOME_NODES)} {how}"

    def _step(self) -> None:
        self._leaving = self._steps.pop(0)
        self._drained: list[Future[bool]] = [
            self.cluster.later(node.leave()) for node in self._leaving
        ]

    def is_over(self) -> bool:
        if self._drained:
            if not all(job.done() for job in self._drained):
                return False
            self._start()
            # Both versions are in the group for as long as the fault was drawn to last.
            self._next_s = self.elapsed_s + self.drawn.duration_s if self._steps else 0.0
        if self._steps:
            if self.elapsed_s >= self._next_s:
                self._step()
            return False
        return super().is_over()

    def _start(self) -> None:
        self._drained = []
        for node in self._leaving:
            node.older = False
            node.start()

    def end(self) -> None:
        if self._drained and all(job.done() for job in self._drained):
            self._start()
