"""Refunds of a payment that was charged twice: each charge gives back what it took, and no more."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pipeline.domain.decision import Decision
from tests.support.examples import share_of
from tests.support.payment_story import DECLINED, MANUAL, ORDER, PENDING, TIMED_OUT, Story, yes

# The gateway's ids of the order's own charge, which came too late, and of the one that stands.
LATE, STANDS = "charge_1", "charge_1_c1"


def charged_twice() -> Story:
    """The first charge shows after a retry was asked for, and its gateway will not take it back."""
    story = Story()
    story.flow.answer(DECLINED)
    late = story.late_result()
    story.command("retry", instrument_token="tok_2")
    story.flow.result(late)
    story.flow.answer(yes)
    story.flow.answer(DECLINED)
    assert (story.status, story.money) == ("captured", (1_000, 1_000, 0))
    return story


def asked(story: Story) -> tuple[str | None, int]:
    """Of which charge the newest request gives back how much."""
    request = story.flow.requests()[-1]
    assert request.kind == "refund"
    return request.parent_reference, request.amount_minor


def test_each_charge_gives_back_what_it_took() -> None:
    """First the one that stands, then the other; neither is asked for more than it took."""
    story = charged_twice()
    story.command("refund", "r1", amount_minor=300)
    assert asked(story) == (STANDS, 300)
    story.flow.answer(yes)
    story.command("refund", "r2", amount_minor=300)
    assert asked(story) == (LATE, 300)
    story.flow.answer(yes)
    story.command("refund", "r3")
    assert asked(story) == (STANDS, 200)
    story.flow.answer(PENDING)
    story.command("refund", "r4")
    assert asked(story) == (LATE, 200)
    story.flow.answer(yes)
    assert story.rejected("refund", "r5") == "refund_must_not_exceed_captured"
    story.notify("succeeded", "r3")
    assert story.money == (1_000, 1_000, 1_000)


def test_no_refund_spans_two_charges() -> None:
    """There is enough in all, and no charge that has it: the merchant asks twice."""
    story = charged_twice()
    assert story.rejected("refund", "r1", amount_minor=600) == "refund_must_not_exceed_its_charge"


def test_a_refund_may_name_its_charge() -> None:
    """What came too late went to another card, so it matters where the money goes."""
    story = charged_twice()
    story.command("refund", "r1", gateway_reference=LATE)
    assert story.events[-1] == "refund_started"
    story.flow.answer(PENDING)
    refused = story.rejected("refund", "r2", gateway_reference=LATE, amount_minor=1)
    assert refused == "refund_must_not_exceed_its_charge"
    refused = story.rejected("refund", "r3", gateway_reference="charge_9")
    assert refused == "charge_must_be_the_payments"


def test_a_refund_stays_with_its_charge() -> None:
    """It takes days; meanwhile the customer pays again, and the question is still about the first
    charge."""
    story = Story()
    story.flow.answer(DECLINED)
    story.flow.result(story.late_result())
    story.flow.answer(DECLINED)
    story.command("refund", "r1")
    assert asked(story) == (LATE, 500)
    story.flow.answer(PENDING)
    story.command("retry", instrument_token="tok_2")
    story.flow.answer(yes)
    story.wait()
    inquiry = story.flow.requests()[-1]
    assert (inquiry.kind, inquiry.operation_id) == ("inquire", "r1")
    assert inquiry.parent_reference == LATE
    story.flow.answer(yes)
    story.command("refund", "r2")
    assert asked(story) == (STANDS, 500)


def test_more_back_than_a_charge_took_is_contradictory() -> None:
    """A gateway cannot have done it, whatever another charge still holds."""
    story = charged_twice()
    story.command("refund", "r1")
    first = story.flow.open_requests[0]
    story.flow.answer(DECLINED)
    story.command("refund", "r2")
    assert asked(story) == (STANDS, 500)
    story.flow.answer(yes)
    made = story.flow.result(story.flow.handle(first, yes))
    assert made.dead_letter == "contradictory_evidence"
    assert story.money == (1_000, 1_000, 500)


@pytest.mark.slow
@settings(max_examples=share_of(60), deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([None, 100, 300, 500, 600]),
            st.sampled_from([None, None, LATE, STANDS]),
            st.sampled_from([yes, DECLINED, PENDING]),
        ),
        max_size=8,
    )
)
def test_no_charge_is_ever_asked_for_more_than_it_took(steps: list[Any]) -> None:
    """Whatever is asked in which order, declined, or left pending; and at last all can go back."""
    story, back = charged_twice(), {LATE: 0, STANDS: 0}
    pending: list[str] = []
    for number, (amount_minor, charge, answer) in enumerate(steps):
        story.command("refund", f"r{number}", amount_minor=amount_minor, gateway_reference=charge)
        if not story.flow.open_requests:
            continue
        parent, minor = asked(story)
        assert parent is not None
        assert charge in (None, parent)
        assert back[parent] + minor <= 500
        story.flow.answer(answer)
        if answer is not DECLINED:
            back[parent] += minor
        if answer is PENDING:
            pending.append(f"r{number}")
    for operation_id in pending:
        story.notify("succeeded", operation_id)
    for last in ("x", "y"):
        story.command("refund", last)
        story.flow.run(yes)
    assert story.money == (1_000, 1_000, 1_000)


def test_a_capture_that_shows_too_late_goes_back_to_its_authorization() -> None:
    """A refund is of the charge or the hold that was captured, never of a capture."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    story.command("capture", "c1", amount_minor=200)
    late = story.late_result(1)
    story.flow.run(lambda r: DECLINED if r.kind == "capture" else yes(r))
    story.command("cancel", "c2")
    story.flow.answer(yes)
    assert story.status == "cancelled"
    story.flow.result(late)
    assert asked(story) == ("authorize_1", 200)
    story.flow.answer(yes)
    assert story.money[1:] == (200, 200)


