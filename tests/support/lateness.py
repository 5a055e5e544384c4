"""How late something is beyond what its lane takes for what waits for nothing.

A machine that does other things as well holds up both; what only the waits have to wait for holds
up them alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple


class Probe(NamedTuple):
    """An input of a lane that waits for nothing, and when it was handled."""

    asked_ms: int
    handled_ms: int


def lag_ms(probes: Iterable[Probe], since_ms: int, until_ms: int) -> int:
    """The longest that an input which waited for nothing took meanwhile."""
    return max(
        (
            probe.handled_ms - probe.asked_ms
            for probe in probes
            if probe.asked_ms <= until_ms and probe.handled_ms >= since_ms
        ),
        default=0,
    )


def late_by_itself_ms(due_ms: int, at_ms: int, probes: Iterable[Probe]) -> int:
    """How much later than due something came, what held up its whole lane then taken off."""
    return at_ms - due_ms - lag_ms(probes, due_ms, at_ms)
