"""When a prepared batch is committed: by size or by age, the age adapting to the load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CommitPolicy:
    """A lone order does not wait; under load a transaction waits to be worth its markers.

    Every transaction costs the broker a marker for each partition it wrote (about fifty for a
    worker with twelve partitions), whatever its size. While few records arrive that is cheap and
    waiting would only be felt as latency; while many do, small transactions would spend the
    broker on markers.
    """

    # A backlog that fills a transaction is waited for: its records are old already, and each
    # partition that is written to costs the broker a request and a marker, whatever is in it.
    records_max: int = 4_000
    # Below this many records the transaction is committed as soon as the one before it has ended.
    records_small: int = 100
    # Under load a batch waits for more input for at most this long; a tenth of a second is three
    # hops within the half second that a shopper notices.
    age_ms_max: int = 100

    def due(self, records: int, age_ms: float, input_waits: bool, buffered: int = 0) -> bool:
        """Whether to commit now. ``input_waits``: more input was at hand at the last look;
        ``buffered``: how many records may be added at once, none of which waits for another."""
        if records == 0:
            return False
        if records >= self.records_max:
            return True
        if records + buffered >= self.records_max:
            return False
        if age_ms >= self.age_ms_max:
            return True
        if records <= self.records_small:
            return True
        return not input_waits
