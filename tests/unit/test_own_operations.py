"""Ids of operations that nobody asked for: no two things share one, whatever orders and disputes
are called, and what older records call them is still understood."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.audit import derivation
from pipeline.domain.ids import (
    dispute_operation_id,
    expiry_operation_id,
    reversal_operation_id,
    settlement_id,
)
from pipeline.domain.payment import parent_of, standing_main
from pipeline.domain.policy import DAY_MS
from tests.support.payment_story import (
    DECLINED,
    MANUAL,
    NOT_SENT,
    ORDER,
    TIMED_OUT,
    Story,
    yes,
)


def keys(story: Story) -> list[str]:
    """What gateways know the operations by, each once."""
    return list(dict.fromkeys(r.idempotency_key for r in story.flow.requests()))


def late_capture(order_id: str) -> Story:
    """Two captures of 400 of 500, the first given up and late: 300 have to go back."""
    story = Story(replace(MANUAL, order_id=order_id))
    story.flow.answer(yes)
    story.command("capture", "c1", amount_minor=400)
    story.flow.run(lambda request: NOT_SENT if request.kind != "inquire" else TIMED_OUT)
    story.command("capture", "c2", amount_minor=400)
    story.flow.answer(yes)
    story.notify("succeeded", "c1")
    return story


def test_a_late_capture_is_given_back_though_its_order_is_called_as_the_reversal_would_be() -> None:
    """Under the order's own id the refund would reach the gateway by the authorization's key."""
    story = late_capture("late-c1-1")
    assert len(keys(story)) == 4
    refund = story.flow.requests()[-1]
    assert refund.kind == "refund"
    assert (refund.amount_minor, refund.operation_id[:5]) == (300, "late-")
    assert refund.operation_id != "late-c1-1"
    story.flow.answer(yes)
    assert (story.status, story.money) == ("captured", (500, 800, 300))
    assert story.settled == [("capture", 400), ("capture", 400), ("refund", -300)]
    authorization = story.payment.attempts[0]
    assert (authorization.kind, authorization.state) == ("authorize", "authorized")


def test_a_late_retry_is_settled_beside_an_order_that_is_called_as_its_reversal() -> None:
    """Both are captured: two settlements of one id would be booked as one."""
    story = Story(replace(ORDER, order_id="late-c1-1"))
    story.flow.answer(DECLINED)
    story.command("retry", "c1", instrument_token="tok_2")
    story.flow.answer(DECLINED)
    story.flow.result(story.late_result(1))
    story.flow.answer(yes)
    story.flow.result(story.late_result(0))
    story.flow.answer(yes)
    assert story.settled == [("capture", 500), ("refund", -500)] * 2
    assert story.money == (1000, 1000, 1000)


def test_an_orders_own_charge_gives_nothing_back() -> None:
    """Its name is that of the reversal of a retry, which stands all the same."""
    story = Story(replace(MANUAL, order_id="late-c1-1"))
    story.flow.answer(DECLINED)
    story.command("retry", "c1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.command("capture", "c2")
    story.flow.answer(yes)
    assert story.settled == [("capture", 500)]


def test_an_authorization_ends_though_its_order_is_called_as_its_void_would_be() -> None:
    """Under the order's own id the void would be the order's authorization, and never end it."""
    story = Story(replace(MANUAL, order_id="expiry-c1"))
    story.flow.answer(DECLINED)
    story.command("retry", "c1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.flow.advance(8 * DAY_MS)
    void = story.flow.requests()[-1]
    assert (void.kind, len(keys(story))) == ("void", 3)
    story.flow.run(yes)
    assert (story.status, story.money) == ("expired", (0, 0, 0))


def test_what_older_records_call_a_reversal_is_still_one() -> None:
    """A payment of before, whose reversal has its order's id: what it is about is known, and the
    order's own charge stands."""
    story = late_capture("late-c1-1")
    story.flow.answer(yes)
    *others, refund = story.payment.attempts
    old = replace(refund, operation_id="late-c1-1", parent_operation_id=None, parent_attempt=0)
    payment = replace(story.payment, attempts=(*others, old))
    main = standing_main(payment)
    assert main is not None
    assert main.kind == "authorize"
    assert parent_of(payment, old) == main


@pytest.mark.parametrize("operation_id", ["1", "c1", "a-1", "x" * 60, "late-c1-1"])
def test_the_auditor_derives_the_same(operation_id: str) -> None:
    """From the definition, a second time; nothing that was derived before is another one now."""
    for order_id in ("1", f"late-{operation_id}-1", f"late-{'y' * 40}"):
        ours = reversal_operation_id(order_id, operation_id, 1)
        assert ours == derivation.reversal_operation_id(order_id, operation_id, 1)
        assert ours != order_id
    assert late_capture("1").flow.requests()[-1].operation_id == "late-c1-1"
    assert expiry_operation_id("1", "c1") == "expiry-c1"
    assert reversal_operation_id("1", "x" * 60, 1) == ("late-f6424187-5ab6-5563-8661-bab366ec6e48")


# Disputes -----------------------------------------------------------------------------------------


def test_disputes_whose_ids_continue_one_another_are_settled_apart() -> None:
    """The money of d1's next step and of the dispute d1-<its number> were one settlement."""
    story = Story()
    story.flow.answer(yes)
    story.dispute("opened", "d1", amount_minor=100, fee_minor=5)
    number = story.payment.sequence + 4
    story.dispute("opened", f"d1-{number}", amount_minor=200, fee_minor=7)
    story.dispute("won", f"d1-{number}", amount_minor=200)
    story.dispute("won", "d1", amount_minor=100)
    story.dispute("pre_arbitration", "d1", amount_minor=100)
    assert story.payment.sequence == number, "the step whose number the other id ends in"
    disputed = [amount for kind, amount in story.settled if kind == "dispute"]
    assert disputed == [-100, -200, -100]


def test_no_step_of_a_dispute_has_an_id_of_before() -> None:
    """Those began with dispute-, whatever a gateway calls its disputes; and a step has no other's,
    however long the names are."""
    ids = ["d1", "d1-5", "1.d1", "", "x" * 255, "d\u00e9", "\ud800"]
    made = {dispute_operation_id(sequence, each) for sequence in (1, 11, 5) for each in ids}
    assert len(made) == 3 * len(ids)
    assert not any(each.startswith("dispute-") for each in made)
    assert all(len(each) <= 64 for each in made)
    assert len({settlement_id("p", each, "dispute") for each in made}) == len(made)
