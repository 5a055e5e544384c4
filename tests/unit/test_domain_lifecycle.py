from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    NEW,
    NONE,
    OPEN_PLACES,
    TRANSITIONS,
    mermaid,
    transition,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "lifecycle.md"


def test_the_diagram_in_the_docs_is_the_table() -> None:
    """docs/lifecycle.md shows what the processors do; after a change, paste ``mermaid()`` anew."""
    drawn = DOCUMENT.read_text(encoding="utf-8").split("```mermaid\n")[1].split("```")[0]
    assert drawn == mermaid()


def test_every_place_is_reached_and_every_open_place_is_left() -> None:
    """No state of the table is dead, and none that waits is a trap."""
    reached, todo = {(NEW, NONE)}, [(NEW, NONE)]
    while todo:
        place = todo.pop()
        for (status, state, _), step in TRANSITIONS.items():
            after = (step.status, step.attempt_state)
            if (status, state) == place and after not in reached:
                reached.add(after)
                todo.append(after)
    assert {(status, state) for status, state, _ in TRANSITIONS} <= reached
    assert set(OPEN_PLACES) <= reached


def test_nothing_leaves_an_outcome() -> None:
    """Captured, failed, rejected and no_payment_due are final for the first charge."""
    final = {"captured", "failed", "rejected", "no_payment_due"}
    assert not final & {status for status, _, _ in TRANSITIONS}


def test_a_step_outside_the_table_is_a_bug() -> None:
    """A trigger that makes no sense stops the worker instead of changing a payment."""
    with pytest.raises(InvariantBroken, match="retry_due"):
        transition("captured", "charged", "retry_due")
