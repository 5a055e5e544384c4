from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from msgspec.structs import replace

from pipeline.domain.invariant import InvariantBroken
from pipeline.domain.lifecycle import (
    ATTEMPT_TRANSITIONS,
    MAIN_KINDS,
    NEW,
    NONE,
    OPEN_STATES,
    PAYMENT_TRANSITIONS,
    SUCCEEDED_STATES,
    Step,
    attempt_step,
    payment_step,
)
from pipeline.domain.model import Attempt, Payment
from pipeline.domain.shown import shown_statuses
from pipeline.lifecycle_document import DOCUMENT, with_diagrams

PAYMENT = Payment(
    merchant_id="shop",
    order_id="1",
    payment_id="p",
    sequence=1,
    status="captured",
    amount_minor=500,
    currency="GBP",
    instrument_token="tok_1",
    business_date="2026-09-21",
    ordered_at_ms=1,
    updated_at_ms=1,
    captured_minor=500,
)
REFUND = Attempt(
    operation_id="r1",
    kind="refund",
    gateway="simulator",
    attempt=1,
    state="pending",
    tries=1,
    retries=0,
    inquiries=0,
    started_at_ms=1,
    updated_at_ms=1,
    amount_minor=100,
)


def test_the_diagrams_in_the_docs_are_the_tables() -> None:
    """docs/lifecycle.md shows what the processors do."""
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_diagrams(text) == text, "run: python -m pipeline.lifecycle_document"
    assert text.count("```mermaid") == 2


@pytest.mark.parametrize(
    ("table", "start"), [(PAYMENT_TRANSITIONS, NEW), (ATTEMPT_TRANSITIONS, NONE)]
)
def test_every_state_is_reached(table: Mapping[tuple[str, str], Step], start: str) -> None:
    """No state of a table is dead."""
    reached, todo = {start}, [start]
    while todo:
        at = todo.pop()
        for (source, _), step in table.items():
            if source == at and step.to not in reached:
                reached.add(step.to)
                todo.append(step.to)
    assert {source for source, _ in table} <= reached


def test_every_open_attempt_takes_a_gateways_word() -> None:
    """Success, decline, pending and contradiction count wherever money may still move."""
    for state in OPEN_STATES:
        for trigger in ("success_seen", "decline_seen", "pending_seen", "contradiction_seen"):
            assert (state, trigger) in ATTEMPT_TRANSITIONS


def test_nothing_leaves_an_outcome_but_a_retry() -> None:
    """A payment that has ended stays so, except that a failed one may be retried by command, after
    a person's look where a rule wants one."""
    final = {"captured", "cancelled", "expired", "rejected", "no_payment_due", "credit_held"}
    assert not final & {status for status, _ in PAYMENT_TRANSITIONS}
    assert [trigger for status, trigger in PAYMENT_TRANSITIONS if status == "failed"] == [
        "retry_asked", "review_asked",
    ]  # fmt: skip


@pytest.mark.parametrize("kind", SUCCEEDED_STATES)
def test_a_success_is_named_by_its_kind(kind: str) -> None:
    """Each kind of operation has its own final state, and each failure its own event."""
    step = attempt_step(kind, "started", "success_seen")
    assert step == Step(SUCCEEDED_STATES[kind], SUCCEEDED_STATES[kind])
    failed = attempt_step(kind, "inquiring", "give_up")
    assert failed.to == "failed"
    assert failed.event is not None
    assert failed.event.endswith("_failed")
    assert attempt_step(kind, "", "begin").event == (
        "payment_started" if kind in MAIN_KINDS else f"{kind}_started"
    )


def test_a_step_outside_the_tables_is_a_bug() -> None:
    """A trigger that makes no sense stops the worker instead of changing a payment."""
    with pytest.raises(InvariantBroken, match="retry_due"):
        attempt_step("charge", "charged", "retry_due")
    with pytest.raises(InvariantBroken, match="charge_seen"):
        payment_step("failed", "charge_seen")


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, ("captured",)),
        ({"captured_minor": 200}, ("partially_captured",)),
        ({"refunded_minor": 100}, ("captured", "partially_refunded")),
        ({"refunded_minor": 500}, ("refunded",)),
        ({"captured_minor": 200, "refunded_minor": 50, "disputed_minor": 200},
         ("partially_captured", "partially_refunded", "disputed")),
        ({"status": "failed", "refunded_minor": 500}, ("failed", "refunded")),
        ({"charged_back_minor": 500}, ("captured", "charged_back")),
        ({"attempts": (REFUND,)}, ("captured", "refund_pending")),
        ({"attempts": (replace(REFUND, state="inquiring", uncertain_since_ms=1),)},
         ("captured", "refund_pending", "operation_unknown")),
        ({"status": "processing", "captured_minor": 0, "cancel_requested_by": "c1"},
         ("processing", "cancel_requested")),
    ],
)  # fmt: skip
def test_what_is_shown_follows_from_amounts(
    changes: dict[str, Any], shown: tuple[str, ...]
) -> None:
    """Partly captured, partly refunded and disputed can hold at once."""
    assert shown_statuses(replace(PAYMENT, **changes)) == shown
