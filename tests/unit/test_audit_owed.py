"""What was to be given back and is tried no more is named by the audit until it is back."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from pipeline.audit.gateway_copy import GatewayCopy
from pipeline.audit.report import Severity
from pipeline.domain.answer import GatewayAnswer
from pipeline.domain.decision import Decision
from pipeline.domain.findings import amounts_out_of_order
from pipeline.domain.model import PaymentRequest
from pipeline.domain.policy import DAY_MS, HOUR_MS
from pipeline.domain.reversals import outstanding
from tests.support.audit_story import judged_flow
from tests.support.payment_story import (
    DECLINED,
    MANUAL,
    NOT_SENT,
    ORDER,
    PENDING,
    TIMED_OUT,
    Story,
    yes,
)
from tests.unit.test_reversals import lives_until

WAITS = ("waits_for_a_person", Severity.PENDING)


def found(story: Story) -> set[tuple[str, Severity]]:
    return {(each.name, each.severity) for each in judged_flow(story.flow, None)}


def down(request: PaymentRequest) -> GatewayAnswer:
    return TIMED_OUT if request.kind == "inquire" else NOT_SENT


def paid_twice() -> Story:
    """The first charge shows after a retry has paid, and its gateway will not take it back."""
    story = Story(ORDER)
    story.flow.answer(DECLINED)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.notify("succeeded")
    story.flow.answer(DECLINED)
    return story


def test_a_hold_beside_what_was_captured_is_named() -> None:
    """Its payment is captured, by a retry: the first hold is the customer's all the same."""
    story = Story(MANUAL)
    story.flow.answer(DECLINED)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.command("capture", "c1")
    story.flow.answer(yes)
    story.notify("succeeded")
    story.flow.answer(DECLINED)
    assert (story.status, story.events[-1]) == ("captured", "reversal_failed")
    assert found(story) == {WAITS}
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert found(story) == set()


@pytest.mark.parametrize("end", ["succeeded", "declined"])
def test_what_may_go_back_of_another_charge_is_no_money_kept(end: str) -> None:
    """A bank has the retry's money, of which a part may go back besides: the first charge gives
    back the rest, and that part when it did not."""
    story = Story(ORDER)
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.answer(yes)
    story.command("refund", "u1", amount_minor=200)
    story.flow.answer(PENDING)
    story.dispute("lost", gateway_reference="charge_1_r1", event_sequence=1)
    story.notify("succeeded")
    lives_until(
        story, story.flow.now_ms + 3 * HOUR_MS, lambda r: PENDING if r.kind == "inquire" else yes(r)
    )
    assert story.payment.refunded_minor == 300
    assert {severity for _, severity in found(story)} == {Severity.PENDING}
    story.notify(end, "u1")
    lives_until(story, story.flow.now_ms + DAY_MS, yes)
    assert story.payment.refunded_minor == 500
    assert found(story) == set()


def test_what_waits_for_a_dispute_to_end_hides_no_money_that_is_kept() -> None:
    """Both charges are late. A bank has the second one's money, and its reversal waits for that;
    nobody gives the first one back."""
    story = Story(ORDER)
    story.flow.run(down)
    story.command("retry", "r1", instrument_token="tok_2")
    story.flow.run(down)
    story.notify("succeeded", "r1")
    story.dispute("opened", gateway_reference="charge_1_r1", event_sequence=1)
    story.notify("succeeded", "1")
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, down)
    kept = ("late_success_not_reversed", Severity.BROKEN)
    assert kept not in found(story)
    left = [a for a in story.payment.attempts if not a.operation_id.startswith("late-1-1")]
    story.flow.apply(ORDER, Decision(payment=replace(story.payment, attempts=tuple(left))))
    assert kept in found(story)


@pytest.mark.parametrize("state", ["opened", "lost"])
def test_what_a_bank_has_of_another_charge_settles_nothing(state: str) -> None:
    story = paid_twice()
    assert found(story) == {WAITS}
    story.dispute("opened", gateway_reference="charge_1_r1")
    story.dispute(state, gateway_reference="charge_1_r1")
    assert found(story) == {WAITS}
    story.command("give_back", "g1", override="dispute")
    story.flow.answer(yes)
    assert found(story) == set()


def test_what_a_bank_may_keep_is_named_and_what_it_keeps_is_not() -> None:
    """While the dispute is open nobody knows whose the money is; once it is lost, it is back."""
    story = paid_twice()
    story.dispute("opened", gateway_reference="charge_1")
    assert found(story) == {WAITS}
    story.dispute("lost", gateway_reference="charge_1")
    assert found(story) == set()
    assert outstanding(story.payment) == ()