def test_refunds_of_before_count_for_the_charge_they_were_of() -> None:
    """Snapshots of before do not say which: it is known as it was then."""
    story = charged_twice()
    story.command("refund", "r1", amount_minor=300)
    story.flow.answer(yes)
    old = tuple(
        replace(each, parent_operation_id=None, parent_attempt=0) for each in story.payment.attempts
    )
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, attempts=old)))
    story.command("refund", "r2", amount_minor=200)
    assert asked(story) == (STANDS, 200)
    story.flow.answer(yes)
    story.command("refund", "r3")
    assert asked(story) == (LATE, 500)


def test_a_refund_of_before_is_of_a_charge_that_was_there() -> None:
    """One that was made later cannot be what it gave back."""
    story = Story()
    story.flow.answer(DECLINED)
    story.flow.result(story.late_result())
    story.flow.answer(DECLINED)
    story.command("refund", "r1")
    story.flow.answer(TIMED_OUT)
    *others, refund = story.payment.attempts
    refund = replace(refund, parent_operation_id=None, parent_attempt=0)
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, attempts=(*others, refund))))
    story.wait()
    story.flow.answer(yes)
    story.flow.now_ms += 1
    story.command("retry", instrument_token="tok_2")
    story.flow.answer(yes)
    story.command("refund", "r2")
    assert asked(story) == (STANDS, 500)


def test_a_dispute_bars_only_the_refund_of_its_charge() -> None:
    """The charge that came too late can be given back while the bank has the other one's money; a
    dispute that names no charge, or one that nobody knows, bars both."""
    barred = "refund_must_not_run_during_a_dispute"
    story = charged_twice()
    story.dispute("opened", gateway_reference=STANDS)
    assert story.rejected("refund", "r1", gateway_reference=STANDS) == barred
    story.command("refund", "r2", gateway_reference=LATE)
    assert story.events[-1] == "refund_started"
    assert asked(story) == (LATE, 500)
    for reference in (None, "ch_unknown"):
        other = charged_twice()
        other.dispute("opened")
        (known,) = other.payment.disputes
        known = replace(known, charge_reference=reference)
        other.flow.apply(ORDER, Decision(payment=replace(other.payment, disputes=(known,))))
        assert other.rejected("refund", "r1", gateway_reference=LATE) == barred


def test_a_dispute_at_another_gateway_bars_no_refund_here() -> None:
    """Its bank has another charge's money."""
    story = charged_twice()
    story.dispute("opened")
    elsewhere = replace(story.payment.disputes[0], gateway="another")
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, disputes=(elsewhere,))))
    story.command("refund", "r1", gateway_reference=LATE)
    assert story.events[-1] == "refund_started"
