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
