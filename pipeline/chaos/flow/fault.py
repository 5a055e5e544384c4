"""What every fault of a run is: something that begins, goes on for a while, and ends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from pipeline.chaos.flow.draw import Drawn

if TYPE_CHECKING:
    from pipeline.chaos.flow.cluster import Cluster


class Fault(ABC):
    """All methods are called from the thread that started the workers, and none may block it:
    what waits for a process goes by ``cluster.later``."""

    def __init__(self, drawn: Drawn, cluster: Cluster) -> None:
        self.drawn = drawn
        self.cluster = cluster
        self._begun_s = 0.0

    def may_begin(self) -> bool:
        """Whether the flow is in a state in which this is one fault and not a hopeless case."""
        return True

    def start(self) -> str:
        """Begin; what was hit, for the log."""
        self._begun_s = time.monotonic()
        return self.begin()

    @abstractmethod
    def begin(self) -> str: ...

    def is_over(self) -> bool:
        """Asked every turn of the loop, while the fault goes on."""
        return self.elapsed_s >= self.drawn.duration_s

    @abstractmethod
    def end(self) -> None:
        """Undo it. Also called early, when a run is given up."""

    @property
    def injured(self) -> int | None:
        """How many requests it injured, once it has ended; None: that is not what it does."""
        return None

    @property
    def came_to_nothing(self) -> str:
        """Why what has ended was no fault after all; empty if it was."""
        return ""

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._begun_s
