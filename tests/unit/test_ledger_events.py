"""Publishing decisions about the books: how many at a time."""

from __future__ import annotations

from pipeline.ledger.decisions import WaitingDecision
from producers.ledger_events import PUBLISHED_BYTES_MAX, PUBLISHED_TOGETHER_MAX, together


def event(number: int, size: int) -> WaitingDecision:
    return WaitingDecision(number, str(number), size)


def test_a_transaction_holds_so_many_decisions_and_no_more_bytes() -> None:
    """In order, none left out; one that is larger than all may be goes alone."""
    small = [event(n, 10) for n in range(PUBLISHED_TOGETHER_MAX + 1)]
    assert [len(each) for each in together(small)] == [PUBLISHED_TOGETHER_MAX, 1]
    third = PUBLISHED_BYTES_MAX // 3
    large = [event(n, size) for n, size in enumerate((third, third, third, third,
                                                      PUBLISHED_BYTES_MAX + 1, 10))]  # fmt: skip
    parts = list(together(large))
    assert [len(each) for each in parts] == [3, 1, 1, 1]
    assert [each.sequence for part in parts for each in part] == [e.sequence for e in large]
    assert list(together([])) == []
