"""What a trace says of an order that came more than once."""

from __future__ import annotations

from typing import Any

from pipeline.audit.trace import Hop, describe, repetitions_told

ORDERED = {
    "merchant_id": "shop", "order_id": "1", "amount_minor": 1_250, "currency": "GBP",
    "instrument_token": "tok_ok",
}  # fmt: skip


def ordered(offset: int, **changes: Any) -> Hop:
    fields = {**ORDERED, **changes}
    return Hop("orders", "p.orders", 2, offset, offset, offset, describe("orders", fields), fields)


def letter_of(offset: int, stage: str) -> Hop:
    fields = {
        "dlq.topic": "p.orders", "dlq.partition": "2", "dlq.offset": str(offset),
        "dlq.stage": stage, "dlq.cause": "suspect",
    }  # fmt: skip
    what = describe("dead-letters", fields)
    return Hop("dead-letters", "p.dead-letters", 2, 0, 99, 99, what, fields)


def told(*hops: Hop) -> list[str]:
    return [hop.what for hop in repetitions_told(hops) if hop.role == "orders"]


def test_the_same_order_again_says_that_it_did_nothing() -> None:
    """Whatever it says beside its terms; who looks would take it for a second charge else."""
    once, again = "ordered, GBP 12.50", "ordered, GBP 12.50, repeated, no effect"
    assert told(ordered(7)) == [once]
    assert told(ordered(7), ordered(8), ordered(9, submitted_at_ms=5)) == [once, again, again]


def test_an_order_on_other_terms_is_no_repetition() -> None:
    """That it is a conflict is told by its dead letter."""
    for other in ({"amount_minor": 1}, {"currency": "EUR"}, {"instrument_token": "tok_other"}):
        first, second = told(ordered(7), ordered(8, **other))
        assert "repeated" not in first + second


def test_what_was_refused_is_not_what_the_payment_has() -> None:
    """An order that was dead-lettered and came again is taken then; a letter of another stage, and
    a record that cannot be read, decide about nothing."""
    letter = letter_of(7, "payments")
    assert told(ordered(7), ordered(8), letter) == ["ordered, GBP 12.50"] * 2
    assert "repeated" in told(ordered(7), ordered(8), letter_of(7, "risk"))[1]
    unread = Hop("orders", "p.orders", 2, 6, 6, 6, "cannot be decoded", {"problem": "cannot be"})
    assert told(unread, ordered(7)) == ["cannot be decoded", "ordered, GBP 12.50"]
