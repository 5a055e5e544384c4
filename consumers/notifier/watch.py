"""What the notifier tells about itself."""

from __future__ import annotations

from typing import Protocol


class NotifierMetrics(Protocol):
    """Called from the threads of the reader and of the deliverer."""

    def delivery(self, endpoint: str, outcome: str, seconds: float) -> None:
        """One POST and what came of it."""

    def ended(self, state: str) -> None:
        """A callback is delivered or given up."""

    def waiting(self, count: int, oldest_ms: int | None) -> None:
        """Callbacks that wait in this worker's partitions, and the time of the oldest event."""

    def lost(self, events: int) -> None:
        """Events that retention deleted before they were read."""

    def dead_lettered(self, cause: str) -> None:
        """One record has gone to the dead letters."""


class Unwatched:
    """For those who do not watch."""

    def delivery(self, endpoint: str, outcome: str, seconds: float) -> None: ...

    def ended(self, state: str) -> None: ...

    def waiting(self, count: int, oldest_ms: int | None) -> None: ...

    def lost(self, events: int) -> None: ...

    def dead_lettered(self, cause: str) -> None: ...