@pytest.mark.parametrize(("stage", "named"), [("lost", set()), ("won", {"charged_twice"})])
def test_a_charge_that_a_bank_has_taken_back_is_none_of_two_that_stand(
    stage: str, named: set[str]
) -> None:
    """By the gateway's books, which have no refund of it."""
    story = paid_twice()
    story.dispute("opened", gateway_reference="charge_1")
    story.dispute(stage, gateway_reference="charge_1")
    books = GatewayCopy()
    first, second = (each for each in story.flow.requests() if each.kind == "charge")
    entry = {
        "amount_minor": 500, "currency": "GBP", "merchant_id": "shop", "order_id": "1",
        "created_at_ms": story.flow.now_ms,
    }  # fmt: skip
    for request, charge_id in ((first, "charge_1"), (second, "charge_1_r1")):
        key = request.idempotency_key
        books.add({**entry, "kind": "charge", "id": charge_id, "reference": key}, recent=False)
    about = {**entry, "id": "dp", "reference": "d1", "charge_id": "charge_1"}
    for kind in ("dispute", *["dispute_won"] * (stage == "won")):
        books.add({**about, "kind": kind}, recent=False)
    assert {each.name for each in judged_flow(story.flow, books)} - {WAITS[0]} == named


def test_refunds_that_their_gateway_knows_by_the_id_of_the_charge_are_each_found() -> None:
    """By their amounts: one id stands for several."""
    story = Story()
    story.flow.answer(yes)
    for operation, minor in (("k1", 200), ("k2", 100)):
        story.command("refund", operation, amount_minor=minor)
        moved = {"gateway_reference": "charge_1", "amount_minor": minor}
        story.flow.answer(GatewayAnswer(outcome="succeeded", **moved))
    books = GatewayCopy()
    for request in story.flow.requests():
        entry = {
            "amount_minor": request.amount_minor, "currency": "GBP", "merchant_id": "shop",
            "order_id": "1", "created_at_ms": 0, "kind": request.kind, "id": "charge_1",
            "reference": request.idempotency_key, "charge_id": "charge_1",
        }  # fmt: skip
        books.add(entry, recent=False)
    assert story.money == (500, 500, 300)
    assert judged_flow(story.flow, books) == []


def test_what_was_captured_beyond_a_hold_is_named_though_it_is_acknowledged() -> None:
    """That its amounts are out of order stays true; that money is owed ends when it is back."""
    story = Story(MANUAL)
    story.flow.answer(yes)
    story.command("capture", "c1", amount_minor=300)
    story.flow.run(down)
    story.command("capture", "c2", amount_minor=500)
    story.flow.answer(yes)
    story.notify("succeeded", "c1")
    story.flow.answer(DECLINED)
    assert found(story) == {WAITS, ("amounts_out_of_order", Severity.BROKEN)}
    figures = amounts_out_of_order(story.payment)
    story.command(
        "acknowledge", "k1", finding="amounts_out_of_order", figures=figures, evidence="a letter",
        reason="theirs", actor="ann",
    )  # fmt: skip
    looked_at = ("amounts_out_of_order", Severity.ACKNOWLEDGED)
    assert found(story) == {WAITS, looked_at}
    story.command("give_back", "g1")
    story.flow.answer(yes)
    assert WAITS not in found(story)


def test_what_a_bank_takes_after_the_rest_went_back_is_a_loss_and_no_debt() -> None:
    """100 were lost to one dispute, 400 went back, and another dispute takes 100 more."""
    story = Story()
    story.command("cancel")
    story.dispute("lost", amount_minor=100)
    story.flow.answer(yes)
    lives_until(story, story.flow.now_ms + 2 * HOUR_MS, yes)
    assert (story.money, found(story)) == ((500, 500, 400), set())
    story.dispute("lost", "d2", amount_minor=100)
    assert (story.events[-1], found(story)) == ("loss_posted", set())


def test_what_a_payment_that_ended_keeps_beyond_what_banks_took_is_broken() -> None:
    """Written by no flow: a reversal of a part whose rest nobody remembers."""
    story = Story()
    story.command("cancel")
    story.flow.answer(yes)
    story.flow.answer(yes)
    charge = story.payment.attempts[0]
    less = replace(
        story.payment, refunded_minor=300, attempts=(charge,), charged_back_minor=0,
    )  # fmt: skip
    story.flow.apply(ORDER, Decision(payment=less))
    assert ("late_success_not_reversed", Severity.BROKEN) in found(story)
